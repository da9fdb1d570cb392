"""Susceptibility correction from an anatomical image alone: part of distortion.py, which says what is measured."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from tractode.fields import Affine, Image, ImageGrid
from tractode.fields.transform import resample
from tractode.io.builtin_template import load_builtin
from tractode.ops import epi, smooth
from tractode.preprocess.mask import brain_mask
from tractode.registration.affine import register_affine
from tractode.registration.anatomy_field import estimate_field_from_anatomy
from tractode.registration.optimise import register
from tractode.registration.refine import refine
from tractode.registration.reverse_encoding import EncodedScan, estimate_field, undistort
from tractode.simulate.head_field import SINUSES
from tractode.simulate.susceptibility import field_of_air, shimmed

ANTS = {"ants_syn_mattes": "mattes"}


@dataclass(frozen=True, eq=False)
class Scene:
    """A scan (and its opposite), an anatomy with its brain, and a pose to start from."""

    scan: EncodedScan
    opposite: EncodedScan
    anatomy: Image
    brain: Image
    pose: Affine


def still(source: Image, target: Image) -> Affine:
    return Affine(torch.eye(4, dtype=torch.float64), source.grid.space, target.grid.space)


def start(anatomy: Image, brain: Image, scan: Image) -> Affine:
    """As the app finds it: by mutual information or from the scanner's own alignment, refined by descriptors."""
    searched = register_affine(anatomy, scan, dof="rigid", fixed_mask=brain, moving_mask=brain_mask(scan))
    return refine(anatomy, scan, [still(anatomy, scan), searched], fixed_mask=brain)


def fields(scene: Scene, peers: str | None) -> dict[str, tuple[Tensor, Affine, float]]:
    """Of every method: Hz on the scan's grid, the pose that goes with it, processor seconds."""
    zero, found = torch.zeros(scene.scan.image.grid.shape), {}
    found["uncorrected"] = (zero, scene.pose, 0.0)
    begun = time.process_time()
    pair = estimate_field((scene.scan, scene.opposite)).field.values[0]
    found["reversed_pair"] = (pair, scene.pose, time.process_time() - begun)
    begun = time.process_time()
    own = estimate_field_from_anatomy(
        scene.scan, scene.anatomy, pose=scene.pose, scan_mask=brain_mask(scene.scan.image), anatomy_mask=scene.brain
    )
    found["anatomy"] = (own.field.values[0], own.motions[1].inverse(), time.process_time() - begun)
    for name, metric in ANTS.items() if peers else ():
        begun = sum(os.times()[2:4])  # of children
        hz = by_ants(scene, metric, str(peers))
        found[name] = (hz, scene.pose, sum(os.times()[2:4]) - begun)
    return found


def by_ants(scene: Scene, metric: str, peers: str) -> Tensor:
    """Hz by SyN restricted to the encoding's axis, everything on the scan's voxels laid upright."""
    scan, grid = scene.scan, scene.scan.image.grid
    points = scene.pose.inverse().map(grid.centres())
    inside = Image(scene.brain.grid, scene.brain.mask[None].float()).sample(points)[..., 0] > 0.5
    brain = scene.anatomy.sample(points)[..., 0] * inside
    sizes = grid.voxel_sizes
    i, j, k = (round(6 / size) for size in sizes)
    upright = np.diag([*sizes, 1.0])
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder) / f"{name}.nii.gz") for name in ("fixed", "moving", "mask")]
        for name, values in zip(names, (brain, scan.image.values[0], smooth.dilate(inside, (i, j, k))), strict=True):
            nib.save(nib.Nifti1Image(values.float().numpy(), upright), name)
        output = str(Path(folder) / "moved.npy")
        script = str(Path(__file__).with_name("distortion_ants.py"))
        subprocess.run([peers, script, *names, str(scan.axis), metric, output], check=True, capture_output=True)
        moved = torch.from_numpy(np.load(output)).float()
    return moved / sizes[scan.axis] / (scan.sign * scan.readout)


