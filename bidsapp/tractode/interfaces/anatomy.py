"""Anatomy: read a T1w or T2w image, and register it to a template, alone or through the person's own template."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import stem
from tractode.bids.templates import TemplateImages, load_template
from tractode.evaluate.folding import certificate
from tractode.evaluate.registration_quality import assess
from tractode.fields import Image, Transform
from tractode.fields.transform import Chain, resample
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets, write_with_sidecar
from tractode.interfaces.transforms import write_transform_pair
from tractode.io.nifti import read_image, read_volume
from tractode.io.notes import info
from tractode.io.transforms import read_x5
from tractode.preprocess.mask_consensus import anatomical_mask
from tractode.registration.optimise import COARSE, SLOPPY, register
from tractode.reports import figures_registration, figures_slices

UNBIASED = "unbiased"  # the label of a person's own template in file names


class PrepareAnatInputSpec(StepInputSpec):
    anat = traits.Any(mandatory=True, desc="an AnatFile")
    space = traits.Str(mandatory=True)
    assume_orientation = traits.Bool(False, usedefault=True)


class PrepareAnat(Step):
    """Roles: ``anat`` (the image, float32, as stored)."""

    input_spec: ClassVar[type] = PrepareAnatInputSpec

    def needs(self) -> list[Path]:
        return [self.inputs.anat.path, *self.inputs.anat.sidecars]

    def parameters(self) -> dict[str, Any]:
        return {"assume_orientation": self.inputs.assume_orientation, "space": self.inputs.space}

    def compute(self, writer: StepWriter) -> None:
        anat = self.inputs.anat
        image, notes = read_volume(anat.path, self.inputs.space, assume_orientation=self.inputs.assume_orientation)
        text = f"{anat.modality} image as acquired, checked and stored as float32"
        content = sidecar.preproc_sidecar(text, [anat.path], self.inputs.job.bids_dir, metadata=anat.metadata)
        write_with_sidecar(
            writer, "anat", image, content, anat.entities, datatype="anat", desc="preproc", suffix=anat.modality
        )
        writer.facts.update(
            shape=list(image.grid.shape),
            voxel_sizes=[round(size, 3) for size in image.grid.voxel_sizes],
            notes=[vars(note) for note in notes],
        )


class NormaliseAnatInputSpec(StepInputSpec):
    anat = traits.Any(mandatory=True, desc="an AnatFile")
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareAnat")
    space = traits.Str(mandatory=True)
    template = traits.Any(mandatory=True, desc="a Template")
    write_mask = traits.Bool(True, usedefault=True, desc="whether this template defines the brain mask")


class _Normalise(Step):
    """Roles: ``to-<template>`` and ``from-<template>`` transforms, ``mask`` in anatomical space, ``normalised`` image."""

    def needs(self) -> list[Path]:
        return [Path(self.inputs.prepared["anat"]), *self.inputs.template.paths]

    def parameters(self) -> dict[str, Any]:
        return {
            "template": self.inputs.template.name,
            "space": self.inputs.space,
            "write_mask": self.inputs.write_mask,
            "sloppy": self.inputs.job.sloppy,
            "device": self.inputs.job.device.partition(":")[0],
        }

    @abstractmethod
    def transform(self, fixed: TemplateImages, moving: Image) -> tuple[Transform, dict[str, Any]]:
        """From the template to the image, and what is to be said of how it was found."""

    def compute(self, writer: StepWriter) -> None:
        job, anat, template = self.inputs.job, self.inputs.anat, self.inputs.template
        moving, _ = read_image(Path(self.inputs.prepared["anat"]), self.inputs.space)
        fixed = load_template(template, contrast=anat.modality)
        transform, how = self.transform(fixed, moving)
        folding = certificate(transform, fixed.image.grid)
        folded = {**folding.record(), **how}
        carried = resample(fixed.mask, moving.grid, transform.inverse(), "nearest")
        verdict = anatomical_mask(moving, carried)
        mask = verdict.mask
        writer.facts["brain_mask"] = verdict.record()
        if not verdict.passed:
            text = (
                f"{anat.modality}: the brain mask is the template's alone, no surface agreed with it: {verdict.reason}"
            )
            writer.facts["notes"] = [info("N-MASK-CARRIED", text).record()]
        normalised = resample(moving, fixed.image.grid, transform)
        quality = assess(fixed.image, moving, transform, fixed.mask, mask)
        self._write_images(writer, mask, normalised)
        write_transform_pair(
            writer, transform, fixed.image.grid, moving.grid,
            source=anat.entities, datatype="anat", moving=anat.modality, fixed=template.name,
            sources=[Path(self.inputs.prepared["anat"])], facts={"FoldingCertificate": folded, "Quality": quality.record()},
        )  # fmt: skip
        writer.facts.update(folding=folded, quality=quality.record(), template=template.name)
        is_own_template = f"desc-{UNBIASED}_" in anat.path.name
        which = " of all sessions" if is_own_template else f" of session {anat.session}" if anat.session else ""
        caption = "The person's own template." if is_own_template else f"The {anat.modality} image as acquired."
        figures = [
            figures_registration.flicker(
                fixed.image, normalised, [(fixed.mask, "#ff5252", f"border of the brain in {template.name}")],
                fixed_name=template.name, moving_name=f"{anat.modality} of the participant",
                title=f"{anat.modality}{which} → {template.name}", desc=f"{template.name}registration",
                run=stem(anat.entities), section="template", suffix=anat.modality, mask=fixed.mask,
            ),
            figures_slices.mosaic(
                moving, mask, desc=f"{template.name}mask", section="anatomy", title=f"{anat.modality}{which} and brain mask",
                caption=caption, run=stem(anat.entities), suffix=anat.modality,
            ),
        ]  # fmt: skip
        # The pictures belong to the participant, not to a run; their file names keep the image's.
        save_reportlets(writer, job.participant, [replace(figure, run="") for figure in figures])

    def _write_images(self, writer: StepWriter, mask: Image, normalised: Image) -> None:
        anat, template, job = self.inputs.anat, self.inputs.template, self.inputs.job
        prepared = [Path(self.inputs.prepared["anat"])]
        if self.inputs.write_mask:
            text = f"Brain mask: that of {template.name} carried by the registration, and a surface that began in it"
            write_with_sidecar(
                writer,
                "mask",
                mask,
                sidecar.mask_sidecar(prepared, job.bids_dir, text),
                anat.entities,
                datatype="anat",
                desc="brain",
                suffix="mask",
            )
        text = f"{anat.modality} image resampled once into {template.name}"
        content = sidecar.preproc_sidecar(text, prepared, job.bids_dir, space=template.name)
        write_with_sidecar(
            writer,
            "normalised",
            normalised,
            content,
            anat.entities,
            datatype="anat",
            space=template.name,
            desc="preproc",
            suffix=anat.modality,
        )


class NormaliseAnat(_Normalise):
    """An anatomical image → a template, by their contents."""

    input_spec: ClassVar[type] = NormaliseAnatInputSpec

    def transform(self, fixed: TemplateImages, moving: Image) -> tuple[Transform, dict[str, Any]]:
        job = self.inputs.job
        found = register(
            fixed.image.to(job.device),
            moving.to(job.device),
            fixed_mask=fixed.mask.to(job.device),
            schedule=SLOPPY if job.sloppy else COARSE,
        )
        return found, {"repeats_with_more_regularisation": found.repeats}


class NormaliseThroughSubjectInputSpec(NormaliseAnatInputSpec):
    subject_space = traits.Str(mandatory=True, desc="name of the space of the person's own template")
    to_subject = traits.Dict(mandatory=True, desc="outputs of BuildSubjectTemplate")
    subject_normalised = traits.Dict(mandatory=True, desc="outputs of NormaliseAnat of that template")


class NormaliseThroughSubject(_Normalise):
    """One session's image → a template, as the person's own template goes there: two stored transforms, one chain."""

    input_spec: ClassVar[type] = NormaliseThroughSubjectInputSpec

    def _links(self) -> tuple[Path, Path]:
        """Template → person's template, person's template → session."""
        to_template = self.inputs.subject_normalised[f"to-{self.inputs.template.name}-x5"]
        return Path(to_template), Path(self.inputs.to_subject[f"{self.inputs.space}-to-{UNBIASED}-x5"])

    def needs(self) -> list[Path]:
        return [*super().needs(), *self._links()]

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "subject_space": self.inputs.subject_space}

    def transform(self, fixed: TemplateImages, moving: Image) -> tuple[Transform, dict[str, Any]]:
        first, second = self._links()
        middle = self.inputs.subject_space
        # X5 holds the velocities themselves, whose flow is undone exactly; a table of displacements is not.
        chain = Chain(
            (
                read_x5(first, source=fixed.image.grid.space, target=middle),
                read_x5(second, source=middle, target=moving.grid.space),
            )
        )
        return chain, {"through": middle}
