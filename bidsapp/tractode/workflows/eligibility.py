"""Which models a run is fitted with: what was asked for, what its gradient table supports, and why. Opens no voxel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tractode.contracts import OrientationModel
from tractode.errors import TractodeError
from tractode.fields import GradientTable
from tractode.models import MODELS
from tractode.models.dti import LARGEST_B
from tractode.settings import Settings
from tractode.workflows.recipe import Wanted, wishes

#: Whose orientations are followed where several models yield some.
PREFERRED = ("msmt_csd", "csd")
_NOT_ASKED = "not asked for"


@dataclass(frozen=True)
class Choice:
    """The models of one run.

    Attributes
    ----------
    models
        Those that are fitted, in order; among them what was asked for and cannot be (``refused``), for the run to say so.
    reasons
        Of every model: why it is fitted, why it is refused, or why it is left out.
    refused
        Asked for, and not supported by the data.
    shape
        That of the series, where it is known.
    """

    models: tuple[str, ...]
    reasons: dict[str, str]
    refused: frozenset[str] = field(default_factory=frozenset)
    shape: tuple[int, ...] = ()

    @property
    def orientations(self) -> str | None:
        """The model whose orientations are followed."""
        able = [name for name in self.models if issubclass(MODELS[name], OrientationModel)]
        return next((name for name in (*PREFERRED, *able) if name in able), None)

    @property
    def passed_over(self) -> dict[str, str]:
        """What was wished for and is not fitted, with the reason."""
        others = {name: why for name, why in self.reasons.items() if name not in self.models}
        return {name: why for name, why in others.items() if not why.startswith(_NOT_ASKED)}

    def follows(self, method: str) -> bool:
        """Whether a method of tracking finds the field that it follows among these models."""
        return "dti" in self.models if method == "tensordet" else self.orientations is not None

    def trackers(self, methods: Iterable[str]) -> tuple[str, ...]:
        """The methods of tracking that find their field; ``auto`` is the peaks of orientations, where there are none the tensor."""
        best = "tensordet" if self.orientations is None else "sdstream"
        named = dict.fromkeys(best if name == "auto" else name for name in methods)
        return tuple(filter(self.follows, named))

    def untracked(self, methods: Iterable[str]) -> str:
        """Which methods make no streamlines, or follow the tensor for want of better, and why, in words; empty where there is nothing to say."""
        methods = tuple(methods)
        unfed = [name for name in methods if name != "auto" and not self.follows(name)]
        said = [f"no streamlines by {', '.join(unfed)}: no model yields the field to follow"] if unfed else []
        if "auto" in methods and self.orientations is None:
            lack = "no model yields fibre orientations"
            is_fed = self.follows("tensordet")
            said.append(f"streamlines follow the tensor (tensordet): {lack}" if is_fed else f"no streamlines: {lack}")
        return "; ".join(said)


def choose(entries: Sequence[str], gtab: GradientTable | None, dti_largest_b: float | None = None) -> Choice:
    """The models for a table; without one (it could not be read, and the run will say so) the first of every wish.

    ``dti_largest_b`` (s/mm²) is the user's own limit for the tensor.
    """
    reasons: dict[str, str] = {}
    chosen: dict[str, bool] = {}
    lacking: dict[str, str | None] = {}
    why_not = {name: None if gtab is None else _why_not(name, gtab, dti_largest_b) for name in MODELS}
    shells = {} if gtab is None else {name: _part(name, gtab, dti_largest_b) for name in MODELS if not why_not[name]}
    for wish in wishes(entries):
        passed = {name: why_not[name] or _too_few(name, wish.shells_of(name), gtab) for name in wish.names}
        able = [name for name in wish.names if passed[name] is None]
        for name in wish.names:
            reasons.setdefault(name, _left_out(wish, passed[name], able))
        if able:
            chosen[able[0]] = True
            reasons[able[0]] = _taken(able[0], wish, passed) + shells.get(able[0], "")
        elif not wish.is_optional:
            # The least demanding one says what the data lack.
            chosen.setdefault(wish.names[-1], False)
            lacking[wish.names[-1]] = passed[wish.names[-1]]
    for name in MODELS:
        reasons.setdefault(name, f"{_NOT_ASKED}; {_ability(why_not[name])}")
    for name, is_able in chosen.items():
        if not is_able:
            reasons[name] = f"refused: {lacking[name]}"
    return Choice(tuple(chosen), reasons, frozenset(name for name, is_able in chosen.items() if not is_able))


def choice_of(run: Any, settings: Settings) -> Choice:
    """The models of a dwi run, by its table alone."""
    try:
        shape, _, gtab = read_table(run, settings)
    except (TractodeError, OSError):
        return choose(settings.models, None)
    return replace(choose(settings.models, gtab, settings.dti_largest_b), shape=shape)


def _why_not(name: str, gtab: GradientTable, dti_largest_b: float | None) -> str | None:
    if name != "dti" or dti_largest_b is None:
        return MODELS[name].why_not(gtab)
    reason = MODELS[name].why_not(gtab[gtab.bvals <= dti_largest_b])
    return None if reason is None else f"{reason} up to b={dti_largest_b:.0f}, the limit asked for"


def _part(name: str, gtab: GradientTable, dti_largest_b: float | None) -> str:
    """Which shells a model is fitted to, in words, where it leaves some out or the tensor does not hold at any."""
    limit = dti_largest_b if name == "dti" else None
    taken = MODELS[name].taken(gtab) if limit is None else (gtab.bvals <= limit).nonzero().ravel()
    part = gtab[taken]
    found = ", ".join(f"b={b:.0f}" for b, _ in part.shells())
    said = f"; fitted to {found} of {len(gtab.shells())} shells" if len(taken) < len(gtab) else ""
    largest = float(part.bvals.max())
    if name == "dti" and limit is None and largest > LARGEST_B:
        said += (
            f"; lower b-values do not determine a tensor, and at b={largest:.0f} diffusion in tissue is not Gaussian"
        )
    return said


def _too_few(name: str, wanted: int, gtab: GradientTable | None) -> str | None:
    """Why a model is passed over that is wanted with several shells only; a shell too small for it is none."""
    if gtab is None or not wanted:
        return None
    needs = MODELS[name].needs
    n_shells = len(needs.usable_shells(gtab))
    if n_shells >= wanted:
        return None
    return f"it is taken with at least {wanted} shells, and this table has {n_shells} of at least {needs.directions} directions"


def _taken(name: str, wish: Wanted, why_not: dict[str, str | None]) -> str:
    origin = f"recipe {wish.recipe}" if wish.recipe else "asked for"
    passed = [f"not {other}: {why_not[other]}" for other in wish.names[: wish.names.index(name)]]
    if len(wish.names) == 1:
        return f"{origin}; the data support it"
    return f"{origin}, the first of {', '.join(wish.names)} that the data support{_listed(passed)}"


def _left_out(wish: Wanted, why: str | None, able: Iterable[str]) -> str:
    if why is not None:
        return why
    return f"recipe {wish.recipe} takes {next(iter(able))} instead" if wish.recipe else "another was taken"


def _listed(parts: Iterable[str]) -> str:
    text = "; ".join(parts)
    return f" ({text})" if text else ""


def _ability(why: str | None) -> str:
    return "the data would support it" if why is None else why


def read_table(run: Any, settings: Settings) -> tuple[tuple[int, ...], tuple[float, ...], GradientTable]:
    """Shape, voxel sizes in mm and `GradientTable` of a dwi run, from its header and its gradient files alone.

    Weighted volumes without a direction are left out here: whether they are trace images that the run drops, only
    their signal can tell.
    """
    import torch

    from tractode.io.nifti_affine import choose_affine
    from tractode.io.nifti_header import read_header
    from tractode.io.stream import ByteSource

    shapes: list[tuple[int, ...]] = []
    tables: list[GradientTable] = []
    axes = torch.eye(4, dtype=torch.float64)
    for scan in run.scans:
        with ByteSource(scan.path) as source:
            header = read_header(source)
        affine, _ = choose_affine(
            header.fields, header.shape, scan.path, assume_orientation=settings.assume_orientation
        )
        own = torch.as_tensor(affine, dtype=torch.float64)
        axes = axes if shapes else own
        shapes.append(header.shape[:3])
        tables.append(_table(scan, header.n_volumes, own, settings))
    voxel_sizes = tuple(float(size) for size in axes[:3, :3].norm(dim=0))
    gtab = GradientTable(*(torch.cat([getattr(t, part) for t in tables]) for part in ("bvals", "bvecs", "is_b0")))
    n_volumes = sum(len(table) for table in tables)
    return (*(int(size) for size in shapes[0]), n_volumes), voxel_sizes, gtab


def _table(scan: Any, n_volumes: int, affine: Any, settings: Settings) -> GradientTable:
    from tractode.io.gradients import GradientPolicy, StoredGradients, parse_gradients, to_table

    policy = GradientPolicy(settings.bval_from_norm, settings.estimate_s0, settings.b0_threshold)
    stored, _ = parse_gradients(scan.bval, scan.bvec, n_volumes, policy=policy)
    kept = ~stored.lacks_direction
    stored = StoredGradients(stored.bvals[kept], stored.bvecs[kept], stored.is_b0[kept], stored.lacks_direction[kept])
    return to_table(stored, affine)
