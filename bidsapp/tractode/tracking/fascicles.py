"""Weights with which a tractogram explains the diffusion signal: every line predicts the signal of the voxels it crosses.

Pestilli, Yeatman, Rokem, Kay & Wandell, *Evaluation and statistical inference for human connectomes* (LiFE), Nature
Methods 2014, doi:10.1038/nmeth.3098; Daducci, Dal Palù, Lemkaddem & Thiran, *COMMIT: convex optimization modeling for
microstructure informed tractography*, IEEE TMI 2015, doi:10.1109/TMI.2014.2352414. Departures: the kernel is the
response of the deconvolution (one shell), not a tensor or a set of compartments; the isotropic part of a voxel is one
number ≥ 0, eliminated exactly at each evaluation; solved by accelerated projected gradient (Beck & Teboulle, SIAM J
Imaging Sci 2009, doi:10.1137/080716542) with restarts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import DWI, Image, ImageGrid, Streamlines
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.kernels.ragged import atoms_dot, atoms_times
from tractode.tracking.kernels.segments import nearest_axis
from tractode.tracking.segments import Stays, stays_in_chunks, voxel_ranges
from tractode.tracking.weight_fit import Progress, Regularisation, WeightFit, check_lines, voxel_map

Vector = Float[np.ndarray, " n"]

N_ATOMS = 2000
"""Directions of the dictionary, a spiral: a stay is at most 2.6° from one of them, 1.2° in the mean (a test)."""

_REACH = 0.05  # radians: more than those 2.6°

_VOXELS = 2048  # voxels a thread works on at a time
_POWER_STEPS = 30
_PATIENCE = 10


@dataclass(frozen=True)
class SolverSettings:
    """Stops after ``most`` iterations, or when ten of them together lower the objective by less than ``tolerance`` of itself."""

    most: int = 500
    tolerance: float = 1e-4


@dataclass(frozen=True, eq=False)
class SignalTarget:
    """The signal of one shell. ``response``: zonal coefficients (degrees 0, 2, …) of one fibre's signal, in the signal's units.

    ``volumes`` are those to explain (all of about one b-value); the mask is that of the scan. With ``isotropic`` each voxel
    also has a part that is the same in all directions.
    """

    dwi: DWI
    response: Float[Tensor, " r"]
    volumes: Int[Tensor, " m"]
    isotropic: bool = True
    solver: SolverSettings = field(default_factory=SolverSettings)

    @property
    def grid(self) -> ImageGrid:
        return self.dwi.grid


@dataclass(frozen=True, eq=False)
class FascicleModel:
    """The stays of all lines in the voxels of the mask that any line crosses, sorted by voxel.

    ``voxels`` are ravelled indices; an entry's ``length`` is in mm a mm³ of voxel, so that a weight is a cross-section in
    mm² of fibres as dense as the response's, and ``atom`` is the dictionary's direction nearest to the stay's.
    """

    n_lines: int
    voxels: Int[np.ndarray, " v"]
    offsets: Int[np.ndarray, " v_plus_1"]
    line: Int[np.ndarray, " e"]
    atom: Int[np.ndarray, " e"]
    length: Float[np.ndarray, " e"]

    @classmethod
    def of(cls, lines: Streamlines | Iterable[Streamlines], dwi: DWI) -> FascicleModel:
        axes, n_lines = dictionary(), 0
        inside = dwi.mask.cpu().ravel().numpy()
        parts: list[tuple[np.ndarray, ...]] = [
            tuple(np.empty(0, kind) for kind in (np.int32, np.int32, np.int16, "f4"))
        ]
        for stays in stays_in_chunks(lines, dwi.grid):
            kept = inside[stays.voxel]
            line = stays.line[kept] + np.int32(n_lines)
            parts.append((stays.voxel[kept], line, _nearest(stays, kept, axes), stays.length[kept]))
            n_lines += len(stays.offsets) - 1
        voxel, line, atom, length = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(voxel, kind="stable")
        ranges = voxel_ranges(voxel, dwi.grid.n_voxels)
        crossed = np.flatnonzero(np.diff(ranges))
        volume = abs(float(torch.det(dwi.grid.affine[:3, :3])))
        offsets = np.append(ranges[crossed], len(voxel))
        scaled = (length[order] / volume).astype(np.float32)
        return cls(n_lines, crossed, offsets, line[order], atom[order], scaled)

    def predict(self, weights: Vector, atoms: Float[np.ndarray, "a m"]) -> Float[np.ndarray, "v m"]:
        """Signal of the lines in each crossed voxel, float32."""
        out = np.empty((len(self.voxels), atoms.shape[1]), np.float32)
        given = weights.astype(np.float32)
        entries = self.offsets, self.line, self.atom, self.length
        self._share_out(lambda low, high: atoms_times(*entries, given, atoms, low, high, out))
        return out

    def correlate(self, residual: Float[np.ndarray, "v m"], atoms: Float[np.ndarray, "a m"]) -> Vector:
        """The transpose of `predict`: each line's signal times the residual."""
        out = np.empty(len(self.line), np.float32)
        entries = self.offsets, self.atom, self.length
        self._share_out(lambda low, high: atoms_dot(*entries, residual, atoms, low, high, out))
        return np.bincount(self.line, weights=out, minlength=self.n_lines)

    def squared_norms(self, atoms: Float[np.ndarray, "a m"]) -> Vector:
        """Σ of each line's squared signal, stays taken apart."""
        energy = np.square(atoms).sum(1)[self.atom] * np.square(self.length)
        return np.bincount(self.line, weights=energy, minlength=self.n_lines)

    def _share_out(self, work: Callable[[int, int], None]) -> None:
        """Ranges of voxels of a fixed size to threads; what is written for one range no other touches."""
        ranges = [(low, min(low + _VOXELS, len(self.voxels))) for low in range(0, len(self.voxels), _VOXELS)]
        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
            list(pool.map(lambda pair: work(*pair), ranges))


