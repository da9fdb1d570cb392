"""Ball and sticks: one isotropic compartment and up to three fibre populations of one diffusivity, as many as the data ask for.

Behrens et al., *Characterization and propagation of uncertainty in diffusion-weighted MR imaging*, MRM 2003,
doi:10.1002/mrm.10609; several sticks: Behrens et al., *Probabilistic diffusion tractography with multiple fibre
orientations: what can we gain?*, NeuroImage 2007, doi:10.1016/j.neuroimage.2006.09.018. Departures: least squares in
place of sampling; the number of sticks is that of the least Bayesian information criterion (Schwarz, *Estimating the
dimension of a model*, Annals of Statistics 1978, doi:10.1214/aos/1176344136) in place of relevance priors. The same
criterion decides, where there are several shells, on a Gamma distribution of diffusivities: Jbabdi et al., *Model-based
analysis of multishell diffusion MR data for tractography*, MRM 2012, doi:10.1002/mrm.24204.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.contracts import MapSpec, SignalModel, table_of_shells
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.fields.needs import Needs
from tractode.models import odf
from tractode.ops import least_squares, sphere
from tractode.ops.levenberg_marquardt import levenberg_marquardt

_TILE = 256
_B_SCALE = 1000.0
_N_ITERATIONS = 50
_TOLERANCE = 1e-5  # of the prediction: far below noise; the last step leaves the square of it where there is none
_N_AXES = 64  # of the dictionary: some 18 degrees apart
_DIFFUSIVITIES = (0.5, 0.9, 1.4, 2.0)  # µm²/ms
_FIRST_SPREAD = 0.5  # standard deviation of the diffusivities over their mean
_FLOOR = 1e-4  # of S0: residuals below it count as none, so that noise-free signals get no more sticks than they have
_TINY = torch.finfo(torch.float32).tiny
_MOST = 3


@dataclass(frozen=True)
class BallAndSticks(SignalModel):
    """Parameters: ln S0; mean d of the diffusivities and their variance over d, µm²/ms; each stick's axis times its fraction.

    The strongest stick comes first; an axis points to z ≥ 0 (RAS+ scanner frame). What the data do not ask for, sticks or a
    spread of diffusivities, is 0.
    """

    n_sticks: int = _MOST

    label: ClassVar[str] = "bs"
    citation: ClassVar[str] = "Behrens2007"
    needs: ClassVar[Needs] = Needs(directions=15, volumes=15)
    recovers: ClassVar[float] = 1e-6
    maps: ClassVar[tuple[MapSpec, ...]] = (
        MapSpec("ballvf", "Fraction of the ball", "arbitrary"),
        MapSpec("stick1vf", "Fraction of the first stick", "arbitrary"),
        MapSpec("stick2vf", "Fraction of the second stick (0: there is none)", "arbitrary"),
        MapSpec("stick3vf", "Fraction of the third stick (0: there is none)", "arbitrary"),
        MapSpec(
            "direction1",
            "Direction of the first stick (0: there is none)",
            "arbitrary",
            components="unit3vector",
            invariant=False,
        ),
        MapSpec(
            "direction2",
            "Direction of the second stick (0: there is none)",
            "arbitrary",
            components="unit3vector",
            invariant=False,
        ),
        MapSpec(
            "direction3",
            "Direction of the third stick (0: there is none)",
            "arbitrary",
            components="unit3vector",
            invariant=False,
        ),
        MapSpec("d", "Mean diffusivity of the ball and along the sticks", "mm^2/s"),
        MapSpec(
            "dspread",
            "Standard deviation of these diffusivities over their mean (0: one diffusivity explains the shells)",
            "arbitrary",
        ),
        MapSpec("s0", "Signal without diffusion weighting", "arbitrary"),
    )

    @classmethod
    def example_table(cls, n: int = 60) -> GradientTable:
        return table_of_shells((1000.0, 2000.0, 3000.0), n)

    @classmethod
    def why_not(cls, gtab: GradientTable) -> str | None:
        return super().why_not(gtab) or odf.not_spanning(gtab)

    def facts(self) -> dict[str, Any]:
        return {"MostSticks": self.n_sticks, "Choice": "least Bayesian information criterion"}

    def predict(self, params: Float[Tensor, "v p"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        """``S0 [(1 − Σf) A(b) + Σ f A(b (g·v)²)]`` with ``A(b) = exp(−bd)``, or ``(1 + br)^(−d/r)`` where diffusivities are spread."""
        gtab = gtab.to(params)
        sticks = params[:, 3:].unflatten(-1, (-1, 3))
        square = sticks.square().sum(-1)
        none = square <= 0
        safe = torch.where(none, torch.ones_like(square), square)
        fraction = torch.where(none, torch.zeros_like(square), safe.sqrt())
        cosines = (sticks @ gtab.bvecs.mT).square() / safe[..., None]
        b, d, r = gtab.bvals / _B_SCALE, params[:, 1:2], params[:, 2:3]
        along = (fraction[..., None] * _decay(b * cosines, d[..., None], r[..., None])).sum(1)
        return params[:, :1].exp() * ((1 - fraction.sum(-1, keepdim=True)) * _decay(b, d, r) + along)

    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v p"]:
        if reason := self.why_not(gtab):
            raise InputDataError(
                reason, id="E-BS-TABLE", needed="b=0 and at least 15 weighted volumes that span the sphere"
            )
        table = gtab.to(signal.to(torch.float64))
        return least_squares.in_tiles(lambda tile: self._fit_tile(tile, table), signal, _TILE, threaded=True)

    def _fit_tile(self, signal: Float[Tensor, "t n"], gtab: GradientTable) -> Float[Tensor, "t p"]:
        dtype, signal = signal.dtype, signal.to(torch.float64)
        scale = signal[:, gtab.is_b0].mean(-1, keepdim=True).detach()
        usable = scale > _TINY
        safe = torch.where(usable, scale, torch.ones_like(scale))
        b, g = gtab.bvals / _B_SCALE, gtab.bvecs
        # A voxel without signal is fitted as if it were a ball, and then emptied.
        relative = torch.where(usable, signal / safe, (-b * 0.7).exp())
        with torch.no_grad():
            found = self._candidates(relative.detach(), b, g, len(gtab.shells()) > 1)
            errors = [(relative - _signal(x, b, g)).square().mean(-1) + _FLOOR**2 for x in found]
            scores = [
                len(b) * size.log() + x.shape[1] * math.log(len(b)) for size, x in zip(errors, found, strict=True)
            ]
            choice = torch.stack(scores, dim=-1).argmin(-1)
        best = relative.new_zeros(len(relative), 3 + 3 * self.n_sticks)
        for number, x in enumerate(found):
            rows = (choice == number).nonzero().ravel()
            if torch.is_grad_enabled() and relative.requires_grad and len(rows):
                best = best.index_copy(0, rows, self._padded(_optimum(relative[rows], x[rows], b, g)))
            else:
                best = best.index_copy(0, rows, self._padded(x[rows]))
        return _as_parameters(best, safe, usable).to(dtype)

    def _candidates(
        self, signal: Float[Tensor, "t n"], b: Float[Tensor, " n"], g: Float[Tensor, "n 3"], with_spread: bool
    ) -> list[Float[Tensor, "t _"]]:
        """The best unknowns of 0, 1, … sticks; on several shells each also with spread diffusivities."""
        found: list[Tensor] = []
        previous = None
        for k in range(min(self.n_sticks, (len(b) // 2 - 2) // 3) + 1):
            previous = _optimum(signal, _start(signal, b, g, k, previous), b, g)
            found.append(previous)
            if with_spread:
                spread = _FIRST_SPREAD * (previous[:, :1] / 2).exp()
                found.append(_optimum(signal, torch.cat([previous, spread], dim=-1), b, g))
        return found

    def _padded(self, x: Float[Tensor, "t p"]) -> Float[Tensor, "t q"]:
        """With zeros for the sticks and the spread that are not there."""
        k = (x.shape[1] - 2) // 3
        spread = x[:, 2 + 3 * k :] if x.shape[1] > 2 + 3 * k else torch.zeros_like(x[:, :1])
        missing = x.new_zeros(len(x), 3 * (self.n_sticks - k))
        return torch.cat([x[:, : 2 + 3 * k], missing, spread], dim=-1)

    def to_maps(self, params: Float[Tensor, "v p"]) -> dict[str, Float[Tensor, "v _"]]:
        sticks = torch.nn.functional.pad(params[:, 3:], (0, 3 * _MOST - params.shape[1] + 3)).unflatten(-1, (-1, 3))
        square = sticks.square().sum(-1, keepdim=True)
        none = square <= 0
        size = torch.where(none, torch.ones_like(square), square).sqrt()
        fraction = torch.where(none, torch.zeros_like(size), size)[..., 0]
        direction = sticks / size
        return {
            "ballvf": 1 - fraction.sum(-1, keepdim=True),
            **{f"stick{k + 1}vf": fraction[:, k : k + 1] for k in range(_MOST)},
            **{f"direction{k + 1}": direction[:, k] for k in range(_MOST)},
            "d": params[:, 1:2] / _B_SCALE,
            "dspread": _root(params[:, 2:3] / params[:, 1:2]),
            "s0": params[:, :1].exp(),
        }

    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n p"]:
        """Sticks some 70 to 110 degrees apart, of fractions near 0.3, 0.22 and 0.15; d of 1.2–2.2 µm²/ms, spread by half."""
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(n, 2 + self.n_sticks, generator=generator, dtype=torch.float64)
        axis = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        frame = sphere.frame_to_z(axis / axis.norm(dim=-1, keepdim=True))
        frame = frame + 0.15 * torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)
        frame = frame / frame.norm(dim=-1, keepdim=True)
        frame = torch.where(frame[..., 2:] < 0, -frame, frame)[:, : self.n_sticks]
        fraction = uniform.new_tensor([0.3, 0.22, 0.15])[: self.n_sticks] + 0.04 * uniform[:, 2:]
        sticks = (fraction[..., None] * frame).flatten(1)
        return torch.cat([3.9 + 3 * uniform[:, :1], 1.2 + uniform[:, 1:2], 0.3 + 0.2 * uniform[:, :1], sticks], dim=-1)


def _decay(b: Float[Tensor, "*#n"], d: Float[Tensor, "*#m"], r: Float[Tensor, "*#m"]) -> Tensor:
    """``(1 + br)^(−d/r)``: the mean of ``exp(−bD)`` over Gamma-distributed D of mean d and variance d·r; ``exp(−bd)`` for r = 0."""
    product = b * r
    small = product < 1e-4
    far = torch.where(small, torch.ones_like(product), product)
    mean = torch.where(small, 1 - product / 2 + product.square() / 3, torch.log1p(far) / far)
    return (-d * b * mean).exp()


def _root(square: Float[Tensor, "v 1"]) -> Float[Tensor, "v 1"]:
    """The square root, with no slope at 0."""
    positive = square > 0
    return torch.where(
        positive, torch.where(positive, square, torch.ones_like(square)).sqrt(), torch.zeros_like(square)
    )


def _split(x: Float[Tensor, "t p"]) -> tuple[Float[Tensor, "t k 3"], Float[Tensor, "t 1"]]:
    """The vectors of the sticks, and the variance of the diffusivities over their mean, from the search's unknowns."""
    k = (x.shape[1] - 2) // 3
    spread = x[:, -1:].square() if x.shape[1] > 2 + 3 * k else torch.zeros_like(x[:, :1])
    return x[:, 2 : 2 + 3 * k].unflatten(-1, (-1, 3)) if k else x.new_zeros(len(x), 0, 3), spread


