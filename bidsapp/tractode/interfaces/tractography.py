"""Tracking streamlines through the orientation field of one scan."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative
from tractode.contracts import Orientations, Tracker
from tractode.fields import Image, ImageGrid, ShField, Streamlines, TensorField
from tractode.fields.sh import order_of
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets
from tractode.interfaces.tracking_plan import TrackingPlan
from tractode.io.nifti import read_image
from tractode.io.tractogram_stream import stream_to, stream_trx
from tractode.reports import figures_tractogram
from tractode.reports.sample import StreamlineSample
from tractode.tracking.propagate import track_until

SEEDS_PER_STREAMLINE = 1000
"""Tracking gives up after this many seeds a streamline asked for, as MRtrix3 does."""


class TrackInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    orientations = traits.Dict(desc="outputs of FitModel of an orientation model, or of RefineOrientations")
    tensor = traits.Dict(desc="outputs of FitModel of the tensor, where it was fitted")
    regions = traits.Dict({}, usedefault=True, desc="outputs of CarryRegions, where regions or tissues are asked for")
    method = traits.Str(mandatory=True, desc="a name in TRACKERS")
    plan = traits.Any(mandatory=True, desc="a TrackingPlan")
    formats = traits.List(traits.Str, ["trx"], usedefault=True)


class Track(Step):
    """Roles: ``tractogram`` (TRX) and one more for each further format."""

    input_spec: ClassVar[type] = TrackInputSpec

    @property
    def _field_path(self) -> Path:
        follows_tensor = self.inputs.method == "tensordet"
        return Path(self.inputs.tensor["diffusivity"] if follows_tensor else self.inputs.orientations["fod"])

    def needs(self) -> list[Path]:
        plan: TrackingPlan = self.inputs.plan
        paths = [self._field_path, Path(self.inputs.prepared["mask"]), Path(self.inputs.prepared["dwiref"])]
        if self.inputs.tensor:
            paths.append(Path(self.inputs.tensor["fa"]))
        if self.inputs.orientations:
            paths.append(Path(self.inputs.orientations["fod"]))
        return [*paths, *plan.files(self.inputs.regions)]

    def parameters(self) -> dict[str, Any]:
        job, plan = self.inputs.job, self.inputs.plan
        return {
            "method": self.inputs.method,
            "settings": plan.tracker(self.inputs.method).parameters(),
            "plan": plan.facts(),
            "formats": self.inputs.formats,
            "seed": job.random_seed,
            "device": job.device.partition(":")[0],
        }

    def compute(self, writer: StepWriter) -> None:
        run, plan = self.inputs.run, self.inputs.plan
        space = f"{run.name}_dwi"
        field = self._field(space)
        mask, _ = read_image(Path(self.inputs.prepared["mask"]), space)
        tracker = plan.tracker(self.inputs.method, field.grid)
        sample = StreamlineSample(space)
        n_seeds = self._stream(writer, tracker, field, mask, sample)
        self._describe(writer, tracker, mask, sample, n_seeds)
        background, _ = read_image(Path(self.inputs.prepared["dwiref"]), space)
        options: dict[str, Any] = {"run": run.name, "n_total": sample.n_seen}
        label, title = tracker.label, f"Tractogram ({tracker.parameters()['Algorithm']})"
        stills = figures_tractogram.static_views(sample.lines, background, mask, desc=label, title=title, **options)
        rotating = figures_tractogram.interactive(
            sample.lines, background, mask, desc=f"{label}3d", title=f"{title} in three dimensions", **options
        )
        save_reportlets(writer, self.inputs.job.participant, [*stills, rotating])

    def _field(self, space: str) -> Orientations:
        image, _ = read_image(self._field_path, space)
        values = image.values.to(self.inputs.job.device)
        if self.inputs.method == "tensordet":
            return TensorField(image.grid, values)
        return ShField(image.grid, values, order_of(len(values)))

    def _stream(
        self, writer: StepWriter, tracker: Tracker, field: Orientations, mask: Image, sample: StreamlineSample
    ) -> int:
        """Track into the TRX file, batch by batch, then copy it into the other formats; the number of seeds used."""
        job, plan = self.inputs.job, self.inputs.plan
        progress = [0, 0]
        material = plan.material(mask, self._seed_image(mask), field, self.inputs.regions)
        batches = track_until(
            tracker, field, mask.to(job.device), plan.seeding(material), plan.n_streamlines,
            job.generator(self.inputs.step),
            max_seeds=None if plan.n_streamlines is None else SEEDS_PER_STREAMLINE * plan.n_streamlines,
            n_seeds=plan.n_seeds, rules=plan.rules(material),
            on_progress=lambda found, drawn: progress.__setitem__(slice(None), [found, drawn]),
        )  # fmt: skip

        def watched() -> Iterator[Streamlines]:
            with torch.no_grad():
                for part in batches:
                    sample.add(part)
                    yield part

        grid = field.grid
        source = writer.write("tractogram", self._name(".trx"), lambda path: _write_all(path, grid, watched()))
        for extension in self.inputs.formats:
            if extension != "trx":
                copy = partial(_write_all, grid=grid, parts=stream_trx(source, grid.space))
                writer.write(extension, self._name(f".{extension}"), copy)
        return progress[1]

    def _seed_image(self, mask: Image) -> Image | None:
        if not self.inputs.tensor:
            return None
        fa, _ = read_image(Path(self.inputs.tensor["fa"]), mask.grid.space)
        return fa

    def _name(self, extension: str) -> Path:
        label = self.inputs.plan.tracker(self.inputs.method).label
        return derivative(
            self.inputs.run.entities, extension=extension, datatype="dwi", track=label, suffix="tractogram"
        )

    def _describe(
        self, writer: StepWriter, tracker: Tracker, mask: Image, sample: StreamlineSample, n_seeds: int
    ) -> None:
        plan, lengths = self.inputs.plan, sample.lengths
        parameters = plan.stated(tracker, mask.grid)
        writer.facts.update(
            method=self.inputs.method,
            citation=tracker.citation,
            n_streamlines=sample.n_seen,
            n_asked=plan.n_streamlines or sample.n_seen,
            n_seeds=n_seeds,
            median_length_mm=round(float(lengths.median()), 1) if len(lengths) else 0.0,
            seeds=plan.seeding_text(bool(self.inputs.tensor)),
            tracker=parameters,
            plan=plan.facts(),
        )
        sources = [self._field_path, *plan.files(self.inputs.regions)]
        content = sidecar.tractogram_sidecar(
            tracker.label, parameters, sources, None,
            seed_mask=Path(self.inputs.prepared["mask"]), mask=Path(self.inputs.prepared["mask"]),
            n_seeds=n_seeds, n_generated=n_seeds, n_accepted=sample.n_seen, random_seed=self.inputs.job.random_seed,
        )  # fmt: skip
        plan.complete(content, self.inputs.regions, bool(self.inputs.tensor))
        writer.write_json("tractogram-sidecar", self._name(".json"), content)


def _write_all(path: Path, grid: ImageGrid, parts: Iterator[Streamlines]) -> None:
    with stream_to(path, grid) as out:
        for part in parts:
            out.append(part)
