"""Streamline weights beside ``tcksift2``, on the same tractogram and FODs, judged by one evaluator. One JSON object.

Fit: fixels are those of MRtrix3's ``fod2fixel``; lengths are exact and belong to the fixel whose axis is nearest; the
proportionality is each method's own best. ``sse`` is relative to the sum of squared fibre densities, over all fixels and
over those that any streamline meets. Time and memory: whole processes. On the phantom also: shares of bundles against
their true cross-sections, and the signal of directions that no fit has seen (weights from the other half).
``--work`` keeps FODs between runs; ``--output`` saves the result.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from measure import meta, watch
from tracking_subjects import call, real

from tractode.evaluate.connections import BundleRegions, connections
from tractode.fields import DWI, Image, ShField, Streamlines
from tractode.fields.sh import order_of
from tractode.io.nifti import read_image, write_image
from tractode.io.tractogram import read_tractogram
from tractode.models.csd import CSD
from tractode.models.response import Response, estimate_response
from tractode.simulate.gradients import multi_shell
from tractode.simulate.phantom import Phantom, PhantomSettings, phantom
from tractode.tracking import fascicles
from tractode.tracking.fibre_density import DensityModel
from tractode.tracking.fixels import Fixels, FixelSettings
from tractode.tracking.streamline_weights import FodTarget, Regularisation, SignalTarget, fit_weights

SPACE = "dwi"
STEP_MM = 1.0


def timed(*command: object) -> tuple[float, float, float]:
    """Wall and processor seconds, and peak MB, of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = watch([str(part) for part in command])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.exit_code:
        raise RuntimeError(f"{command[0]} exited with {done.exit_code}: {done.output[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.seconds, round(cpu, 1), done.peak_rss_mb


def fixels_of_mrtrix(fod: Path, folder: Path) -> Fixels:
    """``fod2fixel``'s fixels in the order of our grid."""
    plain = folder / "plain.nii"
    call("mrconvert", fod, plain, "-strides", "+1,+2,+3,+4", "-force", "-quiet")
    call("fod2fixel", plain, folder / "fixels", "-nii", "-afd", "afd.nii", "-force", "-quiet")
    index = np.asarray(nibabel.load(folder / "fixels" / "index.nii").dataobj).astype(np.int64)
    axes, afd = (nibabel.load(folder / "fixels" / f"{n}.nii").get_fdata().squeeze() for n in ("directions", "afd"))
    image, _ = read_image(plain, SPACE)
    count, start = (torch.from_numpy(index[..., n].reshape(-1).copy()) for n in (0, 1))
    # By voxel, as `Fixels` wants them.
    rows = torch.cat([torch.arange(int(s), int(s) + int(n)) for s, n in zip(start, count, strict=True) if n])
    first = (count.cumsum(0) - count).int()
    return Fixels(
        image.grid, first, count.int(), torch.from_numpy(axes).float()[rows], torch.from_numpy(afd).float()[rows],
        FixelSettings(),
    )  # fmt: skip


def misfit(model: DensityModel, weights: np.ndarray) -> dict[str, float]:
    density, target = model.density(weights), model.target
    met = model.density(np.ones(len(weights))) > 0
    fitted = density * float((density * target).sum() / np.square(density).sum())
    error = np.square(target - fitted)
    spread = np.square(target[met] - target[met].mean()).sum()
    return {
        "relative_sse_all_fixels": round(float(error.sum() / np.square(target).sum()), 5),
        "relative_sse_met_fixels": round(float(error[met].sum() / np.square(target[met]).sum()), 5),
        "r2_met_fixels": round(float(1 - error[met].sum() / spread), 4),
    }


def ours(tck: Path, fod: Path, mask: Path, out: Path) -> None:
    """A whole process: read, fit, write the text file."""
    lines, _ = read_tractogram(tck, SPACE)
    image, _ = read_image(fod, SPACE)
    inside, _ = read_image(mask, SPACE)
    fit = fit_weights(lines, FodTarget(ShField(image.grid, image.values, order_of(len(image.values))), inside))
    np.savetxt(out, fit.weights.numpy(), fmt="%.8g")


def compared(
    fod: Path, mask: Path, seeds: Path, n: int, folder: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray], Path]:
    """Both methods on one tractogram: statistics, weights, and the tractogram."""
    tck = folder / "lines.tck"
    call(
        "tckgen", fod, tck, "-algorithm", "SD_STREAM", "-seed_image", seeds, "-mask", mask, "-select", n, "-step", STEP_MM,
        "-angle", 30, "-minlength", 20, "-maxlength", 250, "-nthreads", 0, "-force", "-quiet",
    )  # fmt: skip
    mine, theirs = folder / "ours.txt", folder / "sift2.txt"
    # The first call compiles and keeps; the second is what a user meets from then on.
    first = timed(sys.executable, __file__, "--fit", tck, fod, mask, mine)
    again = timed(sys.executable, __file__, "--fit", tck, fod, mask, mine)
    peer = timed("tcksift2", tck, fod, theirs, "-nthreads", 1, "-force", "-quiet")
    lines, _ = read_tractogram(tck, SPACE)
    model = DensityModel.of(lines, fixels_of_mrtrix(fod, folder))
    weights = {"ours": np.loadtxt(mine), "tcksift2": np.loadtxt(theirs), "unweighted": np.ones(len(lines))}
    result: dict[str, Any] = {"n": len(lines), "n_fixels": len(model.fixels)}
    result |= {name: misfit(model, w) for name, w in weights.items()}
    for name, (wall, cpu, memory) in (("ours", again), ("tcksift2", peer)):
        result[name] |= {"seconds": wall, "cpu_seconds": cpu, "peak_rss_mb": memory}
    result["ours"]["first_call_seconds"], result["ours"]["first_call_cpu_seconds"] = first[:2]
    return result, weights, tck


