"""CSA, Q-ball and GQI against DIPY, and against closed forms."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from tractode.contracts import table_of_shells
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.models import odf
from tractode.models.csa import CSA
from tractode.models.gqi import GQI, kernel_factors
from tractode.models.q_ball import QBall
from tractode.ops import sh_extrema, sphere
from tractode.ops import spherical_harmonics as sh

_PROBES = sphere.directions(300)


def _crossing(gtab: GradientTable, n: int = 30, seed: int = 3, noise: float = 0.02) -> torch.Tensor:
    """Two tensors (1.7, 0.3 µm²/ms) along random axes, with noise."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(n, 2, 3, generator=generator, dtype=torch.float64)
    axes = axes / axes.norm(dim=-1, keepdim=True)
    cosines = torch.einsum("md,vkd->vkm", gtab.bvecs, axes)
    signal = 500 * (-gtab.bvals * (0.3e-3 + 1.4e-3 * cosines**2)).exp().mean(1)
    return (signal + 500 * noise * torch.randn(signal.shape, generator=generator, dtype=torch.float64)).abs()


def _dipy_table(gtab: GradientTable):  # type: ignore[no-untyped-def]
    from dipy.core.gradients import gradient_table

    return gradient_table(gtab.bvals.numpy(), bvecs=gtab.bvecs.numpy())


def _dipy_odf(model: object, signal: torch.Tensor) -> torch.Tensor:
    from dipy.core.sphere import Sphere

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.asarray(model.fit(signal.numpy()).odf(Sphere(xyz=_PROBES.numpy()))))  # type: ignore[attr-defined]


@pytest.mark.reference
def test_constant_solid_angle_equals_that_of_dipy() -> None:
    from dipy.reconst.shm import CsaOdfModel

    gtab = table_of_shells((2500.0,), 60)
    signal = _crossing(gtab)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = _dipy_odf(CsaOdfModel(_dipy_table(gtab), 8, smooth=0.006), signal)
    ours = CSA().to_maps(CSA().fit(signal, gtab))["odf"] @ sh.basis(_PROBES, 8).mT
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.reference
def test_q_ball_equals_that_of_dipy() -> None:
    from dipy.reconst.shm import QballModel

    gtab = table_of_shells((2500.0,), 60)
    signal = _crossing(gtab)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = _dipy_odf(QballModel(_dipy_table(gtab), 8, smooth=0.006), signal)
    ours = QBall().to_maps(QBall().fit(signal, gtab))["odf"] @ sh.basis(_PROBES, 8).mT
    # Theirs is not scaled to an integral of 1.
    scale = theirs.mean(-1, keepdim=True) / ours.mean(-1, keepdim=True)
    torch.testing.assert_close(ours * scale, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.reference
@pytest.mark.parametrize("method", ["standard", "gqi2"])
def test_generalised_q_sampling_equals_that_of_dipy(method: str) -> None:
    from dipy.reconst.gqi import GeneralizedQSamplingModel

    gtab = table_of_shells((1000.0, 2500.0), 60)
    signal = _crossing(gtab)
    theirs = _dipy_odf(GeneralizedQSamplingModel(_dipy_table(gtab), method=method, sampling_length=1.25), signal)
    for order, tolerance in ((16, 1e-5), (8, 1e-2)):  # cut at order 8, as the app writes it
        model = GQI(method=method, order=order)  # type: ignore[arg-type]
        ours = len(gtab) * (model.fit(signal, gtab) @ sh.basis(_PROBES, order).mT)
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < tolerance


def test_constant_solid_angle_of_a_tensor_has_a_closed_form() -> None:
    """A Gaussian: (4π)⁻¹ |D|^(−1/2) (uᵀD⁻¹u)^(−3/2); ln D(u) of this one is nearly of order 8."""
    gtab = table_of_shells((2500.0,), 90)
    axis = torch.tensor([0.48, 0.6, 0.64], dtype=torch.float64)
    diffusivity = 0.9e-3 + 0.3e-3 * (gtab.bvecs @ axis) ** 2
    signal = (100 * (-gtab.bvals * diffusivity).exp())[None]
    model = CSA(smooth=0.0)
    ours = (model.to_maps(model.fit(signal, gtab))["odf"] @ sh.basis(_PROBES, 8).mT)[0]
    cosine = (_PROBES @ axis).square()
    inverse = cosine / 1.2e-3 + (1 - cosine) / 0.9e-3
    exact = inverse**-1.5 / (4 * math.pi * math.sqrt(1.2e-3 * 0.9e-3**2))
    torch.testing.assert_close(ours, exact, rtol=1e-3, atol=0.0)


def test_q_ball_is_the_integral_over_the_great_circle() -> None:
    gtab = table_of_shells((1000.0,), 90)
    axis = torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64)
    signal = (100 * (-gtab.bvals * (0.3e-3 + 0.9e-3 * (gtab.bvecs @ axis) ** 2)).exp())[None]
    model = QBall(smooth=0.0)
    ours = (model.to_maps(model.fit(signal, gtab))["odf"] @ sh.basis(_PROBES, 8).mT)[0]
    angle = torch.arange(360).double() * (2 * math.pi / 360)
    frame = sphere.frame_to_z(_PROBES)
    circle = frame[:, :1] * angle.cos()[:, None] + frame[:, 1:2] * angle.sin()[:, None]
    exact = (-1000.0 * (0.3e-3 + 0.9e-3 * (circle @ axis) ** 2)).exp().mean(-1)
    torch.testing.assert_close(ours / ours.mean(), exact / exact.mean(), rtol=2e-4, atol=0.0)


