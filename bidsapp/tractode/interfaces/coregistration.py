"""Registering a scan to the participant's anatomy, or straight to a template where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from nipype.interfaces.base import traits

from tractode.bids.manifest import StepWriter
from tractode.bids.templates import load_template
from tractode.evaluate.registration_quality import assess
from tractode.fields import Affine, Image
from tractode.fields.transform import resample
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets
from tractode.interfaces.transforms import write_transform_pair
from tractode.io.nifti import read_image
from tractode.io.transforms import read_itk
from tractode.preprocess.distortion import unlikeness
from tractode.registration.affine import Dof, register_affine
from tractode.registration.refine import refine
from tractode.reports import figures_distortion, figures_registration


class _Coregister(Step):
    """What the two registrations of a scan share: register, judge, write, show."""

    def _register(self, writer: StepWriter, fixed: Image, fixed_mask: Image, label: str, dof: Dof) -> None:
        run, job = self.inputs.run, self.inputs.job
        space = f"{run.name}_dwi"
        moving, _ = read_image(Path(self.inputs.prepared["dwiref"]), space)
        moving_mask, _ = read_image(Path(self.inputs.prepared["mask"]), space)
        transform = self._pose(
            fixed.to(job.device), moving.to(job.device), fixed_mask.to(job.device), moving_mask.to(job.device), dof
        )
        quality = assess(fixed, moving, transform, fixed_mask, moving_mask)
        write_transform_pair(
            writer, transform, fixed.grid, moving.grid,
            source=run.entities, datatype="dwi", moving="dwi", fixed=label,
            sources=[Path(self.inputs.prepared["dwiref"])], facts={"Quality": quality.record(), "DegreesOfFreedom": dof},
        )  # fmt: skip
        writer.facts.update(quality=quality.record(), dof=dof, target=label)
        figure = figures_registration.flicker(
            fixed, resample(moving, fixed.grid, transform), [(fixed_mask, "#ff5252", f"border of the brain in {label}")],
            fixed_name=label, moving_name="mean b=0 image", title=f"b=0 → {label}", desc=f"{label}coregistration",
            run=run.name, mask=fixed_mask,
        )  # fmt: skip
        save_reportlets(writer, job.participant, [figure])

    def _pose(self, fixed: Image, moving: Image, fixed_mask: Image, moving_mask: Image, dof: Dof) -> Affine:
        return register_affine(fixed, moving, dof=dof, fixed_mask=fixed_mask, moving_mask=moving_mask)


class CoregisterToAnatInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    anat = traits.Any(mandatory=True, desc="an AnatFile")
    anat_space = traits.Str(mandatory=True)
    prepared_anat = traits.Dict(mandatory=True, desc="outputs of PrepareAnat")
    normalised_anat = traits.Dict(mandatory=True, desc="outputs of NormaliseAnat: the brain mask")


class CoregisterToAnat(_Coregister):
    """Rigid, b=0 → anatomy. Roles: ``to-<modality>``, ``from-<modality>``."""

    input_spec: ClassVar[type] = CoregisterToAnatInputSpec

    def needs(self) -> list[Path]:
        roles = [role for role in ("dwiref", "mask", "uncorrected") if role in self.inputs.prepared]
        scan = [Path(self.inputs.prepared[role]) for role in roles]
        return [*scan, Path(self.inputs.prepared_anat["anat"]), Path(self.inputs.normalised_anat["mask"])]

    def parameters(self) -> dict[str, Any]:
        return {"dof": "rigid", "device": self.inputs.job.device.partition(":")[0]}

    def compute(self, writer: StepWriter) -> None:
        fixed, _ = read_image(Path(self.inputs.prepared_anat["anat"]), self.inputs.anat_space)
        mask, _ = read_image(Path(self.inputs.normalised_anat["mask"]), self.inputs.anat_space)
        self._register(writer, fixed, mask, self.inputs.anat.modality, "rigid")
        if "uncorrected" in self.inputs.prepared:
            self._compare(writer, fixed, mask)

    def _compare(self, writer: StepWriter, anatomy: Image, anatomy_mask: Image) -> None:
        """What the correction of distortion did to the likeness of b=0 and anatomy, each aligned as well as it goes."""
        run, job, modality = self.inputs.run, self.inputs.job, self.inputs.anat.modality
        to_scan = writer.output_dir / writer.roles[f"to-{modality}"]
        pose = read_itk(to_scan, source=anatomy.grid.space, target=f"{run.name}_dwi")
        assert isinstance(pose, Affine)
        after, _ = read_image(Path(self.inputs.prepared["dwiref"]), pose.target)
        before, _ = read_image(Path(self.inputs.prepared["uncorrected"]), pose.target)
        old_pose = refine(anatomy, before, [pose], fixed_mask=anatomy_mask)
        old, new = (unlikeness(anatomy, image, way, anatomy_mask) for image, way in ((before, old_pose), (after, pose)))
        writer.facts["distortion_gain"] = {"before": old, "after": new, "image": modality}
        figure = figures_distortion.against_anatomy(
            anatomy, resample(before, anatomy.grid, old_pose), resample(after, anatomy.grid, pose), anatomy_mask,
            run=run.name, modality=modality, unlikeness=(old, new),
        )  # fmt: skip
        save_reportlets(writer, job.participant, [figure])

    def _pose(self, fixed: Image, moving: Image, fixed_mask: Image, moving_mask: Image, dof: Dof) -> Affine:
        """From the scanner's own alignment (right if both are of one session) and from mutual information's, refined."""
        aligned = Affine(torch.eye(4, dtype=torch.float64), fixed.grid.space, moving.grid.space)
        searched = super()._pose(fixed, moving, fixed_mask, moving_mask, dof)
        return refine(fixed, moving, [aligned, searched], fixed_mask=fixed_mask, dof=dof)


class CoregisterToTemplateInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    template = traits.Any(mandatory=True, desc="a Template")


class CoregisterToTemplate(_Coregister):
    """Affine, b=0 → template, for participants without anatomy. Roles: ``to-<template>``, ``from-<template>``."""

    input_spec: ClassVar[type] = CoregisterToTemplateInputSpec

    def needs(self) -> list[Path]:
        return [*(Path(self.inputs.prepared[role]) for role in ("dwiref", "mask")), *self.inputs.template.paths]

    def parameters(self) -> dict[str, Any]:
        return {
            "dof": "affine",
            "template": self.inputs.template.name,
            "device": self.inputs.job.device.partition(":")[0],
        }

    def compute(self, writer: StepWriter) -> None:
        fixed = load_template(self.inputs.template, contrast="b0")
        self._register(writer, fixed.image, fixed.mask, self.inputs.template.name, "affine")
