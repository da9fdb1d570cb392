"""A dwi run, or several as one: ingest, check of the gradient table, preprocessing, brain mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.found import Correction, DwiRun
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative
from tractode.errors import InputDataError
from tractode.fields import DWI, Affine, Image, ShField
from tractode.interfaces import prepared_files, preprocess
from tractode.interfaces.distortion import described
from tractode.interfaces.interpolating import joined, within_view
from tractode.interfaces.masks import voted_mask
from tractode.interfaces.preprocess import Part, PreprocessPlan, Steps
from tractode.interfaces.quality_rows import scan_row
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets
from tractode.io.dwi import IngestPolicy, check_brain, read_dwi
from tractode.io.nifti import read_image
from tractode.io.notes import Note, info, warning
from tractode.models.dti import DTI
from tractode.ops import spherical_harmonics
from tractode.preprocess.distortion import field_on
from tractode.preprocess.field_of_view import seen_by_all
from tractode.preprocess.gradient_check import GradientVerdict, Verdict, check_gradients
from tractode.preprocess.gradient_fixes import apply_fix
from tractode.preprocess.mask import brain_mask, dwi_reference
from tractode.reports import (
    figures_distortion,
    figures_glyphs,
    figures_gradients,
    figures_slices,
)
from tractode.reports.figures_preprocessing import Glance
from tractode.reports.reportlet import Reportlet


class PrepareDwiInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    policy = traits.Any(mandatory=True, desc="an IngestPolicy")
    plan = traits.Any(PreprocessPlan(), usedefault=True, desc="a PreprocessPlan")
    mask_method = traits.Str("auto", usedefault=True, desc="a method of mask_consensus, or auto")
    accept_gradients = traits.Bool(False, usedefault=True)
    apply_gradient_fix = traits.Str("", usedefault=True)
    corrections = traits.Dict(
        {}, usedefault=True, desc="run → Correction; a run without one: distortion is not spoken of"
    )
    fields = traits.List(traits.Dict, [], usedefault=True, desc="outputs of each EstimateField")
    fields_facts = traits.List(traits.Dict, [], usedefault=True, desc="their facts, in the same order")


class PrepareDwi(Step):
    """Roles: ``dwi``, ``bval``, ``bvec``, ``dwiref``, ``mask``, ``verdict``; ``uncorrected``, a b=0 image, if a field was applied.

    Tables of quality and of motion: `prepared_files`.
    """

    input_spec: ClassVar[type] = PrepareDwiInputSpec

    def needs(self) -> list[Path]:
        used = [self._field_of(scan) for scan in self.inputs.run.scans if self._decided(scan).get("applied")]
        return list(dict.fromkeys([*self.inputs.run.files, *used]))

    def parameters(self) -> dict[str, Any]:
        return {
            "policy": asdict(self.inputs.policy),
            "plan": asdict(self.inputs.plan),
            "mask": self.inputs.mask_method,
            "accept": self.inputs.accept_gradients,
            "fix": self.inputs.apply_gradient_fix,
            "seed": self.inputs.job.random_seed,
            "distortion": {scan.name: self._decided(scan) for scan in self.inputs.run.scans},
        }

    def _decided(self, scan: DwiRun) -> dict[str, Any]:
        """What was decided about a run's distortion; empty where nothing was."""
        correction: Correction | None = self.inputs.corrections.get(scan.name)
        if correction is None or scan.done_by:
            return {}
        known = (facts.get("distortion", {}).get(scan.name) for facts in self.inputs.fields_facts)
        return next(filter(None, known), {**described(correction), "applied": False, "reason": correction.reason})

    def _field_of(self, scan: DwiRun) -> Path:
        """The file of the field that serves a run."""
        pairs = zip(self.inputs.fields, self.inputs.fields_facts, strict=True)
        return next(Path(outputs["field"]) for outputs, facts in pairs if scan.name in facts.get("distortion", {}))

    def compute(self, writer: StepWriter) -> None:
        run, plan, job = self.inputs.run, self.inputs.plan, self.inputs.job
        parts: list[Part] = []
        raw: list[dict[str, Any]] = []
        before: list[Glance] = []
        writer.facts["parts"] = [scan.name for scan in run.parts]
        writer.facts["preprocessed_by"] = run.done_by
        for scan in run.scans:
            part = self._ingested(scan, writer)
            raw.append(scan_row(part.scan, "raw"))
            before.append(Glance.of(part.scan, part.slice_axis, [glance.voxels for glance in before]))
            preprocess.clean(part, plan, job.device)
            preprocess.find_motion(part, plan, job.device, self._hz(part))
            parts.append(part)
        still, steps, joining_notes = joined(parts, self._hz, self._start, job.device)
        scan, noise = still.scan, still.noise
        reference = dwi_reference(scan)
        mask, mask_notes = voted_mask(writer, job.participant, scan, self._given, self.inputs.mask_method, run)
        mask, view_notes = within_view(mask, still.seen, run.name)
        scan, brain_notes = check_brain(DWI(scan.grid, scan.signal, scan.gtab, mask.mask), run.path)
        notes = [*joining_notes, *mask_notes, *view_notes, *brain_notes]
        scan, shading = preprocess.even(scan, reference, plan, steps, run.done_by)
        if shading is not None:
            reference = dwi_reference(scan)
            noise = None if noise is None else preprocess.divided(noise, shading)
        notes += preprocess.failures(parts, steps)
        writer.facts["notes"] += [asdict(note) for note in notes]
        _describe(writer, scan)
        if run.parts:
            writer.facts["notes"] += [asdict(note) for note in _combined_notes(run, parts)]
        self._show(writer, parts, scan, reference)
        # The tables and the pictures of preprocessing: none where a caller wants none of it.
        if plan != PreprocessPlan() or run.done_by:
            after = Glance.of(scan, parts[0].slice_axis, [glance.voxels for glance in before])
            prepared_files.write_quality(writer, job, run, parts, raw, scan)
            if noise is not None:
                prepared_files.write_noise(writer, job, run, noise)
            save_reportlets(
                writer, job.participant, prepared_files.figures(run, parts, steps, before, after, shading, scan)
            )
            prepared_files.tell(writer, parts, steps)
        prepared_files.write_scan(writer, job, run, scan, reference, self._sidecar_facts(parts, steps))

    def _ingested(self, run: DwiRun, writer: StepWriter) -> Part:
        """A run as read, its table judged."""
        policy, job = self.inputs.policy, self.inputs.job
        scan, notes = read_dwi(run.path, run.bval, run.bvec, f"{run.name}_dwi", policy, metadata=run.metadata)
        reference = dwi_reference(scan)
        mask = self._masked(reference)
        scan, mask_notes = check_brain(DWI(scan.grid, scan.signal, scan.gtab, mask.mask), run.path)
        part = Part(run, scan, reference, self._decided(run), seen=seen_by_all(scan))
        verdict = check_gradients(scan, job.generator(self.inputs.step))
        worst = writer.facts.get("gradients")
        writer.facts.setdefault("notes", [])
        writer.facts["notes"] += [asdict(note) for note in [*notes, *mask_notes, *_distortion_notes(part)]]
        if worst is None or _SEVERITY[verdict.verdict.value] > _SEVERITY[worst["verdict"]]:
            writer.facts["gradients"] = verdict.record()
        _describe(writer, scan)
        self._write_check(writer, run, scan, reference, verdict)
        part.scan = self._judged(run, scan, verdict, writer)
        if part.distortion.get("applied"):
            prepared_files.write_uncorrected(writer, job, run, reference)
        return part

    def _masked(self, reference: Image) -> Image:
        """The brain: the mask that came with a preprocessed scan, else that of its b=0 image."""
        given = self._given(reference)
        return brain_mask(reference) if given is None else given

    def _given(self, reference: Image) -> Image | None:
        """The mask that came with a preprocessed scan, where it lies on the scan's grid and holds something."""
        path = self.inputs.run.mask
        if path is not None:
            mask, _ = read_image(path, reference.grid.space)
            if mask.grid.matches(reference.grid) and bool(mask.mask.any()):
                return Image(reference.grid, mask.mask[None])
        return None

    def _hz(self, part: Part) -> torch.Tensor | None:
        """The field that distorts a run, on its grid, as the head lies in the reference of its motion."""
        if not part.distortion.get("applied"):
            return None
        field, _ = read_image(self._field_of(part.run), "field")
        return field_on(field, part.scan.grid, _to_field(part))

    def _start(self, first: Part, part: Part) -> Affine | None:
        """Where the way from the first run's reference to another's is sought: where one field serves both, at their poses to it."""
        if not all(one.distortion.get("applied") for one in (first, part)):
            return None
        if self._field_of(first.run) != self._field_of(part.run):
            return None
        matrix = torch.linalg.inv(_to_field(part).matrix) @ _to_field(first).matrix
        return Affine(matrix, first.scan.grid.space, part.scan.grid.space)

    def _write_check(
        self, writer: StepWriter, run: DwiRun, scan: DWI, reference: Image, verdict: GradientVerdict
    ) -> None:
        """The verdict and its pictures are written before it is acted on: a refused run shows why."""
        record = verdict.record()
        content = sidecar.qc_sidecar(
            "Check of the gradient table against the image",
            [run.path, run.bval, run.bvec],
            self.inputs.job.bids_dir,
            **record,
        )
        writer.write_json(
            "verdict" if run.name == self.inputs.run.name else f"verdict-{run.name}",
            derivative(run.entities, datatype="dwi", desc="gradients", suffix="qc", extension=".json"),
            content,
        )
        # Volume by volume: the brain of a large series is not copied for a mean.
        brain = torch.stack([volume[scan.mask].mean() for volume in scan.signal])
        b0 = scan.gtab.is_b0
        figures = [
            figures_gradients.sphere(scan.gtab, record, run=run.name),
            figures_gradients.verdict_table(record, run=run.name),
            figures_slices.volume_profile(
                {"b = 0": brain.where(b0, torch.nan), "diffusion-weighted": brain.where(~b0, torch.nan)}, run=run.name
            ),
        ]  # fmt: skip
        if verdict.suggested_fix is not None:
            figures += _compared(scan, reference, verdict.suggested_fix, run.name)
        save_reportlets(writer, self.inputs.job.participant, figures)

    def _show(self, writer: StepWriter, parts: list[Part], scan: DWI, reference: Image) -> None:
        """The mask as it is used, and a word on distortion where no field was sought."""
        run = self.inputs.run
        applied = all(part.distortion.get("applied") for part in parts)
        state = "corrected for susceptibility distortion" if applied else "not corrected for distortion"
        state = f"preprocessed by {run.done_by}" if run.done_by else state
        figures = [
            figures_slices.mosaic(
                reference, Image(scan.grid, scan.mask[None]), desc="mask", section="dwi", run=run.name,
                title="Mean b=0 image and brain mask", caption=f"Mean of the b=0 volumes, {state}.",
            )
        ]  # fmt: skip
        for part in parts:
            record = part.distortion
            if record and record["kind"] == "none":
                figures.insert(0, figures_distortion.verdict(record, run=part.run.name))
            if record:
                by = figures_distortion.METHODS[record["kind"]]
                writer.facts["distortion_correction"] = by if record["applied"] else f"none: {record['reason']}"
        if run.done_by:
            writer.facts["distortion_correction"] = f"as preprocessed by {run.done_by}"
        save_reportlets(writer, self.inputs.job.participant, figures)

    def _judged(self, run: DwiRun, scan: DWI, verdict: GradientVerdict, writer: StepWriter) -> DWI:
        """Refuse a table that failed, unless the user said otherwise; what was done is written down."""
        fix = self.inputs.apply_gradient_fix
        if verdict.verdict is not Verdict.FAIL:
            writer.facts["gradients_used"] = "as read"
            return scan
        if fix and fix == verdict.suggested_fix:
            writer.facts["gradients_used"] = f"fixed by {fix}, as asked with --apply-gradient-fix"
            return DWI(scan.grid, scan.signal, apply_fix(scan.gtab, scan.grid.affine, fix), scan.mask)
        if self.inputs.accept_gradients:
            writer.facts["gradients_used"] = "as read although the check failed, as asked with --accept-gradients"
            return scan
        suggested = verdict.suggested_fix
        ways = ["correct the table", "--accept-gradients to use it as it is"]
        if suggested is not None:
            ways.insert(1, f"--apply-gradient-fix {suggested}, if the pictures in the report agree that it is right")
        raise InputDataError(
            f"The gradient table does not fit the image: {verdict.reason}",
            id="E-GRAD-FRAME",
            path=run.bvec,
            needed="directions in the frame BIDS defines, so that neighbouring voxels' fibres line up",
            fix="; or ".join(ways),
        )

    def _sidecar_facts(self, parts: list[Part], steps: Steps) -> dict[str, Any]:
        """What the sidecar says of preprocessing and of the correction of distortion; the keys are ours."""
        facts: dict[str, Any] = {}
        if self.inputs.plan != PreprocessPlan() or self.inputs.run.done_by:
            facts["Preprocessing"] = prepared_files.said_of(parts, steps)
        records = [part.distortion for part in parts]
        if not all(records):
            return facts
        facts["SusceptibilityDistortionCorrected"] = all(record["applied"] for record in records)
        facts["DistortionCorrectionReason"] = "; ".join(dict.fromkeys(str(record["reason"]) for record in records))
        if facts["SusceptibilityDistortionCorrected"]:
            used = dict.fromkeys(self._field_of(part.run) for part in parts)
            facts["DistortionCorrectionMethod"] = records[0]["kind"]
            facts["DistortionCorrectionField"] = sidecar.bids_uri(next(iter(used)), None)
        return facts


