"""A sample of streamlines does not depend on how they were batched, and is never larger than asked for."""

from __future__ import annotations

import pytest
import torch

from tractode.fields import Streamlines
from tractode.reports.sample import StreamlineSample


def lines(n: int) -> Streamlines:
    points = torch.arange(2 * n, dtype=torch.float32)[:, None].expand(-1, 3).contiguous()
    return Streamlines(points, torch.arange(0, 2 * n + 1, 2), "dwi", {}, {"seed": torch.arange(n)})


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_the_sample_depends_on_the_order_only(size: int) -> None:
    whole = lines(1000)
    sample = StreamlineSample("dwi", most=100)
    for index in torch.arange(1000).split(size):
        sample.add(whole.select(index))
    assert sample.n_seen == 1000
    assert torch.equal(sample.lengths, whole.lengths())
    # 1,000 lines thinned by powers of two until at most 100 are left.
    assert torch.equal(sample.lines.points, whole.select(torch.arange(0, 1000, 16)).points)


def test_few_lines_are_all_kept() -> None:
    sample = StreamlineSample("dwi", most=100)
    assert len(sample.lines) == 0
    sample.add(lines(60))
    sample.add(lines(0))
    assert len(sample.lines) == 60
