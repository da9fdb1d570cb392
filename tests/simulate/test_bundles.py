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


# Thinner than the template's blur: its white matter is half as white there.
FAINT = {"FXL", "FXR"}


def test_there_are_at_least_twenty_four_and_each_pair_has_both_sides() -> None:
    names = set(courses())
    assert len(names) >= 24
    assert all(name[:-1] + "R" in names for name in names if name.endswith("L") and courses()[name].kind == "paired")


def test_the_documentation_lists_every_bundle() -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text(encoding="utf-8")
    bare = {name if course.kind == "commissure" else name[:-1] for name, course in courses().items()}
    assert [name for name in sorted(bare) if f"`{name}`" not in page] == []
    assert f"{len(courses())} of them" in page


@pytest.mark.parametrize("name", sorted(courses()))
def test_bundle_stays_in_white_matter_and_on_its_side(name: str, white: Image) -> None:
    lines = draw(name, white)
    fraction = white.sample(lines.points.float())[:, 0]
    assert len(lines) >= 40
    assert (fraction > 0.2).float().mean() > 0.9
    assert fraction.mean() > (0.45 if name in FAINT else 0.6)
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
        ("FXR", [(2, -10, 17), (28, -33, -2), (2, 1, -4)]),  # body, fimbria, column
        ("FPTL", [(-9, -16, -17), (-18, 1, 6), (-24, 26, 38)]),  # medial peduncle, genu and anterior limb, frontal lobe
        (
            "POPTR",
            [(15, -23, -15), (26, -26, 8), (27, -50, 42)],
        ),  # lateral peduncle, retrolenticular limb, parietal lobe
    ],
)
def test_bundle_passes_its_landmarks(name: str, landmarks: list[tuple[float, float, float]], white: Image) -> None:
    lines = draw(name, white)
    assert max(nearest(lines, landmark) for landmark in landmarks) < 4


def test_left_is_the_mirror_image_of_right(white: Image) -> None:
    left, right = draw("CSTL", white, 300), draw("CSTR", white, 300)
    assert torch.allclose(left.points.mean(0) * torch.tensor([-1.0, 1, 1]), right.points.mean(0), atol=1.0)


def on_2mm(lines: Streamlines) -> tuple[dict[tuple[int, ...], torch.Tensor], torch.Tensor]:
    """Mean unit direction of a bundle in each 2 mm cell that it visits, and its cells."""
    index = lines.streamline_of_point
    within = index[1:] == index[:-1]
    step = lines.points.diff(dim=0)[within].double()
    cells = (lines.points[:-1][within].double() / 2).round().long()
    unique, owner = cells.unique(dim=0, return_inverse=True)
    total = torch.zeros(len(unique), 3, dtype=torch.float64).index_add(0, owner, step / step.norm(dim=-1, keepdim=True))
    mean = total / total.norm(dim=-1, keepdim=True)
    return {tuple(cell): direction for cell, direction in zip(unique.tolist(), mean, strict=True)}, unique


def shared_angles(first: Streamlines, second: Streamlines) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells that two bundles share (mm), and the angle between them there, degrees."""
    one, two = on_2mm(first)[0], on_2mm(second)[0]
    cells = sorted(one.keys() & two.keys())
    cosine = torch.stack([(one[cell] @ two[cell]).abs() for cell in cells])
    return torch.tensor(cells) * 2.0, torch.rad2deg(torch.acos(cosine.clamp(max=1)))


def test_fornices_kiss_below_the_callosum(white: Image) -> None:
    left, right = draw("FXL", white, 300), draw("FXR", white, 300)
    cells, angle = shared_angles(left, right)
    assert len(cells) >= 8
    assert angle.median() < 15
    # They touch and part: apart by 40 mm at the fimbriae, and neither ever crosses the midline.
    assert right.points[:, 0].min() > 0 > left.points[:, 0].max()
    starts = [lines.points[lines.offsets[:-1]].mean(0) for lines in (left, right)]
    assert (starts[0] - starts[1]).norm() > 40


def test_uncinate_kisses_the_inferior_fronto_occipital_fasciculus(white: Image) -> None:
    ifof, uncinate = draw("IFOFR", white, 300), draw("UFR", white, 300)
    cells, angle = shared_angles(ifof, uncinate)
    assert len(cells) >= 8
    assert angle.median() < 35
    # Side by side in the external capsule, and the uncinate is the lower one before and after.
    for y in (35.0, 22.0, 10.0):
        heights = [float(lines.points[(lines.points[:, 1] - y).abs() < 1.5, 2].median()) for lines in (ifof, uncinate)]
        assert heights[0] > heights[1]


def test_three_bundles_squeeze_through_the_cerebral_peduncle(white: Image) -> None:
    lines = {name: draw(name, white, 300) for name in ("FPTR", "CSTR", "POPTR")}
    slab = {name: found.points[(found.points[:, 2] + 17).abs() < 1] for name, found in lines.items()}
    assert all(len(points) > 50 for points in slab.values())
    together = (torch.cat(list(slab.values()))[:, :2] / 2).round().unique(dim=0)
    assert len(together) * 4 < 150  # mm² of the stem's cross-section
    directions = []
    for found in lines.values():
        within = (found.points[:-1, 2] + 17).abs() < 3
        along = found.points.diff(dim=0)[within]
        kept = along[along.norm(dim=-1) < 3]
        directions.append(torch.nn.functional.normalize((kept * kept[:, 2:].sign()).mean(0), dim=0))
    worst = min(float((a @ b).abs()) for a in directions for b in directions)
    assert np.rad2deg(np.arccos(worst)) < 30
    ends = torch.stack([found.points[found.offsets[1:] - 1].mean(0) for found in lines.values()])
    assert torch.pdist(ends).min() > 25


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
    "FXR": "ProjectionBasalGanglia_FornixR",
    "FPTL": "ProjectionBrainstem_CorticopontineTractL_Frontal",
    "POPTR": "ProjectionBrainstem_CorticopontineTractR_Parietal",
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
