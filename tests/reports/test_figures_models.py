"""Pictures of models: several models of one run must not write over each other's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tractode.fields import Image, ImageGrid
from tractode.models import MODELS
from tractode.reports import figures_models, figures_slices
from tractode.reports.reportlet import Reportlet


def test_every_model_has_pictures_of_its_own(oblique_affine: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures_models, "encode", lambda *_: b"")
    monkeypatch.setattr(figures_slices, "encode", lambda *_: b"")
    monkeypatch.setattr(figures_models.figures_glyphs, "encode", lambda *_: b"")
    grid = ImageGrid((4, 4, 3), oblique_affine, "sub-01_dwi")
    mask = Image(grid, torch.ones(1, 4, 4, 3, dtype=torch.bool))
    names: list[str] = []
    for name in MODELS:
        kind = MODELS[name]
        maps = kind().to_maps(kind().example(seed=1, n=48))

        def image_of(param: str, maps: dict[str, Tensor] = maps) -> Image:
            return Image(grid, maps[param].float().mT.reshape(-1, *grid.shape))

        shown: list[Reportlet] = figures_models.figures(kind, image_of, mask, "sub-01")
        assert shown
        names += [reportlet.name for reportlet in shown]
    assert len(names) == len(set(names)), sorted(n for n in set(names) if names.count(n) > 1)
