"""Processor seconds and memory of one registration against the number of voxels: a person's T1w onto the built-in template.

    python benchmarks/registration_scaling.py --peers peers/bin/python --threads 1 [--picture docs/images/registration_scaling.png]

Every run is a process of its own (`registration_run.py`). ``sizes``: the default's three stages scaled with the voxel (at 2 mm
they are the default), affine given. ``template``: the default at 2 mm and `FINE` at 1 mm, with the affine given and with it to
be found, and ANTs SyN on the same images. ``seconds`` are processor seconds of the registration alone, as in `registration_accuracy.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import measure
import numpy as np
import registration_pairs as pairs

HERE = Path(__file__).resolve().parent
RUNS = {
    2.0: ("tractode", "tractode with affine", "ANTs SyN", "ANTs SyN long"),
    1.0: ("tractode fine", "tractode fine with affine", "ANTs SyN"),
}


def main() -> None:
    options = _options()
    words = [{str(options.peers): "$PEERS", str(options.work): "$WORK"}.get(a, a) for a in sys.argv[1:]]
    command = "TRACTODE_TEST_DATA=$TRACTODE_TEST_DATA python benchmarks/registration_scaling.py " + " ".join(words)
    note = (
        "processor seconds of the registration and its children, imports and reading left out; the machine was shared"
    )
    result: dict[str, Any] = {
        "meta": {**measure.meta(command), "threads": options.threads, "seconds": note},
        "sizes": {},
        "template": {},
    }
    for resolution in sorted({*options.resolutions, *RUNS}, reverse=True):
        if resolution in options.resolutions:
            result["sizes"][f"{resolution:g} mm"] = _run(f"tractode scaled {resolution:g}", resolution, options)
        for method in RUNS.get(resolution, ()):
            result["template"][f"{method}, {resolution:g} mm"] = _run(method, resolution, options)
        text = pairs.compact(json.dumps(result, indent=1))
        if options.output:
            Path(options.output).write_text(text + "\n", encoding="utf-8")
    print(text)
    if options.picture:
        _draw(result, options.picture)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--resolutions", nargs="*", type=float, default=[4.0, 3.0, 2.0, 1.5, 1.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", type=Path, default=Path(sys.executable))
    parser.add_argument("--work", type=Path, default=Path("registration_work"))
    parser.add_argument("--output")
    parser.add_argument("--picture", type=Path)
    return parser.parse_args()


def _run(method: str, resolution: float, options: argparse.Namespace) -> dict[str, Any]:
    """A method on the pair of this resolution; kept in ``work``."""
    raw = method.endswith("with affine") or method.startswith("ANTs")
    folder = options.work / f"template-{resolution:g}" / ("raw" if raw else "aligned")
    if not (folder / "fixed_labels.nii.gz").is_file():
        _make(resolution, folder.parent)
    kept = folder / f"{method.replace(' ', '_')}.json"
    if not kept.is_file():
        python = str(options.peers) if method.startswith("ANTs") else sys.executable
        cores = str(options.threads)
        threads = {
            "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": cores, "OMP_NUM_THREADS": cores, "OMP_WAIT_POLICY": "PASSIVE"
        }  # fmt: skip
        with pairs.scratch(folder) as own:
            found = measure.watch([python, str(HERE / "registration_run.py"), method, str(own)], threads)
            if found.exit_code:
                raise RuntimeError(found.output[-2000:])
            cost = json.loads((own / "cost.json").read_text(encoding="utf-8"))
        cost.pop("there_and_back_voxels", None)
        kept.write_text(json.dumps({**cost, "peak_rss_mb": found.peak_rss_mb}), encoding="utf-8")
    pair = pairs.load(folder)
    row = {
        "n": 1, "voxels": pair.fixed.grid.n_voxels, "brain_voxels": int(pair.fixed_mask.mask.sum()),
        **{key: round(value, 2) for key, value in json.loads(kept.read_text(encoding="utf-8")).items()},
    }  # fmt: skip
    print(method, json.dumps(row), file=sys.stderr, flush=True)
    return row


def _make(resolution: float, folder: Path) -> None:
    for name, pair in pairs.onto_template(Path(os.environ.get("TRACTODE_TEST_DATA", "")), resolution).items():
        pairs.store(pair, folder / name)


def _draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = list(result["sizes"].values())
    voxels = np.array([row["voxels"] for row in rows]) / 1e6
    figure, both = pyplot.subplots(1, 2, figsize=(6.4, 2.9), dpi=110)
    for axes, key, label in zip(
        both, ("seconds", "peak_rss_mb"), ("processor seconds, one thread", "peak memory (GB)"), strict=True
    ):
        values = np.array([row[key] for row in rows]) / (1000 if key == "peak_rss_mb" else 1)
        axes.plot(voxels, values, "o-", color="#0b6e4f", ms=4, label="tractode (sizes)")
        for resolution in RUNS:
            row = result["template"][f"ANTs SyN, {resolution:g} mm"]
            value = row[key] / (1000 if key == "peak_rss_mb" else 1)
            axes.plot(row["voxels"] / 1e6, value, "s", color="#b3541e", ms=5)
        axes.set(xscale="log", yscale="log", xlabel="voxels of the image (millions)", ylabel=label)
        axes.grid(alpha=0.3, which="both")
    both[0].plot([], [], "s", color="#b3541e", label="ANTs SyN")
    both[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
