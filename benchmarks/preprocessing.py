"""Preprocessing on simulated scans with known truth, and peers on the same data.

    python benchmarks/preprocessing.py [--only motion denoise unring bias] [--output benchmarks/results/preprocessing.json]

``motion``: a whole simulated head on an oblique grid moves by up to 5 mm and 5 degrees, with eddy currents (2 mm at 100 mm) and 2 % of the slices
losing signal, at three samplings. Residual: how far from where it was each point of the brain is read (motion and eddy currents
together, mm), and the turn (degrees); RMSE of FA in white matter against the signal without noise, as scanned, corrected, and where
nothing but noise disturbs it; lost slices found, and others called lost. Peer: DIPY's `motion_correction` (rigid, to b=0; ``--dipy-motion``).
``denoise``: beside dwidenoise and DIPY's `mppca`. ``unring``: beside mrdegibbs and DIPY's `gibbs_removal` (whose shifts of up to 0.9 voxels
smooth edges: where the image is flat it is as far from the truth as no correction, at edges twice as far; slices, sizes without a Nyquist
line and fewer points of total variation were tried: .0216 to .0278). ``bias``: against the coils' shading.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from measure import meta, watch
from torch import Tensor

from tractode.fields import DWI, GradientTable, Image
from tractode.io.builtin_template import load_builtin
from tractode.models.dti import DTI
from tractode.ops import volume_pose as pose
from tractode.preprocess.bias import bias_field
from tractode.preprocess.denoise import DenoiseSettings, denoise
from tractode.preprocess.eddy import PhaseEncoding, geometry
from tractode.preprocess.mask import brain_mask, dwi_reference
from tractode.preprocess.motion import MotionEstimate, correct_motion
from tractode.preprocess.resample import resampled
from tractode.preprocess.unring import unring
from tractode.simulate import bias, disturbance, eddy, motion, outliers, seeds
from tractode.simulate import subject as head
from tractode.simulate.echo_planar import Encoding
from tractode.simulate.gradients import multi_shell
from tractode.simulate.tissues import WHITE, anatomy
from tractode.simulate.warp import participant_warp
from tractode.workflows.simulate_visit import oriented

PARTS = ("motion", "denoise", "unring", "bias")
SCENES: dict[str, tuple[tuple[tuple[float, int], ...], int, float]] = {
    "single_shell_32": (((1000.0, 32),), 5, 30.0),
    "multi_shell_24_40": (((1000.0, 24), (2500.0, 40)), 6, 30.0),
    "few_12": (((1000.0, 12),), 2, 20.0),
}
AXIS = 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--scenes", nargs="+", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--resolution", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--dipy-motion", action="store_true", help="DIPY's motion correction too (minutes a scene)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    if arguments.output and arguments.output.is_file():  # parts that are not run again stay
        result = json.loads(arguments.output.read_text())
    result["meta"] = meta(" ".join(["python benchmarks/preprocessing.py", *sys.argv[1:]]))
    base = None if arguments.only == ["unring"] else simulated_head(arguments.resolution, arguments.seed)
    if base is not None and "motion" in arguments.only:
        for name in arguments.scenes:
            found = moving(base, name, arguments.seed, arguments.dipy_motion)
            result.setdefault("motion", {})[name] = found
            print(name, json.dumps(found), file=sys.stderr, flush=True)
    if base is not None and "denoise" in arguments.only:
        result["denoise"] = denoising(base)
    if "unring" in arguments.only:
        result["unring"] = unringing()
    if base is not None and "bias" in arguments.only:
        result["bias"] = shading(base)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


def simulated_head(size: float, seed: int) -> head.Diffusion:
    """A participant's head with all bundles; 8 weighted volumes stand for any table."""
    brain = anatomy(*(load_builtin(name) for name in ("T1w", "GM", "WM", "mask")))
    settings = head.SubjectSettings(fibres_per_bundle=200)
    warp = participant_warp(brain.t1w.grid, "sub-01_dwi", seeds.stream(seed, 0, "warp"), settings.warp)
    lines = head.template_bundles(brain, settings, seeds.stream(seed, 0, "bundles"))
    grid = head.field_of_view(brain, warp, (size,) * 3, oriented("LAS", 10.0), 16.0, "sub-01_dwi")
    return head.diffusion(brain, grid, multi_shell(((1000.0, 8),), 1), warp, lines, settings)


