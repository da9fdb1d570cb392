"""Fitting one diffusion model of the registry to one scan, and writing its maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.contracts import MapSpec, OrientationModel, SignalModel
from tractode.errors import InputDataError
from tractode.fields import Image, ShField
from tractode.fields.sh import order_of
from tractode.interfaces.scan import load_scan
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets, write_with_sidecar
from tractode.models import MODELS
from tractode.reports import figures_glyphs, figures_slices
from tractode.reports.reportlet import Reportlet


class FitModelInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    model = traits.Str(mandatory=True, desc="a name in MODELS")


class FitModel(Step):
    """Roles: one for each map of the model, named by its ``param``."""

    input_spec: ClassVar[type] = FitModelInputSpec

    def needs(self) -> list[Path]:
        return [Path(self.inputs.prepared[role]) for role in ("dwi", "bval", "bvec", "mask")]

    def parameters(self) -> dict[str, Any]:
        return {"model": self.inputs.model, "device": self.inputs.job.device.partition(":")[0]}

    def compute(self, writer: StepWriter) -> None:
        run, job = self.inputs.run, self.inputs.job
        scan = load_scan(self.inputs.prepared, f"{run.name}_dwi", job.device)
        kind: type[SignalModel] = MODELS[self.inputs.model]
        reason = kind.why_not(scan.gtab)
        if reason is not None:
            raise InputDataError(
                f"The model {self.inputs.model} cannot be fitted: {reason}",
                id="E-MODEL-UNFIT",
                path=run.path,
                fix=f"leave {self.inputs.model} out of --models",
            )
        signal = scan.voxels()
        model = kind.for_data(signal, scan.gtab)
        maps = {
            param: scan.unravel(values).to("cpu")
            for param, values in model.to_maps(model.fit(signal, scan.gtab)).items()
        }
        facts = model.facts()
        for spec in kind.maps:
            self._write_map(writer, kind, spec, maps[spec.param], facts)
        writer.facts.update(model=self.inputs.model, label=kind.label, citation=kind.citation, fit=facts)
        save_reportlets(
            writer, job.participant, _figures(kind, maps, Image(scan.grid, scan.mask[None].cpu()), run.name)
        )

    def _write_map(
        self, writer: StepWriter, kind: type[SignalModel], spec: MapSpec, image: Image, facts: dict[str, Any]
    ) -> None:
        run = self.inputs.run
        response = facts.get("ResponseFunction")
        content = sidecar.map_sidecar(
            spec, kind.label, {k: v for k, v in facts.items() if k != "ResponseFunction"}, [Path(self.inputs.prepared["dwi"])], None,
            response=response["Coefficients"] if response else None,
            sh_order=order_of(image.values.shape[0]) if spec.components == "sh" else None,
        )  # fmt: skip
        write_with_sidecar(
            writer,
            spec.param,
            image,
            content,
            run.entities,
            datatype="dwi",
            model=kind.label,
            param=spec.param,
            suffix="dwimap",
        )


def _figures(kind: type[SignalModel], maps: dict[str, Image], mask: Image, run: str) -> list[Reportlet]:
    """One picture a scalar map; colours where there is a direction; glyphs where there are harmonics."""
    figures = []
    section = "fod" if issubclass(kind, OrientationModel) else kind.label
    for spec in kind.maps:
        image = maps[spec.param]
        if spec.components == "scalar" and spec.invariant:
            figures.append(
                figures_slices.scalar_map(
                    image,
                    mask,
                    spec.param,
                    description=spec.description,
                    units=spec.units,
                    run=run,
                    model=kind.label,
                    section=section,
                )
            )
        elif spec.components == "unit3vector" and "fa" in maps:
            figures.append(figures_slices.colour_fa(maps["fa"], image, mask, run=run, section=section))
        elif spec.components == "sh":
            field = ShField(image.grid, image.values, order_of(image.values.shape[0]))
            figures += figures_glyphs.fod_glyphs(field, maps.get("afd", mask), mask, run=run)
    return figures
