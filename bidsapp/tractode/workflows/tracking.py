"""The settings of tractography as a plan and as the regions that a participant's workflow carries into each run."""

from __future__ import annotations

import math

from tractode.contracts import OrientationModel
from tractode.interfaces.generation_plan import GenerationPlan
from tractode.interfaces.tracking_plan import TrackingPlan
from tractode.models import MODELS
from tractode.settings import Settings

SLOPPY_STREAMLINES = 2000


def plan_of(settings: Settings, orientations: str | None = None) -> TrackingPlan:
    """What every tracker of a run is asked for, that follows the orientations of this model."""
    wanted = min(SLOPPY_STREAMLINES, settings.n_streamlines) if settings.sloppy else settings.n_streamlines
    return TrackingPlan(
        n_streamlines=None if settings.n_seeds else wanted,
        n_seeds=settings.n_seeds,
        where=settings.seeding,
        with_act=settings.act != "none",
        step_mm=settings.step_mm,
        angle=None if settings.angle_deg is None else math.radians(settings.angle_deg),
        min_radius=settings.min_radius_mm,
        cutoff=settings.cutoff if settings.cutoff is not None else _cutoff_of(orientations),
        min_length=settings.min_length_mm,
        max_length=settings.max_length_mm,
    )


def _cutoff_of(orientations: str | None) -> float | None:
    """The amplitude to stop at that the model asks for; ``None`` for the tracker's own."""
    kind = None if orientations is None else MODELS[orientations]
    return kind.cutoff if kind is not None and issubclass(kind, OrientationModel) else None


def generation_of(settings: Settings) -> GenerationPlan:
    """What every method that generates streamlines is asked for besides."""
    return GenerationPlan(
        steps=settings.gentract_steps,
        min_confidence=settings.gentract_min_confidence,
        bundles=settings.gentract_bundles,
        weights=settings.gentract_weights,
    )


def region_names(settings: Settings) -> dict[str, str]:
    """Names of `CarryRegions` → path, of all regions that the settings name."""
    groups = {
        "include": settings.include,
        "includeordered": settings.include_ordered,
        "exclude": settings.exclude,
        "end": settings.sensitivity,
    }
    return {f"{kind}{number}": path for kind, paths in groups.items() for number, path in enumerate(paths, start=1)}
