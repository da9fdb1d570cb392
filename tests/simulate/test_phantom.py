"""The small phantom: its three regions are what they are called, its truth is consistent, and it turns with its grid."""

from __future__ import annotations

import pytest
import torch

from tractode.errors import ShapeError
from tractode.ops import spherical_harmonics as sh
from tractode.simulate.phantom import Phantom, PhantomSettings, phantom


@pytest.fixture(scope="module")
def made() -> Phantom:
    return phantom(seed=3)


def directions(made: Phantom, name: str, mask: torch.Tensor) -> torch.Tensor:
    """Unit tangents of a bundle's points inside a mask."""
    lines = made.bundles[name].streamlines
    along = lines.points.diff(dim=0)[lines.streamline_of_point[1:] == lines.streamline_of_point[:-1]]
    at = lines.points[:-1][lines.streamline_of_point[1:] == lines.streamline_of_point[:-1]]
    index = made.dwi.grid.to_voxel(at.double()).round().long()
    inside = mask[index[:, 0], index[:, 1], index[:, 2]]
    return along[inside] / along[inside].norm(dim=-1, keepdim=True)


def test_crossing_bundles_meet_at_their_angle(made: Phantom) -> None:
    both = made.bundles["CrossA"].mask & made.bundles["CrossB"].mask
    assert both.sum() > 20
    a, b = (directions(made, name, both).mean(0) for name in ("CrossA", "CrossB"))
    assert abs(float(torch.acos((a @ b).abs() / a.norm() / b.norm())) - 1.2) < 0.05


def test_kissing_bundles_share_voxels_in_parallel_and_never_change_sides(made: Phantom) -> None:
    both = made.bundles["KissA"].mask & made.bundles["KissB"].mask
    assert both.sum() > 10
    a, b = (directions(made, name, both).mean(0) for name in ("KissA", "KissB"))
    assert torch.rad2deg(torch.acos((a @ b).abs() / a.norm() / b.norm())) < 10
    y = [made.bundles[name].streamlines.points[:, 1] for name in ("KissA", "KissB")]
    assert y[0].min() > y[1].max()


def test_bottleneck_squeezes_three_bundles_through_one_stem(made: Phantom) -> None:
    middle = made.dwi.grid.shape[0] // 2
    stem = torch.stack([made.bundles[f"Neck{name}"].mask[middle] for name in "ABC"])
    assert stem.any(0).sum() * 4 < 200  # mm² of the cross-section
    ends = [made.bundles[f"Neck{name}"].start.nonzero().double().mean(0) for name in "ABC"]
    assert (ends[0] - ends[2]).norm() > 15
    assert (stem[0] & stem[1]).any()
    assert (stem[1] & stem[2]).any()


def test_truth_is_consistent(made: Phantom) -> None:
    for truth in made.bundles.values():
        first = made.dwi.grid.to_voxel(truth.streamlines.points[truth.streamlines.offsets[:-1]].double()).round().long()
        assert truth.start[first[:, 0], first[:, 1], first[:, 2]].float().mean() > 0.95
        assert (truth.mask & made.white_matter.mask).sum() > 0.8 * truth.mask.sum()
    white = made.fibres.tissues[1]
    total = made.fibres.fod.coeffs[0].double() * (4 * torch.pi) ** 0.5
    assert torch.allclose(total, white, atol=1e-3)
    assert int(sh.n_coefficients(made.fibres.fod.order)) == len(made.fibres.fod.coeffs)


def test_same_seed_same_voxels_and_another_seed_others(made: Phantom) -> None:
    assert torch.equal(made.dwi.signal, phantom(seed=3).dwi.signal)
    assert not torch.equal(made.dwi.signal, phantom(seed=4).dwi.signal)


def test_it_turns_with_its_grid(oblique_affine: torch.Tensor) -> None:
    settings = PhantomSettings(regions=("kissing",), size=24, snr=None)
    plain, turned = (phantom(None, settings, affine=affine) for affine in (None, oblique_affine))
    there = [made.dwi.grid.to_voxel(made.bundles["KissA"].streamlines.points.double()) for made in (plain, turned)]
    assert torch.allclose(there[0], there[1], atol=1e-3)
    assert list(turned.bundles) == ["KissA", "KissB"]


def test_unknown_region_is_refused() -> None:
    with pytest.raises(ShapeError, match="fanning"):
        phantom(settings=PhantomSettings(regions=("fanning",)))