def landing(hz: Tensor, pose: Affine, grid: ImageGrid, points: Tensor, scan: EncodedScan) -> Tensor:
    """Where points of the anatomy are seen in the scan, mm along the encoding."""
    there = pose.map(points)
    seen = there + Image(grid, hz[None]).sample(there.float(), outside="nearest").double() * scan.direction
    return seen @ (scan.direction / scan.direction.norm())


def errors(found: Tensor, truth: Tensor, inside: Tensor) -> dict[str, float]:
    """Hz, less the constant that a shift along the encoding leaves open."""
    off = (found - truth)[inside]
    off = (off - off.median()).abs()
    both = torch.stack((found[inside], truth[inside]))
    return {
        "error_median_hz": float(off.median()),
        "error_p95_hz": float(off.quantile(0.95)),
        "correlation": float(torch.corrcoef(both)[0, 1]) if bool(found.any()) else 0.0,
    }


# --- known fields -----------------------------------------------------------------------------------------------------


def simulated(kind: str, noise: float, seed: int, peers: str | None) -> dict[str, dict[str, float]]:
    """The built-in template's tissues as T1w or T2w and as b=0, shaded, in the field of the air below the brain."""
    from distortion import READOUT, oblique, small_motion

    generator = torch.Generator().manual_seed(seed)
    grey, white, t1w = (load_builtin(name, 2.0) for name in ("GM", "WM", "T1w"))
    brain = (t1w.values > 0.15 * t1w.values.amax()).float()
    fluid = (brain - grey.values - white.values).clamp(0, 1) * brain
    b0 = 0.6 * white.values + 0.85 * grey.values + 1.6 * fluid
    contrast = t1w.values.float() if kind == "T1w" else 0.5 * white.values + 0.8 * grey.values + 1.7 * fluid
    contrast = contrast / contrast[brain > 0].mean()
    contrast = contrast + noise * torch.randn(contrast.shape, generator=generator)
    anatomy = Image(ImageGrid(t1w.grid.shape, t1w.grid.affine, "anatomy"), contrast)
    grid = oblique()
    points = grid.centres()
    middle = points.reshape(-1, 3).mean(0).double()
    motion = Affine(small_motion(generator, middle), "anatomy", "scan")
    real = motion.inverse().map(points)
    tissue = Image(anatomy.grid, torch.cat([brain, b0])).sample(real)
    inside = tissue[..., 0] > 0.5
    truth = shimmed(field_of_air(real, torch.tensor([0.0, 0.0, 1.0]), SINUSES), real, inside.float())
    unit = (points - middle.float()) / 80
    shade = torch.exp(0.3 * (unit[..., 1] - 0.5 * unit[..., 2] + unit[..., 0] * unit[..., 1]))
    scans = []
    for sign in (1, -1):
        moved = epi.distorted((tissue[..., 1] * shade)[None], epi.shift_vox(truth, sign, READOUT), 1)
        noisy = (moved + noise * torch.randn(moved.shape, generator=generator)).abs()
        scans.append(EncodedScan(Image(grid, noisy), 1, sign, READOUT))
    mask = Image(anatomy.grid, brain > 0)
    scene = Scene(scans[0], scans[1], anatomy, mask, start(anatomy, mask, scans[0].image))
    at = real[inside].double()
    wanted = landing(truth, motion, grid, at, scans[0])
    result = {}
    for name, (hz, pose, seconds) in fields(scene, peers).items():
        apart = landing(hz, pose, grid, at, scans[0]) - wanted
        if name == "reversed_pair":  # the pair knows nothing of the anatomy
            apart = apart - apart.median()
        result[name] = errors(hz, truth, inside) | {
            "landing_mean_mm": float(apart.abs().mean()),
            "landing_p95_mm": float(apart.abs().quantile(0.95)),
            "seconds": seconds,
        }
    return result


# --- a real session ---------------------------------------------------------------------------------------------------


