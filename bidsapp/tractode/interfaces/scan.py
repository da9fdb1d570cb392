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
from tractode.fields import DWI, Image, ShField
from tractode.interfaces.step import Step, StepInputSpec, save_reportlets, write_with_sidecar
from tractode.io.dwi import IngestPolicy, check_brain, read_dwi
from tractode.io.gradients import write_bvals, write_bvecs, write_mrtrix_gradients
from tractode.io.nifti import read_image
from tractode.models.dti import DTI
from tractode.ops import spherical_harmonics
from tractode.preprocess.gradient_check import GradientVerdict, Verdict, check_gradients
from tractode.preprocess.gradient_fixes import apply_fix
from tractode.preprocess.mask import brain_mask, dwi_reference
from tractode.reports import figures_glyphs, figures_gradients, figures_slices
from tractode.reports.reportlet import Reportlet


class PrepareDwiInputSpec(StepInputSpec):
    run = traits.Any(mandatory=True, desc="a DwiRun")
    policy = traits.Any(mandatory=True, desc="an IngestPolicy")
    accept_gradients = traits.Bool(False, usedefault=True)
    apply_gradient_fix = traits.Str("", usedefault=True)


class PrepareDwi(Step):
    """Roles: ``dwi``, ``bval``, ``bvec``, ``dwiref``, ``mask``, ``verdict``."""

    input_spec: ClassVar[type] = PrepareDwiInputSpec

    def needs(self) -> list[Path]:
        run = self.inputs.run
        return [run.path, run.bval, run.bvec, *run.sidecars]

    def parameters(self) -> dict[str, Any]:
        return {
            "policy": asdict(self.inputs.policy),
            "accept": self.inputs.accept_gradients,
            "fix": self.inputs.apply_gradient_fix,
            "seed": self.inputs.job.random_seed,
        }

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
            notes=[asdict(note) for note in notes],
            gradients=verdict.record(),
            shape=[*scan.grid.shape, len(scan.gtab)],
            voxel_sizes=[round(size, 3) for size in scan.grid.voxel_sizes],
            shells=shells,
            n_b0=int(scan.gtab.is_b0.sum()),
            brain_ml=round(float(scan.mask.sum()) * float(abs(scan.grid.affine[:3, :3].det())) / 1000, 1),
        )
        self._write_check(writer, scan, reference, verdict)
        scan = self._judged(scan, verdict, writer)
        self._write_scan(writer, scan, reference)

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
        mask = Image(scan.grid, scan.mask[None])
        brain = scan.voxels().mean(0)
        b0 = scan.gtab.is_b0
        figures = [
            figures_gradients.sphere(scan.gtab, record, run=run.name),
            figures_gradients.verdict_table(record, run=run.name),
            figures_slices.mosaic(
                reference, mask, desc="mask", section="dwi", title="Mean b=0 image and brain mask",
                caption="Mean of the b=0 volumes as acquired, not corrected for distortion.", run=run.name,
            ),
            figures_slices.volume_profile(
                {"b = 0": brain.where(b0, torch.nan), "diffusion-weighted": brain.where(~b0, torch.nan)}, run=run.name
            ),
        ]  # fmt: skip
        if verdict.suggested_fix is not None:
            figures += _compared(scan, reference, verdict.suggested_fix, run.name)
        save_reportlets(writer, self.inputs.job.participant, figures)

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
        text = "Diffusion-weighted images, checked; no denoising, motion or distortion correction was applied"
        content = sidecar.preproc_sidecar(text, sources, bids_dir, metadata=run.metadata)
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
