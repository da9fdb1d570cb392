"""What each streamline connects, when the bundles are known: a bundle's two ends, the wrong two ends, or nothing.

Renauld et al., *Validate your white matter tractography algorithms with a reappraised ISMRM 2015 Tractography Challenge
scoring system*, Sci Rep 2023, doi:10.1038/s41598-023-28560-y, after Côté et al., Med Image Anal 2013,
doi:10.1016/j.media.2013.03.009. Departures: a streamline belongs to one bundle (the one it stays in best), most of it
instead of all must stay in the mask, and loops are told by the signed turn, so that jitter does not add up. A
streamline with the two ends of one bundle that fails its criteria (a wrong path) is no connection, never an invalid one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.errors import SpaceMismatchError
from tractode.fields import ImageGrid, Streamlines
from tractode.ops import smooth


@dataclass(frozen=True, eq=False)
class BundleRegions:
    """Where a bundle is and where its two ends (head, tail) are, on one grid; its least and greatest length, if known."""

    grid: ImageGrid
    mask: Bool[Tensor, "i j k"]
    start: Bool[Tensor, "i j k"]
    end: Bool[Tensor, "i j k"]
    lengths_mm: tuple[float, float] | None = None


@dataclass(frozen=True)
class Criteria:
    """What a streamline with the right ends must meet.

    Attributes
    ----------
    tolerance_mm
        Mask and end regions are widened by this, rounded up to whole voxels.
    inside_share
        Of its points, the share that must lie in the widened mask.
    length_margin
        Its length lies within the bundle's lengths, widened by this share of them.
    largest_winding
        It turns by less than this in the plane that fits it best, radians.
    """

    tolerance_mm: float = 2.0
    inside_share: float = 0.95
    length_margin: float = 0.25
    largest_winding: float = math.radians(330)


@dataclass(frozen=True, eq=False)
class Connections:
    """Each streamline's bundle (index into ``names``), or its wrong pair (index into ``pairs``); −1 for none.

    ``pairs`` are two end regions that no bundle connects, by name and end. ``is_wrong_path`` marks those that have the
    ends of a bundle and fail its criteria.
    """

    names: tuple[str, ...]
    bundle_of: Int[Tensor, " s"]
    pairs: tuple[tuple[str, str], ...]
    pair_of: Int[Tensor, " s"]
    is_wrong_path: Bool[Tensor, " s"]

    @property
    def valid_rate(self) -> float:
        """Share of valid connections (VC); NaN for an empty tractogram."""
        return _share(self.bundle_of >= 0)

    @property
    def invalid_rate(self) -> float:
        """Share of invalid connections (IC): both ends in end regions of bundles, and no bundle has these two."""
        return _share(self.pair_of >= 0)

    @property
    def no_connection_rate(self) -> float:
        """Share of the rest (NC), wrong paths among them."""
        return _share((self.bundle_of < 0) & (self.pair_of < 0))

    @property
    def wrong_path_rate(self) -> float:
        """Share of streamlines with the ends of a bundle that fail its criteria (WPC)."""
        return _share(self.is_wrong_path)

    def counts(self) -> dict[str, int]:
        """Valid streamlines of each bundle."""
        return {name: int((self.bundle_of == index).sum()) for index, name in enumerate(self.names)}

    def invalid_bundles(self) -> dict[str, int]:
        """Streamlines of each wrong pair that has any (IB)."""
        counts = torch.bincount(self.pair_of[self.pair_of >= 0], minlength=len(self.pairs)).tolist()
        return {" ".join(pair): n for pair, n in zip(self.pairs, counts, strict=True) if n}


def connections(
    streamlines: Streamlines, bundles: Mapping[str, BundleRegions], criteria: Criteria | None = None
) -> Connections:
    """Every streamline assigned by its ends; raises `SpaceMismatchError` where a region is of another space."""
    criteria = criteria or Criteria()
    for regions in bundles.values():
        if regions.grid.space != streamlines.space:
            raise SpaceMismatchError(
                f"Streamlines of {streamlines.space!r} cannot be scored in regions of {regions.grid.space!r}; move one of them first."
            )
    lines = Streamlines(streamlines.points.detach().cpu(), streamlines.offsets.cpu(), streamlines.space)
    ends = _end_regions(bundles)
    is_at_first, is_at_last = _where_lines_end(lines, ends, criteria)
    true_pairs = [ends.of_bundle(index) for index in range(len(bundles))]
    has_both = torch.zeros(len(bundles), len(lines), dtype=torch.bool)
    for index, (a, b) in enumerate(true_pairs):
        has_both[index] = _joins(is_at_first, is_at_last, a, b)
    bundle_of = _best_bundles(lines, bundles, has_both, criteria)
    is_connected = has_both.any(0)
    pairs = [pair for pair in itertools.combinations(range(len(ends.names)), 2) if pair not in set(true_pairs)]
    pair_of = _wrong_pairs(pairs, is_at_first, is_at_last, is_connected)
    named = tuple((ends.names[a], ends.names[b]) for a, b in pairs)
    return Connections(tuple(bundles), bundle_of, named, pair_of, is_connected & (bundle_of < 0))


@dataclass(frozen=True, eq=False)
class _Ends:
    """Every different end region once, named for the first bundle that has it; ``index`` of each bundle's start and end."""

    names: list[str]
    regions: list[tuple[Bool[Tensor, "i j k"], ImageGrid]]
    index: list[int]

    def of_bundle(self, number: int) -> tuple[int, int]:
        a, b = self.index[2 * number], self.index[2 * number + 1]
        return min(a, b), max(a, b)