def real(
    anatomy: Image,
    brain: Image | None,
    scans: dict[str, EncodedScan],
    ways: Sequence[str],
    mapped: Image,
    bright: Image,
    peers: str | None,
    picture: Path | None,
) -> dict[str, dict[str, Any]]:
    """Scans of the session, each corrected by every method alone."""
    brain = brain or brain_of(anatomy)
    edge = surface(anatomy, brain)
    result: dict[str, dict[str, Any]] = {}
    for name in ways:
        scan, opposite = scans[name], scans["PA" if name == "AP" else "AP"]
        grid = scan.image.grid
        scene = Scene(scan, opposite, anatomy, brain, start(anatomy, brain, scan.image))
        found = fields(scene, peers)
        points = grid.centres()
        phasediff = mapped.sample(points, outside="nearest")[..., 0]
        found["phasediff"] = (phasediff, scene.pose, 0.0)
        lit = bright.sample(points)[..., 0]
        inside = brain_mask(scan.image).mask & (lit > 0.3 * lit.quantile(0.98))
        pair = found["reversed_pair"][0]
        corrected = {m: undistort(scan, Image(grid, hz[None])) for m, (hz, _, _) in found.items()}
        # One way to the pose for all: refined on what each method made of the scan.
        poses = {m: refine(anatomy, image, [scene.pose], fixed_mask=brain) for m, image in corrected.items()}
        at = poses["reversed_pair"].inverse().map(points[inside].double())
        wanted = landing(pair, poses["reversed_pair"], grid, at, scan)
        result[name] = {}
        for method, (hz, pose, seconds) in found.items():
            own = poses[method] if method != "anatomy" else pose
            apart = landing(hz, own, grid, at, scan) - wanted
            result[name][method] = {
                "against_phasediff": errors(hz, phasediff, inside),
                "against_reversed_pair": errors(hz, pair, inside),
                "landing_mean_mm": float(apart.abs().mean()),
                "landing_p95_mm": float(apart.abs().quantile(0.95)),
                "boundary": boundary(corrected[method], poses[method], edge),
                "seconds": seconds,
            }
        if picture is not None and name == "AP":
            shown = ("uncorrected", "anatomy", "reversed_pair")
            draw(anatomy, brain, [(m, resample(corrected[m], anatomy.grid, poses[m])) for m in shown], picture)
    return result


def brain_of(anatomy: Image) -> Image:
    """The template's brain, carried to the anatomy by a flow."""
    template = load_builtin("T1w", 2.0)
    inside = Image(template.grid, template.values > 0.15 * template.values.amax())
    affine = register_affine(anatomy, template, moving_mask=inside)
    flow = register(anatomy, template, moving_mask=inside, initial=affine)
    near = Image(inside.grid, inside.values.float()).sample(flow.map(anatomy.grid.centres()))[..., 0] > 0.5
    closed = ~smooth.dilate(~smooth.dilate(near, (2, 2, 2)), (2, 2, 2))
    return Image(anatomy.grid, closed[None])


@dataclass(frozen=True, eq=False)
class Surface:
    """Points between white and grey matter (mm) and unit normals, from white to grey."""

    points: Tensor
    normals: Tensor


