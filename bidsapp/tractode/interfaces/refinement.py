"""Refinement of the orientation field of one scan: fibre orientations that continue along themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import torch
from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.contracts import OrientationModel
from tractode.fields import DWI, Image, ShField
from tractode.fields.sh import order_of
from tractode.interfaces.responses import fitted_model
from tractode.interfaces.scan import load_scan
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets, write_with_sidecar
from tractode.io.nifti import read_image
from tractode.models import MODELS
from tractode.reports import figures_refinement
from tractode.tracking.refinement import Refined, RefinementSettings, refine


class RefineOrientationsInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    model = traits.Str("csd", usedefault=True, desc="the orientation model in MODELS that was fitted")
    orientations = traits.Dict(mandatory=True, desc="outputs of FitModel of that model")
    continuity = traits.Float(RefinementSettings.continuity, usedefault=True, desc="weight of fibre continuity")


class RefineOrientations(Step):
    """Role: ``fod``, as `FitModel` of an orientation model has it: what `Track` takes as ``orientations``."""

    input_spec: ClassVar[type] = RefineOrientationsInputSpec

    def needs(self) -> list[Path]:
        scan = [Path(self.inputs.prepared[role]) for role in ("dwi", "bval", "bvec", "mask", "dwiref")]
        return [*scan, Path(self.inputs.orientations["fod"])]

    def parameters(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self._settings(0))
        return {"model": self.inputs.model, "settings": settings, "device": self.inputs.job.device.partition(":")[0]}

    def _settings(self, order: int) -> RefinementSettings:
        return RefinementSettings(continuity=self.inputs.continuity, order=order)

    def compute(self, writer: StepWriter) -> None:
        run, job = self.inputs.run, self.inputs.job
        # Long sums round differently with other numbers of threads; one gives the same bytes everywhere.
        torch.set_num_threads(1)
        space = f"{run.name}_dwi"
        scan = load_scan(self.inputs.prepared, space, job.device)
        fod, _ = read_image(Path(self.inputs.orientations["fod"]), space)
        kind: type[OrientationModel] = MODELS[self.inputs.model]
        model = fitted_model(kind, self.inputs.orientations, scan)
        assert isinstance(model, OrientationModel)
        kept = model.explains(scan.gtab)
        part = DWI(scan.grid, scan.signal[kept.to(scan.signal.device)], scan.gtab[kept], scan.mask)
        order = order_of(fod.values.shape[0])
        params = fod.values.to(job.device)[:, scan.mask].mT
        if params.shape[1] != model.example(0, 1).shape[1]:
            # There is more to the model than its FOD (other tissues): fitted once more, all of it.
            with torch.no_grad():
                params = model.fit(part.voxels(), part.gtab)
        found = refine(model, params, part.voxels(), part.gtab, scan.grid, scan.mask, self._settings(order))
        refined = scan.unravel(model.to_sh(found.params, order)).to("cpu")
        self._write(writer, refined, found, model, order)
        background, _ = read_image(Path(self.inputs.prepared["dwiref"]), space)
        mask = Image(scan.grid, scan.mask[None].cpu())
        figures = figures_refinement.before_and_after(
            ShField(scan.grid, fod.values, order), ShField(scan.grid, refined.values, order), background, mask, found,
            run=run.name,
        )  # fmt: skip
        save_reportlets(writer, job.participant, figures)

    def _write(
        self, writer: StepWriter, refined: Image, found: Refined, model: OrientationModel, order: int
    ) -> None:  # fmt: skip
        spec = next(spec for spec in model.maps if spec.components == "sh")
        spec = dataclasses.replace(spec, description=f"{spec.description}, refined by fibre continuity")
        facts = model.facts()
        response = facts.pop("ResponseFunction", None)
        parameters = {
            **facts,
            "NonNegativityConstraint": "soft",
            "FibreContinuity": self.inputs.continuity,
            "Noise": found.noise,
        }
        sources = [Path(self.inputs.prepared["dwi"]), Path(self.inputs.orientations["fod"])]
        content = sidecar.map_sidecar(
            spec, model.label, parameters, sources, None,
            response=sidecar.response_rows(response, spec.param), sh_order=order,
        )  # fmt: skip
        if "NonNegativity" in content:
            content["NonNegativity"] = "regularized"
        write_with_sidecar(
            writer, "fod", refined, content, self.inputs.run.entities,
            datatype="dwi", model=model.label, param=spec.param, desc="refined", suffix="dwimap",
        )  # fmt: skip
        writer.facts.update(
            sentence="Orientation distributions were refined before tracking, by the fit to the signal under a prior of fibre "
            "continuity",
            citation="reisert2011",
            noise=round(found.noise, 5),
            cost={"before": found.before, "after": found.after},
        )
