"""Motion, eddy currents and lost slices of a phantom whose truth is known; what cannot be found is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.preprocess import phantom_series as phantom
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import DWI, Affine, GradientTable, Image
from tractode.ops import volume_pose as pose
from tractode.preprocess.alignment import Rounds
from tractode.preprocess.eddy import PhaseEncoding, constant_part, geometry
from tractode.preprocess.field_of_view import seen_by_all
from tractode.preprocess.level import Level
from tractode.preprocess.motion import MotionEstimate, MotionSettings, correct_motion, framewise_displacement, why_not
from tractode.preprocess.outliers import lost_volumes
from tractode.preprocess.resample import noise_gain, resampled, splined

QUICK = MotionSettings(smoothing=(9.0, 6.0, 5.0), points=6000)


def _left(scan: DWI, estimate: MotionEstimate, rigid: Tensor, eddy: Tensor) -> Tensor:
    """Mean distance (mm) in the head between where each volume is read and where it should be, for each volume."""
    grid, is_b0 = scan.grid, scan.gtab.is_b0
    points = grid.to_world(scan.mask.nonzero()[::13].double())
    back = pose.inverse(rigid[is_b0].mean(0, keepdim=True)).expand(len(rigid), -1)
    truth = geometry(grid, phantom.middle(grid), PhaseEncoding(1)).read_at(points, pose.then(back, rigid), eddy)[0]
    found = geometry(grid, estimate.centre, PhaseEncoding(1)).read_at(points, estimate.rigid, estimate.eddy)[0]
    return ((truth - found) * torch.tensor(grid.voxel_sizes).double()).norm(dim=-1).mean(-1)


@pytest.fixture(scope="module")
def disturbed() -> tuple[DWI, Tensor, Tensor, Tensor]:
    """A scan with motion up to 3 mm and degrees, eddy currents, noise and two slices that lost signal."""
    from scipy.spatial.transform import Rotation

    affine = torch.eye(4, dtype=torch.float64)
    turn = torch.tensor(Rotation.from_euler("zyx", [9, -12, 7], degrees=True).as_matrix())
    affine[:3, :3] = turn @ torch.diag(torch.tensor([-2.0, -2.3, 2.6], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([31.0, 17.0, -44.0], dtype=torch.float64)
    gtab = phantom.table()
    rigid = phantom.motions(len(gtab))
    response = torch.randn(3, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    eddy = gtab.bvecs @ response * torch.tensor([2.0] * 3 + [0.3] * 6, dtype=torch.float64)
    scan = phantom.scan(phantom.grid_of(affine), gtab, rigid, eddy, sigma=15.0)
    lost = torch.zeros(len(gtab), scan.grid.shape[2], dtype=torch.bool)
    for volume, number, kept in ((5, 12, 0.3), (14, 9, 0.6)):
        scan.signal[volume, :, :, number] *= kept
        lost[volume, number] = True
    return scan, rigid, eddy, lost


@pytest.fixture(scope="module")
def estimate(disturbed: tuple[DWI, Tensor, Tensor, Tensor]) -> MotionEstimate:
    return correct_motion(disturbed[0], PhaseEncoding(1), QUICK)


def test_motion_and_eddy_currents_are_found(
    disturbed: tuple[DWI, Tensor, Tensor, Tensor], estimate: MotionEstimate
) -> None:
    scan, rigid, eddy, _ = disturbed
    nothing = MotionEstimate(
        scan.grid, estimate.centre, None, torch.zeros_like(rigid), torch.zeros_like(eddy),
        estimate.outliers, estimate.scores, estimate.correlation,
    )  # fmt: skip
    before, after = _left(scan, nothing, rigid, eddy), _left(scan, estimate, rigid, eddy)
    assert float(before.mean()) > 1.0
    assert float(after.mean()) < 0.3
    assert float(after[scan.gtab.is_b0].mean()) < 0.1
    assert float(estimate.correlation.min()) > 0.98


def test_lost_slices_are_found_and_no_others(
    disturbed: tuple[DWI, Tensor, Tensor, Tensor], estimate: MotionEstimate
) -> None:
    assert torch.equal(estimate.outliers, disturbed[3])


def test_the_series_is_put_right_in_one_go(
    disturbed: tuple[DWI, Tensor, Tensor, Tensor], estimate: MotionEstimate
) -> None:
    """Against the head lying still where it lay on average in the b=0 volumes."""
    scan, rigid, _, _ = disturbed
    mean = rigid[scan.gtab.is_b0].mean(0, keepdim=True).expand(len(rigid), -1)
    truth = phantom.scan(scan.grid, estimate.rotated(scan.gtab), mean, torch.zeros(len(rigid), 9).double())
    found = resampled(scan, estimate).scan
    turn = pose.rotations(mean[:1, 3:])[0]
    expected = pose.rotations(rigid[:, 3:]).mT @ scan.gtab.bvecs[..., None]
    assert float((found.gtab.bvecs @ turn - expected[..., 0]).norm(dim=-1).max()) < 0.02
    before = float((scan.signal - truth.signal)[:, scan.mask].square().mean().sqrt())
    after = float((found.signal - truth.signal)[:, scan.mask].square().mean().sqrt())
    assert after < 0.35 * before
    assert float((found.signal - truth.signal)[5][:, :, 12][scan.mask[:, :, 12]].abs().mean()) < 40


def test_a_still_head_is_left_where_it_is(oblique_affine: Tensor) -> None:
    gtab = phantom.table(12, 2)
    zero = torch.zeros(len(gtab), 6, dtype=torch.float64)
    scan = phantom.scan(phantom.grid_of(oblique_affine), gtab, zero, torch.zeros(len(gtab), 9).double(), sigma=15.0)
    found = correct_motion(scan, None, QUICK)
    assert float(found.rigid[:, :3].norm(dim=-1).max()) < 0.25
    assert float(torch.rad2deg(found.rigid[:, 3:].norm(dim=-1)).max()) < 0.4
    assert not bool(found.outliers.any())
    assert "phase encoding" in found.notes[0]


def test_lost_slices_are_filled_in_from_a_prediction_of_another_grid(oblique_affine: Tensor) -> None:
    """A prediction that is a plane in mm, made on a coarse grid, is the same plane when a finer level is at work."""
    gtab = phantom.table(6, 1)
    zero = torch.zeros(len(gtab), 6, dtype=torch.float64)
    scan = phantom.scan(phantom.grid_of(oblique_affine), gtab, zero, torch.zeros(len(gtab), 9).double())
    rounds = Rounds(scan, None, QUICK, None)
    coarse = Level(scan.grid, scan.mask, 16.0, 1000).grid
    rounds.level = Level(scan.grid, scan.mask, 2.0, 1000)
    assert coarse.shape != rounds.level.grid.shape
    slope = torch.tensor([1.0, -2.0, 0.5])
    rounds.prediction = Image(coarse, (coarse.centres() @ slope).expand(len(gtab), -1, -1, -1).clone())
    index = torch.cartesian_prod(*(torch.arange(8.0, 13.0).double() for _ in range(3)))
    expected = scan.grid.to_world(index).float() @ slope
    torch.testing.assert_close(rounds._predicted_at(0, index), expected, atol=1e-2, rtol=0)


def test_a_volume_that_shows_nothing_is_told_and_has_its_neighbours_pose(oblique_affine: Tensor) -> None:
    """One weighted volume nearly dark, another pure noise as bright as the rest; the last b=0 is one of three and stays."""
    gtab = phantom.table(12, 2)
    rigid = torch.zeros(len(gtab), 6, dtype=torch.float64)
    rigid[:, 0] = torch.linspace(0, 2, len(gtab))
    scan = phantom.scan(phantom.grid_of(oblique_affine), gtab, rigid, torch.zeros(len(gtab), 9).double(), sigma=15.0)
    assert not bool(lost_volumes(scan.signal, scan.mask, gtab).any())
    scan.signal[4] *= 1e-3
    generator = torch.Generator().manual_seed(0)
    scan.signal[10] = 600 * torch.rand(scan.grid.shape, generator=generator)
    assert lost_volumes(scan.signal, scan.mask, gtab).nonzero()[:, 0].tolist() == [4, 10]
    found = correct_motion(scan, None, MotionSettings(smoothing=(10.0,), steps=1, points=1000))
    assert found.outliers.all(-1).nonzero()[:, 0].tolist() == [4, 10]
    assert torch.allclose(found.rigid[4], (found.rigid[3] + found.rigid[5]) / 2)
    assert "4, 10" in found.notes[-1]


def test_two_volumes_meet(oblique_affine: Tensor) -> None:
    """Two b=0 volumes, one shifted: they come together, and do not change places."""
    gtab = GradientTable(torch.zeros(2).double(), torch.zeros(2, 3).double(), torch.ones(2, dtype=torch.bool))
    rigid = torch.zeros(2, 6, dtype=torch.float64)
    rigid[1, :3] = torch.tensor([0.6, -0.4, 0.5])
    scan = phantom.scan(phantom.grid_of(oblique_affine), gtab, rigid, torch.zeros(2, 9).double(), sigma=10.0)
    found = correct_motion(scan, None, QUICK).rigid
    assert torch.allclose((found[1] - found[0])[:3], rigid[1, :3], atol=0.06)
    assert torch.allclose(found.mean(0), torch.zeros(6).double(), atol=1e-6)


def test_a_series_without_b0_and_with_a_lone_shell_is_aligned(oblique_affine: Tensor) -> None:
    gtab = phantom.table(9, 1)
    gtab.bvecs[0] = torch.tensor([0.0, 0.0, 1.0])
    gtab = GradientTable(torch.where(gtab.is_b0, 700.0, gtab.bvals), gtab.bvecs, torch.zeros(10).bool())
    rigid = torch.zeros(10, 6, dtype=torch.float64)
    rigid[0, 2] = 2.0
    scan = phantom.scan(phantom.grid_of(oblique_affine), gtab, rigid, torch.zeros(10, 9).double(), sigma=10.0)
    found = correct_motion(scan, None, replace(QUICK, smoothing=(6.0, 6.0))).rigid
    assert float((found[0] - found[1:].mean(0))[2]) == pytest.approx(2.0, abs=0.5)


def test_nothing_to_undo_is_the_scan_itself(oblique_affine: Tensor) -> None:
    gtab = phantom.table(6, 1)
    zero = torch.zeros(len(gtab), 6, dtype=torch.float64)
    scan = phantom.scan(phantom.grid_of(oblique_affine), gtab, zero, torch.zeros(len(gtab), 9).double())
    assert torch.allclose(resampled(scan, None).scan.signal, scan.signal, atol=0.1)


def _estimate(scan: DWI, rigid: Tensor) -> MotionEstimate:
    """Poses that are known, and no lost slices."""
    n, slices = len(scan.gtab), scan.grid.shape[2]
    zero = torch.zeros(n, slices, dtype=torch.float64)
    return MotionEstimate(
        scan.grid, phantom.middle(scan.grid), None, rigid, torch.zeros(n, 9).double(), zero.bool(), zero,
        torch.ones(n).double(),
    )  # fmt: skip


def test_what_a_volume_does_not_see_is_not_in_the_mask(oblique_affine: Tensor) -> None:
    """One weighted volume lies three slices higher: the uppermost slices were not measured in it."""
    gtab = phantom.table(6, 1)
    zero = torch.zeros(len(gtab), 6, dtype=torch.float64)
    scan = phantom.scan(phantom.grid_of(oblique_affine), gtab, zero, torch.zeros(len(gtab), 9).double())
    scan = replace(scan, signal=scan.signal + 100, mask=torch.ones(scan.grid.shape, dtype=torch.bool))
    rigid = zero.clone()
    rigid[3, :3] = 3 * scan.grid.affine[:3, 2]
    found = resampled(scan, _estimate(scan, rigid))
    assert not bool(found.scan.mask[:, :, -3:].any())
    assert bool(found.scan.mask[:, :, :-3].all())
    assert torch.equal(found.seen, found.scan.mask)
    assert float(found.scan.signal[:, found.scan.mask].min()) > 50


def test_noughts_beyond_a_volumes_own_view_are_not_seen(oblique_affine: Tensor) -> None:
    """Four slices of one volume are noughts; lone noughts, a lost slice, dark fluid and air are none of these."""
    gtab, grid = phantom.table(8, 2), phantom.grid_of(oblique_affine)
    signal = torch.full((len(gtab), *grid.shape), 400.0)
    signal[:, :4] = 0  # air
    mask = signal[0] > 0
    signal[~gtab.is_b0, 15:20, 15:20, 15:20] = 0  # fluid
    signal[2, :, :, 24] = 0
    signal[3, 8, 9, 10] = 0
    scan = DWI(grid, signal, gtab, mask)
    assert bool(seen_by_all(scan).all())
    scan.signal[6, :, :, :4] = 0
    seen = seen_by_all(scan)
    assert not bool(seen[4:, :, :5].any())
    assert bool(seen[:, :, 5:].all())


def test_a_slice_that_no_volume_tells_is_not_called_replaced(oblique_affine: Tensor) -> None:
    gtab = phantom.table(6, 1)
    zero = torch.zeros(len(gtab), 6, dtype=torch.float64)
    scan = phantom.scan(phantom.grid_of(oblique_affine), gtab, zero, torch.zeros(len(gtab), 9).double())
    lost = torch.zeros(len(gtab), scan.grid.shape[2], dtype=torch.bool)
    lost[0, 5] = True  # the only b=0 volume
    lost[~gtab.is_b0, 12] = True
    lost[2, 20] = True
    found = resampled(scan, replace(_estimate(scan, zero), outliers=lost))
    assert found.unreplaced.nonzero().tolist() == [pair for pair in lost.nonzero().tolist() if pair != [2, 20]]
    torch.testing.assert_close(found.scan.signal[:, :, :, 12], scan.signal[:, :, :, 12], atol=0.1, rtol=0)
    # A slice beside a lost one serves if there is nothing better.
    lost[~gtab.is_b0, 12], lost[3:6, 12] = False, True
    lost[1, 11], lost[2, 13], lost[6, 11] = True, True, True
    again = resampled(scan, replace(_estimate(scan, zero), outliers=lost))
    assert again.unreplaced.nonzero().tolist() == [[0, 5]]


def test_what_interpolation_leaves_of_noise(generator: torch.Generator) -> None:
    noise = torch.randn(30, 30, 30, generator=generator)
    inner = torch.cartesian_prod(*(torch.arange(4.0, 26.0).double() for _ in range(3)))
    for shift in ((0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (0.3, -0.4, 0.1)):
        at = inner + torch.tensor(shift).double()
        seen = float(torch.from_numpy(splined(noise, at)).square().mean())
        assert float(noise_gain(at).mean()) == pytest.approx(seen, rel=0.05)
    assert float(noise_gain(inner).mean()) == pytest.approx(1.0, abs=1e-5)


def test_a_field_is_undone_together_with_a_way_from_another_space(oblique_affine: Tensor) -> None:
    """A constant field shifts by whole voxels; a target space one voxel off takes one of them back."""
    gtab = phantom.table(6, 1)
    zero = torch.zeros(len(gtab), 6, dtype=torch.float64)
    scan = phantom.scan(phantom.grid_of(oblique_affine), gtab, zero, torch.zeros(len(gtab), 9).double())
    hz = torch.full(scan.grid.shape, 40.0)
    encoding = PhaseEncoding(1, -1, 0.05)
    found = resampled(scan, None, hz, encoding).scan
    assert torch.allclose(found.signal[:, :, 4:-4], scan.signal[:, :, 2:-6], atol=0.2)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = scan.grid.affine[:3, 1]
    other = scan.grid.renamed("sub-01_run-2_dwi")
    moved = resampled(scan, None, hz, encoding, other, Affine(matrix, other.space, scan.grid.space)).scan
    assert moved.grid.space == other.space
    assert torch.allclose(moved.signal[:, :, 4:-4], scan.signal[:, :, 3:-5], atol=0.2)


def test_a_table_that_tells_nothing_of_motion_is_refused(oblique_affine: Tensor) -> None:
    gtab = phantom.table(3, 1)
    zero = torch.zeros(len(gtab), 6, dtype=torch.float64)
    scan = phantom.scan(phantom.grid_of(oblique_affine), gtab, zero, torch.zeros(len(gtab), 9).double())
    assert why_not(gtab) is not None
    with pytest.raises(InputDataError, match="E-MOTION-TABLE"):
        correct_motion(scan)


def test_displacement_counts_shifts_and_arcs() -> None:
    rigid = torch.zeros(3, 6, dtype=torch.float64)
    rigid[1, 0], rigid[2, 0], rigid[2, 4] = 1.0, 1.0, -0.01
    assert framewise_displacement(rigid).tolist() == pytest.approx([0.0, 1.0, 0.5])


def test_the_constant_of_the_eddy_field_is_not_the_heads() -> None:
    gtab = phantom.table()

    n = len(gtab)
    time = torch.linspace(0, 1, n, dtype=torch.float64)
    strength = (gtab.bvals.double() / gtab.bvals.max()).sqrt()
    constant = strength * (gtab.bvecs.double() @ torch.tensor([0.4, -1.1, 1.9], dtype=torch.float64))
    drift = 0.8 * time - 0.3 * time**2
    found = constant_part(gtab, drift + constant)
    torch.testing.assert_close(found, constant, atol=1e-9, rtol=0)
    torch.testing.assert_close(constant_part(gtab, drift), torch.zeros(n).double(), atol=1e-9, rtol=0)
    assert not bool(constant_part(gtab[:9], (drift + constant)[:9]).any())
