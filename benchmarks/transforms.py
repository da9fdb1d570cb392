"""Transforms in the world: what ANTs does with the files written here, and what MRtrix3 does with the same FODs.

``ants``: an affine, a smooth and a rough displacement, a flow, and a chain of flow and affine, on oblique grids of both hands, are written
as composite .h5 and as warp NIfTI. ANTs resamples three ramps with them (the images of the voxel indices i, j, k, so a difference
is a displacement in voxels), labels (nearest and generic) and maps points; the same is done here with the transform before it was
written (``original``) and with the file read again (``file``). Voxels nearer than one voxel to the border of the moving image are
left out: beyond the outermost centres ANTs repeats the border for half a voxel, and here it fades. ``ants_files``: an affine .mat and a warp that ANTs wrote. ``mrtrix``: reorientation of FODs.

    python benchmarks/transforms.py --peers PEERS/bin/python --output benchmarks/results/transforms.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import nibabel as nib
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from tractode.fields import Affine, Chain, Displacement, Flow, Image, ImageGrid, ShField, Transform, VelocityField
from tractode.fields.reorient import reoriented
from tractode.fields.transform import resample
from tractode.io.nifti import read_image, write_image
from tractode.io.transforms import read_transform, write_itk, write_warp
from tractode.ops import reorient_fod, smooth, sphere
from tractode.ops import spherical_harmonics as sh

CENTRE = torch.tensor([12.0, -31.0, 18.0], dtype=torch.float64)
N_POINTS, N_LABELS = 2000, 6

# Run by the interpreter that has ANTs: resampling of images, mapping of points (LPS), and files of its own.
_ANTS = """
import json, sys, ants, numpy as np, pandas as pd
folder, cases = sys.argv[1], json.loads(sys.argv[2])
fixed = ants.image_read(f"{folder}/fixed.nii.gz")
points = pd.DataFrame(np.load(f"{folder}/points.npy") * [-1, -1, 1], columns=list("xyz"))
for case in cases:
    files = [f"{folder}/{case}"]
    for axis in "ijk":
        moving = ants.image_read(f"{folder}/ramp_{axis}.nii.gz")
        ants.image_write(ants.apply_transforms(fixed, moving, files, interpolator="linear"), f"{folder}/{case}.{axis}.nii.gz")
    labels = ants.image_read(f"{folder}/labels.nii.gz")
    for how in ("nearestNeighbor", "genericLabel"):
        ants.image_write(ants.apply_transforms(fixed, labels, files, interpolator=how), f"{folder}/{case}.{how}.nii.gz")
    mapped = ants.apply_transforms_to_points(3, points, files).to_numpy()[:, :3] * [-1, -1, 1]
    np.save(f"{folder}/{case}.points.npy", mapped)
matrix = np.array(json.loads(sys.argv[3]))
own = ants.create_ants_transform(transform_type="AffineTransform", matrix=matrix[:3, :3], translation=matrix[:3, 3], center=[4, -7, 11])
ants.write_transform(own, f"{folder}/own_0GenericAffine.mat")
field = np.random.default_rng(3).normal(size=(*fixed.shape, 3))
warp = ants.from_numpy(field, origin=fixed.origin, spacing=fixed.spacing, direction=fixed.direction, has_components=True)
ants.image_write(ants.smooth_image(warp, 4), f"{folder}/own_1Warp.nii.gz")
both = [f"{folder}/own_1Warp.nii.gz", f"{folder}/own_0GenericAffine.mat"]
for name, files in (("mat", both[1:]), ("warp", both[:1])):
    mapped = ants.apply_transforms_to_points(3, points, files).to_numpy()[:, :3] * [-1, -1, 1]
    np.save(f"{folder}/own_{name}.points.npy", mapped)
