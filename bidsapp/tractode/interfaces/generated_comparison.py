"""Generated streamlines of a scan held against the scan itself and against the tracked ones."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from nipype.interfaces.base import traits
from torch import Tensor

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative
from tractode.evaluate.alignment import field_alignment, peaks_along
from tractode.evaluate.density import map_agreement
from tractode.evaluate.visitation import visits
from tractode.fields import Image, ImageGrid, ShField
from tractode.fields.sh import order_of
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets
from tractode.interfaces.tracking_plan import TISSUES, WHITE_MATTER_FA
from tractode.io.nifti import read_image
from tractode.io.tractogram_stream import stream_trx
from tractode.preprocess import five_tissue
from tractode.reports import figures_generation
from tractode.reports.figures_tractogram import evenly
from tractode.reports.sample import StreamlineSample

MOST_LINES = 2000
"""Lines of each method that are held against the orientations, evenly spread over the file."""


class CompareGeneratedInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    orientations = traits.Dict(mandatory=True, desc="outputs of FitModel of an orientation model, or of its refinement")
    tensor = traits.Dict(desc="outputs of FitModel of the tensor, where it was fitted")
    regions = traits.Dict({}, usedefault=True, desc="outputs of CarryRegions: tissues, where there are any")
    track = traits.Str(mandatory=True, desc="the generated tractogram's label")
    generated = traits.Dict(mandatory=True, desc="outputs of Generate")
    tracks = traits.List(traits.Str, mandatory=True, desc="labels of the tracked ones")
    tractograms = traits.List(traits.Dict, mandatory=True, desc="outputs of Track, in that order")


class CompareGenerated(Step):
    """Role: ``comparison``, a JSON file: method → how its lines lie in the scan, and how alike their density is."""

    input_spec: ClassVar[type] = CompareGeneratedInputSpec

    def _files(self) -> dict[str, Path]:
        inputs = self.inputs
        named = zip([inputs.track, *inputs.tracks], [inputs.generated, *inputs.tractograms], strict=True)
        return {label: Path(outputs["tractogram"]) for label, outputs in named}

    def needs(self) -> list[Path]:
        inputs = self.inputs
        paths = [inputs.prepared["mask"], inputs.prepared["dwiref"], inputs.orientations["fod"]]
        if TISSUES in inputs.regions:
            paths.append(inputs.regions[TISSUES])
        elif inputs.tensor:
            paths.append(inputs.tensor["fa"])
        return [*(Path(path) for path in paths), *self._files().values()]

    def parameters(self) -> dict[str, Any]:
        return {"track": self.inputs.track, "tracks": self.inputs.tracks, "lines": MOST_LINES}

    def compute(self, writer: StepWriter) -> None:
        run, space = self.inputs.run, f"{self.inputs.run.name}_dwi"
        mask, _ = read_image(Path(self.inputs.prepared["mask"]), space)
        image, _ = read_image(Path(self.inputs.orientations["fod"]), space)
        field = ShField(image.grid, image.values * mask.mask, order_of(len(image.values)))
        white = self._white(mask, space)
        found: dict[str, dict[str, Any]] = {}
        counts: dict[str, Int[Tensor, "i j k"]] = {}
        samples: dict[str, StreamlineSample] = {}
        for label, path in self._files().items():
            counts[label], samples[label] = _seen(path, mask.grid)
        judged = {label: evenly(sample.lines, MOST_LINES) for label, sample in samples.items()}
        peaks = peaks_along(field, list(judged.values()))
        for label, lines in judged.items():
            alignment = field_alignment(lines, field, peaks, white).record()
            found[label] = {
                "streamlines": samples[label].n_seen,
                "alignment": {"lines": len(lines), **alignment},
            }
        for label in self.inputs.tracks:
            agreement = asdict(map_agreement(counts[self.inputs.track], counts[label]))
            found[label]["density"] = {k: v if math.isfinite(v) else None for k, v in agreement.items()}
        self._write(writer, found)
        figures = [figures_generation.comparison_table(found, run=run.name, track=self.inputs.track)]
        if self.inputs.tracks:
            background, _ = read_image(Path(self.inputs.prepared["dwiref"]), space)
            named = [(label, sample.lines) for label, sample in samples.items()]
            beside = figures_generation.beside(named, background, mask, run=run.name, track=self.inputs.track)
            figures.insert(0, beside)
        save_reportlets(writer, self.inputs.job.participant, figures)

    def _white(self, mask: Image, space: str) -> Image:
        """White matter of the tissue map, else where FA is high, else the brain."""
        inputs = self.inputs
        if TISSUES in inputs.regions:
            tissues, _ = read_image(Path(inputs.regions[TISSUES]), space)
            return Image(tissues.grid, (five_tissue.dominant(tissues) == five_tissue.WHITE)[None])
        if not inputs.tensor:
            return mask
        fa, _ = read_image(Path(inputs.tensor["fa"]), space)
        return Image(fa.grid, fa.values[:1] > WHITE_MATTER_FA)

    def _write(self, writer: StepWriter, found: dict[str, dict[str, Any]]) -> None:
        text = (
            "Streamlines of several methods against the scan they were made for. alignment: shares of length, mean angle to the nearest "
            "of a voxel's peaks and mean FOD amplitude along the lines, each beside that of random directions at the same places; "
            "density: agreement of the number of lines in each voxel with that of the generated ones"
        )
        content = sidecar.qc_sidecar(text, self.needs(), None, Generated=self.inputs.track, Methods=found)
        name = {"datatype": "dwi", "track": self.inputs.track, "desc": "comparison", "suffix": "qc"}
        writer.write_json("comparison", derivative(self.inputs.run.entities, extension=".json", **name), content)
        writer.facts.update(comparison=found)


def _seen(path: Path, grid: ImageGrid) -> tuple[Int[Tensor, "i j k"], StreamlineSample]:
    """How many lines visit each voxel, and some of the lines."""
    count, sample = torch.zeros(grid.shape, dtype=torch.long), StreamlineSample(grid.space)
    for part in stream_trx(path, grid.space):
        count += visits(part, grid)
        sample.add(part)
    return count, sample
