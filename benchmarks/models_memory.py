"""Memory of reading and fitting one scan of HCP's size, by the app's own steps, beside the bound that is printed before a run starts.

    python benchmarks/models_memory.py --output benchmarks/results/models_memory.json

The scan is synthetic: 145 × 174 × 145 voxels, 288 volumes (18 b=0 and three shells of 90 directions), float32, compressed, a mask
of the size of a brain. Its signal is that of tensors, grey matter and fluid with noise, so that every model finds its responses.
Steps that the output holds already, of the same scan, stay there with the commit that they were measured at.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from measure import meta, watch

SHAPE, N_DIRECTIONS, N_B0, BVALS = (145, 174, 145), 90, 18, (1000.0, 2000.0, 3000.0)
LIMIT_GB = 8.0
PREPARE, PREPROCESS = "prepare", "preprocess"
DEFAULT = [PREPARE, PREPROCESS, "dti", "dki", "msmt_csd", "csd", "noddi"]
SIGNALS = 512  # different voxels; noise makes each its own


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=DEFAULT,
        help="names of models; prepare: reading and checking the scan, as if it were preprocessed; preprocess: every step too "
        "(`--sloppy`: fewer patches and rounds, as large ones)",
    )  # fmt: skip
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE)
    parser.add_argument("--directions", type=int, default=N_DIRECTIONS, help="of each shell")
    parser.add_argument("--uncertainty", default="none")
    parser.add_argument("--work", type=Path, help="where the scan lies (4 GB); one that was made there is used again")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--fit", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        if arguments.fit:
            fit(work, arguments.fit, arguments.uncertainty)
            return 0
        work.mkdir(parents=True, exist_ok=True)
        facts = scan(work, tuple(arguments.shape), arguments.directions)
        known = measured_before(arguments.output, facts, arguments.uncertainty)
        result: dict[str, Any] = {"limit_gb": LIMIT_GB, "scan": facts, "fits": known}
        at = {key: value for key, value in meta("").items() if key in ("commit", "date")}
        for name in arguments.models:
            result["fits"][name] = measured(work, name, facts, arguments.uncertainty) | at
            print(name, result["fits"][name], file=sys.stderr, flush=True)
            save(result, arguments.output)
    print(json.dumps(result, indent=2))
    return 0


def save(result: dict[str, Any], output: Path | None) -> None:
    """After every step: a step takes minutes, and what was measured before it stands."""
    result["worst_gb"] = max(entry["peak_gb"] for entry in result["fits"].values())
    result["meta"] = meta(f"python benchmarks/models_memory.py --models {' '.join(result['fits'])}")
    if output:
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measured_before(output: Path | None, facts: dict[str, Any], uncertainty: str) -> dict[str, Any]:
    """Steps that the file holds of the same scan; each says the commit it was measured at."""
    if output is None or not output.exists() or uncertainty != "none":
        return {}
    known = json.loads(output.read_text(encoding="utf-8"))
    if known["scan"] != facts:
        return {}
    at = {key: known["meta"][key] for key in ("commit", "date")}
    return {
        name: {**entry, **{key: entry.get(key, value) for key, value in at.items()}}
        for name, entry in known["fits"].items()
    }


def scan(work: Path, shape: tuple[int, ...], n_directions: int) -> dict[str, Any]:
    """The scan's facts; it is made unless one of that size lies there whole."""
    known = work / "scan.json"
    if known.exists():
        facts: dict[str, Any] = json.loads(known.read_text(encoding="utf-8"))
        if facts["shape"] == list(shape) and facts["n_volumes"] == N_B0 + len(BVALS) * n_directions:
            return facts
    facts = make_scan(work, shape, n_directions)
    known.write_text(json.dumps(facts), encoding="utf-8")
    return facts


