"""What was asked of tractography, turned into a tracker, a seeding and rules for one scan."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tractode.bids.sidecar import bids_uri
from tractode.contracts import Orientations, Rule, Tracker
from tractode.fields import Image, ImageGrid, ShField
from tractode.io.nifti import read_image
from tractode.tracking import TRACKERS
from tractode.tracking.anatomy import Anatomy, lengths_with_anatomy, with_anatomy
from tractode.tracking.dynamic_seeding import DynamicSeeding
from tractode.tracking.interface_seeding import InterfaceSeeding
from tractode.tracking.method import StreamlineTracker
from tractode.tracking.regions import Exclude, Include, OrderedInclude
from tractode.tracking.seeding import GridSeeding, MaskSeeding, Seeding
from tractode.tracking.tissues import TissueMaps

WHITE_MATTER_FA = 0.2
"""Seeds start where the tensor's FA is above this, if a tensor was fitted: elsewhere nearly all seeds are refused."""

TISSUES = "tissues"
CRITERIA = {
    "include": "InclusionRegions",
    "includeordered": "OrderedInclusionRegions",
    "exclude": "ExclusionRegions",
}
"""The kinds of regions and their keys in the sidecar. Their roles (see `CarryRegions`) are ``region-<kind><number>``."""


@dataclass(frozen=True, eq=False)
class Material:
    """What seeding and rules are made of, in the space of the scan."""

    brain: Image
    white: Image
    field: Orientations
    tissues: TissueMaps | None
    include: tuple[Image, ...]
    include_ordered: tuple[Image, ...]
    exclude: tuple[Image, ...]


@dataclass(frozen=True)
class TrackingPlan:
    """The settings of tractography, lengths in mm, the angle in radians; ``None`` keeps the tracker's default."""

    n_streamlines: int | None = 100_000
    n_seeds: int | None = None
    where: str = "white-matter"
    with_act: bool = False
    step_mm: float | None = None
    angle: float | None = None
    min_radius: float | None = None
    cutoff: float | None = None
    min_length: float | None = None
    max_length: float | None = None

    def facts(self) -> dict[str, Any]:
        """Plain data: decides, with the files, whether a result can be reused."""
        return dataclasses.asdict(self)

    def tracker(self, method: str, grid: ImageGrid | None = None) -> StreamlineTracker:
        """The method with the settings that were given; on a grid also with the defaults of ACT, where it is asked for."""
        names = ("step_mm", "angle", "min_radius", "cutoff", "min_length", "max_length")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        tracker = TRACKERS[method](**given)
        if not self.with_act or grid is None:
            return tracker
        constrained = with_anatomy(tracker, grid)
        return constrained if self.cutoff is None else dataclasses.replace(constrained, cutoff=self.cutoff)

    def stated(self, tracker: Tracker, grid: ImageGrid) -> dict[str, Any]:
        """The tracker's facts for a sidecar, with the lengths that lines have after ACT has cut them."""
        facts = tracker.parameters(grid)
        if self.with_act:
            least, greatest = lengths_with_anatomy(grid, self.min_length, self.max_length)
            facts |= {"MinimumLength": least, "MaximumLength": greatest}
        return facts

    def files(self, regions: dict[str, str]) -> list[Path]:
        """The images of regions and tissues that tracking reads."""
        roles = [role for kind in CRITERIA for role in _roles(regions, kind)]
        return [Path(regions[role]) for role in ([TISSUES, *roles] if self.with_act else roles)]

    def material(self, brain: Image, fa: Image | None, field: Orientations, regions: dict[str, str]) -> Material:
        space = brain.grid.space
        white = brain if fa is None else Image(brain.grid, brain.mask[None] & (fa.values > WHITE_MATTER_FA))

        def images(kind: str) -> tuple[Image, ...]:
            return tuple(read_image(Path(regions[role]), space)[0] for role in _roles(regions, kind))

        tissues = TissueMaps(read_image(Path(regions[TISSUES]), space)[0]) if self.with_act else None
        include, ordered, exclude = (images(kind) for kind in CRITERIA)
        return Material(brain, white, field, tissues, include, ordered, exclude)

    def seeding(self, material: Material) -> Seeding:
        if self.where == "grid":
            return GridSeeding(material.white, 1)
        if self.where == "interface" and material.tissues is not None:
            return InterfaceSeeding(material.tissues)
        if self.where == "dynamic" and isinstance(material.field, ShField):
            return DynamicSeeding(material.field, material.white)
        return MaskSeeding(material.brain if self.where == "brain" else material.white)

    def rules(self, material: Material) -> list[Rule]:
        """Tissues first: regions are asked of what is left of a line."""
        rules: list[Rule] = []
        if material.tissues is not None:
            field = material.field if isinstance(material.field, ShField) else None
            rules.append(
                Anatomy(material.tissues, material.brain, field, min_length=self.min_length, max_length=self.max_length)
            )
        if material.include:
            rules.append(Include(material.include))
        if material.include_ordered:
            rules.append(OrderedInclude(material.include_ordered, either_way=True))
        if material.exclude:
            rules.append(Exclude(material.exclude))
        return rules

    def seeding_text(self, has_tensor: bool) -> str:
        """Where streamlines start, in words."""
        white = f"brain mask where FA > {WHITE_MATTER_FA}" if has_tensor else "brain mask"
        return {
            "brain": "brain mask",
            "grid": f"one seed at the centre of every voxel of the {white}",
            "interface": "interface of grey and white matter",
            "dynamic": f"{white}, more often where streamlines are too few for the FOD",
        }.get(self.where, white)

    def complete(self, content: dict[str, Any], regions: dict[str, str], has_tensor: bool) -> None:
        """Write seeding, regions and tissues into a tractogram's sidecar."""
        source = content["StreamlineSeeding"]["Sources"][0]
        source["Description"] = f"Uniform over the {self.seeding_text(has_tensor)}"
        source["Type"] = "Grid" if self.where == "grid" else "Random"
        self.complete_acceptance(content, regions)
        if self.with_act:
            content["StreamlineTermination"]["AnatomicalSegmentation"] = bids_uri(Path(regions[TISSUES]), None)

    def complete_acceptance(self, content: dict[str, Any], regions: dict[str, str]) -> None:
        """Write regions and tissues, as far as they judge finished lines, into a tractogram's sidecar."""
        accepted = content["StreamlineAcceptanceCriteria"]
        for kind, key in CRITERIA.items():
            accepted[key] = [bids_uri(Path(regions[role]), None) for role in _roles(regions, kind)]
        if self.with_act:
            accepted["AnatomicalSegmentation"] = bids_uri(Path(regions[TISSUES]), None)


def _roles(regions: dict[str, str], kind: str) -> list[str]:
    """The roles of one kind, by number."""
    found = [role for role in regions if re.fullmatch(rf"region-{kind}\d+", role)]
    return sorted(found, key=lambda role: int(role.removeprefix(f"region-{kind}")))