def with_table(base: head.Diffusion, gtab: GradientTable) -> head.Diffusion:
    return replace(base, gtab=gtab, signal=head.clean_signal(base.fibres, gtab, head.SubjectSettings()))


# --- motion -----------------------------------------------------------------------------------------------------------


def moving(base: head.Diffusion, name: str, seed: int, with_dipy: bool) -> dict[str, Any]:
    shells, n_b0, snr = SCENES[name]
    true, subject = with_table(base, multi_shell(shells, n_b0)), head.SubjectSettings(snr=snr)
    generator = torch.Generator().manual_seed(1000 * seed + list(SCENES).index(name))
    wanted = disturbance.DisturbanceSettings(
        motion.HeadMotionSettings(), eddy.EddySettings(), outliers.DroppedSlicesSettings()
    )
    what = disturbance.disturbance(true, wanted, generator)
    seen = disturbance.disturbed(true, what, subject, Encoding("j-"))
    scan = DWI(true.grid, head.noisy(seen, subject, generator), true.gtab, true.mask)
    scan = replace(scan, mask=brain_mask(dwi_reference(scan)).mask)
    started = time.process_time()
    estimate = correct_motion(scan, PhaseEncoding(AXIS))
    seconds = time.process_time() - started
    started = time.process_time()
    fixed = resampled(scan, estimate).scan
    resampling = time.process_time() - started
    out: dict[str, Any] = {"n": len(true.gtab), "snr": snr, "processor_seconds": round(seconds, 1)}
    out["resampling_seconds"] = round(resampling, 1)
    nothing = replace(estimate, rigid=torch.zeros_like(estimate.rigid), eddy=torch.zeros_like(estimate.eddy))
    for label, each in (("before", nothing), ("after", estimate)):
        out[label] = residual(each, what, true)
    out["slices"] = found_slices(estimate, what, true)
    out["fa_rmse"] = fa_errors(scan, fixed, true, what, subject, generator)
    if with_dipy:
        out["dipy"] = dipy_motion(scan, what, true)
    return out


def reference_pose(what: disturbance.Disturbance, gtab: GradientTable) -> Tensor:
    """The head in the mean of the b=0 volumes, from where it lies by itself."""
    return what.rigid[gtab.is_b0].mean(0, keepdim=True)


def residual(estimate: MotionEstimate, what: disturbance.Disturbance, true: head.Diffusion) -> dict[str, float]:
    """Distances (mm) of where points of the brain are read from where they were, and turns (degrees), over all volumes."""
    points = true.grid.to_world(true.mask.nonzero()[::97].double())
    back = pose.inverse(reference_pose(what, true.gtab)).expand(len(what.rigid), -1)
    rigid = pose.then(back, what.rigid)
    own = geometry(true.grid, what.centre, PhaseEncoding(AXIS)).read_at(points, rigid, what.eddy)[0]
    found = geometry(true.grid, estimate.centre, PhaseEncoding(AXIS)).read_at(points, estimate.rigid, estimate.eddy)[0]
    mm = ((own - found) * torch.tensor(true.grid.voxel_sizes).double()).norm(dim=-1)
    apart = pose.rotations(rigid[:, 3:]).mT @ pose.rotations(estimate.rigid[:, 3:])
    degrees = torch.rad2deg(pose.rotation_vectors(apart).norm(dim=-1))
    is_b0 = true.gtab.is_b0
    return {
        "mm_mean": round(float(mm.mean()), 3), "mm_b0": round(float(mm[is_b0].mean()), 3),
        "mm_weighted": round(float(mm[~is_b0].mean()), 3), "mm_worst_volume": round(float(mm.mean(-1).max()), 3),
        "degrees_mean": round(float(degrees.mean()), 3), "degrees_worst": round(float(degrees.max()), 3),
    }  # fmt: skip


