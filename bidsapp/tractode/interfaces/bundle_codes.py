"""Bundles of one tractogram: its lines coded and named in the codec's space, written back in the scan's, summarised and compressed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from nipype.interfaces.base import traits
from torch import Tensor

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative, sidecar_of
from tractode.errors import InputDataError
from tractode.evaluate.bundle_summary import BundleSummary
from tractode.fields.transform import Chain
from tractode.interfaces.codec_plan import BATCH, OTHER, BundleCoding, CodecPlan
from tractode.interfaces.links import Link, LinkedInputSpec, LinkedStep, failures
from tractode.interfaces.step import save_reportlets
from tractode.io import compressed_tractogram
from tractode.io.bundle_table import columns_of, table_of
from tractode.io.nifti import read_image
from tractode.io.tractogram_stream import stream_to, stream_trx
from tractode.reports import figures_bundles
from tractode.reports.sample import StreamlineSample

DRAWN = 300
"""Lines of each bundle held for the pictures."""


class EncodeBundlesInputSpec(LinkedInputSpec):
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    track = traits.Str(mandatory=True, desc="the tractogram's label")
    tractogram = traits.Dict(mandatory=True, desc="outputs of Track or Generate")
    plan = traits.Any(mandatory=True, desc="a CodecPlan")
    template = traits.Any(mandatory=True, desc="the Template whose space the codec knows")


class EncodeBundles(LinkedStep):
    """Roles: ``bundles-tractogram`` (TRX), ``bundles`` (the table), ``compressed``, and a ``…-sidecar`` for each.

    Raises `InputDataError` where a registration did not pass its gate.
    """

    input_spec: ClassVar[type] = EncodeBundlesInputSpec

    def needs(self) -> list[Path]:
        inputs = self.inputs
        transforms = [Path(link.outputs[f"from-{link.label}"]) for link in self._links()]
        return [
            Path(inputs.tractogram["tractogram"]),
            Path(inputs.prepared["dwiref"]),
            Path(inputs.prepared["mask"]),
            *transforms,
            *inputs.plan.files(),
        ]

    def parameters(self) -> dict[str, Any]:
        inputs = self.inputs
        return {
            "track": inputs.track,
            "plan": inputs.plan.facts(),
            "links": [link.label for link in self._links()],
            "device": inputs.job.device.partition(":")[0],
        }

    def compute(self, writer: StepWriter) -> None:
        links = self._links()
        check_links(links)
        there = Chain(tuple(link.backward() for link in reversed(links)))
        plan: CodecPlan = self.inputs.plan
        coding = BundleCoding(plan.codec(), plan, self.inputs.job.device)
        samples = {name: StreamlineSample(self._space, DRAWN) for name in (*coding.names, OTHER)}
        self._write_lines(writer, coding, there, samples)
        summaries, latents = coding.summaries()
        self._write_table(writer, summaries, latents)
        self._write_compressed(writer, coding)
        self._describe(writer, coding, summaries)
        self._show(writer, summaries, samples)

    def _name(self, extension: str, **entities: str) -> Path:
        named = {"datatype": "dwi", "track": self.inputs.track, "suffix": "tractogram", **entities}
        return derivative(self.inputs.run.entities, extension=extension, **named)

    def _write_lines(
        self, writer: StepWriter, coding: BundleCoding, there: Chain, samples: dict[str, StreamlineSample]
    ) -> None:
        """The lines where they were, with codes and names; those without a code are left out and counted."""
        reference, _ = read_image(Path(self.inputs.prepared["dwiref"]), self._space)
        labels = [*coding.names, OTHER]

        def write(path: Path) -> None:
            with stream_to(path, reference.grid) as out:
                for part in stream_trx(Path(self.inputs.tractogram["tractogram"]), self._space, BATCH):
                    lines = coding.add(part.moved(there), part)
                    out.append(lines)
                    bundle = lines.per_streamline.get("bundle", torch.zeros(0))
                    for number in bundle.unique().tolist():
                        samples[labels[number]].add(lines.select((bundle == number).nonzero().ravel()))
                out.add_groups(coding.groups())
                summaries, latents = coding.summaries()
                out.add_group_data(group_data(summaries, latents))

        writer.write("bundles-tractogram", self._name(".trx", desc="bundles"), write)

    def _write_table(
        self, writer: StepWriter, summaries: Sequence[BundleSummary], latents: Float[Tensor, "s d"]
    ) -> None:
        name = {"suffix": "bundles"}
        text = table_of(summaries, latents)
        writer.write("bundles", self._name(".tsv", **name), lambda path: path.write_text(text, encoding="utf-8"))
        tractogram = self.inputs.tractogram["tractogram"]
        content = sidecar.qc_sidecar(
            "Bundles of one tractogram, as a trained classifier names its lines: one row a bundle that has lines",
            [tractogram], None, **columns_of(latents.shape[1]),
            Weights=self.inputs.plan.weights_facts(), MinimumConfidence=self.inputs.plan.min_confidence,
        )  # fmt: skip
        writer.write_json("bundles-sidecar", self._name(".json", **name), content)

    def _write_compressed(self, writer: StepWriter, coding: BundleCoding) -> None:
        plan: CodecPlan = self.inputs.plan
        name = {"space": self.inputs.template.name, "desc": "compressed"}
        content = coding.compressed(plan.weights_facts()["SHA256"])
        path = writer.write(
            "compressed",
            self._name(compressed_tractogram.EXTENSION, **name),
            lambda path: compressed_tractogram.write_compressed(path, content),
        )
        facts = coding.compression(path.stat().st_size)
        writer.facts["compression"] = facts
        described = sidecar.compressed_sidecar(
            [self.inputs.tractogram["tractogram"]],
            {
                "Format": compressed_tractogram.FORMAT,
                "FormatVersion": compressed_tractogram.VERSION,
                "Codec": coding.codec.label,
                "Weights": plan.weights_facts(),
                "Space": coding.codec.space,
                **facts,
            },
        )
        writer.write_json("compressed-sidecar", self._name(".json", **name), described)

    def _describe(self, writer: StepWriter, coding: BundleCoding, summaries: Sequence[BundleSummary]) -> None:
        inputs, plan = self.inputs, self.inputs.plan
        n_named = sum(one.n_lines for one in summaries)
        facts = {
            "Weights": plan.weights_facts(),
            "Space": coding.codec.space,
            "Registration": self._registration(),
            "MinimumConfidence": plan.min_confidence,
            "SetAside": dict(coding.set_aside),
            "Named": n_named,
            "Other": coding.n_coded - n_named,
            "CodeLevels": list(coding.codec.levels),
            "Bundles": list(coding.names),
            "Data": {
                "dps/code": "the line's code in the codec's space, one column a part, from 0 to below CodeLevels",
                "dps/bundle": "index into Bundles; their number means other: no bundle, or none surely enough",
                "dps/confidence": "the calibrated probability of that name, 0 to 1",
                "dps/index": "the line's index in the tractogram that was coded",
                "groups": "the lines of each bundle",
                "dpg": "latent of the bundle's mean course, length and width in mm, mean confidence",
            },
        }
        source = Path(inputs.tractogram["tractogram"])
        content = json.loads(sidecar_of(source).read_text(encoding="utf-8"))
        content |= {
            "Description": "The same streamlines with the name of the bundle that each belongs to; points in RAS+ millimetres",
            "Sources": [sidecar.bids_uri(source, None)],
            "BundleCoding": facts,
        }
        writer.write_json("bundles-tractogram-sidecar", self._name(".json", desc="bundles"), content)
        writer.facts.update(
            track=inputs.track,
            bundles=[
                {"Name": one.name, "Streamlines": one.n_lines, "Length": one.length, "Width": one.width, "Confidence": one.confidence}
                for one in summaries
            ],
            coding=facts,
            sentence="Streamlines were coded by a trained codec with residual vector quantisation, which began from a differentiable "
            "VQ-VAE of bundles, and named after the bundles of a population atlas by a calibrated classifier on the codes",
            citation=coding.codec.citation,
            notes=self._notes(coding, n_named),
        )  # fmt: skip

    def _registration(self) -> str:
        name = self.inputs.template.name
        return f"scan → {self.inputs.anat_modality} → {name}" if self.inputs.anat_space else f"scan → {name}, affine"

    def _notes(self, coding: BundleCoding, n_named: int) -> list[dict[str, str]]:
        found = []
        if not self.inputs.anat_space:
            message = (
                "Bundles were named through an affine registration: without an anatomical image names are less sure."
            )
            found.append({"level": "warning", "message": message})
        if aside := sum(coding.set_aside.values()):
            counts = ", ".join(
                f"{number:,} {word}" for word, number in zip(_ASIDE, coding.set_aside.values(), strict=True) if number
            )
            found.append({"level": "info", "message": f"{aside:,} streamlines were set aside before coding: {counts}."})
        if coding.n_coded and not n_named:
            found.append({"level": "warning", "message": "No streamline could be named: look at the registration."})
        return found

    def _show(
        self, writer: StepWriter, summaries: Sequence[BundleSummary], samples: dict[str, StreamlineSample]
    ) -> None:
        inputs = self.inputs
        background, _ = read_image(Path(inputs.prepared["dwiref"]), self._space)
        mask, _ = read_image(Path(inputs.prepared["mask"]), self._space)
        lines = {one.name: samples[one.name].lines for one in summaries}
        figures = figures_bundles.bundle_figures(
            lines, writer.facts, background, mask, run=inputs.run.name, track=inputs.track
        )
        save_reportlets(writer, inputs.job.participant, figures)


_ASIDE = (
    "with points that are not finite",
    "of fewer than two points or shorter than 1 mm",
    "outside the template's box",
)


def check_links(links: list[Link]) -> None:
    """Raise `InputDataError` unless every registration has passed its gate."""
    if reasons := failures(links):
        raise InputDataError(
            f"Bundles cannot be named: the registration to the codec's space did not pass its quality gate ({reasons})",
            id="E-CODEC-REGISTRATION",
            needed="a registration that passes",
            fix="look at the registration in the report; leave --encode-bundles out for this participant",
        )


def group_data(
    summaries: Sequence[BundleSummary], latents: Float[Tensor, "s d"]
) -> dict[str, dict[str, Float[Tensor, " n"]]]:
    """Numbers of each TRX group."""
    return {
        one.name: {
            "latent": latent.float(),
            "length": torch.tensor([one.length]),
            "width": torch.tensor([one.width]),
            "confidence": torch.tensor([one.confidence]),
        }
        for one, latent in zip(summaries, latents, strict=True)
    }
