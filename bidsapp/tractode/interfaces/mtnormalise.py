"""Bringing the tissues of a multi-tissue deconvolution to one scale over the brain, and writing them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from nipype.interfaces.base import traits

from tractode.bids.manifest import StepWriter
from tractode.bids.names import sidecar_of
from tractode.contracts import MapSpec
from tractode.fields import Image
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets, write_with_sidecar
from tractode.io.nifti import read_image
from tractode.models import MODELS
from tractode.models.mtnormalise import normalise
from tractode.reports import figures_slices

TISSUES = ("wm", "gm", "csf")
DESC = "mtnorm"


class NormaliseTissuesInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    model = traits.Str("msmt_csd", usedefault=True, desc="the model in MODELS whose tissues these are")
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    tissues = traits.Dict(mandatory=True, desc="outputs of FitModel of that model")


class NormaliseTissues(Step):
    """Roles: ``wm``, ``gm``, ``csf`` as `FitModel` has them, ``fod`` for what follows orientations, and ``normalisation``, the field."""

    input_spec: ClassVar[type] = NormaliseTissuesInputSpec

    def needs(self) -> list[Path]:
        return [*(Path(self.inputs.tissues[name]) for name in TISSUES), Path(self.inputs.prepared["mask"])]

    def parameters(self) -> dict[str, Any]:
        return {"model": self.inputs.model}

    def compute(self, writer: StepWriter) -> None:
        run = self.inputs.run
        space, label = f"{run.name}_dwi", MODELS[self.inputs.model].label
        mask, _ = read_image(Path(self.inputs.prepared["mask"]), space)
        images = {name: read_image(Path(self.inputs.tissues[name]), space)[0] for name in TISSUES}
        # A tissue that was not modelled (grey matter, on one shell) is 0 everywhere.
        present = {name: image for name, image in images.items() if bool(image.values.any())}
        found = normalise({name: image.values for name, image in present.items()}, mask.mask)
        facts = {
            "NormalisationMethod": "smooth field in the log domain",
            "Balance": {name: round(float(factor), 6) for name, factor in found.balance.items()},
            "OutlierShare": round(float(found.outliers[mask.mask].float().mean()), 6),
        }
        for name in TISSUES:
            image = Image(mask.grid, found.tissues[name]) if name in present else images[name]
            native = json.loads(sidecar_of(Path(self.inputs.tissues[name])).read_text(encoding="utf-8"))
            content = {**native, "Description": f"{native['Description']}, on one scale over the brain", **facts}
            self._write(writer, name, image, content, label, name)
        field = MapSpec("normalisation", "Field that the tissues were divided by", "")
        content = {"Description": field.description, "Units": "arbitrary", **facts}
        # A polynomial may grow without bound beyond the brain, and maps are 0 outside their mask.
        image = Image(mask.grid, torch.where(mask.mask, found.field, 0.0)[None])
        self._write(writer, field.param, image, content, label, field.param)
        writer.roles["fod"], writer.roles["fod-sidecar"] = writer.roles["wm"], writer.roles["wm-sidecar"]
        writer.facts.update(
            mtnormalise=facts,
            sentence="Tissue densities were brought to one scale over the brain by a smooth multiplicative field",
            citation="raffelt2017",
        )
        inside = Image(mask.grid, mask.mask[None])
        figure = figures_slices.mosaic(
            image, inside, desc="mtnormalise", section="fod", run=run.name, suffix="dwimap", units="factor",
            title="Field that tissues were divided by",
            caption="Smooth, without the outlines of tissues; a factor for the receive coils that bias correction left.",
        )  # fmt: skip
        save_reportlets(writer, self.inputs.job.participant, [figure])

    def _write(
        self, writer: StepWriter, role: str, image: Image, content: dict[str, Any], label: str, param: str
    ) -> None:
        write_with_sidecar(
            writer, role, image, content, self.inputs.run.entities,
            datatype="dwi", model=label, param=param, desc=DESC, suffix="dwimap",
        )  # fmt: skip
