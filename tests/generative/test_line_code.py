"""What codecs are given: exact under reversal and shuffling, and nothing that has no code."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tractode.fields import Streamlines
from tractode.fields.line_shape import one_way, resampled, runs_back
from tractode.generative.line_code import lines31, usable

SPACE = "MNI152NLin2009aSym"


def curves(n: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 90, (n,), generator=generator).tolist()
    steps = [torch.randn(size, 3, generator=generator) + torch.randn(3, generator=generator) for size in sizes]
    return [torch.tensor([-20.0, 10.0, 5.0]) * torch.rand(3, generator=generator) + one.cumsum(0) for one in steps]


def lines_of(parts: list[Tensor]) -> Streamlines:
    counts = torch.tensor([0] + [len(part) for part in parts])
    return Streamlines(torch.cat(parts), counts.cumsum(0), SPACE)


def test_a_circle_is_spaced_equally() -> None:
    angle = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    half = torch.stack([50 * angle.cos(), 50 * angle.sin(), torch.zeros_like(angle)], -1)
    points = resampled(lines_of([half]), 31)[0]
    expected = torch.linspace(0, math.pi, 31, dtype=torch.float64)
    assert torch.allclose(points[:, 0], 50 * expected.cos(), atol=1e-3)
    chord = torch.tensor(100 * math.sin(math.pi / 60), dtype=torch.float64)
    assert torch.allclose(points.diff(dim=0).norm(dim=-1), chord, atol=1e-4)


def test_flipped_and_shuffled_lines_give_the_same_bytes() -> None:
    parts = curves(300)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    changed = [parts[int(i)].flip(0) if int(i) % 2 else parts[int(i)] for i in order]
    assert torch.equal(lines31(lines_of(changed)), lines31(lines_of(parts))[order])


def test_a_closed_line_has_one_direction_too() -> None:
    angle = torch.linspace(0, 1, 50)[:, None] * 2 * math.pi
    loop = torch.cat([angle.cos(), angle.sin(), (2 * angle).sin()], -1) * 20
    loop = torch.cat([loop, loop[:1]])
    assert torch.equal(lines31(lines_of([loop])), lines31(lines_of([loop.flip(0)])))


def test_data_of_points_turn_with_them() -> None:
    line = torch.tensor([[0.0, 9, 0], [0, 5, 0], [0, 0, 0]])
    lines = Streamlines(line, torch.tensor([0, 3]), SPACE, {"fa": torch.tensor([1.0, 2, 3])})
    assert one_way(lines).per_point["fa"].tolist() == [3.0, 2.0, 1.0]
    assert not bool(runs_back(one_way(lines).points[None])[0])
    assert bool(runs_back(line[None])[0])


def test_what_has_no_code_is_told_apart() -> None:
    good = torch.tensor([[0.0, 0, 0], [0, 20, 0], [3, 40, 2]])
    bad = [
        torch.tensor([[0.0, 0, 0], [math.nan, 1, 1]]), good[:1], good[:0], good[:1].expand(4, 3),
        good + torch.tensor([0.0, 400, 0]), torch.tensor([[0.0, 0, 0], [math.inf, 0, 0]]),
    ]  # fmt: skip
    assert usable(lines_of([good, *bad, good])).tolist() == [True, *[False] * len(bad), True]
