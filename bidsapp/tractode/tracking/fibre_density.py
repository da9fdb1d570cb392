"""Weights with which a tractogram's density follows the fibre density of every fixel.

Smith, Tournier, Calamante & Connelly, *SIFT2: enabling dense quantitative assessment of brain white matter connectivity
using streamlines tractography*, NeuroImage 2015, doi:10.1016/j.neuroimage.2015.06.092. Departures: all weights are
moved together along the whole gradient (limited-memory BFGS) instead of one by one beside a fixed estimate of the
others; a fixel's mean coefficient is weighted by the share of each line that lies in it, which makes the second term a
smooth function whose gradient is exact; lines belong to the fixel whose axis is nearest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.ops.lbfgs import LbfgsSettings, minimise
from tractode.tracking.fixels import Fixels, FixelSettings, fixels_of
from tractode.tracking.kernels.ragged import rows_times
from tractode.tracking.segments import stays_in_chunks, voxel_ranges
from tractode.tracking.weight_fit import Progress, Regularisation, WeightFit, check_lines, voxel_map

PerLine = Float[np.ndarray, " s"]
PerFixel = Float[np.ndarray, " f"]

LEAST_SHARE = 0.1
"""Fixels of which equal weights explain less than this share are left out of the fit, as in SIFT2."""


@dataclass(frozen=True, eq=False)
class FodTarget:
    """Fibre orientation distributions whose lobes' integrals are to be explained, in the voxels of ``mask``."""

    orientations: ShField
    mask: Image | None = None
    fixels: FixelSettings = field(default_factory=FixelSettings)
    solver: LbfgsSettings = field(default_factory=LbfgsSettings)

    @property
    def grid(self) -> ImageGrid:
        return self.orientations.grid

    def segmented(self) -> Fixels:
        return fixels_of(self.orientations, self.mask, self.fixels)


@dataclass(frozen=True, eq=False)
class Ragged:
    """A sparse matrix by rows: entries of row r are ``offsets[r]:offsets[r + 1]``."""

    offsets: Int[np.ndarray, " r_plus_1"]
    index: Int[np.ndarray, " e"]
    value: Float[np.ndarray, " e"]

    def __matmul__(self, x: Float[np.ndarray, " columns"]) -> Float[np.ndarray, " rows"]:
        out = np.empty(len(self.offsets) - 1)
        rows_times(self.offsets, self.index, self.value, x, out)
        return out

    def transposed(self, n: int) -> Ragged:
        """The same by columns, of which there are ``n``; the order of entries within one is kept."""
        order = np.argsort(self.index, kind="stable")
        row = np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int32), np.diff(self.offsets))
        return Ragged(voxel_ranges(self.index, n), row[order], self.value[order])


@dataclass(frozen=True, eq=False)
class DensityModel:
    """Lengths (mm) of each line in each fixel, by lines and by fixels, and the fibre density of the fixels."""

    fixels: Fixels
    by_line: Ragged
    by_fixel: Ragged

    @classmethod
    def of(cls, lines: Streamlines | Iterable[Streamlines], fixels: Fixels) -> DensityModel:
        counts, index, value = [np.zeros(1, np.int64)], [np.empty(0, np.int32)], [np.empty(0, np.float32)]
        for stays in stays_in_chunks(lines, fixels.grid):
            fixel = fixels.of_stays(stays)
            kept = fixel >= 0
            counts.append(np.bincount(stays.line[kept], minlength=len(stays.offsets) - 1))
            index.append(fixel[kept])
            value.append(stays.length[kept])
        by_line = Ragged(np.cumsum(np.concatenate(counts)), np.concatenate(index), np.concatenate(value))
        return cls(fixels, by_line, by_line.transposed(len(fixels)))

    @cached_property
    def target(self) -> PerFixel:
        return self.fixels.integrals.double().numpy()

    @cached_property
    def lengths(self) -> PerLine:
        """Length of each line within fixels."""
        return self.by_line @ np.ones(len(self.fixels))

    def density(self, weights: PerLine) -> PerFixel:
        """Summed weighted length in each fixel, mm."""
        return self.by_fixel @ weights

    def proportionality(self, weights: PerLine) -> float:
        """μ: total fibre density over total weighted length."""
        total = float(self.density(weights).sum())
        return float(self.target.sum()) / total if total > 0 else 0.0


