"""Generating streamlines for one scan with a trained model, in the model's space and back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from nipype.interfaces.base import traits
from torch import Tensor

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative
from tractode.contracts import Rule
from tractode.errors import InputDataError
from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.fields.reorient import reoriented
from tractode.fields.sh import n_coefficients, order_of
from tractode.fields.transform import Chain, resample
from tractode.interfaces.generation_plan import Tally
from tractode.interfaces.links import Link, LinkedInputSpec, LinkedStep, failures
from tractode.interfaces.methods import method_of
from tractode.interfaces.step import save_reportlets
from tractode.interfaces.tracking_plan import TrackingPlan
from tractode.io.nifti import read_image
from tractode.io.tractogram_stream import read_groups, stream_to, stream_trx
from tractode.reports import figures_generation, figures_tractogram
from tractode.reports.sample import StreamlineSample
from tractode.tracking.rules import apply_all
from tractode.tracking.stopping import MaskLookup

DRAWN_PER_STREAMLINE = 20
"""Drawing gives up after this many lines for every one asked for."""
SPREAD, SLOPPY_SPREAD = (6, 4), (2, 2)
"""Lines of each bundle, and repeats of each, from which the spread is estimated."""


class GenerateInputSpec(LinkedInputSpec):
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    orientations = traits.Dict(mandatory=True, desc="outputs of FitModel of an orientation model, or of its refinement")
    tensor = traits.Dict(desc="outputs of FitModel of the tensor, where it was fitted")
    regions = traits.Dict({}, usedefault=True, desc="outputs of CarryRegions, where regions or tissues are asked for")
    method = traits.Str(mandatory=True, desc="a name in GENERATORS")
    plan = traits.Any(mandatory=True, desc="a TrackingPlan: numbers, lengths and rules")
    generation = traits.Any(mandatory=True, desc="a GenerationPlan")
    formats = traits.List(traits.Str, ["trx"], usedefault=True)
    template = traits.Any(mandatory=True, desc="the Template whose space the model knows")


class Generate(LinkedStep):
    """Roles: ``tractogram`` (TRX) and one more for each further format.

    Raises `InputDataError` where a registration did not pass its gate, or the model was not made for such a scan.
    """

    input_spec: ClassVar[type] = GenerateInputSpec

    def needs(self) -> list[Path]:
        inputs, plan = self.inputs, self.inputs.plan
        scan = [Path(inputs.orientations["fod"]), Path(inputs.prepared["mask"]), Path(inputs.prepared["dwiref"])]
        transforms = [Path(link.outputs[f"to-{link.label}"]) for link in self._links()]
        return [*scan, *transforms, *inputs.generation.files(inputs.method), *plan.files(inputs.regions)]

    def parameters(self) -> dict[str, Any]:
        job, inputs = self.inputs.job, self.inputs
        return {
            "method": inputs.method,
            "plan": inputs.plan.facts(),
            "generation": inputs.generation.facts(),
            "links": [link.label for link in self._links()],
            "formats": inputs.formats,
            "seed": job.random_seed,
            "device": job.device.partition(":")[0],
        }

    def compute(self, writer: StepWriter) -> None:
        inputs, device = self.inputs, self.inputs.job.device
        links = self._links()
        check_links(links)
        # The same map brings the field there and the lines back: it takes points of the template to points of the scan.
        there_to_here = Chain(tuple(link.forward() for link in links))
        model = inputs.generation.model(inputs.method).to(device)
        mask, _ = read_image(Path(inputs.prepared["mask"]), self._space)
        seen = reoriented(self._field(model.order), model.grid, there_to_here)
        brain = resample(Image(mask.grid, mask.mask[None].float()), model.grid, there_to_here)
        if reason := model.why_not(seen, Image(model.grid, brain.values > 0.5).to(device)):
            raise InputDataError(
                f"{inputs.method} was not made for this scan: {reason}",
                id="E-GENTRACT-DATA",
                path=inputs.run.path,
                needed="a whole brain, and orientations like those it was trained on",
                fix=f"leave {inputs.method} out of --tracking for this participant",
            )
        tally, sample = Tally(model.names), StreamlineSample(self._space)
        with torch.no_grad():
            context = model.context(seen)
            self._stream(writer, self._accepted(model, context, there_to_here, mask, tally), mask.grid, tally, sample)
            spread = self._spread(model, context)
        self._describe(writer, model, tally, sample, spread)
        self._show(writer, tally, sample, mask)

    def _bundles(self) -> tuple[str, ...] | None:
        return self.inputs.generation.bundles or None

    def _field(self, order: int) -> ShField:
        """The scan's orientations, to no higher order than the model knows."""
        image, _ = read_image(Path(self.inputs.orientations["fod"]), self._space)
        order = min(order, order_of(len(image.values)))
        values = image.values[: n_coefficients(order)].to(self.inputs.job.device)
        return ShField(image.grid, values, order)

    def _accepted(self, model: Any, context: Any, transform: Chain, mask: Image, tally: Tally) -> Iterator[Streamlines]:
        """Lines in the scan's space that are sure enough and pass every rule, until there are as many as were asked for."""
        plan: TrackingPlan = self.inputs.plan
        generator = self.inputs.job.generator(self.inputs.step)
        wanted = plan.n_streamlines or plan.n_seeds or 0
        most = wanted * DRAWN_PER_STREAMLINE if plan.n_streamlines else wanted
        rules, lookup = self._rules(mask), MaskLookup.of(mask, torch.device("cpu"))
        # Every line drawn is looked at here, so that the report can say how many of each bundle were not sure enough.
        drawing, found = model.with_sampling(keeps_all=True), 0
        for part in drawing.sample(context, most, generator, self._bundles()):
            plain = _plain(part)
            kept, row = self._judged(plain, transform, rules, model.sampling.min_confidence)
            if (
                len(kept) >= wanted - found
            ):  # what was drawn after the last one needed was not left out, it was not asked for
                kept, row = kept.select(torch.arange(wanted - found)), row[: wanted - found]
                plain = plain.select(torch.arange(int(row[-1]) + 1))
            tally.add_drawn(plain)
            found += len(kept)
            if len(kept):
                tally.add_kept(kept, ~lookup.contains(kept.points.mT.contiguous()))
                yield kept
            if found >= wanted:
                return
        if not found:
            raise self._nothing(tally)

    def _nothing(self, tally: Tally) -> InputDataError:
        least, n = self.inputs.generation.min_confidence, int(tally.drawn.sum())
        return InputDataError(
            f"None of {n:,} lines drawn was kept",
            id="E-GENTRACT-EMPTY",
            needed="lines that the model is sure enough of and that pass every rule",
            fix="look at the FODs and the registration in the report"
            + ("" if least is None else "; lower --gentract-min-confidence"),
        )

    def _spread(self, model: Any, context: Any) -> dict[str, float]:
        """How far repeated draws of one line lie apart, mm, for each bundle that the model can draw."""
        generator = self.inputs.job.generator(f"{self.inputs.step}-spread")
        n_lines, n_repeats = SLOPPY_SPREAD if self.inputs.job.sloppy else SPREAD
        found = model.spread(context, generator, n_lines, n_repeats).tolist()
        return {name: value for name, value in zip(model.names, found, strict=True) if math.isfinite(value)}

    def _judged(
        self, lines: Streamlines, transform: Chain, rules: list[Rule], least: float
    ) -> tuple[Streamlines, Int[Tensor, " k"]]:
        """The lines of the model's space that stay, in the scan's, and which ones they are."""
        plan: TrackingPlan = self.inputs.plan
        row = (lines.per_streamline["confidence"] >= least).nonzero().ravel()
        here = lines.select(row).moved(transform)
        if not plan.with_act:  # else the tissues cut the lines first, and judge their lengths after it
            length = here.lengths()
            fits = ((length >= (plan.min_length or 0.0)) & (length <= (plan.max_length or torch.inf))).nonzero().ravel()
            here, row = here.select(fits), row[fits]
        # Rules look at a line from its seed outwards; a generated line has none, and its middle takes that part.
        kept = apply_all(rules, _with_data(here, {**here.per_streamline, "seed_point": here.n_points // 2, "row": row}))
        names = here.per_streamline.keys()
        return _with_data(kept, {name: kept.per_streamline[name] for name in names}), kept.per_streamline["row"]

    def _rules(self, mask: Image) -> list[Rule]:
        plan, fa = self.inputs.plan, None
        image, _ = read_image(Path(self.inputs.orientations["fod"]), self._space)
        field = ShField(image.grid, image.values, order_of(len(image.values)))
        return plan.rules(plan.material(mask, fa, field, self.inputs.regions))

    def _name(self, extension: str) -> Path:
        label = method_of(self.inputs.method).label
        return derivative(
            self.inputs.run.entities, extension=extension, datatype="dwi", track=label, suffix="tractogram"
        )

    def _stream(
        self, writer: StepWriter, parts: Iterator[Streamlines], grid: ImageGrid, tally: Tally, sample: StreamlineSample
    ) -> None:
        """Into the TRX file batch by batch, with a group for every bundle, then into the other formats."""

        def write(path: Path) -> None:
            with stream_to(path, grid) as out:
                for part in parts:
                    sample.add(part)
                    out.append(part)
                out.add_groups(tally.groups())

        source = writer.write("tractogram", self._name(".trx"), write)
        for extension in self.inputs.formats:
            if extension != "trx":
                writer.write(extension, self._name(f".{extension}"), partial(_copy, source=source, grid=grid))

    def _describe(
        self, writer: StepWriter, model: Any, tally: Tally, sample: StreamlineSample, spread: dict[str, float]
    ) -> None:
        inputs, plan = self.inputs, self.inputs.plan
        n_drawn, n_kept = int(tally.drawn.sum()), int(tally.kept.sum())
        parameters, lengths = model.parameters(), sample.lengths
        generation = {
            "Weights": inputs.generation.weights_facts(inputs.method),
            "Space": model.space,
            "Registration": self._registration(),
            "MinimumConfidence": model.sampling.min_confidence,
            "BundlesAskedFor": list(inputs.generation.bundles or model.names),
            "StreamlinesLeavingBrainMask": tally.n_leaving,
            "ShareOfPointsOutsideBrainMask": round(tally.n_points_outside / max(tally.n_points, 1), 5),
            "Data": {
                "dps/confidence": "the model's probability that the line is one of this participant's, 0 to 1",
                "dps/bundle": "index into Bundles",
                "groups": "the lines of each bundle",
            },
            "Bundles": tally.rows(spread),
        }
        writer.facts.update(
            method=inputs.method,
            citation=model.citation,
            n_streamlines=n_kept,
            n_asked=plan.n_streamlines or plan.n_seeds,
            n_generated=n_drawn,
            median_length_mm=round(float(lengths.median()), 1) if len(lengths) else 0.0,
            tracker={**parameters, "TrainedOn": generation["Weights"]["TrainedOn"]},
            plan=plan.facts(),
            generation=generation,
            notes=self._notes(tally),
        )
        sources = [Path(inputs.orientations["fod"]), *plan.files(inputs.regions)]
        content = sidecar.generated_sidecar(
            model.label, parameters, sources, None, mask=Path(inputs.prepared["mask"]), generation=generation,
            n_generated=n_drawn, n_accepted=n_kept, random_seed=inputs.job.random_seed,
        )  # fmt: skip
        plan.complete_acceptance(content, inputs.regions)
        writer.write_json("tractogram-sidecar", self._name(".json"), content)

    def _registration(self) -> str:
        name = self.inputs.template.name
        return f"scan → {self.inputs.anat_modality} → {name}" if self.inputs.anat_space else f"scan → {name}, affine"

    def _notes(self, tally: Tally) -> list[dict[str, str]]:
        plan, method, found = self.inputs.plan, self.inputs.method, []
        if not self.inputs.anat_space:
            text = (
                f"{method}: without an anatomical image the scan went to {self.inputs.template.name} by an affine "
                "transform only. The model has to make up for what is left; look at the lines on the slices."
            )
            found.append({"level": "warning", "message": text})
        if plan.n_streamlines and int(tally.kept.sum()) < plan.n_streamlines:
            text = f"{method}: {int(tally.kept.sum()):,} of {int(tally.drawn.sum()):,} lines drawn were kept; {plan.n_streamlines:,} were asked for."
            found.append({"level": "warning", "message": text})
        return found

    def _show(self, writer: StepWriter, tally: Tally, sample: StreamlineSample, mask: Image) -> None:
        run, facts = self.inputs.run, writer.facts
        background, _ = read_image(Path(self.inputs.prepared["dwiref"]), self._space)
        label, section = method_of(self.inputs.method).label, figures_generation.SECTION
        options: dict[str, Any] = {"run": run.name, "n_total": sample.n_seen, "section": section}
        stills = figures_tractogram.static_views(
            sample.lines, background, mask, desc=label, title=f"Generated streamlines ({label})", **options
        )
        rotating = figures_tractogram.interactive(
            sample.lines, background, mask, desc=f"{label}3d", title="Generated streamlines in three dimensions", **options
        )  # fmt: skip
        panel = figures_generation.bundle_panel(
            tally.confidences, facts["generation"], run=run.name, track=label, method=self.inputs.method
        )
        save_reportlets(writer, self.inputs.job.participant, [*stills, rotating, *panel])


def check_links(links: list[Link]) -> None:
    """Raise `InputDataError` unless every registration has passed its gate."""
    if reasons := failures(links):
        raise InputDataError(
            f"Streamlines cannot be generated: the registration to the model's space did not pass its quality gate ({reasons})",
            id="E-GENTRACT-REGISTRATION",
            needed="a registration that passes",
            fix="look at the registration in the report; leave gentract out of --tracking for this participant",
        )


def _plain(lines: Streamlines) -> Streamlines:
    """On the CPU, with one number of each kind a line, as the file holds them."""
    data = lines.per_streamline
    kept: dict[str, Tensor] = {
        "confidence": data["confidence"].detach().cpu().float().reshape(len(lines)),
        "bundle": data["bundle"].detach().cpu().reshape(len(lines)).to(torch.int32),
    }
    return Streamlines(lines.points.detach().cpu().float(), lines.offsets.cpu(), lines.space, {}, kept)


def _with_data(lines: Streamlines, data: dict[str, Tensor]) -> Streamlines:
    return Streamlines(lines.points, lines.offsets, lines.space, lines.per_point, data)


def _copy(path: Path, source: Path, grid: ImageGrid) -> None:
    with stream_to(path, grid) as out:
        for part in stream_trx(source, grid.space):
            out.append(part)
        out.add_groups(read_groups(source))
