"""The registrations between a scan and a template, by way of the anatomical image where there is one, as steps are handed them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nipype.interfaces.base import isdefined, traits

from tractode.fields import Transform
from tractode.interfaces.step import Step, StepInputSpec
from tractode.io.transforms import read_itk


@dataclass(frozen=True)
class Link:
    """One stored registration: its outputs and facts, and the two spaces it joins (fixed → moving points)."""

    outputs: dict[str, str]
    facts: dict[str, Any]
    fixed: str
    moving: str
    label: str

    @property
    def passed(self) -> bool:
        return bool(self.facts.get("quality", {}).get("passed", False))

    def forward(self) -> Transform:
        return read_itk(Path(self.outputs[f"to-{self.label}"]), source=self.fixed, target=self.moving)

    def backward(self) -> Transform:
        return read_itk(Path(self.outputs[f"from-{self.label}"]), source=self.moving, target=self.fixed)


def failures(links: Iterable[Link]) -> str:
    """Which registrations did not pass their gate, and why; empty where all did."""
    return "; ".join(
        f"{link.label}: {link.facts.get('quality', {}).get('reason', 'no verdict')}"
        for link in links
        if not link.passed
    )


class LinkedInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    template = traits.Any(desc="a Template, where one is asked for")
    template_link = traits.Dict(desc="outputs of the registration to the template")
    template_facts = traits.Dict()
    anat_link = traits.Dict(desc="outputs of the registration to anatomy, where there is one")
    anat_facts = traits.Dict()
    anat_space = traits.Str("", usedefault=True)
    anat_modality = traits.Str("", usedefault=True)


class LinkedStep(Step):
    """A step on one run that knows the way to other spaces."""

    input_spec: ClassVar[type] = LinkedInputSpec

    @property
    def _space(self) -> str:
        return f"{self.inputs.run.name}_dwi"

    def _links(self) -> list[Link]:
        """Template → anatomy → dwi, in the order points travel; what is not there is left out."""
        inputs, links = self.inputs, []
        if isdefined(inputs.template) and inputs.template is not None:
            name, moving = inputs.template.name, inputs.anat_space or self._space
            links.append(Link(inputs.template_link, inputs.template_facts, name, moving, name))
        return [*links, *self._to_anat()]

    def _to_anat(self) -> list[Link]:
        inputs = self.inputs
        if not inputs.anat_space:
            return []
        return [Link(inputs.anat_link, inputs.anat_facts, inputs.anat_space, self._space, inputs.anat_modality)]
