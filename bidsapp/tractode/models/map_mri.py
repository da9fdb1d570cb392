"""Mean apparent propagator MRI: the signal in all of q-space as a Gaussian times polynomials, in its own coordinates.

Özarslan et al., *Mean apparent propagator (MAP) MRI*, NeuroImage 2013, doi:10.1016/j.neuroimage.2013.04.016; regularised as
in Fick et al., *MAPL*, NeuroImage 2016, doi:10.1016/j.neuroimage.2016.03.046. Departures: the scales come from the Gaussian
that is nearest to the signals (unweighted, all volumes), so that predicted signals have the same one; its Cholesky factor
whitens q instead of its eigenvectors (the functions of an order span the same space in every frame), so that no derivative
is undefined where eigenvalues meet; roughness is measured in the whitened coordinates and from order 4 on; the propagator
is not held positive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import MapSpec, SignalModel, table_of_shells
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.fields.needs import Needs
from tractode.ops import least_squares, sphere, symmetric
from tractode.ops import oscillator_basis as oscillator
from tractode.ops.levenberg_marquardt import levenberg_marquardt

_TILE = 256  # 300 volumes × 50 functions a voxel, in float64: some 30 MB
_B_SCALE = 1000.0
_LEAST = 0.05  # µm²/ms: no direction's diffusivity is below it
_TYPICAL = 0.7  # µm²/ms
_LARGEST_CONDITION = 1e3
_LEAST_ORDER = 4
_UNKNOWN_TIME = 1 / (4 * math.pi**2)  # s: where the table has no timing; q is then the root of b
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class MAPMRI(SignalModel):
    """Parameters: Dxx Dxy Dxz Dyy Dyz Dzz of the scale tensor in µm²/ms, ln S0, then coefficients (order of `oscillator_basis`).

    ``diffusion_time`` in seconds, Δ − δ/3; ``smooth`` is the weight of the roughness for each volume; 0 leaves
    an unweighted least-squares fit.
    """

    order: int = 6
    smooth: float = 1e-4
    diffusion_time: float | None = None

    label: ClassVar[str] = "mapmri"
    citation: ClassVar[str] = "Ozarslan2013"
    needs: ClassVar[Needs] = Needs(shells=2, directions=15, volumes=30, reach=2000.0)
    recovers: ClassVar[float] = 5e-3  # the regularisation
    maps: ClassVar[tuple[MapSpec, ...]] = (
        MapSpec("rtop", "Return-to-origin probability", "1/mm^3"),
        MapSpec("rtap", "Return-to-axis probability", "1/mm^2"),
        MapSpec("rtpp", "Return-to-plane probability", "1/mm"),
        MapSpec("msd", "Mean squared displacement", "mm^2"),
        MapSpec(
            "ng",
            "Non-Gaussianity: sine of the angle between the signal and its Gaussian part",
            "arbitrary",
        ),
        MapSpec("s0", "Signal without diffusion weighting", "arbitrary"),
    )

    @classmethod
    def for_data(cls, signal: Float[Tensor, "v n"], gtab: GradientTable) -> MAPMRI:
        """With the scan's diffusion time, where its table has timings."""
        if gtab.small_delta is None or gtab.big_delta is None:
            return cls()
        times = (gtab.big_delta - gtab.small_delta / 3)[~gtab.is_b0]
        return cls(diffusion_time=float(times.mean()))

    def facts(self) -> dict[str, Any]:
        is_known = self.diffusion_time is not None
        time = self.diffusion_time if is_known else round(_UNKNOWN_TIME, 9)
        assumed = {} if is_known else {"DiffusionTimeAssumed": True}  # the maps' lengths are then nominal
        return {"RadialOrder": self.order, "Roughness": self.smooth, "DiffusionTime": time, **assumed}

    @classmethod
    def example_table(cls, n: int = 60) -> GradientTable:
        return table_of_shells((1000.0, 2000.0, 3000.0), n)

    @classmethod
    def why_not(cls, gtab: GradientTable) -> str | None:
        if reason := super().why_not(gtab):
            return reason
        if _supported_order(gtab, cls.order) < _LEAST_ORDER:
            shells = ", ".join(f"b={b:.0f}: {len(index)}" for b, index in gtab.shells())
            return f"MAP-MRI needs samples that tell functions of order {_LEAST_ORDER} apart (two shells of 15 directions, or a grid); this table has {shells}"
        return None

    def predict(self, params: Float[Tensor, "v p"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        """``S0 Σ a φ(x)`` at ``x = √(2b) Lᵀg``, with L the Cholesky factor of the scale tensor."""
        points = _whitened(_factor(params), gtab.to(params))
        design = oscillator.basis(points, self.order)
        return params[:, 6:7].exp() * (design * params[:, None, 7:]).sum(-1)

    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v p"]:
        if reason := self.why_not(gtab):
            raise InputDataError(reason, id="E-MAPMRI-TABLE", needed="two or more shells up to b = 2000 s/mm² or more")
        order = _supported_order(gtab, self.order)
        table = gtab.to(signal.to(torch.float64))
        return least_squares.in_tiles(lambda tile: self._fit_tile(tile, table, order), signal, _TILE, threaded=True)

    def _fit_tile(self, signal: Float[Tensor, "t n"], gtab: GradientTable, order: int) -> Float[Tensor, "t p"]:
        dtype, signal = signal.dtype, signal.to(torch.float64)
        scale = signal[:, gtab.is_b0].mean(-1, keepdim=True)
        usable = scale > _TINY
        safe = torch.where(usable, scale, torch.ones_like(scale))
        # A voxel without signal is fitted as if it were typical, so that no derivative is lost, and then emptied.
        relative = torch.where(usable, signal / safe, (-gtab.bvals / _B_SCALE * _TYPICAL).exp())
        tensor, log_s0 = _nearest_gaussian(relative, gtab)
        points = _whitened(torch.linalg.cholesky(symmetric.to_matrix(tensor)), gtab)
        design = oscillator.basis(points, order)
        normal = design.mT @ design
        roughness = self.smooth * len(gtab) * oscillator.roughness(order, _LEAST_ORDER).to(normal)
        right = design.mT @ (relative / log_s0.exp())[..., None]
        coefficients = torch.linalg.solve(normal + roughness, right)[..., 0]
        missing = oscillator.n_functions(self.order) - coefficients.shape[-1]
        coefficients = torch.nn.functional.pad(torch.where(usable, coefficients, 0.0), (0, missing))
        log_s0 = torch.where(usable, log_s0 + safe.log(), torch.full_like(safe, math.log(_TINY)))
        return torch.cat([tensor, log_s0, coefficients], dim=-1).to(dtype)

    def to_maps(self, params: Float[Tensor, "v p"]) -> dict[str, Float[Tensor, "v _"]]:
        a = params[:, 7:]
        time = _UNKNOWN_TIME if self.diffusion_time is None else self.diffusion_time
        factor = _factor(params) / math.sqrt(_B_SCALE)  # back to √(mm²/s)
        values, vectors = symmetric.eigen(params[:, :6])
        scales = (2 * time / _B_SCALE * values.clamp_min(_LEAST)).sqrt()  # mm
        frame = factor.mT @ vectors
        frame = frame / frame.norm(dim=-2, keepdim=True)
        at_0 = (a @ oscillator.at_origin(self.order).to(a))[:, None]
        empty = at_0.abs() <= _TINY
        whole = torch.where(empty, torch.ones_like(at_0), at_0)
        along, across = _line_and_plane(a, frame, self.order)
        volume = (a @ oscillator.integral(self.order).to(a))[:, None]
        hessian = torch.einsum("ijf,vf->vij", oscillator.hessian_at_origin(self.order).to(a), a)
        spread = -2 * time * torch.einsum("vki,vkj,vij->v", factor, factor, hessian)[:, None]
        power = a.square().sum(-1, keepdim=True)
        gaussian = a[:, :1].square() / torch.where(power > 0, power, torch.ones_like(power))
        return {
            "rtop": volume / whole / (2 * math.pi * scales).prod(-1, keepdim=True),
            "rtap": across / whole / (2 * math.pi * scales[:, 1:]).prod(-1, keepdim=True),
            "rtpp": along / whole / (2 * math.pi * scales[:, :1]),
            "msd": spread / whole,
            "ng": torch.where(power > 0, 1 - gaussian, torch.zeros_like(power)).clamp_min(0).sqrt(),
            "s0": params[:, 6:7].exp() * at_0,
        }

    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n p"]:
        """What a fit to two tensors of different diffusivities gives, as predicted signals give again."""
        generator = torch.Generator().manual_seed(seed)
        axis = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        frame = sphere.frame_to_z(axis / axis.norm(dim=-1, keepdim=True))
        share = torch.rand(n, 1, generator=generator, dtype=torch.float64) * 0.4 + 0.3
        gtab = self.example_table()
        cosines = (gtab.bvecs @ frame.mT).square()
        b = gtab.bvals / _B_SCALE
        slow = (-b * (cosines @ b.new_tensor([0.15, 0.3, 1.3]))).exp()
        fast = (-b * (cosines @ b.new_tensor([0.5, 0.8, 2.0]))).exp()
        s0 = (torch.rand(n, 1, generator=generator, dtype=torch.float64) * 3 + 3.9).exp()
        return self.fit(s0 * (share * slow + (1 - share) * fast), gtab)


def _factor(params: Float[Tensor, "v p"]) -> Float[Tensor, "v 3 3"]:
    """Cholesky factor of the scale tensor in µm²/ms; of a typical one where the tensor is none."""
    matrix = symmetric.to_matrix(params[:, :6])
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool((failed > 0).any()):
        unit = _TYPICAL * torch.eye(3, dtype=matrix.dtype, device=matrix.device)
        factor = torch.linalg.cholesky(torch.where((failed > 0)[:, None, None], unit, matrix))
    return factor


def _whitened(factor: Float[Tensor, "t 3 3"], gtab: GradientTable) -> Float[Tensor, "t n 3"]:
    """``√(2b) Lᵀg`` with b in ms/µm²: the signal of the scale tensor is ``exp(−x²/2)`` there."""
    directions = (2 * gtab.bvals / _B_SCALE).sqrt()[:, None] * gtab.bvecs
    return directions @ factor


def _nearest_gaussian(
    signal: Float[Tensor, "t n"], gtab: GradientTable
) -> tuple[Float[Tensor, "t 6"], Float[Tensor, "t 1"]]:
    """Tensor (µm²/ms) and ln S0 of the Gaussian nearest to signals of S0 near 1, by nonlinear least squares.

    ``D = CCᵀ + 0.05``: never less than positive.
    """
    b = gtab.bvals / _B_SCALE
    form = symmetric.quadratic_form(gtab.bvecs)
    design = torch.cat([-b[:, None] * form, torch.ones_like(b)[:, None]], dim=-1)
    with torch.no_grad():
        logs = signal.clamp_min(1e-3).log()
        linear = least_squares.weighted(design, logs, signal.clamp_min(1e-3).square())
        values, vectors = symmetric.eigen(linear[:, :6])
        values = (values - _LEAST).clamp(0.05, 4.0)
        start = torch.linalg.cholesky(vectors @ (values[..., None] * vectors.mT))
        rows, columns = torch.tril_indices(3, 3)
        start = torch.cat([start[:, rows, columns], linear[:, 6:].clamp(-2.0, 2.0)], dim=-1)

    def gaussian(params: Tensor) -> Tensor:
        return (_tensor_of(params) @ design[:, :6].mT + params[:, 6:]).exp()

    def linearised(params: Tensor) -> tuple[Tensor, Tensor]:
        value = gaussian(params)
        slopes = torch.cat([design[:, :6] @ _tensor_slopes(params), torch.ones_like(value)[..., None]], dim=-1)
        return value, value[..., None] * slopes

    found = levenberg_marquardt(gaussian, signal, start, linearised=linearised, tolerance=1e-12)
    return _tensor_of(found), found[:, 6:]


def _tensor_of(params: Float[Tensor, "t p"]) -> Float[Tensor, "t 6"]:
    a, b, c, d, e, f = params[:, :6].unbind(-1)  # of the rows of a lower triangle
    return torch.stack(
        [a * a + _LEAST, a * b, a * d, b * b + c * c + _LEAST, b * d + c * e, d * d + e * e + f * f + _LEAST], dim=-1
    )


def _tensor_slopes(params: Float[Tensor, "t p"]) -> Float[Tensor, "t 6 6"]:
    """Derivative of `_tensor_of` in the factor's six entries."""
    a, b, c, d, e, f = params[:, :6].unbind(-1)
    slopes = params.new_zeros(len(params), 6, 6)
    entries = ((0, 0, 2 * a), (1, 0, b), (1, 1, a), (2, 0, d), (2, 3, a), (3, 1, 2 * b), (3, 2, 2 * c), (4, 1, d))
    for row, column, value in (*entries, (4, 3, b), (4, 2, e), (4, 4, c), (5, 3, 2 * d), (5, 4, 2 * e), (5, 5, 2 * f)):
        slopes[:, row, column] = value
    return slopes


def _line_and_plane(
    a: Float[Tensor, "v f"], frame: Float[Tensor, "v 3 3"], order: int
) -> tuple[Float[Tensor, "v 1"], Float[Tensor, "v 1"]]:
    """Integrals along the first axis of a frame and over the plane of the other two, through the origin; exact."""
    nodes, weights = (part.to(a) for part in oscillator.line_quadrature(order))
    zero = torch.zeros_like(nodes)
    line = torch.stack([nodes, zero, zero], dim=-1)
    second, third = torch.meshgrid(nodes, nodes, indexing="ij")
    plane = torch.stack([torch.zeros_like(second), second, third], dim=-1).reshape(-1, 3)
    points = torch.cat([line, plane]) @ frame.mT
    values = (oscillator.basis(points, order) * a[:, None]).sum(-1)
    over_plane = (weights[:, None] * weights).reshape(-1)
    return (values[:, : len(nodes)] @ weights)[:, None], (values[:, len(nodes) :] @ over_plane)[:, None]


def _supported_order(gtab: GradientTable, largest: int) -> int:
    """The largest order whose functions the table tells apart in a typical isotropic voxel; 0 if none."""
    table = gtab.to(torch.zeros(1, dtype=torch.float64))
    points = _whitened(math.sqrt(_TYPICAL) * torch.eye(3, dtype=torch.float64)[None], table)[0]
    for order in range(largest, 0, -2):
        if oscillator.n_functions(order) < len(gtab):
            values = torch.linalg.svdvals(oscillator.basis(points, order))
            if float(values[0]) < _LARGEST_CONDITION * float(values[-1]):
                return order
    return 0
