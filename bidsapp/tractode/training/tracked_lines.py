"""What a tracker follows in simulated subjects, and which bundle each line is of: true ones, and the tracker's own false ones.

No paper. SD_STREAM follows the subject's orientation field, which was made from known lines; a line is of the bundle of the
known line that it runs along, possibly without that line's ends. What is far from all is of no bundle, what is neither near
nor far is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.fields import Image, ShField, Streamlines
from tractode.fields.line_shape import resampled
from tractode.generative.space import ORDER, training_grid
from tractode.simulate.bundle_library import N_POINTS, BundleLibrary
from tractode.simulate.line_samples import one_way, spaced
from tractode.simulate.tissues import Anatomy
from tractode.simulate.tract_subject import TractSubject, visible
from tractode.tracking.propagate import track_until
from tractode.tracking.sdstream import SDStream


@dataclass(frozen=True)
class TrackedSettings:
    """Lengths in mm. ``cutoff`` and ``least_amount`` are of the normalised field: amplitude to follow, and its mean where lines may be.

    ``near_mm`` and ``far_mm`` are root mean square distances over the points to the nearest known line.
    """

    n_lines: int = 3000
    cutoff: float = 0.1
    least_amount: float = 0.3
    step_mm: float = 0.9
    lengths_mm: tuple[float, float] = (15.0, 250.0)
    near_mm: float = 5.0
    far_mm: float = 9.0


def tracked(
    subject: TractSubject, anatomy: Anatomy, generator: torch.Generator, settings: TrackedSettings | None = None
) -> Float[Tensor, "n 31 3"]:
    """SD_STREAM's lines in a subject's field, by 31 points, each running the one way of `fields.line_shape`."""
    settings = settings or TrackedSettings()
    grid = training_grid()
    where = visible(anatomy) & (subject.coeffs[0] > settings.least_amount)
    mask = Image(grid, where[None])
    least, most = settings.lengths_mm
    tracker = SDStream(
        cutoff=settings.cutoff, step_mm=settings.step_mm, min_length=least, max_length=most, batch_size=4096
    )
    field = ShField(grid, subject.coeffs.float(), ORDER)
    parts = [
        Streamlines(part.points, part.offsets, part.space)
        for part in track_until(tracker, field, mask, mask, settings.n_lines, generator)
    ]
    return one_way(resampled(Streamlines.concatenate(parts, grid.space), N_POINTS).float())


LEFT_OUT = -1
# Shares of a known line's length that a tracked one may lack at its two ends.
_CUTS = ((0.0, 0.0), (0.15, 0.0), (0.0, 0.15), (0.3, 0.0), (0.0, 0.3), (0.15, 0.15))


def labelled(
    lines: Float[Tensor, "n 31 3"],
    subject: TractSubject,
    library: BundleLibrary,
    settings: TrackedSettings | None = None,
    held_out: bool = False,
) -> Int[Tensor, " n"]:
    """The bundle of the atlas that each line is of, the number of such bundles for none, `LEFT_OUT` where it is not clear.

    Known lines are those of the library as they run in this person (those held out only where asked for), whether they were drawn or not. Along
    a bundle that this person does not have, or a course of the simulator, nothing is clear.
    """
    settings = settings or TrackedSettings()
    none = int((~library.is_simulated).sum())
    is_course = library.is_simulated[library.bundle]
    rows = ((library.is_held_out == held_out) | is_course).nonzero().ravel()
    distance, nearest = nearest_known(lines, subject.lines[rows].float())
    bundle = library.bundle[rows][nearest]
    is_own = subject.present[bundle] & (bundle < none)
    # A course that the subject does not have made no line.
    is_in_doubt = (distance < settings.far_mm) & (subject.present[bundle] | (bundle < none))
    label = torch.where((distance < settings.near_mm) & is_own, bundle, torch.full_like(bundle, none))
    return torch.where(is_in_doubt & (label == none), torch.full_like(label, LEFT_OUT), label)


def nearest_known(
    lines: Float[Tensor, "n 31 3"], known: Float[Tensor, "m 31 3"]
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Root mean square distance (mm) over the points to the nearest known line or what is left of it, and which that is."""
    ways = torch.cat([known, known.flip(1)])
    best = lines.new_full((len(lines),), torch.inf)
    which = torch.zeros(len(lines), dtype=torch.long)
    for first, last in _CUTS:
        left = spaced(ways, torch.full((len(ways),), first), torch.full((len(ways),), 1 - last)).flatten(1)
        for part in torch.arange(len(lines)).split(512):
            found = torch.cdist(lines[part].flatten(1), left).min(1)
            is_nearer = found.values < best[part]
            best[part] = torch.where(is_nearer, found.values, best[part])
            which[part] = torch.where(is_nearer, found.indices % len(known), which[part])
    return best / N_POINTS**0.5, which
