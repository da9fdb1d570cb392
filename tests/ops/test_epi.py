"""Echo-planar distortion: shifts and brightness against closed forms, and the two directions against one another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tractode.ops import epi
from tractode.ops.spline import cubic_basis

DOUBLE = torch.float64


def blob(shape: tuple[int, int, int], centre: tuple[float, float, float], width: float) -> Tensor:
    axes = [torch.arange(n, dtype=DOUBLE) - c for n, c in zip(shape, centre, strict=True)]
    squares = sum(d.square().reshape([-1 if a == n else 1 for a in range(3)]) for n, d in enumerate(axes))
    return torch.exp(-0.5 * torch.as_tensor(squares) / width**2)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [2.25, -1.5])
def test_a_constant_field_moves_everything_by_as_much_and_loses_nothing(axis: int, shift: float) -> None:
    shape = (21, 22, 23)
    image = blob(shape, (10, 11, 11), 1.5)[None]
    moved = epi.distorted(image, torch.full(shape, shift, dtype=DOUBLE), axis)
    assert float(moved.sum()) == pytest.approx(float(image.sum()), rel=1e-6)
    place = torch.arange(shape[axis], dtype=DOUBLE)
    profile = moved[0].sum([a for a in range(3) if a != axis])
    assert float((profile * place).sum() / profile.sum()) == pytest.approx((10, 11, 11)[axis] + shift, abs=1e-4)


def test_signal_pushed_together_is_brighter_by_as_much() -> None:
    """A shift of slope a stretches by 1 + a: a constant becomes 1 / (1 + a), and undistorted it is what it was."""
    n, slope = 60, -0.4
    place = torch.arange(n, dtype=DOUBLE)
    shift = (slope * (place - 30)).view(1, n, 1).expand(3, n, 3)
    image = torch.ones(1, 3, n, 3, dtype=DOUBLE)
    moved = epi.distorted(image, shift, 1, finer=64)
    torch.testing.assert_close(moved[:, :, 25:35], torch.full_like(moved[:, :, 25:35], 1 / 0.6), rtol=0.02, atol=0)
    back = epi.undistorted(moved, shift, 1)
    torch.testing.assert_close(back[:, :, 16:44], image[:, :, 16:44], rtol=0.02, atol=0)
    unmodulated = epi.undistorted(moved, shift, 1, modulated=False)
    torch.testing.assert_close(unmodulated[:, :, 25:35], moved[:, :, 25:35], rtol=0.02, atol=0)


def test_undistorting_gives_back_what_was_distorted() -> None:
    shape = (12, 40, 10)
    image = (blob(shape, (6, 14, 5), 4.0) + 0.7 * blob(shape, (5, 25, 4), 3.0))[None]
    shift = 3.0 * blob(shape, (6, 20, 5), 8.0)
    found = epi.undistorted(epi.distorted(image, shift, 1), shift, 1)
    assert float((found - image).abs().max()) < 0.04
    assert float((epi.distorted(image, shift, 1) - image).abs().max()) > 0.4


def test_the_sign_of_the_encoding_turns_the_shift() -> None:
    field = torch.tensor([10.0, -20.0])
    torch.testing.assert_close(epi.shift_vox(field, 1, 0.05), torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(epi.shift_vox(field, -1, 0.05), torch.tensor([-0.5, 1.0]))


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 8, 2, dtype=DOUBLE, generator=generator, requires_grad=True)
    shift = (0.7 * torch.rand(3, 8, 2, dtype=DOUBLE, generator=generator) - 0.33).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, s: epi.undistorted(i, s, 1), (image, shift))
    assert torch.autograd.gradcheck(lambda i, s: epi.distorted(i, s, 1, finer=3), (image, shift))


def test_splines_add_up_to_one_and_reproduce_a_line() -> None:
    at = torch.linspace(0, 50, 41)
    basis = cubic_basis(at, 50.0, 7.0)
    torch.testing.assert_close(basis.sum(1), torch.ones(41))
    nodes = 7.0 * torch.arange(-1, basis.shape[1] - 1)
    torch.testing.assert_close(basis @ nodes, at, atol=1e-4, rtol=0)