def _signal(x: Float[Tensor, "t p"], b: Float[Tensor, " n"], g: Float[Tensor, "n 3"]) -> Float[Tensor, "t n"]:
    """``u² A(b) + Σ |x|² A(b (g·x)²/|x|²)`` of ln d, u, a vector without bounds for each stick and, if it is there, √r."""
    vectors, r = _split(x)
    d = x[:, :1].exp()
    whole = x[:, 1:2].square() * _decay(b, d, r)
    for vector in vectors.unbind(1):
        amount = vector.square().sum(-1, keepdim=True) + 1e-12
        whole = whole + amount * _decay(b * (vector @ g.mT).square() / amount, d, r)
    return whole


def _optimum(
    signal: Float[Tensor, "t n"], start: Float[Tensor, "t p"], b: Float[Tensor, " n"], g: Float[Tensor, "n 3"]
) -> Float[Tensor, "t p"]:
    return levenberg_marquardt(
        lambda x: _signal(x, b, g),
        signal,
        start,
        search=lambda data, start: _searched(data, start, b, g),
        tolerance=_TOLERANCE,
    )


def _searched(
    data: Float[Tensor, "t n"], start: Float[Tensor, "t p"], b: Float[Tensor, " n"], g: Float[Tensor, "n 3"]
) -> Float[Tensor, "t p"]:
    """The same search, compiled."""
    from tractode.models.kernels.stick_search import search  # numba takes part of a second to import

    out = torch.empty_like(start)
    given = [part.contiguous().numpy() for part in (data, start, b, g)]
    search(*given, _N_ITERATIONS, _TOLERANCE, out.numpy())
    return out


