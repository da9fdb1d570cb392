"""NODDI with Watson-distributed neurites: density, orientation dispersion and free water from two or more shells.

Zhang, Schneider, Wheeler-Kingshott & Alexander, *NODDI: practical in vivo neurite orientation dispersion and density imaging
of the human brain*, NeuroImage 2012, doi:10.1016/j.neuroimage.2012.03.072. The search starts at the best entry of a dictionary
with free water beside it, in the manner of Daducci et al., *Accelerated microstructure imaging via convex optimization
(AMICO)*, NeuroImage 2015, doi:10.1016/j.neuroimage.2014.10.026. Departures: least squares instead of a Rician likelihood;
S0 is fitted; the dictionary is compared in zonal harmonics about the tensor's axis, so that all voxels share it.
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
from tractode.ops import least_squares, symmetric, watson
from tractode.ops import spherical_harmonics as sh
from tractode.ops.levenberg_marquardt import levenberg_marquardt

_TILE = 256  # the blocks of the search
_N_ITERATIONS = 50
_TOLERANCE = 1e-5  # of the prediction: far below noise; the last step leaves the square of it where there is none
_B_SCALE = 1000.0
_ORDER = 16  # of the expansion of a stick's signal: 1e-7 for b·d up to 8
_START_ORDER = 4
_LARGEST = 1 - 1e-4  # of 1 − ODI
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class NODDI(SignalModel):
    """Parameters: ln S0, neurite density, free-water fraction, then ``(1 − ODI)`` times the mean axis (RAS+ scanner frame).

    ``parallel`` and ``free`` are the fixed diffusivities along neurites and of free water, in mm²/s.
    """

    parallel: float = 1.7e-3
    free: float = 3.0e-3

    label: ClassVar[str] = "noddi"
    citation: ClassVar[str] = "Zhang2012"
    needs: ClassVar[Needs] = Needs(
        shells=2, directions=12, volumes=24, least_b=300.0, reach=1500.0, schemes=("multi-shell",)
    )
    recovers: ClassVar[float] = 1e-6
    maps: ClassVar[tuple[MapSpec, ...]] = (
        MapSpec("icvf", "Neurite density: share of tissue within neurites", "arbitrary"),
        MapSpec("odi", "Orientation dispersion index", "arbitrary"),
        MapSpec("isovf", "Free-water fraction", "arbitrary"),
        MapSpec("direction", "Mean axis of the neurites", "arbitrary", components="unit3vector", invariant=False),
        MapSpec("s0", "Signal without diffusion weighting", "arbitrary"),
    )

    def facts(self) -> dict[str, Any]:
        return {"ParallelDiffusivity": self.parallel, "IsotropicDiffusivity": self.free, "Distribution": "Watson"}

    @classmethod
    def example_table(cls, n: int = 60) -> GradientTable:
        return table_of_shells((1000.0, 2000.0, 3000.0), n)

    def predict(self, params: Float[Tensor, "v 6"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        """``S0 [(1 − f)(ν A_in + (1 − ν) A_ex) + f exp(−b d_iso)]``."""
        spread = params[:, 3:]
        square = spread.square().sum(-1, keepdim=True)
        round_ = square <= 0
        safe = torch.where(round_, torch.ones_like(square), square)
        kappa = (math.pi / 2 * safe.sqrt().clamp(max=_LARGEST)).tan()
        kappa = torch.where(round_, torch.zeros_like(kappa), kappa)[:, 0]
        cosines = (spread @ gtab.bvecs.to(params).mT).square() / safe
        return params[:, :1].exp() * self._mixture(
            params[:, 1:2], params[:, 2:3], kappa, cosines, _Table.of(gtab, self)
        )

    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v 6"]:
        if reason := self.why_not(gtab):
            raise InputDataError(reason, id="E-NODDI-TABLE", needed="b=0 and two shells up to b = 1500 s/mm² or more")
        gtab = gtab.to(signal.to(torch.float64))
        table = _Table.of(gtab, self)
        return least_squares.in_tiles(lambda tile: self._fit_tile(tile, gtab, table), signal, _TILE, threaded=True)

    def _fit_tile(self, signal: Float[Tensor, "t n"], gtab: GradientTable, table: _Table) -> Float[Tensor, "t 6"]:
        dtype, signal = signal.dtype, signal.to(torch.float64)
        scale = signal[:, gtab.is_b0].mean(-1, keepdim=True).detach()
        usable = scale > _TINY
        safe = torch.where(usable, scale, torch.ones_like(scale))
        # A voxel without signal is fitted as if it were free water, and then emptied.
        relative = torch.where(usable, signal / safe, (-gtab.bvals * self.free).exp())

        def mixture(x: Tensor) -> Tensor:
            axis, kappa = _axis_and_kappa(x[:, 3:])
            cosines = (axis @ gtab.bvecs.mT).square()
            return x[:, :1].exp() * self._mixture(x[:, 1:2].sin() ** 2, x[:, 2:3].sin() ** 2, kappa, cosines, table)

        with torch.no_grad():
            start = self._start(relative.detach(), gtab)
        x = levenberg_marquardt(
            mixture,
            relative,
            start,
            linearised=lambda x: self._linearised(x, gtab, table),
            search=lambda data, start: self._searched(data, start, gtab, table),
            tolerance=_TOLERANCE,
        )
        axis, kappa = _axis_and_kappa(x[:, 3:])
        spread = axis * (2 / math.pi * torch.atan(kappa))[:, None]
        spread = torch.where(spread[:, 2:] < 0, -spread, spread)
        log_s0 = torch.where(usable, x[:, :1] + safe.log(), torch.full_like(safe, math.log(_TINY)))
        return torch.cat([log_s0, x[:, 1:3].sin() ** 2, spread], dim=-1).to(dtype)

    def _mixture(
        self,
        density: Float[Tensor, "t 1"],
        water: Float[Tensor, "t 1"],
        kappa: Float[Tensor, " t"],
        cosines: Float[Tensor, "t n"],
        table: _Table,
    ) -> Float[Tensor, "t n"]:
        """The attenuation, given squared cosines between the axis and the directions (Zhang 2012, eqs. 1–8)."""
        moments = watson.moments(kappa, _ORDER)
        inside = _horner(table.powers(moments), cosines, table.place)
        # Tortuosity: d⊥ = d∥ (1 − ν), then the mean over the axes of the population.
        square, hindered = watson.mean_square(moments)[:, None], self.parallel * density
        along = self.parallel - hindered * (1 - square)
        across = self.parallel - hindered * (1 + square) / 2
        outside = (-table.bvals * (across + (along - across) * cosines)).exp()
        tissue = density * inside + (1 - density) * outside
        return (1 - water) * tissue + water * (-table.bvals * self.free).exp()

    def _searched(
        self, data: Float[Tensor, "t n"], start: Float[Tensor, "t 6"], gtab: GradientTable, table: _Table
    ) -> Float[Tensor, "t 6"]:
        """The same search, compiled."""
        from tractode.models.kernels.neurite_search import search  # numba takes part of a second to import

        out, free = torch.empty_like(start), (-gtab.bvals * self.free).exp()
        given = [data, start, gtab.bvals, gtab.bvecs, table.place, free, table.sticks]
        rule = [*watson.quadrature(), watson.legendre(_ORDER)]
        arrays = [part.contiguous().numpy() for part in given + rule]
        search(*arrays[:7], tuple(arrays[7:]), self.parallel, _N_ITERATIONS, _TOLERANCE, out.numpy())
        return out

    def _linearised(
        self, x: Float[Tensor, "t 6"], gtab: GradientTable, table: _Table
    ) -> tuple[Float[Tensor, "t n"], Float[Tensor, "t n 6"]]:
        """The search's signal and its derivative in the search's unknowns: ln S0, two angles, the vector of axis and κ."""
        axis, kappa = _axis_and_kappa(x[:, 3:])
        along_axis = axis @ gtab.bvecs.mT
        cosines, b, d = along_axis.square(), table.bvals, self.parallel
        moments, moment_slopes = watson.moments_and_slopes(kappa, _ORDER)
        powers = table.powers(moments)
        inside = _horner(powers, cosines, table.place)
        inside_z = _horner(powers[:, 1:] * torch.arange(1, powers.shape[1]).to(powers)[:, None], cosines, table.place)
        inside_k = _horner(table.powers(moment_slopes), cosines, table.place)
        density, water = x[:, 1:2].sin() ** 2, x[:, 2:3].sin() ** 2
        square, square_k = watson.mean_square(moments)[:, None], 2 / 3 * moment_slopes[:, 1:2]
        steep = 1.5 * square - 0.5
        bias = steep * cosines - (1 + square) / 2  # of the exponent, per d ν
        outside = (-b * d * (1 + density * bias)).exp()
        slope = -b * d * outside
        free = (-b * self.free).exp()
        tissue = density * inside + (1 - density) * outside
        s0 = x[:, :1].exp()
        whole = s0 * ((1 - water) * tissue + water * free)
        share = s0 * (1 - water)
        by_density = share * (inside - outside + (1 - density) * slope * bias) * (2 * x[:, 1:2]).sin()
        by_water = s0 * (free - tissue) * (2 * x[:, 2:3]).sin()
        by_cosine = share * (density * inside_z + (1 - density) * slope * density * steep)
        by_kappa = share * (density * inside_k + (1 - density) * slope * density * square_k * (1.5 * cosines - 0.5))
        # cos² = (g·x)²/κ: its slope is 2 (g·n)(g − (g·n) n)/√κ.
        turned = 2 * by_cosine * along_axis / kappa.sqrt()[:, None]
        radial = 2 * kappa.sqrt()[:, None] * by_kappa - turned * along_axis
        vector = turned[..., None] * gtab.bvecs + radial[..., None] * axis[:, None]
        return whole, torch.cat([torch.stack([whole, by_density, by_water], dim=-1), vector], dim=-1)

    def _start(self, signal: Float[Tensor, "t n"], gtab: GradientTable) -> Float[Tensor, "t 6"]:
        """The entry of the dictionary that fits best with free water beside it, about the tensor's principal axis."""
        axis = _principal_axis(signal, gtab)
        shells = gtab.shells()
        found, weights = [signal[:, gtab.is_b0].mean(-1, keepdim=True)], [float(gtab.is_b0.sum())]
        for index in (index.to(signal.device) for _, index in shells):
            order = _START_ORDER if len(index) >= sh.n_coefficients(_START_ORDER) else 2
            inverse = odf.harmonic_fit(gtab.bvecs[index], order, 0.0).to(signal)
            per_harmonic = (signal[:, index] @ inverse.mT) * sh.basis(axis, order)
            for degree in range(0, order + 1, 2):
                found.append(per_harmonic[:, sh.degrees(order) == degree].sum(-1, keepdim=True))
                weights.append(len(index) / (2 * degree + 1))
        root = torch.tensor(weights, dtype=torch.float64, device=signal.device).sqrt()
        sizes = tuple((round(b), 5 if len(i) >= sh.n_coefficients(_START_ORDER) else 3) for b, i in shells)
        atoms, water, grid = _dictionary(self, sizes)
        best, share = _best_pair(torch.cat(found, dim=-1) * root, atoms.to(root) * root, water.to(root) * root)
        density, kappa = grid.to(root)[best].unbind(-1)
        angles = torch.stack([density.sqrt().asin(), share.clamp(0.02, 0.98).sqrt().asin()], dim=-1)
        return torch.cat([torch.zeros_like(angles[:, :1]), angles, axis * kappa.sqrt()[:, None]], dim=-1)

    def to_maps(self, params: Float[Tensor, "v 6"]) -> dict[str, Float[Tensor, "v _"]]:
        spread = params[:, 3:]
        square = spread.square().sum(-1, keepdim=True)
        round_ = square <= 0
        size = torch.where(round_, torch.ones_like(square), square).sqrt()
        return {
            "icvf": params[:, 1:2],
            "odi": 1 - torch.where(round_, torch.zeros_like(size), size),
            "isovf": params[:, 2:3],
            "direction": spread / size,
            "s0": params[:, :1].exp(),
        }

    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n 6"]:
        """Densities of 0.3–0.8, free water of 0.05–0.4, ODI of 0.1–0.5; S0 between 50 and 1000."""
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(n, 4, generator=generator, dtype=torch.float64)
        low, span = uniform.new_tensor([3.9, 0.3, 0.05, 0.5]), uniform.new_tensor([3.0, 0.5, 0.35, 0.4])
        values = low + span * uniform
        axis = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        axis = axis / axis.norm(dim=-1, keepdim=True)
        axis = torch.where(axis[:, 2:] < 0, -axis, axis)
        return torch.cat([values[:, :3], values[:, 3:] * axis], dim=-1)