def simulated(n: int, folder: Path, size: int) -> dict[str, Any]:
    scene = phantom(
        multi_shell(((3000.0, 64),), 4), PhantomSettings(size=size, voxel_mm=60 / size, snr=30.0), 1, space=SPACE
    )
    scan, white = scene.dwi, scene.white_matter
    shell = CSD.shell(scan.gtab)
    assert shell is not None
    response = estimate_response(scan.signal[:, white.mask].mT, scan.gtab, shell)
    coeffs = scan.unravel(CSD(response).fit(scan.voxels(), scan.gtab).float())
    fod, mask, seeds = (folder / name for name in ("fod.nii", "mask.nii", "white.nii"))
    write_image(fod, coeffs)
    write_image(mask, Image(scan.grid, scan.mask[None]), dtype=np.uint8)
    write_image(seeds, white, dtype=np.uint8)
    result, weights, tck = compared(fod, mask, seeds, n, folder)
    lines, _ = read_tractogram(tck, SPACE)
    result |= {"snr": 30, "voxel_mm": 60 / size, "bundles": bundles(scene, lines, weights)}
    result["left_out_signal"] = left_out(scan, response, shell, lines, weights)
    return result


def bundles(scene: Phantom, lines: Streamlines, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Shares of the bundles (valid lines only) against those of their true mean cross-sections."""
    regions = {name: BundleRegions(scene.dwi.grid, b.mask, b.start, b.end) for name, b in scene.bundles.items()}
    owner = connections(lines, regions).bundle_of.numpy()
    area = np.array([float(b.mask.sum()) / float(b.streamlines.lengths().mean()) for b in scene.bundles.values()])
    truth = area / area.sum()
    found: dict[str, Any] = {
        "n_valid": int((owner >= 0).sum()),
        "names": list(regions),
        "truth": truth.round(4).tolist(),
    }
    for name, values in weights.items():
        sums = np.bincount(owner[owner >= 0], weights=values[owner >= 0], minlength=len(truth))
        share = sums / sums.sum()
        found[name] = {
            "half_l1_error": round(0.5 * float(np.abs(share - truth).sum()), 4),
            "correlation": round(float(np.corrcoef(share, truth)[0, 1]), 4),
            "shares": share.round(4).tolist(),
        }
    return found


def left_out(
    scan: DWI, response: Response, shell: torch.Tensor, lines: Streamlines, weights: dict[str, np.ndarray]
) -> dict[str, Any]:
    """RMSE of half of the directions, scale and isotropic part (and for ``signal`` the weights) from the other half."""
    train, test = shell[::2], shell[1::2]
    fit = fit_weights(lines, SignalTarget(scan, response.coefficients, train), regularisation=Regularisation(0.0, 0.0))
    model = fascicles.FascicleModel.of(lines, scan)
    found: dict[str, Any] = {
        "n": len(model.voxels) * len(test),
        "iterations": fit.n_iterations,
        "converged": fit.converged,
    }
    table = {part: scan.signal[index].flatten(1)[:, torch.from_numpy(model.voxels)].mT.contiguous().numpy() for part, index in (("train", train), ("test", test))}  # fmt: skip
    atoms = {part: fascicles.atoms_of(response.coefficients, scan.gtab.bvecs[index]) for part, index in (("train", train), ("test", test))}  # fmt: skip
    objective = fascicles.SignalObjective(model, atoms["train"], table["train"], True, 0.0)
    for name, values in {**weights, "signal": fit.weights.numpy()}.items():
        scaled = values * (1.0 if name == "signal" else fascicles.best_scale(objective, values))
        _, isotropic = objective.parts(scaled)
        wrong = {
            part: table[part] - model.predict(scaled, atoms[part]) - isotropic for part in ("train", "test")
        }  # fmt: skip
        found[name] = {
            f"{part}_rmse": round(float(np.sqrt(np.square(e).mean(dtype=np.float64))), 3) for part, e in wrong.items()
        }
    found["noise_sigma"] = round(1000.0 / 30, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=24, help="voxels along an edge of the phantom")
    parser.add_argument("--only", nargs="+", default=["simulated", "toshiba60", "xa30"])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--fit", nargs=4, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit:
        ours(*options.fit)
        return
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        for name in options.only:
            folder = work / name
            folder.mkdir(parents=True, exist_ok=True)
            if name == "simulated":
                found[name] = simulated(options.lines, folder, options.size)
            else:
                fod, mask = real(name, folder)
                found[name] = compared(fod, mask, mask, options.lines, folder)[0]
            shutil.rmtree(folder / "fixels", ignore_errors=True)
    found["meta"] = meta(
        f"python benchmarks/task_weights.py --lines {options.lines} --size {options.size} --only {' '.join(options.only)}"
    )
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
