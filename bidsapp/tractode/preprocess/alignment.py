"""The rounds of motion correction: align, predict, step.

Part of `motion`, which says how and why. A Gauss–Newton step composes a small motion of the reference with the present pose (S. Baker, I.
Matthews, *Lucas-Kanade 20 years on*, IJCV 56:221, 2004, doi:10.1023/B:VISI.0000011205.11775.fd): what the volume looks like near the
reference's points is the prediction, whose gradient is less noisy than the volume's own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields.dwi import DWI
from tractode.fields.gradients import GradientTable
from tractode.fields.image import Image
from tractode.ops import affine as aff
from tractode.ops import interpolate
from tractode.ops import volume_pose as pose
from tractode.preprocess.eddy import constant_part, geometry
from tractode.preprocess.joining import joined
from tractode.preprocess.level import Level, stepped
from tractode.preprocess.outliers import deviations, kinds, outlying, slice_losses
from tractode.preprocess.prediction import Process, fitted, left_out, predicted

if TYPE_CHECKING:
    from collections.abc import Callable

    from tractode.preprocess.eddy import PhaseEncoding
    from tractode.preprocess.motion import MotionEstimate, MotionSettings

_INDEPENDENT = 0.3  # share of the points whose errors are their own; the images are smooth
_FARTHEST = 9.0  # mm; a step moves nothing within _ARM mm of the centre farther
_ARM = 60.0
_SHORT_MM = 0.003  # a shorter step is the last one
_AT_ONCE = 1 << 13  # voxels
_LEAST_POINTS = 100
_QUADRATIC = 0.3  # of what is expected of a linear eddy term, that of a quadratic one
_LEAST_EDDY = 12  # weighted volumes from which eddy terms are held near what the gradients say
_JOINING = 2.0  # mm; smoothing for the way between b=0 and weighted volumes


class Rounds:
    """One series on its way to being aligned."""

    def __init__(
        self, scan: DWI, encoding: PhaseEncoding | None, settings: MotionSettings, field_hz: Tensor | None
    ) -> None:
        from tractode.preprocess.motion import why_not

        if (reason := why_not(scan.gtab)) is not None:
            raise InputDataError(
                reason, id="E-MOTION-TABLE", needed="6 weighted volumes or 2 b=0 volumes", fix="leave motion out"
            )
        # Many small steps: on the CPU wherever the series is.
        scan = DWI(scan.grid, scan.signal.cpu(), scan.gtab.to(torch.zeros(1, dtype=torch.float64)), scan.mask.cpu())
        field_hz = None if field_hz is None else field_hz.cpu()
        self.scan, self.settings = scan, settings
        n, grid = len(scan.gtab), scan.grid
        inside = grid.to_world(scan.mask.nonzero().double())
        if not len(inside):
            raise InputDataError("The mask of the series is empty", id="E-MOTION-MASK", needed="a brain mask")
        self.place = geometry(grid, inside.mean(0), encoding if settings.eddy else None, field_hz)
        self.encoding = encoding
        self.motion = torch.zeros(n, 6, dtype=torch.float64)
        self.eddy = torch.zeros(n, 9, dtype=torch.float64)
        slices = grid.shape[settings.slice_axis]
        self.losses = torch.zeros(n, slices, dtype=torch.float64)
        self.z = torch.zeros(n, slices, dtype=torch.float64)
        self.lost = torch.zeros(n, slices, dtype=torch.bool)
        self.prediction: Image | None = None  # one channel a volume, on the grid of the level that it was made at
        self.filled: dict[tuple[int, int], Tensor] = {}  # lost slices (volume, number) as they are predicted
        self.level: Level | None = None
        self.is_b0 = scan.gtab.is_b0.cpu()
        self.n_terms = self._eddy_terms()
        self.kinds = kinds(scan.gtab)
        # A lone weighted volume goes towards what the other shells say of it.
        n_weighted = int((~self.is_b0).sum())
        counts = [len(index) if len(index) > 1 or self.is_b0[index[0]] else n_weighted for index in self.kinds]
        self.n_alike = {v: n for index, n in zip(self.kinds, counts, strict=True) for v in index.tolist()}
        self.expected = torch.zeros(n, 9, dtype=torch.float64)
        self.loosest = torch.tensor([1.0] * 3 + [_QUADRATIC] * 6, dtype=torch.float64) * settings.eddy_mm
        self.spread = self.loosest

    def _eddy_terms(self) -> int:
        """How many of the eddy terms are sought."""
        n_weighted = int((~self.is_b0).sum())
        if self.place.encoding is None or n_weighted < 6:
            return 0
        return 9 if n_weighted >= self.settings.quadratic_from else 3

    def estimate(self, progress: Callable[[int, int], None]) -> MotionEstimate:
        from tractode.preprocess.motion import MotionEstimate

        rounds, n = self.settings.smoothing, len(self.scan.gtab)
        total = len(rounds) * n
        correlation = torch.ones(n, dtype=torch.float64)
        for number, width in enumerate(rounds):
            self.level = Level(self.scan.grid, self.scan.mask, width, self.settings.points)
            # Poses that follow the directions smoothly make a series that predicts itself as well as the true one does: only the mean
            # over directions can tell them.
            directed = number + 1 == len(rounds)
            self.prediction = None  # it may be as large as the series: one at a time
            self.prediction = Image(self.level.grid, self._predicted(self._aligned(), directed))
            self._fill_in()
            for volume in range(n):
                correlation[volume] = self._step(volume)
                progress(number * n + volume + 1, total)
            self._expect_eddy()
            if self.settings.outliers is not None and number + 2 >= len(rounds):
                self._judge()
                self._fill_in()
        self.prediction = None
        self._join()
        self._anchor()
        return MotionEstimate(
            self.scan.grid, self.place.centre, self.encoding, self.motion, self.eddy, self.lost, self.z, correlation,
            self.settings.slice_axis, self._notes(), self._eddy_constant(),
        )  # fmt: skip

    def _eddy_constant(self) -> Float[Tensor, " n"] | None:
        if self.encoding is None or not self.settings.eddy:
            return None
        axis = self.scan.grid.affine[:3, self.encoding.axis]
        return constant_part(self.scan.gtab, (self.motion[:, :3].cpu() @ (axis / axis.norm()).to(self.motion).cpu()))

    def _notes(self) -> tuple[str, ...]:
        few = f"{int((~self.is_b0).sum())} weighted volumes"
        if self.n_terms == 9 or not self.settings.eddy:
            return ()
        if self.encoding is None:
            return ("eddy currents were not sought: the phase encoding is not known",)
        if self.n_terms == 0:
            return (f"eddy currents were not sought: {few} tell too little of them",)
        return (f"linear eddy terms only: {few} tell too little of the quadratic ones",)

    # --- one round -----------------------------------------------------------------------------------------------------

    def _volume(self, volume: int) -> Float[Tensor, "1 i j k"]:
        """A volume as scanned, its lost slices as they are predicted."""
        values = self.scan.signal[volume].to(torch.float32)
        if not bool(self.lost[volume].any()):
            return values[None]
        values, axis = values.clone(), self.settings.slice_axis
        for number in self.lost[volume].nonzero()[:, 0].tolist():
            values.select(axis, number).copy_(self.filled[volume, number])
        return values[None]

    def _fill_in(self) -> None:
        """Predicts the lost slices."""
        axis, shape = self.settings.slice_axis, self.scan.grid.shape
        self.filled = {}
        for volume, number in self.lost.nonzero().tolist():
            values = self._predicted_at(volume, _slice_index(shape, axis, number, 1))
            self.filled[volume, number] = values.reshape([n for which, n in enumerate(shape) if which != axis])

    def _predicted_at(self, volume: int, index: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        """The latest prediction of a volume at its own voxels, as bright as it would be scanned."""
        assert self.prediction is not None
        motion, eddy = self.motion[volume], self.eddy[volume]
        points = self.place.origin_of(index, motion, eddy)
        _, bright = self.place.read_at(points, motion[None], eddy[None])
        # Lost slices are filled in at the next level too, whose grid may be a finer one.
        at = self.prediction.grid.to_voxel(points).float()
        values = interpolate.sample(self.prediction.values[volume][None], at, outside="nearest")[:, 0]
        return values / bright[0].float().clamp_min(0.25)

    def _aligned(self) -> Float[Tensor, "n i j k"]:
        """Every volume, smoothed, on the level's grid of the reference."""
        assert self.level is not None
        out = torch.empty(len(self.scan.gtab), *self.level.grid.shape)
        for volume in range(len(out)):
            out[volume] = self._aligned_one(volume)
        return out

    def _aligned_one(self, volume: int) -> Float[Tensor, "i j k"]:
        assert self.level is not None
        points = self.level.grid.centres(torch.float32).reshape(-1, 3)
        values, _ = self._read(self.level.smoothed(self._volume(volume)), volume, points)
        return values.reshape(self.level.grid.shape)

    def _mean(self, volumes: Int[Tensor, " m"]) -> Float[Tensor, "i j k"]:
        """Of some volumes, aligned."""
        assert self.level is not None
        total = torch.zeros(self.level.grid.shape, dtype=torch.float64)
        for volume in volumes.tolist():
            total += self._aligned_one(volume)
        return (total / len(volumes)).float()

    def _read(
        self, soft: Float[Tensor, "1 i j k"], volume: int, points: Float[Tensor, "p 3"]
    ) -> tuple[Float[Tensor, " p"], Float[Tensor, "p 3"]]:
        """A smoothed volume at points of the reference, and where (voxels as scanned) it was read."""
        assert self.level is not None
        one = slice(volume, volume + 1)
        index, bright = self.place.read_at(points, self.motion[one], self.eddy[one])
        at = index[0] / torch.tensor(self.level.strides).to(index)
        return interpolate.sample(soft, at, outside="nearest")[:, 0] * bright[0], index[0]

    def _predicted(self, aligned: Float[Tensor, "n i j k"], directed: bool) -> Float[Tensor, "n i j k"]:
        """Every volume as the others predict it, in the memory of ``aligned``: both may be as large as the series."""
        assert self.level is not None
        gtab, flat = self._table(), aligned.flatten(1)
        process = Process()
        if int((~self.is_b0).sum()) > 1:
            process = fitted(gtab[~self.is_b0], self._moments(flat))
        weights = left_out(gtab, process if directed else process.undirected())
        for part in flat.split(_AT_ONCE, dim=1):
            part.copy_(predicted(weights, part))
        return aligned

    def _moments(self, flat: Float[Tensor, "n v"]) -> Float[Tensor, "w w"]:
        """Second moments over the brain of the weighted volumes, as shares of the b=0 signal."""
        assert self.level is not None
        index, weighted = self.level.brain.reshape(-1).nonzero()[:, 0], (~self.is_b0).nonzero()[:, 0]
        of = self.is_b0.nonzero()[:, 0] if bool(self.is_b0.any()) else torch.arange(len(flat))
        base = flat[of[:, None], index].mean(0)
        least = 0.05 * float(base.quantile(0.9))
        total = torch.zeros(len(weighted), len(weighted), dtype=torch.float64)
        for chosen, level in zip(index.split(_AT_ONCE), base.clamp_min(least).split(_AT_ONCE), strict=True):
            shares = (flat[weighted[:, None], chosen] / level).double()
            total += shares @ shares.mT
        return total / len(index)

    def _table(self) -> GradientTable:
        """The gradients as they lie to the head."""
        turn = pose.rotations(self.motion[:, 3:])
        bvecs = (turn.mT @ self.scan.gtab.bvecs.double()[..., None])[..., 0]
        return replace(self.scan.gtab, bvecs=bvecs.to(self.scan.gtab.bvecs))

    def _step(self, volume: int) -> float:
        """Gauss–Newton steps of one volume towards its prediction; their correlation before the last one."""
        assert self.level is not None
        assert self.prediction is not None
        level, wanted, n_eddy = self.level, self.prediction.values[volume], 0 if self.is_b0[volume] else self.n_terms
        soft = level.smoothed(self._volume(volume))
        aim, gradient = wanted.reshape(-1)[level.chosen], level.gradient(wanted)[level.chosen]
        correlation, before = 1.0, (self.motion[volume].clone(), self.eddy[volume].clone())
        for _ in range(self.settings.steps):
            seen, index = self._read(soft, volume, level.points)
            inside = interpolate.inside(self.scan.grid.shape, index, margin=0.5)
            if int(inside.sum()) < _LEAST_POINTS:
                break
            correlation = float(torch.corrcoef(torch.stack((aim[inside], seen[inside])))[0, 1])
            more = self._eddy_columns(gradient, index, volume, n_eddy)
            strength = self.spread[:n_eddy].square().reciprocal() / _INDEPENDENT
            expected = self.expected[volume, :n_eddy] - self.eddy[volume, :n_eddy]
            step, eddy = stepped(gradient, level.points, self.place.centre, aim, seen, inside, more, strength, expected)
            self._move(volume, step)
            self.eddy[volume, :n_eddy] += eddy
            if float(step[:3].norm()) < _SHORT_MM and float(step[3:].norm()) < _SHORT_MM / 100:
                break
        self._hold(volume, *before)
        return correlation

    def _hold(self, volume: int, motion: Float[Tensor, " 6"], eddy: Float[Tensor, " 9"]) -> None:
        """Goes only as far as all volumes of a kind must go for them to meet, each having gone towards the mean of the others."""
        n = self.n_alike[volume]
        share = (n - 1) / n
        change = pose.then(self.motion[volume : volume + 1], pose.inverse(motion[None])) * share
        self.motion[volume] = pose.then(change, motion[None])[0]
        self.eddy[volume] = eddy + share * (self.eddy[volume] - eddy)

    def _eddy_columns(self, gradient: Tensor, index: Tensor, volume: int, n: int) -> Float[Tensor, "p e"]:
        """What the volume, brought to the reference, changes by for a unit of each eddy term."""
        if not n or self.place.encoding is None:
            return gradient[:, :0]
        along = aff.axis_directions(self.scan.grid.affine)[:, self.place.encoding.axis]
        turn = pose.rotations(self.motion[volume, 3:])
        rate = gradient @ (turn.mT @ along).to(gradient)
        terms = pose.terms(index, self.scan.grid.shape, self.scan.grid.voxel_sizes)
        return rate[:, None] * terms[:, :n]

    def _move(self, volume: int, step: Float[Tensor, " 6"]) -> None:
        """Composes a step with a volume's pose; a long one is cut."""
        length = float(step[:3].norm()) + _ARM * float(step[3:].norm())
        step = step * min(1.0, _FARTHEST / max(length, 1e-9))
        self.motion[volume] = pose.then(step[None], self.motion[volume : volume + 1])[0]

    # --- between rounds ------------------------------------------------------------------------------------------------

    def _expect_eddy(self) -> None:
        """Eddy currents follow the gradients: what is expected is linear in them, and the rest is a deviation from it.

        What all volumes of a shell have in common cannot be told from the shape of the head as they show it; it is taken to be nought.
        """
        weighted = (~self.is_b0).nonzero()[:, 0]
        if self.n_terms == 0 or len(weighted) < _LEAST_EDDY:
            return
        strength = self.scan.gtab.bvals[weighted].double().sqrt()[:, None] * self.scan.gtab.bvecs[weighted].double()
        shells = [index for index in self.kinds if not self.is_b0[index[0]]]
        own = torch.stack([torch.isin(weighted, index) for index in shells], dim=-1).double()
        design = torch.cat((strength / strength.norm(dim=-1).amax(), own), dim=-1)
        found = torch.linalg.lstsq(design, self.eddy[weighted]).solution
        self.eddy[weighted] -= own @ found[3:]
        self.expected[weighted] = design[:, :3] @ found[:3]
        rest = self.eddy[weighted] - self.expected[weighted]
        self.spread = (0.5 * 1.4826 * rest.abs().median(0).values).clamp_min(0.02).minimum(self.loosest)

    def _judge(self) -> None:
        """Finds the slices that lost signal."""
        assert self.settings.outliers is not None
        axis, wanted = self.settings.slice_axis, self.settings.outliers
        grid, brain = self.scan.grid, Image(self.scan.grid, self.scan.mask[None].float())
        index = _slice_index(grid.shape, axis, None, 2)
        shape = [math.ceil(n / 2) if which != axis else n for which, n in enumerate(grid.shape)]
        picked = tuple(slice(None) if which == axis else slice(None, None, 2) for which in range(3))
        for volume in range(len(self.losses)):
            points = self.place.origin_of(index, self.motion[volume], self.eddy[volume])
            inside = brain.sample(points.float())[:, 0].reshape(shape) > 0.5
            expected = self._predicted_at(volume, index).reshape(shape)
            own = self.scan.signal[volume][picked].float()
            own = own * float((own * expected)[inside].sum() / (own * own)[inside].sum().clamp_min(1e-12))
            self.losses[volume] = slice_losses(own, expected, inside, axis, wanted.least_voxels // 4)
        self.z = deviations(self.losses, self.scan.gtab)
        self.lost = outlying(self.losses, self.z, wanted)

    # --- at the end ----------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Moves the volumes of each shell together to where they lie to the b=0 volumes."""
        if not bool(self.is_b0.any()) or bool(self.is_b0.all()):
            return
        self.level = Level(self.scan.grid, self.scan.mask, _JOINING, self.settings.points)
        unweighted, known = self._mean(self.is_b0.nonzero()[:, 0]), self.is_b0.clone()
        for index in self.kinds:
            if not self.is_b0[index[0]]:
                own = torch.zeros_like(known)
                own[index] = True
                self.motion = joined(
                    self.motion, known, own, self.level, unweighted, self._mean(index), self.place.centre
                )
                known |= own

    def _anchor(self) -> None:
        """The reference becomes where the head lay in the mean of the b=0 volumes (without any, of all volumes)."""
        anchors = self.motion[self.is_b0] if bool(self.is_b0.any()) else self.motion
        back = pose.inverse(anchors.mean(0, keepdim=True))
        self.motion = pose.then(back.expand(len(self.motion), -1), self.motion)


def _slice_index(shape: tuple[int, int, int], axis: int, number: int | None, step: int) -> Float[Tensor, "p 3"]:
    """Voxel indices of one slice or of all, every ``step``-th voxel in the plane."""
    ranges = [torch.arange(0, n, 1 if which == axis else step, dtype=torch.float64) for which, n in enumerate(shape)]
    if number is not None:
        ranges[axis] = torch.tensor([float(number)], dtype=torch.float64)
    return torch.cartesian_prod(*ranges)
