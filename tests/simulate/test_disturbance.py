"""Disturbances of a simulated series: limits that are kept, signal that is, gradients that turn with the head, files of truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tractode.cli.simulate import _parser, _settings
from tractode.fields import GradientTable, Image, ImageGrid
from tractode.io.nifti import read_image
from tractode.ops import epi
from tractode.ops import volume_pose as pose
from tractode.simulate import bias, disturbance, eddy, motion, outliers
from tractode.simulate.gradients import multi_shell
from tractode.simulate.subject import SubjectSettings
from tractode.simulate.tissues import Anatomy
from tractode.workflows.simulate_raw import write_raw
from tractode.workflows.simulate_settings import SimulationSettings
from tractode.workflows.simulate_truth import write_truth
from tractode.workflows.simulate_visit import Visit, plan, template_bundles, visit

EVERYTHING = disturbance.DisturbanceSettings(
    motion.HeadMotionSettings(4.0, 3.0),
    eddy.EddySettings(1.5),
    outliers.DroppedSlicesSettings(0.1),
    bias.BiasSettings(0.3),
)


def _ball() -> Anatomy:
    """A head of 45 mm: fluid in the middle, white around it, then grey; in the built-in template's space."""
    from tractode.io.builtin_template import SPACE

    affine = torch.eye(4, dtype=torch.float64) * 3
    affine[:3, 3], affine[3, 3] = -60, 1
    grid = ImageGrid((41, 41, 41), affine, SPACE)
    r = grid.centres().norm(dim=-1)
    parts = torch.stack(((r >= 34) & (r < 45), (r >= 14) & (r < 34), r < 14)).float()
    return Anatomy(Image(grid, (0.7 * parts[0] + parts[1] + 0.2 * parts[2])[None]), Image(grid, parts))


def test_the_head_moves_as_far_as_it_may_and_starts_where_it_lies() -> None:
    rigid = motion.head_motion(60, torch.Generator().manual_seed(1), motion.HeadMotionSettings(5.0, 4.0))
    assert float(rigid[0].abs().max()) == 0
    assert float(rigid[:, :3].norm(dim=-1).max()) == pytest.approx(5.0)
    assert float(torch.rad2deg(rigid[:, 3:].norm(dim=-1)).max()) == pytest.approx(4.0)


def test_a_moved_head_is_the_head_elsewhere(oblique_affine: torch.Tensor) -> None:
    """A smooth blob, whose place is known after the motion."""
    grid = ImageGrid((24, 22, 20), oblique_affine, "x")
    centre = grid.to_world(torch.tensor([11.0, 10.0, 9.0]).double())
    rigid = torch.tensor([[0.0] * 6, [3.0, -2.0, 1.0, 0.1, -0.2, 0.15]], dtype=torch.float64)
    place = centre + torch.tensor([6.0, -5.0, 4.0]).double()
    there = pose.moved(place[None], rigid, centre)[:, 0]
    points = grid.centres(torch.float64)
    blobs = torch.stack([torch.exp(-(points - at).square().sum(-1) / 72) for at in there])
    found = motion.moved(blobs[:1].expand(2, -1, -1, -1).contiguous(), grid, rigid, centre)
    assert torch.allclose(found[:, 4:-4, 4:-4, 4:-4], blobs[:, 4:-4, 4:-4, 4:-4], atol=5e-3)


def test_gradients_turn_the_other_way_round() -> None:
    """A head turned by 90° about z sees a gradient along y as one along x."""
    table = GradientTable(
        torch.tensor([1000.0]).double(), torch.tensor([[0.0, 1.0, 0.0]]).double(), torch.tensor([False])
    )
    quarter = torch.tensor([[0.0, 0, 0, 0, 0, torch.pi / 2]], dtype=torch.float64)
    seen = motion.seen_by_head(table, quarter).bvecs[0]
    assert torch.allclose(seen, torch.tensor([1.0, 0.0, 0.0]).double(), atol=1e-12)


def test_eddy_currents_follow_the_gradients_and_spare_b0() -> None:
    gtab = multi_shell(((1000.0, 30), (3000.0, 30)), 3)
    found = eddy.eddy_terms(
        gtab, torch.Generator().manual_seed(2), replace(EVERYTHING.eddy or eddy.EddySettings(), deviation=0.0)
    )
    assert float(found[gtab.is_b0].abs().max()) == 0
    strength = (gtab.bvals / gtab.bvals.max()).sqrt()[:, None] * gtab.bvecs
    fit = torch.linalg.lstsq(strength, found).solution
    assert torch.allclose(strength @ fit, found, atol=1e-10)


