"""The tensor of tissue beside free water that diffuses in all directions alike.

Pasternak, Sochen, Gur, Intrator & Assaf, *Free water elimination and mapping from diffusion MRI*, MRM 2009,
doi:10.1002/mrm.22055; on several shells by nonlinear least squares as Hoy, Koay, Kecskemeti & Alexander, *Optimization of
a free water elimination two-compartment model for diffusion tensor imaging*, NeuroImage 2014,
doi:10.1016/j.neuroimage.2014.09.053. Departures: a grid of fractions, each with its linear fit, starts the search; on one
shell, where the two cannot be told apart, a prior on the tissue's mean diffusivity takes the place of Pasternak's smoothness
between voxels; volumes above b = 2100 s/mm², where tissue is not Gaussian, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import MapSpec, SignalModel, table_of_shells
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.fields.needs import Needs
from tractode.models.dti import DTI, TENSOR_MAPS, tensor_maps
from tractode.ops import least_squares, symmetric
from tractode.ops.levenberg_marquardt import levenberg_marquardt

FREE_DIFFUSIVITY = 3.0e-3  # mm²/s, water at 37 °C
TISSUE_DIFFUSIVITY = 0.7e-3  # mm²/s: the prior's mean, of adult brain tissue
_PRIOR_WEIGHT = 0.2  # noise of 3 % of the b=0 signal against a spread of 15 % of the prior
_ALL_WATER = 2.7e-3  # mm²/s: a plain tensor's mean diffusivity from which on there is no tissue to speak of
_B_SCALE = 1000.0
_TILE = 256
_AT_ONCE = 4096
_FRACTIONS = (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
_LEAST_EIGENVALUE = 0.02  # µm²/ms, of the start


@dataclass(frozen=True)
class FreeWaterDTI(SignalModel):
    """Parameters: the tissue's tensor (6, mm²/s, RAS+ scanner frame), the fraction of free water, ln S0 of both.

    Where there is but water the fraction is 1 and the tensor 0.
    """

    label: ClassVar[str] = "fwdti"
    citation: ClassVar[str] = "Pasternak2009"
    recovers: ClassVar[float] = 1e-7
    needs: ClassVar[Needs] = Needs(directions=12, volumes=12, least_b=500.0, largest_b=2100.0)
    maps: ClassVar[tuple[MapSpec, ...]] = (
        MapSpec("fwf", "Fraction of free water", "arbitrary"),
        *TENSOR_MAPS,
    )

    has_prior: bool = False

    @classmethod
    def for_data(cls, signal: Float[Tensor, "v n"], gtab: GradientTable) -> FreeWaterDTI:
        """Says beforehand which way the table leads to; the fit decides by the table itself."""
        return cls(has_prior=_needs_prior(cls.needs, gtab))

    def facts(self) -> dict[str, Any]:
        prior = {"TissueDiffusivityPrior": TISSUE_DIFFUSIVITY} if self.has_prior else {}
        method = "prior" if self.has_prior else "nlls"
        return {
            "FitMethod": method,
            "FreeWaterDiffusivity": FREE_DIFFUSIVITY,
            "LargestB": round(self.needs.largest_b),
        } | prior

    @classmethod
    def example_table(cls, n: int = 60) -> GradientTable:
        return table_of_shells((600.0, 1500.0), n)

    def predict(self, params: Float[Tensor, "v 8"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        """``S0 ((1 − f) exp(−b gᵀDg) + f exp(−b d))``."""
        second, b = _forms(gtab.to(params))
        return _signal(params[:, :6] * _B_SCALE, params[:, 6:7], params[:, 7:], second, b)

    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v 8"]:
        reason = self.why_not(gtab)
        if reason:
            raise InputDataError(
                reason, id="E-FWDTI-TABLE", needed="b=0 and a shell of 12 directions between b=500 and 2100"
            )
        index = (gtab.bvals <= self.needs.largest_b).nonzero().ravel()
        chosen = gtab[index].to(signal.to(torch.float64))
        prior = _needs_prior(self.needs, gtab)
        # The search packs its rows into blocks of its own, the fuller the more rows it is given.
        parts = signal[:, index.to(signal.device)].split(_AT_ONCE)
        return torch.cat([_fit_part(part, chosen, prior) for part in parts])

    def to_maps(self, params: Float[Tensor, "v 8"]) -> dict[str, Float[Tensor, "v _"]]:
        return {"fwf": params[:, 6:7], **tensor_maps(params[:, :6], params[:, 7:])}

    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n 8"]:
        """Tensors of tissue with 10 to 50 % of free water."""
        generator = torch.Generator().manual_seed(seed)
        tissue = DTI().example(seed, n)
        size = symmetric.trace(tissue[:, :6])[:, None] / 3
        md = (torch.rand(n, 1, generator=generator, dtype=torch.float64) * 0.4 + 0.6) * 1e-3
        fraction = torch.rand(n, 1, generator=generator, dtype=torch.float64) * 0.4 + 0.1
        return torch.cat([tissue[:, :6] / size * md, fraction, tissue[:, 6:]], -1)


def _needs_prior(needs: Needs, gtab: GradientTable) -> bool:
    """Whether all weighted volumes that are used have about one b-value."""
    b = gtab.bvals[~gtab.is_b0 & (gtab.bvals <= needs.largest_b)]
    return len(b) == 0 or float(b.max()) < 1.6 * float(b.min())


def _forms(gtab: GradientTable) -> tuple[Float[Tensor, "n 6"], Float[Tensor, " n"]]:
    """Rows that give ``b D(g)`` of a tensor in µm²/ms, and b in ms/µm²."""
    b = gtab.bvals / _B_SCALE
    return b[:, None] * symmetric.quadratic_form(gtab.bvecs), b


def _signal(
    tensor: Float[Tensor, "t 6"],
    fraction: Float[Tensor, "t 1"],
    log_s0: Float[Tensor, "t 1"],
    second: Float[Tensor, "n 6"],
    b: Float[Tensor, " n"],
) -> Float[Tensor, "t n"]:
    water = (-b * (FREE_DIFFUSIVITY * _B_SCALE)).exp()
    return log_s0.exp() * ((1 - fraction) * (-tensor @ second.mT).exp() + fraction * water)


def _fit_part(signal: Float[Tensor, "t n"], gtab: GradientTable, prior: bool) -> Float[Tensor, "t 8"]:
    dtype, signal = signal.dtype, signal.to(torch.float64)
    second, b = _forms(gtab)
    largest = signal.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    unit = signal / largest
    with torch.no_grad():
        plain = DTI(fit_method="wls").fit(unit, gtab)
        empty = (symmetric.trace(plain[:, :6]) / 3 > _ALL_WATER)[:, None]
        start = least_squares.in_tiles(
            lambda tile: _start(tile[:, :-7], tile[:, -7:], second, b, prior), torch.cat([unit, plain], -1), _TILE
        )

    weight = _PRIOR_WEIGHT if prior else 0.0
    data = torch.cat([unit, torch.full_like(unit[:, :1], weight)], -1) if prior else unit
    q = levenberg_marquardt(
        lambda p: _predicted(p, second, b, weight),
        data,
        start,
        n_iterations=100,
        linearised=lambda p: _linearised(p, second, b, weight),
    )
    # Beside water and a noise floor the tissue's tensor may grow without end, since no signal is left of it.
    size = q[:, :6].detach().square().sum(-1, keepdim=True) / 3  # the trace of L Lᵀ, over 3
    empty = empty | ~(size <= _ALL_WATER * _B_SCALE)
    tensor, fraction = _tensor(torch.where(empty, start, q)) / _B_SCALE, q[:, 6:7].sin().square()
    tensor, fraction = torch.where(empty, 0.0, tensor), torch.where(empty, 1.0, fraction)
    log_s0 = torch.where(empty, plain[:, 6:].to(q), q[:, 7:])
    return torch.cat([tensor, fraction, log_s0 + largest.log()], -1).to(dtype)


def _predicted(
    q: Float[Tensor, "t 8"], second: Float[Tensor, "n 6"], b: Float[Tensor, " n"], weight: float
) -> Float[Tensor, "t m"]:
    """The signals, and after them what the prior compares with its weight."""
    tensor = _tensor(q)
    value = _signal(tensor, q[:, 6:7].sin().square(), q[:, 7:], second, b)
    if not weight:
        return value
    return torch.cat([value, weight / _tissue() * symmetric.trace(tensor)[:, None] / 3], -1)


def _linearised(
    q: Float[Tensor, "t 8"], second: Float[Tensor, "n 6"], b: Float[Tensor, " n"], weight: float
) -> tuple[Float[Tensor, "t m"], Float[Tensor, "t m 8"]]:
    """`_predicted` and its derivative."""
    tensor, slopes = _tensor(q), _tensor_slopes(q)
    water, tissue = (-b * (FREE_DIFFUSIVITY * _B_SCALE)).exp(), (-tensor @ second.mT).exp()
    fraction, s0 = q[:, 6:7].sin().square(), q[:, 7:].exp()
    value = s0 * ((1 - fraction) * tissue + fraction * water)
    by_factor = -(s0 * (1 - fraction) * tissue)[..., None] * (second @ slopes)
    by_angle = s0 * (water - tissue) * (2 * q[:, 6:7]).sin()
    jacobian = torch.cat([by_factor, by_angle[..., None], value[..., None]], -1)
    if not weight:
        return value, jacobian
    share = weight / (3 * _tissue())
    last = torch.nn.functional.pad(share * slopes[:, [0, 3, 5]].sum(1), (0, 2))
    trace = share * symmetric.trace(tensor)
    return torch.cat([value, trace[:, None]], -1), torch.cat([jacobian, last[:, None]], 1)


def _tissue() -> float:
    return TISSUE_DIFFUSIVITY * _B_SCALE


def _start(
    signal: Float[Tensor, "t n"],
    plain: Float[Tensor, "t 7"],
    second: Float[Tensor, "n 6"],
    b: Float[Tensor, " n"],
    prior: bool,
) -> Float[Tensor, "t 8"]:
    """The best of some fractions, each with the linear fit of what is left (Hoy 2014, section 2.2)."""
    design = least_squares.Design(torch.cat([-second, torch.ones_like(b)[:, None]], -1))
    s0 = plain[:, 6:].exp()
    water = (-b * (FREE_DIFFUSIVITY * _B_SCALE)).exp()
    best, least = None, torch.full_like(s0, torch.inf)
    for f in _FRACTIONS:
        tissue = ((signal - f * s0 * water) / (1 - f)).maximum(1e-3 * s0)
        beta = design.ordinary(tissue.mT.log()).mT
        fraction = torch.full_like(s0, f)
        cost = (_signal(beta[:, :6], fraction, beta[:, 6:], second, b) - signal).square().sum(-1, keepdim=True)
        if prior:
            cost = cost + (_PRIOR_WEIGHT * (symmetric.trace(beta[:, :6])[:, None] / 3 / _tissue() - 1)).square()
        candidate = torch.cat([beta[:, :6], fraction, beta[:, 6:]], -1)
        best = candidate if best is None else torch.where(cost < least, candidate, best)
        least = torch.minimum(cost, least)
    assert best is not None
    values, vectors = torch.linalg.eigh(symmetric.to_matrix(torch.nan_to_num(best[:, :6])))
    positive = vectors @ torch.diag_embed(values.clamp(_LEAST_EIGENVALUE, 3.0)) @ vectors.mT
    factor = torch.linalg.cholesky(positive)
    lower = factor[:, *torch.tril_indices(3, 3)]
    return torch.cat([lower, best[:, 6:7].sqrt().asin(), torch.nan_to_num(best[:, 7:]).clamp(-20, 5)], -1)


def _tensor(q: Float[Tensor, "t 8"]) -> Float[Tensor, "t 6"]:
    """``L Lᵀ``, which is never negative; L's entries are xx, yx, yy, zx, zy, zz."""
    xx, yx, yy, zx, zy, zz = q[:, :6].unbind(-1)
    return torch.stack(
        [xx * xx, xx * yx, xx * zx, yx * yx + yy * yy, yx * zx + yy * zy, zx * zx + zy * zy + zz * zz], -1
    )


def _tensor_slopes(q: Float[Tensor, "t 8"]) -> Float[Tensor, "t 6 6"]:
    """The derivative of `_tensor` in L's entries."""
    xx, yx, yy, zx, zy, zz = q[:, :6].unbind(-1)
    o = torch.zeros_like(xx)
    rows = (
        (2 * xx, o, o, o, o, o),
        (yx, xx, o, o, o, o),
        (zx, o, o, xx, o, o),
        (o, 2 * yx, 2 * yy, o, o, o),
        (o, zx, zy, yx, yy, o),
        (o, o, o, 2 * zx, 2 * zy, 2 * zz),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
