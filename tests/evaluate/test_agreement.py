"""Agreement between tractograms: pairing by seed, and what a missing line costs."""

from __future__ import annotations

import pytest
import torch

from tractode.errors import SpaceMismatchError
from tractode.evaluate.agreement import compare_lines
from tractode.fields import Streamlines


def lines(shifts: dict[int, float], space: str = "w") -> Streamlines:
    base = torch.stack((torch.arange(5.0), torch.zeros(5), torch.zeros(5)), dim=-1)
    made = Streamlines.from_list([base + torch.tensor([0.0, shift, 0]) for shift in shifts.values()], space)
    return Streamlines(made.points, made.offsets, space, {}, {"seed": torch.tensor(list(shifts))})


def test_pairs_by_seed_and_counts_missing_lines_as_far() -> None:
    found = compare_lines(lines({3: 0.0, 7: 0.0, 9: 0.0}), lines({9: 0.05, 3: 0.5, 11: 0.0}))
    assert (found.n, found.n_missing) == (4, 2)
    assert found.share_within_1mm == 0.5
    assert found.share_within_01mm == 0.25


def test_two_spaces_are_not_compared() -> None:
    with pytest.raises(SpaceMismatchError, match="other"):
        compare_lines(lines({0: 0.0}), lines({0: 0.0}, "other"))