def test_only_slices_of_weighted_volumes_lose_signal() -> None:
    gtab = multi_shell(((1000.0, 200),), 20)
    left = outliers.signal_left(gtab, 40, torch.Generator().manual_seed(3), outliers.DroppedSlicesSettings(0.05))
    assert float(left[gtab.is_b0].min()) == 1
    lost = left[~gtab.is_b0] < 1
    assert float(lost.double().mean()) == pytest.approx(0.05, abs=0.006)
    assert 0.1 <= float(left.min()) < float(left[left < 1].max()) <= 0.6


def test_the_shading_is_as_strong_as_asked_for(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((24, 22, 20), oblique_affine, "x")
    brain = torch.zeros(grid.shape, dtype=torch.bool)
    brain[4:20, 4:18, 3:17] = True
    logs = bias.coil_shading(grid, brain, torch.Generator().manual_seed(4), bias.BiasSettings(0.3))[brain].log()
    assert float(logs.mean()) == pytest.approx(0, abs=1e-9)
    assert float(logs.std()) == pytest.approx(0.3, rel=1e-6)


@pytest.fixture(scope="module")
def disturbed() -> tuple[Visit, Visit, SimulationSettings]:
    """A coarse visit, disturbed in every way, and the same undisturbed; without noise."""
    settings = SimulationSettings(
        resolution=(5.0, 5.0, 5.5), t1w_resolution=5.0, shells=((1000.0, 6),), n_b0=2, oblique_deg=11.0,
        subject=SubjectSettings(snr=None, t1w_snr=None, fibres_per_bundle=5), disturbance=EVERYTHING,
    )  # fmt: skip
    made = []
    for each in (settings, replace(settings, disturbance=disturbance.DisturbanceSettings())):
        shared = plan(_ball(), each)
        made.append(visit(shared, 0, 0, template_bundles(shared, 0)))
    return made[0], made[1], settings


def test_the_undisturbed_signal_is_the_truth_of_the_disturbed_one(
    disturbed: tuple[Visit, Visit, SimulationSettings],
) -> None:
    with_it, without, _ = disturbed
    happened = with_it.disturbance
    assert happened is not None
    assert without.disturbance is None
    assert torch.equal(with_it.true.signal, without.true.signal)
    # The first volume neither moves nor has eddy currents: it is shaded only (being scanned line by line smooths it a little).
    still = torch.zeros(with_it.true.grid.shape, dtype=torch.float64)
    expected = (epi.distorted(without.true.signal[:1], still, 1)[0] * happened.shading).float()
    assert torch.allclose(with_it.dwi.signal[0], expected, rtol=1e-4, atol=0.01)
    assert float((with_it.dwi.signal[-1] - expected).abs().max()) > 50


def test_what_happened_is_written(disturbed: tuple[Visit, Visit, SimulationSettings], tmp_path: Path) -> None:
    made, _, settings = disturbed
    write_raw(tmp_path, made, settings)
    write_truth(tmp_path / "truth", made)
    assert made.disturbance is not None
    folder = tmp_path / "truth" / "sub-01" / "dwi"
    table = np.genfromtxt(folder / "sub-01_desc-motion_timeseries.tsv", names=True)
    assert len(table) == len(made.dwi.gtab)
    assert np.allclose(table["rot_y"], made.disturbance.rigid[:, 4].numpy(), rtol=1e-4, atol=1e-8)
    assert np.allclose(table["eddy_xy"], made.disturbance.eddy[:, 6].numpy(), rtol=1e-4, atol=1e-8)
    slices = np.loadtxt(folder / "sub-01_desc-slices_timeseries.tsv", skiprows=1)
    assert np.allclose(slices, made.disturbance.left.numpy(), atol=1e-4)
    shading = read_image(folder / "sub-01_desc-shading_dwimap.nii.gz", "x")[0]
    assert np.allclose(shading.values[0], made.disturbance.shading, rtol=1e-4)
    sidecar = json.loads((tmp_path / "sub-01" / "dwi" / "sub-01_dwi.json").read_text())
    assert sidecar["PhaseEncodingDirection"] == "j-"
    assert "disturbed" in sidecar["Description"]


def test_the_command_asks_for_each_part_alone() -> None:
    def parsed(*more: str) -> disturbance.DisturbanceSettings:
        return _settings(_parser().parse_args(["out", *more])).disturbance

    assert parsed() == disturbance.DisturbanceSettings()
    assert parsed("--head-motion", "3") == disturbance.DisturbanceSettings(motion=motion.HeadMotionSettings(3.0, 3.0))
    assert parsed("--eddy-currents", "2").eddy == eddy.EddySettings(2.0)
    assert parsed("--dropped-slices", "0.02").dropped == outliers.DroppedSlicesSettings(0.02)
    assert parsed("--shading", "0.2").bias == bias.BiasSettings(0.2)
