"""A dwi run: ingest, brain mask, and the check of its gradient table."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from nipype.interfaces.base import traits

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative
from tractode.errors import InputDataError
from tractode.fields import DWI, Affine, Image, ShField
from tractode.interfaces.distortion import described
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets, write_with_sidecar
from tractode.io.dwi import IngestPolicy, check_brain, read_dwi
from tractode.io.gradients import write_bvals, write_bvecs, write_mrtrix_gradients
from tractode.io.nifti import read_image
from tractode.io.notes import Note, info, warning
from tractode.models.dti import DTI
from tractode.ops import spherical_harmonics
from tractode.preprocess.distortion import field_on, put_right
from tractode.preprocess.gradient_check import GradientVerdict, Verdict, check_gradients
from tractode.preprocess.gradient_fixes import apply_fix
from tractode.preprocess.mask import brain_mask, dwi_reference
from tractode.reports import figures_distortion, figures_glyphs, figures_gradients, figures_slices
from tractode.reports.reportlet import Reportlet


class PrepareDwiInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    policy = traits.Any(mandatory=True, desc="an IngestPolicy")
    accept_gradients = traits.Bool(False, usedefault=True)
    apply_gradient_fix = traits.Str("", usedefault=True)
    correction = traits.Any(None, usedefault=True, desc="a Correction, or None where distortion is not spoken of")
    field = traits.Dict(desc="outputs of EstimateField, where a field was sought")
    field_facts = traits.Dict(desc="its facts")


class PrepareDwi(Step):
    """Roles: ``dwi``, ``bval``, ``bvec``, ``dwiref``, ``mask``, ``verdict``; ``uncorrected``, a b=0 image, if a field was applied."""

    input_spec: ClassVar[type] = PrepareDwiInputSpec

    def needs(self) -> list[Path]:
        run = self.inputs.run
        field = [Path(self.inputs.field["field"])] if self._distortion.get("applied") else []
        return [run.path, run.bval, run.bvec, *run.sidecars, *field]

    def parameters(self) -> dict[str, Any]:
        return {
            "policy": asdict(self.inputs.policy),
            "accept": self.inputs.accept_gradients,
            "fix": self.inputs.apply_gradient_fix,
            "seed": self.inputs.job.random_seed,
            "distortion": self._distortion,
        }

    @property
    def _distortion(self) -> dict[str, Any]:
        """What was decided about the run's distortion; empty where nothing was."""
        correction = self.inputs.correction
        if correction is None:
            return {}
        known = (self.inputs.field_facts or {}).get("distortion", {}).get(self.inputs.run.name)
        return known or {**described(correction), "applied": False, "reason": correction.reason}

    def compute(self, writer: StepWriter) -> None:
        run, policy, job = self.inputs.run, self.inputs.policy, self.inputs.job
        scan, notes = read_dwi(run.path, run.bval, run.bvec, f"{run.name}_dwi", policy, metadata=run.metadata)
        reference = dwi_reference(scan)
        mask = brain_mask(reference)
        scan = DWI(scan.grid, scan.signal, scan.gtab, mask.mask)
        scan, mask_notes = check_brain(scan, run.path)
        notes = [*notes, *mask_notes]
        verdict = check_gradients(scan, job.generator(self.inputs.step))
        shells = [{"b": round(b), "directions": len(index)} for b, index in scan.gtab.shells()]
        writer.facts.update(
            notes=[asdict(note) for note in [*notes, *self._distortion_notes()]],
            gradients=verdict.record(),
            shape=[*scan.grid.shape, len(scan.gtab)],
            voxel_sizes=[round(size, 3) for size in scan.grid.voxel_sizes],
            shells=shells,
            n_b0=int(scan.gtab.is_b0.sum()),
            brain_ml=round(float(scan.mask.sum()) * float(abs(scan.grid.affine[:3, :3].det())) / 1000, 1),
        )
        self._write_check(writer, scan, reference, verdict)
        scan = self._judged(scan, verdict, writer)
        if self._distortion.get("applied"):
            self._write_uncorrected(writer, reference)
            scan = self._undistorted(scan)
            reference = dwi_reference(scan)
        self._show(writer, scan, reference)
        self._write_scan(writer, scan, reference)

    def _undistorted(self, scan: DWI) -> DWI:
        """The scan where things really are, on its own grid: fetched along its encoding once, so directions stay."""
        record, device = self._distortion, self.inputs.job.device
        field, _ = read_image(Path(self.inputs.field["field"]), "field")
        to_field = Affine(torch.tensor(record["to_field"], dtype=torch.float64), scan.grid.space, "field")
        hz = field_on(field, scan.grid, to_field).to(device)
        signal = put_right(scan.signal.to(device), hz, record["axis"], record["sign"], record["readout"]).cpu()
        moved = DWI(scan.grid, signal, scan.gtab, scan.mask)
        moved = DWI(scan.grid, signal, scan.gtab, brain_mask(dwi_reference(moved)).mask)
        return check_brain(moved, self.inputs.run.path)[0]

    def _distortion_notes(self) -> list[Note]:
        record, name = self._distortion, self.inputs.run.name
        if not record:
            return []
        if not record["applied"]:
            return [warning("W-SDC-NONE", f"{name}: susceptibility distortion was not corrected: {record['reason']}")]
        said = "; ".join(text for text in (record["link"], *record["notes"]) if text)
        by = figures_distortion.METHODS[record["kind"]]
        return [info("N-SDC", f"{name}: susceptibility distortion was corrected by {by}{f' ({said})' if said else ''}")]

    def _write_check(self, writer: StepWriter, scan: DWI, reference: Image, verdict: GradientVerdict) -> None:
        """The verdict and its pictures are written before it is acted on: a refused run shows why."""
        run = self.inputs.run
        record = verdict.record()
        content = sidecar.qc_sidecar(
            "Check of the gradient table against the image",
            [run.path, run.bval, run.bvec],
            self.inputs.job.bids_dir,
            **record,
        )
        writer.write_json(
            "verdict",
            derivative(run.entities, datatype="dwi", desc="gradients", suffix="qc", extension=".json"),
            content,
        )
        brain = scan.voxels().mean(0)
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

    def _show(self, writer: StepWriter, scan: DWI, reference: Image) -> None:
        """The mask as it is used, and a word on distortion where no field was sought."""
        run, record = self.inputs.run, self._distortion
        state = "corrected for susceptibility distortion" if record.get("applied") else "not corrected for distortion"
        figures = [
            figures_slices.mosaic(
                reference, Image(scan.grid, scan.mask[None]), desc="mask", section="dwi", run=run.name,
                title="Mean b=0 image and brain mask", caption=f"Mean of the b=0 volumes, {state}.",
            )
        ]  # fmt: skip
        if record and record["kind"] == "none":
            figures.insert(0, figures_distortion.verdict(record, run=run.name))
        if record:
            by = figures_distortion.METHODS[record["kind"]]
            writer.facts["distortion_correction"] = by if record["applied"] else f"none: {record['reason']}"
        save_reportlets(writer, self.inputs.job.participant, figures)

    def _write_uncorrected(self, writer: StepWriter, reference: Image) -> None:
        run = self.inputs.run
        content = sidecar.dwiref_sidecar(
            [run.path, run.bval], self.inputs.job.bids_dir, "Mean of the b=0 volumes as acquired, distorted"
        )
        write_with_sidecar(
            writer, "uncorrected", reference, content, run.entities, datatype="dwi", desc="uncorrected", suffix="dwiref"
        )

    def _judged(self, scan: DWI, verdict: GradientVerdict, writer: StepWriter) -> DWI:
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
            path=self.inputs.run.bvec,
            needed="directions in the frame BIDS defines, so that neighbouring voxels' fibres line up",
            fix="; or ".join(ways),
        )

    def _write_scan(self, writer: StepWriter, scan: DWI, reference: Image) -> None:
        run, bids_dir = self.inputs.run, self.inputs.job.bids_dir
        sources = [run.path, run.bval, run.bvec]
        name = {"datatype": "dwi", "desc": "preproc", "suffix": "dwi"}
        facts = self._distortion_facts()
        done = (
            "corrected for susceptibility distortion; no denoising or motion"
            if self._distortion.get("applied")
            else "no denoising, motion or distortion"
        )
        text = f"Diffusion-weighted images, checked; {done} correction was applied"
        content = sidecar.preproc_sidecar(text, sources, bids_dir, metadata=run.metadata, **facts)
        write_with_sidecar(writer, "dwi", Image(scan.grid, scan.signal), content, run.entities, **name)
        self._write_tables(writer, scan, name)
        write_with_sidecar(
            writer,
            "dwiref",
            reference,
            sidecar.dwiref_sidecar(sources, bids_dir),
            run.entities,
            datatype="dwi",
            suffix="dwiref",
        )
        content = sidecar.mask_sidecar(sources, bids_dir, "Brain mask of the mean b=0 image")
        write_with_sidecar(
            writer,
            "mask",
            Image(scan.grid, scan.mask[None]),
            content,
            run.entities,
            datatype="dwi",
            desc="brain",
            suffix="mask",
        )

    def _distortion_facts(self) -> dict[str, Any]:
        """What the sidecar says of the correction; the keys are ours."""
        record = self._distortion
        if not record:
            return {}
        facts = {"SusceptibilityDistortionCorrected": record["applied"], "DistortionCorrectionReason": record["reason"]}
        if record["applied"]:
            facts["DistortionCorrectionMethod"] = record["kind"]
            facts["DistortionCorrectionField"] = sidecar.bids_uri(Path(self.inputs.field["field"]), None)
        return facts

    def _write_tables(self, writer: StepWriter, scan: DWI, name: dict[str, str]) -> None:
        entities, affine = self.inputs.run.entities, scan.grid.affine
        tables = {
            "bval": (".bval", lambda path: write_bvals(scan.gtab, path)),
            "bvec": (".bvec", lambda path: write_bvecs(scan.gtab, affine, path)),
            "mrtrix-gradients": (".b", lambda path: write_mrtrix_gradients(scan.gtab, path)),
        }
        for role, (extension, write) in tables.items():
            writer.write(role, derivative(entities, extension=extension, **name), write)


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
