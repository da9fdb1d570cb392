"""Metrics against direct evaluation, known answers, and DIPY."""

from __future__ import annotations

import math

import pytest
import torch

from tractode.errors import ShapeError
from tractode.registration import METRICS
from tractode.registration.metrics.channels import Channels, DescriptorChannels
from tractode.registration.metrics.correlation_ratio import CorrelationRatio, correlation_ratio
from tractode.registration.metrics.lncc import LNCC
from tractode.registration.metrics.local_mutual_information import LocalMutualInformation, window_information
from tractode.registration.metrics.mind import MIND, MIND6, patch_distances
from tractode.registration.metrics.mind_intensity import MINDAndIntensity
from tractode.registration.metrics.mse import MeanSquares
from tractode.registration.metrics.mutual_information import MutualInformation, parzen


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_lncc_is_the_correlation_of_every_window() -> None:
    """Window by window, by ``torch.corrcoef``, with a mask that cuts through some of them."""
    fixed, moving = noise(9, 8, 10), noise(9, 8, 10, seed=1)
    mask = (noise(9, 8, 10, seed=2) > 0.3).double()
    found = LNCC(radius=2, floor=0.0).correlation(fixed, moving, mask)
    for centre in ((4, 4, 4), (0, 0, 0), (8, 3, 9)):
        window = tuple(slice(max(c - 2, 0), c + 3) for c in centre)
        keep = mask[window] > 0
        pair = torch.stack([fixed[window][keep], moving[window][keep]])
        assert float(found[centre]) == pytest.approx(float(torch.corrcoef(pair)[0, 1] ** 2), abs=1e-9)


@pytest.mark.reference
def test_lncc_agrees_with_dipy() -> None:
    """Away from the border, where DIPY's windows are whole too."""
    import numpy as np
    from dipy.align.crosscorr import precompute_cc_factors_3d

    fixed, moving = noise(16, 15, 14), noise(16, 15, 14, seed=3)
    factors = np.asarray(precompute_cc_factors_3d(fixed.numpy(), moving.numpy(), 4))
    cross, f_square, m_square = (torch.from_numpy(factors[..., n].copy()) for n in (2, 3, 4))
    ours = LNCC(radius=4, floor=0.0).correlation(fixed, moving, torch.ones_like(fixed))
    inner = (slice(4, -4),) * 3
    theirs = (cross.square() / (f_square * m_square)).double()
    torch.testing.assert_close(ours[inner], theirs[inner], atol=1e-6, rtol=1e-6)


def test_flat_windows_do_not_count() -> None:
    """Air with a little noise beside a head: its windows correlate by chance only, and are held near 0."""
    fixed = 1e-4 * noise(1, 12, 12, 12)
    fixed[:, :6] += noise(1, 6, 12, 12, seed=4)
    found = LNCC(radius=1).correlation(fixed[0], fixed[0].roll(0), torch.ones(12, 12, 12, dtype=torch.float64))
    assert float(found[9:].max()) < 0.01
    assert float(found[1:4].min()) > 0.9


def test_correlation_ratio_of_known_pairs() -> None:
    """A function of the other: 1. Two values of X, each with half its variance unexplained: by hand. Chance: 0."""
    x = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    weight = torch.ones(4, dtype=torch.float64)
    assert float(correlation_ratio(parzen(x, 32), 5 - 3 * x, weight)) == pytest.approx(1)
    # Means 1 and 5 with variance 1 within each: variance 5 in all, 4 of it explained.
    y = torch.tensor([0.0, 2.0, 4.0, 6.0], dtype=torch.float64)
    assert float(correlation_ratio(parzen(x, 32), y, weight)) == pytest.approx(0.8)
    chance = correlation_ratio(
        parzen(noise(20_000), 16), noise(20_000, seed=1), torch.ones(20_000, dtype=torch.float64)
    )
    assert float(chance) < 0.003


def test_correlation_ratio_is_of_functions_not_of_lines() -> None:
    """M = (F − ½)² is a function of F, but F is none of M: the paper's ratio tells, the symmetric one averages."""
    fixed = noise(1, 20, 20, 20)
    folded = (fixed - 0.5).square()
    one_way = CorrelationRatio(symmetric=False)
    assert float(one_way(fixed, folded)) < 0.05
    assert float(one_way(folded, fixed)) > 0.9
    symmetric = CorrelationRatio()
    assert float(symmetric(fixed, folded)) == pytest.approx(float(symmetric(folded, fixed)), abs=1e-12)


def test_local_information_of_known_histograms() -> None:
    mirrored = [[0.0, 8.0], [8.0, 0.0]]
    independent = [[1.0, 3.0], [2.0, 6.0]]
    information, weight = window_information(torch.tensor([mirrored, independent], dtype=torch.float64))
    assert information.tolist() == pytest.approx([math.log(2), 0.0], abs=1e-8)
    assert weight.tolist() == [16, 12]


