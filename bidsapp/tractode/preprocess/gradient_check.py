"""Is the gradient table right? A verdict from the signal and from the coherence of fibre directions, never a silent fix.

Schilling et al., *A fiber coherence index for quality control of B-table orientation in diffusion MRI scans*, Magn Reson
Imaging 2019, doi:10.1016/j.mri.2019.01.018. Departures: neighbours are weighed by how well both directions point along
the offset between them (in mm) instead of counted within 30°; the margin between candidates is bootstrapped over blocks
of voxels, and a table is called wrong only when another one is better by a stated margin with 99 % confidence.

A change of the table by an orthogonal matrix P turns every fitted tensor by P, so one fit serves all the candidates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import pairwise, permutations, product
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import DWI, GradientTable
from tractode.models.dti import DTI
from tractode.ops import affine as aff
from tractode.ops import symmetric
from tractode.preprocess.gradient_fixes import candidate_fixes, in_scanner
from tractode.preprocess.mask import brain_mask, dwi_reference

_PART = 1 << 16  # voxels; a multiple of the fit's tiles


class Verdict(StrEnum):
    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class CheckSettings:
    """``fail_margin``: how much better (share of its score) another table must be, with ``confidence``, to say FAIL.

    ``least_coherence``: no table fails whose best rival scores less than this many times what the same fibres score with their
    places shuffled. Noise alone reaches 1.13, real scans 2 to 3.
    """

    fa_threshold: float = 0.2
    sharpness: int = 6  # even
    block_mm: float = 15.0
    n_bootstrap: int = 1000
    confidence: float = 0.99
    fail_margin: float = 0.03
    least_coherence: float = 1.25
    frame_angle_deg: float = 2.0
    fewest_voxels: int = 500


@dataclass(frozen=True)
class Stage:
    """One stage of the check: ``passed`` is ``None`` where it could not tell."""

    name: str
    passed: bool | None
    message: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GradientVerdict:
    """``margin`` is how far the given table leads the best other one (negative: it trails), as a share of the best score,
    with the bounds of its bootstrap; ``suggested_fix`` is a name for ``--apply-gradient-fix``."""

    verdict: Verdict
    stages: tuple[Stage, ...]
    scores: dict[str, float]
    margin: float
    margin_bounds: tuple[float, float]
    suggested_fix: str | None
    reason: str
    seed: int

    def record(self) -> dict[str, Any]:
        """Plain data for the derivative's JSON and the report."""
        plain = asdict(self)
        return {
            **plain,
            "verdict": str(self.verdict),
            "margin_bounds": list(self.margin_bounds),
            "stages": [asdict(s) for s in self.stages],
        }


def check_gradients(dwi: DWI, generator: torch.Generator, settings: CheckSettings | None = None) -> GradientVerdict:
    """Stages 2–5 on one run (syntax, stage 1, is over once there is a `DWI`): table, frame, attenuation, coherence.

    The mask of the series is used where it selects some of the voxels, else a brain mask is made. The result depends on
    the generator only through the bootstrap.
    """
    settings = settings or CheckSettings()
    seed = int(generator.initial_seed())
    table = _check_table(dwi.gtab)
    frame = _check_frame(dwi)
    if table.passed is False:
        return _undecided((table, frame), table.message, seed)
    mask = dwi.mask if not bool(dwi.mask.all()) else brain_mask(dwi_reference(dwi)).mask
    attenuation = _check_attenuation(dwi, mask)
    coherence, scores, bounds = _check_coherence(dwi, mask, generator, settings)
    stages = (table, frame, attenuation, coherence)
    margin = float(coherence.facts.get("margin", 0.0))
    if attenuation.passed is False:
        return GradientVerdict(Verdict.FAIL, stages, scores, margin, bounds, None, attenuation.message, seed)
    outcome = {True: Verdict.PASS, False: Verdict.FAIL, None: Verdict.INCONCLUSIVE}[coherence.passed]
    fix = coherence.facts.get("fix") if outcome is Verdict.FAIL else None
    return GradientVerdict(outcome, stages, scores, margin, bounds, fix, coherence.message, seed)


