"""EuDX: the vote, the ends of lines, the compiled loop, the gradient, and DIPY's lines."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tractode.evaluate.agreement import hausdorff_distances
from tractode.fields import Image, ImageGrid, PeakField, ShField, Streamlines
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.eudx import EuDX, starts_at_peaks, vote

DOUBLE = torch.float64


def crossing(affine: Tensor, noise: float = 0.0) -> tuple[PeakField, Image]:
    """A bundle that bends about a far axis and a straight one across it, in a ball; directions may be disturbed."""
    grid = ImageGrid((24, 22, 14), affine, "phantom")
    p = grid.centres(DOUBLE) - grid.to_world(torch.tensor([11.5, 10.5, 6.5], dtype=DOUBLE))
    hub = torch.tensor([-40.0, 5.0, 3.0], dtype=DOUBLE)
    arc = torch.linalg.cross(torch.tensor([0.1, 0.2, 1.0], dtype=DOUBLE).expand_as(p), p - hub)
    straight = torch.tensor([0.9, 0.3, 0.2], dtype=DOUBLE).expand_as(p)
    directions = torch.stack((arc, straight))
    directions = directions / directions.norm(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    directions = directions + noise * torch.randn(directions.shape, dtype=DOUBLE, generator=generator)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    ball = p.norm(dim=-1) < 18
    amplitudes = torch.tensor([0.6, 0.4], dtype=DOUBLE)[:, None, None, None] * ball
    # The second bundle is a slab, so that some voxels hold one peak and some two.
    slab = (p @ torch.tensor([-0.3, 0.9, 0.1], dtype=DOUBLE)).abs() < 8
    amplitudes[1] *= slab
    return PeakField(grid, directions.permute(0, 4, 1, 2, 3) * (amplitudes > 0)[:, None], amplitudes), Image(
        grid, ball[None]
    )


def track(tracker: EuDX, field: PeakField | ShField, seeds: Tensor, mask: Image, **options) -> Streamlines:
    return Streamlines.concatenate(list(tracker.track(field, seeds, mask, **options)), field.grid.space)


def seeds_in(mask: Image, every: int) -> Tensor:
    return mask.grid.to_world(mask.mask.nonzero()[::every].to(DOUBLE) + 0.2)


def test_the_vote_is_the_weighted_sum_of_the_peaks_on_the_side_of_travel() -> None:
    x, y = torch.eye(3, dtype=DOUBLE)[:2]
    bent = torch.tensor([0.8, 0.6, 0.0], dtype=DOUBLE)
    corners = torch.zeros(1, 8, 8, dtype=DOUBLE)  # two peaks: xx yy zz, amplitudes
    for c in range(8):
        first = -bent if c < 4 else x
        corners[0, c, [0, 2, 4]], corners[0, c, [1, 3, 5]] = first, y
        corners[0, c, 6], corners[0, c, 7] = 0.5, 0.3
    corners[0, 7, 6:] = 0.05  # below the cutoff: no vote
    weights = torch.tensor([[0.2, 0.1, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1]], dtype=DOUBLE)
    direction, total = vote(corners, weights, x[:, None], math.cos(math.radians(60)), 0.1)
    expected = 0.5 * bent + 0.4 * x
    torch.testing.assert_close(direction[:, 0], expected / expected.norm())
    assert float(total) == pytest.approx(0.9)
    # Within 30° only the peaks along x are near enough to x.
    direction, total = vote(corners, weights, x[:, None], math.cos(math.radians(30)), 0.1)
    torch.testing.assert_close(direction[:, 0], x)
    assert float(total) == pytest.approx(0.4)


def test_lines_end_where_too_few_voxels_have_a_peak(oblique_affine: Tensor) -> None:
    grid = ImageGrid((20, 9, 9), oblique_affine, "phantom")
    along = oblique_affine[:3, 0] / oblique_affine[:3, 0].norm()
    directions = along[None, :, None, None, None].expand(1, 3, *grid.shape).clone()
    amplitudes = torch.ones(1, *grid.shape, dtype=DOUBLE)
    amplitudes[:, 12:] = 0
    field, mask = PeakField(grid, directions, amplitudes), Image(grid, torch.ones(1, *grid.shape, dtype=torch.bool))
    seed = grid.to_world(torch.tensor([[5.0, 4.0, 4.0]], dtype=DOUBLE))
    for least in (0.5, 0.2):
        line = track(EuDX(min_length=1.0, min_weight=least), field, seed, mask)
        reached = float(grid.to_voxel(line.points)[:, 0].max())
        assert 12 - least <= reached < 12 - least + 0.5 / 2.0  # one step of 0.5 mm beyond, in voxels of 2 mm


def test_the_compiled_loop_follows_the_same_lines(oblique_affine: Tensor) -> None:
    field, mask = crossing(oblique_affine, noise=0.15)
    seeds = seeds_in(mask, 9)
    loop, march = (track(EuDX(min_length=2.0, compiled=flag), field, seeds, mask) for flag in (True, False))
    assert len(loop) > 100
    assert torch.equal(loop.offsets, march.offsets)
    assert torch.equal(loop.per_streamline["seed"], march.per_streamline["seed"])
    assert torch.equal(loop.per_streamline["seed_point"], march.per_streamline["seed_point"])
    torch.testing.assert_close(loop.points, march.points, rtol=0, atol=1e-9)


@pytest.mark.parametrize("of", ["peaks", "seeds", "step"])
def test_gradients_are_those_of_finite_differences(of: str, oblique_affine: Tensor) -> None:
    # So much noise that the peak at some seeds and the way it leads to choose different voxels' peaks.
    field, mask = crossing(oblique_affine, noise=0.2)
    seeds = seeds_in(mask, 60)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(100_000, 3, dtype=DOUBLE, generator=generator)
    start = {"peaks": field.directions, "seeds": seeds, "step": torch.tensor(0.5, dtype=DOUBLE)}[of]
    change = torch.randn(start.shape, dtype=DOUBLE, generator=generator) * (start != 0)

    def loss(value: Tensor) -> Tensor:
        peaks = dataclasses.replace(field, directions=value) if of == "peaks" else field
        tracker = EuDX(max_length=10.3, min_length=2.0, step_mm=value if of == "step" else 0.5)
        lines = track(tracker, peaks, value if of == "seeds" else seeds, mask)
        return (lines.points * weights[: len(lines.points)]).sum()

    value = start.clone().requires_grad_()
    loss(value).backward()
    small = 1e-6
    expected = float(loss(start + small * change) - loss(start - small * change)) / (2 * small)
    assert float((value.grad * change).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_gradients_reach_the_coefficients_of_an_orientation_distribution(oblique_affine: Tensor) -> None:
    peaks, mask = crossing(oblique_affine)
    degree = sh.degrees(8).double()
    parts = sh.basis(peaks.directions.permute(0, 2, 3, 4, 1), 8) * torch.exp(-0.015 * degree * (degree + 1))
    coeffs = (peaks.amplitudes[..., None] * parts).sum(0).permute(3, 0, 1, 2).contiguous().requires_grad_()
    lines = track(EuDX(max_length=10.0), ShField(peaks.grid, coeffs, 8), seeds_in(mask, 400), mask)
    assert len(lines) > 2
    lines.points.square().sum().backward()
    assert torch.isfinite(coeffs.grad).all()
    assert float(coeffs.grad.abs().max()) > 0


def test_every_peak_of_a_seeds_voxel_is_a_start(oblique_affine: Tensor) -> None:
    field, mask = crossing(oblique_affine)
    seeds = torch.cat((seeds_in(mask, 50), torch.full((1, 3), 1e4, dtype=DOUBLE)))
    at, towards, index = starts_at_peaks(field, seeds)
    vox = (field.grid.to_voxel(seeds[:-1]) + 0.5).floor().long()
    counts = (field.amplitudes[:, vox[:, 0], vox[:, 1], vox[:, 2]] > 0.1).sum(0)
    assert torch.equal(torch.bincount(index, minlength=len(seeds))[:-1], counts)
    assert torch.equal(at, seeds[index])
    assert torch.allclose(towards.norm(dim=-1), torch.ones(len(towards), dtype=DOUBLE))


def bordered(field: PeakField, mask: Image) -> tuple[PeakField, Image]:
    """The same with a voxel of nothing on every side, so that the outermost voxels do not vote beyond their centres."""
    affine = field.grid.affine.clone()
    affine[:3, 3] -= affine[:3, :3].sum(1)
    grid = ImageGrid((field.grid.shape[0] + 2, field.grid.shape[1] + 2, field.grid.shape[2] + 2), affine, "phantom")
    wider = [torch.nn.functional.pad(t.to(DOUBLE), (1,) * 6) for t in (field.directions, field.amplitudes, mask.values)]
    return PeakField(grid, wider[0], wider[1]), Image(grid, wider[2] > 0.5)


@pytest.mark.reference
@pytest.mark.parametrize(("voxels", "least"), [("cubes", 1.0), ("bricks", 0.99)])
def test_lines_are_those_of_dipy(voxels: str, least: float, oblique_affine: Tensor) -> None:
    """Same peaks, seeds and directions: all of 649 lines within 0.01 mm where voxels are cubes.

    Where they are not, DIPY compares the second half's first step with the first half's in units of voxels, which
    chooses other peaks for 5 of 674. In the test there is nothing beyond the image: DIPY lets no voxel vote there.
    """
    from dipy.tracking.stopping_criterion import BinaryStoppingCriterion
    from dipy.tracking.tracker import eudx_tracking

    affine = oblique_affine.clone()
    if voxels == "cubes":
        affine[:3, :3] *= 2.3 / affine[:3, :3].norm(dim=0)
    field, mask = crossing(affine, noise=0.15)
    at, towards, _ = starts_at_peaks(field, seeds_in(mask, 5))
    k = field.amplitudes.shape[0]
    turn = affine[:3, :3] / affine[:3, :3].norm(dim=0)
    inside = field.directions.permute(2, 3, 4, 0, 1) @ turn  # DIPY's directions run along the voxels' axes
    # An absent peak's vertex is never looked at, as its value is below the threshold; DIPY wants a unit vector all the same.
    inside[(inside == 0).all(-1)] = torch.tensor([1.0, 0, 0], dtype=DOUBLE)
    pam = SimpleNamespace(
        peak_indices=np.arange(inside[..., 0].numel(), dtype=np.int32).reshape(*field.grid.shape, k),
        peak_values=field.amplitudes.permute(1, 2, 3, 0).numpy().copy(),
        odf_vertices=inside.reshape(-1, 3).numpy().copy(),
    )
    criterion = BinaryStoppingCriterion(mask.mask.numpy().astype(np.uint8))
    made = list(eudx_tracking(
        at.numpy().copy(), criterion, affine.numpy().copy(), seed_directions=(towards @ turn).numpy().copy(),
        pam=pam, min_len=5, max_len=200, step_size=0.5, max_angle=60, pmf_threshold=0.1, nbr_threads=1, random_seed=1,
        save_seeds=True,
    ))  # fmt: skip
    wide_field, wide_mask = bordered(field, mask)
    ours = track(EuDX(min_length=4.5, max_length=200.0), wide_field, at, wide_mask, directions=towards)
    by_seed: dict[tuple[float, ...], list[Tensor]] = {}
    for line, seed in made:
        by_seed.setdefault(tuple(np.round(seed, 4)), []).append(torch.from_numpy(np.asarray(line)).double())
    nearest = []
    for line, seed in zip(ours, ours.per_streamline["seed"].tolist(), strict=True):
        candidates = by_seed.get(tuple(np.round(at[seed].numpy(), 4)), [])
        pairs = [
            float(hausdorff_distances(*(Streamlines.from_list([c], "x") for c in (line, other))))
            for other in candidates
        ]
        nearest.append(min(pairs, default=math.inf))
    share = float((torch.tensor(nearest) < 0.01).double().mean())
    print(f"{len(at)} starts, {len(ours)} lines of ours, {len(made)} of DIPY; {share:.4f} within 0.01 mm")
    assert len(ours) == len(made) > 600
    assert share >= least
