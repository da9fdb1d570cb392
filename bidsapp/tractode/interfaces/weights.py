"""Weights for the streamlines of one tractogram, so that it explains the scan it was made from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative
from tractode.errors import InputDataError
from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.fields.sh import order_of
from tractode.interfaces.scan import load_scan
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets, write_with_sidecar
from tractode.io.nifti import read_image
from tractode.io.tractogram_stream import read_groups, stream_to, stream_trx
from tractode.models.csd import CSD
from tractode.reports import figures_weights
from tractode.tracking.streamline_weights import (
    CITATIONS,
    FodTarget,
    Regularisation,
    SignalTarget,
    WeightFit,
    fit_weights,
)

UNITS = {"fod": "factor", "signal": "mm^2"}
_SENTENCES = {
    "fod": "Streamlines were weighted so that their density explains the integrals of the lobes of the orientation "
    "distributions, all weights being moved together along the gradient",
    "signal": "Streamlines were weighted, none below zero, so that the response along them and an isotropic part of each "
    "voxel explain the diffusion signal",
}
_MAPS = {
    "residual": {
        "fod": ("Explained minus measured fibre density, summed over the fixels of a voxel", "arbitrary"),
        "signal": ("Root mean squared error of the signal that the weighted streamlines explain", "arbitrary"),
    },
    "explained": {
        "fod": ("Share of a voxel's squared fibre densities that the weighted streamlines explain", "fraction"),
        "signal": ("Share of the signal's variance over directions that the weighted streamlines explain", "fraction"),
    },
}


class WeightStreamlinesInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    prepared = traits.Dict(mandatory=True, desc="outputs of PrepareDwi")
    orientations = traits.Dict(mandatory=True, desc="outputs of FitModel of an orientation model")
    tractogram = traits.Dict(mandatory=True, desc="outputs of Track")
    track = traits.Str(mandatory=True, desc="the tracker's label")
    model = traits.Enum("fod", "signal", mandatory=True, desc="what the weights are to explain")
    formats = traits.List(traits.Str, ["trx"], usedefault=True)


class WeightStreamlines(Step):
    """Roles: ``tractogram`` (TRX with ``dps/weights``), ``residual``, ``explained``, and ``weights`` where TCK is asked for.

    BEP046 has no place for a value of each streamline yet: the same tractogram is written again as
    ``…_track-<label>_desc-weighted_tractogram.trx``, whose data per streamline hold the weights, in the order of the lines
    of the tractogram without ``desc``. Since TCK holds no such data, the text beside it (``.txt``, one number a line, as
    MRtrix3's ``-tck_weights_in`` reads it) belongs to the unweighted ``.tck``.
    """

    input_spec: ClassVar[type] = WeightStreamlinesInputSpec

    def needs(self) -> list[Path]:
        paths = [self.inputs.tractogram["tractogram"], self.inputs.prepared["mask"], self.inputs.prepared["dwiref"]]
        if self.inputs.model == "fod":
            paths.append(self.inputs.orientations["fod"])
        else:
            paths += [
                self.inputs.orientations["fod-sidecar"],
                *(self.inputs.prepared[r] for r in ("dwi", "bval", "bvec")),
            ]
        return [Path(path) for path in paths]

    def parameters(self) -> dict[str, Any]:
        return {"model": self.inputs.model, "track": self.inputs.track, "formats": self.inputs.formats}

    def compute(self, writer: StepWriter) -> None:
        run = self.inputs.run
        space = f"{run.name}_dwi"
        source = Path(self.inputs.tractogram["tractogram"])
        mask, _ = read_image(Path(self.inputs.prepared["mask"]), space)
        target = self._fod(mask, space) if self.inputs.model == "fod" else self._signal(space)
        if next((True for part in stream_trx(source, space) if len(part)), None) is None:
            raise InputDataError(
                "The tractogram has no streamlines to weight",
                id="E-WEIGHTS-EMPTY",
                path=source,
                needed="at least one streamline",
                fix="look at the tractogram's report, or leave --streamline-weights out",
            )
        fit = fit_weights(stream_trx(source, space), target)
        self._write(writer, fit, source, mask.grid)
        background, _ = read_image(Path(self.inputs.prepared["dwiref"]), space)
        figures = figures_weights.weights_panel(fit, background, mask, run=run.name, track=self.inputs.track)
        save_reportlets(writer, self.inputs.job.participant, figures)

    def _fod(self, mask: Image, space: str) -> FodTarget:
        image, _ = read_image(Path(self.inputs.orientations["fod"]), space)
        return FodTarget(ShField(image.grid, image.values, order_of(len(image.values))), mask)

    def _signal(self, space: str) -> SignalTarget:
        """The shell of the deconvolution and its response, as the sidecar of the FOD says."""
        scan = load_scan(self.inputs.prepared, space, "cpu")
        sidecar_path = Path(self.inputs.orientations["fod-sidecar"])
        response = json.loads(sidecar_path.read_text(encoding="utf-8")).get("ResponseFunction")
        shell = CSD.shell(scan.gtab)
        rows = response["Coefficients"] if response is not None else []
        # One row of the only shell, or one for b=0 and each shell in their order.
        numbers = (
            [n for n, (_, index) in enumerate(scan.gtab.shells(), 1) if torch.equal(index, shell)]
            if shell is not None
            else []
        )
        row = 0 if len(rows) == 1 else numbers[0] if numbers and len(rows) == len(scan.gtab.shells()) + 1 else None
        if row is None or shell is None:
            raise InputDataError(
                "The FOD says nothing of a response function, without which streamlines predict no signal",
                id="E-WEIGHTS-RESPONSE",
                path=sidecar_path,
                needed="an orientation model with a response for the scan's shells (csd, msmt_csd)",
                fix="use --streamline-weights fod",
            )
        coefficients = torch.tensor(rows[row], dtype=torch.float64)
        return SignalTarget(scan, coefficients, shell)

    def _write(self, writer: StepWriter, fit: WeightFit, source: Path, grid: ImageGrid) -> None:
        run, model = self.inputs.run, self.inputs.model
        name = {"datatype": "dwi", "track": self.inputs.track, "desc": "weighted"}
        write = partial(_write_weighted, source=source, fit=fit, grid=grid)
        writer.write("tractogram", derivative(run.entities, extension=".trx", suffix="tractogram", **name), write)
        if "tck" in self.inputs.formats:
            text = "".join(f"{weight:.8g}\n" for weight in fit.weights.tolist())
            relative = derivative(run.entities, extension=".txt", suffix="tractogram", **name)
            writer.write("weights", relative, lambda path: path.write_text(text, encoding="ascii"))
        facts = self._facts(fit)
        content = json.loads(Path(self.inputs.tractogram["tractogram-sidecar"]).read_text(encoding="utf-8"))
        # What made the lines stays true of them; what is new is where the weights come from.
        content["Description"] = (
            "The streamlines of the tractogram without desc, with a weight each (data per streamline)"
        )
        content["Sources"] = [sidecar.bids_uri(path, None) for path in self.needs()]
        content["StreamlineWeights"] = {"Data": "dps/weights", "Units": UNITS[model], **facts}
        writer.write_json(
            "tractogram-sidecar", derivative(run.entities, extension=".json", suffix="tractogram", **name), content
        )
        for param, image in fit.maps.items():
            description, units = _MAPS[param][model]
            content = sidecar.qc_sidecar(description, self.needs(), None, Units=units)
            write_with_sidecar(writer, param, image, content, run.entities, suffix="dwimap", param=param, **name)
        writer.facts.update(weights=facts, sentence=_SENTENCES[model], citation=CITATIONS[model])

    def _facts(self, fit: WeightFit) -> dict[str, Any]:
        regularisation = Regularisation()
        rounded = {
            when: {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in numbers.items()}
            for when, numbers in fit.statistics().items()
        }
        return {
            "Model": fit.model,
            "Proportionality": float(f"{fit.mu:.6g}"),
            "Regularisation": {"Tikhonov": regularisation.tikhonov, "Variation": regularisation.variation},
            "Iterations": fit.n_iterations,
            "Converged": fit.converged,
            "ShareOfZeroWeights": round(float((fit.weights == 0).double().mean()), 4),
            "Fit": rounded,
        }


def _write_weighted(path: Path, source: Path, fit: WeightFit, grid: ImageGrid) -> None:
    with stream_to(path, grid) as out:
        for part in _weighted(stream_trx(source, grid.space), fit):
            out.append(part)
        out.add_groups(read_groups(source))


def _weighted(parts: Iterator[Streamlines], fit: WeightFit) -> Iterator[Streamlines]:
    """The lines as they are, each with its weight (float32)."""
    first = 0
    for part in parts:
        weights = fit.weights[first : first + len(part)].float()
        first += len(part)
        data = {**part.per_streamline, "weights": weights}
        yield Streamlines(part.points, part.offsets, part.space, part.per_point, data)
