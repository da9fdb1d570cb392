"""Several masks vote: what agrees is used, what fails is named, and doubt is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tractode.errors import InputDataError
from tractode.fields import DWI, GradientTable, Image, ImageGrid
from tractode.preprocess import mask_consensus
from tractode.preprocess.mask_consensus import anatomical_mask, scan_mask
from tractode.preprocess.surface_mask import SurfaceSettings, surface_mask

SHAPE = (62, 60, 50)
QUICK = (220, 30)  # steps of a surface: a ball of 45 mm needs no more


@pytest.fixture(autouse=True)
def quick_surfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(image: Image, settings: SurfaceSettings | None = None, near: Image | None = None) -> Image:
        return surface_mask(image, replace(settings or SurfaceSettings(), iterations=QUICK), near)

    monkeypatch.setattr(mask_consensus, "surface_mask", quick)


def head(
    affine: torch.Tensor, fat: float = 0.15, shape: tuple[int, int, int] = SHAPE, bone: float = 6.0
) -> tuple[DWI, torch.Tensor]:
    """A brain of 45 mm with fluid inside, dark bone, scalp; b=0 and b=1000."""
    grid = ImageGrid(shape, affine, "phantom")
    middle = grid.to_world((torch.tensor(shape, dtype=torch.float64) - 1) / 2)
    away = grid.centres(torch.float64) - middle
    radius = away.norm(dim=-1)
    brain = radius < 45
    scalp = (radius > 45 + bone) & (radius < 60)
    fluid = radius < 9
    generator = torch.Generator().manual_seed(1)
    volumes = []
    for levels in ((0.5, fat, 1.0), (0.2, fat * 0.9, 0.03)):
        clean = levels[0] * brain + levels[1] * scalp
        clean = torch.where(fluid, levels[2], clean) * (1 - 0.003 * away[..., 2])
        noise = [0.02 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
        volumes.append(1000 * (clean + noise[0]).hypot(noise[1]))
    directions = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    table = GradientTable(torch.tensor([0.0, 1000.0]), directions, torch.tensor([True, False]))
    return DWI(grid, torch.stack(volumes).float(), table, torch.ones(shape, dtype=torch.bool)), brain


def dice(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_all_methods_agree_on_a_plain_head(oblique_affine: torch.Tensor) -> None:
    scan, brain = head(oblique_affine)
    verdict = scan_mask(scan)
    assert verdict.passed
    assert verdict.used == ("threshold", "weighted", "surface")
    assert dice(verdict.mask.mask, brain) > 0.96
    record = verdict.record()
    assert record["agreement"].keys() == {"threshold–weighted", "threshold–surface", "weighted–surface"}
    assert all(abs(volume - 382) < 40 for volume in record["millilitres"].values())


def test_a_surface_stops_at_the_skull_and_keeps_the_faces_of_a_slab(oblique_affine: torch.Tensor) -> None:
    scan, brain = head(oblique_affine, shape=(62, 60, 12))
    found = surface_mask(Image(scan.grid, scan.signal[:1]), SurfaceSettings(iterations=QUICK)).mask
    assert dice(found, brain) > 0.95
    for face in (0, -1):
        assert dice(found[:, :, face], brain[:, :, face]) > 0.9


def test_storage_order_does_not_matter_to_a_surface(oblique_affine: torch.Tensor) -> None:
    scan, _ = head(oblique_affine)
    turned = ImageGrid((50, 62, 60), oblique_affine[:, [2, 0, 1, 3]], "phantom")
    quick = SurfaceSettings(iterations=(60, 20))
    first = surface_mask(Image(scan.grid, scan.signal[:1]), quick).mask
    second = surface_mask(Image(turned, scan.signal[:1].permute(0, 3, 1, 2).contiguous()), quick).mask
    assert dice(first.permute(2, 0, 1), second) > 0.999


def test_bright_fat_needs_the_template(oblique_affine: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scalp as bright as brain, bone of less than a voxel: thresholds take the whole head, a template's brain does not."""
    scan, brain = head(oblique_affine, fat=0.5, bone=2.0)
    near = Image(scan.grid, torch.roll(brain, (2, -1, 1), (0, 1, 2))[None])
    monkeypatch.setattr(mask_consensus, "template_mask", lambda *_: near)
    whole = Image(scan.grid, torch.ones_like(brain)[None])
    monkeypatch.setattr(mask_consensus, "brain_mask", lambda *_: whole)
    alone = scan_mask(scan)
    assert not alone.passed
    verdict = scan_mask(scan, template=lambda: (near, near))
    assert "template" in verdict.used
    assert dice(verdict.mask.mask, brain) > 0.85


