"""``tractode-score pose``, ``sessions`` and ``field`` on small folders whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tractode.cli.score import main as score
from tractode.evaluate.truth import field_error, map_error
from tractode.fields import Affine, Image, ImageGrid
from tractode.io.nifti import write_image
from tractode.io.transforms import write_itk

DOUBLE = torch.float64


def shifted(x: float, y: float = 0.0, z: float = 0.0) -> torch.Tensor:
    matrix = torch.eye(4, dtype=DOUBLE)
    matrix[:3, 3] = torch.tensor([x, y, z])
    return matrix


class Folders:
    """A truth of two sessions in which the head lay 3 mm to the right in the dwi, and 5 mm to the front in the second session."""

    def __init__(self, root: Path, affine: torch.Tensor) -> None:
        self.root, self.grid = root, ImageGrid((14, 16, 12), affine, "dwi")
        self.truth, self.output = root / "truth", root / "output"
        mask = torch.zeros(1, *self.grid.shape, dtype=torch.bool)
        mask[:, 3:11, 3:13, 3:9] = True
        self.inside = mask[0]
        self.hz = (30 * torch.sin(self.grid.centres()[..., 0] / 20))[None]
        for session in ("01", "02"):
            for datatype in ("dwi", "anat"):
                self.image(self.truth, session, datatype, "desc-brain_mask", mask)
            self.image(self.truth, session, "fmap", "desc-truth_fieldmap", self.hz)
            self.way(self.truth, session, "dwi", "T1w", "dwi", shifted(3))
        self.way(self.truth, "", "anat", "ses01", "ses02", shifted(0, 5))

    def place(self, folder: Path, session: str, datatype: str, name: str) -> Path:
        parts = ["sub-01"] + ([f"ses-{session}"] if session else [])
        path = folder.joinpath(*parts, datatype, f"{'_'.join(parts)}_{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def image(self, folder: Path, session: str, datatype: str, name: str, values: torch.Tensor) -> None:
        write_image(self.place(folder, session, datatype, f"{name}.nii.gz"), Image(self.grid, values))

    def way(self, folder: Path, session: str, datatype: str, start: str, end: str, matrix: torch.Tensor) -> None:
        """``from-start_to-end``: maps points of ``end`` to points of ``start``."""
        path = self.place(folder, session, datatype, f"from-{start}_to-{end}_mode-image_xfm.h5")
        write_itk(path, Affine(matrix, end, start), self.grid)

    def score(self, kind: str, capsys: pytest.CaptureFixture[str]) -> dict:
        self.output.mkdir(exist_ok=True)
        assert score([kind, str(self.output), str(self.truth)]) == 0
        return json.loads(capsys.readouterr().out)


@pytest.fixture
def folders(tmp_path: Path, oblique_affine: torch.Tensor) -> Folders:
    return Folders(tmp_path, oblique_affine)


def test_the_way_between_scans(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    folders.way(folders.output, "01", "dwi", "T1w", "dwi", shifted(3))
    folders.way(folders.output, "02", "dwi", "T1w", "dwi", shifted(3, 0, 0.4))
    got = folders.score("pose", capsys)
    assert got["pose_error_mm"] == pytest.approx(0.2)
    assert got["participants"]["01_ses-02"]["pose_error_mm"] == pytest.approx(0.4)
    assert got["participants"]["01_ses-01"]["pose"]["files"].popitem()[1]["mean_before"] == pytest.approx(3)
    assert got["n_participants"] == 1
    assert got["n"]["pose_error_mm"] == 2 * int(folders.inside.sum())


def test_the_way_between_sessions_by_any_template(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    """Template half-way: 2.5 mm from either; the second session's is off by 0.3 mm."""
    for session, back, forth in (("01", 2.5, -2.5), ("02", -2.5, 2.8)):
        folders.way(folders.output, session, "anat", "T1w", "mean", shifted(0, back))
        folders.way(folders.output, session, "anat", "mean", "T1w", shifted(0, forth))
        folders.way(folders.output, session, "anat", "MNI152NLin2009aSym", "T1w", shifted(9))
    got = folders.score("sessions", capsys)
    assert got["session_error_mm"] == pytest.approx(0.3)
    assert got["participants"]["01_ses-01"] == {}
    assert got["participants"]["01_ses-02"]["session"]["mean_before"] == pytest.approx(5)


def test_fields_with_a_bias_and_where_the_head_lay_elsewhere(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.image(folders.output, "01", "fmap", "dir-AP_desc-reversed_fieldmap", folders.hz + 4)
    # The gradient echoes saw the head 2 mm further up than the T1w, the dwi 3 mm to the right: both ways count.
    folders.way(folders.truth, "02", "fmap", "T1w", "fmap", shifted(0, 0, -2))
    centres = folders.grid.centres(DOUBLE) + torch.tensor([-3.0, 0, -2])
    there = 30 * torch.sin(centres[..., 0] / 20)
    folders.image(folders.output, "02", "fmap", "desc-phasediff_fieldmap", there.float()[None])
    got = folders.score("field", capsys)
    first, second = (next(iter(got["participants"][f"01_ses-0{n}"]["field"]["files"].values())) for n in (1, 2))
    assert first["median"] == pytest.approx(4, abs=1e-4)
    assert first["bias"] == pytest.approx(4, abs=1e-4)
    assert first["p95_without_bias"] == pytest.approx(0, abs=1e-4)
    assert second["p95"] < 0.3
    assert second["rms_before"] > 10
    assert got["field_error_median_hz"] == pytest.approx((first["median"] + second["median"]) / 2)


def test_what_is_not_there(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    folders.output.mkdir()
    for kind in ("pose", "sessions", "field"):
        assert score([kind, str(folders.output), str(folders.truth)]) == 66
    assert "E-SCORE-MISSING" in capsys.readouterr().err


def test_errors_of_known_size() -> None:
    points = torch.randn(50, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    got = map_error(Affine(shifted(1, 2), "a", "b"), Affine(shifted(1), "a", "b"), points)
    assert (got["mean"], got["p95"], got["mean_before"], got["n"]) == pytest.approx((2, 2, 1, 50))
    truth = torch.linspace(-1, 1, 101).reshape(101, 1, 1)
    off = field_error(truth + 0.5 * truth.sign(), truth, truth.abs() > 0.5)
    assert (off["median"], off["rms"], abs(off["bias"])) == pytest.approx((0.5, 0.5, 0.5))