def _end_regions(bundles: Mapping[str, BundleRegions]) -> _Ends:
    names: list[str] = []
    regions: list[tuple[Tensor, ImageGrid]] = []
    sizes: list[int] = []
    index = []
    for name, bundle in bundles.items():
        for side, region in (("start", bundle.start), ("end", bundle.end)):
            size = int(region.sum())  # most differ in size already, and need no comparison of every voxel
            same = [i for i, (other, _) in enumerate(regions) if sizes[i] == size and torch.equal(other, region)]
            if not same:
                names.append(f"{name}-{side}")
                regions.append((region, bundle.grid))
                sizes.append(size)
            index.append(same[0] if same else len(regions) - 1)
    return _Ends(names, regions, index)


def _where_lines_end(
    lines: Streamlines, ends: _Ends, criteria: Criteria
) -> tuple[Bool[Tensor, "r s"], Bool[Tensor, "r s"]]:
    """Whether each line's first and last point lies in each end region."""
    shape = (len(ends.regions), len(lines))
    first, last = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    full = (lines.n_points > 0).nonzero().ravel()
    head, tail = lines.points[lines.offsets[:-1][full]], lines.points[lines.offsets[1:][full] - 1]
    for index, (region, grid) in enumerate(ends.regions):
        wide = _widened(region, grid, criteria.tolerance_mm)
        first[index, full], last[index, full] = is_in(wide, grid, head), is_in(wide, grid, tail)
    return first, last


def _joins(is_at_first: Bool[Tensor, "r s"], is_at_last: Bool[Tensor, "r s"], a: int, b: int) -> Bool[Tensor, " s"]:
    return (is_at_first[a] & is_at_last[b]) | (is_at_first[b] & is_at_last[a])


def _best_bundles(
    lines: Streamlines, bundles: Mapping[str, BundleRegions], has_both: Bool[Tensor, "n s"], criteria: Criteria
) -> Int[Tensor, " s"]:
    """Of the bundles whose criteria a line meets, the one that most of it stays in; −1 for none."""
    best = torch.full((len(lines),), -1, dtype=torch.long)
    share = torch.zeros(len(lines), dtype=torch.float64)
    lengths = lines.lengths().double()
    for index, (regions, candidate) in enumerate(zip(bundles.values(), has_both, strict=True)):
        chosen = candidate.nonzero().ravel()
        if not len(chosen):
            continue
        whole = _widened(regions.mask | regions.start | regions.end, regions.grid, criteria.tolerance_mm)
        part = lines.select(chosen)
        inside = _share_inside(part, whole, regions.grid)
        meets = (inside >= criteria.inside_share) & (winding(part) < criteria.largest_winding)
        if regions.lengths_mm is not None:
            low, high = regions.lengths_mm
            low, high = low * (1 - criteria.length_margin), high * (1 + criteria.length_margin)
            meets &= (lengths[chosen] >= low) & (lengths[chosen] <= high)
        wins = meets & (inside > share[chosen])
        best[chosen[wins]], share[chosen[wins]] = index, inside[wins]
    return best