def dictionary() -> Float[np.ndarray, "a 3"]:
    """The axes of the atoms, float32."""
    return sphere.directions(N_ATOMS, hemisphere=True).float().numpy()


def atoms_of(response: Float[Tensor, " r"], bvecs: Float[Tensor, "m 3"]) -> Float[np.ndarray, "a m"]:
    """The signal of a fibre along each axis of the dictionary for each gradient direction (RAS+), float32."""
    cosines = torch.from_numpy(dictionary()).double() @ bvecs.cpu().double().mT
    order = 2 * (len(response) - 1)
    return (sh.zonal(order, cosines.clamp(-1, 1)) @ response.cpu().double()).float().numpy()


def _nearest(stays: Stays, kept: Bool[np.ndarray, " e"], axes: Float[np.ndarray, "a 3"]) -> Int[np.ndarray, " k"]:
    """Index of the axis nearest to each kept stay's direction."""
    found = np.empty(int(kept.sum()), np.int16)
    nearest_axis(stays.direction[kept], axes, _REACH, found)
    return found


@dataclass(frozen=True, eq=False)
class SignalObjective:
    """``½ Σ_v |y_v − K w − i_v|² + ½ λ a Σ w²`` with the best ``i_v ≥ 0``: convex, its gradient that at the best i."""

    model: FascicleModel
    atoms: Float[np.ndarray, "a m"]
    signal: Float[np.ndarray, "v m"]
    isotropic: bool
    ridge: float

    def parts(self, weights: Vector) -> tuple[Float[np.ndarray, "v m"], Float[np.ndarray, "v 1"]]:
        """What the lines predict, and the isotropic part of each voxel."""
        predicted = self.model.predict(weights, self.atoms)
        if not self.isotropic:
            return predicted, np.zeros((len(predicted), 1), np.float32)
        return predicted, np.maximum((self.signal - predicted).mean(1, keepdims=True), 0)

    def residual(self, weights: Vector) -> Float[np.ndarray, "v m"]:
        predicted, isotropic = self.parts(weights)
        return self.signal - predicted - isotropic

    def __call__(self, weights: Vector) -> tuple[float, Vector]:
        residual = self.residual(weights)
        value = 0.5 * float(np.square(residual).sum(dtype=np.float64))
        value += 0.5 * self.ridge * float(np.square(weights).sum())
        return value, self.ridge * weights - self.model.correlate(residual, self.atoms)

    def curvature(self, scale: Vector) -> float:
        """The largest eigenvalue of the scaled Hessian, by power steps, with a margin."""
        vector = np.where(scale > 0, 1.0, 0.0)
        largest = 1.0
        for _ in range(_POWER_STEPS):
            norm = math.sqrt(float(np.square(vector).sum()))
            if norm == 0:
                return 1.0
            vector /= norm
            image = self.model.predict(vector * scale, self.atoms)
            vector = scale * (self.model.correlate(image, self.atoms) + self.ridge * scale * vector)
            largest = math.sqrt(float(np.square(vector).sum()))
        return 1.05 * largest


