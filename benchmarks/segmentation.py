"""Brain masks and tissues against exact labels: painted whole heads, and three people with FreeSurfer's labels.

    python benchmarks/segmentation.py [--heads 2] [--people 3] [--peers PEERS/bin/python] [--rows rows.json] [--output benchmarks/results/segmentation.json]

Heads are label maps painted as T1w, T2w, b=0 and b=1000 (``segmentation_heads.py``). Peers in the same run: the template's tissue
maps and mask carried by the same registration; on the mask that ours found ANTs' N4 and Atropos with the same priors
(``segmentation_ants.py``, ``--peers``) and DIPY's classifier on a T1w as N4 left it; DIPY's median_otsu, MRtrix3's dwi2mask.
With ``--rows`` every finished row is kept, and a run that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_heads as heads
import torch
from dipy.segment.mask import median_otsu
from dipy.segment.tissue import TissueClassifierHMRF
from measure import meta
from torch import Tensor

from tractode.errors import InputDataError
from tractode.evaluate.overlap import dice
from tractode.fields import DWI, GradientTable, Image
from tractode.fields.transform import Transform, resample
from tractode.io.builtin_template import load_builtin
from tractode.io.gradients import write_mrtrix_gradients
from tractode.io.nifti import read_image, write_image
from tractode.preprocess import five_tissue, tissue_segmentation
from tractode.preprocess.mask_consensus import anatomical_mask, scan_mask
from tractode.registration.optimise import register

NAMES = ("GM", "WM", "CSF")
CASES = {
    "b0": ("b0", 1.0),
    "b0, bright fat": ("b0 with fat", 1.0),
    "infant": ("b0 of an infant", 0.65),
    "slab": ("b0", 1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--people", type=int, default=3)
    parser.add_argument("--peers", help="a Python with antspyx")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(os.environ["TRACTODE_TEST_DATA"])
    rows = Rows(options.rows)
    paths = heads.files(data)[: options.heads]
    for seed, path in enumerate(paths):
        for case, (contrast, size) in CASES.items():
            rows.add(f"scan {case}", path, partial(scan_row, path, contrast, seed, size, case == "slab"))
        for contrast in ("T1w", "T2w"):
            rows.add(f"painted_{contrast}", path, partial(painted, path, contrast, seed, options.peers))
    folders = sorted((data / "anat_labels").glob("sub-*"))[: options.people]
    for folder in folders:
        rows.add("people_T1w", folder, partial(person, folder, options.peers))
    result: dict[str, Any] = {"scan_masks": {case: rows.summary(f"scan {case}", paths) for case in CASES}}
    result |= {f"painted_{contrast}": rows.summary(f"painted_{contrast}", paths) for contrast in ("T1w", "T2w")}
    result["people_T1w"] = rows.summary("people_T1w", folders)
    peers = " --peers $PEERS" if options.peers else ""
    said = f"python benchmarks/segmentation.py --heads {options.heads} --people {options.people}{peers}"
    result["meta"] = meta(f"TRACTODE_TEST_DATA=$TRACTODE_TEST_DATA {said}")
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


class Rows:
    """Rows by part and subject; those in the file are not made again."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, dict[str, dict[str, float]]] = {}
        if path is not None and path.exists():
            self.known = json.loads(path.read_text(encoding="utf-8"))

    def add(self, part: str, subject: Path, make: Callable[[], dict[str, float]]) -> None:
        rows = self.known.setdefault(part, {})
        if subject.name in rows:
            return
        start = time.process_time()
        rows[subject.name] = make()
        seconds = time.process_time() - start
        print(part, subject.name, f"{seconds:.0f} s", rows[subject.name], file=sys.stderr, flush=True)
        if self.path is not None:
            self.path.write_text(json.dumps(self.known), encoding="utf-8")

    def summary(self, part: str, subjects: list[Path]) -> dict[str, Any]:
        return summary([self.known[part][subject.name] for subject in subjects])


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and the worst of every number over the heads."""
    made: dict[str, Any] = {"n": len(rows)}
    if not rows:
        return made
    for key in rows[0]:
        values = [row[key] for row in rows]
        worst = max(values) if "rmse" in key or key.endswith("_s") else min(values)
        made[key] = {"mean": round(sum(values) / len(values), 4), "worst": round(worst, 4)}
    return made


# --- masks of scans ------------------------------------------------------------------------------------------------------


def scan_row(path: Path, contrast: str, seed: int, size: float, is_slab: bool) -> dict[str, float]:
    head, weighted = heads.diffusion(path, contrast, seed, size=size)
    if is_slab:
        head, weighted = heads.slab(head, weighted, 0.35, 0.55)
    directions = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    table = GradientTable(torch.tensor([0.0, 1000.0]), directions, torch.tensor([True, False]))
    scan = DWI(head.image.grid, torch.cat((head.image.values, weighted.values)), table, torch.ones_like(head.brain))
    start = time.process_time()
    verdict = scan_mask(scan, "auto", lambda: (load_builtin("T1w", 2.0), load_builtin("mask", 2.0)))
    row = {"voted": dice(verdict.mask.mask, head.brain), "voted_cpu_s": time.process_time() - start}
    row["passed"] = float(verdict.passed)
    # Those of the vote: where a template was asked, the surface began in it.
    row |= {
        name: dice(mask.mask, head.brain) for name, mask in verdict.masks.items() if name in ("threshold", "surface")
    }
    row["peer_median_otsu"] = dice(torch.from_numpy(_otsu(head.image)), head.brain)
    row["peer_dwi2mask"] = dice(_dwi2mask(scan), head.brain)
    return row


def _otsu(image: Image) -> Any:
    """As DIPY's own examples call it for a b=0 image, but not dilated, as no other mask here is."""
    _, mask = median_otsu(image.values[0].numpy(), median_radius=3, numpass=1)
    return mask.astype(bool)