def surface(anatomy: Image, brain: Image) -> Surface:
    """Where the T1w crosses half way from grey to white inside the brain (8 mm and more below its rim), from one voxel to the next."""
    values, inside = anatomy.values[0].float(), brain.mask
    sizes = anatomy.grid.voxel_sizes
    i, j, k = (round(6 / size) for size in sizes)
    deep = ~smooth.dilate(~inside, (i, j, k))
    widths = tuple(15.0 / size for size in sizes)
    pair = smooth.gaussian(torch.stack([values * inside, inside.float()]), (widths[0], widths[1], widths[2]))
    even = values / (pair[0] / pair[1].clamp_min(1e-3)).clamp_min(1e-6)
    levels = even[inside].quantile(torch.tensor([0.1, 0.5, 0.9]))
    for _ in range(20):  # three means
        nearest = (even[inside][:, None] - levels).abs().argmin(1)
        levels = torch.stack([even[inside][nearest == n].mean() for n in range(3)])
    grey_white = (even - levels[1]) / (levels[2] - levels[1])
    points, normals = [], []
    slopes = torch.stack(torch.gradient(smooth.gaussian(grey_white[None], (0.7, 0.7, 0.7))[0]), dim=-1)
    world = slopes @ torch.linalg.inv(anatomy.grid.affine[:3, :3]).float()
    world = -world / world.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    for axis in range(3):
        n = values.shape[axis]
        a, b = grey_white.narrow(axis, 0, n - 1), grey_white.narrow(axis, 1, n - 1)
        between = ((a - 0.5) * (b - 0.5) < 0) & (torch.minimum(a, b) > -0.5) & deep.narrow(axis, 0, n - 1)
        index = between.nonzero()
        share = ((0.5 - a[between]) / (b[between] - a[between]))[:, None]
        ahead = torch.zeros(3)
        ahead[axis] = 1.0
        points.append(anatomy.grid.to_world(index + share * ahead))
        normals.append(world[tuple(index.T)])
    return Surface(torch.cat(points), torch.cat(normals))


def boundary(scan: Image, pose: Affine, edge: Surface) -> dict[str, float]:
    """Boundary-based cost (Greve & Fischl 2009): contrast of b=0 across the T1w's border of white matter, 2 mm to either side.

    ``cost`` is the mean of ``1 − tanh(Q/20)``, Q being grey less white over their mean in percent (a b=0 image has grey
    brighter); ``right_way_round`` the share of points with grey brighter; ``contrast`` the median of Q/100.
    """
    grey, white = (
        scan.sample(pose.map(edge.points + side * edge.normals).float(), outside="nearest")[..., 0].double()
        for side in (2.0, -2.0)
    )
    contrast = (grey - white) / (0.5 * (grey + white)).clamp_min(1e-6)
    return {
        "n": len(contrast),
        "cost": float((1 - torch.tanh(5 * contrast)).mean()),
        "right_way_round": float((contrast > 0).double().mean()),
        "contrast": float(contrast.median()),
    }


def draw(anatomy: Image, brain: Image, shown: list[tuple[str, Image]], path: Path) -> None:
    """The T1w's outlines over what b=0 becomes: sagittal and axial."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {"uncorrected": "as acquired", "anatomy": "by the T1w alone", "reversed_pair": "by the reversed pair"}
    inside = brain.mask.numpy()
    low, high = (np.flatnonzero(inside.any((1, 2)))[[0, -1]], np.flatnonzero(inside.any((0, 1)))[[0, -1]])
    cuts = ((0, int(low.mean()) + 3), (2, int(high[0] + 0.36 * (high[1] - high[0]))))
    figure, axes = pyplot.subplots(2, 3, figsize=(7.5, 5.6), facecolor="black")
    sizes = anatomy.grid.voxel_sizes
    edges = (anatomy.values[0] / anatomy.values[0][brain.mask].mean()).numpy()
    for column, (name, image) in enumerate(shown):
        for row, (axis, at) in enumerate(cuts):
            plane = [n for n in range(3) if n != axis]
            aspect = sizes[plane[1]] / sizes[plane[0]]
            take = [
                np.take(a, at, axis=axis).T for a in (image.values[0].numpy(), inside.astype(float), edges * inside)
            ]
            axis_ = axes[row, column]
            top = np.quantile(take[0][take[1] > 0.5], 0.98)
            axis_.imshow(take[0], cmap="gray", origin="lower", vmin=0, vmax=1.1 * top, aspect=aspect)
            axis_.contour(take[1], [0.5], colors="#ff5252", linewidths=0.8)
            axis_.contour(take[2], [1.1], colors="#ffd54f", linewidths=0.35)
            axis_.set_axis_off()
            if row == 0:
                axis_.set_title(titles[name], color="white", fontsize=9)
    figure.subplots_adjust(0, 0, 1, 0.95, 0.02, 0.02)
    figure.savefig(path, dpi=90, facecolor="black")
    pyplot.close(figure)
