"""The noise of a voxel: its level from what smooth shells leave over, and standardised residuals to draw from.

Each shell is smoothed by least squares in spherical harmonics, and what is left over is noise: the residuals that the
bootstrap of q-ball imaging draws from, Berman et al., *Probabilistic streamline q-ball tractography using the residual
bootstrap*, NeuroImage 2008, doi:10.1016/j.neuroimage.2007.06.021, each divided by √(1 − its leverage). Departure: they
serve every model, since a model's own residuals also hold what the model cannot explain. Only where shells are too
small (or there are none) are a model's own residuals taken, with the leverages of its fit estimated by random signs,
Hutchinson, Commun. Stat. Simul. Comput. 1990, doi:10.1080/03610919008812866. Magnitudes near the noise floor vary less:
the level is that of the channels, by `tractode.ops.rician`. The signal that noise is added to is the model's, or, as far as
that is refuted, the smooth one (James & Stein, *Estimation with quadratic loss*, Proc. 4th Berkeley Symp. 1961): what a
model makes of a signal that it cannot explain is then imitated, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.contracts import SignalModel
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.fields.needs import SHELLED
from tractode.fields.scheme import scheme_of
from tractode.ops import rician
from tractode.ops import spherical_harmonics as sh

_LARGEST_ORDERS = ((1200.0, 4), (3200.0, 6), (float("inf"), 8))  # what a fibre's signal holds of each degree, below 1 %
_MOST_COEFFICIENTS = 0.76  # of the number of directions
_FEWEST_FREEDOMS = 8.0  # of smooth shells; with fewer the model's own residuals are better
_LEAST_FREEDOM = 0.1  # of a volume whose residual is drawn from
_ROUNDS = 6
_PROBES = 4


@dataclass(frozen=True, eq=False)
class Noise:
    """Noise of a scan's voxels, one column a volume where there are several.

    ``sigma`` is that of one channel, in signal units; ``magnitude`` the expected mean: that of the model's
    signals, or of the smooth ones where the model does not explain them; ``spread`` the standard deviation of each measured
    magnitude. ``residuals`` have mean 0 and variance 1 over the volumes that are drawn from: the first ``n_drawn`` that ``pool``
    names.
    """

    sigma: Float[Tensor, "v 1"]
    magnitude: Float[Tensor, "v n"]
    spread: Float[Tensor, "v n"]
    residuals: Float[Tensor, "v n"]
    pool: Int[Tensor, "v n"]
    n_drawn: Int[Tensor, "v 1"]
    has_floor: bool

    def of(self, rows: Int[Tensor, " k"]) -> Noise:
        """That of some voxels."""
        names = ("sigma", "magnitude", "spread", "residuals", "pool", "n_drawn")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def explained(
    model: SignalModel, signal: Float[Tensor, "v n"], gtab: GradientTable
) -> tuple[Float[Tensor, "v m"], GradientTable]:
    """The signals that the model speaks of, in float64, and their table."""
    index = model.explains(gtab).to(signal.device)
    return signal[:, index].double(), gtab[index]


def why_not(model: SignalModel, gtab: GradientTable) -> str | None:
    """Why no noise level can be told from this table, in words for a user; ``None`` if it can."""
    gtab = gtab[model.explains(gtab)]
    n_unknowns = model.example(0, 1).shape[-1]
    if _smoother(gtab) is None and len(gtab) <= n_unknowns:
        return f"The error needs more volumes than unknowns; there are {len(gtab)} volumes and {n_unknowns} unknowns"
    return None


def noise_of(
    model: SignalModel,
    signal: Float[Tensor, "v n"],
    gtab: GradientTable,
    params: Float[Tensor, "v p"],
    has_floor: bool = True,
    sigma: Float[Tensor, "v 1"] | None = None,
) -> Noise:
    """The noise of signals (as `explained` gives them) about the fit ``params``.

    ``has_floor`` says that they are magnitudes of one channel's complex noise; otherwise the noise is Gaussian. ``sigma`` is
    its level where it is known (from a larger region, or a noise map; 0 where it is not), otherwise it is told from each voxel
    alone, as it is where the residuals are larger than chance allows (motion, misfit). Raises
    `InputDataError` (E-UNCERTAINTY-TABLE) where nothing is left over to tell it from.
    """
    if (reason := why_not(model, gtab)) is not None:
        raise InputDataError(
            reason, id="E-UNCERTAINTY-TABLE", needed="more volumes, or shells of at least 8 directions"
        )
    predicted = _predicted(model, signal, gtab, params)
    smoother = _smoother(gtab)
    if smoother is None:
        smooth, left = predicted, 1 - _leverages(model, signal, gtab)
    else:
        smooth, left = signal @ smoother.to(signal).mT, 1 - smoother.diagonal().to(signal).expand_as(signal)
    told = _level(signal - smooth, left, smooth, has_floor)
    sigma = told if sigma is None else _at_least(sigma.to(signal), told, left)
    kept = left > _LEAST_FREEDOM
    kept = kept | ~kept.any(-1, keepdim=True)
    n_drawn = kept.sum(-1, keepdim=True)
    spread = _spread(smooth, sigma, has_floor)
    residuals = (signal - smooth) / (spread * left.clamp(min=_LEAST_FREEDOM).sqrt())
    centre = (residuals * kept).sum(-1, keepdim=True) / n_drawn
    scale = (((residuals - centre) * kept).square().sum(-1, keepdim=True) / n_drawn).sqrt()
    residuals = (residuals - centre) / scale.clamp(min=torch.finfo(signal.dtype).tiny)
    pool = (~kept).to(torch.uint8).argsort(dim=-1, stable=True)
    magnitude = _between(predicted, smooth, sigma, 1 - left, params.shape[-1])
    return Noise(sigma, magnitude, _spread(magnitude, sigma, has_floor), residuals, pool, n_drawn, has_floor)


def _predicted(
    model: SignalModel, signal: Float[Tensor, "v n"], gtab: GradientTable, params: Float[Tensor, "v p"]
) -> Float[Tensor, "v n"]:
    """The fit's signals; those of a model whose parameters hold no scale are brought to that of the measured ones."""
    predicted = model.predict(params, gtab).clamp(min=0)
    weighted = ~gtab.is_b0.to(signal.device)
    above = (predicted * signal)[:, weighted].sum(-1, keepdim=True)
    below = predicted.square()[:, weighted].sum(-1, keepdim=True)
    scale = above / below.clamp(min=torch.finfo(signal.dtype).tiny)
    return predicted * torch.where((above > 0) & (below > 0), scale, torch.ones_like(scale))


