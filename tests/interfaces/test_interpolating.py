"""Runs undone by one interpolation and put on one grid: directions, noise, view, what is left as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.interfaces.painted_head import Head, part_of

from tractode.errors import InputDataError
from tractode.fields import DWI, Affine, GradientTable, Image, ImageGrid
from tractode.interfaces import interpolating
from tractode.interfaces.quality_rows import confound_rows
from tractode.ops import volume_pose as pose
from tractode.preprocess import merge, resample


def test_series_are_joined_at_one_brightness(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((5, 6, 7), oblique_affine, "a")
    gtab = GradientTable(
        torch.tensor([0.0, 1000.0]),
        torch.tensor([[0.0, 0, 0], [1, 0, 0]]),
        torch.tensor([True, False]),
        echo_time=torch.ones(2),
    )
    signal = 10 + torch.rand(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    first = DWI(grid, signal, gtab, torch.ones(5, 6, 7, dtype=torch.bool))
    beyond = 2.5 * signal
    beyond[:, 0] = 0  # outside its field of view
    other = DWI(grid, beyond, replace(gtab, echo_time=None), (signal[0] > 10.2) & (beyond[0] > 0))
    joined, factors = merge.merged([first, other])
    assert factors == pytest.approx([1.0, 0.4], rel=1e-5)
    assert torch.allclose(joined.signal[2:, 1:], signal[:, 1:])
    assert not bool(joined.signal[:, 0].any())
    assert joined.gtab.bvals.tolist() == [0, 1000, 0, 1000]
    assert joined.gtab.echo_time is None
    assert torch.equal(joined.mask, other.mask)
    with pytest.raises(InputDataError, match="overlap"):
        merge.merged([first, replace(other, mask=torch.zeros(5, 6, 7, dtype=torch.bool))])


def _pose(head: Head, moved_mm: float, turn: float) -> Affine:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = pose.rotations(torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64) * turn)[0]
    matrix[:3, 3] = torch.tensor([moved_mm, 0.0, 0.0], dtype=torch.float64)
    return Affine(matrix, head.grid.space, head.grid.space)


def test_directions_of_a_joined_run_are_those_of_the_series(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of confounds has the directions that are fitted: turned to the first run's head."""
    first, second = part_of(head, 3), part_of(head, 3)
    for part in (first, second):
        part.estimate = resample._nothing(part.scan, None)
    second.estimate.rigid[1, 3] = 0.2
    first.noise, second.noise = (Image(head.grid, torch.full((1, *head.grid.shape), sigma)) for sigma in (3.0, 4.0))
    monkeypatch.setattr(merge, "way_between", lambda *_: _pose(head, 3.0, 0.3))
    still, _, notes = interpolating.joined([first, second], lambda _: None, lambda *_: None, "cpu")
    rows = confound_rows(first) + confound_rows(second)
    found = torch.tensor([[row[f"grad_{letter}"] for letter in "xyz"] for row in rows])
    torch.testing.assert_close(found.double(), still.scan.gtab.bvecs.double(), atol=1e-5, rtol=0)
    assert float((found[4] - head.gtab.bvecs[1]).norm()) > 0.1
    assert notes == []
    # A run that was interpolated has less noise; and only the grid is kept of what a part was.
    assert first.scan.signal.untyped_storage().nbytes() == 4
    assert still.noise is not None
    level = float(still.noise.values[0][still.scan.mask].median())
    assert 0.7 * (12.5**0.5) < level < 12.5**0.5
    assert not bool((still.scan.mask & ~still.seen).any())


def test_what_a_part_does_not_show_is_not_seen_in_the_whole(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored noughts of either run, where the other's head lies, with and without an interpolation."""
    shown = torch.ones(head.grid.shape, dtype=torch.bool)
    shown[:, :, :6] = False
    monkeypatch.setattr(merge, "way_between", lambda *_: _pose(head, 0.0, 0.0))
    for estimated in (False, True):
        for which in range(2):
            parts = [part_of(head, 2), part_of(head, 2)]
            parts[which].seen = shown
            for part in parts if estimated else []:
                part.estimate = resample._nothing(part.scan, None)
            still, _, _ = interpolating.joined(parts, lambda _: None, lambda *_: None, "cpu")
            assert torch.equal(still.seen, shown)


def test_runs_preprocessed_elsewhere_are_not_interpolated_again(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    for apart, says in ((0.5, []), (5.0, ["W-COMBINE-AGAIN"])):
        parts = [part_of(head, 3, done_by="QSIPrep 1.0") for _ in range(2)]
        signal = parts[1].scan.signal
        way = _pose(head, apart, 0.0)
        monkeypatch.setattr(merge, "way_between", lambda *_, way=way: way)
        still, _, notes = interpolating.joined(parts, lambda _: None, lambda *_: None, "cpu")
        assert [note.id for note in notes] == says
        assert torch.allclose(still.scan.signal[3:], signal, rtol=1e-5) == (not says)


def test_voxels_that_left_the_view_are_counted(head: Head) -> None:
    mask = Image(head.grid, torch.ones(1, *head.grid.shape, dtype=torch.bool))
    seen = mask.mask.clone()
    assert interpolating.within_view(mask, seen, "run") == (mask, [])
    seen[:, :, -1] = False
    kept, (note,) = interpolating.within_view(mask, seen, "run")
    assert torch.equal(kept.mask, seen)
    assert note.id == "W-FIELD-OF-VIEW"
    assert note.message.startswith(f"run: {28 * 33} of {28 * 33 * 24} voxels")