def test_methods_that_disagree_with_the_rest_are_left_out(
    oblique_affine: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, brain = head(oblique_affine)
    everything = Image(scan.grid, torch.ones_like(brain)[None])
    monkeypatch.setattr(mask_consensus, "surface_mask", lambda *_: everything)
    verdict = scan_mask(scan)
    assert not verdict.passed  # two thresholds are one kind of method
    assert verdict.used == ("threshold", "weighted")
    assert "surface did not and was left out" in verdict.reason
    assert dice(verdict.mask.mask, brain) > 0.95

    def fails(*_: object) -> Image:
        raise InputDataError("it fell in", id="E-MASK-SURFACE")

    monkeypatch.setattr(mask_consensus, "surface_mask", fails)
    failed = scan_mask(scan)
    assert failed.failures == {"surface": "it fell in"}
    assert not failed.passed  # still one kind
    alone = scan_mask(DWI(scan.grid, scan.signal[:1], scan.gtab[:1], scan.mask))
    assert not alone.passed
    assert "only threshold found a brain" in alone.reason
    half = torch.zeros_like(brain)
    half[:30] = brain[:30]
    other = brain & ~half
    monkeypatch.setattr(mask_consensus, "surface_mask", lambda *_: Image(scan.grid, half[None]))
    monkeypatch.setattr(mask_consensus, "brain_mask", lambda *_: Image(scan.grid, other[None]))
    doubtful = scan_mask(DWI(scan.grid, scan.signal[:1], scan.gtab[:1], scan.mask))
    assert not doubtful.passed
    assert "no two kinds of methods agree" in doubtful.reason


def test_one_method_can_be_named(oblique_affine: torch.Tensor) -> None:
    scan, brain = head(oblique_affine)
    verdict = scan_mask(scan, "surface")
    assert (verdict.method, verdict.passed, verdict.agreement) == ("surface", True, {})
    assert dice(verdict.mask.mask, brain) > 0.95
    with pytest.raises(InputDataError, match="E-MASK-METHOD"):
        scan_mask(scan, "template")


def test_what_hangs_on_by_a_voxel_falls_off(oblique_affine: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, brain = head(oblique_affine)
    nosy = brain.clone()
    nosy[53:58, 30, 25] = True
    nosy[58:61, 28:33, 23:28] = True
    assert int((nosy & ~brain).sum()) > 70
    monkeypatch.setattr(mask_consensus, "brain_mask", lambda *_: Image(scan.grid, nosy[None]))
    kept = scan_mask(scan, "threshold").mask.mask
    assert int((kept & ~brain).sum()) < 5
    assert int((brain & ~kept).sum()) == 0


def test_nothing_is_refused(oblique_affine: torch.Tensor) -> None:
    scan, _ = head(oblique_affine)
    with pytest.raises(InputDataError, match="E-MASK-NONE"):
        scan_mask(DWI(scan.grid, torch.zeros_like(scan.signal), scan.gtab, scan.mask))


def test_a_carried_mask_is_put_right_by_the_surface(
    oblique_affine: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, brain = head(oblique_affine)
    image = Image(scan.grid, scan.signal[:1])
    carried = torch.roll(brain, (1, 1, -1), (0, 1, 2))
    verdict = anatomical_mask(image, Image(scan.grid, carried[None]))
    assert verdict.used == ("template", "surface")
    assert dice(verdict.mask.mask, brain) > dice(carried, brain)
    far = torch.roll(brain, 14, 0)
    monkeypatch.setattr(mask_consensus, "surface_mask", lambda *_: Image(scan.grid, brain[None]))
    doubtful = anatomical_mask(image, Image(scan.grid, far[None]))
    assert not doubtful.passed
    assert dice(doubtful.mask.mask, far) > 0.97


def test_a_surface_needs_something_to_grow_in(oblique_affine: torch.Tensor) -> None:
    grid = ImageGrid((20, 20, 20), oblique_affine, "phantom")
    with pytest.raises(InputDataError, match="E-MASK-SURFACE"):
        surface_mask(Image(grid, torch.zeros(1, 20, 20, 20)), SurfaceSettings(iterations=(1, 1)))
