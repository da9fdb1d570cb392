"""The brain mask of a scan or an anatomical image: several methods, which must agree, and their vote.

After S. K. Warfield, K. H. Zou, W. M. Wells, *Simultaneous truth and performance level estimation (STAPLE)*, IEEE TMI 23:903
(2004), doi:10.1109/TMI.2004.828354, in spirit: what several methods of different failings agree on is trusted. Departures: no
performance is estimated; methods that overlap with no other are left out, and the rest vote with equal weight. Where the quick
methods disagree, or what they agree on is too large for a brain, a template's mask is asked too, and the surface starts in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.errors import InputDataError
from tractode.evaluate.overlap import dice
from tractode.fields import DWI, Image
from tractode.fields.image import check_same_grid
from tractode.fields.transform import resample
from tractode.preprocess import morphology
from tractode.preprocess.mask import brain_mask, dwi_reference, otsu
from tractode.preprocess.surface_mask import SurfaceSettings, surface_mask
from tractode.registration.affine import register_affine

METHODS = ("threshold", "weighted", "surface", "template")
# Two methods that look for a threshold fail on the same heads: that they agree says little.
_FAMILY = {"threshold": "threshold", "weighted": "threshold"}
AGREE = 0.9  # Dice of two methods that are said to agree
_LARGEST_ML = 2100.0  # of a brain with the fluid around it: more than that is a head
_SMALLEST_ML = 20.0
#: Fat that is not suppressed is as bright as brain: a surface that begins in a template's brain stops sooner.
_FIRM = SurfaceSettings(level=0.6)
#: On a T1w fluid is as dark as bone, and the surface should lie on the brain's outside, not in its sulci.
#: How far that is depends on fat and shading: the next level is tried where the first does not agree with the template.
_ANATOMICAL = (SurfaceSettings(level=0.3), SurfaceSettings(level=0.4), SurfaceSettings(level=0.5))

TemplateImages = Callable[[], tuple[Image, Image]]


@dataclass(frozen=True, eq=False)
class MaskVerdict:
    """A mask, and why it is trusted.

    Parameters
    ----------
    masks
        What every method that was asked found.
    used
        Methods that the mask comes from; the others agreed with none of them.
    agreement
        Dice of every pair, by ``first–second``.
    passed, reason
        Whether two methods of different kinds agree and the volume is a brain's; in words.
    failures
        Why a method found nothing.
    """

    mask: Image
    masks: Mapping[str, Image]
    used: tuple[str, ...]
    agreement: Mapping[str, float]
    passed: bool
    reason: str
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The method, or those that agreed."""
        return " and ".join(self.used)

    def record(self) -> dict[str, Any]:
        """Plain data for sidecars and the report."""
        volumes = {name: round(_millilitres(mask), 1) for name, mask in self.masks.items()}
        return {
            "used": list(self.used),
            "agreement": {pair: round(value, 4) for pair, value in self.agreement.items()},
            "millilitres": volumes,
            "passed": self.passed,
            "reason": self.reason,
            "failures": dict(self.failures),
        }


def scan_mask(scan: DWI, method: str = "auto", template: TemplateImages | None = None) -> MaskVerdict:
    """The brain of a diffusion series.

    Parameters
    ----------
    method
        One of `METHODS`, or ``auto``: a vote.
    template
        Gives a template's image and brain mask when they are needed; without it that method is not to be had.

    Raises
    ------
    InputDataError
        The method, or every method, found no brain.
    """
    reference = dwi_reference(scan)
    weighted = _weighted(scan)
    methods: dict[str, Callable[[], Image]] = {"threshold": lambda: brain_mask(reference)}
    if weighted is not None:
        methods["weighted"] = lambda: brain_mask(_both(reference, weighted))
    methods["surface"] = lambda: surface_mask(reference)
    if template is not None:
        methods["template"] = lambda: template_mask(reference, *template())
    if method != "auto":
        if method not in methods:
            raise InputDataError(
                f"The mask cannot be made by the method {method!r}: the scan has no diffusion-weighted volume, or there is no template",
                id="E-MASK-METHOD",
                needed=" or ".join(methods),
                fix="choose another method with --dwi-mask",
            )
        return _verdict({method: methods[method]()}, {}, reference)
    quick = {name: found for name, found in methods.items() if name != "template"}
    masks, failures = _asked(quick)
    verdict = _verdict(masks, failures, reference) if masks else None
    if (verdict is not None and verdict.passed) or template is None:
        return _demand(verdict, failures)
    more, failed = _asked({"template": methods["template"]})
    if more:
        near = more["template"]
        again, lost = _asked({"surface": lambda: surface_mask(reference, _FIRM, near)})
        more |= again
        failed |= lost
    masks, failures = {**masks, **more}, {**failures, **failed}
    # Of a tie the surface decides: it began in the template's brain and then followed the scan.
    order: tuple[str, ...] = ("surface", "template", "weighted", "threshold")
    ordered = {name: masks[name] for name in order if name in masks}
    return _demand(_verdict(ordered, failures, reference) if masks else None, failures)