def found_slices(estimate: MotionEstimate, what: disturbance.Disturbance, true: head.Diffusion) -> dict[str, float]:
    """Of the slices with 60 voxels of brain or more."""
    brain = (true.mask.sum((0, 1)) >= 60).expand(len(true.gtab), -1)
    lost, called = (what.left < 1) & brain, estimate.outliers & brain
    return {
        "n": int(brain.sum()), "lost": int(lost.sum()), "sensitivity": round(float((called & lost).sum() / lost.sum().clamp_min(1)), 4),
        "false_alarms": round(float((called & ~lost).sum() / (brain & ~lost).sum()), 5),
    }  # fmt: skip


def fa_errors(
    scan: DWI,
    fixed: DWI,
    true: head.Diffusion,
    what: disturbance.Disturbance,
    subject: head.SubjectSettings,
    generator: torch.Generator,
) -> dict[str, float]:
    """RMSE of FA in white matter against the noise-free head in the reference's pose; b ≤ 1500."""
    own = reference_pose(what, true.gtab)
    there = motion.moved(true.signal, true.grid, own.expand(len(true.gtab), -1), what.centre)
    table = true.gtab.rotated(pose.rotations(own[:, 3:])[0])
    white = motion.moved(true.fibres.tissues[WHITE][None].double(), true.grid, own, what.centre)[0] > 0.7
    low = true.gtab.bvals <= 1500

    def fa(signal: Tensor, gtab: GradientTable) -> Tensor:
        model = DTI()
        return model.to_maps(model.fit(signal[low][:, white].mT.double(), gtab[low]))["fa"][:, 0]

    truth = fa(there, table)
    each = {
        "as_scanned": fa(scan.signal, scan.gtab),
        "corrected": fa(fixed.signal, fixed.gtab),
        "noise_only": fa(head.noisy(there, subject, generator), table),
    }
    found = {name: round(float((values - truth).square().mean().sqrt()), 4) for name, values in each.items()}
    return {"n": int(white.sum())} | found


def dipy_motion(scan: DWI, what: disturbance.Disturbance, true: head.Diffusion) -> dict[str, float]:
    """DIPY's rigid registration of every volume to b=0."""
    from dipy.align import motion_correction
    from dipy.core.gradients import gradient_table

    data = scan.signal.movedim(0, -1).numpy().astype(np.float64)
    table = gradient_table(scan.gtab.bvals.numpy(), bvecs=scan.gtab.bvecs.numpy())
    started = time.process_time()
    _, matrices = motion_correction(data, table, affine=scan.grid.affine.numpy())
    seconds = time.process_time() - started
    # Its matrices map points of the first b=0 volume to those of each volume.
    found = torch.from_numpy(np.moveaxis(matrices, -1, 0).copy()).double()
    rigid = torch.zeros_like(what.rigid)
    rigid[:, 3:] = pose.rotation_vectors(found[:, :3, :3])
    turned = found[:, :3, :3] @ what.centre + found[:, :3, 3]
    rigid[:, :3] = turned - what.centre
    mean = pose.inverse(rigid[true.gtab.is_b0].mean(0, keepdim=True)).expand(len(rigid), -1)
    empty = torch.zeros(len(rigid), scan.grid.shape[2])
    estimate = MotionEstimate(
        scan.grid, what.centre, None, pose.then(mean, rigid), torch.zeros_like(what.eddy), empty.bool(), empty.double(), rigid[:, 0]
    )  # fmt: skip
    return residual(estimate, what, true) | {"n": len(rigid), "processor_seconds": round(seconds, 1)}


