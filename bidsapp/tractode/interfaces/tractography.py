"""Tracking streamlines through the orientation field of one scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative
from tractode.fields import Image, ShField, Streamlines
from tractode.fields.sh import order_of
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets
from tractode.io.nifti import read_image
from tractode.io.tractogram import write_tractogram
from tractode.reports import figures_tractogram
from tractode.tracking import TRACKERS
from tractode.tracking.propagate import track_until

SEED_FA = 0.2
"""Seeds start where the tensor's FA is above this, if a tensor was fitted: elsewhere nearly all seeds are refused."""

SEEDS_PER_STREAMLINE = 1000
"""Tracking gives up after this many seeds a streamline asked for, as MRtrix3 does."""


class TrackInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    orientations = traits.Dict(mandatory=True, desc="outputs of FitModel of an orientation model")
    tensor = traits.Dict(desc="outputs of FitModel of the tensor, where it was fitted")
    method = traits.Str(mandatory=True, desc="a name in TRACKERS")
    n_streamlines = traits.Int(mandatory=True)
    formats = traits.List(traits.Str, ["trx"], usedefault=True)


class Track(Step):
    """Roles: ``tractogram`` (TRX) and one more for each further format."""

    input_spec: ClassVar[type] = TrackInputSpec

    def needs(self) -> list[Path]:
        paths = [Path(self.inputs.orientations["fod"]), Path(self.inputs.prepared["mask"])]
        return [*paths, Path(self.inputs.tensor["fa"])] if self.inputs.tensor else paths

    def parameters(self) -> dict[str, Any]:
        job = self.inputs.job
        return {
            "method": self.inputs.method,
            "settings": TRACKERS[self.inputs.method]().parameters(),
            "n_streamlines": self.inputs.n_streamlines,
            "formats": self.inputs.formats,
            "seed": job.random_seed,
            "device": job.device.partition(":")[0],
        }

    def compute(self, writer: StepWriter) -> None:
        run, job = self.inputs.run, self.inputs.job
        space = f"{run.name}_dwi"
        fod, _ = read_image(Path(self.inputs.orientations["fod"]), space)
        mask, _ = read_image(Path(self.inputs.prepared["mask"]), space)
        field = ShField(fod.grid, fod.values.to(job.device), order_of(fod.values.shape[0]))
        seed_mask, seed_source = self._seed_mask(mask, space)
        tracker = TRACKERS[self.inputs.method]()
        with torch.no_grad():
            batches = track_until(
                tracker, field, mask.to(job.device), seed_mask.to(job.device), self.inputs.n_streamlines,
                job.generator(self.inputs.step), max_seeds=SEEDS_PER_STREAMLINE * self.inputs.n_streamlines,
            )  # fmt: skip
            streamlines = Streamlines.concatenate(batches, space)
        self._write(writer, streamlines, fod, tracker, seed_source)
        background, _ = read_image(Path(self.inputs.prepared["dwiref"]), space)
        stills = figures_tractogram.static_views(streamlines, background, mask, run=run.name)
        figures = [*stills, figures_tractogram.interactive(streamlines, background, mask, run=run.name)]
        save_reportlets(writer, job.participant, figures)

    def _seed_mask(self, mask: Image, space: str) -> tuple[Image, str]:
        if not self.inputs.tensor:
            return mask, "brain mask"
        fa, _ = read_image(Path(self.inputs.tensor["fa"]), space)
        return Image(mask.grid, mask.mask[None] & (fa.values > SEED_FA)), f"brain mask where FA > {SEED_FA}"

    def _write(self, writer: StepWriter, streamlines: Streamlines, fod: Image, tracker: Any, seed_source: str) -> None:
        run = self.inputs.run
        name = {"datatype": "dwi", "track": tracker.label, "suffix": "tractogram"}
        for extension in self.inputs.formats:
            role = "tractogram" if extension == "trx" else extension
            relative = derivative(run.entities, extension=f".{extension}", **name)
            writer.write(role, relative, lambda path: write_tractogram(path, streamlines, fod.grid))
        lengths = streamlines.lengths()
        n_seeds = int(streamlines.per_streamline["seed"].max()) + 1 if len(streamlines) else 0
        parameters = tracker.parameters(fod.grid)
        writer.facts.update(
            method=self.inputs.method,
            citation=tracker.citation,
            n_streamlines=len(streamlines),
            n_asked=self.inputs.n_streamlines,
            n_seeds=n_seeds,
            median_length_mm=round(float(lengths.median()), 1) if len(streamlines) else 0.0,
            seeds=seed_source,
            tracker=parameters,
        )
        content = sidecar.tractogram_sidecar(
            tracker.label, parameters, [Path(self.inputs.orientations["fod"])], None,
            seed_mask=Path(self.inputs.prepared["mask"]), mask=Path(self.inputs.prepared["mask"]),
            n_seeds=n_seeds, n_generated=n_seeds, n_accepted=len(streamlines), random_seed=self.inputs.job.random_seed,
        )  # fmt: skip
        content["StreamlineSeeding"]["Sources"][0]["Description"] = f"Uniform over the {seed_source}"
        writer.write_json("tractogram-sidecar", derivative(run.entities, extension=".json", **name), content)
