"""Distorted scans: which way signal goes, what field maps show, and that one field of one head explains every scan."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tractode.fields import Affine, Chain, Image, ImageGrid
from tractode.ops import epi
from tractode.preprocess.field_map import as_radians, field_from_phase, field_from_two
from tractode.simulate.echo_planar import Encoding, distorted, field_on
from tractode.simulate.field_map import GradientEchoSettings, gradient_echoes
from tractode.simulate.head_field import HeadField, head_field
from tractode.simulate.poses import MovementSettings, rigid
from tractode.simulate.seeds import stream
from tractode.simulate.susceptibility import SusceptibilitySettings, field_of_air
from tractode.simulate.tissues import Anatomy
from tractode.simulate.warp import WarpSettings, participant_warp

DOUBLE = torch.float64
AIR = SusceptibilitySettings(air=(((5.0, 12.0, -55.0), 14.0),))


def blob(grid: ImageGrid, centre: Tensor, width: float) -> Tensor:
    return torch.exp(-0.5 * (grid.centres(DOUBLE) - centre).square().sum(-1) / width**2)


def middle_of(values: Tensor, grid: ImageGrid) -> Tensor:
    return (values[..., None] * grid.centres(DOUBLE)).sum((0, 1, 2)) / values.sum()


@pytest.mark.parametrize(("letters", "direction", "label"), [
    ("LAS", "j", "PA"), ("LAS", "j-", "AP"), ("RAS", "i", "LR"), ("LAS", "i", "RL"), ("LPS", "j", "AP"), ("LPS", "j-", "PA")
])  # fmt: skip
def test_a_positive_field_moves_signal_with_the_polarity(letters: str, direction: str, label: str) -> None:
    """BIDS: ``j`` goes from index zero upwards. On an LAS image that is P→A, as FSL's ``0 1 0``, and +20 Hz · 0.05 s is one voxel."""
    signs = [1.0 if letter in "RAS" else -1.0 for letter in letters]
    affine = torch.diag(torch.tensor([*(2.5 * sign for sign in signs), 1.0], dtype=DOUBLE))
    grid = ImageGrid((24, 26, 12), affine, "scan")
    signal = blob(grid, grid.to_world(torch.tensor([12.0, 13.0, 6.0], dtype=DOUBLE)), 4.0)
    encoding = Encoding(direction, 0.05)
    moved = distorted(signal[None], torch.full(grid.shape, 20.0, dtype=DOUBLE), encoding)[0]
    shift = middle_of(moved, grid) - middle_of(signal, grid)
    towards = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1)}[label[1]]
    wanted = torch.zeros(3, dtype=DOUBLE)
    wanted[towards[0]] = 2.5 * towards[1]
    torch.testing.assert_close(shift, wanted, atol=1e-3, rtol=0)
    assert encoding.label(grid) == label
    assert encoding.reversed().label(grid) == label[::-1]
    assert encoding.sidecar(grid)["EffectiveEchoSpacing"] == pytest.approx(0.05 / (grid.shape[encoding.axis] - 1))


def ball(space: str) -> Anatomy:
    """A head of 45 mm: white within, grey around it, in template space."""
    affine = torch.eye(4, dtype=DOUBLE) * 4
    affine[:3, 3], affine[3, 3] = -60, 1
    grid = ImageGrid((31, 31, 31), affine, space)
    r = grid.centres().norm(dim=-1)
    white, grey = (r < 32).float(), ((r >= 32) & (r < 45)).float()
    return Anatomy(
        Image(grid, (white + 0.7 * grey)[None]), Image(grid, torch.stack((grey, white, torch.zeros_like(r))))
    )


@pytest.fixture(scope="module")
def warp() -> Chain:
    return participant_warp(ball("T").t1w.grid, "sub-01_T1w", stream(3, 0, "warp"))


@pytest.fixture(scope="module")
def field(warp: Chain) -> HeadField:
    return head_field(ball("T"), warp, air=AIR)


