"""Bundles run where anatomy says: landmarks, sides, white matter, and (reference) a published atlas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tractode.fields import Image, Streamlines
from tractode.io.builtin_template import load_builtin
from tractode.simulate.bundles import bundle, courses, disk


@pytest.fixture(scope="module")
def white() -> Image:
    return load_builtin("WM")


def draw(name: str, white: Image, n: int = 150) -> Streamlines:
    return bundle(name, white, n, torch.Generator().manual_seed(0))


def nearest(lines: Streamlines, landmark: tuple[float, float, float]) -> float:
    return float((lines.points - torch.tensor(landmark)).norm(dim=-1).min())


def test_there_are_at_least_twelve_and_each_pair_has_both_sides() -> None:
    names = set(courses())
    assert len(names) >= 12
    assert all(name[:-1] + "R" in names for name in names if name.endswith("L") and courses()[name].kind == "paired")


@pytest.mark.parametrize("name", sorted(courses()))
def test_bundle_stays_in_white_matter_and_on_its_side(name: str, white: Image) -> None:
    lines = draw(name, white)
    fraction = white.sample(lines.points.float())[:, 0]
    assert len(lines) >= 40
    assert (fraction > 0.2).float().mean() > 0.9
    assert fraction.mean() > 0.6
    x = lines.points[:, 0]
    if courses()[name].kind == "commissure":
        assert x.min() < -15
        assert x.max() > 15
    else:
        side = 1 if name.endswith("R") else -1
        assert (x * side).min() > -1
    turns = torch.cat(
        [
            torch.nn.functional.cosine_similarity(line[1:-1] - line[:-2], line[2:] - line[1:-1])
            for line in list(lines)[:20]
        ]
    )
    assert turns.min() > np.cos(np.deg2rad(25))  # no kinks at a step of 1 mm


@pytest.mark.parametrize(
    ("name", "landmarks"),
    [
        ("CSTR", [(24, -18, 10), (14, -18, -13), (6, -28, -38), (32, -24, 55)]),  # capsule, peduncle, pons, hand knob
        ("CCForcepsMinor", [(0, 30, 5)]),  # genu
        ("CCForcepsMajor", [(0, -40, 15)]),  # splenium
        ("CCBody", [(0, 0, 24), (0, -20, 23)]),
        ("UFL", [(-34, 4, -14)]),  # limen insulae
        ("CGL", [(-9, 0, 34), (-24, -30, -16)]),  # cingulate and parahippocampal parts
        ("ORR", [(22, -26, -3), (14, -92, 3)]),  # lateral geniculate body, calcarine cortex
        ("AFL", [(-40, -45, 18)]),  # arch around the Sylvian fissure
    ],
)
def test_bundle_passes_its_landmarks(name: str, landmarks: list[tuple[float, float, float]], white: Image) -> None:
    lines = draw(name, white)
    assert max(nearest(lines, landmark) for landmark in landmarks) < 4


def test_left_is_the_mirror_image_of_right(white: Image) -> None:
    left, right = draw("CSTL", white, 300), draw("CSTR", white, 300)
    assert torch.allclose(left.points.mean(0) * torch.tensor([-1.0, 1, 1]), right.points.mean(0), atol=1.0)


def test_disk_is_evenly_filled(generator: torch.Generator) -> None:
    radius = disk(4000, generator).norm(dim=-1)
    assert abs(float((radius < 0.5).double().mean()) - 0.25) < 0.02


ATLAS = {
    "CSTL": "ProjectionBrainstem_CorticospinalTractL",
    "CCForcepsMinor": "Commissure_CorpusCallosum_ForcepsMinor",
    "UFR": "Association_UncinateFasciculusR",
    "ORR": "ProjectionBasalGanglia_OpticRadiationR",
    "IFOFL": "Association_InferiorFrontoOccipitalFasciculusL",
    "AFL": "Association_ArcuateFasciculusL",
}


@pytest.mark.reference
@pytest.mark.parametrize("name", sorted(ATLAS))
def test_bundle_runs_within_the_published_atlas_bundle(name: str, white: Image, test_data: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    from scipy.spatial import cKDTree

    file = test_data / "bundles_atlas" / f"{ATLAS[name]}.trk"
    if not file.is_file():
        pytest.skip(f"{file.name} is not among the test data")
    atlas = np.asarray(nibabel.streamlines.load(file).streamlines.get_data())
    distance, _ = cKDTree(atlas[:: max(1, len(atlas) // 100_000)]).query(draw(name, white).points.numpy())
    assert distance.mean() < 3
