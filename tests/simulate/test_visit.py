"""Visits: contrasts, movement, sessions and growth with known answers, and raw folders that the BIDS validator accepts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tractode.cli.simulate import main as simulate_command
from tractode.fields import Image, ImageGrid, Streamlines
from tractode.io.builtin_template import SPACE
from tractode.io.nifti import read_image
from tractode.simulate import seeds
from tractode.simulate.growth import VENTRICLES, grown
from tractode.simulate.poses import MovementSettings
from tractode.simulate.tissues import CSF, GREY, WHITE, Anatomy
from tractode.simulate.warp import participant_warp
from tractode.workflows.simulate import write_descriptions
from tractode.workflows.simulate_raw import write_raw
from tractode.workflows.simulate_settings import DistortionSettings, SimulationSettings
from tractode.workflows.simulate_visit import Plan, Visit, plan, visit

COARSE = SimulationSettings(
    resolution=(5.0, 5.0, 5.5),
    t1w_resolution=5.0,
    shells=((1000.0, 6),),
    n_b0=2,
    oblique_deg=11.0,
    distortion=DistortionSettings(reverse="epi", field_map="phasediff"),
)
MOVED = replace(
    COARSE,
    movement=MovementSettings(3.0, 3.0),
    sessions=3,
    growth=0.3,
    painted=(("T2w", (4.0, 4.0, 5.0)), ("FLAIR", (4.0, 4.0, 4.0))),
    distortion=DistortionSettings(reverse="epi", field_map="fieldmap"),
)
FULL = DistortionSettings(reverse="epi", field_map="phasediff")
VALIDATOR = "bids-validator-deno"


def ball() -> Anatomy:
    """A head of 45 mm: fluid in the middle, white around it, then grey; in the built-in template's space."""
    affine = torch.eye(4, dtype=torch.float64) * 3
    affine[:3, 3], affine[3, 3] = -60, 1
    grid = ImageGrid((41, 41, 41), affine, SPACE)
    r = grid.centres().norm(dim=-1)
    parts = torch.stack(((r >= 34) & (r < 45), (r >= 14) & (r < 34), r < 14)).float()
    return Anatomy(Image(grid, (0.7 * parts[0] + parts[1] + 0.2 * parts[2])[None]), Image(grid, parts))


@pytest.fixture(scope="module")
def shared() -> Plan:
    return plan(ball(), COARSE)


def see(shared: Plan, settings: SimulationSettings, session: int = 0) -> Visit:
    x = torch.linspace(-20, 20, 41)
    line = torch.stack((x, torch.full_like(x, 22.0), torch.zeros_like(x)), -1)
    return visit(replace(shared, settings=settings), 0, session, {"CCBody": Streamlines.from_list([line] * 4, SPACE)})


@pytest.fixture(scope="module")
def plain(shared: Plan) -> Visit:
    return see(shared, COARSE)


@pytest.fixture(scope="module")
def moved(shared: Plan) -> Visit:
    """The third session, of a head that moves between all scans and whose ventricles have grown."""
    return see(shared, MOVED, 2)


def tell(out: Path, made: Visit, settings: SimulationSettings) -> None:
    """The raw dataset of one visit."""
    write_raw(out, made, settings)
    write_descriptions(out, [made.entities["sub"]], settings)


def errors_of(folder: Path) -> list[dict]:
    beside = Path(sys.executable).with_name(VALIDATOR)
    program = str(beside) if beside.exists() else shutil.which(VALIDATOR)
    if program is None:
        pytest.skip(f"{VALIDATOR} is not installed")
    run = subprocess.run([program, "--format", "json", str(folder)], capture_output=True, text=True, check=False)
    return [issue for issue in json.loads(run.stdout)["issues"]["issues"] if issue["severity"] == "error"]


def content(folder: Path, name: str) -> dict:
    return json.loads(next(folder.rglob(name)).read_text())


def test_new_purposes_leave_the_old_streams_alone() -> None:
    draws = [int(torch.randint(0, 2**31, (1,), generator=seeds.stream(5, 2, name))) for name in seeds.PURPOSES[:5]]
    assert draws == [
        int(torch.randint(0, 2**31, (1,), generator=torch.Generator().manual_seed(state)))
        for state in ((int(a) << 31) ^ int(b) for a, b in (
            np.random.SeedSequence([5, 2, place]).generate_state(2, np.uint32) for place in range(5)
        ))
    ]  # fmt: skip
    again = [seeds.stream(5, 2, "dwi noise", session).initial_seed() for session in (0, 1, 2)]
    assert len(set(again)) == 3
    assert seeds.PURPOSES[:5] == ("warp", "bundles", "dwi noise", "T1w noise", "demographics")


