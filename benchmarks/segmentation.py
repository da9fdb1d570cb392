"""Brain masks and tissues against exact labels: painted whole heads, and three people with FreeSurfer's labels.

    python benchmarks/segmentation.py [--heads 2] [--people 3] [--output benchmarks/results/segmentation.json]

Heads are label maps painted as T1w, T2w, b=0 and b=1000 (``segmentation_heads.py``). Peers in the same run: the template's tissue
maps and mask carried by the same registration, DIPY's median_otsu, and MRtrix3's dwi2mask.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import segmentation_heads as heads
import torch
from dipy.segment.mask import median_otsu
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
Numbers = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--people", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(os.environ["TRACTODE_TEST_DATA"])
    result: dict[str, Any] = {}
    paths = heads.files(data)[: options.heads]
    result["scan_masks"] = {case: scan_masks(paths, *CASES[case], case == "slab") for case in CASES}
    for contrast in ("T1w", "T2w"):
        result[f"painted_{contrast}"] = summary([painted(path, contrast, n) for n, path in enumerate(paths)])
    folders = sorted((data / "anat_labels").glob("sub-*"))[: options.people]
    result["people_T1w"] = summary([person(folder) for folder in folders])
    command = f"TRACTODE_TEST_DATA=$TRACTODE_TEST_DATA python benchmarks/segmentation.py --heads {options.heads} --people {options.people}"
    result["meta"] = meta(command)
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


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


def scan_masks(paths: list[Path], contrast: str, size: float, is_slab: bool) -> dict[str, Any]:
    rows, passed = [], 0
    for seed, path in enumerate(paths):
        head, weighted = heads.diffusion(path, contrast, seed, size=size)
        if is_slab:
            head, weighted = heads.slab(head, weighted, 0.35, 0.55)
        directions = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
        table = GradientTable(torch.tensor([0.0, 1000.0]), directions, torch.tensor([True, False]))
        scan = DWI(head.image.grid, torch.cat((head.image.values, weighted.values)), table, torch.ones_like(head.brain))
        start = time.process_time()
        verdict = scan_mask(scan, "auto", lambda: (load_builtin("T1w", 2.0), load_builtin("mask", 2.0)))
        row = {"voted": dice(verdict.mask.mask, head.brain), "voted_cpu_s": time.process_time() - start}
        passed += verdict.passed
        quick = scan_mask(scan)
        row["threshold"] = dice(quick.masks["threshold"].mask, head.brain)
        row["surface"] = dice(quick.masks["surface"].mask, head.brain)
        row["peer_median_otsu"] = dice(torch.from_numpy(_otsu(head.image)), head.brain)
        row["peer_dwi2mask"] = dice(_dwi2mask(scan), head.brain)
        rows.append(row)
    return summary(rows) | {"passed": round(passed / len(paths), 3)}


def _otsu(image: Image) -> Any:
    _, mask = median_otsu(image.values[0].numpy(), median_radius=4, numpass=4)
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


def painted(path: Path, contrast: str, seed: int) -> dict[str, float]:
    head = heads.head(path, contrast, seed)
    row, found, priors = _found(head.image)
    for name, labels in (("own", found.labels), ("carried", _labels(priors))):
        for number, tissue in enumerate(NAMES, start=1):
            row[f"{name}_{tissue}"] = dice(labels == number, head.labels == number)
    both = found.mask | head.brain
    for number, tissue in enumerate(NAMES):
        row[f"own_{tissue}_rmse"] = _rmse(found.tissues[number] - head.tissues[number], both)
        row[f"carried_{tissue}_rmse"] = _rmse(priors.values[number] - head.tissues[number], both)
    row["own_mask"] = dice(found.mask, head.brain)
    row["carried_mask"] = dice(priors.values.sum(0) > 0.5, head.brain)
    return row | _anatomical(head.image, head.brain, row.pop("registration"))


def person(folder: Path) -> dict[str, float]:
    """FreeSurfer's labels hold the ventricles' fluid only: CSF and masks are not compared."""
    image = read_image(folder / "anat" / f"{folder.name}_T1w.nii.gz", folder.name)[0]
    labels = read_image(folder / "anat" / f"{folder.name}_desc-aseg_dseg.nii.gz", folder.name)[0]
    truth = five_tissue.from_labels(labels).values
    row, found, priors = _found(Image(image.grid, image.values.float()))
    row.pop("registration")
    true = {"GM": truth[0] + truth[1] > 0.5, "WM": truth[2] > 0.5}
    for name, made in (("own", found.labels), ("carried", _labels(priors))):
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