"""


def grid(
    shape: tuple[int, int, int], sizes: tuple[float, float, float], turn: list[float], flip: bool, space: str
) -> ImageGrid:
    """An oblique grid about the common centre; ``flip`` reverses its first axis, which makes it left-handed."""
    linear = torch.from_numpy(Rotation.from_euler("xyz", turn, degrees=True).as_matrix()) @ torch.diag(
        torch.tensor(sizes).double()
    )
    if flip:
        linear[:, 0] *= -1
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = linear
    affine[:3, 3] = CENTRE - linear @ (torch.tensor(shape).double() - 1) / 2
    return ImageGrid(shape, affine, space)


FIXED = grid((58, 52, 47), (2.0, 2.3, 2.6), [17.0, -9.0, 24.0], True, "fixed")
MOVING = grid((61, 57, 50), (2.1, 2.1, 2.4), [-6.0, 11.0, -38.0], False, "moving")


def affine(source: str, target: str) -> Affine:
    linear = torch.eye(3, dtype=torch.float64) + torch.tensor(
        [[0.05, 0.12, -0.06], [-0.15, -0.05, 0.07], [0.06, 0.0, 0.04]]
    )
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3], matrix[:3, 3] = linear, CENTRE - linear @ CENTRE + torch.tensor([3.0, -4.0, 2.0])
    return Affine(matrix, source, target)


def noise(on: ImageGrid, sigma: float, size: float, seed: int) -> torch.Tensor:
    """Random vectors, smoothed by ``sigma`` voxels and scaled to a root mean square of ``size`` mm; 0 at the border."""
    values = torch.randn(3, *on.shape, generator=torch.Generator().manual_seed(seed))
    values = smooth.gaussian(values, (sigma,) * 3)
    values = values * (size / values.square().mean().sqrt() / 3**0.5)
    edge = [torch.minimum(torch.arange(n), torch.arange(n).flip(0)).clamp(max=4) / 4 for n in on.shape]
    return values * edge[0][:, None, None] * edge[1][:, None] * edge[2]


def flow(source: str, target: str) -> Flow:
    nodes = grid((34, 34, 34), (4.0, 4.0, 4.0), [17.0, -9.0, 24.0], True, source)
    return Flow(VelocityField(nodes, noise(nodes, 3.0, 4.0, 7)[None]), source, target)


def transforms() -> dict[str, Transform]:
    rough, smooth_one = noise(FIXED, 1.0, 2.0, 1), noise(FIXED, 5.0, 5.0, 2)
    return {
        "affine": affine("fixed", "moving"),
        "smooth_warp": Displacement(FIXED, smooth_one, "fixed", "moving"),
        "rough_warp": Displacement(FIXED, rough, "fixed", "moving"),
        "flow": flow("fixed", "moving"),
        "flow_then_affine": Chain((flow("fixed", "x"), affine("x", "moving"))),
        "affine_then_flow": Chain((affine("fixed", "x"), flow("x", "moving"))),
    }


def labels_of(on: ImageGrid) -> Image:
    """Blobs of labels: where each of some smooth random images is the largest."""
    values = torch.randn(N_LABELS + 1, *on.shape, generator=torch.Generator().manual_seed(4))
    return Image(on, smooth.gaussian(values, (2.5,) * 3).argmax(0, keepdim=True).to(torch.int32))


def compare_with_ants(peers: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    index = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in MOVING.shape), indexing="ij"))
    labels = labels_of(MOVING)
    write_image(folder / "fixed.nii.gz", Image(FIXED, torch.ones(1, *FIXED.shape)), sform_code=1)
    write_image(folder / "labels.nii.gz", labels, sform_code=1)
    for axis, values in zip("ijk", index, strict=True):
        write_image(folder / f"ramp_{axis}.nii.gz", Image(MOVING, values[None]), sform_code=1)
    inner = torch.rand(N_POINTS, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    points = FIXED.to_world(2 + inner * (torch.tensor(FIXED.shape).double() - 5))
    np.save(folder / "points.npy", points.numpy())
    cases: dict[str, tuple[str, str]] = {}
    for name, transform in transforms().items():
        write_itk(folder / f"{name}.h5", transform, FIXED)
        write_warp(folder / f"{name}_Warp.nii.gz", transform, FIXED)
        cases |= {f"{name}.h5": (name, "h5"), f"{name}_Warp.nii.gz": (name, "warp")}
    own = affine("a", "b").matrix.tolist()
    subprocess.run([peers, "-c", _ANTS, str(folder), json.dumps(list(cases)), json.dumps(own)], check=True)
    found: dict[str, Any] = {}
    for file, (name, kind) in cases.items():
        whole = transforms()[name]
        again = read_transform(folder / file, "fixed", "moving")
        found.setdefault(name, {})[kind] = one_case(
            folder, file, {"original": whole, "file": again}, index, labels, points
        )
    theirs = {}
    for name, file in (("mat", "own_0GenericAffine.mat"), ("warp", "own_1Warp.nii.gz")):
        mapped = read_transform(folder / file, "fixed", "moving").map(points).numpy()
        theirs[name] = spread(np.linalg.norm(mapped - np.load(folder / f"own_{name}.points.npy"), axis=1), "points_mm")
    return found, theirs


def one_case(
    folder: Path, file: str, ways: dict[str, Transform], index: torch.Tensor, labels: Image, points: torch.Tensor
) -> dict[str, Any]:
    theirs = np.concatenate([read_image(folder / f"{file}.{axis}.nii.gz", "fixed")[0].values.numpy() for axis in "ijk"])
    nearest, generic = (
        read_image(folder / f"{file}.{how}.nii.gz", "fixed")[0].values[0].numpy()
        for how in ("nearestNeighbor", "genericLabel")
    )
    their_points = np.load(folder / f"{file}.points.npy")
    result: dict[str, Any] = {}
    for way, transform in ways.items():
        voxel = MOVING.to_voxel(transform.map(FIXED.centres(torch.float64)))
        inside = ((voxel > 1) & (voxel < torch.tensor(MOVING.shape) - 2)).all(-1).numpy()
        ours = resample(Image(MOVING, index), FIXED, transform).values.numpy()
        one_hot = torch.stack([(labels.values[0] == n).float() for n in range(N_LABELS + 1)])
        votes = resample(Image(MOVING, one_hot), FIXED, transform).values
        top = votes.topk(2, dim=0).values
        clear = inside & ((top[0] - top[1]) > 0.02).numpy()
        away = inside & ((voxel - voxel.floor() - 0.5).abs() > 0.01).all(-1).numpy()
        our_nearest = resample(labels, FIXED, transform, "nearest").values[0].numpy()
        gap = np.linalg.norm(transform.map(points).numpy() - their_points, axis=1)
        result[way] = {
            "images_voxels": spread(np.linalg.norm(ours - theirs, axis=0)[inside], ""),
            "labels_nearest": {"share_different": share(our_nearest != nearest, away), "n": int(away.sum())},
            "labels_generic": {
                "share_different": share(votes.argmax(0).numpy() != generic, clear),
                "n": int(clear.sum()),
            },
            "points_voxels": spread(gap / min(FIXED.voxel_sizes), ""),
        }
    return result


def share(differs: np.ndarray, where: np.ndarray) -> float:
    return float(differs[where].mean())


def spread(values: np.ndarray, prefix: str) -> dict[str, Any]:
    named = {"median": float(np.median(values)), "p99": float(np.percentile(values, 99)), "max": float(values.max())}
    lead = f"{prefix}_" if prefix else ""
    return {**{f"{lead}{key}": round(value, 7) for key, value in named.items()}, "n": len(values)}


# --- FODs, beside MRtrix3 -------------------------------------------------------------------------------------------


def fods(on: ImageGrid) -> ShField:
    """Two fibres a voxel whose directions and shares change smoothly over the grid."""
    generator = torch.Generator().manual_seed(9)
    directions = (
        smooth.gaussian(torch.randn(6, *on.shape, generator=generator), (4.0,) * 3).movedim(0, -1).unflatten(-1, (2, 3))
    )
    directions = directions / directions.norm(dim=-1, keepdim=True)
    share_ = smooth.gaussian(torch.randn(1, *on.shape, generator=generator), (3.0,) * 3)[0].sigmoid()
    coeffs = reorient_fod.point_spread(directions.double(), 8)
    values = share_[..., None] * coeffs[..., 0, :] + (1 - share_[..., None]) * coeffs[..., 1, :]
    return ShField(on, values.movedim(-1, 0).float().contiguous(), 8)


def compare_with_mrtrix(folder: Path) -> dict[str, Any]:
    moving = grid((28, 26, 24), (2.0, 2.3, 2.6), [17.0, -9.0, 24.0], True, "moving")
    fixed = grid((12, 12, 10), (2.2, 2.2, 2.4), [-6.0, 11.0, -38.0], False, "fixed")
    field = fods(moving)
    write_image(folder / "fod.nii.gz", Image(moving, field.coeffs), sform_code=1)
    write_image(folder / "grid.nii.gz", Image(fixed, torch.ones(1, *fixed.shape)), sform_code=1)
    rigid = torch.eye(4, dtype=torch.float64)
    turn = torch.from_numpy(Rotation.from_rotvec([0.2, -0.3, 0.4]).as_matrix())
    rigid[:3, :3], rigid[:3, 3] = turn, CENTRE - turn @ CENTRE
    warp = Displacement(fixed, noise(fixed, 3.0, 3.0, 6), "fixed", "moving")
    result: dict[str, Any] = {}
    for name, transform in (
        ("rigid", Affine(rigid, "fixed", "moving")),
        ("affine", affine("fixed", "moving")),
        ("warp", warp),
    ):
        option = written_for_mrtrix(folder, transform, fixed)
        for modulation, theirs_is in (("none", []), ("fod", ["-modulate", "fod"]), ("jacobian", ["-modulate", "jac"])):
            command = [
                "mrtransform",
                "-quiet",
                "-force",
                "-nthreads",
                "1",
                *option,
                "-template",
                str(folder / "grid.nii.gz"),
                "-reorient_fod",
                "yes",
                "-strides",
                "1,2,3,4",
                "-interp",
                "linear",
                *theirs_is,
                str(folder / "fod.nii.gz"),
                str(folder / "out.nii"),
            ]
            started = time.perf_counter()
            subprocess.run(command, check=True)
            theirs_seconds = time.perf_counter() - started
            started = time.perf_counter()
            ours = reoriented(field, fixed, transform, modulation=modulation)  # type: ignore[arg-type]
            seconds = time.perf_counter() - started
            stored = nib.load(folder / "out.nii")
            if not np.allclose(stored.affine, fixed.affine.numpy(), atol=1e-3):
                raise RuntimeError("MRtrix3 stored its axes in another order than the grid's")
            theirs = torch.from_numpy(stored.get_fdata(dtype=np.float32)).movedim(-1, 0)
            result.setdefault(name, {})[modulation] = {
                **fod_difference(ours.coeffs, theirs, fixed, moving, transform),
                "seconds": round(seconds, 2),
                "mrtransform_seconds": round(theirs_seconds, 2),
            }
    return result


def written_for_mrtrix(folder: Path, transform: Transform, fixed: ImageGrid) -> list[str]:
    if isinstance(transform, Affine):
        np.savetxt(folder / "linear.txt", transform.matrix.numpy())
        # Without oversampling: that would smooth where the voxels differ in size.
        return ["-linear", str(folder / "linear.txt"), "-oversample", "1"]
    positions = transform.map(fixed.centres(torch.float64)).movedim(-1, 0).float()
    write_image(folder / "positions.nii.gz", Image(fixed, positions), sform_code=1)
    return ["-warp", str(folder / "positions.nii.gz")]


def fod_difference(
    ours: torch.Tensor, theirs: torch.Tensor, fixed: ImageGrid, moving: ImageGrid, transform: Transform
) -> dict[str, Any]:
    """Relative difference of the coefficients and the angle between the largest peaks, inside both grids."""
    voxel = moving.to_voxel(transform.map(fixed.centres(torch.float64)))
    inside = ((voxel > 1) & (voxel < torch.tensor(moving.shape) - 2)).all(-1)
    inside[[0, -1]] = inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
    a, b = ours.movedim(0, -1)[inside].double(), theirs.movedim(0, -1)[inside].double()
    relative = (a - b).norm(dim=-1) / b.norm(dim=-1)
    # From the same start, or the larger of two equal peaks would be one here and the other there.
    spread_out = sphere.directions(2500)
    start = spread_out[(b @ sh.basis(spread_out, 8).mT).argmax(-1)]
    apart = torch.rad2deg(sphere.angle(climbed(a, start), climbed(b, start)))
    return {
        "relative_difference": {
            "median": round(float(relative.median()), 6),
            "p99": round(float(relative.quantile(0.99)), 6),
        },
        "integral_ratio": {
            "median": round(float((a[:, 0] / b[:, 0]).median()), 6),
            "p99_off": round(float((a[:, 0] / b[:, 0] - 1).abs().quantile(0.99)), 6),
        },
        "peak_degrees": {
            "median": round(float(apart.median()), 4),
            "p99": round(float(apart.quantile(0.99)), 4),
            "max": round(float(apart.max()), 3),
        },
        "n": len(a),
    }


def climbed(coeffs: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """The peaks that steepest ascent reaches."""
    for _ in range(40):
        best = best.requires_grad_(True)
        amplitude = (sh.basis(best / best.norm(dim=-1, keepdim=True), 8) * coeffs).sum(-1)
        (slope,) = torch.autograd.grad(amplitude.sum(), best)
        best = (best + 0.02 * slope / amplitude[:, None].abs()).detach()
        best = best / best.norm(dim=-1, keepdim=True)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, help="a Python that has antspyx")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"meta": measure.meta("python benchmarks/transforms.py --peers PYTHON")}
    with tempfile.TemporaryDirectory() as name:
        result["ants"], result["ants_files"] = compare_with_ants(arguments.peers, Path(name))
        if shutil.which("mrtransform"):
            result["mrtrix"] = compare_with_mrtrix(Path(name))
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
