"""Agreement of maps and of bundles: known answers, and DIPY's on the same files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tractode.errors import SpaceMismatchError
from tractode.evaluate.bundle_distance import bundle_distance, mdf_matrix
from tractode.evaluate.density import covering_grid, density_agreement, map_agreement
from tractode.evaluate.visitation import visits
from tractode.fields import ImageGrid, Streamlines
from tractode.fields.line_shape import resampled
from tractode.io.tractogram import read_tractogram, write_tractogram
from tractode.ops import polyline
from tractode.simulate.phantom import PhantomSettings, phantom


def rows(ys: list[float], space: str = "w", n: int = 31) -> Streamlines:
    """Lines of 30 mm along x at the given y."""
    x = torch.linspace(0, 30, n, dtype=torch.float64)
    return Streamlines.from_list([torch.stack([x, torch.full_like(x, y), 0 * x], -1) for y in ys], space)


def test_maps_of_known_agreement() -> None:
    first = torch.zeros(4, 1, 1, dtype=torch.long)
    first[:, 0, 0] = torch.tensor([4, 2, 0, 0])
    second = torch.zeros(4, 1, 1, dtype=torch.long)
    second[:, 0, 0] = torch.tensor([0, 1, 3, 0])
    found = map_agreement(first, second)
    assert found.n == 3  # the fourth voxel is nobody's
    assert found.correlation == pytest.approx(np.corrcoef([4, 2, 0], [0, 1, 3])[0, 1])
    assert found.weighted_dice == pytest.approx((2 / 6 + 1 / 4) / 2)
    assert found.dice == pytest.approx(2 * 1 / 4)


def test_the_same_lines_agree_wholly_and_distant_ones_not_at_all() -> None:
    grid = covering_grid([rows([0.5, 2.5, 2.6]), rows([40.0])], 2.0)
    same = density_agreement(rows([0.5, 2.5, 2.6]), rows([0.5, 2.5, 2.6]), grid)
    assert (same.correlation, same.weighted_dice, same.dice) == pytest.approx((1, 1, 1))
    apart = density_agreement(rows([0.5, 2.5, 2.6]), rows([40.0]), grid)
    assert apart.weighted_dice == 0
    assert apart.correlation < 0


def test_empty_tractograms_agree_on_nothing() -> None:
    empty = Streamlines.from_list([], "w")
    found = density_agreement(empty, empty, covering_grid([empty], 2.0))
    assert (found.n, math.isnan(found.correlation)) == (0, True)
    assert math.isnan(bundle_distance(empty, rows([0.0])).mdf_mm)


def test_distance_between_bundles_is_the_mean_of_both_directions() -> None:
    found = bundle_distance(rows([0.0, 1.0]), rows([0.0, 4.0]))
    assert (found.forward_mm, found.backward_mm) == pytest.approx((0.5, 1.5))
    assert found.mdf_mm == pytest.approx(1.0)
    flipped = Streamlines.from_list([line.flip(0) for line in rows([0.0, 4.0])], "w")
    assert bundle_distance(rows([0.0, 1.0]), flipped).mdf_mm == pytest.approx(1.0)


def test_large_bundles_are_thinned_evenly() -> None:
    found = bundle_distance(rows([float(y) for y in range(100)]), rows([0.0]), most_lines=11)
    assert (found.n_first, found.n_second) == (11, 1)
    assert found.forward_mm == pytest.approx(np.linspace(0, 99, 11).round().mean())


def test_resampling_all_lines_at_once_is_resampling_each(generator: torch.Generator) -> None:
    lines = [torch.randn(n, 3, generator=generator).double().cumsum(0) for n in (5, 1, 2, 40)]
    lines.append(torch.ones(3, 3, dtype=torch.float64))  # no length
    lines.append(torch.cat([lines[0][:2], lines[0][1:]]))  # a point given twice
    together = resampled(Streamlines.from_list(lines, "w"), 9)
    each = torch.stack([polyline.resample(line, 9) for line in lines])
    assert torch.allclose(together, each, atol=1e-9)


def test_spaces_are_not_mixed() -> None:
    with pytest.raises(SpaceMismatchError, match="other"):
        bundle_distance(rows([0.0]), rows([0.0], "other"))
    with pytest.raises(SpaceMismatchError, match="other"):
        covering_grid([rows([0.0]), rows([0.0], "other")], 2.0)


@pytest.fixture
def files(tmp_path: Path, oblique_affine: torch.Tensor) -> tuple[Path, Path, ImageGrid]:
    """Two drawings of one of the phantom's kissing bundles, written as TCK; of odd size: no line runs along a wall."""
    settings = PhantomSettings(regions=("kissing",), fibres_per_bundle=60, size=25)
    paths = []
    for seed in (1, 2):
        made = phantom(settings=settings, seed=seed, affine=oblique_affine)
        paths.append(tmp_path / f"{seed}.tck")
        write_tractogram(paths[-1], made.bundles["KissA"].streamlines, made.dwi.grid)
    return paths[0], paths[1], made.dwi.grid


@pytest.mark.reference
def test_mdf_is_dipys(files: tuple[Path, Path, ImageGrid]) -> None:
    import nibabel
    from dipy.tracking.distances import bundles_distances_mdf
    from dipy.tracking.streamline import set_number_of_points

    first, second, _ = files
    ours = [resampled(read_tractogram(path, "phantom")[0], 20) for path in (first, second)]
    theirs = [
        set_number_of_points(nibabel.streamlines.load(path).streamlines, nb_points=20) for path in (first, second)
    ]
    wanted = bundles_distances_mdf(
        [np.asarray(a, np.float32) for a in theirs[0]], [np.asarray(b, np.float32) for b in theirs[1]]
    )
    assert np.abs(mdf_matrix(*ours).numpy() - wanted).max() < 1e-3
    found = bundle_distance(*(read_tractogram(path, "phantom")[0] for path in (first, second)))
    assert found.mdf_mm == pytest.approx((wanted.min(1).mean() + wanted.min(0).mean()) / 2, abs=1e-3)


@pytest.mark.reference
def test_visits_are_dipys_on_points_close_together(files: tuple[Path, Path, ImageGrid]) -> None:
    """DIPY counts points, not segments: with 0.002 mm between points no corner is missed."""
    import nibabel
    from dipy.tracking.streamline import set_number_of_points
    from dipy.tracking.utils import density_map

    first, _, grid = files
    ours = visits(read_tractogram(first, grid.space)[0], grid)
    dense = set_number_of_points(nibabel.streamlines.load(first).streamlines, nb_points=30000)
    theirs = density_map(dense, grid.affine.numpy(), grid.shape)
    assert np.abs(ours.numpy() - theirs).sum() <= 2
    assert map_agreement(ours, torch.from_numpy(theirs.astype(np.int64))).correlation > 0.9999
