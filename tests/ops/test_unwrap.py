"""Unwrapping: smooth phases of several turns come back, through noise and past regions of no signal."""

from __future__ import annotations

import math

import torch

from tractode.ops.unwrap import unwrap, wrapped


def hill(shape: tuple[int, int, int], height: float) -> torch.Tensor:
    i, j, k = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    return height * torch.exp(-3 * ((i - 0.1).square() + (j + 0.2).square() + k.square())) - 1.3 * j


def test_several_turns_are_undone_exactly() -> None:
    truth = hill((30, 28, 20), 15.0)
    found = unwrap(wrapped(truth), torch.ones_like(truth))
    turns = (found - truth) / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), atol=1e-4, rtol=0)
    assert int((turns.round() != turns.round().median()).sum()) == 0
    assert abs(float(found.median())) <= math.pi + 1e-4


def test_noise_where_there_is_no_signal_spoils_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = hill((30, 28, 20), 12.0)
    head = torch.zeros_like(truth)
    head[4:26, 4:24, 2:18] = 1
    head[12:16, 12:16, :] = 0  # a hole through it
    anything = 2 * math.pi * torch.rand(truth.shape, generator=generator) - math.pi
    phase = torch.where(head > 0, truth + 0.2 * torch.randn(truth.shape, generator=generator), anything)
    found = unwrap(wrapped(phase), head)
    turns = ((found - truth)[head > 0] / (2 * math.pi)).round()
    assert float((turns != turns.median()).float().mean()) < 1e-3


def test_the_phase_changes_by_whole_turns_only() -> None:
    phase = 6 * torch.rand(9, 8, 7, generator=torch.Generator().manual_seed(1)) - 3
    turns = (unwrap(phase, torch.ones_like(phase)) - phase) / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), atol=1e-5, rtol=0)