def anatomical_mask(image: Image, carried: Image) -> MaskVerdict:
    """The brain of a T1w or T2w image: the template's mask as the registration carried it, beside a surface that begins in it.

    Where they agree the two vote, and the surface decides where one of them says brain within 3 mm of the other's border;
    where they do not, the carried mask is kept and the verdict says so.
    """
    check_same_grid(carried.grid, image.grid, "A mask carried to an anatomical image")
    template = {"template": Image(image.grid, carried.mask[None])}
    for settings in _ANATOMICAL:
        surface, failures = _asked({"surface": partial(surface_mask, image, settings, carried)})
        masks = template | surface
        verdict = _verdict(masks, failures, image)
        if len(verdict.used) > 1:
            break
    if set(verdict.used) != {"template", "surface"}:
        return verdict
    sizes = image.grid.voxel_sizes
    first, second = (masks[name].mask.cpu().numpy() for name in ("template", "surface"))
    sure = morphology.eroded(first | second, 3.0, sizes) | (first & second)
    kept = morphology.filled(morphology.largest(sure))
    mask = Image(image.grid, torch.from_numpy(kept)[None])
    return MaskVerdict(mask, masks, verdict.used, verdict.agreement, verdict.passed, verdict.reason, failures)


def template_mask(image: Image, fixed: Image, fixed_mask: Image) -> Image:
    """A template's brain mask on an image's grid, after an affine registration."""
    found = register_affine(fixed, image, fixed_mask=fixed_mask)
    soft = Image(fixed_mask.grid, fixed_mask.values.float())
    moved = resample(soft, image.grid, found.inverse())
    return Image(image.grid, moved.values > 0.5)


# --- the images looked at ----------------------------------------------------------------------------------------------


def _weighted(scan: DWI) -> Image | None:
    """Mean of the weighted volumes in which fluid is dark and brain still bright: b of 400 to 1600 s/mm², else the lowest above."""
    bvals = scan.gtab.bvals
    chosen = ~scan.gtab.is_b0 & (bvals >= 400) & (bvals <= 1600)
    if not bool(chosen.any()):
        above = ~scan.gtab.is_b0 & (bvals > 1600)
        if not bool(above.any()):
            return None
        chosen = above & (bvals <= float(bvals[above].min()) * 1.1 + 50)
    mean = torch.nan_to_num(scan.signal[chosen.to(scan.signal.device)].mean(0), nan=0.0, posinf=0.0, neginf=0.0)
    return Image(scan.grid, mean.clamp_min(0)[None])


def _both(reference: Image, weighted: Image) -> Image:
    """Geometric mean of both, each in units of its own bright part and clipped there: eyes, fluid and fat are bright in one of them only."""
    parts = []
    for image in (reference, weighted):
        values = image.values.cpu().float()
        lit = values[values > otsu(values.double().numpy().ravel())]
        level = float(lit.median()) if lit.numel() else 1.0
        parts.append((values / max(level, 1e-12)).clamp_max(1.0))
    return Image(reference.grid, (parts[0] * parts[1]).sqrt())


# --- the vote ------------------------------------------------------------------------------------------------------------


def _asked(methods: Mapping[str, Callable[[], Image]]) -> tuple[dict[str, Image], dict[str, str]]:
    found, failures = {}, {}
    for name, method in methods.items():
        try:
            found[name] = method()
        except InputDataError as error:
            failures[name] = error.found
    return found, failures


