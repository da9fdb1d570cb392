"""MAP-MRI against closed forms of Gaussians and DIPY's formulas."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from tractode.contracts import table_of_shells
from tractode.fields import GradientTable
from tractode.models.map_mri import MAPMRI
from tractode.ops import oscillator_basis as oscillator
from tractode.ops import symmetric

_TABLE = table_of_shells((1000.0, 2000.0, 3000.0), 40)


def _tensor(values: list[float]) -> torch.Tensor:
    """A tensor (mm²/s) of given eigenvalues (µm²/ms), turned off every axis."""
    from scipy.spatial.transform import Rotation

    turn = torch.tensor(Rotation.from_euler("xyz", [0.4, -0.8, 1.9]).as_matrix())
    return turn @ (1e-3 * torch.tensor(values).double()).diag() @ turn.mT


def _gaussian(tensor: torch.Tensor, gtab: GradientTable) -> torch.Tensor:
    return (-gtab.bvals * torch.einsum("ni,ij,nj->n", gtab.bvecs, tensor, gtab.bvecs)).exp()


def test_a_gaussian_has_the_closed_forms() -> None:
    values, time = [1.6, 0.5, 0.3], 0.04
    model = MAPMRI(diffusion_time=time)
    maps = model.to_maps(model.fit(300 * _gaussian(_tensor(values), _TABLE)[None], _TABLE))
    scale = [math.sqrt(4 * math.pi * time * 1e-3 * value) for value in values]
    assert float(maps["rtpp"]) == pytest.approx(1 / scale[0], rel=1e-7)
    assert float(maps["rtap"]) == pytest.approx(1 / (scale[1] * scale[2]), rel=1e-7)
    assert float(maps["rtop"]) == pytest.approx(1 / math.prod(scale), rel=1e-7)
    assert float(maps["msd"]) == pytest.approx(2 * time * 1e-3 * sum(values), rel=1e-7)
    assert float(maps["ng"]) < 1e-6
    assert float(maps["s0"]) == pytest.approx(300, rel=1e-7)


def test_a_mixture_of_two_gaussians_is_near_its_closed_form() -> None:
    """Return-to-origin probabilities add; the expansion of order 6 is an approximation."""
    first, second, time = [1.8, 0.5, 0.4], [1.4, 0.3, 0.3], 0.04
    signal = 0.5 * _gaussian(_tensor(first), _TABLE) + 0.5 * _gaussian(_tensor(second), _TABLE)
    model = MAPMRI(diffusion_time=time, smooth=0.0)
    maps = model.to_maps(model.fit(signal[None], _TABLE))

    def origin(values: list[float]) -> float:
        return 1 / math.prod(math.sqrt(4 * math.pi * time * 1e-3 * value) for value in values)

    assert float(maps["rtop"]) == pytest.approx((origin(first) + origin(second)) / 2, rel=0.02)
    assert float(maps["msd"]) == pytest.approx(time * 1e-3 * (sum(first) + sum(second)), rel=0.01)
    assert 0.01 < float(maps["ng"]) < 0.3


def test_without_penalty_a_fit_is_a_projection() -> None:
    model = MAPMRI(smooth=0.0)
    params = model.example(seed=4, n=8)
    generator = torch.Generator().manual_seed(4)
    signal = model.predict(params, _TABLE)
    signal = signal * (1 + 0.03 * torch.randn(signal.shape, generator=generator, dtype=torch.float64))
    once = model.fit(signal, _TABLE)
    torch.testing.assert_close(model.fit(model.predict(once, _TABLE), _TABLE), once, rtol=1e-6, atol=1e-8)


@pytest.mark.reference
def test_maps_equal_those_of_dipy_for_the_same_scale() -> None:
    from dipy.core.gradients import gradient_table
    from dipy.reconst.mapmri import MapmriFit, MapmriModel, mapmri_phi_matrix

    signal = 0.6 * _gaussian(_tensor([1.9, 0.6, 0.4]), _TABLE) + 0.4 * _gaussian(_tensor([0.8, 0.3, 1.5]), _TABLE)
    ours = MAPMRI(smooth=0.0)
    params = ours.fit(signal[None], _TABLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = gradient_table(_TABLE.bvals.numpy(), bvecs=_TABLE.bvecs.numpy())
        theirs = MapmriModel(table, radial_order=6, laplacian_regularization=False)
        values, vectors = symmetric.eigen(params[0, :6] * 1e-3)
        mu, turn = (2 * theirs.tau * values).sqrt().numpy(), vectors.numpy()
        q = _TABLE.bvecs.numpy() @ turn * (np.sqrt(_TABLE.bvals.numpy() / theirs.tau) / (2 * np.pi))[:, None]
        design = mapmri_phi_matrix(6, mu, q)
        coefficients = np.linalg.lstsq(design, signal.numpy(), rcond=None)[0]
        fitted = MapmriFit(theirs, coefficients / (coefficients @ theirs.Bm), mu, turn, 0.0)
        maps = ours.to_maps(params)
        np.testing.assert_allclose(ours.predict(params, _TABLE)[0].numpy(), design @ coefficients, rtol=1e-8)
        for name in ("rtop", "rtap", "rtpp", "msd", "ng"):
            assert float(maps[name]) == pytest.approx(float(getattr(fitted, name)()), rel=1e-6), name


def test_the_basis_is_orthonormal_and_its_roughness_that_of_differences() -> None:
    order = 4
    nodes, weights = np.polynomial.hermite.hermgauss(12)
    grid = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), -1).reshape(-1, 3)
    weight = np.einsum("i,j,k->ijk", weights, weights, weights).ravel() * np.exp((grid**2).sum(-1))
    points = torch.from_numpy(grid)
    values = oscillator.basis(points, order)
    gram = values.mT @ (torch.from_numpy(weight)[:, None] * values) / math.pi**1.5
    torch.testing.assert_close(gram, torch.eye(oscillator.n_functions(order)).double(), rtol=0, atol=1e-10)
    step = 1e-3
    shifts = step * torch.eye(3).double()
    laplacian = sum(
        oscillator.basis(points + shift, order) + oscillator.basis(points - shift, order) - 2 * values
        for shift in shifts
    ) / (step**2)
    rough = laplacian.mT @ (torch.from_numpy(weight)[:, None] * laplacian) / math.pi**1.5
    torch.testing.assert_close(rough, oscillator.roughness(order), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("shells", "n", "order"),
    [((1000.0,), 60, None), ((1000.0, 3000.0), 20, 4), ((1000.0, 2000.0, 3000.0), 30, 6)],
)
def test_the_order_follows_the_table(shells: tuple[float, ...], n: int, order: int | None) -> None:
    gtab = table_of_shells(shells, n)
    reason = MAPMRI.why_not(gtab)
    assert (reason is None) == (order is not None)
    if order is not None:
        params = MAPMRI().fit(_gaussian(_tensor([1.2, 0.6, 0.4]), gtab)[None], gtab)
        last = 7 + oscillator.n_functions(order)
        assert float(params[0, last:].abs().sum()) == 0
        assert float(params[0, 7]) == pytest.approx(1, abs=1e-6)
