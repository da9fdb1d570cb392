"""The held-out test subjects of `gentract.py`: made once in a work folder, from seeds that no training subject has.

Each has the atlas's bundles only, as lines that were held out of the library, varied for one person (`bundle_variation`), in a head of its
own (the simulator's warp, an oblique left-handed scan). The T1w shows that warp, but not the small smooth displacement that the variation
adds (0.5-3 mm): it stands for what registration misses in real heads. Registration is the app's own, T1w onto the built-in
template at 2 mm; the head lies in the T1w as in the scan. Qualities: 2.2 or 3 mm, SNR 30 or 10, 60 directions at b = 2000 s/mm².
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from gentract_lines import Case
from torch import Tensor

from tractode.errors import InputDataError
from tractode.evaluate.connections import BundleRegions
from tractode.fields import (
    Affine,
    Chain,
    Displacement,
    Flow,
    GradientTable,
    Image,
    ImageGrid,
    ShField,
    Streamlines,
    Transform,
    VelocityField,
)  # fmt: skip
from tractode.fields.reorient import reoriented
from tractode.generative.space import ORDER, SPACE, training_grid
from tractode.io.builtin_template import load_builtin
from tractode.models.deconvolution import constrained_deconvolution
from tractode.models.response import ResponseSettings, estimate_response, gaussian_response
from tractode.registration.optimise import COARSE, register
from tractode.simulate import subject as head
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.bundle_variation import Variation, VariationSettings, vary
from tractode.simulate.gradients import multi_shell
from tractode.simulate.seeds import stream
from tractode.simulate.tissues import WHITE, Anatomy
from tractode.simulate.warp import participant_warp
from tractode.training.tract_subjects import read_library, template_anatomy
from tractode.workflows.simulate_visit import oriented

FIRST_SEED = 10_000
QUALITIES = {"base": (2.2, 30.0), "noise": (2.2, 10.0), "lowres": (3.0, 30.0), "lowres_noise": (3.0, 10.0)}
ORDER_OF_TRACKERS = 8
_VARIATION = VariationSettings(sources=(1.0, 0.0, 0.0), lines="held-out", shares=(1.0, 1.0))
_RESPONSE = ResponseSettings(n_single_fibre=150, n_candidates=1000, max_iterations=5)


@dataclass(frozen=True, eq=False)
class _Head:
    """What a subject's scans share."""

    warp: Chain
    person: Variation
    registered: Transform
    affine: Affine
    centred: Affine


# What the files of the work folder may hold besides tensors.
_STORED = [
    Affine, BundleRegions, Case, Chain, Displacement, Flow, Image, ImageGrid, ShField, Streamlines, Variation, VelocityField, _Head,
]  # fmt: skip


@cache
def brain() -> Anatomy:
    return template_anatomy()


@cache
def load_library() -> BundleLibrary:
    """The library of the atlas folder below ``$TRACTODE_TEST_DATA``."""
    return read_library(Path(os.environ["TRACTODE_TEST_DATA"]) / "bundles_atlas", brain())


def load(work: Path, number: int, quality: str) -> Case:
    """Test subject ``number`` (from 0) at one quality of its scan, made when it is first asked for."""
    return _kept(work / f"case-{number:02d}-{quality}.pt", lambda: _case(work, number, quality, None))


def shifted(work: Path, number: int, quality: str, name: str, vector: tuple[float, float, float]) -> Case:
    """The same with one bundle shifted (mm, along the template's axes) before the signal is made."""
    label = "_".join(f"{value:g}" for value in vector)
    path = work / f"case-{number:02d}-{quality}-{name}-{label}.pt"
    return _kept(path, lambda: _case(work, number, quality, (name, torch.tensor(vector))))


def whole_library(work: Path, number: int) -> tuple[Tensor, Transform]:
    """Every line of the library as it runs in this person, existing or not, and the way from the scan to where they are given."""
    one = _head(work, number)
    return one.person.lines, one.warp


