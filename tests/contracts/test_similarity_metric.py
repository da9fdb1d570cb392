"""The laws of similarity metrics and of regularisers, over their registries."""

from __future__ import annotations

import pytest
import torch

from tractode.io.weights import load_metric
from tractode.registration import METRICS, REGULARISERS

SIZES = (2.0, 2.5, 3.0)


def picture(shift: float = 0.0, n: int = 18) -> torch.Tensor:
    """A smooth image in closed form, float64, in [0, 1]."""
    axes = [torch.arange(n, dtype=torch.float64) for _ in range(3)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    x = x + shift
    waves = torch.sin(x / 1.9 + y / 4) + torch.cos(y / 2.3 - z / 5) + torch.sin(z / 2.1 + x / 6)
    return (0.5 + waves / 6)[None]


@pytest.mark.parametrize("name", METRICS)
def test_least_at_identity(name: str) -> None:
    metric = load_metric(name)
    costs = [float(metric(picture(), picture(shift))) for shift in (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)]
    assert min(costs) == costs[3]
    assert costs[0] > costs[1] > costs[2] > costs[3] < costs[4] < costs[5] < costs[6]


@pytest.mark.parametrize("name", METRICS)
def test_multimodal_metrics_forgive_another_contrast(name: str) -> None:
    """Inverted, scaled and offset intensities: still least at identity for those that promise it, and not for others."""
    metric = load_metric(name)
    costs = [float(metric(picture(), 70 - 30 * picture(shift))) for shift in (-1.5, 0.0, 1.5)]
    if metric.is_multimodal:
        assert min(costs) == costs[1]
        assert costs[1] == pytest.approx(float(metric(picture(), picture())), abs=0.01)
    else:
        assert costs[1] > 100 * float(metric(picture(), picture()) + 1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_declared_invariances_hold(name: str) -> None:
    """The cost at the truth hardly changes next to what two voxels of shift change, and the truth stays the least."""
    metric = load_metric(name)
    plain = float(metric(picture(), picture()))
    rise = float(metric(picture(), picture(2.0))) - plain
    x = torch.arange(18, dtype=torch.float64)[:, None, None]
    changed = {
        "linear": lambda image: 12 - 5 * image,
        "shading": lambda image: image * (1 + 0.4 * x / 18),
        "mapping": lambda image: torch.exp(2 * image),
    }
    for what in metric.invariances:
        costs = [float(metric(picture(), changed[what](picture(shift)))) for shift in (-1.0, 0.0, 1.0)]
        assert min(costs) == costs[1], what
        assert abs(costs[1] - plain) < (0.05 if what == "linear" else 0.3) * rise, what


@pytest.mark.parametrize("name", METRICS)
def test_gradcheck(name: str) -> None:
    """Thirty voxels, none of them an extreme: metrics that scale by the extremes hold them fixed."""
    metric = load_metric(name)
    fixed, moving = picture(n=8), picture(0.4, n=8)
    order = torch.randperm(moving.numel(), generator=torch.Generator().manual_seed(1))
    flat = moving.flatten()
    chosen = torch.tensor([int(n) for n in order if int(n) not in (int(flat.argmin()), int(flat.argmax()))][:30])

    def cost(values: torch.Tensor) -> torch.Tensor:
        return 100 * metric(fixed, flat.scatter(0, chosen, values).reshape(moving.shape))

    assert torch.autograd.gradcheck(cost, (flat[chosen].clone().requires_grad_(True),), atol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_gradient_is_the_derivative(name: str) -> None:
    """Along a random direction; extremes stay put because MI scales by them."""
    metric = load_metric(name)
    fixed, moving = picture(n=9), picture(0.4, n=9).clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(metric(fixed, moving), moving)
    direction = torch.rand(moving.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 0.5
    flat = moving.detach().flatten()
    direction.view(-1)[[int(flat.argmin()), int(flat.argmax())]] = 0
    step = 1e-6
    with torch.no_grad():
        rise = metric(fixed, moving + step * direction) - metric(fixed, moving - step * direction)
    assert float((gradient * direction).sum()) == pytest.approx(float(rise) / (2 * step), rel=2e-4)


@pytest.mark.parametrize("name", METRICS)
def test_masked_voxels_have_no_gradient(name: str) -> None:
    metric = load_metric(name)
    mask = torch.zeros(18, 18, 18, dtype=torch.float64)
    mask[:7] = 1
    moving = picture(0.6).requires_grad_(True)
    (gradient,) = torch.autograd.grad(metric(picture(), moving, mask), moving)
    assert float(gradient[:, :7].abs().max()) > 0
    assert float(gradient[:, 7:].abs().max()) == 0


@pytest.mark.parametrize("name", METRICS)
def test_inputs_untouched(name: str) -> None:
    fixed, moving = picture(), picture(1.0)
    load_metric(name)(fixed, moving)
    assert torch.equal(fixed, picture())
    assert torch.equal(moving, picture(1.0))


def test_mutual_information_of_a_known_histogram() -> None:
    """An absolute anchor: two fair coins, one the other's negation, share ln 2."""
    from tractode.registration.metrics.mutual_information import mutual_information, normalised_mutual_information

    mirrored = torch.tensor([[0.0, 8.0], [8.0, 0.0]], dtype=torch.float64)
    assert float(mutual_information(mirrored)) == pytest.approx(0.693147, abs=1e-5)
    assert float(normalised_mutual_information(mirrored)) == pytest.approx(2.0, abs=1e-6)
    independent = torch.tensor([[1.0, 3.0], [2.0, 6.0]], dtype=torch.float64)
    assert float(mutual_information(independent)) == pytest.approx(0.0, abs=1e-8)


# --- regularisers ---------------------------------------------------------------------------------------------------


def positions(n: int = 8) -> torch.Tensor:
    axes = [torch.arange(n, dtype=torch.float64) * size for size in SIZES]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


@pytest.mark.parametrize("name", REGULARISERS)
def test_a_shift_costs_nothing(name: str) -> None:
    if REGULARISERS[name].resists_shifts:
        pytest.skip("it declares that it resists shifts")
    values = torch.ones(3, 8, 8, 8, dtype=torch.float64) * torch.tensor([3.0, -2.0, 7.0]).double().reshape(3, 1, 1, 1)
    assert float(REGULARISERS[name]()(values, SIZES)) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("name", REGULARISERS)
def test_regulariser_gradcheck(name: str) -> None:
    values = 4 * torch.rand(3, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    penalty = REGULARISERS[name]()
    assert float(penalty(values, SIZES)) > 0
    assert torch.autograd.gradcheck(lambda v: penalty(v, SIZES), (values.requires_grad_(True),))


def test_gradient_and_bending_of_known_fields() -> None:
    """u = (0.2 x, 0, −0.1 y): slopes 0.2 and 0.1, no curvature. u = (0.01 x²/2 + 0.02 x y, 0, 0): known second derivatives."""
    x, y, _ = positions()
    zero = torch.zeros_like(x)
    linear = torch.stack([0.2 * x, zero, -0.1 * y])
    assert float(REGULARISERS["gradient"]()(linear, SIZES)) == pytest.approx(0.2**2 + 0.1**2)
    assert float(REGULARISERS["bending"]()(linear, SIZES)) == pytest.approx(0, abs=1e-20)
    curved = torch.stack([0.005 * x**2 + 0.02 * x * y, zero, zero])
    assert float(REGULARISERS["bending"]()(curved, SIZES)) == pytest.approx(0.01**2 + 2 * 0.02**2)


@pytest.mark.parametrize("name", REGULARISERS)
def test_weights_vary_over_space(name: str) -> None:
    """Twice the weight costs twice; a place of weight 0 is free; a map of ones is no map."""
    penalty = REGULARISERS[name]()
    values = 4 * torch.rand(3, 9, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    plain = float(penalty(values, SIZES))
    assert float(penalty(values, SIZES, torch.ones(9, 9, 9, dtype=torch.float64))) == pytest.approx(plain)
    assert float(penalty(values, SIZES, torch.full((9, 9, 9), 2.0, dtype=torch.float64))) == pytest.approx(2 * plain)
    half = torch.ones(9, 9, 9, dtype=torch.float64)
    half[:5] = 0
    leaf = values.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(penalty(leaf, SIZES, half), leaf)
    assert float(gradient[:, :3].abs().max()) == 0
    assert float(gradient[:, 5:].abs().max()) > 0


def test_magnitude_and_curvature_of_known_fields() -> None:
    """u = (3, 0, 4) has length 5; u = (x²/2 · 0.02 − y²/2 · 0.01, 0, 0) has the Laplacian 0.01."""
    x, y, _ = positions()
    zero = torch.zeros_like(x)
    assert float(REGULARISERS["magnitude"]()(torch.stack([zero + 3, zero, zero + 4]), SIZES)) == pytest.approx(25)
    curved = torch.stack([0.01 * x**2 - 0.005 * y**2, zero, zero])
    assert float(REGULARISERS["curvature"]()(curved, SIZES)) == pytest.approx(1e-4)
    assert float(REGULARISERS["curvature"]()(torch.stack([x * y, zero, zero]), SIZES)) == pytest.approx(0, abs=1e-20)


def test_barrier_sees_a_fold_between_two_voxels() -> None:
    """One voxel pushed past its neighbour: its own central difference is 1."""
    values = torch.zeros(3, 7, 7, 7, dtype=torch.float64)
    values[0, 3, 3, 3] = 1.3 * SIZES[0]
    from tractode.registration.regularisers.folding import Folding

    assert float(Folding(epsilon=1e-6)(values, SIZES)) > 0
    assert float(Folding(epsilon=1e-6, ten=False)(values, SIZES)) == 0
    costs = [float(Folding(epsilon=e)(0.3 * values, SIZES)) for e in (0.1, 0.3, 0.5, 0.7)]
    assert costs == sorted(costs)


def test_folding_barrier_of_known_fields() -> None:
    """u = −1.5 x folds everywhere with determinant −0.5; the bound is 0.3."""
    x, y, z = positions()
    zero = torch.zeros_like(x)
    penalty = REGULARISERS["folding"]()
    assert float(penalty(torch.stack([-1.5 * x, zero, zero]), SIZES)) == pytest.approx(0.8**2)
    assert float(penalty(torch.stack([-0.2 * x, 0.3 * y, 0.1 * z]), SIZES)) == 0