def test_local_information_allows_another_contrast_in_every_place() -> None:
    """One half inverted: to the whole image the two are independent, to all windows but those across the border not."""
    fixed = (noise(1, 32, 16, 16) > 0.5).double()
    moving = fixed.clone()
    moving[:, :16] = 1 - moving[:, :16]
    local, whole = LocalMutualInformation(cell=4), MutualInformation()
    assert float(whole(fixed, moving)) == pytest.approx(-1.0, abs=0.01)
    assert float(local(fixed, moving)) < 0.8 * float(local(fixed, fixed))


def test_local_information_of_one_window_is_that_of_the_image() -> None:
    """Two cells along each axis make one window, the whole image; against the histogram of all voxels at once."""
    fixed, moving = noise(1, 8, 8, 8), noise(1, 8, 8, 8, seed=1)
    mask = (noise(8, 8, 8, seed=2) > 0.2).double()

    def unit(image: torch.Tensor) -> torch.Tensor:
        inside = image[0][mask > 0]
        return (inside - inside.min()) / (inside.max() - inside.min())

    joint = parzen(unit(fixed), 16).mT @ parzen(unit(moving), 16)
    expected, _ = window_information(joint[None])
    assert float(LocalMutualInformation(cell=4)(fixed, moving, mask)) == pytest.approx(-float(expected), abs=1e-9)


def test_six_neighbour_descriptor_of_an_edge() -> None:
    """By hand: a step along i. Only the neighbours across the step differ, so they alone are below 1."""
    image = torch.zeros(1, 12, 12, 12, dtype=torch.float64)
    image[:, 6:] = 1
    distances = patch_distances(image, (((0, 0, 0), (1, 0, 0)), ((0, 0, 0), (0, 1, 0))), 1, 1)
    # Patches of three layers: at i = 5 one of the layers 4, 5, 6 meets the step when moved by one.
    assert distances[:, 5, 6, 6].tolist() == pytest.approx([1 / 3, 0.0])
    described = MIND6().describe(image)[:, 5, 6, 6]
    # Distances 1/3 twice and 0 four times: mean 1/9, so e^-3.
    assert described.tolist() == pytest.approx([math.exp(-3), math.exp(-3), 1, 1, 1, 1])
    assert MIND().describe(image).shape == (12, 12, 12, 12)


def test_channels_are_weighed() -> None:
    fixed, moving = noise(2, 8, 8, 8), noise(2, 8, 8, 8, seed=1)
    one, two = MeanSquares(), LNCC(radius=2)
    expected = (3 * one(fixed[:1], moving[:1]) + two(fixed[1:], moving[1:])) / 4
    both = Channels(((one, 3.0), (two, 1.0)))
    assert float(both(fixed, moving)) == pytest.approx(float(expected))
    assert not both.is_multimodal
    assert both.needs_grid
    assert both.invariances == frozenset()
    with pytest.raises(ShapeError, match="2 channels was given"):
        both(fixed[:1], moving[:1])
    with pytest.raises(ValueError, match="not negative"):
        Channels(((one, -1.0),))


def test_descriptor_channels_are_the_same_metric() -> None:
    """Described once and compared as one descriptor: the same number as channel by channel."""
    fixed, moving = noise(2, 8, 8, 8), noise(2, 8, 8, 8, seed=1)
    parts = ((MIND(), 2.0), (MIND6(), 0.5))
    described = DescriptorChannels(parts)
    assert described.describe(fixed).shape == (18, 8, 8, 8)
    assert float(described(fixed, moving)) == pytest.approx(float(Channels(parts)(fixed, moving)))
    with pytest.raises(ValueError, match="must be a descriptor"):
        DescriptorChannels(((LNCC(), 1.0),))


def test_metrics_say_whether_points_will_do() -> None:
    assert [name for name in METRICS if METRICS[name].needs_grid] == ["lmi", "lncc"]


def test_structure_and_intensity_are_weighed_as_said() -> None:
    """The one descriptor's cost is the weighted mean of the two measures' own."""
    generator = torch.Generator().manual_seed(3)
    fixed, moving = (torch.rand(1, 9, 10, 11, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = torch.rand(9, 10, 11, dtype=torch.float64, generator=generator).round()
    structure = float(MIND(radius=1, dilation=1)(fixed, moving, mask))
    brightness = float(MeanSquares()(fixed, moving, mask))
    for weight in (0.0, 1.0, 4.0):
        found = float(MINDAndIntensity(intensity=weight)(fixed, moving, mask))
        assert found == pytest.approx((structure + weight * brightness) / (1 + weight), rel=1e-9)