@dataclass(frozen=True, eq=False)
class _Table:
    """What the signal needs of a gradient table: b, which distinct b each volume has, and the sticks' expansion there."""

    bvals: Float[Tensor, " n"]
    place: Int[Tensor, " n"]
    sticks: Float[Tensor, "r k u"]  # Legendre moment → power of the squared cosine, for each distinct b

    @classmethod
    def of(cls, gtab: GradientTable, model: NODDI) -> _Table:
        values, place = gtab.bvals.unique(return_inverse=True)
        nodes = watson.quadrature()[0].to(values)
        factors = watson.expansion((-values[:, None] * model.parallel * nodes**2).exp(), _ORDER)
        return cls(gtab.bvals, place, torch.einsum("ur,rk->rku", factors, watson.legendre_powers(_ORDER).to(values)))

    def powers(self, moments: Float[Tensor, "t r"]) -> Float[Tensor, "t k u"]:
        """Coefficients of the spread sticks' signals in powers of the squared cosine, for each distinct b."""
        return torch.einsum("tr,rku->tku", moments, self.sticks.to(moments))


def _horner(powers: Float[Tensor, "t k u"], z: Float[Tensor, "t n"], place: Int[Tensor, " n"]) -> Float[Tensor, "t n"]:
    value = powers[:, -1].index_select(1, place)
    for k in range(powers.shape[1] - 2, -1, -1):
        value = value * z + powers[:, k].index_select(1, place)
    return value