@pytest.mark.reference
@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("intendedfor", ["bids::sub-01/dwi/sub-01_dwi.nii.gz"]),
        ("relative", ["dwi/sub-01_dwi.nii.gz"]),
        ("none", None),
    ],
)
def test_distorted_scans_are_valid_and_say_what_serves_what(
    link: str, said: list[str] | None, plain: Visit, tmp_path: Path
) -> None:
    tell(tmp_path, plain, replace(COARSE, distortion=replace(FULL, link=link)))
    assert errors_of(tmp_path) == []
    names = {path.name for path in tmp_path.rglob("*.nii.gz")}
    assert {"sub-01_dwi.nii.gz", "sub-01_dir-PA_epi.nii.gz", "sub-01_phasediff.nii.gz"} < names
    pair, dwi = content(tmp_path, "sub-01_dir-PA_epi.json"), content(tmp_path, "sub-01_dwi.json")
    assert (dwi["PhaseEncodingDirection"], pair["PhaseEncodingDirection"]) == ("j-", "j")
    assert {"B0FieldIdentifier", "B0FieldSource"}.isdisjoint(dwi | pair)
    assert pair.get("IntendedFor") == said
    assert content(tmp_path, "sub-01_phasediff.json").get("IntendedFor") == said


@pytest.mark.reference
def test_a_series_both_ways_and_two_phases_are_valid(plain: Visit, tmp_path: Path) -> None:
    wanted = replace(FULL, link="b0field", reverse="dwi", field_map="phases")
    assert plain.reverse is not None
    whole = replace(plain.reverse, image=Image(plain.dwi.grid, plain.dwi.signal), gtab=plain.dwi.gtab)
    tell(tmp_path, replace(plain, reverse=whole), replace(COARSE, distortion=wanted))
    assert errors_of(tmp_path) == []
    names = {path.name for path in tmp_path.rglob("*.nii.gz")}
    assert {"sub-01_dir-AP_dwi.nii.gz", "sub-01_dir-PA_dwi.nii.gz", "sub-01_phase1.nii.gz"} < names
    dwi = content(tmp_path, "sub-01_dir-PA_dwi.json")
    assert (dwi["B0FieldIdentifier"], dwi["B0FieldSource"]) == ("pepolar", ["pepolar", "fieldmap"])
    assert content(tmp_path, "sub-01_phase2.json")["B0FieldIdentifier"] == "fieldmap"


@pytest.mark.reference
def test_sessions_with_moved_scans_of_three_contrasts_are_valid(moved: Visit, tmp_path: Path) -> None:
    tell(tmp_path, moved, MOVED)
    assert errors_of(tmp_path) == []
    assert set(moved.poses) == {"dwi", "epi", "fmap", "T2w", "FLAIR"}
    names = {path.name for path in (tmp_path / "sub-01" / "ses-03").rglob("*.nii.gz")}
    assert {"sub-01_ses-03_T2w.nii.gz", "sub-01_ses-03_FLAIR.nii.gz", "sub-01_ses-03_fieldmap.nii.gz"} < names
    said = content(tmp_path, "*_fieldmap.json")
    assert said["IntendedFor"] == ["bids::sub-01/ses-03/dwi/sub-01_ses-03_dwi.nii.gz"]
    assert said["Units"] == "Hz"
    t2w = nibabel.load(tmp_path / "sub-01" / "ses-03" / "anat" / "sub-01_ses-03_T2w.nii.gz")
    assert t2w.header.get_zooms() == pytest.approx((4, 4, 5))


def test_fluid_is_bright_on_t2w_and_b0_and_dark_on_flair(shared: Plan, moved: Visit) -> None:
    for name, order in (("T2w", (WHITE, GREY, CSF)), ("FLAIR", (CSF, WHITE, GREY))):
        image = moved.painted[name]
        places = moved.warp.map(moved.poses[name].map(image.grid.centres()))
        fractions = shared.brain.tissues.sample(places).movedim(-1, 0)
        found = [float(image.values[0][fractions[tissue] > 0.95].median()) for tissue in order]
        assert found[0] * 1.15 < found[1]
        assert found[1] * 1.15 < found[2]
    fractions, b0 = moved.true.fibres.tissues, moved.true.signal[0]
    bright = [float(b0[fractions[tissue] > 0.9].median()) for tissue in (WHITE, GREY, CSF)]
    assert bright[0] < bright[1] < bright[2]


