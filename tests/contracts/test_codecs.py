"""The laws of bundle codecs, over their registry: untrained small ones, and ours as shipped where its weights are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tractode.errors import InputDataError
from tractode.fields import Streamlines
from tractode.generative import CODECS
from tractode.generative.space import SPACE

pytestmark = pytest.mark.parametrize("name", list(CODECS))


@pytest.fixture
def codec(name: str) -> Any:
    return CODECS[name].tiny()


def curves(n: int = 70, seed: int = 0) -> Streamlines:
    """Smooth lines inside the template, by 8 to 40 points."""
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for _ in range(n):
        along = torch.linspace(-1, 1, int(torch.randint(8, 41, (), generator=generator)))[:, None]
        ends, bend, place = 12 * torch.randn(3, 3, generator=generator)
        lines.append(ends * along + 0.5 * bend * along**2 + place + torch.tensor([0.0, -18.0, 10.0]))
    return Streamlines.from_list(lines, SPACE)


def test_codes_are_in_range_and_lines_come_back_in_their_number(codec: Any) -> None:
    lines = curves()
    codes = codec.encode(lines)
    assert codes.n_streamlines == len(lines)
    assert codes.values.is_floating_point() != codec.is_discrete
    if codec.is_discrete:
        assert codes.values.shape[1] == len(codec.levels)
        assert bool((codes.values >= 0).all())
        assert bool((codes.values < torch.tensor(codec.levels)).all())
        per_row = float(torch.tensor(codec.levels, dtype=torch.float64).log2().sum())
        lines_per_row = 1 if codec.is_order_invariant else 64
        assert codec.bits_per_streamline == pytest.approx(per_row / lines_per_row)
    for n_points in (2, 31, 64):
        found = codec.decode(codes, n_points)
        assert found.space == codec.space == SPACE
        assert found.n_points.tolist() == [n_points] * len(lines)
        assert bool(found.points.isfinite().all())


def test_the_same_lines_give_the_same_bytes(codec: Any) -> None:
    lines = curves()
    kept = lines.points.clone()
    first, again = codec.encode(lines), codec.encode(lines)
    assert codec.is_deterministic
    assert first.values.dtype == again.values.dtype
    assert torch.equal(first.values, again.values)
    assert torch.equal(codec.decode(first).points, codec.decode(again).points)
    assert torch.equal(lines.points, kept)


def test_weights_there_and_back(codec: Any) -> None:
    same = type(codec).from_weights(*codec.weights())
    lines = curves()
    assert torch.equal(same.encode(lines).values, codec.encode(lines).values)
    assert same.bits_per_streamline == codec.bits_per_streamline


def test_reversal_and_order_as_declared(codec: Any) -> None:
    lines = curves(64)
    codes = codec.encode(lines).values
    turned = codec.encode(Streamlines.from_list([line.flip(0) for line in lines], SPACE)).values
    assert torch.equal(turned, codes) == codec.is_reversal_invariant
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    moved = codec.encode(lines.select(order)).values
    if codec.is_order_invariant:
        assert torch.equal(moved, codes[order])
    else:
        assert codes.shape[0] == 1  # one row is all 64 lines
        assert not torch.equal(moved, codes)


def test_no_lines_give_no_codes(codec: Any) -> None:
    nothing = Streamlines.from_list([], SPACE)
    codes = codec.encode(nothing)
    assert codes.n_streamlines == len(codes.values) == 0
    assert len(codec.decode(codes)) == 0


def test_lines_that_are_none_are_refused(codec: Any) -> None:
    broken = curves(3)
    broken.points[4, 1] = float("nan")
    with pytest.raises(InputDataError):
        codec.encode(broken)
    elsewhere = curves(3)
    with pytest.raises((InputDataError, ValueError)):
        codec.encode(Streamlines(elsewhere.points, elsewhere.offsets, "T1w"))
