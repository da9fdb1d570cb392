"""Carrying a scan's maps and streamlines into a template through the whole chain of transforms, interpolated once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative, sidecar_of
from tractode.bids.templates import load_template
from tractode.fields import Image, ImageGrid, Transform
from tractode.fields.transform import Chain, resample
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets, write_with_sidecar
from tractode.io.nifti import read_image
from tractode.io.tractogram_stream import stream_to, stream_trx
from tractode.io.transforms import read_itk
from tractode.models import MODELS
from tractode.reports import figures_registration, figures_tractogram
from tractode.reports.sample import StreamlineSample


@dataclass(frozen=True)
class Link:
    """One stored registration: its outputs and facts, and the two spaces it joins (fixed → moving points)."""

    outputs: dict[str, str]
    facts: dict[str, Any]
    fixed: str
    moving: str
    label: str

    @property
    def passed(self) -> bool:
        return bool(self.facts.get("quality", {}).get("passed", False))

    def forward(self) -> Transform:
        return read_itk(Path(self.outputs[f"to-{self.label}"]), source=self.fixed, target=self.moving)

    def backward(self) -> Transform:
        return read_itk(Path(self.outputs[f"from-{self.label}"]), source=self.moving, target=self.fixed)


class NormaliseDwiInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    template = traits.Any(mandatory=True, desc="a Template")
    template_link = traits.Dict(mandatory=True, desc="outputs of the registration to the template")
    template_facts = traits.Dict(mandatory=True)
    anat_link = traits.Dict(desc="outputs of the registration to anatomy, where there is one")
    anat_facts = traits.Dict()
    anat_space = traits.Str("", usedefault=True)
    anat_modality = traits.Str("", usedefault=True)
    models = traits.List(traits.Str, mandatory=True)
    fits = traits.List(traits.Dict, mandatory=True, desc="outputs of FitModel, one for each model")
    tractograms = traits.List(traits.Dict, mandatory=True, desc="outputs of Track")
    tracks = traits.List(traits.Str, mandatory=True, desc="their track labels")
    resolution = traits.Float(0.0, usedefault=True, desc="isotropic mm; 0 keeps the template's grid")


class NormaliseDwi(Step):
    """Roles: ``<model>-<param>`` maps and ``<track>-tractogram``. Writes nothing where a registration failed its gate."""

    input_spec: ClassVar[type] = NormaliseDwiInputSpec

    def _links(self) -> list[Link]:
        """Template → … → dwi, in the order points travel."""
        inputs = self.inputs
        dwi, template = f"{inputs.run.name}_dwi", inputs.template.name
        if not inputs.anat_space:
            return [Link(inputs.template_link, inputs.template_facts, template, dwi, template)]
        return [
            Link(inputs.template_link, inputs.template_facts, template, inputs.anat_space, template),
            Link(inputs.anat_link, inputs.anat_facts, inputs.anat_space, dwi, inputs.anat_modality),
        ]

    def _scalar_maps(self) -> list[tuple[str, str, Any]]:
        """(model label, path, spec) of every map whose values do not turn with the head."""
        found = []
        for name, outputs in zip(self.inputs.models, self.inputs.fits, strict=True):
            kind = MODELS[name]
            found += [(kind.label, outputs[s.param], s) for s in kind.maps if s.invariant and s.components == "scalar"]
        return found

    def needs(self) -> list[Path]:
        transforms = [Path(link.outputs[f"{way}-{link.label}"]) for link in self._links() for way in ("to", "from")]
        maps = [Path(path) for _, path, _ in self._scalar_maps()]
        return [*transforms, *maps, *(Path(outputs["tractogram"]) for outputs in self.inputs.tractograms)]

    def parameters(self) -> dict[str, Any]:
        return {
            "template": self.inputs.template.name,
            "resolution": self.inputs.resolution,
            "models": self.inputs.models,
            "tracks": self.inputs.tracks,
        }

    def compute(self, writer: StepWriter) -> None:
        links = self._links()
        failed = [link for link in links if not link.passed]
        if failed:
            reasons = "; ".join(
                f"{link.label}: {link.facts.get('quality', {}).get('reason', 'no verdict')}" for link in failed
            )
            writer.facts.update(
                skipped=f"No outputs in {self.inputs.template.name}: the registration did not pass its quality gate ({reasons})"
            )
            return
        fixed = load_template(self.inputs.template, contrast="T1w")
        grid = fixed.image.grid.resampled(self.inputs.resolution) if self.inputs.resolution else fixed.image.grid
        forward = Chain(tuple(link.forward() for link in links))
        backward = Chain(tuple(link.backward() for link in reversed(links)))
        maps = self._write_maps(writer, grid, forward)
        self._write_tractograms(writer, grid, backward, fixed.image)
        if "tensor-fa" in maps:
            image, mask = on_grid(fixed.image, grid), on_grid(fixed.mask, grid)
            figure = figures_registration.flicker(
                image, maps["tensor-fa"], [(mask, "#ff5252", f"border of the brain in {self.inputs.template.name}")],
                fixed_name=self.inputs.template.name, moving_name="FA of the participant",
                title=f"FA in {self.inputs.template.name}", desc=f"{self.inputs.template.name}fa",
                run=self.inputs.run.name, mask=mask,
            )  # fmt: skip
            save_reportlets(writer, self.inputs.job.participant, [figure])

    def _write_maps(self, writer: StepWriter, grid: ImageGrid, forward: Transform) -> dict[str, Image]:
        run, template = self.inputs.run, self.inputs.template.name
        written = {}
        for label, path, spec in self._scalar_maps():
            image, _ = read_image(Path(path), f"{run.name}_dwi")
            moved = resample(image, grid, forward)
            content = sidecar.map_sidecar(spec, label, {}, [Path(path)], None, space=template)
            write_with_sidecar(
                writer, f"{label}-{spec.param}", moved, content, run.entities,
                datatype="dwi", space=template, model=label, param=spec.param, suffix="dwimap",
            )  # fmt: skip
            written[f"{label}-{spec.param}"] = moved
        return written

    def _write_tractograms(self, writer: StepWriter, grid: ImageGrid, backward: Transform, background: Image) -> None:
        run, template, job = self.inputs.run, self.inputs.template.name, self.inputs.job
        for track, outputs in zip(self.inputs.tracks, self.inputs.tractograms, strict=True):
            source, sample = Path(outputs["tractogram"]), StreamlineSample(template)
            name = {"datatype": "dwi", "space": template, "track": track, "suffix": "tractogram"}
            write = partial(_write_moved, source=source, grid=grid, backward=backward, sample=sample)
            writer.write(f"{track}-tractogram", derivative(run.entities, extension=".trx", **name), write)
            writer.write_json(
                f"{track}-tractogram-sidecar",
                derivative(run.entities, extension=".json", **name),
                _moved_sidecar(Path(outputs["tractogram"]), template),
            )
            figures = figures_tractogram.static_views(
                sample.lines, background, run=run.name, desc=f"{template}{track}",
                title=f"Streamlines in {template} ({track})", n_total=sample.n_seen,
            )  # fmt: skip
            save_reportlets(writer, job.participant, figures)


def on_grid(image: Image, grid: ImageGrid) -> Image:
    """An image on another grid of its own space."""
    return Image(grid, image.sample(grid.centres()).permute(3, 0, 1, 2))


def _write_moved(path: Path, source: Path, grid: ImageGrid, backward: Transform, sample: StreamlineSample) -> None:
    """Streamlines of a file carried through a transform batch by batch; some of them are kept to be shown."""
    with stream_to(path, grid) as out:
        for part in stream_trx(source, backward.source):
            moved = part.moved(backward)
            out.append(moved)
            sample.add(moved)


def _moved_sidecar(source: Path, template: str) -> dict[str, Any]:
    """The tractogram's own sidecar, with the space it was carried into."""
    content = json.loads(sidecar_of(source).read_text(encoding="utf-8"))
    return {
        **content,
        "Description": f"Streamlines carried into {template}; tracked in the scan's own space. Points in RAS+ millimetres",
        "Sources": [sidecar.bids_uri(source, None)],
    }
