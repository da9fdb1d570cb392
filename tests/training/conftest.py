"""A library of three bundles that costs nothing to make."""

from __future__ import annotations

import pytest
import torch

from tractode.fields import Streamlines
from tractode.generative.space import SPACE
from tractode.simulate.bundle_library import BundleLibrary, equally_spaced


@pytest.fixture(scope="session")
def library() -> BundleLibrary:
    """Two bundles of six lines of the atlas, one of the simulator's right where the first is."""
    along = torch.linspace(-30, 30, 31)
    curve = torch.stack([along, -20 + 0 * along, 20 - along**2 / 60], -1)
    curve = equally_spaced(Streamlines(curve, torch.tensor([0, 31]), SPACE))[0]
    first = torch.stack([curve + torch.tensor([0.0, 2.0 * n, 0.0]) for n in range(6)])
    other = first + torch.tensor([0.0, 0.0, -35.0])
    return BundleLibrary(
        ("Arc_L", "Low_R", "course"),
        torch.cat([first, other, first + 0.2]),
        torch.arange(3).repeat_interleave(6),
        torch.tensor([0, 1, 2]),
        torch.tensor([False, False, True] * 4 + [False] * 6),
        torch.tensor([False, False, True]),
    )