def _to_field(part: Part) -> Affine:
    """From a run's reference, where the mean of its b=0 volumes shows the head, to the field's space: it was found with that image."""
    matrix = torch.tensor(part.distortion["to_field"], dtype=torch.float64)
    return Affine(matrix, part.scan.grid.space, "field")


_SEVERITY = {"PASS": 0, "INCONCLUSIVE": 1, "FAIL": 2}


def _describe(writer: StepWriter, scan: DWI) -> None:
    """Size and table of a scan, for the report."""
    writer.facts.update(
        shape=[*scan.grid.shape, len(scan.gtab)],
        voxel_sizes=[round(size, 3) for size in scan.grid.voxel_sizes],
        shells=[{"b": round(b), "directions": len(index)} for b, index in scan.gtab.shells()],
        n_b0=int(scan.gtab.is_b0.sum()),
        brain_ml=round(float(scan.mask.sum()) * float(abs(scan.grid.affine[:3, :3].det())) / 1000, 1),
    )


def _combined_notes(run: DwiRun, parts: list[Part]) -> list[Note]:
    """A warning where runs that are distorted differently were put together as they are."""
    ways = {(part.encoding.axis, part.encoding.sign) for part in parts if part.encoding is not None}
    if len(ways) < 2 or all(part.distortion.get("applied") for part in parts):
        return []
    text = f"{run.name}: runs of different phase encodings were combined without a correction of their distortion"
    return [warning("W-COMBINE-DISTORTED", text)]


