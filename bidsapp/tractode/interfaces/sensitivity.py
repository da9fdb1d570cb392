"""Sensitivity of a connection to the signal of one scan: three maps and their pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import torch
from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.contracts import MapSpec, OrientationModel
from tractode.fields import DWI, Image, ShField
from tractode.fields.sh import order_of
from tractode.interfaces.responses import fitted_model
from tractode.interfaces.scan import load_scan
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets, write_with_sidecar
from tractode.interfaces.tracking_plan import WHITE_MATTER_FA
from tractode.io.nifti import read_image
from tractode.models import MODELS
from tractode.reports import figures_sensitivity
from tractode.tracking.method import StreamlineTracker
from tractode.tracking.seeds import seeds_in_mask
from tractode.tracking.sensitivity import Probe, Sensitivity, sensitivity
from tractode.tracking.survival import SoftTermination, memberships

BATCH = 2048
"""Seeds tracked at once: weights along lines are kept for the derivative, so fewer than tracking alone could hold."""

MAPS = (
    MapSpec(
        "sensitivity", "How strongly the connection depends on the voxel's signals: norm over the volumes of the "
        "relative change of the connection per relative change of a signal", "1",
    ),
    MapSpec(
        "sensitivitysignal", "Relative change of the connection per relative change of all diffusion-weighted signals "
        "of the voxel alike", "1",
    ),
    MapSpec(
        "sensitivityanisotropy", "Relative change of the connection per loss of anisotropy: every shell's signals moved "
        "to their mean (1 = all of it, extrapolated from the start)", "1",
    ),
)  # fmt: skip


class MapSensitivityInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    model = traits.Str("csd", usedefault=True, desc="the orientation model in MODELS that was fitted")
    orientations = traits.Dict(mandatory=True, desc="outputs of FitModel of that model (not a refined field)")
    tensor = traits.Dict(desc="outputs of FitModel of the tensor, where it was fitted")
    regions = traits.Dict(mandatory=True, desc="role → mask on the grid of the dwi: outputs of CarryRegions")
    first = traits.Str("region-end1", usedefault=True, desc="role of one end in regions")
    second = traits.Str("region-end2", usedefault=True, desc="role of the other end in regions")
    tracker = traits.Any(mandatory=True, desc="a StreamlineTracker that follows SH fields and is differentiable")
    n_seeds = traits.Int(50_000, usedefault=True)
    border_mm = traits.Float(3.0, usedefault=True, desc="lines that end so far from a region still count in part")
    temperature = traits.Float(0.02, usedefault=True, desc="softness of the amplitude cutoff")


class MapSensitivity(Step):
    """Roles: ``sensitivity``, ``sensitivitysignal`` and ``sensitivityanisotropy``."""

    input_spec: ClassVar[type] = MapSensitivityInputSpec

    @property
    def _ends(self) -> list[Path]:
        return [Path(self.inputs.regions[self.inputs.first]), Path(self.inputs.regions[self.inputs.second])]

    def needs(self) -> list[Path]:
        scan = [Path(self.inputs.prepared[role]) for role in ("dwi", "bval", "bvec", "mask", "dwiref")]
        tensor = [Path(self.inputs.tensor["fa"])] if self.inputs.tensor else []
        return [*scan, Path(self.inputs.orientations["fod"]), *tensor, *self._ends]

    def parameters(self) -> dict[str, Any]:
        job, tracker = self.inputs.job, self.inputs.tracker
        return {
            "model": self.inputs.model,
            "tracker": tracker.label,
            "settings": tracker.parameters(),
            "n_seeds": self.inputs.n_seeds,
            "border_mm": self.inputs.border_mm,
            "temperature": self.inputs.temperature,
            "seed": job.random_seed,
            "device": job.device.partition(":")[0],
        }

    def compute(self, writer: StepWriter) -> None:
        run, job = self.inputs.run, self.inputs.job
        # Long sums round differently with other numbers of threads; one gives the same bytes everywhere.
        torch.set_num_threads(1)
        space = f"{run.name}_dwi"
        scan = load_scan(self.inputs.prepared, space, job.device)
        fod, _ = read_image(Path(self.inputs.orientations["fod"]), space)
        field = ShField(fod.grid, fod.values.to(job.device), order_of(fod.values.shape[0]))
        kind: type[OrientationModel] = MODELS[self.inputs.model]
        model = fitted_model(kind, self.inputs.orientations, scan)
        assert isinstance(model, OrientationModel)
        ends = [read_image(path, space)[0] for path in self._ends]
        found = sensitivity(model, scan.signal, scan.gtab, field, self._probe(scan, ends))
        self._write(writer, found, kind.label)
        background, _ = read_image(Path(self.inputs.prepared["dwiref"]), space)
        figures = figures_sensitivity.maps(
            Image(scan.grid, found.strength()[None].cpu()),
            Image(scan.grid, found.of_anisotropy_loss()[None].cpu()),
            background, Image(scan.grid, scan.mask[None].cpu()), ends,
            connection=found.connection, n_lines=found.n_lines, abrupt=found.abrupt, run=run.name,
        )  # fmt: skip
        save_reportlets(writer, job.participant, figures)

    def _probe(self, scan: DWI, ends: list[Image]) -> Probe:
        job = self.inputs.job
        brain = Image(scan.grid, scan.mask[None])
        white = brain
        if self.inputs.tensor:
            fa, _ = read_image(Path(self.inputs.tensor["fa"]), scan.grid.space)
            white = Image(scan.grid, brain.mask[None] & (fa.values > WHITE_MATTER_FA).to(job.device))
        generator = job.generator(self.inputs.step)
        seeds = seeds_in_mask(white, self.inputs.n_seeds, generator).to(job.device)
        regions = memberships(torch.cat([end.mask[None] for end in ends]), scan.grid, self.inputs.border_mm)
        tracker: StreamlineTracker = dataclasses.replace(self.inputs.tracker, batch_size=BATCH)
        termination = SoftTermination.like(tracker, brain, self.inputs.temperature)
        return Probe.of(tracker, seeds, brain, regions.to(job.device), termination, generator)

    def _write(self, writer: StepWriter, found: Sensitivity, label: str) -> None:
        parameters = {
            "Connection": found.connection,
            "ContributingStreamlines": found.n_lines,
            "ShareEndedByRulesWithoutDerivative": round(found.abrupt, 4),
            "Seeds": self.inputs.n_seeds,
            "BorderMm": self.inputs.border_mm,
            "CutoffTemperature": self.inputs.temperature,
            "Tracker": self.inputs.tracker.parameters(found.grid),
        }
        sources = [Path(self.inputs.prepared["dwi"]), *self._ends]
        values = (found.strength(), found.of_signal(), found.of_anisotropy_loss())
        for spec, value in zip(MAPS, values, strict=True):
            write_with_sidecar(
                writer, spec.param, Image(found.grid, value[None].float().cpu()),
                sidecar.map_sidecar(spec, label, parameters, sources, None), self.inputs.run.entities,
                datatype="dwi", model=label, param=spec.param, suffix="dwimap",
            )  # fmt: skip
        writer.facts.update(
            connection=round(found.connection, 3),
            n_lines=found.n_lines,
            abrupt=round(found.abrupt, 4),
            n_seeds=self.inputs.n_seeds,
            voxels=len(found.voxels),
            sentence="What the connection of two regions rests on was mapped as its derivative with respect to the signal, "
            "through tracking with soft termination and the fit of the orientation model, after the saliency maps of",
            citation="simonyan2014",
        )