def _between(
    predicted: Float[Tensor, "v n"],
    smooth: Float[Tensor, "v n"],
    sigma: Float[Tensor, "v 1"],
    leverage: Float[Tensor, "v n"],
    n_params: int,
) -> Float[Tensor, "v n"]:
    """The model's signals, drawn towards the smooth ones as far as they differ by more than noise (James and Stein's share)."""
    n_smooth = leverage.sum(-1, keepdim=True)
    chance = sigma.square() * (n_smooth - (n_smooth / 2).clamp(max=n_params))
    apart = (smooth - predicted).square().sum(-1, keepdim=True)
    share = (1 - chance / apart.clamp(min=torch.finfo(apart.dtype).tiny)).clamp(min=0)
    return (predicted + share * (smooth - predicted)).clamp(min=0)


def _level(
    residual: Float[Tensor, "v n"], left: Float[Tensor, "v n"], smooth: Float[Tensor, "v n"], has_floor: bool
) -> Float[Tensor, "v 1"]:
    """σ with ``Σ r² = σ² Σ (1 − h) ξ``; a dead voxel gets the least number above 0."""
    tiny = torch.finfo(residual.dtype).tiny ** 0.25
    squares = residual.square().sum(-1, keepdim=True)
    sigma = (squares / left.sum(-1, keepdim=True).clamp(min=_LEAST_FREEDOM)).sqrt().clamp(min=tiny)
    for _ in range(_ROUNDS if has_floor else 0):
        freedom = (left * rician.variance_of(smooth / sigma)).sum(-1, keepdim=True)
        sigma = (squares / freedom.clamp(min=_LEAST_FREEDOM)).sqrt().clamp(min=tiny)
    return sigma


def _at_least(
    sigma: Float[Tensor, "v 1"], told: Float[Tensor, "v 1"], left: Float[Tensor, "v n"]
) -> Float[Tensor, "v 1"]:
    """The known level, unless it is 0 or the voxel's own is larger by more than two of its standard errors."""
    chance = 2 / (2 * left.clamp(min=0).sum(-1, keepdim=True)).clamp(min=1).sqrt()
    return torch.where((sigma > 0) & (told <= sigma * (1 + chance)), sigma, told)


def _spread(magnitude: Float[Tensor, "v n"], sigma: Float[Tensor, "v 1"], has_floor: bool) -> Float[Tensor, "v n"]:
    if not has_floor:
        return sigma.expand_as(magnitude)
    return sigma * rician.variance_of(magnitude / sigma).sqrt()


def _smoother(gtab: GradientTable) -> Float[Tensor, "n n"] | None:
    """The matrix that smooths each shell and averages the b=0 volumes; ``None`` where too little would be left over."""
    if scheme_of(gtab) not in SHELLED:
        return None
    matrix = torch.eye(len(gtab), dtype=torch.float64)
    unweighted = gtab.is_b0.cpu().nonzero().ravel()
    if len(unweighted) > 1:
        matrix[unweighted[:, None], unweighted] = 1 / len(unweighted)
    for b, index in gtab.shells():
        largest = next(order for limit, order in _LARGEST_ORDERS if b <= limit)
        order = max(
            (k for k in range(2, largest + 1, 2) if sh.n_coefficients(k) <= _MOST_COEFFICIENTS * len(index)), default=0
        )
        if order:
            basis = sh.basis(gtab.bvecs[index].cpu().double(), order)
            matrix[index[:, None], index] = basis @ torch.linalg.pinv(basis, rtol=1e-6)
    return matrix if len(gtab) - float(matrix.trace()) >= _FEWEST_FREEDOMS else None


def _leverages(model: SignalModel, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v n"]:
    """Each volume's weight in its own prediction: the mean over the b=0 volumes, and over the others, of each voxel.

    ``Σ z ∘ Hᵀz`` over random signs z, which are the same for all voxels. Where the derivative fails each volume has the same:
    the share of unknowns in the volumes.
    """
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros_like(signal)
    with torch.enable_grad():
        variable = signal.detach().requires_grad_()
        params = model.fit(variable, gtab)
        predicted = model.predict(params, gtab)
        for _ in range(_PROBES):
            sign = (torch.randint(0, 2, (signal.shape[1],), generator=generator) * 2.0 - 1).to(signal)
            (back,) = torch.autograd.grad((predicted * sign).sum(), variable, retain_graph=True)
            total += sign * back / _PROBES
    total = torch.where(total.isfinite().all(-1, keepdim=True), total, params.shape[-1] / signal.shape[1])
    for group in (gtab.is_b0, ~gtab.is_b0):
        index = group.to(signal.device).nonzero().ravel()
        if len(index):
            total[:, index] = total[:, index].mean(-1, keepdim=True)
    return total.clamp(0, 1)
