"""Real participants as subjects to learn from: their FODs in the training space, and their streamlines paired with the atlas's.

A flow that starts at the atlas needs to know from where each of a person's streamlines comes: from the nearest streamline of the
library (MDF: E. Garyfallidis et al., Front Neurosci 2012, doi:10.3389/fnins.2012.00175). Departures: the root mean square
over knots finds `_NEAREST` candidates, the MDF decides among them. Streamlines that nothing in the library is near to are left
out, and counted: a model can only learn the bundles that it knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tractode.errors import InputDataError, TractodeError
from tractode.fields import ShField, Streamlines
from tractode.fields.reorient import reoriented
from tractode.fields.sh import order_of
from tractode.generative.gentract import of_order
from tractode.generative.knots import knots_of
from tractode.generative.space import ORDER, SPACE, normalised, training_grid
from tractode.io.atomic import atomic_path
from tractode.io.nifti import read_image
from tractode.io.trackvis import read_trk
from tractode.io.tractogram import read_tractogram
from tractode.io.tractogram_stream import read_groups
from tractode.simulate.bundle_library import BundleLibrary, equally_spaced
from tractode.simulate.tract_subject import TractSubject
from tractode.training.cohort_files import DWI, LeftOut, Scan, bundle_named_by, chain_of

_FORMAT = 1
_NEAREST = 8
_TILE = 512


@dataclass(frozen=True)
class CohortSettings:
    """How participants become subjects.

    Parameters
    ----------
    reach_mm
        A streamline with no line of the library this near (MDF) is left out.
    most_lines
        Of a scan, drawn at random.
    views
        Subjects made of one scan: the n-th pairs every line of the library with the n-th nearest of the scan's lines that
        belong to it.
    fewest
        Paired lines with which a bundle counts as present.
    least_covered
        Share of the voxels that a model may see in which the scan must have orientations.
    held_out
        Share of the participants that are only looked at, never learned from; who, depends on their labels alone.
    """

    reach_mm: float = 15.0
    most_lines: int = 20_000
    views: int = 4
    fewest: int = 4
    least_covered: float = 0.6
    held_out: float = 0.2


@dataclass(frozen=True, eq=False)
class Paired:
    """A scan in the training space: its field, its lines, and the library's row that each belongs to."""

    coeffs: Float[Tensor, "28 i j k"]
    lines: Float[Tensor, "n 31 3"]
    row: Int[Tensor, " n"]
    distance: Float[Tensor, " n"]
    n_read: int


class Cohort:
    """Scans as subjects by number. What was made of a scan is kept in ``folder`` until its files change."""

    def __init__(
        self,
        scans: Sequence[Scan],
        library: BundleLibrary,
        visible: Bool[Tensor, "i j k"],
        folder: Path,
        settings: CohortSettings | None = None,
    ) -> None:
        self.scans, self.library, self.visible, self.folder = list(scans), library, visible, folder
        self.settings = settings or CohortSettings()

    def __len__(self) -> int:
        return len(self.scans) * self.settings.views

    def __getitem__(self, number: int) -> TractSubject:
        scan, view = divmod(number, self.settings.views)
        return subject_of(self.paired(self.scans[scan]), self.library, view, self.settings.fewest)

    @cached_property
    def _sum(self) -> str:
        return self.library.hash()

    @property
    def participants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(scan.participant for scan in self.scans))

    def split(self) -> tuple[Cohort, Cohort]:
        """Those to learn from and those held out, by participant."""
        is_held = [is_held_out(scan.participant, self.settings.held_out) for scan in self.scans]
        parts = [
            [scan for scan, held in zip(self.scans, is_held, strict=True) if held is wanted] for wanted in (False, True)
        ]
        one, other = (Cohort(scans, self.library, self.visible, self.folder, self.settings) for scans in parts)
        return one, other

    def prepare(self, tell: Callable[[int], None] | None = None) -> tuple[dict[str, tuple[int, int]], list[LeftOut]]:
        """Makes what is not made yet, telling the number of each scan. Scans that cannot be used leave the cohort.

        Returns
        -------
        For each scan the lines that are used and that were read; and the scans that left, with the reason.

        Raises
        ------
        InputDataError
            E-COHORT-UNUSABLE: no scan is left.
        """
        counts: dict[str, tuple[int, int]] = {}
        left: list[LeftOut] = []
        for number, scan in enumerate(self.scans):
            if tell:
                tell(number)
            try:
                paired = self.paired(scan)
                self._check(scan, paired)
            except TractodeError as error:
                left.append(LeftOut(scan.name, str(error)))
                continue
            counts[scan.name] = len(paired.lines), paired.n_read
        self.scans = [scan for scan in self.scans if scan.name in counts]
        if not self.scans:
            raise InputDataError(
                "No scan can be learned from: " + "; ".join(f"{one.name}: {one.reason}" for one in left[:5]),
                id="E-COHORT-UNUSABLE",
                needed="FODs of whole brains, and streamlines near the atlas's",
            )
        return counts, left

    def _check(self, scan: Scan, paired: Paired) -> None:
        most = int(torch.bincount(self.library.bundle[paired.row]).max())
        if most < self.settings.fewest:
            raise InputDataError(
                f"No bundle has more than {most} streamlines near the library's",
                id="E-COHORT-LINES",
                path=scan.tractograms[0],
                needed=f"{self.settings.fewest} or more in one bundle",
            )

    def paired(self, scan: Scan) -> Paired:
        path = self.folder / f"{scan.name}-{self._key(scan)}.safetensors"
        if path.is_file():
            try:
                return _read(path)
            except (SafetensorError, KeyError):
                path.unlink()  # of an interrupted disk; it is made again
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, pair(scan, self.library, self.visible, self.settings))
        return _read(path)  # what is stored is rounded: the first time is to be like every other

    def _key(self, scan: Scan) -> str:
        """Of all that the pairs depend on."""
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in scan.files()]
        facts = [_FORMAT, self._sum, self.settings.reach_mm, self.settings.most_lines, stats]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def record(self) -> dict[str, Any]:
        """For a card: who was learned from is not in it, only how many."""
        return {**asdict(self.settings), "n_participants": len(self.participants), "n_scans": len(self.scans)}