def test_one_head_with_one_field_moves_through_all_scans(shared: Plan, moved: Visit) -> None:
    """The field measured by the gradient echoes, carried by the poses, is the true one on the grid of the dwi."""
    assert moved.echoes is not None
    assert moved.field_hz is not None
    assert moved.reverse is not None
    found = Image(moved.echoes[0], moved.echoes[1].measured_hz)
    points = moved.true.grid.centres(torch.float64)
    inside = shared.brain.tissues.sample(moved.warp.map(moved.poses["dwi"].map(points))).sum(-1) > 0.99
    way = moved.poses["dwi"].then(moved.poses["fmap"].inverse())
    error = (found.sample(way.map(points[inside]))[..., 0] - moved.field_hz[inside]).abs()
    unmoved = (found.sample(points[inside])[..., 0] - moved.field_hz[inside]).abs()
    # √2/50 rad of noise in 2.46 ms is 1.8 Hz.
    assert float(error.median()) < 2
    assert float(unmoved.quantile(0.9)) > 1.5 * float(error.quantile(0.9))
    # And the head of the dwi lies where its pose says.
    tissues = shared.brain.tissues.sample(moved.warp.map(moved.poses["dwi"].map(points[inside]))).mT
    assert float((tissues - moved.true.fibres.tissues[:, inside]).abs().mean()) < 0.1


def test_sessions_know_the_way_to_the_first(moved: Visit, plain: Visit) -> None:
    """Over the first session or straight, a point of the third arrives at the same place of the template."""
    assert moved.to_first is not None
    points = moved.t1w.grid.centres(torch.float64)[moved.t1w_mask.mask]
    torch.testing.assert_close(plain.warp.map(moved.to_first.map(points)), moved.warp.map(points), atol=0.01, rtol=0)
    assert float((moved.to_first.map(points) - points).norm(dim=-1).mean()) > 2


def test_without_noise_the_scans_are_the_truth_and_the_first_session_that_without_sessions(
    shared: Plan, plain: Visit, tmp_path: Path
) -> None:
    silent = replace(COARSE.subject, snr=None, t1w_snr=None)
    settings = replace(COARSE, subject=silent, sessions=2, growth=0.2)
    made = see(shared, settings)
    torch.testing.assert_close(made.true.signal, plain.true.signal)
    torch.testing.assert_close(made.field_hz, plain.field_hz)
    tell(tmp_path, made, settings)
    assert content(tmp_path, "*_phasediff.json")["Units"] == "rad"
    phase = read_image(next(tmp_path.rglob("*_phasediff.nii.gz")), "fmap")[0]
    assert float(phase.values.abs().max()) <= torch.pi + 1e-5
    assert made.reverse is not None
    assert float(made.reverse.image.values[0].double().sum()) == pytest.approx(
        float(made.true.signal[0].sum()), rel=5e-3
    )


def test_growth_is_known_in_the_ventricles_and_nothing_far_away(shared: Plan) -> None:
    warp = participant_warp(shared.brain.t1w.grid, "sub-01_T1w", seeds.stream(3, 0, "warp"))
    change = grown(warp, 0.3, "later")
    middles = warp.inverse().map(torch.tensor(VENTRICLES, dtype=torch.float64))
    now = change.inverse().map(middles)
    steps = 0.5 * torch.eye(3, dtype=torch.float64)
    columns = torch.stack(
        [(change.inverse().map(middles + step) - change.inverse().map(middles - step)) for step in steps], -1
    )
    assert torch.linalg.det(columns).tolist() == pytest.approx([1.3, 1.3], rel=0.03)
    assert float((now - middles).norm(dim=-1).max()) < 1.5
    # Twice there and back is nothing.
    cloud = middles[0] + 12 * torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert float((change.map(change.inverse().map(cloud)) - cloud).norm(dim=-1).max()) < 0.01
    far = middles.mean(0) + torch.tensor([[60.0, 0, 0], [0, 120.0, 0], [0, 0, 60.0]], dtype=torch.float64)
    assert float((change.map(far) - far).norm(dim=-1).max()) < 0.02


def test_options_that_do_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x")
    assert simulate_command([out, "--reverse-encoding", "epi"]) == 64
    assert simulate_command([out, "--field-map", "phases"]) == 64
    assert simulate_command([out, "--growth", "0.2"]) == 64
    assert simulate_command([out, "--distortion", "much"]) == 64
    assert simulate_command([out, "--anat", "T2w", "--t2w-resolution", "1", "2"]) == 64
    assert not Path(out).exists()
    capsys.readouterr()