def _distortion_notes(part: Part) -> list[Note]:
    record: Mapping[str, Any] = part.distortion
    name = part.run.name
    if not record:
        return []
    if not record["applied"]:
        return [warning("W-SDC-NONE", f"{name}: susceptibility distortion was not corrected: {record['reason']}")]
    said = "; ".join(text for text in (record["link"], *record["notes"]) if text)
    by = figures_distortion.METHODS[record["kind"]]
    return [info("N-SDC", f"{name}: susceptibility distortion was corrected by {by}{f' ({said})' if said else ''}")]


def _compared(scan: DWI, reference: Image, fix: str, run: str) -> list[Reportlet]:
    """Principal directions as sticks, with the table as read and with the fix the check suggests, for a person to judge.

    Sticks, because a flipped axis leaves the colours of a direction map as they are.
    """
    mask = Image(scan.grid, scan.mask[None])
    tables = {"as read": scan.gtab, f"after {fix}": apply_fix(scan.gtab, scan.grid.affine, fix)}
    figures = []
    for number, (label, gtab) in enumerate(tables.items()):
        model = DTI(fit_method="ols")
        maps = model.to_maps(model.fit(scan.voxels(), gtab))
        sticks = scan.unravel(maps["fa"] * spherical_harmonics.basis(maps["direction"], _STICK_ORDER))
        field = ShField(scan.grid, sticks.values, _STICK_ORDER)
        pictures = figures_glyphs.fod_glyphs(
            field, reference, mask, run=run, section="gradients", desc=f"sticks{number}"
        )
        figures += [replace(p, title=f"Principal directions, table {label}", caption=_STICKS) for p in pictures]
    return figures


_STICK_ORDER = 8
_STICKS = (
    "Principal direction of the tensor in each voxel, as long as FA. In the right table sticks run along the bundles and line "
    "up from voxel to voxel: across the midline in the callosum, up and down and slightly outwards in the corticospinal tract."
)

# What we wrote ourselves needs no judging again: its b=0 volumes have b-value 0 and nothing else has.
_OURS = IngestPolicy(estimate_s0=True, b0_threshold=0.0)


def load_scan(prepared: dict[str, str], space: str, device: str) -> DWI:
    """The scan a `PrepareDwi` wrote, masked, on the device."""
    scan, _ = read_dwi(Path(prepared["dwi"]), Path(prepared["bval"]), Path(prepared["bvec"]), space, _OURS)
    mask, _ = read_image(Path(prepared["mask"]), space)
    return DWI(scan.grid, scan.signal.to(device), scan.gtab, mask.mask.to(device))