def _dwi2mask(scan: DWI) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        series, table, out = (Path(folder) / name for name in ("dwi.nii", "dwi.b", "mask.nii"))
        write_image(series, Image(scan.grid, scan.signal))
        write_mrtrix_gradients(scan.gtab, table)
        command = ["dwi2mask", "-quiet", "-nthreads", "1", "-grad", str(table), str(series), str(out)]
        subprocess.run(command, check=True)
        return read_image(out, "mask")[0].mask


# --- tissues -------------------------------------------------------------------------------------------------------------


def painted(path: Path, contrast: str, seed: int, peers: str | None) -> dict[str, float]:
    head = heads.head(path, contrast, seed)
    row, found, priors = _found(head.image)
    by_peers, seconds = _peers(head.image, found.mask, priors, contrast == "T1w", peers)
    row |= seconds
    for name, labels in {"own": found.labels, "carried": _labels(priors), **by_peers}.items():
        for number, tissue in enumerate(NAMES, start=1):
            row[f"{name}_{tissue}"] = dice(labels == number, head.labels == number)
    both = found.mask | head.brain
    for number, tissue in enumerate(NAMES):
        row[f"own_{tissue}_rmse"] = _rmse(found.tissues[number] - head.tissues[number], both)
        row[f"carried_{tissue}_rmse"] = _rmse(priors.values[number] - head.tissues[number], both)
    row["own_mask"] = dice(found.mask, head.brain)
    row["carried_mask"] = dice(priors.values.sum(0) > 0.5, head.brain)
    return row | _anatomical(head.image, head.brain, row.pop("registration"))