def _axis_and_kappa(x: Float[Tensor, "t 3"]) -> tuple[Float[Tensor, "t 3"], Float[Tensor, " t"]]:
    """A vector without bounds: its direction is the axis, its squared length κ."""
    kappa = x.square().sum(-1) + 1e-12
    return x / kappa.sqrt()[:, None], kappa


def _principal_axis(signal: Float[Tensor, "t n"], gtab: GradientTable) -> Float[Tensor, "t 3"]:
    b = gtab.bvals / _B_SCALE
    design = torch.cat([-b[:, None] * symmetric.quadratic_form(gtab.bvecs), torch.ones_like(b)[:, None]], dim=-1)
    floored = signal.clamp_min(1e-3)
    tensor = least_squares.weighted(design, floored.log(), floored.square())[:, :6]
    return symmetric.eigen(tensor)[1][:, :, 0]


@cache
def _dictionary(
    model: NODDI, shells: tuple[tuple[int, int], ...]
) -> tuple[Float[Tensor, "a f"], Float[Tensor, " f"], Float[Tensor, "a 2"]]:
    """Zonal coefficients of tissue signals (b=0, then degrees 0, 2, … of each shell), those of free water, and (ν, κ)."""
    densities = torch.linspace(0.05, 0.95, 13, dtype=torch.float64)
    kappas = 1 / (math.pi / 2 * torch.linspace(0.04, 0.96, 14, dtype=torch.float64)).tan()
    grid = torch.cartesian_prod(densities, kappas)
    nodes = watson.quadrature()[0]
    tissue, water = [torch.ones(len(grid), 1, dtype=torch.float64)], [torch.ones(1, dtype=torch.float64)]
    for b, terms in shells:
        bvals = torch.full_like(nodes, float(b))
        like = GradientTable(bvals, torch.eye(3).double()[0].expand(len(nodes), 3), bvals < 0)
        values = model._mixture(
            grid[:, :1],
            torch.zeros_like(grid[:, :1]),
            grid[:, 1],
            (nodes**2).expand(len(grid), -1),
            _Table.of(like, model),
        )
        order = 2 * (terms // 2)
        tissue.append(watson.expansion(values, order))
        isotropic = torch.zeros(order // 2 + 1, dtype=torch.float64)
        isotropic[0] = math.exp(-b * model.free)
        water.append(isotropic)
    return torch.cat(tissue, dim=-1), torch.cat(water), grid


def _best_pair(
    data: Float[Tensor, "t f"], atoms: Float[Tensor, "a f"], water: Float[Tensor, " f"]
) -> tuple[Int[Tensor, " t"], Float[Tensor, " t"]]:
    """The atom with the least residual when it and free water are mixed without negative weights; the water's share."""
    aa, aw, ww = atoms.square().sum(-1), atoms @ water, water.square().sum()
    da, dw = data @ atoms.mT, (data @ water)[:, None]
    determinant = aa * ww - aw**2
    amount, wet = (ww * da - aw * dw) / determinant, (aa * dw - aw * da) / determinant
    dry, soaked = wet < 0, amount < 0
    amount = torch.where(dry, (da / aa).clamp_min(0), torch.where(soaked, torch.zeros_like(amount), amount))
    wet = torch.where(dry, torch.zeros_like(wet), torch.where(soaked, (dw / ww).clamp_min(0).expand_as(wet), wet))
    cost = aa * amount**2 + 2 * aw * amount * wet + ww * wet**2 - 2 * (da * amount + dw * wet)
    best = cost.argmin(-1)
    chosen, other = wet.gather(1, best[:, None])[:, 0], amount.gather(1, best[:, None])[:, 0]
    return best, chosen / (chosen + other).clamp_min(1e-12)
