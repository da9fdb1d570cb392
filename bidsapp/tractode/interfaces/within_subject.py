"""A person's own template of the anatomical images of all sessions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import stem
from tractode.evaluate.folding import certificate
from tractode.fields import Image, Transform
from tractode.fields.transform import resample
from tractode.interfaces.anatomy import UNBIASED
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets, write_with_sidecar
from tractode.interfaces.transforms import write_transform_pair
from tractode.io.nifti import read_image
from tractode.registration.optimise import SLOPPY
from tractode.registration.within_subject import SubjectTemplate, WithinSubjectSettings, subject_template
from tractode.reports import figures_registration
from tractode.reports.reportlet import Reportlet


class BuildSubjectTemplateInputSpec(StepInputSpec):
    anats = traits.List(mandatory=True, desc="an AnatFile for each session")
    spaces = traits.List(traits.Str, mandatory=True, desc="their spaces")
    prepared = traits.List(traits.Dict, mandatory=True, desc="outputs of PrepareAnat, in the same order")
    anat = traits.Any(mandatory=True, desc="the template as an AnatFile")
    space = traits.Str(mandatory=True)


class BuildSubjectTemplate(Step):
    """Roles: ``anat`` (the template), and for every session's space S ``S-to-unbiased`` and ``S-from-unbiased``."""

    input_spec: ClassVar[type] = BuildSubjectTemplateInputSpec

    def _paths(self) -> list[Path]:
        return [Path(prepared["anat"]) for prepared in self.inputs.prepared]

    def needs(self) -> list[Path]:
        return self._paths()

    def parameters(self) -> dict[str, Any]:
        return {
            "spaces": list(self.inputs.spaces),
            "sloppy": self.inputs.job.sloppy,
            "device": self.inputs.job.device.partition(":")[0],
        }

    def compute(self, writer: StepWriter) -> None:
        job = self.inputs.job
        scans = [
            read_image(path, space)[0].to(job.device)
            for path, space in zip(self._paths(), self.inputs.spaces, strict=True)
        ]
        settings = WithinSubjectSettings(schedule=SLOPPY) if job.sloppy else None
        found = subject_template(scans, self.inputs.space, settings)
        self._write_template(writer, found)
        sessions = zip(self.inputs.anats, self.inputs.spaces, scans, found.to_scans, self._paths(), strict=True)
        for anat, space, scan, way, path in sessions:
            folding = certificate(way, found.image.grid).record()
            write_transform_pair(
                writer, way, found.image.grid, scan.grid,
                source=anat.entities, datatype="anat", moving=anat.modality, fixed=UNBIASED, sources=[path],
                facts={"FoldingCertificate": folding}, role_prefix=f"{space}-",
            )  # fmt: skip
            save_reportlets(writer, job.participant, [self._picture(found, scan, way, anat)])
        writer.facts.update(sessions=list(self.inputs.spaces), mean_displacement_mm=round(found.bias, 3))

    def _write_template(self, writer: StepWriter, found: SubjectTemplate) -> None:
        anat = self.inputs.anat
        text = f"Mean of the {anat.modality} images of {len(self.inputs.spaces)} sessions, in the space between them"
        content = sidecar.preproc_sidecar(text, self._paths(), None) | {"MeanDisplacement": round(found.bias, 3)}
        write_with_sidecar(
            writer, "anat", found.image, content, anat.entities,
            datatype="anat", desc=UNBIASED, suffix=anat.modality,
        )  # fmt: skip

    def _picture(self, found: SubjectTemplate, scan: Image, way: Transform, anat: Any) -> Reportlet:
        grid = found.image.grid
        figure = figures_registration.flicker(
            found.image, resample(scan, grid, way), [],
            fixed_name="template of all sessions", moving_name=f"session {anat.session}",
            title=f"Session {anat.session} → the person's own template", desc=UNBIASED,
            run=stem(anat.entities), section="subject", suffix=anat.modality,
        )  # fmt: skip
        # The picture belongs to the participant; its file name keeps the session's.
        return replace(figure, run="")
