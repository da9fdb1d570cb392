"""What to simulate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tractode.simulate.disturbance import DisturbanceSettings
from tractode.simulate.echo_planar import Encoding
from tractode.simulate.field_map import GradientEchoSettings
from tractode.simulate.poses import MovementSettings
from tractode.simulate.subject import SubjectSettings

REVERSED = ("none", "epi", "dwi")
FIELD_MAPS = ("none", "phasediff", "phases", "fieldmap")
LINKS = ("intendedfor", "relative", "b0field", "none")
Size = tuple[float, float, float]


@dataclass(frozen=True)
class DistortionSettings:
    """The field of the head in the dwi, and what a scanner takes to undo it.

    ``strength_hz`` scales the field so that 95 % of the brain's voxels have less; ``None`` leaves that of 3 T. ``reverse``: a few b=0 volumes
    in ``fmap`` (``epi``) or the whole series again (``dwi``), encoded the other way. ``link``: ``IntendedFor`` as BIDS URI or as
    ``relative`` path, ``B0FieldIdentifier`` and ``B0FieldSource``, or nothing that says which field map belongs to which scan.
    """

    strength_hz: float | None = None
    encoding: Encoding = field(default_factory=Encoding)
    reverse: str = "none"
    n_epi: int = 3
    field_map: str = "none"
    link: str = "intendedfor"
    echoes: GradientEchoSettings = field(default_factory=GradientEchoSettings)
    # Signal moves by millimetres along the encoding, and should not leave the image.
    margin_mm: float = 24.0


@dataclass(frozen=True)
class AtlasSettings:
    """A folder of tractograms in MNI space, one a bundle, in place of the simulator's own courses.

    ``lines``: which may exist, all or (as generative models know them) those for training or those held out. ``variation`` multiplies how much
    position, bend and width of bundles vary between participants; with 0 presence and density do not vary either.
    """

    folder: Path
    lines: Literal["all", "training", "held-out"] = "all"
    variation: float = 1.0


@dataclass(frozen=True)
class SimulationSettings:
    """What to simulate. ``gradients`` (bval, bvec files) replaces ``shells`` and ``n_b0``; ``orientation`` names the
    direction of each stored axis; ``oblique_deg`` turns the dwi grid away from the scanner's axes. ``painted`` are anatomical
    images besides the T1w and their voxel sizes, ``movement`` is that of the head between the scans of a session, ``sessions`` (``None``
    for no session folders) that of scanning the same head again, lying elsewhere and with lateral ventricles larger by the share ``growth`` in the
    last one. ``atlas``: bundles from a folder (``subject.bundles`` are names of those then, ``subject.fibres_per_bundle`` is not used). ``disturbance`` is what
    happens during the diffusion series besides susceptibility."""

    participants: int = 1
    seed: int = 0
    resolution: Size = (2.0, 2.0, 2.0)
    t1w_resolution: float | None = 1.0
    shells: tuple[tuple[float, int], ...] = ((1000.0, 32), (2500.0, 64))
    n_b0: int = 8
    gradients: tuple[Path, Path] | None = None
    orientation: str = "LAS"
    t1w_orientation: str = "RAS"
    oblique_deg: float = 0.0
    subject: SubjectSettings = field(default_factory=SubjectSettings)
    distortion: DistortionSettings | None = None
    painted: tuple[tuple[str, Size], ...] = ()
    movement: MovementSettings = field(default_factory=MovementSettings)
    sessions: int | None = None
    session_movement: MovementSettings = field(default_factory=lambda: MovementSettings(5.0, 4.0))
    growth: float = 0.0
    atlas: AtlasSettings | None = None
    disturbance: DisturbanceSettings = field(default_factory=DisturbanceSettings)
