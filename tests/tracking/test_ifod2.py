"""iFOD2: its calibration, its arcs, its rules, and its agreement with MRtrix3 in distribution."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.io.tractogram import read_tractogram
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.cones import amplitude, first_directions, grid_axes, side_axes
from tractode.tracking.ifod2 import IFOD2, Arcs, cut_to_length
from tractode.tracking.march import Paths
from tractode.tracking.propagate import track_until
from tractode.tracking.sampling import ComponentTable
from tractode.tracking.seeds import random_directions

DOUBLE = torch.float64


def bend(affine: Tensor, blur: float = 0.02) -> tuple[ShField, Image]:
    """A bundle that bends in a quarter circle and a straight one that crosses it, in a ball."""
    grid = ImageGrid((18, 16, 12), affine, "phantom")
    p = grid.centres(DOUBLE) - grid.to_world(torch.tensor([8.5, 7.5, 5.5], dtype=DOUBLE))
    hub = torch.tensor([-30.0, 5.0, 3.0], dtype=DOUBLE)
    arc = torch.linalg.cross(torch.tensor([0.1, 0.2, 1.0], dtype=DOUBLE).expand_as(p), p - hub)
    straight = torch.tensor([0.9, 0.3, 0.2], dtype=DOUBLE).expand_as(p)
    degree = sh.degrees(8).double()
    smooth = torch.exp(-blur * degree * (degree + 1))
    parts = [sh.basis(v / v.norm(dim=-1, keepdim=True), 8) * smooth for v in (arc, straight)]
    ball = p.norm(dim=-1) < 14
    coeffs = ((0.6 * parts[0] + 0.4 * parts[1]) * ball[..., None]).permute(3, 0, 1, 2)
    return ShField(grid, coeffs.contiguous(), 8), Image(grid, ball[None])


def seeds_in(mask: Image, n: int) -> Tensor:
    inside = mask.mask.nonzero().double()
    return mask.grid.to_world(inside[torch.linspace(0, len(inside) - 1, n).long()] + 0.2)


def run(tracker: IFOD2, field: ShField, seeds: Tensor, mask: Image, seed: int = 0) -> Streamlines:
    batches = list(tracker.track(field, seeds, mask, torch.Generator().manual_seed(seed)))
    return Streamlines.concatenate(batches, field.grid.space)


@pytest.mark.parametrize(
    ("angle", "order", "samples", "power", "n", "ratio"),
    [
        (45, 8, 4, None, 7, 2.15373945),
        (30, 8, 4, None, 7, 1.27106905),
        (60, 8, 4, None, 19, 1.36117923),
        (90, 8, 4, None, 31, 1.83818281),
        (45, 8, 6, None, 7, 2.1288631),
        (45, 8, 4, 1.0, 13, 4.54010248),
        (45, 4, 4, 1.0, 7, 2.06392288),
    ],
)
def test_probes_are_as_many_and_as_good_as_mrtrix_reports(
    angle: float, order: int, samples: int, power: float | None, n: int, ratio: float
) -> None:
    """``tckgen -info`` of MRtrix3 3.0.3, voxels of 3 mm, steps of 1.5 mm."""
    arcs = Arcs.of(order, 1.5, math.radians(angle), samples - 1, power or 1 / samples, 3.0)
    assert len(arcs.probes.turns) == n
    assert arcs.probes.ratio == pytest.approx(ratio, rel=1e-4)


def test_frames_are_orthonormal_and_turn_with_the_grid(oblique_affine: Tensor) -> None:
    axes = grid_axes(ImageGrid((2, 2, 2), oblique_affine, "phantom"))
    torch.testing.assert_close(axes.mT @ axes, torch.eye(3, dtype=DOUBLE))
    d = torch.cat((random_directions(100, torch.Generator().manual_seed(0)), axes.mT, -axes.mT)).mT
    frame = torch.stack((*side_axes(axes, d), d), dim=1)
    torch.testing.assert_close(
        torch.einsum("ijm,ikm->mjk", frame, frame), torch.eye(3, dtype=DOUBLE).expand(106, 3, 3), atol=1e-12, rtol=0
    )


def test_an_arc_has_constant_curvature_and_the_length_of_the_step() -> None:
    arcs = Arcs.of(8, 1.5, math.radians(45), 3, 0.25, 3.0)
    state = torch.tensor([[1.0, 2, 3, 0, 0, 1]], dtype=DOUBLE).mT
    side, turn = torch.tensor([[0.6, 0.8, 0]], dtype=DOUBLE).mT, torch.tensor([0.7], dtype=DOUBLE)
    parts = [arcs.at(share, turn, state, side) for share in np.linspace(0, 1, 2001).tolist()]
    points = torch.cat([p for p, _ in parts], dim=1)
    steps = points.diff(dim=1).norm(dim=0)
    torch.testing.assert_close(steps, torch.full_like(steps, 1.5 / 2000), rtol=1e-6, atol=0)
    tangents = torch.cat([d for _, d in parts], dim=1)
    torch.testing.assert_close(points.diff(dim=1) / steps, (tangents[:, 1:] + tangents[:, :-1]) / 2, atol=1e-6, rtol=0)
    assert math.acos(float((tangents[:, 0] * tangents[:, -1]).sum())) == pytest.approx(0.7)


def test_the_loop_and_the_march_give_the_same_lines(oblique_affine: Tensor) -> None:
    field, mask = bend(oblique_affine)
    seeds = seeds_in(mask, 24)
    loop = run(IFOD2(), field, seeds, mask)
    march = run(IFOD2(compiled=False), field, seeds, mask)
    assert len(loop) > 12
    for key in ("seed", "seed_point"):
        assert torch.equal(loop.per_streamline[key], march.per_streamline[key])
    assert torch.equal(loop.offsets, march.offsets)
    torch.testing.assert_close(loop.points, march.points, atol=1e-6, rtol=0)


def test_lines_depend_on_neither_batches_nor_threads(oblique_affine: Tensor) -> None:
    field, mask = bend(oblique_affine)
    seeds = seeds_in(mask, 600)
    whole = run(IFOD2(), field, seeds, mask)
    parts = run(IFOD2(batch_size=37), field, seeds, mask)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threads = run(IFOD2(), field, seeds, mask)
    finally:
        torch.set_num_threads(before)
    other = run(IFOD2(), field, seeds, mask, seed=1)
    for lines in (parts, threads):
        assert torch.equal(lines.points, whole.points)
        assert torch.equal(lines.per_streamline["seed"], whole.per_streamline["seed"])
    assert len(other) != len(whole) or not torch.equal(other.points, whole.points)


def test_one_step_has_the_distribution_that_is_asked_for(oblique_affine: Tensor) -> None:
    """In a homogeneous field the last direction's density is known: the product of amplitudes along the arc."""
    grid = ImageGrid((9, 9, 9), oblique_affine, "phantom")
    fibre = torch.tensor([0.3, -0.5, 0.8], dtype=DOUBLE)
    fibre = fibre / fibre.norm()
    degree = sh.degrees(8).double()
    harmonics = sh.basis(fibre[None], 8)[0] * torch.exp(-0.02 * degree * (degree + 1))
    field = ShField(grid, harmonics[:, None, None, None].expand(-1, 9, 9, 9).clone(), 8)
    mask = Image(grid, torch.ones(1, 9, 9, 9, dtype=torch.bool))
    n = 6000
    seeds = grid.to_world(torch.full((n, 3), 4.0, dtype=DOUBLE))
    tilt = torch.linalg.cross(fibre, torch.tensor([1.0, 0, 0], dtype=DOUBLE))
    towards = fibre + math.tan(0.2) * tilt / tilt.norm()
    towards = (towards / towards.norm()).expand(n, 3)
    tracker = IFOD2(step_mm=1.0, min_length=0.5, max_length=1.0, one_way=True)
    lines = next(tracker.track(field, seeds, mask, directions=towards))
    assert len(lines) == n
    at_seed = lines.offsets[:-1] + lines.per_streamline["seed_point"]
    arc = lines.points[at_seed - 1] - lines.points[at_seed]
    # The end direction: the chord, doubled in angle.
    chord = arc / arc.norm(dim=-1, keepdim=True)
    end = 2 * (chord * towards).sum(-1, keepdim=True) * chord - towards
    # The same by brute force.
    u = torch.rand(400_000, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
    turn, azimuth = torch.arccos(1 - u[:, 0] * (1 - math.cos(math.pi / 4))), 2 * math.pi * u[:, 1]
    first, second = side_axes(grid_axes(grid), towards[:1].mT)
    side = azimuth.cos()[:, None] * first.mT + azimuth.sin()[:, None] * second.mT
    weight = torch.ones_like(turn)
    for k in (1, 2, 3):
        bent = (turn * k / 3)[:, None]
        amplitude = sh.basis(bent.cos() * towards[:1] + bent.sin() * side, 8) @ harmonics
        weight *= torch.where(amplitude < 0.1, 0.0, amplitude.clamp_min(0) ** (0.5 if k == 3 else 1.0))
    weight = weight**0.25
    truth = turn.cos()[:, None] * towards[:1] + turn.sin()[:, None] * side
    picked = truth[torch.multinomial(weight, 50_000, True, generator=torch.Generator().manual_seed(6))]
    for axis in (towards[0], fibre, first[:, 0], second[:, 0]):
        assert stats.ks_2samp((end @ axis).numpy(), (picked @ axis).numpy()).pvalue > 1e-3


def test_first_directions_are_uniform_where_the_amplitude_suffices(oblique_affine: Tensor) -> None:
    field, _ = bend(oblique_affine)
    table = ComponentTable.of(field)
    position = field.grid.to_world(torch.tensor([8.5, 7.5, 5.5], dtype=DOUBLE))[:, None].expand(3, 2048).clone()
    stream = torch.arange(2048) * 7919
    bad = torch.linalg.cross(torch.tensor([0.9, 0.3, 0.2]), torch.tensor([0.0, 0, 1])).double()
    bad = (bad / bad.norm())[:, None].expand(3, 2048)
    found, is_good = first_directions(table, grid_axes(field.grid), stream, position, bad, 0.1, 1000)
    assert is_good.all()
    values = amplitude(table, position, found)
    assert float(values.min()) >= 0.1
    lattice = random_directions(20_000, torch.Generator().manual_seed(8)).mT
    all_values = amplitude(table, position[:, :1].expand(3, 20_000), lattice)
    assert stats.ks_2samp(values.numpy(), all_values[all_values >= 0.1].numpy()).pvalue > 1e-3
    torch.testing.assert_close(found.norm(dim=0), torch.ones(2048, dtype=DOUBLE))
    assert not torch.equal(found, bad)


def test_lines_end_in_the_mask_and_their_last_segment_may_be_short(oblique_affine: Tensor) -> None:
    field, mask = bend(oblique_affine)
    half = mask.mask & (torch.arange(18)[:, None, None] < 9)
    step = 1.0
    part = Image(mask.grid, half[None])
    lines = run(IFOD2(step_mm=step, min_length=3.0), field, seeds_in(part, 80), part)
    assert len(lines) > 20
    nearest = (mask.grid.to_voxel(lines.points) + 0.5).floor().long()
    assert half[tuple(nearest.mT)].all()
    last = torch.stack([line[-1] - line[-2] for line in (lines[n] for n in range(len(lines)))]).norm(dim=-1)
    thirds = (last / step * 3).round()
    assert set(thirds.tolist()) == {1.0, 2.0, 3.0}
    assert float((last / step - thirds / 3).abs().max()) < 0.03
    lengths = [float(lines[n].diff(dim=0).norm(dim=-1).sum()) for n in range(len(lines))]
    assert min(lengths) >= 3.0 - 1e-5


def test_too_long_lines_are_cut_and_keep_their_seed(oblique_affine: Tensor) -> None:
    field, mask = bend(oblique_affine)
    seeds = seeds_in(mask, 80)
    lines = run(IFOD2(step_mm=1.0, min_length=3.0, max_length=8.0), field, seeds, mask)
    lengths = torch.stack([lines[n].diff(dim=0).norm(dim=-1).sum() for n in range(len(lines))])
    assert float(lengths.max()) == pytest.approx(8.0, abs=1e-5)
    assert int((lengths > 7.99).sum()) > 20
    at_seed = lines.points[lines.offsets[:-1] + lines.per_streamline["seed_point"]]
    torch.testing.assert_close(at_seed, seeds[lines.per_streamline["seed"]])


def test_cutting_a_known_line() -> None:
    points = torch.stack((torch.arange(14.0), torch.zeros(14), torch.zeros(14)), dim=1)
    offsets = torch.tensor([0, 8, 10, 14])
    paths = Paths(points, points.clone(), offsets, *(torch.tensor(v) for v in ([6, 1, 0], [1, 0, 3], [0, 1, 2])))
    cut = cut_to_length(paths, 2.0, 2.5)
    # The first line's first half alone is too long: its far end goes. The second is too short, the third's end goes.
    assert cut.seed.tolist() == [0, 2]
    assert cut.points[:, 0].tolist() == pytest.approx([4.5, 5, 6, 7, 10, 11, 12, 12.5])
    assert cut.offsets.tolist() == [0, 4, 8]
    assert cut.first_steps.tolist() == [2, 0]
    assert cut.second_steps.tolist() == [1, 3]


@pytest.mark.parametrize("wrong", [{"samples": 1}, {"power": -1.0}, {"max_trials": 0}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="samples"):
        IFOD2(**wrong)


def measures(lines: Streamlines) -> tuple[np.ndarray, np.ndarray]:
    """Length (mm) and mean turn (rad/mm) of each line."""
    length, turn = [], []
    for n in range(len(lines)):
        segments = lines[n].double().diff(dim=0)
        size = segments.norm(dim=-1)
        unit = segments / size[:, None].clamp_min(1e-9)
        length.append(float(size.sum()))
        turn.append(float((unit[1:] * unit[:-1]).sum(-1).clamp(-1, 1).arccos().sum() / size.sum()))
    return np.array(length), np.array(turn)


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("tckgen") is None, reason="MRtrix3 is not installed")
def test_lengths_and_turns_are_distributed_as_those_of_mrtrix(tmp_path: Path, oblique_affine: Tensor) -> None:
    field, mask = bend(oblique_affine)
    for name, values in (("fod", field.coeffs.permute(1, 2, 3, 0).numpy()), ("mask", mask.mask.numpy())):
        image = nibabel.Nifti1Image(values.astype(np.float32), field.grid.affine.numpy())
        image.set_sform(field.grid.affine.numpy(), 1)
        nibabel.save(image, tmp_path / f"{name}.nii")
    n = 1500
    subprocess.run(
        [
            "tckgen", tmp_path / "fod.nii", tmp_path / "ref.tck", "-algorithm", "iFOD2", "-seed_image",
            tmp_path / "mask.nii", "-mask", tmp_path / "mask.nii", "-select", str(n), "-nthreads", "0", "-quiet",
        ],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    reference, _ = read_tractogram(tmp_path / "ref.tck", "phantom")
    batches = track_until(IFOD2(), field, mask, mask, n, torch.Generator().manual_seed(3))
    ours = Streamlines.concatenate(list(batches), "phantom")
    for a, b in zip(measures(ours), measures(reference), strict=True):
        found = stats.ks_2samp(a, b)
        print(found.statistic, found.pvalue, a.mean(), b.mean())
        assert found.pvalue > 1e-3