def is_held_out(participant: str, share: float) -> bool:
    """Whether a participant is held out; more participants change nobody's part."""
    return int(hashlib.sha256(participant.encode()).hexdigest()[:8], 16) < share * 2**32


def pair(scan: Scan, library: BundleLibrary, visible: Bool[Tensor, "i j k"], settings: CohortSettings) -> Paired:
    """A scan's field and streamlines in the training space.

    Raises
    ------
    InputDataError
        E-COHORT-COVERED: too little of the brain was scanned. E-COHORT-LINES: no streamline is near the library.
    """
    coeffs = _field(scan, visible)
    covered = float((coeffs[0, visible] > 0).float().mean())
    if covered < settings.least_covered:
        raise InputDataError(
            f"The FODs cover {covered:.0%} of the template's white matter",
            id="E-COHORT-COVERED",
            path=scan.fod,
            needed=f"{settings.least_covered:.0%}, and a registration to {SPACE} that holds",
        )
    lines, bundle = _streamlines(scan, library, settings)
    row, turned, distance = nearest(lines, bundle, library)
    near = distance <= settings.reach_mm
    if not bool(near.any()):
        raise InputDataError(
            f"None of {len(lines)} streamlines is within {settings.reach_mm:g} mm of one of the library",
            id="E-COHORT-LINES",
            path=scan.tractograms[0],
            needed="streamlines of bundles that the library has",
        )
    return Paired(coeffs, turned[near], row[near], distance[near], len(lines))


def subject_of(paired: Paired, library: BundleLibrary, view: int, fewest: int) -> TractSubject:
    """Every row of the library with one of the scan's lines that belong to it.

    Rows that no line belongs to are not kept. Where their bundle is present they hold the nearest of its real lines, so that
    all lines of a present bundle are real.
    """
    n_bundles = len(library.names)
    counts = torch.bincount(library.bundle[paired.row], minlength=n_bundles)
    present = counts >= fewest
    order = _by_row_then_distance(paired)
    rows, first, n_of_row = _runs(paired.row[order])
    chosen = order[first + view % n_of_row]
    lines, kept = library.lines.clone(), torch.zeros(len(library), dtype=torch.bool)
    lines[rows], kept[rows] = paired.lines[chosen].float(), present[library.bundle[rows]]
    for index in present.nonzero().ravel().tolist():
        own = rows[library.bundle[rows] == index]
        empty = ((library.bundle == index) & ~kept).nonzero().ravel()
        if len(empty):
            apart = torch.cdist(library.lines[empty].flatten(1), lines[own].flatten(1))
            lines[empty] = lines[own[apart.argmin(1)]]
    return TractSubject(paired.coeffs.float(), lines, present, kept)