def test_kernel_factors_rebuild_the_kernel() -> None:
    lengths = torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64)
    cosines = torch.linspace(-1, 1, 41, dtype=torch.float64)
    legendre = torch.from_numpy(
        np.stack([np.polynomial.legendre.Legendre.basis(n)(cosines.numpy()) for n in range(0, 17, 2)])
    )
    weight = (2 * torch.arange(0, 17, 2) + 1).double() / (4 * math.pi)
    rebuilt = (kernel_factors(lengths, 16, "standard") * weight) @ legendre
    torch.testing.assert_close(rebuilt, torch.sinc(lengths[:, None] * cosines / math.pi), rtol=0, atol=1e-8)
    radius = (torch.arange(4000).double() + 0.5) / 4000
    by_hand = (radius**2 * (radius * 5.0 * 0.7).cos()).mean()
    again = (kernel_factors(lengths[2:], 16, "gqi2") * weight)[0] @ torch.from_numpy(
        np.stack([np.polynomial.legendre.Legendre.basis(n)(0.7) for n in range(0, 17, 2)])
    )
    assert float(again) == pytest.approx(float(by_hand), abs=1e-6)


def test_an_isotropic_medium_is_predicted_exactly_by_q_sampling() -> None:
    gtab = table_of_shells((1000.0, 3000.0), 45)
    signal = (400 * (-gtab.bvals * 0.7e-3).exp())[None]
    params = GQI().fit(signal, gtab)
    torch.testing.assert_close(GQI().predict(params, gtab), signal, rtol=2e-2, atol=0.0)
    maps = GQI().to_maps(params)
    assert float(maps["qa"]) < 0.02 * float(maps["iso"])
    assert float(maps["gfa"]) < 0.01


@pytest.mark.parametrize("model", [CSA(), QBall(), GQI()], ids=["csa", "qball", "gqi"])
def test_the_peak_lies_along_the_fibre_in_the_scanner_frame(model: CSA | QBall | GQI) -> None:
    gtab = table_of_shells((3000.0,), 64)
    axis = torch.tensor([0.36, -0.48, 0.8], dtype=torch.float64)
    signal = (300 * (-gtab.bvals * (0.3e-3 + 1.4e-3 * (gtab.bvecs @ axis) ** 2)).exp())[None]
    _, peak = sh_extrema.largest(model.to_sh(model.fit(signal, gtab), 8))
    assert float(torch.rad2deg(sphere.angle(peak[0], axis))) < 0.5