def _start(
    signal: Float[Tensor, "t n"],
    b: Float[Tensor, " n"],
    g: Float[Tensor, "n 3"],
    k: int,
    previous: Float[Tensor, "t q"] | None,
) -> Float[Tensor, "t p"]:
    """Where to search for the best k sticks: at none the mean decay, at one or two a dictionary, then the last with one more."""
    if k == 0:
        logs = (signal.clamp_min(1e-3).log() * -b).sum(-1, keepdim=True) / b.square().sum()
        return torch.cat([logs.clamp(0.1, 3.5).log(), torch.ones_like(logs)], dim=-1)
    axes = sphere.directions(_N_AXES).to(signal)
    if k <= 2:
        return _of_dictionary(signal, b, g, axes, k)
    assert previous is not None
    return _with_one_more(signal, b, g, axes, previous)


@cache
def _pairs(k: int) -> Int[Tensor, "c k"]:
    """Numbers of the axes of each combination."""
    return torch.combinations(torch.arange(_N_AXES), k)


def _of_dictionary(
    signal: Float[Tensor, "t n"], b: Float[Tensor, " n"], g: Float[Tensor, "n 3"], axes: Float[Tensor, "a 3"], k: int
) -> Float[Tensor, "t p"]:
    """The best non-negative mixture of a ball and k sticks along given axes, over a few diffusivities."""
    chosen, cosines = _pairs(k).to(g.device), (axes @ g.mT).square()
    least = signal.new_full((len(signal), 1), math.inf)
    best = signal.new_zeros(len(signal), 2 + 3 * k)
    for diffusivity in _DIFFUSIVITIES:
        atoms = torch.cat([(-b * diffusivity).exp()[None], (-b * diffusivity * cosines).exp()])
        members = torch.cat([torch.zeros_like(chosen[:, :1]), chosen + 1], dim=-1)
        inverse = torch.linalg.inv((atoms @ atoms.mT)[members[:, :, None], members[:, None, :]])
        cost, place, amounts = _best(signal @ atoms.mT, inverse, chosen)
        # Where every mixture has a negative weight the best of them must do: the search starts from small weights.
        taken = amounts.clamp_min(0.02).sqrt()
        vectors = taken[:, 1:, None] * axes[chosen[place[:, 0]]]
        entry = torch.cat([torch.full_like(cost, math.log(diffusivity)), taken[:, :1], vectors.flatten(1)], dim=-1)
        best, least = torch.where(cost < least, entry, best), torch.minimum(cost, least)
    return best