def nearest(
    lines: Float[Tensor, "n 31 3"], bundle: Int[Tensor, " n"], library: BundleLibrary
) -> tuple[Int[Tensor, " n"], Float[Tensor, "n 31 3"], Float[Tensor, " n"]]:
    """The library's row nearest to each line, the line turned to run as that row does, and their MDF in mm.

    Lines of an unknown bundle (−1) may belong to any bundle of the atlas (to the simulator's where there is no atlas).
    Held-out rows take none.
    """
    is_open = ~library.is_held_out
    from_atlas = ~library.is_simulated[library.bundle]
    rows = is_open.nonzero().ravel()
    is_any = from_atlas[rows] if bool((is_open & from_atlas).any()) else torch.ones(len(rows), dtype=torch.bool)
    targets, target_bundle = knots_of(library.lines)[rows], library.bundle[rows]
    parts = []
    for part, own in zip(lines.split(_TILE), bundle.split(_TILE), strict=True):
        allowed = torch.where(own[:, None] < 0, is_any, own[:, None] == target_bundle)
        knots = knots_of(part)
        apart = [torch.cdist(one.flatten(1), targets.flatten(1)) for one in (knots, knots.flip(1))]
        best = torch.minimum(*apart).masked_fill(~allowed, torch.inf).topk(min(_NEAREST, len(rows)), largest=False)
        found = library.lines[rows[best.indices]]
        direct = (part[:, None] - found).norm(dim=-1).mean(-1)
        turned = (part[:, None].flip(2) - found).norm(dim=-1).mean(-1)
        mdf = torch.minimum(direct, turned).masked_fill(best.values.isinf(), torch.inf)
        distance, place = mdf.min(1)
        is_turned = (turned < direct).gather(1, place[:, None])[:, :, None]
        parts.append(
            (rows[best.indices.gather(1, place[:, None])[:, 0]], torch.where(is_turned, part.flip(1), part), distance)
        )
    row, out, distance = (torch.cat(column) for column in zip(*parts, strict=True))
    return row, out, distance


def _field(scan: Scan, visible: Bool[Tensor, "i j k"]) -> Float[Tensor, "28 i j k"]:
    """The FOD as the model will see it: on the training grid, reoriented, only where white matter may be, scaled."""
    image, _ = read_image(scan.fod, DWI)
    order = min(order_of(len(image.values)), ORDER)
    field = ShField(image.grid, of_order(image.values, order).float(), order)
    carried = reoriented(field, training_grid(), chain_of(scan.there_to_here))
    coeffs = of_order(carried.coeffs, ORDER) * visible
    return normalised(ShField(carried.grid, coeffs, ORDER)).coeffs


def _streamlines(
    scan: Scan, library: BundleLibrary, settings: CohortSettings
) -> tuple[Float[Tensor, "n 31 3"], Int[Tensor, " n"]]:
    """Lines in the training space, and the bundle of each (−1: unknown)."""
    numbers = {_plain(name): number for number, name in enumerate(library.names)}
    parts, bundles = [], []
    for path in scan.tractograms:
        lines, groups = _read_lines(path)
        bundle = torch.full((len(lines),), numbers.get(_plain(bundle_named_by(path)), -1))
        for name, index in groups.items():
            if _plain(name) in numbers:
                bundle[index] = numbers[_plain(name)]
        good = (lines.n_points > 1) & (lines.per_streamline.get("weights", torch.ones(len(lines))).ravel() > 0)
        parts.append(_bare(lines.select(good.nonzero().ravel())))
        bundles.append(bundle[good])
    together, bundle = Streamlines.concatenate(parts, DWI), torch.cat(bundles)
    chosen = (
        torch.randperm(len(together), generator=torch.Generator().manual_seed(0))[: settings.most_lines].sort().values
    )
    moved = together.select(chosen).moved(chain_of(scan.here_to_there))
    return equally_spaced(moved), bundle[chosen]


def _read_lines(path: Path) -> tuple[Streamlines, dict[str, Tensor]]:
    """Streamlines, and by name the indices of those that belong to a group."""
    if path.suffix == ".trk":
        return read_trk(path, DWI), {}
    lines, notes = read_tractogram(path, DWI)
    if path.suffix != ".trx" or any(note.id in ("W-TRACT-NAN", "W-TRACT-EMPTY") for note in notes):
        return lines, {}  # lines that were left out shift the numbers of the others
    return lines, {
        name: index for name, index in read_groups(path).items() if len(index) and int(index.max()) < len(lines)
    }


def _bare(lines: Streamlines) -> Streamlines:
    return Streamlines(lines.points.float(), lines.offsets, lines.space)


def _plain(name: str) -> str:
    """Names of bundles are compared by their letters and digits: BIDS labels have nothing else."""
    return "".join(letter for letter in name if letter.isalnum()).lower()


def _by_row_then_distance(paired: Paired) -> Int[Tensor, " n"]:
    order = paired.distance.argsort(stable=True)
    return order[paired.row[order].argsort(stable=True)]


def _runs(values: Int[Tensor, " n"]) -> tuple[Int[Tensor, " r"], Int[Tensor, " r"], Int[Tensor, " r"]]:
    """Of sorted values: which there are, where each begins, and how many there are of it."""
    each, n = values.unique_consecutive(return_counts=True)
    return each, n.cumsum(0) - n, n


def _write(path: Path, paired: Paired) -> None:
    tensors = {
        "coeffs": paired.coeffs.half().contiguous(),
        "lines": paired.lines.float().contiguous(),
        "row": paired.row.int(),
        "distance": paired.distance.float(),
        "n_read": torch.tensor(paired.n_read),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def _read(path: Path) -> Paired:
    found = load_file(path)
    return Paired(found["coeffs"].float(), found["lines"], found["row"].long(), found["distance"], int(found["n_read"]))
