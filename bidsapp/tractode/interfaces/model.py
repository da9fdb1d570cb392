"""Fitting one diffusion model of the registry to one scan, and writing its maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative
from tractode.bids.pulse_timing import PulseTiming, pulse_timing
from tractode.contracts import MapSpec, OrientationModel, SignalModel
from tractode.errors import InputDataError
from tractode.fields import GradientTable, Image
from tractode.fields.sh import order_of
from tractode.interfaces.fitting import FEW_ENOUGH, SLAB, MaskedMaps, fit_blocks, read_noise, read_prepared_table
from tractode.interfaces.responses import own_responses, with_responses
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets
from tractode.io.masked_series import MaskedSeries, masked_series
from tractode.io.nifti import read_image
from tractode.io.notes import info, warning
from tractode.io.response import save_response
from tractode.models import MODELS, fixels, uncertainty
from tractode.reports import figures_fixels, figures_models

__all__ = ["FEW_ENOUGH", "SLAB", "FitModel"]

_TIMED = ("mapmri",)  # models that need the diffusion time
Spread = Literal["none", "laplace", "bootstrap"]
_SENTENCES = {
    "laplace": (
        "Standard errors of the maps were found from the derivatives of the fits and calibrated on simulated voxels",
        "koay2007",
    ),
    "bootstrap": (
        "Standard errors of the maps were found by a bootstrap of the fits' residuals and calibrated on simulated voxels",
        "chung2006",
    ),
}
_FIXELS = (
    "Lobes of the orientation distributions were told apart as fixels, each with its peak, its integral and its dispersion",
    "raffelt2012afd",
)


class FitModelInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    model = traits.Str(mandatory=True, desc="a name in MODELS")
    reason = traits.Str("", usedefault=True, desc="why this model was taken, for the report")
    refused = traits.Str("", usedefault=True, desc="why it is not to be fitted, where the plan says so")
    left_out = traits.Dict({}, usedefault=True, desc="other models that were wished for: why they were not taken")
    uncertainty = traits.Enum("none", "laplace", "bootstrap", usedefault=True)
    responses = traits.List(traits.Str, [], usedefault=True, desc="response files instead of the scan's own")
    fields = traits.Dict({}, usedefault=True, desc="fields of the model that the user decides, by name")
    fixels = traits.Bool(False, usedefault=True, desc="whether a model of orientations gives its fixels too")


class FitModel(Step):
    """Roles: one for each map of the model, named by its ``param``; ``fod``, that of orientations; ``<param>-sd`` of their spread.

    With ``fixels`` also ``peak``, ``fixelafd``, ``dispersion`` and ``nufo``.
    """

    input_spec: ClassVar[type] = FitModelInputSpec

    def needs(self) -> list[Path]:
        roles = ["dwi", "bval", "bvec", "mask"]
        if self.inputs.uncertainty != "none" and "noise" in self.inputs.prepared:
            roles.append("noise")
        own = [Path(self.inputs.prepared[role]) for role in roles]
        return [*own, *(Path(path) for path in self.inputs.responses)]

    def parameters(self) -> dict[str, Any]:
        return {
            "model": self.inputs.model,
            "device": self.inputs.job.device.partition(":")[0],
            "uncertainty": self.inputs.uncertainty,
            "seed": self.inputs.job.random_seed if self.inputs.uncertainty != "none" else None,
            **({"refused": self.inputs.refused} if self.inputs.refused else {}),
            **({"fixels": True} if self.inputs.fixels else {}),
            **({"timing": [self._timing.small_delta, self._timing.big_delta]} if self._timing else {}),
            **({"fields": dict(self.inputs.fields)} if self.inputs.fields else {}),
        }

    def compute(self, writer: StepWriter) -> None:
        run, job = self.inputs.run, self.inputs.job
        kind: type[SignalModel] = MODELS[self.inputs.model]
        mask, _ = read_image(Path(self.inputs.prepared["mask"]), f"{run.name}_dwi")
        with masked_series(Path(self.inputs.prepared["dwi"]), mask.mask, Path.cwd()) as series:
            gtab, notes = self._timed(read_prepared_table(self.inputs.prepared, series.n_volumes, mask.grid))
            writer.facts["notes"] = notes
            self._refuse(kind, gtab)
            method = self._method(writer, kind, gtab)
            model = self._model(kind, series, gtab)
            noise = None if method == "none" else read_noise(self.inputs.prepared, series.index, f"{run.name}_dwi")
            maps, spread = fit_blocks(
                model,
                series,
                gtab,
                mask.grid,
                device=job.device,
                method=method,
                seed=job.random_seed,
                fixels=self.inputs.fixels,
                noise=noise,
            )
        facts = model.facts()
        self._write_maps(writer, kind, maps, facts)
        self._write_fixels(writer, model, maps, facts)
        self._write_responses(writer, model)
        if method != "none":
            source = "residuals" if noise is None else "noise map of denoising"
            self._write_spread(writer, kind, spread, {**facts, "NoiseLevel": source}, method)
        writer.facts.update(
            model=self.inputs.model, label=kind.label, citation=kind.citation, fit=facts,
            reason=self.inputs.reason, left_out=dict(self.inputs.left_out),
        )  # fmt: skip
        if method != "none":
            writer.facts["spread"] = list(_SENTENCES[method])
        inside = Image(mask.grid, mask.mask[None])
        figures = figures_models.figures(kind, maps.image, inside, run.name)
        if self.inputs.fixels and isinstance(model, OrientationModel):
            figures += figures_fixels.sticks(
                maps.image("peak"), maps.image("fixelafd"), inside, run=run.name,
                section=figures_models.section_of(kind), model=kind.label,
            )  # fmt: skip
        if method != "none":
            figures += figures_models.spread(
                [spec for spec in uncertainty.specs(kind) if spec.param in spread.values],
                spread.image, inside, run.name, kind.label,
            )  # fmt: skip
        save_reportlets(writer, job.participant, figures)

    @property
    def _timing(self) -> PulseTiming | None:
        return pulse_timing([scan.metadata for scan in self.inputs.run.scans])[0]

    def _timed(self, gtab: GradientTable) -> tuple[GradientTable, list[dict[str, str]]]:
        """The table with the timing of the pulses where the sidecars tell it; for a model that uses it, a note says which."""
        timing, problem = pulse_timing([scan.metadata for scan in self.inputs.run.scans])
        notes = []
        if self.inputs.model in _TIMED:
            said = (
                f"diffusion time from {timing.source}"
                if timing
                else "diffusion time assumed: the sidecar does not tell"
            )
            note = info("N-MODEL-TIMING", f"{self.inputs.run.name}: {said}{f' ({problem})' if problem else ''}")
            notes.append(note.record())
        if timing is None:
            return gtab, notes
        small, big = (torch.full_like(gtab.bvals, time) for time in (timing.small_delta, timing.big_delta))
        return replace(gtab, small_delta=small, big_delta=big), notes

    def _refuse(self, kind: type[SignalModel], gtab: GradientTable) -> None:
        reason = kind.why_not(gtab) or self.inputs.refused
        if reason:
            raise InputDataError(
                f"The model {self.inputs.model} cannot be fitted: {reason}",
                id="E-MODEL-UNFIT",
                path=self.inputs.run.path,
                fix=f"leave {self.inputs.model} out of --models",
            )

    def _method(self, writer: StepWriter, kind: type[SignalModel], gtab: GradientTable) -> Spread:
        """How the spread is found; a note says why there is none where it was asked for."""
        method: Spread = self.inputs.uncertainty
        if method == "none":
            return method
        reason = uncertainty.why_not(kind, gtab)
        if reason is None:
            return method
        note = warning("W-MODEL-SPREAD", f"{self.inputs.run.name}: no uncertainty of {self.inputs.model}: {reason}")
        writer.facts["notes"].append(note.record())
        return "none"

    def _model(self, kind: type[SignalModel], series: MaskedSeries, gtab: GradientTable) -> SignalModel:
        """With the responses given, else with what the scan itself tells (on the CPU, whose libraries find responses)."""
        given = with_responses(kind, [Path(path) for path in self.inputs.responses], gtab)
        if given is not None:
            return given
        own = kind.for_data(series.sample(FEW_ENOUGH), gtab)
        return replace(own, **self.inputs.fields) if self.inputs.fields else own  # type: ignore[type-var]

    def _write_responses(self, writer: StepWriter, model: SignalModel) -> None:
        """Files that other runs may be fitted with; those estimated here are what the group level averages."""
        for response in own_responses(model):
            relative = derivative(
                self.inputs.run.entities, datatype="dwi", model=model.label, desc=response.tissue,
                suffix="response", extension=".txt",
            )  # fmt: skip
            writer.write(f"response-{response.tissue}", relative, partial(save_response, response))
            if not self.inputs.responses:
                writer.facts.setdefault("own_responses", []).append(f"response-{response.tissue}")

    def _write_maps(self, writer: StepWriter, kind: type[SignalModel], maps: MaskedMaps, facts: dict[str, Any]) -> None:
        for spec in kind.maps:
            self._write(writer, kind, spec, maps, facts, spec.param)
        harmonics = next((spec.param for spec in kind.maps if spec.components == "sh"), None)
        if issubclass(kind, OrientationModel) and harmonics not in (None, "fod"):
            # What follows orientations asks for them by this name, whatever the model calls them.
            writer.roles["fod"] = writer.roles[f"{harmonics}"]
            writer.roles["fod-sidecar"] = writer.roles[f"{harmonics}-sidecar"]

    def _write_fixels(self, writer: StepWriter, model: SignalModel, maps: MaskedMaps, facts: dict[str, Any]) -> None:
        if not self.inputs.fixels or not isinstance(model, OrientationModel):
            return
        kind = type(model)
        # Of several tissues' responses, that of the distribution whose lobes these are.
        lobes = next(spec.param for spec in kind.maps if spec.components == "sh")
        for spec in fixels.SPECS:
            more = fixels.facts(model, spec.param)
            self._write(writer, kind, spec, maps, facts, spec.param, more=more, response_of=lobes)
        writer.facts["sentences"] = [list(_FIXELS)]

    def _write_spread(
        self, writer: StepWriter, kind: type[SignalModel], spread: MaskedMaps, facts: dict[str, Any], method: str
    ) -> None:
        for spec in uncertainty.specs(kind):
            if spec.param in spread.values:
                known = {
                    **facts, "UncertaintyMethod": method, "UncertaintyCalibration": "simulated voxels",
                    "BootstrappedVoxels": spread.n_bootstrapped,
                }  # fmt: skip
                self._write(writer, kind, spec, spread, known, f"{spec.param}-sd", desc="sd")

    def _write(
        self,
        writer: StepWriter,
        kind: type[SignalModel],
        spec: MapSpec,
        maps: MaskedMaps,
        facts: dict[str, Any],
        role: str,
        desc: str | None = None,
        more: Mapping[str, Any] | None = None,
        response_of: str | None = None,
    ) -> None:
        """A map and its sidecar, in which ``more`` is said too; the response is that of the map, or of the one named."""
        content = sidecar.map_sidecar(
            spec, kind.label, {k: v for k, v in facts.items() if k != "ResponseFunction"},
            [Path(self.inputs.prepared["dwi"])], None,
            response=sidecar.response_rows(facts.get("ResponseFunction"), response_of or spec.param),
            sh_order=order_of(maps.values[spec.param].shape[1]) if spec.components == "sh" else None,
        )  # fmt: skip
        name = {"datatype": "dwi", "model": kind.label, "param": spec.param, "suffix": "dwimap"}
        entities = self.inputs.run.entities | ({"desc": desc} if desc else {})
        writer.write(role, derivative(entities, extension=".nii.gz", **name), partial(maps.write, name=spec.param))
        writer.write_json(
            f"{role}-sidecar", derivative(entities, extension=".json", **name), {**content, **(more or {})}
        )