def _best(
    products: Float[Tensor, "t a"], inverse: Float[Tensor, "c m m"], chosen: Int[Tensor, "c k"]
) -> tuple[Float[Tensor, "t 1"], Int[Tensor, "t 1"], Float[Tensor, "t m"]]:
    """Cost (less the signal's own square), number and amounts of the best combination; negative weights count half."""
    if chosen.shape[1] == 2 and products.device.type == "cpu":
        from tractode.models.kernels.stick_search import best_pairs  # numba takes part of a second to import

        cost, place = products.new_empty(len(products), 1), torch.empty(len(products), 1, dtype=torch.int64)
        amounts = products.new_empty(len(products), 3)
        rows, columns = torch.triu_indices(3, 3)
        given = [part.contiguous().numpy() for part in (products, inverse[:, rows, columns].mT, chosen)]
        best_pairs(*given, cost.numpy(), place.numpy(), amounts.numpy())
        return cost, place, amounts
    parts = torch.cat([products[:, :1, None].expand(-1, len(chosen), 1), products[:, chosen + 1]], dim=-1)
    weights = torch.einsum("cij,tcj->tci", inverse, parts)
    value = -(weights * parts).sum(-1)
    cost, place = torch.where((weights < 0).any(-1), 0.5 * value, value).min(-1, keepdim=True)
    return cost, place, weights.gather(1, place[..., None].expand(-1, 1, weights.shape[2]))[:, 0]


