"""Bringing regions and tissue maps of the template or of the anatomy into a scan, each interpolated once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.templates import load_tissues, tissue_files
from tractode.errors import InputDataError
from tractode.fields import Image, ImageGrid, Transform
from tractode.fields.transform import Chain, resample
from tractode.interfaces.links import Link, LinkedInputSpec, LinkedStep, failures
from tractode.interfaces.step import save_reportlets, write_with_sidecar
from tractode.io.nifti import read_image
from tractode.preprocess import five_tissue
from tractode.reports import figures_tissues

TISSUE_SIZE_MM = 1.0


class CarryRegionsInputSpec(LinkedInputSpec):
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    tissues = traits.Enum(
        "none", "labels", "five_tissue", "template", "segment", usedefault=True, desc="what tissues come from"
    )
    segmented = traits.Dict(desc="outputs of SegmentAnat, for segment")
    tissue_path = traits.Str("", usedefault=True, desc="TissueSource.path, for labels and five_tissue")
    regions = traits.Dict(desc="name → path of a mask in the template's space: include1, exclude1 …")


class CarryRegions(LinkedStep):
    """Roles: ``tissues`` (maps in the scan's space, 1 mm) and ``region-<name>`` (masks on the scan's grid).

    Raises `InputDataError` where a registration it rests on did not pass its gate, or a region misses the scan.
    """

    input_spec: ClassVar[type] = CarryRegionsInputSpec

    def _way(self) -> list[Link]:
        """dwi → anatomy → template, the way images are resampled onto the scan; no farther than is needed."""
        needs_template = bool(self.inputs.regions) or self.inputs.tissues == "template"
        return self._links()[::-1] if needs_template else self._to_anat()

    def needs(self) -> list[Path]:
        inputs = self.inputs
        paths = [Path(inputs.prepared["dwiref"]), Path(inputs.prepared["mask"])]
        paths += [Path(link.outputs[f"from-{link.label}"]) for link in self._way()]
        paths += [Path(path) for _, path in sorted((inputs.regions or {}).items())]
        if inputs.tissues == "template":
            return [*paths, *inputs.template.paths, *tissue_files(inputs.template).values()]
        if inputs.tissues == "segment":
            return [*paths, *([self._segmented] if self._segmented else [])]
        return [*paths, Path(inputs.tissue_path)] if inputs.tissues != "none" else paths

    @property
    def _segmented(self) -> Path | None:
        """The five-tissue image of the anatomy; none where it could not be segmented."""
        found = (self.inputs.segmented or {}).get("five-tissue")
        return None if found is None else Path(found)

    def parameters(self) -> dict[str, Any]:
        return {
            "tissues": self.inputs.tissues,
            "regions": sorted(self.inputs.regions or {}),
            "template": self.inputs.template.name if self.inputs.template else "",
            "links": [link.label for link in self._way()],
            "tissue_size": TISSUE_SIZE_MM,
        }

    def compute(self, writer: StepWriter) -> None:
        check_links(self._way())
        background, _ = read_image(Path(self.inputs.prepared["dwiref"]), self._space)
        mask, _ = read_image(Path(self.inputs.prepared["mask"]), self._space)
        figures = []
        run = self.inputs.run.name
        cites = [] if self.inputs.tissues == "none" else ["Smith2012"]
        cites += ["Fischl2002"] if self.inputs.tissues == "labels" else []
        writer.facts.update(tissues=self.inputs.tissues, regions={}, cites=cites)
        if self.inputs.tissues != "none":
            tissues = self._tissues(writer, background.grid)
            figures.append(
                figures_tissues.borders(
                    background, mask, tissue_borders(tissues), title="Tissues", desc="tissues", run=run,
                    caption="Five-tissue maps that constrain tractography, over the mean b=0 image.",
                )
            )  # fmt: skip
        regions = {name: self._region(writer, name, path, background.grid) for name, path in self._named()}
        if regions:
            figures.append(
                figures_tissues.borders(
                    background, mask, regions, title="Regions", desc="regions", run=run,
                    caption=f"Regions of {self.inputs.template.name} brought into the scan.",
                )
            )  # fmt: skip
        save_reportlets(writer, self.inputs.job.participant, figures)

    def _named(self) -> list[tuple[str, str]]:
        return sorted((self.inputs.regions or {}).items())

    def _tissues(self, writer: StepWriter, grid: ImageGrid) -> Image:
        inputs = self.inputs
        if inputs.tissues == "template":
            source, sources = load_tissues(inputs.template), list(tissue_files(inputs.template).values())
            text = (
                f"grey- and white-matter maps of {inputs.template.name} (coarse; subcortical grey matter by its place)"
            )
        else:
            path = self._segmented if inputs.tissues == "segment" else Path(inputs.tissue_path)
            if path is None:
                raise InputDataError(
                    "The anatomical image could not be segmented, and --act needs its tissues",
                    id="E-TISSUE-SEGMENT",
                    needed="a registration to the template that passes, and an image in which the tissues differ",
                    fix="look at the registration and the notes in the report; use --act labels or template, or none",
                )
            given, _ = read_image(path, inputs.anat_space or self._space)
            is_made = inputs.tissues == "labels"
            source, sources = (
                (five_tissue.from_labels(given) if is_made else five_tissue.checked(given, str(path))),
                [path],
            )
            text = "FreeSurfer labels" if is_made else "a five-tissue image that was given"
            text = f"the tissues of the {inputs.anat_modality}" if inputs.tissues == "segment" else text
        links = self._links()[::-1] if inputs.tissues == "template" else self._to_anat()
        maps = five_tissue.filled(onto(source, grid.resampled(TISSUE_SIZE_MM), links))
        content = sidecar.qc_sidecar(
            f"Fractions of five tissues in the space of the scan, from {text}", sources, inputs.job.bids_dir,
            LabelMap=list(five_tissue.LABELS),
        )  # fmt: skip
        write_with_sidecar(
            writer, "tissues", maps, content, inputs.run.entities, datatype="dwi", desc="5tt", suffix="probseg"
        )
        return maps

    def _region(self, writer: StepWriter, name: str, path: str, grid: ImageGrid) -> Image:
        inputs = self.inputs
        given, _ = read_image(Path(path), inputs.template.name)
        soft = onto(Image(given.grid, (given.values[:1] != 0).float()), grid, self._links()[::-1])
        region = Image(grid, soft.values > 0.5)
        count = int(region.mask.sum())
        if count == 0:
            raise InputDataError(
                f"The region {Path(path).name} has no voxel in the scan {inputs.run.name}",
                id="E-REGION-EMPTY",
                path=path,
                needed=f"a mask in {inputs.template.name} that overlaps the scan, a voxel of it or more",
                fix="look at the registration in the report; check the space of the mask, and make it larger",
            )
        content = sidecar.mask_sidecar(
            [Path(path)], inputs.job.bids_dir, f"Region {name} of {inputs.template.name} in the scan"
        )
        write_with_sidecar(
            writer, f"region-{name}", region, content | {"Type": "ROI"}, inputs.run.entities,
            datatype="dwi", desc=name, suffix="mask",
        )  # fmt: skip
        writer.facts["regions"][name] = {"file": Path(path).name, "voxels": count}
        return region


def check_links(links: list[Link]) -> None:
    """Raise `InputDataError` unless every registration has passed its gate."""
    if reasons := failures(links):
        raise InputDataError(
            f"Tissues and regions cannot be brought into the scan: the registration did not pass its quality gate ({reasons})",
            id="E-REGION-REGISTRATION",
            needed="a registration that passes",
            fix="look at the registration in the report; track this participant without --act and regions",
        )


def onto(image: Image, grid: ImageGrid, links: list[Link]) -> Image:
    """An image at the end of the links on a grid at their beginning, linear; of the same space where there are none."""
    if not links:
        return Image(grid, image.sample(grid.centres()).permute(3, 0, 1, 2))
    steps: list[Transform] = [link.backward() for link in links]
    return resample(image, grid, Chain(tuple(steps)))


def tissue_borders(tissues: Image) -> dict[str, Image]:
    """What the report outlines."""
    kind = five_tissue.dominant(tissues)[None]
    named = {
        "white matter": five_tissue.WHITE,
        "subcortical grey matter": five_tissue.SUBCORTICAL,
        "CSF": five_tissue.CSF,
        "pathological tissue": five_tissue.PATHOLOGICAL,
    }
    found = {name: Image(tissues.grid, kind == number) for name, number in named.items()}
    return {name: image for name, image in found.items() if bool(image.mask.any())}