def _kept(path: Path, make) -> Case:  # type: ignore[no-untyped-def]
    """Kept in a file of our own, which nothing else writes."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        torch.save(make(), partial)
        partial.replace(path)
    # Of classes, only those that a case is made of are read: nothing in the file can run code.
    with torch.serialization.safe_globals(_STORED):
        return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


def _head(work: Path, number: int) -> _Head:
    return _kept(work / f"head-{number:02d}.pt", lambda: _registered(number))  # type: ignore[return-value]


def _registered(number: int) -> _Head:
    """The subject's shape and bundles, and the app's registration of its T1w."""
    seed, space = FIRST_SEED + number, f"sub-{number:02d}"
    warp = participant_warp(brain().t1w.grid, space, stream(seed, 0, "warp"))
    person = vary(load_library(), brain().t1w.grid, stream(seed, 0, "bundle variation"), _VARIATION)
    grid = head.field_of_view(brain(), warp, (2.0, 2.0, 2.0), oriented("RAS", 0.0), 10.0, space)
    t1w, t1w_mask = head.t1w_scan(brain(), grid, warp, head.SubjectSettings(), stream(seed, 0, "T1w noise"))
    template, mask = load_builtin("T1w", 2.0), load_builtin("mask", 2.0)
    found = register(template, t1w, fixed_mask=mask, schedule=COARSE)
    affine = next(part for part in reversed(found.parts) if isinstance(part, Affine))
    return _Head(
        warp,
        person,
        found.inverse(),
        Affine(torch.linalg.inv(affine.matrix), space, SPACE),
        Affine(_shift(_middle(mask) - _middle(t1w_mask)), space, SPACE),
    )


def _middle(mask: Image) -> Tensor:
    return mask.grid.to_world(mask.mask.nonzero().double()).mean(0)


def _shift(vector: Tensor) -> Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = vector
    return matrix


def _case(work: Path, number: int, quality: str, moved: tuple[str, Tensor] | None) -> Case:
    one, library = _head(work, number), load_library()
    true = _diffusion(one, number, quality, moved)
    seed = FIRST_SEED + number
    settings = head.SubjectSettings(snr=QUALITIES[quality][1])
    values = head.noisy(true.signal, settings, stream(seed, 0, "dwi noise")).float()
    fod = _deconvolved(values, true.gtab, true.fibres.tissues[WHITE] > 0.05, true.grid)
    n = (ORDER + 1) * (ORDER + 2) // 2
    field = reoriented(ShField(true.grid, fod.coeffs[:n], ORDER), training_grid(), one.registered.inverse())
    regions, lines = {}, {}
    for name, truth in true.bundles.items():
        lengths = truth.streamlines.lengths()
        limits = float(lengths.min()), float(lengths.max())
        regions[name] = BundleRegions(true.grid, truth.mask, truth.start, truth.end, limits)
        lines[name] = truth.streamlines
    assert set(lines) <= set(library.names)
    white = Image(true.grid, true.fibres.tissues[WHITE : WHITE + 1].float())
    return Case(number, quality, fod, white, field, one.registered, one.affine, one.centred, regions, lines)


def _diffusion(one: _Head, number: int, quality: str, moved: tuple[str, Tensor] | None) -> head.Diffusion:
    voxel = QUALITIES[quality][0]
    # Template → person's template (the residual) → scan: tissues and bundles move alike, the T1w knows the second part only.
    whole = Chain((*one.warp.parts, *one.person.residual.inverse().parts))
    grid = head.field_of_view(brain(), whole, (voxel,) * 3, oriented("LAS", 12.0), 4.0, one.warp.source)
    gtab = multi_shell(((2000.0, 60),), 6)
    return head.diffusion(brain(), grid, gtab, whole, _lines(one, moved), head.SubjectSettings())


def _lines(one: _Head, moved: tuple[str, Tensor] | None) -> dict[str, Streamlines]:
    """The person's bundles in the template, before the residual, some 1.5 mm between points."""
    library = load_library()
    back = one.person.residual.inverse()
    found = {}
    for index in one.person.present.nonzero().ravel().tolist():
        rows = (one.person.kept & (library.bundle == index)).nonzero().ravel()
        points = back.map(one.person.lines[rows].double())
        if moved is not None and moved[0] == library.names[index]:
            points = points + moved[1]
        fine = torch.nn.functional.interpolate(points.movedim(-1, 1), 121, mode="linear", align_corners=True).movedim(
            1, -1
        )
        offsets = torch.arange(0, fine.shape[0] * fine.shape[1] + 1, fine.shape[1])
        found[library.names[index]] = Streamlines(fine.reshape(-1, 3).float(), offsets, SPACE)
    return found


def _deconvolved(values: Tensor, gtab: GradientTable, where: Tensor, grid: ImageGrid) -> ShField:
    """Response and CSD of the app's kind, in single precision, where there is white matter."""
    signal = values[:, where].mT
    shell = (~gtab.is_b0).nonzero().ravel()
    some = torch.randperm(len(signal), generator=torch.Generator().manual_seed(0))[:12_000]
    try:
        response = estimate_response(signal[some], gtab, shell, _RESPONSE)
    except InputDataError:
        response = gaussian_response(2000.0, 1.7e-3, 0.4e-3, float(signal[:, gtab.is_b0].median()))
    fod = constrained_deconvolution(
        signal[:, shell], gtab.bvecs[shell], response.coefficients, ORDER_OF_TRACKERS, torch.float32
    )
    coeffs = torch.zeros(fod.shape[1], *grid.shape)
    coeffs[:, where] = fod.mT.float()
    return ShField(grid, coeffs, ORDER_OF_TRACKERS)
