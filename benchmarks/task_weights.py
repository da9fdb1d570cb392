"""Streamline weights beside ``tcksift2``, on the same tractogram and FODs, judged by one evaluator. One JSON object.

Fit: fixels are those of MRtrix3's ``fod2fixel``; lengths are exact and belong to the fixel whose axis is nearest; the
proportionality is each method's own best. ``sse`` is relative to the sum of squared fibre densities, over all fixels and
over those that any streamline meets. Signal: RMSE of half of the directions, explained by lines whose weights (``signal``)
or whose common scale (all others), and each voxel's isotropic part, come from the other half.

Phantoms whose bundles have a known cross-section of fibres (`cross_sections`; what SIFT2's weights estimate is an area,
not a count or a volume), seeded evenly in white matter, and with up to four times as many seeds in some bundles as in
others; several noise seeds. Shares are those of lines that join the two ends of a bundle. Real scans: fit, signal, and
time and memory of whole processes.
``--work`` keeps FODs between runs; ``--output`` saves the result.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from cross_sections import CrossSections, cross_sections
from measure import meta, watch
from tracking_subjects import SCANS, call, real

from tractode.evaluate.connections import connections
from tractode.fields import DWI, Image, ShField, Streamlines
from tractode.fields.sh import order_of
from tractode.io.dwi import read_dwi
from tractode.io.nifti import read_image, write_image
from tractode.io.tractogram import read_tractogram
from tractode.models.csd import CSD
from tractode.models.response import Response, estimate_response
from tractode.simulate.gradients import multi_shell
from tractode.tracking import fascicles
from tractode.tracking.fibre_density import DensityModel
from tractode.tracking.fixels import Fixels, FixelSettings
from tractode.tracking.streamline_weights import FodTarget, Regularisation, SignalTarget, fit_weights

SPACE = "dwi"
STEP_MM = 1.0
SNR = 30.0
SEEDINGS = ("even", "uneven")
METHODS = ("unweighted", "tcksift2", "ours", "signal")


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
    shutil.rmtree(folder / "fixels", ignore_errors=True)
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


def fod_field(path: Path) -> ShField:
    image, _ = read_image(path, SPACE)
    return ShField(image.grid, image.values, order_of(len(image.values)))


def ours(tck: Path, fod: Path, mask: Path, out: Path) -> None:
    """A whole process: read, fit, write the text file."""
    lines, _ = read_tractogram(tck, SPACE)
    inside, _ = read_image(mask, SPACE)
    fit = fit_weights(lines, FodTarget(fod_field(fod), inside))
    np.savetxt(out, fit.weights.numpy(), fmt="%.8g")


def tracked(fod: Path, mask: Path, seeds: tuple[str, Path], n: int, tck: Path) -> Streamlines:
    """Lines of ``tckgen``, the same each time."""
    call(
        "tckgen", fod, tck, "-algorithm", "SD_STREAM", *seeds, "-mask", mask, "-select", n, "-step", STEP_MM,
        "-angle", 30, "-minlength", 20, "-maxlength", 250, "-nthreads", 0, "-force", "-quiet",
        environment={"MRTRIX_RNG_SEED": "1"},
    )  # fmt: skip
    return read_tractogram(tck, SPACE)[0]


def real_scan(name: str, n: int, folder: Path) -> dict[str, Any]:
    """Both methods on a real scan: fit, left-out signal, time."""
    fod, mask = real(name, folder)
    tck, mine, theirs = folder / "lines.tck", folder / "ours.txt", folder / "sift2.txt"
    lines = tracked(fod, mask, ("-seed_image", mask), n, tck)
    # The first call compiles and keeps; the second is what a user meets from then on.
    first = timed(sys.executable, __file__, "--fit", tck, fod, mask, mine)
    again = timed(sys.executable, __file__, "--fit", tck, fod, mask, mine)
    peer = timed("tcksift2", tck, fod, theirs, "-nthreads", 1, "-force", "-quiet")
    model = DensityModel.of(lines, fixels_of_mrtrix(fod, folder))
    weights = {"unweighted": np.ones(len(lines)), "tcksift2": np.loadtxt(theirs), "ours": np.loadtxt(mine)}
    result: dict[str, Any] = {"n": len(lines), "n_fixels": len(model.fixels)}
    result |= {name: misfit(model, w) for name, w in weights.items()}
    for method, (wall, cpu, memory) in (("ours", again), ("tcksift2", peer)):
        result[method] |= {"seconds": wall, "cpu_seconds": cpu, "peak_rss_mb": memory}
    result["ours"]["first_call_seconds"], result["ours"]["first_call_cpu_seconds"] = first[:2]
    stem = Path(os.environ["TRACTODE_TEST_DATA"]) / "bids_real" / SCANS[name]
    scan, _ = read_dwi(Path(f"{stem}.nii.gz"), Path(f"{stem}.bval"), Path(f"{stem}.bvec"), SPACE)
    inside, _ = read_image(mask, SPACE)
    scan = DWI(scan.grid, scan.signal, scan.gtab, inside.mask)
    shell = CSD.shell(scan.gtab)
    assert shell is not None
    response = estimate_response(scan.voxels(), scan.gtab, shell)
    result["left_out_signal"], _ = left_out(scan, response, shell, lines, weights)
    return result


def simulated(seeds: int, n: int, folder: Path, size: int) -> dict[str, Any]:
    """Phantoms of several noise seeds, each seeded in both ways."""
    runs: dict[str, list[dict[str, Any]]] = {seeding: [] for seeding in SEEDINGS}
    truth: list[float] = []
    for seed in range(seeds):
        scene = cross_sections(multi_shell(((3000.0, 64),), 4), size, SNR, seed, SPACE)
        truth = (scene.areas / scene.areas.sum()).tolist()
        for seeding in SEEDINGS:
            runs[seeding].append(one_phantom(scene, seeding, n, folder))
    names = list(scene.regions)
    result: dict[str, Any] = {
        "n": seeds,
        "data": f"phantoms of {60 / size:g} mm, 64 directions at b = 3000 s/mm², SNR {SNR:g}, {seeds} noise seeds, {n} lines",
        "bundles": names,
        "true_shares": [round(v, 4) for v in truth],
    }
    for seeding, found in runs.items():
        result[seeding] = {"n": len(found), "valid_lines": round(float(np.mean([run["valid"] for run in found])), 1)}
        for method in METHODS:
            result[seeding][method] = {
                key: spread([run[method][key] for run in found if key in run[method]])
                for key in ("half_l1_error", "relative_sse_met_fixels", "train_rmse", "test_rmse")
                if key in found[0][method]
            } | {"shares": np.mean([run[method]["shares"] for run in found], 0).round(4).tolist()}
    return result


def spread(values: list[float]) -> dict[str, float]:
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return {"mean": round(float(np.mean(values)), 5), "standard_error": round(error, 5), "n": len(values)}


def one_phantom(scene: CrossSections, seeding: str, n: int, folder: Path) -> dict[str, Any]:
    """Every method on one tractogram of one phantom: shares of bundles, fit, left-out signal."""
    scan = scene.dwi
    shell = CSD.shell(scan.gtab)
    assert shell is not None
    response = estimate_response(scan.signal[:, scene.single].mT, scan.gtab, shell)
    fod, mask, seeds, tck = (folder / name for name in ("fod.nii", "mask.nii", "seeds.nii", "lines.tck"))
    write_image(fod, scan.unravel(CSD(response).fit(scan.voxels(), scan.gtab).float()))
    write_image(mask, Image(scan.grid, scan.mask[None]), dtype=np.uint8)
    write_image(seeds, scene.white if seeding == "even" else scene.seeding, dtype=np.float32)
    option = "-seed_image" if seeding == "even" else "-seed_rejection"
    lines = tracked(fod, mask, (option, seeds), n, tck)
    theirs = folder / "sift2.txt"
    call("tcksift2", tck, fod, theirs, "-nthreads", 1, "-force", "-quiet")
    inside = Image(scan.grid, scan.mask[None])
    weights = {
        "unweighted": np.ones(len(lines)),
        "tcksift2": np.loadtxt(theirs),
        "ours": fit_weights(lines, FodTarget(fod_field(fod), inside)).weights.numpy(),
    }
    model = DensityModel.of(lines, fixels_of_mrtrix(fod, folder))
    found: dict[str, Any] = {name: misfit(model, values) for name, values in weights.items()}
    signal, by_signal = left_out(scan, response, shell, lines, weights)
    owner = connections(lines, scene.regions).bundle_of.numpy()
    truth = (scene.areas / scene.areas.sum()).numpy()
    for name, values in {**weights, "signal": by_signal}.items():
        sums = np.bincount(owner[owner >= 0], weights=values[owner >= 0], minlength=len(truth))
        share = sums / sums.sum()
        found.setdefault(name, {})
        found[name] |= {"half_l1_error": 0.5 * float(np.abs(share - truth).sum()), "shares": share, **signal[name]}
    return found | {"valid": int((owner >= 0).sum())}


def left_out(
    scan: DWI, response: Response, shell: torch.Tensor, lines: Streamlines, weights: dict[str, np.ndarray]
) -> tuple[dict[str, Any], np.ndarray]:
    """RMSE of half of the directions, scale and isotropic part (and for ``signal`` the weights) from the other half.

    Also the weights of ``signal``. ``no_lines`` is each voxel's isotropic part alone.
    """
    train, test = shell[::2], shell[1::2]
    fit = fit_weights(lines, SignalTarget(scan, response.coefficients, train), regularisation=Regularisation(0.0, 0.0))
    model = fascicles.FascicleModel.of(lines, scan)
    found: dict[str, Any] = {
        "n": len(model.voxels) * len(test),
        "iterations": fit.n_iterations,
        "converged": fit.converged,
    }
    crossed = torch.from_numpy(model.voxels)
    table, atoms = {}, {}
    for part, index in (("train", train), ("test", test)):
        table[part] = scan.signal[index].flatten(1)[:, crossed].mT.contiguous().float().numpy()
        atoms[part] = fascicles.atoms_of(response.coefficients, scan.gtab.bvecs[index])
    objective = fascicles.SignalObjective(model, atoms["train"], table["train"], True, 0.0)
    by_signal = fit.weights.numpy()
    for name, values in {"no_lines": np.zeros(len(lines)), **weights, "signal": by_signal}.items():
        scaled = values * (1.0 if name in ("signal", "no_lines") else fascicles.best_scale(objective, values))
        _, isotropic = objective.parts(scaled)
        wrong = {part: table[part] - model.predict(scaled, atoms[part]) - isotropic for part in ("train", "test")}
        found[name] = {
            f"{part}_rmse": round(float(np.sqrt(np.square(e).mean(dtype=np.float64))), 3) for part, e in wrong.items()
        }
    return found, by_signal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=24, help="voxels along an edge of the phantom")
    parser.add_argument("--phantom-lines", type=int, default=5_000)
    parser.add_argument("--seeds", type=int, default=3, help="noise seeds of the phantom")
    parser.add_argument("--only", nargs="+", default=["simulated", "toshiba60"])
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
                found[name] = simulated(options.seeds, options.phantom_lines, folder, options.size)
            else:
                found[name] = real_scan(name, options.lines, folder)
            shutil.rmtree(folder / "fixels", ignore_errors=True)
    command = (
        f"benchmarks/task_weights.py --lines {options.lines} --phantom-lines {options.phantom_lines} --seeds {options.seeds} "
        f"--size {options.size} --only {' '.join(options.only)}"
    )
    found = {"weights": {"n": len(options.only), **found}, "meta": meta(command)}
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