def _demand(verdict: MaskVerdict | None, failures: Mapping[str, str]) -> MaskVerdict:
    if verdict is not None:
        return verdict
    raise InputDataError(
        f"No brain was found: {'; '.join(f'{name}: {why}' for name, why in failures.items())}",
        id="E-MASK-NONE",
        needed=f"a brain of at least {_SMALLEST_ML:.0f} ml that stands out from the background",
        fix="look at the b=0 volumes and at which volumes the gradient table calls b=0",
    )


def _verdict(masks: Mapping[str, Image], failures: Mapping[str, str], image: Image) -> MaskVerdict:
    """The methods that agree vote."""
    names = tuple(masks)
    agreement = {
        (one, other): dice(masks[one].mask.cpu(), masks[other].mask.cpu())
        for one, other in itertools.combinations(names, 2)
    }
    likely = tuple(name for name in names if _is_brain_sized(masks[name]))
    used = _group(likely or names, agreement)
    mask = _vote([masks[name].mask.cpu() for name in used], image)
    passed, reason = _judged(names, used, agreement, mask, failures)
    pairs = {f"{one}–{other}": value for (one, other), value in agreement.items()}
    return MaskVerdict(mask, dict(masks), used, pairs, passed, reason, dict(failures))


def _group(names: tuple[str, ...], agreement: Mapping[tuple[str, str], float]) -> tuple[str, ...]:
    """The methods of which each two agree: most kinds first, then most methods, then the best agreement."""
    groups = [
        group
        for size in range(2, len(names) + 1)
        for group in itertools.combinations(names, size)
        if all(agreement[pair] >= AGREE for pair in itertools.combinations(group, 2))
    ]

    def rank(group: tuple[str, ...]) -> tuple[int, int, float]:
        return _kinds(group), len(group), _mean([agreement[pair] for pair in itertools.combinations(group, 2)])

    best = max(groups, key=rank, default=names[:1])
    # Where no two kinds agree the template is the one that knows what a brain is.
    return ("template",) if _kinds(best) == 1 and "template" in names else best


def _kinds(names: tuple[str, ...]) -> int:
    return len({_FAMILY.get(name, name) for name in names})


def _vote(masks: list[Bool[Tensor, "i j k"]], image: Image) -> Image:
    """Voxels that more than half say are brain, but for what hangs on by a thread; of a tie the first decides."""
    votes: Float[Tensor, "i j k"] = torch.stack([mask.float() for mask in masks]).sum(0) + 0.5 * masks[0].float()
    sizes = image.grid.voxel_sizes
    kept = (votes > (len(masks) + 0.5) / 2).numpy()
    # An eye or a nose hangs on by a voxel, where no method is sure.
    whole = morphology.detached(kept, max(sizes), 1.5 * max(sizes), sizes)
    return Image(image.grid, torch.from_numpy(morphology.filled(whole))[None])


def _judged(
    names: tuple[str, ...],
    used: tuple[str, ...],
    agreement: Mapping[tuple[str, str], float],
    mask: Image,
    failures: Mapping[str, str],
) -> tuple[bool, str]:
    volume = _millilitres(mask)
    if not _is_brain_sized(mask):
        return False, f"{volume:.0f} ml is not the size of a brain ({_SMALLEST_ML:.0f} to {_LARGEST_ML:.0f} ml)"
    if len(names) == 1:
        if failures:
            return False, f"only {names[0]} found a brain ({_listed(list(failures))} found none)"
        return True, f"only {names[0]} was asked"
    if len(used) == 1:
        best = max(agreement.values())
        return (
            False,
            f"no two kinds of methods agree (the best pair overlaps by a Dice of {best:.2f}; {AGREE} is needed)",
        )
    least = min(agreement[pair] for pair in itertools.combinations(used, 2))
    said = f"{_listed(used)} agree (Dice of {least:.2f} or more)"
    left = [name for name in names if name not in used]
    said += f"; {_listed(left)} did not and {'was' if len(left) == 1 else 'were'} left out" if left else ""
    if _kinds(used) == 1 and (failures or _kinds(names) > 1):
        return False, f"only methods of one kind agree: {said}"
    return True, said


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + "".join(names[-1:])


def _millilitres(mask: Image) -> float:
    return morphology.millilitres(mask.mask.cpu().numpy(), mask.grid.voxel_sizes)


def _is_brain_sized(mask: Image) -> bool:
    return _SMALLEST_ML <= _millilitres(mask) <= _LARGEST_ML


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
