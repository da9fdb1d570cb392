"""The tasks of `codec_naming.py`: lines of the template whose bundles are known, with lines of no bundle among them.

Synthetic: subjects from seeds and of lines that nothing learned from, their true lines with what SD_STREAM follows in their fields and
made-up false lines. Real: the three bundles of five people that DIPY brings, aligned to the atlas by their lines alone; lines of
no bundle are the synthetic subjects', placed after the alignment.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from dipy.align.streamlinear import BundleMinDistanceAsymmetricMetric, StreamlineLinearRegistration
from dipy.data import get_fnames
from dipy.tracking.streamline import Streamlines as DipyStreamlines
from dipy.tracking.streamline import set_number_of_points
from safetensors.torch import load_file, save_file
from torch import Tensor

from tractode.fields import Streamlines
from tractode.generative.space import SPACE
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.bundle_variation import VariationSettings
from tractode.simulate.line_samples import false_lines
from tractode.simulate.tissues import Anatomy
from tractode.simulate.tract_subject import TractSubjectSettings, synthesise
from tractode.training.tracked_lines import TrackedSettings, labelled, tracked
from tractode.training.tract_subjects import read_library, template_anatomy

FIRST_SEED = 1_000_000
TRUE, TRACKED, FALSE = 0, 1, 2
REAL_SUBJECTS = 5
# Which names of the atlas are right for the three bundles: written down before anything was named.
RIGHT = {
    "AF_L": "Association_ArcuateFasciculusL",
    "CST_R": "ProjectionBrainstem_CorticospinalTractR",
    "CC_ForcepsMajor": "Commissure_CorpusCallosum_ForcepsMajor",
}
_VARIATION = VariationSettings(sources=(1.0, 0.0, 0.0), lines="held-out", shares=(1.0, 1.0))


@dataclass(frozen=True, eq=False)
class Task:
    """``label`` is the index of the right bundle in the atlas's names, their number for none; ``kind`` where a line is from."""

    name: str
    lines: Streamlines
    label: Tensor
    kind: Tensor


@cache
def brain() -> Anatomy:
    return template_anatomy()


@cache
def load_library() -> BundleLibrary:
    """The library of the atlas folder below ``$TRACTODE_TEST_DATA``."""
    return read_library(Path(os.environ["TRACTODE_TEST_DATA"]) / "bundles_atlas", brain())


def names() -> tuple[str, ...]:
    library = load_library()
    return library.names[: int((~library.is_simulated).sum())]


def model_lines(index: int) -> Tensor:
    """The training lines of a bundle of the atlas."""
    library = load_library()
    return library.lines[(library.bundle == index) & ~library.is_held_out]


def synthetic(work: Path, number: int) -> Task:
    """Test subject ``number`` (from 0), kept in the work folder."""
    path = work / f"synthetic-{number:02d}.safetensors"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        lines, label, kind = _made(number)
        partial = path.with_suffix(".part")
        save_file({"lines": lines.contiguous(), "label": label, "kind": kind}, partial)
        partial.replace(path)
    found = load_file(path)
    return Task(f"synthetic-{number:02d}", together(found["lines"]), found["label"], found["kind"])


def _made(number: int) -> tuple[Tensor, Tensor, Tensor]:
    library, none = load_library(), len(names())
    subject = synthesise(library, brain(), number, TractSubjectSettings(seed=FIRST_SEED, variation=_VARIATION))
    true, bundle = subject.lines[subject.kept], library.bundle[subject.kept]
    found = tracked(subject, brain(), torch.Generator().manual_seed(FIRST_SEED + number), TrackedSettings())
    along = labelled(found, subject, library, held_out=True)
    # Of no bundle only what is far from every line of the atlas, those of the training part too.
    is_false = (along == none) & (labelled(found, subject, library) == none)
    is_named = (along >= 0) & (along < none)
    made = false_lines(library, 1000, torch.Generator().manual_seed(2 * FIRST_SEED + number), "held-out")
    parts = (true, found[is_named], found[is_false], made)
    labels = (bundle, along[is_named], along[is_false], torch.full((len(made),), none))
    kinds = [torch.full((len(part),), kind) for part, kind in zip(parts, (TRUE, TRACKED, TRACKED, FALSE), strict=True)]
    return torch.cat(parts), torch.cat(labels), torch.cat(kinds)