def _undecided(stages: tuple[Stage, ...], reason: str, seed: int) -> GradientVerdict:
    return GradientVerdict(Verdict.INCONCLUSIVE, stages, {}, 0.0, (0.0, 0.0), None, reason, seed)


def _check_table(gtab: GradientTable) -> Stage:
    """Stage 2: can a tensor be fitted, and how well do the directions cover the sphere?"""
    reason = DTI.why_not(gtab)
    directions = gtab.bvecs[~gtab.is_b0].to(torch.float64)
    facts: dict[str, Any] = {
        "n_volumes": len(gtab),
        "n_b0": int(gtab.is_b0.sum()),
        "shells": [{"b": round(b), "n": len(index)} for b, index in gtab.shells()],
    }
    if reason:
        return Stage("table", False, f"{reason}; directions cannot be checked", facts)
    facts["condition"] = float(torch.linalg.cond(symmetric.quadratic_form(directions)))
    return Stage("table", True, "The table supports a tensor", facts)


def _check_frame(dwi: DWI) -> Stage:
    """Stage 3: how the file's axes lie in the scanner."""
    axes = aff.rotation_part(dwi.grid.affine)
    nearest = _nearest_signed_permutation(axes)
    cosine = float(((axes @ nearest.mT).trace() - 1) / 2)
    oblique = float(torch.rad2deg(torch.arccos(torch.tensor(min(1.0, max(-1.0, cosine))))))
    facts = {"oblique_deg": round(oblique, 2), "left_handed": bool(torch.det(axes) < 0)}
    return Stage("frame", True, f"The image axes are {oblique:.1f}° oblique", facts)