def test_gfa_is_that_of_dense_sampling() -> None:
    coefficients = 0.2 * torch.randn(5, 45, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    values = coefficients @ sh.basis(sphere.directions(20000), 8).mT
    dense = (1 - values.mean(-1) ** 2 / values.square().mean(-1)).sqrt()
    torch.testing.assert_close(odf.gfa(coefficients)[:, 0], dense, rtol=1e-4, atol=0.0)


def test_the_largest_value_is_found_and_its_slope_is_right() -> None:
    coefficients = torch.randn(20, 45, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    coefficients = coefficients / (1 + sh.degrees(8))
    value, axis = sh_extrema.largest(coefficients)
    dense = (coefficients @ sh.basis(sphere.directions(20000), 8).mT).amax(-1)
    assert bool((value[:, 0] >= dense - 1e-12).all())
    torch.testing.assert_close(value[:, 0], dense, rtol=5e-3, atol=0.0)
    assert float((axis.norm(dim=-1) - 1).abs().max()) < 1e-12
    variable = coefficients[:1, :15].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: sh_extrema.largest(c)[0], variable)


@pytest.mark.parametrize("model", [CSA(), QBall()], ids=["csa", "qball"])
def test_one_shell_of_several_is_used_and_named(model: CSA | QBall) -> None:
    gtab = table_of_shells((1000.0, 3000.0), 30)
    used = model.explains(gtab)
    assert set(gtab.bvals[used].tolist()) == {0.0, 3000.0}
    signal = _crossing(gtab, 4)
    torch.testing.assert_close(model.fit(signal, gtab)[:, 1:], model.fit(signal[:, used], gtab[used])[:, 1:])
    if isinstance(model, QBall):
        with pytest.raises(InputDataError, match="E-ODF-SHELL"):
            model.predict(model.fit(signal, gtab), gtab)


def _lattice(reach: int, largest_b: float) -> GradientTable:
    """A half ball of a Cartesian grid in q-space, turned against the scanner."""
    from scipy.spatial.transform import Rotation

    line = torch.arange(-reach, reach + 1).double()
    points = torch.cartesian_prod(line, line, line)
    order = points[:, 2] * 100 + points[:, 1] * 10 + points[:, 0]
    points = points[(points.square().sum(-1) <= reach**2) & (order >= 0)]
    size = points.norm(dim=-1)
    turn = torch.tensor(Rotation.from_euler("xyz", [0.3, 0.5, -0.2]).as_matrix())
    bvecs = points / size.clamp_min(1)[:, None] @ turn.mT
    return GradientTable(largest_b * (size / reach) ** 2, bvecs, size == 0)


def test_a_grid_in_q_space_will_do_for_q_sampling_and_the_propagator() -> None:
    from tractode.models.map_mri import MAPMRI

    gtab = _lattice(4, 4000.0)
    axis = torch.tensor([0.36, -0.48, 0.8], dtype=torch.float64)
    signal = (300 * (-gtab.bvals * (0.4e-3 + 1.2e-3 * (gtab.bvecs @ axis) ** 2)).exp())[None]
    assert GQI.why_not(gtab) is None
    _, peak = sh_extrema.largest(GQI().fit(signal, gtab))
    assert float(torch.rad2deg(sphere.angle(peak[0], axis))) < 3
    assert MAPMRI.why_not(gtab) is None
    maps = MAPMRI(diffusion_time=0.05).to_maps(MAPMRI().fit(signal, gtab))
    volume = (4 * math.pi * 0.05) ** 1.5 * math.sqrt(1.6e-3 * 0.4e-3**2)
    assert float(maps["rtop"]) == pytest.approx(1 / volume, rel=1e-6)
    assert "shell" in (CSA.why_not(gtab) or "")
