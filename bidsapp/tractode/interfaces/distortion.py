"""The magnetic field that distorts a scan: from a reversed pair, a field map or the anatomy; judged before it is used.

The images are read from the dataset itself, not from what other runs left: a run that fails does not take its partner along.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.found import Correction, DwiRun, EncodedFile, FieldmapFile
from tractode.bids.manifest import StepWriter
from tractode.bids.phase_encoding import NOMINAL_READOUT
from tractode.errors import InputDataError, TractodeError
from tractode.fields import Affine, Image
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets, write_with_sidecar
from tractode.io.dwi import IngestPolicy
from tractode.io.gradient_text import read_bvals
from tractode.io.gradients import parse_gradients
from tractode.io.nifti import read_image, read_volume
from tractode.preprocess import distortion
from tractode.preprocess.distortion import Judgement
from tractode.preprocess.field_map import as_hertz, as_radians, field_from_phase, field_from_two
from tractode.preprocess.mask import brain_mask
from tractode.registration.affine import register_affine
from tractode.registration.anatomy_field import estimate_field_from_anatomy
from tractode.registration.refine import refine
from tractode.registration.reverse_encoding import EncodedScan, estimate_field, undistort
from tractode.reports import figures_distortion
from tractode.reports.reportlet import Reportlet

_B0 = 50.0  # s/mm²; at or below it a volume of an ``epi`` field map is unweighted
_CITED = {
    "reversed": ("andersson2003", "Susceptibility distortion was corrected with the field that makes scans of opposite phase encoding agree"),
    "anatomy": ("wang2017", "Susceptibility distortion was corrected by registering mean b=0 images to the anatomical image along the phase-encoding axis only"),
}  # fmt: skip
_MAPPED = ("jezzard1995", "Susceptibility distortion was corrected with a field map")


@dataclass(frozen=True, eq=False)
class _Field:
    """A field (Hz) and, for a run, its own verdict and the way from its points to the field's space."""

    image: Image
    verdicts: dict[str, tuple[Judgement, Affine]]
    sources: list[Path]
    figures: list[Reportlet]


class EstimateFieldInputSpec(StepInputSpec):
    corrections = traits.List(traits.Any, mandatory=True, desc="a Correction for each run that this field serves")
    policy = traits.Any(mandatory=True, desc="an IngestPolicy")
    is_required = traits.Bool(False, usedefault=True, desc="whether a run that is not corrected is an error")
    anat = traits.Any(None, usedefault=True, desc="an AnatFile, where the anatomy is used")
    anat_space = traits.Str("", usedefault=True)
    prepared_anat = traits.Dict(desc="outputs of PrepareAnat")
    normalised_anat = traits.Dict(desc="outputs of NormaliseAnat: the brain mask")