def _with_one_more(
    signal: Float[Tensor, "t n"],
    b: Float[Tensor, " n"],
    g: Float[Tensor, "n 3"],
    axes: Float[Tensor, "a 3"],
    found: Float[Tensor, "t q"],
) -> Float[Tensor, "t p"]:
    """The sticks found so far and the axis that lowers the residual most when all weights are fitted anew."""
    decay = -b * found[:, :1].exp()
    vectors = found[:, 2:].unflatten(-1, (-1, 3))
    size = vectors.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    held = torch.cat([decay[:, None].exp(), (decay[:, None] * (vectors / size @ g.mT).square()).exp()], dim=1)
    more = (decay[:, None] * (axes @ g.mT).square()).exp()
    # The held atoms are taken out of signal and candidates (Gram–Schmidt); what a candidate then explains is its gain.
    basis = torch.linalg.qr(held.mT).Q
    rest = signal - (basis @ (basis.mT @ signal[..., None]))[..., 0]
    unexplained = more - (more @ basis) @ basis.mT
    overlap = (unexplained * rest[:, None]).sum(-1)
    norm = unexplained.square().sum(-1).clamp_min(1e-12)
    gain = torch.where(overlap > 0, overlap.square() / norm, torch.zeros_like(norm))
    place = gain.argmax(-1)
    amount = (overlap / norm).gather(1, place[:, None]).clamp(0.02, 0.5)
    kept = found.clone()
    kept[:, 1:2] = (found[:, 1:2].square() - amount / 2).clamp_min(0.02).sqrt()
    return torch.cat([kept, amount.sqrt() * axes[place]], dim=-1)


def _as_parameters(x: Float[Tensor, "t p"], scale: Float[Tensor, "t 1"], usable: Tensor) -> Float[Tensor, "t p"]:
    """The search's unknowns as parameters: fractions of S0, strongest first, each axis on the side of z ≥ 0."""
    vectors, spread = _split(x)
    amount = vectors.square().sum(-1)
    none = amount <= 0
    size = torch.where(none, torch.ones_like(amount), amount).sqrt()
    s0 = x[:, 1:2].square() + amount.sum(-1, keepdim=True)
    # |x|² is the amount and x/|x| the axis, so x·|x| is one times the other.
    sticks = vectors * torch.where(none, torch.zeros_like(size), size)[..., None] / s0[..., None]
    sticks = torch.where(sticks[..., 2:] < 0, -sticks, sticks)
    order = amount.argsort(dim=-1, descending=True, stable=True)
    sticks = sticks.gather(1, order[..., None].expand_as(sticks)).flatten(1)
    log_s0 = torch.where(usable, s0.log() + scale.log(), torch.full_like(s0, math.log(_TINY)))
    return torch.cat([log_s0, x[:, :1].exp(), spread, torch.where(usable, sticks, torch.zeros_like(sticks))], dim=-1)