def real(work: Path, number: int) -> Task:
    """Person ``number`` (from 0): 150 lines of three bundles, and as many of none."""
    own = {name: _read(work, number, name) for name in RIGHT}
    matrix = _kept_alignment(work, number, [line for lines in own.values() for line in lines])
    moved = [
        torch.from_numpy(line @ matrix[:3, :3].T + matrix[:3, 3]).float() for lines in own.values() for line in lines
    ]
    right = torch.tensor([names().index(RIGHT[name]) for name, lines in own.items() for _ in lines])
    false = _no_bundle(work, number, len(moved))
    lines = Streamlines.from_list([*moved, *false], SPACE)
    label = torch.cat([right, torch.full((len(false),), len(names()))])
    kind = torch.cat([torch.full((len(right),), TRUE), torch.full((len(false),), TRACKED)])
    return Task(f"real-{number + 1}", lines, label, kind)


def _no_bundle(work: Path, number: int, n: int) -> list[Tensor]:
    """Two thirds tracked, one third made up, of one of the synthetic subjects."""
    task = synthetic(work, number)
    generator = torch.Generator().manual_seed(number)
    rows = []
    for kind, wanted in ((TRACKED, n - n // 3), (FALSE, n // 3)):
        some = ((task.label == len(names())) & (task.kind == kind)).nonzero().ravel()
        rows.append(some[torch.randperm(len(some), generator=generator)[:wanted]])
    return [task.lines[int(row)] for row in torch.cat(rows)]


def _read(work: Path, number: int, name: str) -> list[np.ndarray]:
    folder = work / "minimal_bundles"
    path = folder / f"sub_{number + 1}" / f"{name}.trk"
    if not path.is_file():
        with zipfile.ZipFile(get_fnames(name="minimal_bundles")) as archive:
            archive.extractall(folder)
    return [np.asarray(line, dtype=np.float64) for line in nib.streamlines.load(path).streamlines]


def _kept_alignment(work: Path, number: int, lines: list[np.ndarray]) -> np.ndarray:
    path = work / f"alignment-{number}.npy"
    if not path.is_file():
        np.save(path, alignment(lines))
    return np.load(path)


def alignment(lines: list[np.ndarray]) -> np.ndarray:
    """The affine map that lays lines onto the atlas: all of them onto all of it, knowing no bundle.

    DIPY's streamline-based linear registration with its one-sided distance, since the atlas has much that these lines lack:
    the mean over the lines of the MDF to the nearest line of the atlas. Rigid from six starts, then with three scales from the best.
    """
    library = load_library()
    atlas = library.lines[(~library.is_held_out & ~library.is_simulated[library.bundle]).nonzero().ravel()]
    thin, dense = (DipyStreamlines([line[::2].double().numpy() for line in atlas[::n]]) for n in (4, 2))
    whole = DipyStreamlines(set_number_of_points(DipyStreamlines(lines), 16))
    few = DipyStreamlines([whole[i] for i in range(0, len(whole), 3)])
    starts = [np.array([0.0, dy, dz, 0, 0, 0]) for dy in (10.0, 35.0) for dz in (-20.0, 0.0, 20.0)]
    options = {"maxcor": 10, "ftol": 1e-5, "gtol": 1e-4, "eps": 1e-3, "maxiter": 25}
    # The one-sided distance is that of the fixed lines to the moving ones, so the atlas moves.
    found = [_slr(start, None, options).optimize(few, thin) for start in starts]
    best = min(found, key=lambda one: one.fopt)
    start = np.concatenate([best.xopt, [1.0, 1, 1]])
    bounds = [(-200.0, 200.0)] * 3 + [(-40.0, 40.0)] * 3 + [(0.8, 1.25)] * 3
    final = _slr(start, bounds, options | {"ftol": 1e-6, "eps": 1e-4, "maxiter": 60}).optimize(whole, dense)
    return np.linalg.inv(final.matrix)


def _slr(start: np.ndarray, bounds: list[tuple[float, float]] | None, options: dict[str, float]):  # type: ignore[no-untyped-def]
    metric = BundleMinDistanceAsymmetricMetric(num_threads=torch.get_num_threads())
    return StreamlineLinearRegistration(metric=metric, x0=start, bounds=bounds, options=options)


def together(lines: Tensor) -> Streamlines:
    """Rows of points as streamlines of the template."""
    n, m = lines.shape[:2]
    return Streamlines(lines.reshape(-1, 3).float(), torch.arange(n + 1) * m, SPACE)