class EstimateField(Step):
    """Role: ``field`` (Hz). Facts: ``distortion``, for every run its verdict and the way from its points to the field."""

    input_spec: ClassVar[type] = EstimateFieldInputSpec

    @property
    def _first(self) -> Correction:
        return self.inputs.corrections[0]

    def needs(self) -> list[Path]:
        found: dict[Path, None] = {}
        for correction in self.inputs.corrections:
            for source in (*(s.source for s in correction.scans), correction.run, *correction.maps):
                found.update(dict.fromkeys((source.path, *source.sidecars)))
                if isinstance(source, DwiRun):
                    found.update(dict.fromkeys((source.bval, source.bvec)))
        if self._first.kind == "anatomy":
            found[Path(self.inputs.prepared_anat["anat"])] = None
            found[Path(self.inputs.normalised_anat["mask"])] = None
        return list(found)

    def parameters(self) -> dict[str, Any]:
        return {
            "corrections": [described(correction) for correction in self.inputs.corrections],
            "policy": asdict(self.inputs.policy),
            "required": self.inputs.is_required,
        }

    def compute(self, writer: StepWriter) -> None:
        corrections: list[Correction] = self.inputs.corrections
        try:
            found = self._field()
        except TractodeError as error:
            if self.inputs.is_required:
                raise
            reason = f"the field could not be found: {error.found}"
            records = {c.run.name: {**described(c), "applied": False, "reason": reason} for c in corrections}
            self._say(writer, records, [])
            return
        records = {}
        for correction in corrections:
            judgement, to_field = found.verdicts[correction.run.name]
            records[correction.run.name] = {
                **described(correction), **judgement.record(), "to_field": to_field.matrix.tolist()
            }  # fmt: skip
        self._say(writer, records, found.figures)
        if any(record["applied"] for record in records.values()):
            key, sentence = _CITED.get(self._first.kind, _MAPPED)
            writer.facts.update(sentence=sentence, citation=key)
        self._write(writer, found, records)
        refused = [f"{name}: {record['reason']}" for name, record in records.items() if not record["applied"]]
        if refused and self.inputs.is_required:
            raise InputDataError(
                f"Susceptibility distortion was not corrected ({'; '.join(refused)})",
                id="E-SDC-FAILED",
                needed="a field that makes the images agree better",
                fix="look at the report; choose another way with --sdc, or leave out --require-sdc",
            )

    def _write(self, writer: StepWriter, found: _Field, records: dict[str, Any]) -> None:
        kind = self._first.kind
        source = self._first.maps[0] if self._first.maps else self._first.run
        judged = {
            name: {key: record[key] for key in ("applied", "reason", "measure", "before", "after", "turned")}
            for name, record in records.items()
        }
        text = f"Field that distorts the diffusion images, where things really are; from {figures_distortion.METHODS[kind]}"
        content = sidecar.qc_sidecar(
            text,
            found.sources,
            self.inputs.job.bids_dir,
            SkullStripped=False,
            Units="Hz",
            Method=kind,
            Link=self._first.link,
            Verdicts=judged,
        )
        write_with_sidecar(
            writer, "field", found.image, content, source.entities, datatype="fmap", desc=kind, suffix="fieldmap"
        )

    def _say(self, writer: StepWriter, records: dict[str, Any], figures: list[Reportlet]) -> None:
        """The verdicts for the next steps, and for the report in front of the pictures."""
        writer.facts["distortion"] = records
        said = [figures_distortion.verdict(record, run=name) for name, record in records.items()]
        save_reportlets(writer, self.inputs.job.participant, [*said, *figures])

    def _field(self) -> _Field:
        if self._first.kind == "reversed":
            return self._from_pair()
        if self._first.kind == "anatomy":
            return self._from_anatomy()
        return self._from_map()

    # --- a reversed pair ----------------------------------------------------------------------------------------

    def _from_pair(self) -> _Field:
        images, scans, lost = [], [], []
        for image in self._first.scans:
            try:
                scans.append(self._scan(image))
                images.append(image)
            except TractodeError as error:
                lost.append(f"{image.path.name}: {error.found}")
        if len(scans) < 2 and lost:
            raise InputDataError(f"images of the pair cannot be read ({'; '.join(lost)})", id="E-SDC-PAIR")
        estimate = estimate_field(tuple(scans))
        mask = brain_mask(undistort(scans[0], estimate.field, estimate.motions[0]))
        verdicts = {}
        figures: list[Reportlet] = []
        for image, scan, motion in zip(images, scans, estimate.motions, strict=True):
            if isinstance(image.source, DwiRun):
                judgement = distortion.judge_pair(scans, estimate, mask, scan.sign)
                verdicts[image.source.name] = (judgement, motion.inverse())
        for correction in self.inputs.corrections:
            name = correction.run.name
            if name in verdicts:
                figures += figures_distortion.pair(
                    scans, [image.path.name.partition(".")[0] for image in images], estimate, mask, run=name
                )
            else:
                why = "; ".join(text for text in lost if text.startswith(correction.run.path.name))
                unread = Judgement(False, "", float("nan"), float("nan"), None, 0, f"the run could not be read ({why})")
                verdicts[name] = (unread, _still(scans[0].image, scans[0].image))
        return _Field(estimate.field, verdicts, [image.path for image in images], figures)

    def _scan(self, image: EncodedFile) -> EncodedScan:
        encoding, source = image.encoding, image.source
        mean = self._b0(source) if isinstance(source, DwiRun) else _b0_of_fieldmap(source)
        return EncodedScan(mean, encoding.axis, encoding.sign, encoding.readout or 0.0)

    def _b0(self, run: DwiRun) -> Image:
        """The mean of a run's b=0 volumes, as acquired."""
        policy: IngestPolicy = self.inputs.policy
        image, _ = read_image(run.path, f"{run.name}_dwi", assume_orientation=policy.assume_orientation)
        gradients, _ = parse_gradients(run.bval, run.bvec, image.values.shape[0], policy=policy)
        return _mean(image, torch.from_numpy(gradients.is_b0) if gradients.is_b0.any() else None)

    # --- a field map --------------------------------------------------------------------------------------------

    def _from_map(self) -> _Field:
        kind, maps = self._first.kind, self._first.maps
        images = [read_volume(fmap.path, "fmap")[0] for fmap in maps]
        magnitude = images[-1]
        facts = [fmap.metadata for fmap in maps]
        if kind == "phasediff":
            times = (float(facts[0]["EchoTime1"]), float(facts[0]["EchoTime2"]))
            field = field_from_phase(as_radians(images[0], facts[0].get("Units")), magnitude, times)
        elif kind == "phases":
            times = (float(facts[0]["EchoTime"]), float(facts[1]["EchoTime"]))
            first, second = (
                as_radians(image, fact.get("Units")) for image, fact in zip(images[:2], facts, strict=False)
            )
            field = field_from_two(first, second, magnitude, times)
        else:
            field = as_hertz(images[0], magnitude, str(facts[0].get("Units", "Hz")))
        verdicts: dict[str, tuple[Judgement, Affine]] = {}
        figures: list[Reportlet] = []
        for correction in self.inputs.corrections:
            scan = self._run_scan(correction)
            mask = brain_mask(scan.image)
            sign_is_known = bool(correction.encoding and correction.encoding.sign)
            mapped = distortion.judge_map(scan, mask, field, magnitude, sign_is_known=sign_is_known)
            verdicts[correction.run.name] = (mapped.judgement, mapped.to_map)
            turn = mapped.judgement.sign * scan.sign
            hz = distortion.field_on(field, scan.image.grid, mapped.to_map)
            figures += figures_distortion.single(
                scan.image,
                distortion.corrected(scan, hz, turn),
                Image(scan.image.grid, hz[None]),
                mask,
                run=correction.run.name,
            )
        return _Field(field, verdicts, [fmap.path for fmap in maps], figures)

    def _run_scan(self, correction: Correction) -> EncodedScan:
        encoding = correction.encoding
        assert encoding is not None
        return EncodedScan(
            self._b0(correction.run), encoding.axis, encoding.sign or 1, encoding.readout or NOMINAL_READOUT
        )

    # --- the anatomy --------------------------------------------------------------------------------------------

    def _from_anatomy(self) -> _Field:
        correction = self._first
        scan = self._run_scan(correction)
        mask = brain_mask(scan.image)
        anatomy, _ = read_image(Path(self.inputs.prepared_anat["anat"]), self.inputs.anat_space)
        anatomy_mask, _ = read_image(Path(self.inputs.normalised_anat["mask"]), self.inputs.anat_space)
        searched = register_affine(anatomy, scan.image, dof="rigid", fixed_mask=anatomy_mask, moving_mask=mask)
        pose = refine(anatomy, scan.image, [_still(anatomy, scan.image), searched], fixed_mask=anatomy_mask)
        estimate = estimate_field_from_anatomy(scan, anatomy, pose=pose, scan_mask=mask, anatomy_mask=anatomy_mask)
        judgement = distortion.judge_anatomy(scan, estimate, anatomy, pose.inverse(), mask)
        hz = distortion.field_on(estimate.field, scan.image.grid)
        fixed = distortion.corrected(scan, hz)
        figures = figures_distortion.single(
            scan.image, fixed, Image(scan.image.grid, hz[None]), mask, run=correction.run.name
        )
        to_field = _still(scan.image, estimate.field)
        return _Field(
            estimate.field,
            {correction.run.name: (judgement, to_field)},
            [correction.run.path, self.inputs.anat.path],
            figures,
        )


