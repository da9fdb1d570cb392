"""The laws of every registered signal model (HOUSE §7)."""

from __future__ import annotations

import pytest
import torch

from tractode.contracts import SignalModel
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.models import MODELS
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh


def _turn() -> torch.Tensor:
    from scipy.spatial.transform import Rotation

    return torch.tensor(Rotation.from_euler("xyz", [0.4, -0.8, 1.9]).as_matrix())


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> SignalModel:
    return MODELS[request.param]()


def test_fit_undoes_predict(model: SignalModel) -> None:
    gtab, params = model.example_table(), model.example(seed=1)
    fitted = model.fit(model.predict(params, gtab), gtab)
    worst = ((fitted - params).abs().amax(0) / params.abs().amax()).amax()
    assert float(worst) < model.recovers


def test_scalar_maps_stay_and_vector_maps_turn_with_the_head(model: SignalModel) -> None:
    gtab, turn = model.example_table(), _turn()
    signal = model.predict(model.example(seed=2), gtab)
    straight = model.to_maps(model.fit(signal, gtab))
    # The head turned by R sees the same signals along directions turned by R.
    turned = model.to_maps(model.fit(signal, gtab.rotated(turn)))
    for spec in model.maps:
        a, b = straight[spec.param], turned[spec.param]
        if spec.components == "scalar":
            assert spec.invariant
            torch.testing.assert_close(b, a, rtol=5e-3, atol=5e-3 * float(a.abs().max()))
        elif spec.components == "unit3vector":
            assert float(torch.rad2deg(sphere.angle(b, a @ turn.mT)).max()) < 0.01
        elif spec.components == "tensor":
            from tractode.ops import symmetric

            torch.testing.assert_close(b, symmetric.rotate(turn, a), rtol=1e-6, atol=1e-12)
        elif spec.components == "sh":
            probes = sphere.directions(50)
            order = round(((8 * a.shape[-1] + 1) ** 0.5 - 3) / 2)
            before, after = a @ sh.basis(probes, order).mT, b @ sh.basis(probes @ turn.mT, order).mT
            assert float((after - before).abs().max()) < 0.02 * float(before.max())
        else:
            raise AssertionError(f"no law for maps of {spec.components}")


def test_diffusivity_maps_read_that_of_an_isotropic_voxel(model: SignalModel) -> None:
    maps_in_mm2_s = [
        spec for spec in model.maps if spec.units == "mm^2/s" and spec.components == "scalar" and not spec.of_part
    ]
    if not maps_in_mm2_s:
        pytest.skip("this model has no map of a diffusivity")
    gtab, diffusivity = model.example_table(), 0.7e-3
    signal = 300 * (-gtab.bvals * diffusivity).exp()[None]
    maps = model.to_maps(model.fit(signal, gtab))
    for spec in maps_in_mm2_s:
        assert float(maps[spec.param]) == pytest.approx(diffusivity, rel=1e-6), spec.param


def test_predict_has_the_right_gradient(model: SignalModel) -> None:
    params = model.example(seed=3, n=2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: model.predict(p, model.example_table(max(8, model.needs.directions))), params, atol=1e-4
    )


def test_fit_is_differentiable(model: SignalModel) -> None:
    gtab = model.example_table(20)
    signal = model.predict(model.example(seed=3, n=1), gtab)
    direction = torch.randn(signal.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    direction = direction * signal * 1e-3
    variable = signal.clone().requires_grad_()
    scale = torch.linspace(0.5, 1.5, model.fit(signal, gtab).shape[1], dtype=torch.float64)
    (slope,) = torch.autograd.grad((model.fit(variable, gtab) * scale).sum(), variable)
    step = 1e-3
    ahead, behind = ((model.fit(signal + s * step * direction, gtab) * scale).sum() for s in (1, -1))
    assert float((slope * direction).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-3)


def test_voxel_order_and_batch_size_do_not_matter(model: SignalModel) -> None:
    gtab = model.example_table(20)
    signal = model.predict(model.example(seed=4, n=40), gtab)
    signal = signal * (
        1 + 0.05 * torch.randn(signal.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    )
    signal = signal.float()
    whole = model.fit(signal, gtab)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(model.fit(signal[order], gtab), whole[order], rtol=0, atol=0)
    torch.testing.assert_close(
        torch.cat([model.fit(signal[:7], gtab), model.fit(signal[7:], gtab)]), whole, rtol=0, atol=0
    )


def test_inputs_are_not_modified(model: SignalModel) -> None:
    gtab = model.example_table(20)
    signal = model.predict(model.example(seed=6), gtab)
    before = signal.clone(), gtab.bvecs.clone(), gtab.bvals.clone()
    params = model.fit(signal, gtab)
    kept = params.clone()
    model.to_maps(params)
    assert torch.equal(signal, before[0])
    assert torch.equal(gtab.bvecs, before[1])
    assert torch.equal(gtab.bvals, before[2])
    assert torch.equal(params, kept)


def test_dtype_follows_the_signal(model: SignalModel) -> None:
    gtab = model.example_table(20)
    signal = model.predict(model.example(seed=6, n=3), gtab)
    assert model.fit(signal.float(), gtab).dtype == torch.float32
    assert model.fit(signal, gtab).dtype == torch.float64


@pytest.mark.parametrize("kind", ["five directions", "one plane", "no weighting"])
def test_too_small_a_table_raises_and_says_why(model: SignalModel, kind: str) -> None:
    full = model.example_table(20)
    angles = torch.linspace(0, 3, 20).double()
    flat = torch.stack([angles.cos(), angles.sin(), 0 * angles], -1)
    gtab = {
        "five directions": full[:6],
        "one plane": GradientTable(
            torch.cat([torch.zeros(1), torch.full((20,), 1500.0)]).double(),
            torch.cat([torch.zeros(1, 3).double(), flat]),
            torch.arange(21) == 0,
        ),
        "no weighting": GradientTable(
            torch.zeros(8).double(), torch.zeros(8, 3).double(), torch.ones(8, dtype=torch.bool)
        ),
    }[kind]
    reason = model.why_not(gtab)
    if reason is None and kind != "no weighting":
        # A model with few unknowns may do with this table; then it must do.
        params = model.example(seed=8)
        torch.testing.assert_close(model.fit(model.predict(params, gtab), gtab), params, rtol=1e-6, atol=1e-9)
        return
    assert reason
    with pytest.raises(InputDataError) as caught:
        model.fit(torch.ones(2, len(gtab), dtype=torch.float64), gtab)
    assert caught.value.exit_code == 65
    assert caught.value.found in caught.value.args[0]


def test_enough_directions_are_accepted(model: SignalModel) -> None:
    assert model.why_not(model.example_table(30)) is None


def test_maps_are_those_declared(model: SignalModel) -> None:
    maps = model.to_maps(model.example(seed=7))
    assert list(maps) == [spec.param for spec in model.maps]
    assert all(values.shape[0] == 32 and bool(torch.isfinite(values).all()) for values in maps.values())


def test_dead_voxels_give_finite_maps(model: SignalModel) -> None:
    gtab = model.example_table(20)
    maps = model.to_maps(model.fit(torch.zeros(3, len(gtab)), gtab))
    assert all(bool(torch.isfinite(values).all()) for values in maps.values())