@dataclass(frozen=True, eq=False)
class DensityObjective:
    """``Σ_f (μ Σ_s ℓ_sf e^{c_s} − D_f)² + a (λ₁ Σ_s c_s² + λ₂ Σ_s Σ_f p_sf (c_s − c̄_f)²)``, and its gradient in c.

    ``p_sf`` is the share of line s in fixel f, ``c̄_f`` the mean of c with these shares, ``a`` the sum of D² over the
    number of lines.
    """

    model: DensityModel
    mu: float
    fitted: Bool[np.ndarray, " f"]
    regularisation: Regularisation

    @cached_property
    def unit(self) -> float:
        return float(np.square(self.model.target[self.fitted]).sum()) / max(len(self.model.lengths), 1)

    @cached_property
    def _per_length(self) -> PerLine:
        lengths = self.model.lengths
        return np.where(lengths > 0, 1 / np.where(lengths > 0, lengths, 1), 0)

    @cached_property
    def _shares(self) -> PerFixel:
        return self.model.by_fixel @ self._per_length

    def residual(self, weights: PerLine) -> PerFixel:
        return np.where(self.fitted, self.mu * self.model.density(weights) - self.model.target, 0)

    def __call__(self, coefficients: PerLine) -> tuple[float, PerLine]:
        with np.errstate(over="ignore", invalid="ignore"):
            weights = np.exp(coefficients)
            residual = self.residual(weights)
            value = float(np.square(residual).sum())
            gradient = 2 * self.mu * weights * (self.model.by_line @ residual)
        tikhonov = self.regularisation.tikhonov * self.unit
        value += tikhonov * float(np.square(coefficients).sum())
        gradient += 2 * tikhonov * coefficients
        if self.regularisation.variation > 0:
            between, slope = self._variation(coefficients)
            value += self.regularisation.variation * self.unit * between
            gradient += self.regularisation.variation * self.unit * slope
        return value, gradient

    def _variation(self, coefficients: PerLine) -> tuple[float, PerLine]:
        """The mean minimises the sum it stands in, so only the coefficients' own derivative is left."""
        inside = self._per_length > 0
        sums = self.model.by_fixel @ (coefficients * self._per_length)
        mean = sums / np.where(self._shares > 0, self._shares, 1)
        value = float(np.square(coefficients[inside]).sum()) - float((sums * mean).sum())
        return value, 2 * (coefficients * inside - self._per_length * (self.model.by_line @ mean))

    def curvature(self) -> PerLine:
        """The diagonal of the Hessian's Gauss–Newton part at weights 1."""
        squares = Ragged(
            self.model.by_line.offsets, self.model.by_line.index, np.square(self.model.by_line.value)
        ) @ self.fitted.astype(np.float64)
        terms = (self.regularisation.tikhonov + self.regularisation.variation) * self.unit
        diagonal = 2 * self.mu**2 * squares + 2 * terms
        return np.maximum(diagonal, 1e-6 * max(float(diagonal.max()), 1e-300))


def fit_density(
    lines: Streamlines | Iterable[Streamlines],
    target: FodTarget,
    regularisation: Regularisation,
    on_progress: Progress | None = None,
) -> WeightFit:
    """Weights ``e^c`` of every line; a line that lies in no fixel has weight 0."""
    return solve(DensityModel.of(lines, target.segmented()), regularisation, target.solver, on_progress)


def solve(
    model: DensityModel,
    regularisation: Regularisation,
    settings: LbfgsSettings | None = None,
    on_progress: Progress | None = None,
) -> WeightFit:
    """`fit_density` once the lengths are known. μ is that of equal weights and is held, as in SIFT2."""
    check_lines(len(model.lengths))
    equal = (model.lengths > 0).astype(np.float64)
    mu = model.proportionality(equal)
    density = mu * model.density(equal)
    fitted = (density >= LEAST_SHARE * model.target) & (density > 0)
    objective = DensityObjective(model, mu, fitted, regularisation)
    found = minimise(objective, np.zeros(len(equal)), objective.curvature(), settings, on_progress)
    weights = np.exp(found.point) * equal
    before, after = (torch.from_numpy(mu * model.density(w)) for w in (equal, weights))
    met = torch.from_numpy(density > 0)
    return WeightFit(
        torch.from_numpy(weights), mu, "fod", found.history, len(found.history) - 1, found.converged,
        torch.from_numpy(model.target)[met], before[met], after[met], _maps(model.fixels, after),
    )  # fmt: skip


def _maps(fixels: Fixels, after: Float[Tensor, " f"]) -> dict[str, Image]:
    """By voxel: explained minus measured fibre density, and the share of the squared density that is explained."""
    wanted = fixels.integrals.double()
    squares = torch.zeros(fixels.grid.n_voxels, dtype=torch.float64)
    total = squares.index_add(0, fixels.voxel, wanted.square())
    missed = squares.index_add(0, fixels.voxel, (after - wanted).square())
    voxel = total.nonzero().ravel()
    share = (1 - missed[voxel] / total[voxel]).clamp(0, 1)
    explained = Image(fixels.grid, voxel_map(fixels.grid.shape, voxel, share))
    return {"residual": fixels.per_voxel(after - wanted), "explained": explained}
