"""Colours of bundles are the same everywhere and told apart, and the figures put every bundle in its own where it lies."""

from __future__ import annotations

import io
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from tractode.evaluate.latent_map import neighbour_map, principal_plane
from tractode.fields import Image, ImageGrid, Streamlines
from tractode.reports.bundle_colours import FAMILIES, colour_of, parts_of, readable, rgb_of, short
from tractode.reports.figures_bundles import bundle_figures
from tractode.reports.group_bundles import bundle_map

LEFT, RIGHT, ODD = "Association_ArcuateFasciculusL", "ProjectionBrainstem_CorticospinalTractR", "mine <b>"


def test_families_are_told_apart_and_sides_are_alike() -> None:
    values = {name: np.array(rgb_of(name)) for name in FAMILIES}
    assert min(float(np.abs(a - b).sum()) for a, b in combinations(values.values(), 2)) > 0.2
    assert colour_of("ArcuateFasciculus") == FAMILIES["ArcuateFasciculus"]
    left, right = (np.array(rgb_of(f"Association_UncinateFasciculus{side}")) for side in "LR")
    assert 0.02 < float(np.abs(left - right).max()) < 0.35
    assert colour_of("nobody's bundle") == colour_of("nobody's bundle")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("AFL", ("", "AF", "L", "")),
        ("CC", ("", "CC", "", "")),
        ("L", ("", "L", "", "")),
        ("ProjectionBrainstem_DentatorubrothalamicTractrl", ("brainstem", "DentatorubrothalamicTract", "rl", "")),
        ("Association_", ("", "Association", "", "")),
    ],
)
def test_any_name_can_be_taken_apart(name: str, found: tuple[str, str, str, str]) -> None:
    assert parts_of(name) == found
    assert colour_of(name).startswith("#")


def test_long_names_keep_their_end() -> None:
    name = "ProjectionBrainstem_NonDecussatingDentatorubrothalamicTractR"
    assert readable(name).endswith("Tract R")
    assert len(short(name)) <= 34
    assert short(name).endswith("R")


@pytest.fixture
def world(oblique_affine: torch.Tensor) -> tuple[Image, Image]:
    affine = oblique_affine.clone()
    affine[:3, :3] *= 3
    middle = affine[:3, :3] @ torch.tensor([12.0, 14, 11], dtype=torch.float64)
    affine[:3, 3] = -middle
    grid = ImageGrid((25, 29, 23), affine, "scan")
    near = (grid.centres().norm(dim=-1) < 70)[None]
    return Image(grid, near * 100.0), Image(grid, near)


def straight(x: float, n: int = 20) -> Streamlines:
    along = torch.linspace(-40, 40, 30)
    lines = [torch.stack([torch.full((30,), x + k * 0.3), along, torch.zeros(30)], 1) for k in range(n)]
    return Streamlines.from_list(lines, "scan")


def facts_of(lines: dict[str, Streamlines]) -> dict[str, Any]:
    rows = [
        {"Name": name, "Streamlines": len(some), "Length": 80.0, "Width": 2.0, "Confidence": 0.9}
        for name, some in lines.items()
    ]
    coding = {
        "Named": 60, "Other": 5, "MinimumConfidence": 0.5, "Space": "T", "Registration": "scan → T", "SetAside": {"NotFinite": 1},
        "Weights": {"Name": "codec-1"}, "Bundles": [*lines, "Association_UncinateFasciculusL"],
    }  # fmt: skip
    error = {"Mean": 0.4, "Percentile95": 1.0, "Maximum": 2.0}
    size = {
        "PointErrorMillimetres": error, "StreamlinesKeptAsPoints": 2, "Bytes": 1000, "RatioToTRXFloat16": 30.0,
        "RatioToTRXFloat16At20Points": 6.0, "RatioToTRXFloat16AtFewestPoints": 2.5, "LargestErrorAllowedMillimetres": 2.0,
    }  # fmt: skip
    return {"bundles": rows, "coding": coding, "compression": size}


def test_every_bundle_is_in_its_colour_on_its_side(world: tuple[Image, Image]) -> None:
    lines = {LEFT: straight(-35.0), RIGHT: straight(30.0), ODD: straight(0.0, 3)}
    figures = bundle_figures(lines, facts_of(lines), *world, run="sub-01", track="sdstream")
    assert [figure.kind for figure in figures] == ["webp", "webp", "html"]
    picture = np.asarray(Picture.open(io.BytesIO(figures[0].body)).convert("RGB")).astype(float) / 255  # type: ignore[arg-type]
    above = picture[: int(picture.shape[0] * 0.6), : int(picture.shape[1] * 0.33)]
    for name, on_left in ((LEFT, True), (RIGHT, False)):
        colour = np.array(rgb_of(name))
        tone = above / np.maximum(np.linalg.norm(above, axis=-1, keepdims=True), 1e-6)
        is_it = (tone @ (colour / np.linalg.norm(colour)) > 0.985) & (above.max(-1) > 0.3)
        assert is_it.sum() > 100
        assert (np.flatnonzero(is_it.any(0)).mean() < above.shape[1] / 2) == on_left
    body = str(figures[2].body)
    assert "mine &lt;b&gt;" in body
    assert "<b>" not in body
    assert "Uncinate Fasciculus L" in figures[2].caption


def test_no_bundle_at_all(world: tuple[Image, Image]) -> None:
    assert len(bundle_figures({}, facts_of({}), *world, run="sub-01", track="x")) == 2


def test_the_plane_of_a_plane_is_itself(generator: torch.Generator) -> None:
    flat = torch.randn(50, 2, generator=generator) * torch.tensor([5.0, 1.0])
    turn = torch.linalg.qr(torch.randn(7, 7, generator=generator))[0][:2]
    plane, shares = principal_plane(flat @ turn + 3)
    assert sum(shares) == pytest.approx(1.0)
    assert torch.allclose(torch.cdist(plane, plane), torch.cdist(flat, flat), atol=1e-3)
    assert torch.equal(plane, principal_plane(flat @ turn + 3)[0])
    for n in (0, 1, 2):
        assert principal_plane(torch.ones(n, 3))[0].shape == (n, 2)


def test_neighbours_stay_together(generator: torch.Generator) -> None:
    kind = torch.arange(30) % 3
    found = neighbour_map(torch.randn(30, 5, generator=generator) * 0.1 + torch.eye(5)[kind] * 10)
    assert found is not None
    near = torch.cdist(found, found).fill_diagonal_(torch.inf).argmin(1)
    assert float((kind[near] == kind).float().mean()) > 0.9
    assert neighbour_map(torch.ones(30, 3)) is None
    assert neighbour_map(torch.zeros(3, 3)) is None


def test_the_map_of_the_group() -> None:
    picture, caption = bundle_map([LEFT, RIGHT, LEFT], torch.eye(3))
    assert picture.startswith("data:image/webp;base64,")
    assert "t-SNE needs" in caption