def person(folder: Path, peers: str | None) -> dict[str, float]:
    """FreeSurfer's labels hold the ventricles' fluid only: CSF and masks are not compared."""
    image = read_image(folder / "anat" / f"{folder.name}_T1w.nii.gz", folder.name)[0]
    labels = read_image(folder / "anat" / f"{folder.name}_desc-aseg_dseg.nii.gz", folder.name)[0]
    truth = five_tissue.from_labels(labels).values
    anatomy = Image(image.grid, image.values.float())
    row, found, priors = _found(anatomy)
    row.pop("registration")
    by_peers, seconds = _peers(anatomy, found.mask, priors, True, peers)
    row |= seconds
    true = {"GM": truth[0] + truth[1] > 0.5, "WM": truth[2] > 0.5}
    for name, made in {"own": found.labels, "carried": _labels(priors), **by_peers}.items():
        for number, tissue in enumerate(("GM", "WM"), start=1):
            row[f"{name}_{tissue}"] = dice(made == number, true[tissue])
    return row


def _found(image: Image) -> tuple[dict[str, Any], tissue_segmentation.Segmentation, Image]:
    template, mask = load_builtin("T1w", 2.0), load_builtin("mask", 2.0)
    found = register(template, image, fixed_mask=mask)
    maps = (load_builtin(name) for name in ("GM", "WM", "mask"))
    start = time.process_time()
    priors = tissue_segmentation.carried(tissue_segmentation.template_priors(*maps), image.grid, found.inverse())
    segmented = tissue_segmentation.segment(image, priors)
    return {"segmentation_cpu_s": time.process_time() - start, "registration": found}, segmented, priors


def _peers(
    image: Image, mask: Tensor, priors: Image, is_t1w: bool, python: str | None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Labels (grey, white, fluid: 1, 2, 3) of Atropos and of DIPY's classifier inside our mask, and processor seconds."""
    found, seconds, values = {}, {}, image.values[0]
    if python:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            images = {"image": image.values, "mask": mask[None].float()}
            images |= {tissue: priors.values[n : n + 1].float() for n, tissue in enumerate(NAMES)}
            for role, part in images.items():
                write_image(folder / f"{role}.nii.gz", Image(image.grid, part))
            command = [python, str(Path(__file__).with_name("segmentation_ants.py")), str(folder)]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds["peer_atropos_cpu_s"] = float(ran.stdout.split()[-1])
            found["peer_atropos"] = read_image(folder / "labels.nii.gz", "labels")[0].values[0].round().to(torch.int16)
            values = read_image(folder / "corrected.nii.gz", "corrected")[0].values[0]
    if not is_t1w:
        return found, seconds  # DIPY's is made for T1w
    box = tuple(slice(int(along.min()), int(along.max()) + 1) for along in mask.nonzero().T)
    start = time.process_time()
    classes = _by_dipy((values * mask)[box].double().numpy())
    seconds["peer_hmrf_cpu_s"] = time.process_time() - start
    found["peer_hmrf"] = torch.zeros(image.grid.shape, dtype=torch.int16)
    found["peer_hmrf"][box] = torch.from_numpy(classes)
    return found, seconds


def _by_dipy(brain: Any) -> Any:
    """Its classes are in the order of their brightness; the background, which is nought, is none of them."""
    _, classes, _ = TissueClassifierHMRF(verbose=False).classify(brain / brain.max(), 3, 0.1, max_iter=20)
    return np.asarray((0, 3, 1, 2), dtype=np.int16)[classes.astype(int)]


def _anatomical(image: Image, brain: Tensor, registration: Transform) -> dict[str, float]:
    mask = load_builtin("mask", 2.0)
    carried = resample(mask, image.grid, registration.inverse(), "nearest")
    try:
        verdict = anatomical_mask(image, carried)
    except InputDataError:
        return {"voted_mask": 0.0}
    return {"voted_mask": dice(verdict.mask.mask, brain)}


def _labels(priors: Image) -> Tensor:
    return (priors.values.argmax(0) + 1) * (priors.values.sum(0) > 0.5)


def _rmse(difference: Tensor, where: Tensor) -> float:
    return float(difference[where].square().mean().sqrt())


if __name__ == "__main__":
    main()