def _nearest_signed_permutation(axes: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
    best = max(permutations(range(3)), key=lambda order: sum(float(axes[order[c], c].abs()) for c in range(3)))
    matrix = torch.zeros_like(axes)
    for column, row in enumerate(best):
        matrix[row, column] = axes[row, column].sign()
    return matrix


def _check_attenuation(dwi: DWI, mask: Bool[Tensor, "i j k"]) -> Stage:
    """Stage 4: the mean signal of each volume must fall as b rises; a volume out of order means b-values out of order."""
    means = torch.stack([volume[mask].to(torch.float64).mean() for volume in dwi.signal])
    groups = [(0.0, dwi.gtab.is_b0.nonzero().ravel()), *dwi.gtab.shells()]
    groups = [(b, index) for b, index in groups if len(index)]
    medians = [float(means[index].median()) for _, index in groups]
    facts: dict[str, Any] = {"b": [round(b) for b, _ in groups], "median_signal": medians}
    if len(groups) < 2:
        return Stage("attenuation", None, "One b-value only: attenuation cannot be checked", facts)
    misplaced = [
        volume
        for place, (_, index) in enumerate(groups)
        for volume in index.tolist()
        if min(range(len(groups)), key=lambda other: abs(float(means[volume]) - medians[other])) != place
        and (place == 0 or float(means[volume]) > medians[0])
    ]
    facts["misplaced_volumes"] = misplaced
    if any(low <= high for low, high in pairwise(medians)):
        return Stage(
            "attenuation",
            False,
            f"The mean signal does not fall with b (b {facts['b']}: {[round(m, 1) for m in medians]})",
            facts,
        )
    if misplaced:
        return Stage(
            "attenuation",
            False,
            f"Volumes {misplaced} are as bright as another b-value's; the b-values may be out of order",
            facts,
        )
    return Stage("attenuation", True, "The mean signal falls as b rises", facts)


def _check_coherence(
    dwi: DWI, mask: Bool[Tensor, "i j k"], generator: torch.Generator, settings: CheckSettings
) -> tuple[Stage, dict[str, float], tuple[float, float]]:
    """Stage 5: among 24 tables (and, where oblique, other frames) which makes neighbouring fibres line up best?"""
    index = mask.nonzero()
    # A part at a time: all of a large scan's brain in float64 would be larger than the scan.
    parts = (
        dwi.signal[:, i, j, k].mT.to(torch.float64) for i, j, k in (part.unbind(-1) for part in index.split(_PART))
    )
    tensor = torch.cat([DTI(fit_method="wls").fit(part, dwi.gtab)[:, :6] for part in parts])
    values, vectors = symmetric.eigen(tensor)
    fa = symmetric.anisotropy(tensor)
    fibrous = (fa > settings.fa_threshold) & (values[:, 0] > 0) & (values[:, 0] < 4e-3) & (fa < 0.99)
    n = int(fibrous.sum())
    if n < settings.fewest_voxels:
        message = f"Only {n} voxels have FA > {settings.fa_threshold}; at least {settings.fewest_voxels} are needed to compare tables"
        return Stage("coherence", None, message, {"n_voxels": n}), {}, (0.0, 0.0)
    fixes = candidate_fixes()
    changes = {name: in_scanner(fix, dwi.grid.affine) for name, fix in fixes.items()}
    changes |= _frame_changes(dwi, fixes, settings)
    matrices = torch.stack(list(changes.values()))
    places, v1, weights = index[fibrous], vectors[fibrous, :, 0], fa[fibrous]
    sums = _block_scores(dwi, places, v1, weights, matrices, settings)
    stage, scores, bounds = _decide(sums, list(changes), len(fixes), n, generator, settings)
    if stage.passed is False:
        order = torch.randperm(n, generator=generator)
        shuffled = _block_scores(dwi, places, v1[order], weights[order], matrices, settings)
        total, by_chance = sums.sum(0), shuffled.sum(0)
        best = int(total.argmax())
        coherence = float(total[best] / by_chance[best])
        stage.facts["above_chance"] = coherence
        if coherence < settings.least_coherence:
            stage.facts.pop("fix", None)
            message = f"Neighbouring fibres line up no better than by chance ({coherence:.2f} times) with any table"
            stage = Stage("coherence", None, message, stage.facts)
    return stage, scores, bounds


def _frame_changes(dwi: DWI, fixes: dict[str, Tensor], settings: CheckSettings) -> dict[str, Float[Tensor, "3 3"]]:
    """Tables as they would be had the file been written in the other frame, where the image is oblique enough to differ."""
    axes = aff.rotation_part(dwi.grid.affine)
    tilt = axes @ _nearest_signed_permutation(axes).mT  # the oblique part of the storage
    if float(tilt.trace()) > 1 + 2 * float(torch.cos(torch.deg2rad(torch.tensor(settings.frame_angle_deg)))):
        return {}
    changes = {}
    for name, fix in fixes.items():
        scanner = in_scanner(fix, dwi.grid.affine)
        changes[f"scanner-frame:{name}"] = tilt.mT @ scanner
        changes[f"rotated-twice:{name}"] = tilt @ scanner
    return changes


def _block_scores(
    dwi: DWI,
    index: Int[Tensor, "v 3"],
    v1: Float[Tensor, "v 3"],
    fa: Float[Tensor, " v"],
    changes: Float[Tensor, "c 3 3"],
    settings: CheckSettings,
) -> Float[Tensor, "blocks c"]:
    """Coherence of every candidate, summed over the pairs of neighbours that start in each block."""
    number = torch.full(dwi.grid.shape, -1, dtype=torch.long)
    number[tuple(index.T)] = torch.arange(len(index))
    size = torch.tensor([max(1, round(settings.block_mm / s)) for s in dwi.grid.voxel_sizes])
    block = index // size
    extent = block.amax(0) + 1
    block_id = (block[:, 0] * extent[1] + block[:, 1]) * extent[2] + block[:, 2]
    sums = torch.zeros(int(extent.prod()), len(changes), dtype=torch.float64)
    shape = torch.tensor(dwi.grid.shape)
    steps = [
        torch.tensor(offset) for offset in product((-1, 0, 1), repeat=3) if offset > (0, 0, 0)
    ]  # a pair counts once
    half = settings.sharpness // 2
    turned = [_turned_offset(dwi.grid.affine, step, changes) for step in steps]
    # What a direction would score in a medium without ends: diagonals of the lattice have other neighbours than its axes.
    # Without it a uniform medium prefers some tables to others.
    expected = sum(((v1 @ t.mT).square() ** (2 * half) for t in turned), torch.zeros(len(v1), len(changes)).to(v1))
    root = expected.sqrt()
    for step, t in zip(steps, turned, strict=True):
        neighbour = index + step
        within = ((neighbour >= 0) & (neighbour < shape)).all(-1)
        other = torch.where(within, number[tuple(neighbour.clamp_min(0).minimum(shape - 1).T)], -1)
        has = other >= 0
        first, second = v1[has] @ t.mT, v1[other[has]] @ t.mT
        weight = (fa[has] * fa[other[has]]).sqrt()[:, None]
        score = (first * second).square() ** half / (root[has] * root[other[has]])
        sums.index_add_(0, block_id[has], weight * score)
    return sums[sums.sum(-1) > 0]


def _turned_offset(
    affine: Float[Tensor, "4 4"], step: Int[Tensor, " 3"], changes: Float[Tensor, "c 3 3"]
) -> Float[Tensor, "c 3"]:
    """``P v · u = v · Pᵀ u``: turn one offset for all the candidates instead of all the voxels' directions."""
    direction = affine[:3, :3] @ step.to(torch.float64)
    return changes.mT @ (direction / direction.norm())


def _decide(
    sums: Float[Tensor, "blocks c"],
    names: list[str],
    n_fixes: int,
    n_voxels: int,
    generator: torch.Generator,
    settings: CheckSettings,
) -> tuple[Stage, dict[str, float], tuple[float, float]]:
    """PASS: as given is best and surely so. FAIL: another is better by the margin, surely. Else INCONCLUSIVE."""
    total = sums.sum(0)
    relative = total / total[0]
    scores = {name: round(float(value), 4) for name, value in zip(names, relative, strict=True)}
    draws = torch.randint(len(sums), (settings.n_bootstrap, len(sums)), generator=generator)
    counts = torch.zeros(settings.n_bootstrap, len(sums), dtype=torch.float64)
    counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
    resampled = counts @ sums
    rival = 1 + int(total[1:n_fixes].argmax())
    lead = (resampled[:, 0] - resampled[:, 1:n_fixes].amax(-1)) / resampled[:, :n_fixes].amax(-1)
    tail = 1 - settings.confidence
    low, high = (float(q) for q in lead.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)))
    margin = float((total[0] - total[rival]) / total[:n_fixes].amax())
    facts: dict[str, Any] = {
        "n_voxels": n_voxels,
        "n_blocks": len(sums),
        "margin": margin,
        "rival": names[rival],
        "lower": low,
        "upper": high,
    }
    frame = _frame_rival(total, resampled, names, n_fixes, tail)
    if frame:
        facts["frame"] = frame
    if margin > 0 and low > 0:
        if frame and frame["lower"] > settings.fail_margin:
            return (
                Stage(
                    "coherence",
                    False,
                    f"Read in another frame ({frame['name']}) the fibres line up better by {frame['margin']:.1%}",
                    facts,
                ),
                scores,
                (low, high),
            )
        return (
            Stage(
                "coherence",
                True,
                f"The table as given leads {names[rival]} by {margin:.1%} (99 % bound {low:.1%})",
                facts,
            ),
            scores,
            (low, high),
        )
    pairwise = (resampled[:, rival] - resampled[:, 0]) / resampled[:, rival]
    surely = float(pairwise.quantile(tail))
    facts["rival_lower"] = surely
    if margin < 0 and surely > settings.fail_margin:
        facts["fix"] = names[rival]
        return (
            Stage(
                "coherence",
                False,
                f"{names[rival]} leads the table as given by {-margin:.1%} (99 % bound {surely:.1%})",
                facts,
            ),
            scores,
            (low, high),
        )
    return (
        Stage(
            "coherence",
            None,
            f"No table leads surely: as given against {names[rival]} {margin:+.1%} ({low:+.1%} to {high:+.1%})",
            facts,
        ),
        scores,
        (low, high),
    )


def _frame_rival(
    total: Float[Tensor, " c"], resampled: Float[Tensor, "r c"], names: list[str], n_fixes: int, tail: float
) -> dict[str, Any] | None:
    """The best candidate of another frame, by how much it leads the table as given."""
    if len(names) == n_fixes:
        return None
    best = n_fixes + int(total[n_fixes:].argmax())
    lead = (resampled[:, best] - resampled[:, 0]) / resampled[:, best]
    return {
        "name": names[best],
        "margin": float((total[best] - total[0]) / total[best]),
        "lower": float(lead.quantile(tail)),
    }
