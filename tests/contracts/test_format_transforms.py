"""The laws of transform files: reading undoes writing, and SimpleITK and nitransforms map points as we do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tractode.errors import InputDataError
from tractode.fields import Affine, Chain, Displacement, Flow, ImageGrid, Transform, VelocityField
from tractode.io.transforms import read_itk, read_x5, write_itk, write_x5

CENTRE = torch.tensor([5.0, -3.0, 8.0], dtype=torch.float64)


@pytest.fixture
def reference(oblique_affine: torch.Tensor) -> ImageGrid:
    """Oblique, left-handed, off-origin; it covers the points."""
    affine = oblique_affine.clone()
    affine[:3, 3] = CENTRE - affine[:3, :3] @ torch.tensor([26.0, 22.0, 20.0]).double()
    return ImageGrid((53, 45, 41), affine, "T1w")


def vectors(points: torch.Tensor, size: float) -> torch.Tensor:
    offset = points - CENTRE
    fade = torch.exp(-offset.square().sum(-1, keepdim=True) / (2 * 20.0**2))
    return (
        size
        * fade
        * torch.stack([torch.sin(offset[..., 1] / 15), torch.cos(offset[..., 2] / 19), offset[..., 0] / 30], -1)
    )


def affine(source: str, target: str) -> Affine:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] += torch.tensor([[0.05, 0.2, -0.1], [-0.25, -0.1, 0.1], [0.1, 0.0, 0.05]]).double()
    matrix[:3, 3] = torch.tensor([14.0, -7.0, 22.0])
    return Affine(matrix, source, target)


def flow(grid: ImageGrid, source: str, target: str) -> Flow:
    coarse = grid.resampled(5.0)
    return Flow(
        VelocityField(coarse, vectors(coarse.centres(torch.float64), 6.0).movedim(-1, 0)[None].float()), source, target
    )


def make(kind: str, grid: ImageGrid) -> Transform:
    if kind == "affine":
        return affine("T1w", "dwi")
    if kind == "displacement":
        values = vectors(grid.centres(torch.float64), 4.0).movedim(-1, 0).float()
        return Displacement(grid, values.contiguous(), "T1w", "dwi")
    if kind == "flow":
        return flow(grid, "T1w", "dwi")
    if kind == "flow on sheared nodes":
        # As a registration gives it whose affine was shared between the two sides.
        shear = torch.eye(4, dtype=torch.float64)
        shear[0, 1], shear[1, 2] = 0.06, -0.04
        return flow(ImageGrid(grid.shape, shear @ grid.affine, grid.space), "T1w", "dwi")
    forward = Chain((flow(grid, "T1w", "x"), affine("x", "y"), affine("y", "dwi")))
    if kind == "flow then affines":
        return forward
    # As a template sees it: the affine first, so the flow's space is not the reference's.
    return Chain((affine("T1w", "x"), flow(grid, "x", "dwi")))


KINDS = ["affine", "displacement", "flow", "flow then affines", "affine then flow", "flow on sheared nodes"]


@pytest.fixture
def points() -> torch.Tensor:
    spread = torch.rand(300, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 0.5
    return CENTRE + 50 * spread


# Between the voxels of the reference a flow is interpolated in an ITK file; this field bends sharply between nodes, 5 mm apart.
TABULATED = 0.1
EXACT = 2e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("write", "read", "name"), [(write_itk, read_itk, "t.h5"), (write_x5, read_x5, "t.x5")])
def test_reading_undoes_writing(kind: str, write, read, name: str, reference, points, tmp_path: Path) -> None:
    transform = make(kind, reference)
    write(tmp_path / name, transform, reference)
    back = read(tmp_path / name, "T1w", "dwi")
    assert (back.source, back.target) == ("T1w", "dwi")
    torch.testing.assert_close(
        back.map(points), transform.map(points), atol=TABULATED if "flow" in kind else EXACT, rtol=0
    )
    torch.testing.assert_close(back.inverse().map(back.map(points)), points, atol=5e-3, rtol=0)
    if name == "t.h5":  # at the reference's voxels, so resampling onto it is exact
        centres = reference.centres(torch.float64)[::4, ::4, ::4]
        torch.testing.assert_close(back.map(centres), transform.map(centres), atol=EXACT, rtol=0)
    if name == "t.x5":  # affines and flows come back as themselves, not as tables
        torch.testing.assert_close(back.map(points), transform.map(points), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("write", "name"), [(write_itk, "t.h5"), (write_x5, "t.x5")])
def test_same_bytes_each_time(write, name: str, reference, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in ("a", "b"):
        write(tmp_path / folder / name, make("flow then affines", reference), reference)
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.reference
@pytest.mark.parametrize("kind", KINDS)
def test_simpleitk_maps_points_alike(kind: str, reference: ImageGrid, points: torch.Tensor, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    transform = make(kind, reference)
    write_itk(tmp_path / "t.h5", transform, reference)
    theirs = sitk.ReadTransform(str(tmp_path / "t.h5"))
    flip = np.array([-1.0, -1.0, 1.0])
    mapped = np.array([theirs.TransformPoint((p * flip).tolist()) for p in points.numpy()]) * flip
    np.testing.assert_allclose(mapped, transform.map(points).numpy(), atol=TABULATED if "flow" in kind else EXACT)
    # Both read the same file alike to a hundred-thousandth of a voxel.
    np.testing.assert_allclose(mapped, read_itk(tmp_path / "t.h5", "T1w", "dwi").map(points).numpy(), atol=EXACT)


@pytest.mark.reference
def test_simpleitk_files_are_read(tmp_path: Path, points: torch.Tensor) -> None:
    """Theirs: an affine with a centre, and a displacement applied before it (ITK applies the last first)."""
    sitk = pytest.importorskip("SimpleITK")
    first = sitk.AffineTransform(3)
    first.SetMatrix([1.1, 0.1, 0, -0.2, 0.9, 0.05, 0, 0.1, 1])
    first.SetCenter((10.0, -4.0, 3.0))
    first.SetTranslation((3.0, 2.0, -1.0))
    field = np.random.default_rng(1).normal(size=(21, 22, 23, 3))
    image = sitk.GetImageFromArray(field, isVector=True)
    image.SetSpacing((4.0, 4.5, 5.0))
    image.SetOrigin((-50.0, -45.0, -40.0))
    composite = sitk.CompositeTransform([first, sitk.DisplacementFieldTransform(image)])
    sitk.WriteTransform(composite, str(tmp_path / "theirs.h5"))
    ours = read_itk(tmp_path / "theirs.h5", "a", "b")
    image = sitk.GetImageFromArray(field, isVector=True)
    image.SetSpacing((4.0, 4.5, 5.0))
    image.SetOrigin((-50.0, -45.0, -40.0))
    composite = sitk.CompositeTransform([first, sitk.DisplacementFieldTransform(image)])
    flip = np.array([-1.0, -1.0, 1.0])
    some = points[(points.abs() < 35).all(-1)]
    mapped = np.array([composite.TransformPoint((p * flip).tolist()) for p in some.numpy()]) * flip
    np.testing.assert_allclose(ours.map(some).numpy(), mapped, atol=1e-4)


@pytest.mark.reference
def test_nitransforms_reads_our_x5(reference: ImageGrid, points: torch.Tensor, tmp_path: Path) -> None:
    manip = pytest.importorskip("nitransforms.manip")
    transform = Chain((make("displacement", reference), affine("dwi", "z")))
    write_x5(tmp_path / "t.x5", transform, reference)
    theirs = manip.TransformChain.from_filename(tmp_path / "t.x5", fmt="X5")
    mapped = np.asarray(theirs.map(points.numpy()))
    np.testing.assert_allclose(mapped, transform.map(points).numpy(), atol=0.05)


@pytest.mark.parametrize(("read", "name"), [(read_itk, "t.h5"), (read_x5, "t.x5")])
def test_a_broken_file_is_named(read, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not HDF5 at all")
    with pytest.raises(InputDataError, match="E-XFM-READ") as caught:
        read(tmp_path / name, "a", "b")
    assert caught.value.path.endswith(name)
    assert caught.value.exit_code == 65