# --- denoising, unringing, shading ------------------------------------------------------------------------------------


def denoising(base: head.Diffusion) -> dict[str, Any]:
    """A block in the middle of the head, 69 volumes, SNR 20: RMSE from the signal without noise, over the noise."""
    true, subject = with_table(base, multi_shell(((1000.0, 24), (2500.0, 40)), 5)), head.SubjectSettings(snr=20.0)
    i, j, k = (n // 2 for n in true.grid.shape)
    block = (slice(None), slice(i - 12, i + 12), slice(j - 12, j + 12), slice(k - 7, k + 7))
    clean, sigma = true.signal[block].float(), subject.white_matter_intensity / 20.0
    noisy = head.noisy(clean.double(), subject, torch.Generator().manual_seed(7))
    out: dict[str, Any] = {"n": clean[0].numel(), "volumes": len(clean)}

    def entry(values: Tensor, noise: Tensor | None, seconds: float) -> dict[str, float]:
        found = {
            "rmse_over_noise": round(float((values - clean).square().mean().sqrt()) / sigma, 4),
            "seconds": round(seconds, 2),
        }
        if noise is not None:
            found["noise_ratio_median"] = round(float(noise.median()) / sigma, 4)
        return {"n": out["n"]} | found

    out["noisy"] = entry(noisy, None, 0.0)
    for name, settings in (("ours", DenoiseSettings()), ("ours_centre", DenoiseSettings(stride=1, joined="centre"))):
        seconds, found = timed(lambda settings=settings: denoise(noisy, settings=settings))
        out[name] = entry(found.signal, found.noise, seconds)
        centre = found
    with tempfile.TemporaryDirectory() as folder:
        save(noisy, Path(folder) / "in.nii")
        command = [
            "dwidenoise",
            f"{folder}/in.nii",
            f"{folder}/out.nii",
            "-noise",
            f"{folder}/s.nii",
            "-nthreads",
            "0",
            "-quiet",
        ]
        ran = watch(command)
        theirs, noise = load(Path(folder) / "out.nii"), load(Path(folder) / "s.nii")
    out["dwidenoise"] = entry(theirs, noise, ran.seconds)
    out["dwidenoise"]["largest_difference_of_ours_centre_95"] = round(
        float((centre.signal - theirs).abs().amax(0).quantile(0.95)) / sigma, 6
    )
    from dipy.denoise.localpca import mppca

    seconds, found = timed(lambda: mppca(noisy.movedim(0, -1).numpy(), patch_radius=2, return_sigma=True))
    out["dipy_mppca"] = entry(
        torch.from_numpy(found[0]).movedim(-1, 0).float(), torch.from_numpy(found[1]).float(), seconds
    )
    return out


def unringing() -> dict[str, Any]:
    """Slices of the template at 1 mm, measured at 2 mm: the middle of their k-space. Error from the means over voxels, over the mean."""
    image = load_builtin("T1w").values[0].double()
    n = min(image.shape[0], image.shape[1]) // 4 * 4
    fine = image[:n, :n, 60:100:4].movedim(-1, 0)
    spectrum = torch.fft.fftshift(torch.fft.fft2(fine), dim=(-2, -1))
    part = spectrum[:, n // 4 : -n // 4, n // 4 : -n // 4]
    seen = torch.fft.ifft2(torch.fft.ifftshift(part, dim=(-2, -1))).abs() / 4
    k = torch.fft.fftfreq(n, dtype=torch.float64) * 2
    means = torch.fft.ifft2(torch.fft.fft2(fine) * torch.sinc(k)[:, None] * torch.sinc(k)).real[:, ::2, ::2]
    stack = seen.movedim(0, -1)[None].float()
    scale = float(means[means > 0.1 * means.max()].mean())

    def entry(values: Tensor, seconds: float) -> dict[str, float]:
        apart = values.squeeze(0).movedim(-1, 0).double() - means
        return {
            "n": len(fine),
            "rmse": round(float(apart.square().mean().sqrt()) / scale, 5),
            "seconds": round(seconds, 2),
        }

    out: dict[str, Any] = {"n": len(fine), "ringing": entry(stack, 0.0)}
    seconds, found = timed(lambda: unring(stack))
    out["ours"] = entry(found, seconds)
    with tempfile.TemporaryDirectory() as folder:
        save(stack, Path(folder) / "in.nii")
        ran = watch(["mrdegibbs", f"{folder}/in.nii", f"{folder}/out.nii", "-nthreads", "0", "-quiet"])
        theirs = load(Path(folder) / "out.nii")
    out["mrdegibbs"] = entry(theirs.reshape(stack.shape), ran.seconds)
    from dipy.denoise.gibbs import gibbs_removal

    seconds, found = timed(lambda: gibbs_removal(stack[0].numpy().astype(np.float64), inplace=False, num_processes=1))
    out["dipy_gibbs_removal"] = entry(torch.from_numpy(found)[None].float(), seconds)
    return out


def shading(base: head.Diffusion) -> dict[str, Any]:
    """Spread of the logarithm of the coils' factor in the brain, before and after dividing by the field found (3 sets of coils)."""
    b0 = base.signal[0]
    runs = []
    for seed in range(3):
        factor = bias.coil_shading(base.grid, base.mask, torch.Generator().manual_seed(seed), bias.BiasSettings(0.25))
        noisy = head.noisy(
            (b0 * factor)[None], head.SubjectSettings(snr=40.0), torch.Generator().manual_seed(100 + seed)
        )
        image, mask = Image(base.grid, noisy), Image(base.grid, base.mask[None])
        seconds, field = timed(lambda image=image, mask=mask: bias_field(image, mask))
        left = (factor / field.values[0].double())[base.mask].log().std()
        run = {
            "before": round(float(factor[base.mask].log().std()), 4),
            "after": round(float(left), 4),
            "seconds": round(seconds, 2),
        }
        runs.append(run | n4(image, base.mask, factor))
    still = (
        bias_field(Image(base.grid, b0[None].float()), Image(base.grid, base.mask[None]))
        .values[0][base.mask]
        .log()
        .std()
    )
    return {"n": len(runs), "runs": runs, "made_up_where_there_is_none": round(float(still), 4)}


def n4(image: Image, mask: Tensor, factor: Tensor) -> dict[str, float]:
    """What ITK's N4 with its default of four levels leaves, where it is installed; three levels leave .031 and .040 of the first two runs."""
    try:
        import SimpleITK as sitk
    except ImportError:
        return {}
    seen = sitk.GetImageFromArray(image.values[0].float().numpy().transpose(2, 1, 0))
    seen.SetSpacing([float(size) for size in image.grid.voxel_sizes])
    brain = sitk.GetImageFromArray(mask.numpy().astype(np.uint8).transpose(2, 1, 0))
    brain.CopyInformation(seen)
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetNumberOfThreads(1)
    seconds, _ = timed(lambda: method.Execute(seen, brain))
    log_field = sitk.GetArrayFromImage(method.GetLogBiasFieldAsImage(seen)).transpose(2, 1, 0).copy()
    left = (factor.log() - torch.from_numpy(log_field))[mask].std()
    return {"n4_default_after": round(float(left), 4), "n4_default_seconds": round(seconds, 2)}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    value = call()
    return time.process_time() - started, value


def save(values: Tensor, path: Path) -> None:
    nibabel.Nifti1Image(values.movedim(0, -1).numpy(), np.diag([2.0, 2.0, 2.0, 1.0])).to_filename(path)


def load(path: Path) -> Tensor:
    values = torch.from_numpy(np.asarray(nibabel.load(path).dataobj, dtype=np.float32))
    return values.movedim(-1, 0) if values.ndim == 4 else values


if __name__ == "__main__":
    sys.exit(main())
