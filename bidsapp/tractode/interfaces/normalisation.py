"""Carrying a scan's maps, orientations and streamlines into another space through the whole chain of transforms, interpolated once.

The space is a template or the participant's own anatomical image.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from nipype.interfaces.base import isdefined, traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative, parse, sidecar_of
from tractode.bids.templates import load_template
from tractode.contracts import MapSpec
from tractode.fields import Image, ImageGrid, ShField, TensorField, Transform
from tractode.fields.reorient import reoriented, reoriented_axes
from tractode.fields.sh import order_of
from tractode.fields.transform import Chain, resample
from tractode.interfaces.links import LinkedInputSpec, LinkedStep
from tractode.interfaces.step import save_reportlets, write_with_sidecar
from tractode.io.nifti import read_image
from tractode.io.tractogram_stream import read_groups, stream_to, stream_trx
from tractode.models import MODELS
from tractode.ops.reorient_fod import Modulation
from tractode.reports import figures_glyphs, figures_registration, figures_tractogram
from tractode.reports.sample import StreamlineSample


@dataclass(frozen=True)
class Target:
    """A space that outputs are carried into: its image and brain, and the grids of scalar maps and of orientations."""

    name: str
    image: Image
    mask: Image
    maps: ImageGrid
    orientations: ImageGrid


class NormaliseDwiInputSpec(LinkedInputSpec):
    """Without a template the target is the anatomical image."""

    prepared_anat = traits.Dict(desc="outputs of PrepareAnat, where the target is the anatomical image")
    normalised_anat = traits.Dict(
        desc="outputs of NormaliseAnat: the brain mask, where the target is the anatomical image"
    )
    prepared = traits.Dict(desc="outputs of PrepareDwi: the scan's grid, where there are no maps")
    models = traits.List(traits.Str, mandatory=True)
    fits = traits.List(traits.Dict, mandatory=True, desc="outputs of FitModel, one for each model")
    tractograms = traits.List(traits.Dict, mandatory=True, desc="outputs of Track")
    tracks = traits.List(traits.Str, mandatory=True, desc="their track labels")
    resolution = traits.Float(0.0, usedefault=True, desc="isotropic mm; 0 lets the target and the scan decide")
    modulation = traits.Str("none", usedefault=True, desc="of orientation distributions")


class NormaliseDwi(LinkedStep):
    """Roles: ``<model>-<param>`` maps and ``<track>-tractogram``. Writes nothing where a registration failed its gate."""

    input_spec: ClassVar[type] = NormaliseDwiInputSpec

    @property
    def _name(self) -> str:
        return self.inputs.template.name if isdefined(self.inputs.template) else self.inputs.anat_modality

    def _maps(self) -> list[tuple[str, Path, MapSpec]]:
        """(model label, path, spec) of every map that can be carried: scalars, and what is turned on the way."""
        found = []
        for name, outputs in zip(self.inputs.models, self.inputs.fits, strict=True):
            kind = MODELS[name]
            specs = (s for s in kind.maps if s.param in outputs and (s.invariant or can_turn(s)))
            found += [(kind.label, Path(outputs[s.param]), s) for s in specs]
        return found

    def needs(self) -> list[Path]:
        transforms = [Path(link.outputs[f"{way}-{link.label}"]) for link in self._links() for way in ("to", "from")]
        anat = (
            []
            if isdefined(self.inputs.template)
            else [self.inputs.prepared_anat["anat"], self.inputs.normalised_anat["mask"]]
        )
        tractograms = [outputs["tractogram"] for outputs in self.inputs.tractograms]
        return [*transforms, *self._scan(), *(Path(path) for path in [*anat, *tractograms])]

    def _scan(self) -> list[Path]:
        """Every map, or the scan itself: the first of them says what its grid is."""
        return [path for _, path, _ in self._maps()] or [Path(self.inputs.prepared["dwiref"])]

    def parameters(self) -> dict[str, Any]:
        return {
            "space": self._name,
            "resolution": self.inputs.resolution,
            "modulation": self.inputs.modulation,
            "models": self.inputs.models,
            "tracks": self.inputs.tracks,
            "device": self.inputs.job.device.partition(":")[0],
        }

    def compute(self, writer: StepWriter) -> None:
        links = self._links()
        failed = [link for link in links if not link.passed]
        if failed:
            reasons = "; ".join(
                f"{link.label}: {link.facts.get('quality', {}).get('reason', 'no verdict')}" for link in failed
            )
            writer.facts.update(
                skipped=f"No outputs in {self._name}: the registration did not pass its quality gate ({reasons})"
            )
            return
        target = self._target()
        forward = Chain(tuple(link.forward() for link in links))
        backward = Chain(tuple(link.backward() for link in reversed(links)))
        maps = self._write_maps(writer, target, forward)
        self._write_tractograms(writer, target, backward)
        kinds = {spec.components for _, _, spec in self._maps()}
        cited = next((_CITED[kind] for kind in ("sh", "tensor") if kind in kinds), None)
        if cited is not None:
            writer.facts.update(sentence=cited[0], citation=cited[1])
        if "tensor-fa" in maps:
            image, mask = on_grid(target.image, target.maps), on_grid(target.mask, target.maps)
            figure = figures_registration.flicker(
                image, maps["tensor-fa"], [(mask, "#ff5252", f"border of the brain in {target.name}")],
                fixed_name=target.name, moving_name="FA of the participant",
                title=f"FA in {target.name}", desc=f"{target.name}fa",
                run=self.inputs.run.name, mask=mask,
            )  # fmt: skip
            save_reportlets(writer, self.inputs.job.participant, [figure])

    def _target(self) -> Target:
        inputs = self.inputs
        scan = read_image(self._scan()[0], "")[0].grid
        size = math.prod(scan.voxel_sizes) ** (1 / 3)
        if isdefined(inputs.template):
            fixed = load_template(inputs.template, contrast="T1w")
            maps = fixed.image.grid.resampled(inputs.resolution) if inputs.resolution else fixed.image.grid
            # Many volumes on voxels far smaller than the scan's would be large files of nothing but interpolation.
            is_finer = not inputs.resolution and math.prod(maps.voxel_sizes) < math.prod(scan.voxel_sizes) / 2
            return Target(
                inputs.template.name, fixed.image, fixed.mask, maps, maps.resampled(size) if is_finer else maps
            )
        image, _ = read_image(Path(inputs.prepared_anat["anat"]), inputs.anat_space)
        mask, _ = read_image(Path(inputs.normalised_anat["mask"]), inputs.anat_space)
        grid = image.grid.resampled(inputs.resolution or size)
        return Target(inputs.anat_modality, image, mask, grid, grid)

    @property
    def _reference(self) -> str | None:
        """What the space is, where BIDS does not know its name."""
        if isdefined(self.inputs.template):
            return None
        return sidecar.bids_uri(self.inputs.prepared_anat["anat"], None)

    def _write_maps(self, writer: StepWriter, target: Target, forward: Transform) -> dict[str, Image]:
        """Every map; the scalars are given back for the figures."""
        run, written = self.inputs.run, {}
        for label, path, spec in self._maps():
            image, _ = read_image(path, f"{run.name}_dwi")
            moved, facts = self._moved(writer, spec, image, target, forward)
            native = json.loads(sidecar_of(path).read_text(encoding="utf-8"))
            content = sidecar.map_sidecar(
                spec, label, native.get("Model", {}).get("Parameters", {}), [path], None,
                response=native.get("ResponseFunction", {}).get("Coefficients"),
                sh_order=order_of(image.values.shape[0]) if spec.components == "sh" else None,
                space=target.name, spatial_reference=self._reference,
            )  # fmt: skip
            desc = _desc_of(path)
            write_with_sidecar(
                writer, f"{label}-{spec.param}{f'-{desc}' if desc else ''}", moved, content | facts, run.entities,
                datatype="dwi", space=target.name, model=label, param=spec.param, suffix="dwimap",
                **({"desc": desc} if desc else {}),
            )  # fmt: skip
            if spec.components == "scalar":
                written[f"{label}-{spec.param}"] = moved
        return written

    def _moved(
        self, writer: StepWriter, spec: MapSpec, image: Image, target: Target, forward: Transform
    ) -> tuple[Image, dict[str, Any]]:
        """A map in the target's space, and what the sidecar has to say of how it was turned."""
        if spec.components == "scalar":
            return resample(image, target.maps, forward), {}
        moved, facts = turned(
            spec, image.to(self.inputs.job.device), target.orientations, forward, self.inputs.modulation
        )
        moved = moved.to("cpu")
        if spec.components == "sh":
            field = ShField(moved.grid, moved.values, order_of(moved.values.shape[0]))
            background, mask = on_grid(target.image, moved.grid), on_grid(target.mask, moved.grid)
            figures = figures_glyphs.fod_glyphs(
                field, background, mask, run=self.inputs.run.name, section="registration",
                desc=f"{target.name}{spec.param}", space=target.name,
            )  # fmt: skip
            save_reportlets(writer, self.inputs.job.participant, figures)
        return moved, facts

    def _write_tractograms(self, writer: StepWriter, target: Target, backward: Transform) -> None:
        run, space, job = self.inputs.run, target.name, self.inputs.job
        for track, outputs in zip(self.inputs.tracks, self.inputs.tractograms, strict=True):
            source, sample = Path(outputs["tractogram"]), StreamlineSample(target.image.grid.space)
            name = {"datatype": "dwi", "space": space, "track": track, "suffix": "tractogram"}
            write = partial(_write_moved, source=source, grid=target.maps, backward=backward, sample=sample)
            writer.write(f"{track}-tractogram", derivative(run.entities, extension=".trx", **name), write)
            writer.write_json(
                f"{track}-tractogram-sidecar",
                derivative(run.entities, extension=".json", **name),
                _moved_sidecar(Path(outputs["tractogram"]), space, self._reference),
            )
            figures = figures_tractogram.static_views(
                sample.lines, target.image, run=run.name, desc=f"{space}{track}",
                title=f"Streamlines in {space} ({track})", n_total=sample.n_seen,
            )  # fmt: skip
            save_reportlets(writer, job.participant, figures)