def fit_signal(
    lines: Streamlines | Iterable[Streamlines],
    target: SignalTarget,
    regularisation: Regularisation,
    on_progress: Progress | None = None,
) -> WeightFit:
    """Weights ≥ 0 (mm²) of every line; those that cross no voxel of the mask have weight 0."""
    model = FascicleModel.of(lines, target.dwi)
    check_lines(model.n_lines)
    chosen = target.dwi.signal[target.volumes].cpu().flatten(1)
    signal = np.ascontiguousarray(chosen[:, torch.from_numpy(model.voxels)].mT.float().numpy())
    atoms = atoms_of(target.response, target.dwi.gtab.bvecs[target.volumes])
    norms = model.squared_norms(atoms)
    ridge = regularisation.tikhonov * float(norms.mean())
    objective = SignalObjective(model, atoms, signal, target.isotropic, ridge)
    weights, history, converged = _solve(objective, norms, target.solver, on_progress)
    equal = np.where(norms > 0, best_scale(objective), 0.0)
    before, after = (np.add(*objective.parts(w)) for w in (equal, weights))
    data, first, last = (torch.from_numpy(values.ravel()) for values in (signal, before, after))
    return WeightFit(
        torch.from_numpy(weights), float(equal.max(initial=0)), "signal", tuple(history), len(history) - 1, converged,
        data, first, last, _maps(model, target.grid, signal, after),
    )  # fmt: skip


def best_scale(objective: SignalObjective, weights: Vector | None = None) -> float:
    """The factor ≥ 0 of given weights (equal ones by default) that explains the signal best, its isotropic part refitted."""
    given = np.ones(objective.model.n_lines) if weights is None else weights
    predicted, signal = objective.model.predict(given, objective.atoms), objective.signal
    scale, free = 0.0, np.full((len(signal), 1), objective.isotropic)
    for _ in range(50):
        # Where the isotropic part is not held at 0 only deviations from the mean over directions are left to explain.
        centred = predicted - free * predicted.mean(1, keepdims=True)
        power = float(np.square(centred).sum(dtype=np.float64))
        scale = max(0.0, float((centred * signal).sum(dtype=np.float64)) / power) if power > 0 else 0.0
        now = ((signal - scale * predicted).mean(1, keepdims=True) > 0) & objective.isotropic
        if np.array_equal(now, free):
            break
        free = now
    return scale


def _solve(
    objective: SignalObjective, norms: Vector, settings: SolverSettings, on_progress: Progress | None
) -> tuple[Vector, list[float], bool]:
    """Accelerated projected gradient in ``z = w √norms``; momentum starts again whenever it points uphill."""
    scale = np.where(norms > 0, 1 / np.sqrt(np.where(norms > 0, norms, 1)), 0)
    step = 1 / objective.curvature(scale)
    z = np.zeros(len(norms))
    ahead, momentum, history = z, 1.0, list[float]()
    for iteration in range(1, settings.most + 1):
        value, gradient = objective(ahead * scale)
        slope = scale * gradient
        moved = np.maximum(ahead - step * slope, 0)
        if not history:
            history.append(value)
        history.append(value)
        if on_progress is not None:
            on_progress(iteration, value)
        if float(((ahead - moved) * (moved - z)).sum()) > 0:
            momentum = 1.0
        grown = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead, z, momentum = moved + (momentum - 1) / grown * (moved - z), moved, grown
        if len(history) > _PATIENCE and history[-_PATIENCE - 1] - value <= max(
            settings.tolerance * value, 1e-12 * history[0]
        ):
            return z * scale, history, True
    return z * scale, history, False


def _maps(
    model: FascicleModel, grid: ImageGrid, signal: Float[np.ndarray, "v m"], after: Float[np.ndarray, "v m"]
) -> dict[str, Image]:
    """By voxel: root mean squared error of the explained signal, and the explained share of its variance over directions."""
    wrong = np.square(signal - after).mean(1)
    spread = np.maximum(signal.var(1), 1e-12)
    values = {"residual": np.sqrt(wrong), "explained": np.clip(1 - wrong / spread, 0, 1)}
    place = torch.from_numpy(model.voxels)
    return {name: Image(grid, voxel_map(grid.shape, place, torch.from_numpy(v))) for name, v in values.items()}