def measured(work: Path, name: str, facts: dict[str, Any], uncertainty: str) -> dict[str, Any]:
    """Peak of the process tree of one step, and what the app would have said beforehand."""
    from tractode.models import MODELS
    from tractode.settings import Settings
    from tractode.workflows.memory import fit_memory_gb, step_memory_gb

    command = [sys.executable, __file__, "--work", str(work), "--fit", name, "--uncertainty", uncertainty]
    run = watch(command, {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")})
    if run.exit_code:
        raise SystemExit(run.output)
    shape = [*facts["shape"], facts["n_volumes"]]
    settings = Settings(work, work, output_spaces=())
    if name == PREPARE:
        bound = step_memory_gb(shape, (), settings, is_raw=False)["reading and checking"]
    elif name == PREPROCESS:
        bound = max(step_memory_gb(shape, (), settings, voxel_sizes=(1.25, 1.25, 1.25)).values())
    else:
        bound = fit_memory_gb(shape, MODELS[name], uncertainty)
    peak = round(run.peak_rss_mb * 2**20 / 1e9, 2)
    return {
        "n": facts["n_voxels"],
        "peak_gb": peak,
        "bound_gb": round(bound * 2**30 / 1e9, 2),
        "within_bound": peak <= bound * 2**30 / 1e9,
        "within_limit": peak <= LIMIT_GB,
        "seconds": run.seconds,
    }


def make_scan(work: Path, shape: tuple[int, ...], n_directions: int) -> dict[str, Any]:
    """Files as `PrepareDwi` leaves them; volumes are made and written one by one."""
    import nibabel as nib

    from tractode.fields import GradientTable, Image, ImageGrid
    from tractode.io.gradients import write_gradients
    from tractode.io.nifti import write_image
    from tractode.ops import sphere

    directions = sphere.directions(n_directions).double()
    bvecs = torch.cat([torch.zeros(N_B0, 3).double(), *(directions for _ in BVALS)])
    bvals = torch.cat([torch.zeros(N_B0), *(torch.full((n_directions,), b) for b in BVALS)]).double()
    gtab = GradientTable(bvals, bvecs, bvals == 0)
    affine = torch.diag(torch.tensor([-1.25, 1.25, 1.25, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([90.0, -126.0, -72.0])
    grid = ImageGrid((shape[0], shape[1], shape[2]), affine, "sub-01_dwi")
    mask = brain(shape)
    write_image(work / "mask.nii.gz", Image(grid, torch.from_numpy(mask)[None]))
    write_gradients(gtab, affine, work / "dwi.bval", work / "dwi.bvec")
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, SIGNALS, math.prod(shape))
    signals = voxel_signals(gtab, rng)
    header = nib.Nifti1Image(np.broadcast_to(np.float32(0), (*shape, len(gtab))), affine.numpy()).header
    header["vox_offset"], flat = 352, mask.ravel(order="F")
    header.set_xyzt_units("mm", "sec")
    with gzip.GzipFile(work / "dwi.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock.ljust(352, b"\0"))
        for volume in signals.T:
            # Whole numbers: noise in the last bits would only make the file larger.
            noisy = np.rint(volume[kinds] + rng.normal(0, 10, len(kinds)))
            stream.write((np.abs(noisy) * flat).astype("<f4").data)
    return {"shape": list(shape), "n_volumes": len(gtab), "n_voxels": int(mask.sum())}


def brain(shape: tuple[int, ...]) -> np.ndarray:
    """An ellipsoid that fills as much of the field of view as a brain does, a quarter."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij", sparse=True)
    return sum(axis**2 for axis in axes) < 0.78**2


def voxel_signals(gtab: Any, rng: np.random.Generator) -> np.ndarray:
    """Half single fibres, a third grey matter, the rest fluid; b=0 signal 500, in fluid 1200."""
    axes = rng.normal(size=(SIGNALS, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    cosine = (axes @ gtab.bvecs.numpy().T) ** 2
    b = gtab.bvals.numpy()[None]
    fibre = 500 * np.exp(-b * (0.3e-3 + 1.4e-3 * cosine))
    grey, fluid = 500 * np.exp(-b * 0.8e-3) + 0 * cosine, 1200 * np.exp(-b * 3e-3) + 0 * cosine
    kind = np.arange(SIGNALS)[:, None] / SIGNALS
    return np.where(kind < 0.5, fibre, np.where(kind < 0.83, grey, fluid)).astype(np.float32)


def fit(work: Path, name: str, uncertainty: str) -> None:
    """One step of the app, as its worker runs it."""
    from tractode.bids.query import DwiRun
    from tractode.interfaces.model import FitModel
    from tractode.interfaces.preprocess import PreprocessPlan
    from tractode.interfaces.scan import PrepareDwi
    from tractode.interfaces.step import Job
    from tractode.io.dwi import IngestPolicy

    prepared = {role: str(work / f"dwi.{role}") for role in ("bval", "bvec")}
    prepared |= {"dwi": str(work / "dwi.nii.gz"), "mask": str(work / "mask.nii.gz")}
    files = [Path(prepared[role]) for role in ("dwi", "bval", "bvec")]
    run = DwiRun(*files, {}, {"sub": "01"}, None, "sub-01")
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    job = Job(work, work / "out", "01", "run", "cpu", 0, threads, False)
    os.chdir(work)
    if name in (PREPARE, PREPROCESS):
        plan = PreprocessPlan("on", "on", "on", "on", "on", sloppy=True) if name == PREPROCESS else PreprocessPlan()
        run = run if name == PREPROCESS else replace(run, done_by="the benchmark")
        PrepareDwi(
            job=job, step=f"sub-01_{name}-dwi", run=run, plan=plan, policy=IngestPolicy(), accept_gradients=True
        ).run()
        return
    FitModel(job=job, step=f"sub-01_fit-{name}", run=run, prepared=prepared, model=name, uncertainty=uncertainty).run()


if __name__ == "__main__":
    raise SystemExit(main())
