"""Tissues of an anatomical image: its own, or those that came with the dataset; and how its white matter lies in a scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative, stem
from tractode.bids.templates import load_priors, tissue_files
from tractode.errors import InputDataError
from tractode.evaluate import boundary
from tractode.fields import Image, Transform
from tractode.interfaces.links import Link, LinkedInputSpec, LinkedStep
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets, write_with_sidecar
from tractode.io.nifti import read_image
from tractode.io.notes import warning
from tractode.preprocess import five_tissue, tissue_segmentation
from tractode.reports import figures_tissues

TISSUES = ("GM", "WM", "CSF")
_SAID = {
    "own": "a mixture of Gaussians with the template's priors",
    "labels": "FreeSurfer labels that were given",
    "five_tissue": "a five-tissue image that was given",
    "fractions": "tissue maps that were given",
}
#: A scan whose white matter lies farther than this (mm) from the anatomy's is worth a word.
_FAR_MM = 2.0


class SegmentAnatInputSpec(StepInputSpec):
    anat = traits.Any(mandatory=True, desc="an AnatFile")
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareAnat")
    space = traits.Str(mandatory=True)
    template = traits.Any(mandatory=True, desc="a Template")
    normalised = traits.Dict(mandatory=True, desc="outputs of the registration to that template")
    normalised_facts = traits.Dict(desc="its facts")
    source = traits.Any(None, usedefault=True, desc="a TissueSource, where the tissues were given")


class SegmentAnat(Step):
    """Roles: ``GM``, ``WM``, ``CSF`` (fractions), ``dseg`` (1, 2, 3), ``five-tissue``; none of them where it was ``skipped``."""

    input_spec: ClassVar[type] = SegmentAnatInputSpec

    @property
    def _kind(self) -> str:
        return "own" if self.inputs.source is None else self.inputs.source.kind

    @property
    def _link(self) -> Link:
        template = self.inputs.template
        return Link(
            self.inputs.normalised, self.inputs.normalised_facts, template.name, self.inputs.space, template.name
        )

    def needs(self) -> list[Path]:
        inputs = self.inputs
        paths = [Path(inputs.prepared["anat"]), Path(inputs.normalised[f"from-{inputs.template.name}"])]
        if inputs.source is not None:
            return [*paths, *inputs.source.paths]
        return [*paths, *inputs.template.paths, *tissue_files(inputs.template).values()]

    def parameters(self) -> dict[str, Any]:
        inputs = self.inputs
        return {
            "kind": self._kind,
            "template": inputs.template.name,
            "space": inputs.space,
            "sloppy": inputs.job.sloppy,
            "passed": self._link.passed,
        }

    def compute(self, writer: StepWriter) -> None:
        image, _ = read_image(Path(self.inputs.prepared["anat"]), self.inputs.space)
        writer.facts["tissues_from"] = self._kind
        if self._kind == "own" and not self._link.passed:
            self._skip(writer, "the registration to the template did not pass its quality gate")
            return
        try:
            five, said = self._own(writer, image) if self._kind == "own" else self._given()
        except InputDataError as error:
            if self._kind != "own":
                raise
            self._skip(writer, error.found)
            return
        self._write(writer, five, said)
        self._show(writer, image, five, said)

    def _skip(self, writer: StepWriter, reason: str) -> None:
        """Without tissues a participant can still be tracked, unless --act asks for them."""
        writer.facts["segmentation_skipped"] = reason
        writer.facts["notes"] = [warning("W-SEG-NONE", f"the tissues were not segmented: {reason}").record()]

    def _own(self, writer: StepWriter, image: Image) -> tuple[Image, str]:
        to_template = self._link.backward()
        priors = tissue_segmentation.carried(load_priors(self.inputs.template), image.grid, to_template)
        settings = tissue_segmentation.SLOPPY if self.inputs.job.sloppy else tissue_segmentation.SegmentationSettings()
        found = tissue_segmentation.segment(image, priors, settings)
        writer.facts["segmentation"] = {
            "means": [round(value, 2) for value in found.means],
            "deviations": [round(value, 2) for value in found.deviations],
            "contrast": round(found.contrast, 3),
            "iterations": found.iterations,
        }
        writer.facts.update(
            sentence=f"Grey matter, white matter and fluid of the {self.inputs.anat.modality} image were segmented by a mixture of Gaussians "
            "with the template's tissue maps as priors, under a smooth field of intensity, with mixed voxels",
            citation="ashburner2005",
        )
        return self._five(found.tissues, Image(image.grid, found.mask[None]), to_template), _SAID["own"]

    def _given(self) -> tuple[Image, str]:
        source, said = self.inputs.source, _SAID[self._kind]
        first, _ = read_image(source.path, self.inputs.space)
        if source.kind == "labels":
            return five_tissue.from_labels(first), said
        if source.kind == "five_tissue":
            return five_tissue.checked(first, str(source.path)), said
        maps = [first, *(read_image(path, self.inputs.space)[0] for path in source.more)]
        values = torch.cat([image.values[:1].float() for image in maps]).clamp(0, 1)
        mask = Image(first.grid, values.sum(0, keepdim=True) > 0.5)
        return self._five(values, mask, self._link.backward()), said

    def _five(self, tissues: torch.Tensor, mask: Image, to_template: Transform) -> Image:
        grey, white, csf = (Image(mask.grid, values[None]) for values in tissues)
        in_mni = self.inputs.template.name.startswith("MNI")
        if in_mni:
            return five_tissue.from_fractions(grey, white, mask, csf, to_template)
        # Where deep grey matter lies is known in MNI space only; elsewhere all of it counts as cortical.
        none = torch.zeros_like(tissues[0])
        return Image(mask.grid, torch.stack((tissues[0], none, tissues[1], tissues[2], none)))

    def _write(self, writer: StepWriter, five: Image, said: str) -> None:
        inputs = self.inputs
        entities, bids_dir = inputs.anat.entities, inputs.job.bids_dir
        given = [] if inputs.source is None else list(inputs.source.paths)
        sources = given or [Path(inputs.prepared["anat"])]
        name = {"datatype": "anat", "suffix": "probseg"}
        maps = grey_white_csf(five)
        for label, values in zip(TISSUES, maps.values, strict=True):
            content = sidecar.qc_sidecar(f"Fraction of {label} in every voxel, from {said}", sources, bids_dir)
            write_with_sidecar(writer, label, Image(maps.grid, values[None]), content, entities, label=label, **name)
        content = sidecar.qc_sidecar(
            f"Fractions of five tissues, from {said}", sources, bids_dir, LabelMap=list(five_tissue.LABELS)
        )
        write_with_sidecar(writer, "five-tissue", five, content, entities, desc="5tt", **name)
        known = maps.values.sum(0) > 0.5
        labels = Image(maps.grid, ((maps.values.argmax(0) + 1) * known).to(torch.uint8)[None])
        numbers = {str(number): label for number, label in enumerate(TISSUES, start=1)}
        content = sidecar.qc_sidecar(f"Largest tissue of every voxel, from {said}", sources, bids_dir, LabelMap=numbers)
        write_with_sidecar(writer, "dseg", labels, content, entities, datatype="anat", suffix="dseg")
        size = float(torch.det(maps.grid.affine[:3, :3]).abs()) / 1000
        volumes = {
            label: round(float(values.sum()) * size, 1) for label, values in zip(TISSUES, maps.values, strict=True)
        }
        writer.facts["tissue_ml"] = volumes

    def _show(self, writer: StepWriter, image: Image, five: Image, said: str) -> None:
        anat, maps = self.inputs.anat, grey_white_csf(five)
        volumes = ", ".join(f"{label} {value:.0f} ml" for label, value in writer.facts["tissue_ml"].items())
        session = f" of session {anat.session}" if anat.session else ""
        figure = figures_tissues.anatomy(
            image, five, title=f"Tissues of the {anat.modality} image{session}", desc="tissues", suffix=anat.modality,
            caption=f"Borders of tissues over the {anat.modality} image, from {said}. {volumes}.",
            run=stem(anat.entities), fractions=maps,
        )  # fmt: skip
        save_reportlets(writer, self.inputs.job.participant, figure)


def grey_white_csf(five: Image) -> Image:
    """Three fractions of five: grey matter is one, and what is pathological is left out."""
    values = five.values
    grey = values[five_tissue.CORTICAL] + values[five_tissue.SUBCORTICAL]
    return Image(five.grid, torch.stack((grey, values[five_tissue.WHITE], values[five_tissue.CSF])))


class MeasureBoundaryInputSpec(LinkedInputSpec):
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    segmented = traits.Dict(mandatory=True, desc="outputs of SegmentAnat")


class MeasureBoundary(LinkedStep):
    """How the anatomy's white matter lies in the b=0 image. Roles: ``boundary``; none where nothing was segmented."""

    input_spec: ClassVar[type] = MeasureBoundaryInputSpec

    def needs(self) -> list[Path]:
        roles = [role for role in ("GM", "WM") if role in self.inputs.segmented]
        link = self._to_anat()[0]
        return [
            *(Path(self.inputs.prepared[role]) for role in ("dwiref", "mask")),
            *(Path(self.inputs.segmented[role]) for role in roles),
            *(Path(link.outputs[f"{way}-{link.label}"]) for way in ("to", "from")),
        ]

    def parameters(self) -> dict[str, Any]:
        return {"segmented": sorted(self.inputs.segmented)}

    def compute(self, writer: StepWriter) -> None:
        inputs = self.inputs
        if "WM" not in inputs.segmented:
            writer.facts["boundary_skipped"] = "the tissues were not segmented"
            return
        reference, _ = read_image(Path(inputs.prepared["dwiref"]), self._space)
        mask, _ = read_image(Path(inputs.prepared["mask"]), self._space)
        grey, white = (read_image(Path(inputs.segmented[role]), inputs.anat_space)[0] for role in ("GM", "WM"))
        link = self._to_anat()[0]
        try:
            found = boundary.measure(reference, grey, white, link.forward())
        except InputDataError as error:
            writer.facts["boundary_skipped"] = error.found
            return
        record = found.record()
        writer.facts["boundary"] = record
        if found.distance > _FAR_MM:
            text = f"{inputs.run.name}: the white matter's border lies about {found.distance:.1f} mm from where the {link.label} has it"
            writer.facts["notes"] = [warning("W-BOUNDARY", text).record()]
        sources = [Path(inputs.prepared["dwiref"]), Path(inputs.segmented["WM"])]
        content = sidecar.qc_sidecar(
            f"How the border of white matter of the {link.label} lies in the mean b=0 image", sources, inputs.job.bids_dir, **record
        )  # fmt: skip
        path = derivative(inputs.run.entities, datatype="dwi", desc="boundary", suffix="qc", extension=".json")
        writer.write_json("boundary", path, content)
        self._show(writer, reference, mask, white, link, found)

    def _show(
        self,
        writer: StepWriter,
        reference: Image,
        mask: Image,
        white: Image,
        link: Link,
        found: boundary.BoundaryMeasure,
    ) -> None:
        grid = reference.grid.resampled(1.0)
        points = link.backward().map(grid.centres())
        moved = Image(grid, white.sample(points).permute(3, 0, 1, 2) > 0.5)
        shift = ", ".join(f"{part:+.1f}" for part in found.shift)
        figure = figures_tissues.borders(
            reference, mask, {f"white matter of the {link.label}": moved}, title=f"White matter of the {link.label} over b=0",
            desc="boundary", run=self.inputs.run.name, section="registration",
            caption=f"Grey matter is brighter than white at {100 * found.crossed:.0f} % of the border. The cost is lowest {found.distance:.1f} mm "
            f"away (R, A, S: {shift} mm).",
        )  # fmt: skip
        save_reportlets(writer, self.inputs.job.participant, [figure])
