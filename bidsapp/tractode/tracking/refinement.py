"""Orientation-field refinement: the FOD that explains the signal and continues along its own fibres.

Fibre continuity: Reisert & Kiselev, *Fiber continuity: an anisotropic prior for ODF estimation*, IEEE Trans Med Imaging
2011, doi:10.1109/TMI.2011.2112769. Departures: the signal's term is the model's own ``predict``, so that any
orientation model is refined; negative lobes are a penalty instead of a constraint; the prior's weight follows from the
noise, which is estimated from the scan. A cost of streamlines may be added (`StreamlineCost`): its gradient comes
through the differentiable tracks. With P the model's coefficients, f the FOD's amplitude and σ the noise,

    Σ (predict(P) − s)² / σ²  +  continuity · Σ_k (f(x + h u_k, u_k) − f(x, u_k))² / k  +  negative · Σ min(f, 0)² / k σ²
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.contracts import OrientationModel
from tractode.fields import GradientTable, Image, ImageGrid, ShField
from tractode.ops import fibre_continuity, sphere
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.method import StreamlineTracker
from tractode.tracking.sampling import ComponentTable
from tractode.tracking.survival import Halves, SoftTermination, end_memberships, survival

FieldCost = Callable[[ShField], Float[Tensor, ""]]


@dataclass(frozen=True)
class RefinementSettings:
    """``continuity`` weighs the prior per squared amplitude, ``negative`` per squared amplitude over the noise's square.

    ``order`` is that of the FOD, ``n_directions`` the axes of a hemisphere on which it is looked at. A field changes by
    less than 1 % of its change over the last ten of ``iterations`` (L-BFGS).
    """

    continuity: float = 100.0
    negative: float = 10.0
    order: int = 8
    n_directions: int = 60
    iterations: int = 30
    memory: int = 6


@dataclass(frozen=True, eq=False)
class Refined:
    """``params`` are the model's; ``noise`` is σ over the mean b=0 signal; ``terms`` the cost's parts before and after."""

    params: Float[Tensor, "v p"]
    noise: float
    before: dict[str, float]
    after: dict[str, float]


@dataclass(frozen=True, eq=False)
class StreamlineCost:
    """What makes streamlines implausible: turning, and ending in white matter, as shares of their survival-weighted number.

    The lines are tracked anew at each call, and the gradient runs through their points. Off by default: on simulated
    data it brought nothing that continuity does not bring (see the theory page).
    """

    tracker: StreamlineTracker
    seeds: Float[Tensor, "s 3"]
    directions: Float[Tensor, "s 3"]
    mask: Image
    white_matter: Image
    termination: SoftTermination
    turning: float = 0.0
    ending: float = 0.0

    def __call__(self, field: ShField) -> Float[Tensor, ""]:
        tracker, table = self.termination.loosened(self.tracker), ComponentTable.of(field)
        total = field.coeffs.new_zeros(())
        for lines in tracker.track(field, self.seeds, self.mask, directions=self.directions):
            if not len(lines):
                continue
            weights = survival(lines, table, self.termination)
            halves = Halves.of(lines)
            # Twice the middle less both neighbours; at ends and seeds the stand-ins make no turn of their own.
            bend = 2 * lines.points - lines.points[halves.outward] - lines.points[halves.inward]
            inner = (halves.side != 0) & ~halves.is_last
            length = lines.points.detach().diff(dim=0).norm(dim=-1).median()
            turns = (bend.square().sum(-1) / length**2 * weights.point.detach())[inner].sum()
            first, second = end_memberships(lines, weights, self.white_matter)
            ends = ((first + second) * weights.seed.detach()[:, None]).sum()
            total = total + self.turning * turns + self.ending * ends
        return total


def noise_level(signal: Float[Tensor, "v n"], gtab: GradientTable) -> float:
    """σ of the largest well-sampled shell: what a fit of harmonics up to degree 4 leaves, the median over voxels.

    Of a shell with 15 directions or fewer, half of the coefficients that it supports are fitted.
    """
    index = max((index for _, index in gtab.shells()), key=len)
    order = 4 if len(index) > sh.n_coefficients(4) else 2
    basis = sh.basis(gtab.bvecs[index].to(torch.float64), order)
    projector = torch.eye(len(index), dtype=torch.float64) - basis @ torch.linalg.pinv(basis)
    left = (signal[:, index.to(signal.device)].to(torch.float64) @ projector.to(signal.device)).square().sum(-1)
    degrees_of_freedom = max(len(index) - basis.shape[1], 1)
    return math.sqrt(float(left.median()) / degrees_of_freedom)


def refine(
    model: OrientationModel,
    params: Float[Tensor, "v p"],
    signal: Float[Tensor, "v n"],
    gtab: GradientTable,
    grid: ImageGrid,
    mask: Bool[Tensor, "i j k"],
    settings: RefinementSettings | None = None,
    streamlines: FieldCost | None = None,
) -> Refined:
    """Coefficients refined from the model's fit; ``gtab`` and ``signal`` hold the volumes that the model can predict.

    The b=0 volumes scale the cost and are not fitted: the FOD does not explain fluid. ``mask`` places the ``v`` voxels
    on the grid; the prior looks at pairs of voxels inside it only. dtype and device follow ``params``.
    """
    settings = settings or RefinementSettings()
    problem = _Problem.of(model, params, signal, gtab, grid, mask, settings, streamlines)
    # L-BFGS flattens the gradient, which has the layout of its leaf.
    leaf = params.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    before = problem.record(leaf)
    optimiser = torch.optim.LBFGS(
        [leaf], max_iter=settings.iterations, history_size=settings.memory, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = torch.stack(list(problem.terms(leaf).values())).sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(closure)
    return Refined(leaf.detach(), problem.noise, before, problem.record(leaf))


@dataclass(frozen=True, eq=False)
class _Problem:
    model: OrientationModel
    target: Float[Tensor, "v n"]
    gtab: GradientTable
    grid: ImageGrid
    mask: Bool[Tensor, "i j k"]
    settings: RefinementSettings
    streamlines: FieldCost | None
    scale: float
    noise: float
    basis: Float[Tensor, "d l"]
    taps: fibre_continuity.Taps
    inside: Int[Tensor, " v"]  # of the box around the mask, ravelled
    pairs: Bool[Tensor, "d a b c"]

    @classmethod
    def of(
        cls, model: OrientationModel, params: Tensor, signal: Tensor, gtab: GradientTable, grid: ImageGrid, mask: Tensor,
        settings: RefinementSettings, streamlines: FieldCost | None,
    ) -> _Problem:  # fmt: skip
        axes = sphere.directions(settings.n_directions, hemisphere=True).to(torch.float64)
        # A shift by the shortest edge never leaves the 26 neighbours.
        steps = (axes * min(grid.voxel_sizes)) @ grid.inverse_affine[:3, :3].mT
        target = signal.to(params)
        scale = (
            float(target[:, gtab.is_b0.to(target.device)].mean()) if bool(gtab.is_b0.any()) else float(target.mean())
        )
        noise = max(noise_level(target, gtab) / scale, 1e-3)
        basis, taps = sh.basis(axes, settings.order).to(params), fibre_continuity.taps_of(steps)
        box = mask[tuple(slice(int(at.min()), int(at.max()) + 1) for at in mask.nonzero().unbind(1))]
        inside, pairs = box.flatten().nonzero().ravel(), fibre_continuity.pairs_of(box, taps)
        return cls(model, target, gtab, grid, mask, settings, streamlines, scale, noise, basis, taps, inside, pairs)

    def terms(self, params: Float[Tensor, "v p"]) -> dict[str, Float[Tensor, ""]]:
        """The parts of the cost."""
        harmonics = self.model.to_sh(params, self.settings.order)
        amplitudes = harmonics @ self.basis.mT
        weighted = ~self.gtab.is_b0.to(params.device)
        difference = ((self.model.predict(params, self.gtab) - self.target) / self.scale)[:, weighted]
        dense = torch.zeros_like(self.pairs, dtype=amplitudes.dtype).flatten(1)
        dense = dense.index_copy(1, self.inside, amplitudes.mT).reshape(self.pairs.shape)
        change = fibre_continuity.discontinuity(dense, self.taps, self.pairs)
        found = {
            "signal": difference.square().sum() / self.noise**2,
            "continuity": self.settings.continuity * change,
            "negative": self.settings.negative * amplitudes.clamp(max=0).square().mean(-1).sum() / self.noise**2,
        }
        if self.streamlines is not None:
            at = self.mask.flatten().nonzero().ravel()
            coeffs = harmonics.new_zeros(harmonics.shape[1], self.grid.n_voxels).index_copy(1, at, harmonics.mT)
            field = ShField(self.grid, coeffs.reshape(-1, *self.grid.shape), self.settings.order)
            found["streamlines"] = self.streamlines(field)
        return found

    def record(self, params: Float[Tensor, "v p"]) -> dict[str, float]:
        """The parts of the cost as numbers."""
        return {name: float(value) for name, value in self.terms(params.detach()).items()}