def described(correction: Correction) -> dict[str, Any]:
    """A correction as plain data."""
    encoding = correction.encoding
    return {
        "kind": correction.kind,
        "why": correction.reason,
        "link": correction.link,
        "encoding": str(encoding) if encoding else "",
        "axis": encoding.axis if encoding else None,
        "readout": encoding.readout if encoding else None,
        "notes": list(encoding.notes) if encoding else [],
        "images": [
            *(f"{image.path.name} ({image.encoding})" for image in correction.scans),
            *(fmap.path.name for fmap in correction.maps),
        ],
        "rows": [list(row) for row in correction.rows],
    }  # fmt: skip


def _b0_of_fieldmap(fmap: FieldmapFile) -> Image:
    """The mean of an ``epi`` field map's volumes, of those without weighting where it has b-values."""
    image, _ = read_image(fmap.path, fmap.path.name.partition(".")[0])
    if fmap.bval is None:
        return _mean(image, None)
    bvals, _ = read_bvals(fmap.bval)
    if len(bvals) != len(image.values):
        return _mean(image, None)
    return _mean(image, torch.from_numpy(bvals <= max(_B0, float(bvals.min()))))


def _mean(image: Image, which: torch.Tensor | None) -> Image:
    kept = image.values if which is None else image.values[which]
    return Image(image.grid, kept.mean(0, keepdim=True).clamp_min(0))


def _still(first: Image, second: Image) -> Affine:
    return Affine(torch.eye(4, dtype=torch.float64), first.grid.space, second.grid.space)
