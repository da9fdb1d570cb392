"""EuDX line by line against DIPY's, for `tracking_fidelity.py`: entries of its result file under ``eudx``.

Both programs get the same peaks (`peak_field` of the FOD, as many-valued vertices for DIPY), mask, seeds and first
directions: the largest peak of each seed's voxel. Lines are paired by their seeds. DIPY lets nothing vote beyond the
outermost voxel centres, we let these vote in its place: ``bordered`` is ours with a voxel of nothing around the image.
Limits of length decide nothing here: DIPY counts one step less for the least, and drops what we cut at the greatest.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from tractode.evaluate.agreement import compare_lines
from tractode.fields import Image, ImageGrid, PeakField, ShField, Streamlines
from tractode.io.nifti import read_image
from tractode.tracking.eudx import EuDX, starts_at_peaks
from tractode.tracking.peak_field import peak_field
from tractode.tracking.seeds import seeds_in_mask

STEP, LEAST, MOST = 0.5, 20.0, 1000.0  # mm


def eudx(fod: Path, mask: Path, n: int) -> dict[str, Any]:
    """``n`` seeds in the mask."""
    image, _ = read_image(fod, "dwi")
    inside, _ = read_image(mask, "dwi")
    inside = Image(inside.grid, inside.values > 0.5)
    peaks = peak_field(ShField(image.grid, image.values.double(), 8), n_peaks=3)
    seeds = seeds_in_mask(inside, n, torch.Generator().manual_seed(0)).double()
    at, towards, number = starts_at_peaks(peaks, seeds)
    chosen = torch.cat((number.new_ones(1, dtype=torch.bool), number.diff() > 0))  # peaks come largest first
    at, towards = at[chosen], towards[chosen]
    theirs = _dipy(peaks, inside, at, towards)
    tracker = EuDX(step_mm=STEP, min_length=LEAST - STEP, max_length=MOST)
    found = {}
    for name, (field, where) in {"ours": (peaks, inside), "bordered": _bordered(peaks, inside)}.items():
        lines = Streamlines.concatenate(list(tracker.track(field, at, where, directions=towards)), "dwi")
        agreement = compare_lines(lines, theirs)
        found[name] = {
            "n": agreement.n,
            "missing": agreement.n_missing,
            "within_0_1_mm": agreement.share_within_01mm,
            "within_1_mm": agreement.share_within_1mm,
        }
    return {"n_seeds": len(at), "lines_of_dipy": len(theirs), **found}


def _dipy(peaks: PeakField, mask: Image, at: Tensor, towards: Tensor) -> Streamlines:
    from dipy.tracking.stopping_criterion import BinaryStoppingCriterion
    from dipy.tracking.tracker import eudx_tracking

    affine = peaks.grid.affine.double()
    axes = affine[:3, :3] / affine[:3, :3].norm(dim=0)
    vertices = peaks.directions.double().permute(2, 3, 4, 0, 1) @ axes  # DIPY's directions run along the voxels' axes
    vertices[(vertices == 0).all(-1)] = torch.tensor([1.0, 0, 0], dtype=torch.float64)  # never looked at: amplitude 0
    k = len(peaks.amplitudes)
    pam = SimpleNamespace(
        peak_indices=np.arange(vertices[..., 0].numel(), dtype=np.int32).reshape(*peaks.grid.shape, k),
        peak_values=peaks.amplitudes.double().permute(1, 2, 3, 0).numpy().copy(),
        odf_vertices=vertices.reshape(-1, 3).numpy().copy(),
    )
    made = list(eudx_tracking(
        at.numpy().copy(), BinaryStoppingCriterion(mask.mask.numpy().astype(np.uint8)), affine.numpy().copy(),
        seed_directions=(towards @ axes).numpy().copy(), pam=pam, min_len=LEAST, max_len=MOST, step_size=STEP,
        max_angle=60, pmf_threshold=0.1, nbr_threads=1, random_seed=1, save_seeds=True,
    ))  # fmt: skip
    lines = Streamlines.from_list([torch.from_numpy(np.asarray(line)).double() for line, _ in made], "dwi")
    _, number = cKDTree(at.numpy()).query(np.stack([seed for _, seed in made]))
    return Streamlines(lines.points, lines.offsets, "dwi", {}, {"seed": torch.from_numpy(number).long()})


def _bordered(peaks: PeakField, mask: Image) -> tuple[PeakField, Image]:
    affine = peaks.grid.affine.clone()
    affine[:3, 3] -= affine[:3, :3].sum(1)
    i, j, k = peaks.grid.shape
    grid = ImageGrid((i + 2, j + 2, k + 2), affine, peaks.grid.space)
    wider = [
        torch.nn.functional.pad(t, (1,) * 6) for t in (peaks.directions, peaks.amplitudes, mask.values.to(torch.uint8))
    ]
    return PeakField(grid, wider[0], wider[1]), Image(grid, wider[2] > 0)
