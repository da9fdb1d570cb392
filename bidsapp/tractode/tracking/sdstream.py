"""SD_STREAM: deterministic streamlines along the peaks of an orientation distribution, batched and differentiable.

Tournier, Calamante & Connelly, *MRtrix: diffusion tractography in crossing fiber regions*, Int. J. Imaging Syst.
Technol. 2012, doi:10.1002/ima.22005; rules and defaults as MRtrix3's ``tckgen -algorithm SD_STREAM`` (default Euler
steps, Legendre functions not tabulated). Departures: the peak search ends with Newton's steps (see `peaks`), and random
numbers are drawn for all seeds before tracking, so that the lines do not depend on ``batch_size``.

At each point the coefficients are interpolated, the peak nearest to the previous direction is found, and the point
moves one step along it. A line ends without a new point where there is no data, where the peak is below ``cutoff``,
where the new direction turns by more than ``angle``, or where the next point would leave the mask; it ends with a new
point where it has as many as ``max_length`` allows. Both directions are followed from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import Orientations, Tracker
from tractode.errors import ShapeError, SpaceMismatchError
from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.tracking.adjoint import LinePoints
from tractode.tracking.march import Marcher, Paths
from tractode.tracking.peaks import find_peaks, pad_to_lanes
from tractode.tracking.sampling import ComponentTable, to_voxel
from tractode.tracking.seeds import random_directions
from tractode.tracking.stopping import MaskLookup, PointLimits, mean_voxel_size


@dataclass(frozen=True)
class SDStream(Tracker):
    """Lengths in mm; ``None`` means MRtrix3's default for the field's voxels (0.1, 5 and 100 voxels).

    ``angle`` (radians) is the largest turn of one step, ``cutoff`` the smallest peak amplitude to start at and to
    follow. ``batch_size`` seeds are tracked at once; it changes memory and speed, never the lines.
    """

    label: ClassVar[str] = "sdstream"
    citation: ClassVar[str] = "tournier2012"
    is_differentiable: ClassVar[bool] = True

    step_mm: float | None = None
    angle: float = math.radians(60)
    cutoff: float = 0.1
    min_length: float | None = None
    max_length: float | None = None
    batch_size: int = 32768

    def __post_init__(self) -> None:
        given = {"step_mm": self.step_mm, "min_length": self.min_length, "max_length": self.max_length}
        wrong = [f"{name}={value}" for name, value in given.items() if value is not None and not value > 0]
        if wrong or not 0 < self.angle <= math.pi or self.batch_size < 1:
            raise ValueError(
                f"Lengths must be positive ({', '.join(wrong) or 'they are'}), the angle in (0, π] radians "
                f"(got {self.angle}) and the batch at least 1 (got {self.batch_size})."
            )

    def lengths(self, grid: ImageGrid) -> tuple[float, float, float]:
        """Step, least and greatest length in mm on a given grid."""
        voxel = mean_voxel_size(grid)
        step = 0.1 * voxel if self.step_mm is None else self.step_mm
        least = 5 * voxel if self.min_length is None else self.min_length
        greatest = 100 * voxel if self.max_length is None else self.max_length
        return step, least, greatest

    def parameters(self, grid: ImageGrid | None = None) -> dict[str, float | str]:
        """Plain facts for a sidecar; lengths in mm where the grid is given, else in voxels as MRtrix3 defines them."""
        facts: dict[str, float | str] = {
            "Algorithm": "SD_STREAM",
            "Integration": "Euler",
            "MaximumAngle": math.degrees(self.angle),
            "CutoffAmplitude": self.cutoff,
            "SeedDirection": "peak uphill from a random direction",
        }
        if grid is not None:
            step, least, greatest = self.lengths(grid)
            return {**facts, "StepSize": step, "MinimumLength": least, "MaximumLength": greatest, "LengthUnits": "mm"}
        return facts

    def track(
        self,
        orientations: Orientations,
        seeds: Float[Tensor, "s 3"],
        mask: Image,
        generator: torch.Generator | None = None,
        directions: Float[Tensor, "s 3"] | None = None,
    ) -> Iterator[Streamlines]:
        """Streamlines in batches of seeds; ``per_streamline["seed"]`` is the index of each line's seed.

        ``directions`` replaces the random initial directions. ``generator`` defaults to one seeded with 0. Points carry
        gradients to ``orientations.coeffs`` and ``seeds`` where either requires them.
        """
        if not isinstance(orientations, ShField):
            raise ShapeError(f"SD_STREAM follows spherical harmonics; got a {type(orientations).__name__}.")
        if mask.grid.space != orientations.grid.space:
            raise SpaceMismatchError(
                f"The mask is in {mask.grid.space!r} and the orientations in {orientations.grid.space!r}; "
                "resample the mask onto the orientations' space first."
            )
        seeds = seeds.to(orientations.coeffs)
        if directions is None:
            # All at once and on the CPU: neither the batch size nor the device changes what is drawn.
            source = torch.Generator().manual_seed(0) if generator is None else generator
            directions = random_directions(len(seeds), source)
        return self._batches(orientations, seeds, directions.to(seeds), mask)

    def _batches(self, field: ShField, seeds: Tensor, directions: Tensor, mask: Image) -> Iterator[Streamlines]:
        step, least, greatest = self.lengths(field.grid)
        limits = PointLimits.of(least, greatest, step)
        table = ComponentTable.of(field)
        marcher = Marcher(table, MaskLookup.of(mask, seeds.device), step, math.cos(self.angle), self.cutoff)
        for start in range(0, len(seeds), self.batch_size):
            part = slice(start, start + self.batch_size)
            with torch.no_grad():
                paths = self._follow(marcher, limits, seeds[part].detach(), directions[part])
            yield self._assemble(marcher, paths, seeds[part], start)

    def _follow(self, marcher: Marcher, limits: PointLimits, seeds: Tensor, directions: Tensor) -> Paths:
        """Both halves of every line of a batch at once; the lines that are too short are left out."""
        position, direction, index = start_at_peaks(marcher, seeds, directions)
        return marcher.march(position, direction, index, limits)

    def _assemble(self, marcher: Marcher, paths: Paths, seeds: Tensor, start: int) -> Streamlines:
        points = paths.points
        values = marcher.table.values
        if torch.is_grad_enabled() and (values.requires_grad or seeds.requires_grad):
            points = LinePoints.apply(values, seeds[paths.seed], paths, marcher.table, marcher.step)
        return Streamlines(points, paths.offsets, marcher.table.grid.space, {}, {"seed": paths.seed + start})


def start_at_peaks(
    marcher: Marcher, seeds: Float[Tensor, "s 3"], directions: Float[Tensor, "s 3"]
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, "3 m"], Tensor]:
    """Seeds inside mask and data whose peak (uphill from the direction) reaches the cutoff: positions, peaks, indices."""
    positions, starts = seeds.mT.contiguous(), directions.mT.contiguous()
    index = marcher.mask.contains(positions).nonzero().ravel()
    found: list[tuple[Tensor, Tensor]] = []
    for part in index.split(marcher.tile):
        columns = pad_to_lanes(part)
        components, has_data = marcher.table.sample(to_voxel(marcher.table.grid, positions[:, columns]))
        peaks, amplitudes = find_peaks(components, starts[:, columns])
        is_good = (has_data & (amplitudes >= marcher.cutoff))[: len(part)]
        found.append((part[is_good], peaks[:, : len(part)][:, is_good]))
    kept = torch.cat([item[0] for item in found]) if found else index
    peaks = torch.cat([item[1] for item in found], dim=1) if found else starts[:, :0]
    return positions[:, kept], peaks, kept