def test_the_field_is_that_of_the_dipole_less_constant_and_slopes() -> None:
    still = {"rotation_deg": 0.0, "translation_mm": 0.0, "scale": 0.0, "shape_mm": 0.0, "asymmetry": 0.0}
    same = participant_warp(ball("T").t1w.grid, "T1w", stream(3, 0, "warp"), WarpSettings(**still))
    straight = head_field(ball("T"), same, air=AIR)
    points = 30 * torch.randn(400, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    apart = straight.at(points) - field_of_air(points, torch.tensor([0.0, 0.0, 1.0], dtype=DOUBLE), AIR)
    design = torch.cat((torch.ones(400, 1, dtype=DOUBLE), points), 1)
    left = apart - design @ torch.linalg.lstsq(design, apart[:, None]).solution[:, 0]
    assert float(left.abs().max()) < 1e-3
    assert float(straight.at(points).abs().max()) > 20


def test_the_strength_asked_for_is_that_of_the_brain(warp: Chain) -> None:
    brain = ball("T")
    strong = head_field(brain, warp, 80.0, AIR)
    inside = brain.tissues.grid.centres(DOUBLE)[brain.tissues.values.sum(0) > 0.5]
    assert float(strong.at(warp.inverse().map(inside)).abs().quantile(0.95)) == pytest.approx(80, rel=0.1)


def test_the_field_moves_with_the_head(oblique_affine: Tensor, field: HeadField) -> None:
    grid = ImageGrid((20, 22, 18), oblique_affine, "scan")
    pose = rigid("scan", "sub-01_T1w", torch.zeros(3), torch.Generator().manual_seed(2), MovementSettings(4.0, 5.0))
    assert float(torch.det(pose.matrix)) == pytest.approx(1.0)
    as_if_still = ImageGrid(grid.shape, pose.matrix @ grid.affine, "sub-01_T1w")
    torch.testing.assert_close(field_on(field, grid, pose), field_on(field, as_if_still))
    unmoved = rigid("scan", "sub-01_T1w", torch.zeros(3), torch.Generator().manual_seed(2), MovementSettings())
    torch.testing.assert_close(unmoved.matrix, torch.eye(4, dtype=DOUBLE))


def test_both_encodings_are_undone_by_the_one_field(oblique_affine: Tensor) -> None:
    grid = ImageGrid((20, 40, 18), oblique_affine, "scan")
    middle = grid.to_world(torch.tensor([10.0, 20.0, 9.0], dtype=DOUBLE))
    clean = torch.stack([blob(grid, middle + offset, 12.0) for offset in (0.0, 5.0)])
    hz = 40 * blob(grid, middle - 6.0, 15.0)
    for encoding in (Encoding("j-", 0.04), Encoding("j-", 0.04).reversed()):
        seen = distorted(clean, hz, encoding)
        torch.testing.assert_close(seen.sum((1, 2, 3)), clean.sum((1, 2, 3)), rtol=1e-3, atol=0)
        back = epi.undistorted(seen, epi.shift_vox(hz, encoding.sign, encoding.readout), encoding.axis)
        assert float((back - clean).abs().max()) < 0.03
        assert float((seen - clean).abs().max()) > 0.1


def echoes_of(snr: float | None, oblique_affine: Tensor) -> tuple:
    grid = ImageGrid((28, 30, 20), oblique_affine, "fmap")
    middle = grid.to_world(torch.tensor([14.0, 15.0, 10.0], dtype=DOUBLE))
    r = (grid.centres(DOUBLE) - middle).norm(dim=-1)
    tissues = torch.stack((torch.zeros_like(r), (r < 20).double(), ((r >= 20) & (r < 24)).double()))
    # Beyond the ±203 Hz of half a turn in 2.46 ms: the phase wraps.
    hz = 290 * blob(grid, middle, 18.0) - 60
    made = gradient_echoes(
        tissues, hz, grid, GradientEchoSettings(snr=snr), torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    )  # fmt: skip
    return grid, hz, tissues.sum(0) > 0.5, made


def test_a_positive_field_turns_the_second_echo_forward(oblique_affine: Tensor) -> None:
    _, hz, inside, made = echoes_of(None, oblique_affine)
    turn = 2 * math.pi * hz * 0.00246
    wanted = torch.atan2(turn.sin(), turn.cos())
    torch.testing.assert_close(made.difference[0][inside], wanted[inside], atol=1e-9, rtol=0)
    assert float(turn[inside].amax()) > math.pi
    torch.testing.assert_close(made.measured_hz[0][inside], hz[inside], atol=1e-6, rtol=0)
    assert float(made.magnitudes[:, ~inside].amax()) == 0


def test_the_field_is_found_again_from_difference_and_from_two_phases(oblique_affine: Tensor) -> None:
    grid, hz, inside, made = echoes_of(50.0, oblique_affine)
    magnitude = Image(grid, made.magnitudes[:1].float())
    stored = (made.difference * (4096 / math.pi)).round().clamp(-4096, 4095).float()
    times = GradientEchoSettings().echo_times
    first, second = (Image(grid, phase[None].float()) for phase in made.phases)
    for found in (
        field_from_phase(as_radians(Image(grid, stored), "arbitrary"), magnitude, times),
        field_from_two(first, second, magnitude, times),
        Image(grid, made.measured_hz.float()),
    ):
        error = (found.values[0].double() - hz)[inside].abs()
        # A noise of √2/50 rad in 2.46 ms is 1.8 Hz.
        assert float(error.median()) < 1.5
        assert float(error.quantile(0.95)) < 4.5


def test_a_pose_turns_about_the_centre_given() -> None:
    centre = torch.tensor([30.0, -20.0, 10.0])
    pose = rigid("a", "b", centre, torch.Generator().manual_seed(5), MovementSettings(0.0, 10.0))
    torch.testing.assert_close(pose.map(centre.double()), centre.double())
    assert isinstance(pose, Affine)
    angle = torch.arccos((pose.matrix[:3, :3].trace() - 1) / 2)
    assert 1 < math.degrees(float(angle)) < 40
