"""Quality: correlations, contrast and lost slices with known answers; the prediction of left-out volumes."""

from __future__ import annotations

import math

import pytest
import torch
from tests.preprocess import phantom_series as phantom

from tractode.fields import DWI, GradientTable, ImageGrid
from tractode.ops import sphere
from tractode.preprocess.outliers import OutlierSettings, deviations, outlying, slice_losses
from tractode.preprocess.prediction import Process, fitted, left_out, predicted
from tractode.preprocess.quality import contrast_to_noise, neighbour_correlation

SHAPE = (14, 12, 10)


def _signals(n: int, sigma: float, generator: torch.Generator, n_b0: int = 4, b: float = 1000.0) -> DWI:
    """Tensors of random directions, one a voxel, with Gaussian noise."""
    gtab = phantom.table(n, n_b0, b)
    axis = torch.randn(*SHAPE, 3, generator=generator, dtype=torch.float64)
    axis = axis / axis.norm(dim=-1, keepdim=True)
    along = torch.einsum("ijkx,nx->nijk", axis, gtab.bvecs)
    clean = 1000 * torch.exp(-gtab.bvals[:, None, None, None] * (0.3e-3 + 1.2e-3 * along**2))
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    grid = ImageGrid(SHAPE, torch.eye(4, dtype=torch.float64), "x")
    return DWI(grid, noisy.float(), gtab, torch.ones(SHAPE, dtype=torch.bool))


def test_left_out_volumes_are_predicted_as_well_as_the_noise_allows(generator: torch.Generator) -> None:
    scan = _signals(40, 20.0, generator)
    values, weighted = scan.voxels().mT.double() / 1000, ~scan.gtab.is_b0
    gtab = scan.gtab[weighted]
    process = fitted(gtab, values[weighted] @ values[weighted].mT / values.shape[1])
    assert process.noise == pytest.approx(0.02, rel=0.15)
    weights = left_out(gtab, process)
    assert float(weights.diagonal().abs().max()) == 0
    rest = (predicted(weights, values[weighted]) - values[weighted]).square().mean().sqrt()
    # The noise of the volume itself, and that of a fit of 15 parameters or so to 39 others.
    assert float(rest) < 0.02 * math.sqrt(1 + 15 / 24)


def test_the_matrix_is_the_conditional_mean_of_the_process() -> None:
    """Against solving for one volume from the rest, with one volume absent."""
    gtab = phantom.table(12, 2)
    process, weighted = Process(), ~gtab.is_b0
    present = torch.ones(len(gtab), dtype=torch.bool)
    present[5] = False
    weights = left_out(gtab, process, present)
    index = weighted.nonzero()[:, 0]
    covariance = process.covariance(gtab[weighted])
    for row, volume in enumerate(index.tolist()):
        known = torch.tensor([place for place, other in enumerate(index.tolist()) if other not in (volume, 5)])
        total = covariance[known[:, None], known] + process.noise**2 * torch.eye(len(known), dtype=torch.float64)
        expected = torch.linalg.solve(total, covariance[known, row])
        assert torch.allclose(weights[volume, index[known]], expected, atol=1e-9)
        assert float(weights[volume, 5]) == 0
    assert torch.equal(weights[gtab.is_b0][0].nonzero()[:, 0], gtab.is_b0.nonzero()[1:, 0])


def test_a_lone_b0_volume_is_its_own_prediction() -> None:
    gtab = phantom.table(8, 1)
    weights = left_out(gtab, Process())
    assert float(weights[0, 0]) == 1
    assert float(weights[0, 1:].abs().sum()) == 0


def test_neighbours_agree_less_the_more_noise_there_is(generator: torch.Generator) -> None:
    clean, noisy = _signals(32, 0.0, generator), _signals(32, 100.0, generator)
    few, much = (neighbour_correlation(scan)[1] for scan in (clean, noisy))
    spread = float(clean.signal[~clean.gtab.is_b0].flatten(1).var(1).mean())
    assert few > 0.6
    assert much == pytest.approx(
        few * spread / (spread + 100.0**2), abs=0.03
    )  # noise of both attenuates a correlation so
    only = _signals(1, 5.0, generator)
    assert all(math.isnan(value) for value in neighbour_correlation(only))


def test_contrast_to_noise_is_that_of_the_signal(generator: torch.Generator) -> None:
    scan = _signals(60, 25.0, generator, n_b0=12)
    found = contrast_to_noise(scan)
    assert set(found) == {0.0, 1000.0}
    assert found[0.0]["median"] == pytest.approx(1000 / 25, rel=0.1)
    clean = _signals(60, 0.0, torch.Generator().manual_seed(0), n_b0=12)
    expected = float(clean.signal[~clean.gtab.is_b0].std(0).median()) / 25
    assert found[1000.0]["median"] == pytest.approx(expected, rel=0.2)
    assert contrast_to_noise(_signals(3, 5.0, generator, n_b0=1)) == {}


def test_slices_that_lost_signal_stand_out(generator: torch.Generator) -> None:
    n, slices = 20, 15
    gtab = phantom.table(n, 2)
    losses = 0.01 * torch.randn(len(gtab), slices, generator=generator, dtype=torch.float64)
    losses[4, 6], losses[9, 3] = -0.4, 0.4
    losses[:, 0] = math.nan
    z = deviations(losses, gtab)
    found = outlying(losses, z, OutlierSettings())
    assert found.nonzero().tolist() == [[4, 6]]
    assert float(z[:, 0].abs().max()) == 0


def test_the_loss_of_a_slice_is_a_share_of_what_was_expected(generator: torch.Generator) -> None:
    expected = 100 + torch.rand(9, 8, 7, generator=generator)
    signal, mask = expected.clone(), torch.ones(9, 8, 7, dtype=torch.bool)
    signal[:, 3] *= 0.5
    mask[:, 0] = False
    found = slice_losses(signal, expected, mask, 1, 10)
    assert float(found[3]) == pytest.approx(-0.5, abs=1e-6)
    assert math.isnan(float(found[0]))
    assert float(found[4]) == pytest.approx(0, abs=1e-9)


def test_scattered_b_values_are_judged_together(generator: torch.Generator) -> None:
    bvals = torch.tensor([0.0, 0.0, *(500.0 + 300 * k for k in range(10))], dtype=torch.float64)
    bvecs = torch.cat((torch.zeros(2, 3, dtype=torch.float64), sphere.directions(10)))
    losses = torch.zeros(12, 3, dtype=torch.float64) + 0.01 * torch.rand(12, 3, generator=generator).double()
    losses[5, 1] = -0.5
    assert float(deviations(losses, GradientTable(bvals, bvecs, bvals == 0))[5, 1]) < -10