def _wrong_pairs(
    pairs: list[tuple[int, int]],
    is_at_first: Bool[Tensor, "r s"],
    is_at_last: Bool[Tensor, "r s"],
    is_taken: Bool[Tensor, " s"],
) -> Int[Tensor, " s"]:
    """The first pair of two different regions that holds a line's ends; −1 for lines taken or without a pair."""
    open_lines = (is_at_first.any(0) & is_at_last.any(0) & ~is_taken).nonzero().ravel()
    first, last = is_at_first[:, open_lines], is_at_last[:, open_lines]
    found = torch.full((len(open_lines),), -1, dtype=torch.long)
    for index, (a, b) in enumerate(pairs):
        found[_joins(first, last, a, b) & (found < 0)] = index
    pair_of = torch.full((is_at_first.shape[1],), -1, dtype=torch.long)
    pair_of[open_lines] = found
    return pair_of


def winding(lines: Streamlines) -> Float[Tensor, " s"]:
    """By how much each line turns in the plane that fits its points best, radians: 2π for a whole loop, 0 for an S."""
    n, owner = len(lines), lines.streamline_of_point
    if len(owner) < 3:
        return torch.zeros(n, dtype=torch.float64)
    points = lines.points.double()
    counts = lines.n_points.clamp(min=1).double()
    centre = torch.zeros(n, 3, dtype=torch.float64).index_add(0, owner, points) / counts[:, None]
    centred = points - centre[owner]
    scatter = torch.zeros(n, 3, 3, dtype=torch.float64).index_add(0, owner, centred[:, :, None] * centred[:, None, :])
    plane = torch.linalg.eigh(scatter).eigenvectors[:, :, 1:]
    flat = torch.einsum("pd,pde->pe", centred, plane[owner])
    step, owner_of_step = flat.diff(dim=0), owner[1:]
    # A point given twice has no direction: the turn is between the steps around it.
    moves = (owner[1:] == owner[:-1]) & (step.norm(dim=-1) > 0)
    step, owner_of_step = step[moves], owner_of_step[moves]
    before, after = step[:-1], step[1:]
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    turn = torch.atan2(cross, (before * after).sum(-1)) * (owner_of_step[1:] == owner_of_step[:-1])
    return torch.zeros(n, dtype=torch.float64).index_add(0, owner_of_step[1:], turn).abs()


def is_in(region: Bool[Tensor, "i j k"], grid: ImageGrid, points: Float[Tensor, "p 3"]) -> Bool[Tensor, " p"]:
    """Whether the voxel of each point belongs to the region; points beyond the grid do not."""
    index = grid.to_voxel(points.double()).round().long()
    shape = torch.tensor(grid.shape)
    inside = ((index >= 0) & (index < shape)).all(-1)
    i, j, k = index.clamp(min=0).minimum(shape - 1).unbind(-1)
    return region[i, j, k] & inside


def _widened(region: Bool[Tensor, "i j k"], grid: ImageGrid, tolerance_mm: float) -> Bool[Tensor, "i j k"]:
    """Dilated by the tolerance; only around the region, which is small."""
    reach = [math.ceil(tolerance_mm / edge - 1e-6) for edge in grid.voxel_sizes]
    box = []
    for axis in range(3):
        used = region.any(dim=tuple(other for other in range(3) if other != axis)).nonzero().ravel()
        if not len(used):
            return region
        box.append(slice(max(0, int(used[0]) - reach[axis]), int(used[-1]) + reach[axis] + 1))
    wide = torch.zeros_like(region)
    wide[box[0], box[1], box[2]] = smooth.dilate(region[box[0], box[1], box[2]], (reach[0], reach[1], reach[2]))
    return wide


def _share_inside(lines: Streamlines, region: Bool[Tensor, "i j k"], grid: ImageGrid) -> Float[Tensor, " s"]:
    hits = is_in(region, grid, lines.points).double()
    total = torch.zeros(len(lines), dtype=torch.float64).index_add(0, lines.streamline_of_point, hits)
    return total / lines.n_points


def _share(which: Bool[Tensor, " s"]) -> float:
    return float(which.double().mean()) if len(which) else math.nan
