"""Transforms of ITK and ANTs on disk: a hand-computed warp, affines of every kind, one reader for all, errors by ID."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tractode.errors import InputDataError, MissingInputError
from tractode.fields import Affine, Chain, Displacement, ImageGrid
from tractode.io.transforms import read_transform, write_itk, write_warp, write_x5

TURN = np.array([[1.1, 0.1, 0.0], [-0.2, 0.9, 0.05], [0.0, 0.1, 1.0]])
CENTRE, SHIFT = np.array([10.0, -4.0, 3.0]), np.array([3.0, 2.0, -1.0])
POINT = np.array([7.0, 20.0, -11.0])  # RAS+


def by_hand(point: np.ndarray) -> np.ndarray:
    """``M (x − c) + c + t`` in LPS, back in RAS+."""
    flip = np.array([-1.0, -1.0, 1.0])
    return flip * (TURN @ (flip * point - CENTRE) + CENTRE + SHIFT)


def text(parameters: list[float], kind: str = "AffineTransform_double_3_3", fixed: np.ndarray = CENTRE) -> str:
    numbers, centre = (" ".join(repr(float(n)) for n in values) for values in (parameters, fixed))
    return f"#Transform 0\nTransform: {kind}\nParameters: {numbers}\nFixedParameters: {centre}\n"


FIRST = "#Insight Transform File V1.0\n"
AFFINE = [*TURN.ravel(), *SHIFT]


def warp_file(path: Path, vectors: np.ndarray, affine: np.ndarray, intent: int = 1007) -> Path:
    image = nib.Nifti1Image(vectors.astype(np.float32), affine)
    image.header["intent_code"] = intent
    nib.save(image, path)
    return path


def test_an_affine_of_text_and_of_mat_against_the_formula(tmp_path: Path) -> None:
    from scipy.io import savemat

    (tmp_path / "a.txt").write_text(FIRST + text(AFFINE))
    columns = {"AffineTransform_double_3_3": np.array(AFFINE)[:, None], "fixed": CENTRE[:, None]}
    savemat(tmp_path / "0GenericAffine.mat", columns, format="4")
    for name in ("a.txt", "0GenericAffine.mat"):
        found = read_transform(tmp_path / name, "fixed", "moving")
        assert (found.source, found.target) == ("fixed", "moving")
        np.testing.assert_allclose(found.map(torch.from_numpy(POINT)).numpy(), by_hand(POINT), atol=1e-12)


def test_nitransforms_reads_the_same_affine_alike(tmp_path: Path) -> None:
    """Where it is right: the affine kind, to its single precision."""
    linear = pytest.importorskip("nitransforms.io.itk").ITKLinearTransform
    (tmp_path / "a.txt").write_text(FIRST + text(AFFINE))
    theirs = linear.from_filename(tmp_path / "a.txt").to_ras()
    ours = read_transform(tmp_path / "a.txt", "a", "b")
    assert isinstance(ours, Affine)
    np.testing.assert_allclose(ours.matrix.numpy(), theirs, atol=1e-5)


def test_turns_by_known_angles(tmp_path: Path) -> None:
    """90° about z in LPS takes x to y; RAS+ differs by two signs, so it is the same turn."""
    half = np.sqrt(0.5)
    kinds = {
        "Euler3DTransform_double_3_3": [0, 0, np.pi / 2, 1, 2, 3],
        "VersorRigid3DTransform_double_3_3": [0, 0, half, 1, 2, 3],
        "Similarity3DTransform_double_3_3": [0, 0, half, 1, 2, 3, 2.0],
    }
    for kind, parameters in kinds.items():
        (tmp_path / "t.txt").write_text(FIRST + text(parameters, kind, np.zeros(3)))
        found = read_transform(tmp_path / "t.txt", "a", "b").map(torch.tensor([5.0, 0, 0], dtype=torch.float64))
        size = 2.0 if kind.startswith("Similarity") else 1.0
        np.testing.assert_allclose(found.numpy(), [-1, 5 * size - 2, 3], atol=1e-12)


def test_a_composite_text_applies_its_last_part_first(tmp_path: Path) -> None:
    shift = "Transform: TranslationTransform_double_3_3\nParameters: -10 0 0\nFixedParameters: \n"
    (tmp_path / "c.tfm").write_text(
        FIRST
        + "#Transform 0\nTransform: CompositeTransform_double_3_3\n"
        + text(AFFINE).replace("0", "1", 1)
        + "#Transform 2\n"
        + shift
    )
    found = read_transform(tmp_path / "c.tfm", "a", "b").map(torch.from_numpy(POINT)).numpy()
    np.testing.assert_allclose(found, by_hand(POINT + np.array([10.0, 0, 0])), atol=1e-12)


def test_a_warp_by_hand(tmp_path: Path) -> None:
    """One voxel moves by (1, 2, 3) LPS: halfway to its neighbour half of that, RAS+ signs, and nothing beyond the border."""
    vectors = np.zeros((3, 4, 5, 1, 3))
    vectors[1, 1, 1, 0] = (1, 2, 3)
    vectors[2, 3, 4, 0] = (0, 0, 8)
    affine = np.array(
        [[-2.0, 0, 0, 30], [0, 0, 2.5, -20], [0, 3.0, 0, 5], [0, 0, 0, 1]]
    )  # j and k swapped, left-handed or not
    warp = read_transform(warp_file(tmp_path / "1Warp.nii.gz", vectors, affine), "fixed", "moving")

    def moved(i: float, j: float, k: float) -> np.ndarray:
        point = torch.from_numpy(affine @ [i, j, k, 1.0])[:3]
        return (warp.map(point) - point).numpy()

    np.testing.assert_allclose(moved(1, 1, 1), [-1, -2, 3], atol=1e-6)
    np.testing.assert_allclose(moved(1.5, 1, 1), [-0.5, -1, 1.5], atol=1e-6)
    np.testing.assert_allclose(moved(1.25, 1, 0.5), [-0.375, -0.75, 1.125], atol=1e-6)
    # As ITK: the border's vector holds for half a voxel, then the field ends.
    np.testing.assert_allclose(moved(2.4, 3, 4.4), [0, 0, 8], atol=1e-6)
    np.testing.assert_allclose(moved(2.6, 3, 4), [0, 0, 0], atol=1e-6)


def test_a_warp_is_written_as_it_is_read(oblique_affine: torch.Tensor, tmp_path: Path) -> None:
    grid = ImageGrid((7, 6, 5), oblique_affine, "fixed")
    values = torch.randn(3, 7, 6, 5, generator=torch.Generator().manual_seed(1))
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor([4.0, -3, 2])
    chain = Chain((Displacement(grid, values, "fixed", "x"), Affine(matrix, "x", "moving")))
    for name in ("a_Warp.nii.gz", "b_Warp.nii.gz", "c_Warp.nii"):
        write_warp(tmp_path / name, chain, grid)
        back = read_transform(tmp_path / name, "fixed", "moving")
        points = grid.centres(torch.float64)
        torch.testing.assert_close(back.map(points), chain.map(points), atol=1e-4, rtol=0)
    assert (tmp_path / "a_Warp.nii.gz").read_bytes() == (tmp_path / "b_Warp.nii.gz").read_bytes()
    header = nib.load(tmp_path / "c_Warp.nii").header
    assert header.get_data_shape() == (7, 6, 5, 1, 3)
    assert header.get_intent()[0] == "vector"


def test_every_kind_is_known_by_its_content(oblique_affine: torch.Tensor, tmp_path: Path) -> None:
    grid = ImageGrid((5, 5, 5), oblique_affine, "a")
    transform = Affine(torch.diag(torch.tensor([1.1, 0.9, 1.0, 1.0]).double()), "a", "b")
    points = torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for write, name in ((write_itk, "t.h5"), (write_x5, "t.x5"), (write_x5, "also_x5.h5")):
        write(tmp_path / name, transform, grid)
        torch.testing.assert_close(read_transform(tmp_path / name, "a", "b").map(points), transform.map(points))


@pytest.mark.parametrize(
    ("name", "content", "id"),
    [
        ("t.h5", b"no HDF5", "E-XFM-READ"),
        ("t.mat", b"no matrix", "E-XFM-READ"),
        ("t.txt", b"1 0 0 0\n", "E-XFM-KIND"),
        ("t.txt", FIRST.encode() + text([1.0, 2.0]).encode(), "E-XFM-READ"),
        ("t.txt", (FIRST + text(AFFINE) + text(AFFINE)).encode(), "E-XFM-READ"),
        ("t.txt", (FIRST + text(AFFINE, "BSplineTransform_double_3_3")).encode(), "E-XFM-READ"),
        ("1Warp.nii.gz", b"\x1f\x8bno gzip", "E-XFM-READ"),
        ("t.lta", b"type = 1\n", "E-XFM-KIND"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(name: str, content: bytes, id: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputDataError, match=id) as caught:
        read_transform(tmp_path / name, "a", "b")
    assert caught.value.path.endswith(name)


def test_warps_of_other_programs_are_refused(tmp_path: Path) -> None:
    vectors = np.zeros((3, 3, 3, 1, 3))
    cases = {
        "E-XFM-INTENT": warp_file(tmp_path / "fsl.nii.gz", vectors, np.eye(4), intent=2006),
        "E-XFM-SHAPE": warp_file(tmp_path / "four.nii.gz", vectors[:, :, :, 0], np.eye(4)),
        "E-XFM-NONFINITE": warp_file(tmp_path / "nan.nii.gz", vectors + np.nan, np.eye(4)),
    }
    for id, path in cases.items():
        with pytest.raises(InputDataError, match=id):
            read_transform(path, "a", "b")
    whole = warp_file(tmp_path / "whole.nii.gz", np.random.default_rng(0).normal(size=(9, 9, 9, 1, 3)), np.eye(4))
    (tmp_path / "cut.nii.gz").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(InputDataError, match="E-XFM-READ"):
        read_transform(tmp_path / "cut.nii.gz", "a", "b")
    with pytest.raises(MissingInputError, match="E-XFM-MISSING"):
        read_transform(tmp_path / "absent.h5", "a", "b")


def test_a_sheared_reference_has_no_warp(tmp_path: Path) -> None:
    sheared = torch.eye(4, dtype=torch.float64)
    sheared[0, 1] = 0.1
    identity = Affine(torch.eye(4, dtype=torch.float64), "a", "b")
    with pytest.raises(InputDataError, match="E-XFM-SHEAR"):
        write_warp(tmp_path / "Warp.nii.gz", identity, ImageGrid((3, 3, 3), sheared, "a"))
