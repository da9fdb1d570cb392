"""Refining a pose: known poses between shaded contrasts, where mutual information goes astray; real scans from two starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tractode.fields import Affine, Image, ImageGrid
from tractode.registration.affine import AffineSettings, register_affine
from tractode.registration.refine import RefineSettings, refine

QUICK = RefineSettings(rounds=(5.0, 4.0, 4.0, 4.0, 3.0))


def rigid(shift: tuple[float, ...], degrees: tuple[float, ...], about: torch.Tensor) -> torch.Tensor:
    """Turns about a point, then shifts."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", degrees, degrees=True).as_matrix())
    matrix[:3, 3] = about - matrix[:3, :3] @ about + torch.tensor(shift, dtype=torch.float64)
    return matrix


def shaded(image: Image, corner: tuple[float, float, float]) -> Image:
    """As coils of one head frame would: several times brighter towards one corner of the scanner, not of the head."""
    points = image.grid.centres(torch.float64)
    distance = (points - torch.tensor(corner, dtype=torch.float64)).norm(dim=-1)
    return Image(image.grid, (image.values * (1 / (0.15 + (distance / 150) ** 2))).float())


def slab_grid(centre: torch.Tensor) -> ImageGrid:
    """Sagittal storage (P, S, R), left-handed, 12° oblique, 2.8 × 2.8 × 3.5 mm, off-origin; it cuts the head's top off."""
    turn = torch.from_numpy(Rotation.from_euler("xyz", [7, -9, 5], degrees=True).as_matrix())
    axes = torch.tensor([[0, 0, -3.5], [-2.8, 0, 0], [0, 2.8, 0]], dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = turn @ axes
    shape = (66, 38, 42)
    affine[:3, 3] = centre - affine[:3, :3] @ torch.tensor([32.0, 21.0, 20.5], dtype=torch.float64)
    return ImageGrid(shape, affine, "moving")


def errors(found: Affine, truth: torch.Tensor, mask: Image) -> tuple[float, float]:
    """Mean distance over the mask (mm) and angle between the two (degrees)."""
    points = mask.grid.centres(torch.float64)[mask.mask]
    distance = (found.map(points) - Affine(truth, found.source, found.target).map(points)).norm(dim=-1).mean()
    between = Rotation.from_matrix((found.matrix @ torch.linalg.inv(truth))[:3, :3].numpy())
    return float(distance), math.degrees(between.magnitude())


@pytest.fixture(scope="module")
def centre(fixed_mask: Image) -> torch.Tensor:
    return fixed_mask.grid.centres(torch.float64)[fixed_mask.mask].mean(0)


@pytest.fixture(scope="module")
def shaded_pair(fixed: Image, moved: Callable, centre: torch.Tensor) -> tuple[Image, Image, torch.Tensor]:
    """Two contrasts under one coil's shading, the moving one on another kind of grid with part of the head; the truth."""
    truth = rigid((6.0, -4.0, 5.0), (6.0, -4.0, 3.0), centre)
    pose = Affine(truth, "fixed", "moving")
    moving = moved(pose, slab_grid(pose.map(centre)))
    corner = (30.0, -110.0, 60.0)
    return shaded(fixed, corner), shaded(moving, corner), truth


def test_pose_found_where_mutual_information_follows_the_shading(
    shaded_pair: tuple[Image, Image, torch.Tensor], fixed_mask: Image, centre: torch.Tensor
) -> None:
    fixed, moving, truth = shaded_pair
    start = Affine(truth @ rigid((6.0, 6.0, -5.5), (6.0, 6.0, -5.0), centre), "fixed", "moving")
    away = errors(start, truth, fixed_mask)
    assert away[0] > 9
    assert away[1] > 9
    found = refine(fixed, moving, [start], fixed_mask=fixed_mask, settings=QUICK)
    assert (found.source, found.target) == ("fixed", "moving")
    distance, angle = errors(found, truth, fixed_mask)
    assert distance < 1
    assert angle < 1
    linear = found.matrix[:3, :3]
    torch.testing.assert_close(linear @ linear.mT, torch.eye(3).double(), atol=1e-9, rtol=0)
    # Begun at the truth itself, mutual information leaves it.
    settings = AffineSettings(levels=(6.0, 4.0), points=6000)
    misled = register_affine(
        fixed, moving, dof="rigid", fixed_mask=fixed_mask, initial=Affine(truth, "fixed", "moving"), settings=settings
    )
    assert errors(misled, truth, fixed_mask)[0] > 2 * distance


def test_the_better_of_two_candidates_wins(
    shaded_pair: tuple[Image, Image, torch.Tensor], fixed_mask: Image, centre: torch.Tensor
) -> None:
    fixed, moving, truth = shaded_pair
    lost = Affine(truth @ rigid((0.0, 0.0, 0.0), (0.0, 0.0, 180.0), centre), "fixed", "moving")
    near = Affine(truth @ rigid((2.0, 0.0, 0.0), (0.0, 2.0, 0.0), centre), "fixed", "moving")
    quick = RefineSettings(rounds=(5.0,), iterations=15)
    found = refine(fixed, moving, [lost, near], fixed_mask=fixed_mask, settings=quick)
    assert errors(found, truth, fixed_mask)[0] < 2


def test_identity_stays_identity(fixed: Image, fixed_mask: Image) -> None:
    """An image has no reason to move on itself; a preference for places between voxels would show here."""
    same = Image(fixed.grid.renamed("moving"), fixed.values)
    start = Affine(torch.eye(4, dtype=torch.float64), "fixed", "moving")
    found = refine(fixed, same, [start], fixed_mask=fixed_mask, settings=QUICK)
    distance, angle = errors(found, start.matrix, fixed_mask)
    assert distance < 0.1
    assert angle < 0.1


def _load(path: Path, space: str) -> Image:
    import nibabel as nib

    image = nib.load(path)
    values = np.asarray(image.dataobj[..., 0] if image.ndim == 4 else image.dataobj, dtype=np.float32)
    return Image(ImageGrid(values.shape, torch.from_numpy(image.affine), space), torch.from_numpy(values)[None])


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["AP", "PA"])
def test_real_scan_to_its_anatomy_from_two_starts(test_data: Path, direction: str) -> None:
    """The scanner's alignment and a start 10 mm and 10° from it lead to one pose."""
    from tractode.preprocess.mask import brain_mask

    subject = test_data / "bids_real" / "sub-xa30"
    anatomy = _load(subject / "anat" / "sub-xa30_T1w.nii.gz", "T1w")
    scan = _load(subject / "dwi" / f"sub-xa30_dir-{direction}_dwi.nii.gz", "dwi")
    # One session: the brain of the scan, carried by the scanner's alignment and widened, is mask enough.
    there = brain_mask(scan)
    points = anatomy.grid.centres(torch.float64)
    mask = Image(anatomy.grid, (there.sample(points)[..., 0] > 0.5)[None])
    aligned = torch.eye(4, dtype=torch.float64)
    off = rigid((6.0, 6.0, -5.5), (6.0, 6.0, -5.0), points[mask.mask].mean(0))
    poses = [refine(anatomy, scan, [Affine(m, "T1w", "dwi")], fixed_mask=mask) for m in (aligned, off)]
    distance, angle = errors(poses[0], poses[1].matrix, mask)
    assert distance < 1
    assert angle < 1
    assert errors(poses[0], aligned, mask)[0] < 8
