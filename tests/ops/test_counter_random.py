"""Counter-based random numbers: uniform, independent of neighbours, the same in torch and in compiled loops."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from tractode.ops.counter_random import UNIT, draw, stream, uniform

N = 200_000
KEY = 987654321


def sequences() -> dict[str, torch.Tensor]:
    """Draws along the counter, along the number, and along the key."""
    index, zero = torch.arange(N), torch.zeros(N, dtype=torch.long)
    keys = torch.cat([uniform(key, index[:100], 0) for key in range(N // 100)])
    return {"counter": uniform(KEY, zero, index), "number": uniform(KEY, index, zero), "key": keys}


@pytest.mark.parametrize("along", ["counter", "number", "key"])
def test_uniform_and_uncorrelated_with_neighbours(along: str) -> None:
    u = sequences()[along]
    assert u.dtype == torch.float64
    assert 0 <= float(u.min()) < 1e-4
    assert 1 - 1e-4 < float(u.max()) < 1
    counts = torch.histc(u, 1000, 0, 1).numpy()
    assert stats.chisquare(counts).pvalue > 1e-4
    for lag in (1, 2, 3, 100, 256):
        pairs = (u[lag:] * 32).long() * 32 + (u[:-lag] * 32).long()
        # Overlapping pairs are nearly independent; the limit is far out in the tail.
        assert stats.chisquare(torch.bincount(pairs, minlength=1024).numpy()).pvalue > 1e-5, lag
        assert abs(float(torch.corrcoef(torch.stack((u[lag:], u[:-lag])))[0, 1])) < 5 / N**0.5, lag


def test_streams_do_not_resemble_one_another() -> None:
    """Correlations among 64 neighbouring streams, and of draw n with draw n + 1 of the next stream."""
    number, counter = torch.meshgrid(torch.arange(64), torch.arange(8192), indexing="ij")
    u = uniform(KEY, number, counter)
    for other in (u, u.roll(-1, dims=1), u.roll(1, dims=1)):
        between = torch.corrcoef(torch.cat((u, other)))[:64, 64:]
        off = between[~torch.eye(64, dtype=torch.bool)]
        assert float(off.abs().max()) < 5.5 / 8192**0.5
        assert float(off.pow(2).mean() * 8192) == pytest.approx(1.0, abs=0.15)


def test_low_bits_are_as_good_as_high_ones() -> None:
    bits = (uniform(KEY, torch.arange(N), 7) / UNIT).long()
    for place in range(53):
        share = float(((bits >> place) & 1).double().mean())
        assert abs(share - 0.5) < 5 * 0.5 / N**0.5, place


def test_a_flipped_input_bit_flips_half_of_the_output() -> None:
    number = torch.arange(2000)
    base = (uniform(KEY, number, 3) / UNIT).long()
    for place in (0, 1, 5, 17, 31):
        flipped = (uniform(KEY, number ^ (1 << place), 3) / UNIT).long()
        changed = sum(((base ^ flipped) >> k) & 1 for k in range(53))
        assert float(changed.double().mean()) == pytest.approx(26.5, abs=0.5)


def test_draws_of_a_stream_are_those_of_its_number() -> None:
    number = torch.tensor([0, 3, 2**40])
    assert torch.equal(draw(stream(KEY, number), 5), uniform(KEY, number, torch.tensor([5, 5, 5])))


def test_compiled_loops_draw_the_same_bits() -> None:
    from tractode.tracking.kernels.random import uniform as scalar

    for key in (0, 1, KEY, 2**62 - 1):
        for number in (0, 1, 77, 2**33 + 5):
            counter = torch.arange(5)
            ours = uniform(key, torch.full_like(counter, number), counter)
            assert ours.tolist() == [scalar(key, number, int(c)) for c in counter]
