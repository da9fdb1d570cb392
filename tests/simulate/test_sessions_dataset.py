"""The whole command with everything asked for: a valid dataset, a valid truth, and the truth scored as perfect."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tractode.cli.score import main as score
from tractode.cli.simulate import main as simulate
from tractode.fields import Affine, Image, ImageGrid
from tractode.io.nifti import read_image, write_image
from tractode.io.transforms import write_itk

pytestmark = [pytest.mark.integration, pytest.mark.slow]
COMMAND = shlex.split(
    "--seed 3 --sessions 2 --growth 0.3 --movement 2 --anat T1w T2w FLAIR --t1w-resolution 4 --resolution 4 --shells 1000:6 "
    "--b0s 2 --fibres 30 --bundles CST --distortion on --reverse-encoding epi --field-map phasediff"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sessions") / "bids"
    threads = torch.get_num_threads()
    assert simulate([str(out), *COMMAND]) == 0
    torch.set_num_threads(threads)
    return out


@pytest.mark.reference
@pytest.mark.parametrize("part", [".", "derivatives/truth"])
def test_raw_and_truth_are_valid(dataset: Path, part: str) -> None:
    beside = Path(sys.executable).with_name("bids-validator-deno")
    program = str(beside) if beside.exists() else shutil.which("bids-validator-deno")
    if program is None:
        pytest.skip("bids-validator-deno is not installed")
    run = subprocess.run(
        [program, "--format", "json", str(dataset / part)], capture_output=True, text=True, check=False
    )
    issues = json.loads(run.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_the_truth_is_perfect(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Derivatives as the app names them, made of the truth; the first session stands for the participant's template."""
    truth, output = dataset / "derivatives" / "truth", tmp_path / "derivatives"
    for session in ("ses-01", "ses-02"):
        to = output / "sub-01" / session
        shutil.copytree(truth / "sub-01" / session, to, ignore=shutil.ignore_patterns("*tract*", "*epi*", "*fmap*xfm*"))
        field = next((to / "fmap").glob(f"sub-01_{session}_desc-truth_fieldmap.nii.gz"))
        image, _ = read_image(field, "dwi")
        for path in (to / "fmap").glob("*_fieldmap.*"):
            path.unlink()
        write_image(field.with_name(field.name.replace("truth", "reversed")), Image(image.grid, image.values + 1))
    (between,) = (truth / "sub-01" / "anat").glob("*from-ses02_to-ses01*")
    (back,) = (truth / "sub-01" / "anat").glob("*from-ses01_to-ses02*")
    anat = output / "sub-01"
    # from-first_to-T1w of the second session maps its points to the first's; the first session's own is the identity there and back.
    shutil.copy(back, anat / "ses-02" / "anat" / "sub-01_ses-02_from-first_to-T1w_mode-image_xfm.h5")
    shutil.copy(between, anat / "ses-02" / "anat" / "sub-01_ses-02_from-T1w_to-first_mode-image_xfm.h5")
    eye = torch.eye(4, dtype=torch.float64)
    still = anat / "ses-01" / "anat" / "sub-01_ses-01_from-T1w_to-first_mode-image_xfm.h5"
    write_itk(still, Affine(eye, "T1w", "first"), ImageGrid((2, 2, 2), eye, "T1w"))
    for kind, key, most in (
        ("sessions", "session_error_mm", 0.02),
        ("pose", "pose_error_mm", 0.001),
        ("field", "field_error_median_hz", 1.01),
        ("warp", "warp_epe_mm", 0.1),
    ):
        assert score([kind, str(output), str(truth)]) == 0
        got = json.loads(capsys.readouterr().out)
        assert got[key] < most
