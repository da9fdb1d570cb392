"""Five-tissue maps: which label is which tissue, sums, what is refused, and MRtrix3's own check of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tractode.errors import InputDataError, ShapeError
from tractode.fields import Image, ImageGrid
from tractode.io.builtin_template import load_builtin
from tractode.io.nifti import read_image, write_image
from tractode.preprocess import five_tissue
from tractode.preprocess.five_tissue import CORTICAL, CSF, PATHOLOGICAL, SUBCORTICAL, WHITE


@pytest.mark.parametrize(
    ("label", "tissue"),
    [(3, CORTICAL), (42, CORTICAL), (8, CORTICAL), (1022, CORTICAL), (12138, CORTICAL), (10, SUBCORTICAL), (49, SUBCORTICAL),
     (11, SUBCORTICAL), (52, SUBCORTICAL), (2, WHITE), (41, WHITE), (251, WHITE), (16, WHITE), (28, WHITE), (4, CSF), (24, CSF),
     (31, CSF), (77, PATHOLOGICAL), (17, CORTICAL), (54, CORTICAL)],
)  # fmt: skip
def test_labels_are_the_tissues_of_freesurfer(oblique_affine: torch.Tensor, label: int, tissue: int) -> None:
    values = torch.tensor([label, 2, 42, 0, 165, 507], dtype=torch.float32).reshape(1, 6, 1, 1)
    maps = five_tissue.from_labels(Image(ImageGrid((6, 1, 1), oblique_affine, "w"), values)).values[:, :, 0, 0]
    assert maps[:, 0].tolist() == [float(number == tissue) for number in range(5)]
    assert maps.sum(0).tolist() == [1, 1, 1, 0, 0, 0]


def test_the_hippocampus_is_of_the_kind_asked_for(oblique_affine: torch.Tensor) -> None:
    values = torch.tensor([17, 53, 18, 2, 3], dtype=torch.float32).reshape(1, 5, 1, 1)
    image = Image(ImageGrid((5, 1, 1), oblique_affine, "w"), values)
    maps = five_tissue.from_labels(image, limbic_is_subcortical=True).values
    assert maps[SUBCORTICAL].ravel().tolist() == [1, 1, 1, 0, 0]


def test_other_segmentations_are_refused(oblique_affine: torch.Tensor) -> None:
    values = torch.tensor([1, 5, 24], dtype=torch.float32).reshape(1, 3, 1, 1)
    with pytest.raises(InputDataError, match=r"no white matter \(labels 1, 5, 24") as caught:
        five_tissue.from_labels(Image(ImageGrid((3, 1, 1), oblique_affine, "w"), values))
    assert caught.value.id == "E-TISSUE-LABELS"


def test_given_maps_are_checked_whole(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((3, 3, 3), oblique_affine, "w")
    good = torch.zeros(5, 3, 3, 3)
    good[WHITE] = 1.004
    assert float(five_tissue.checked(Image(grid, good)).values.sum(0).max()) == pytest.approx(1.0)
    bad = torch.full((4, 3, 3, 3), 0.4)
    bad[0, 0] = -0.5
    with pytest.raises(InputDataError, match=r"a_5tt\.nii.*4 volumes.*smallest value.*sum to more than 1"):
        five_tissue.checked(Image(grid, bad), "a_5tt.nii")
    with pytest.raises(InputDataError, match="no voxel"):
        five_tissue.checked(Image(grid, torch.zeros(5, 3, 3, 3)))


def test_the_template_has_its_tissues_where_they_belong() -> None:
    maps = five_tissue.from_fractions(*(load_builtin(name, 3.0) for name in ("GM", "WM", "mask")))
    assert float(maps.values.sum(0).max()) <= 1 + 1e-5
    # Where the built-in template's own anatomy has them, RAS+ mm of MNI space.
    places = {SUBCORTICAL: (27.0, 3.0, 3.0), WHITE: (25.0, -30.0, 30.0), CORTICAL: (0.0, 40.0, 14.0)}
    for tissue, point in places.items():
        at = maps.sample(torch.tensor([point, (-point[0], *point[1:])]))
        assert at.argmax(-1).tolist() == [tissue] * 2, point
    elsewhere = Image(maps.grid.renamed("sub-01_T1w"), maps.values[:1])
    with pytest.raises(ShapeError, match="MNI"):
        five_tissue.from_fractions(elsewhere, elsewhere, elsewhere)


def test_interpolated_maps_are_made_whole(oblique_affine: torch.Tensor) -> None:
    values = torch.zeros(5, 1, 1, 3)
    values[WHITE] = torch.tensor([0.3, 0.6, 0.2])
    values[CSF] = torch.tensor([0.1, 0.2, 0.8])
    whole = five_tissue.filled(Image(ImageGrid((1, 1, 3), oblique_affine, "w"), values)).values
    torch.testing.assert_close(whole[WHITE].ravel(), torch.tensor([0.0, 0.75, 0.2]))
    assert five_tissue.dominant(Image(ImageGrid((1, 1, 3), oblique_affine, "w"), whole)).ravel().tolist() == [
        -1,
        WHITE,
        CSF,
    ]


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("5ttcheck") is None, reason="MRtrix3 is not installed")
def test_mrtrix_accepts_the_maps(tmp_path: Path, test_data: Path) -> None:
    name = "sub-omega0002"
    labels, _ = read_image(test_data / "anat_labels" / name / "anat" / f"{name}_desc-aseg_dseg.nii.gz", f"{name}_T1w")
    maps = five_tissue.from_labels(labels)
    write_image(tmp_path / "made.nii", maps, dtype="uint8")
    coarse = labels.grid.resampled(2.0)
    moved = five_tissue.filled(Image(coarse, maps.sample(coarse.centres()).permute(3, 0, 1, 2)))
    write_image(tmp_path / "moved.nii", moved)
    template = five_tissue.from_fractions(*(load_builtin(kind, 3.0) for kind in ("GM", "WM", "mask")))
    write_image(tmp_path / "template.nii", template)
    for file in ("made", "moved", "template"):
        done = subprocess.run(["5ttcheck", str(tmp_path / f"{file}.nii")], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "WARNING" not in done.stderr.upper(), done.stderr