_TURNED = {"tensor", "sh", "unit3vector"}
_CITED = {
    "sh": (
        "Carried into other spaces, orientation distributions were reoriented with apodised point-spread functions and tensors "
        "by preservation of principal directions",
        "raffelt2012",
    ),
    "tensor": (
        "Carried into other spaces, tensors were reoriented by preservation of principal directions",
        "alexander2001",
    ),
}


def _desc_of(path: Path) -> str | None:
    """The ``desc`` of a map's name, as that of normalised tissues."""
    parsed = parse(path)
    return parsed[0].get("desc") if parsed else None


def can_turn(spec: MapSpec) -> bool:
    """Whether a map that changes when the head turns can be carried into another space."""
    return spec.components in _TURNED


def turned(
    spec: MapSpec, image: Image, grid: ImageGrid, forward: Transform, modulation: Modulation
) -> tuple[Image, dict[str, Any]]:
    """A map of tensors, directions or harmonics carried onto a grid, and the sidecar's ``Reorientation``."""
    if spec.components == "sh":
        field = ShField(image.grid, image.values, order_of(image.values.shape[0]))
        coeffs = reoriented(field, grid, forward, modulation=modulation).coeffs
        method = {"Method": "apodised point-spread functions", "Modulation": modulation, "DOI": "10.1002/mrm.23058"}
        return Image(grid, coeffs), {"Reorientation": method}
    doi = "10.1109/42.963816"
    if spec.components == "tensor":
        components = reoriented(TensorField(image.grid, image.values), grid, forward).components
        return Image(grid, components), {
            "Reorientation": {"Method": "preservation of principal directions", "DOI": doi}
        }
    return reoriented_axes(image, grid, forward), {
        "Reorientation": {"Method": "local linear map, normalised", "DOI": doi}
    }


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
        out.add_groups(read_groups(source))


def _moved_sidecar(source: Path, space: str, reference: str | None) -> dict[str, Any]:
    """The tractogram's own sidecar, with the space it was carried into."""
    content = json.loads(sidecar_of(source).read_text(encoding="utf-8"))
    made = "generated for" if "StreamlineGeneration" in content else "tracked in"
    return {
        **content,
        "Description": f"Streamlines carried into {space}; {made} the scan's own space. Points in RAS+ millimetres",
        "Sources": [sidecar.bids_uri(source, None)],
        **({"SpatialReference": reference} if reference else {}),
    }
