"""The published studies in kind: metrics on the same pairs, step size, the barrier's ε against folding, and the memory of both gradients.

    python benchmarks/registration_studies.py [--resolution 4] [--pairs 2] [--output benchmarks/results/registration_studies.json]

A. Rodríguez-Sanz, M. Hernandez, arXiv:2512.22689: descriptors against mutual information, Euler steps of 0.005 and 0.05, ε.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import measure
import registration_pairs as pairs
import torch

from tractode.errors import TractodeError
from tractode.evaluate.folding import certificate
from tractode.fields.transform import Affine
from tractode.registration import DEFORMATIONS, METRICS
from tractode.registration.deformation import border_window, half_flows
from tractode.registration.metrics.mind import MIND
from tractode.registration.optimise import Schedule, Stage, register

IDENTITY = Affine(torch.eye(4, dtype=torch.float64), "fixed", "moving")
METRIC = MIND(radius=1, dilation=1)
DECODER = DEFORMATIONS["decoder"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--resolution", type=float, default=4.0)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--only", nargs="+", default=["metrics", "families", "step", "epsilon", "gradients"])
    parser.add_argument("--output")
    options = parser.parse_args()
    made = [pairs.simulated(n, options.resolution) for n in range(options.pairs)]
    stage = Stage(options.resolution, 2 * options.resolution, options.iterations)
    plan = Schedule((replace(stage, voxel=1.5 * stage.voxel, nodes=1.5 * stage.nodes), stage), repeats=0)
    studies: dict[str, Callable[[], Any]] = {
        "metrics": lambda: _each(
            {n: {"metric": n} for n in ("mind", "contrastive", "lmi") if n in METRICS}, made, plan
        ),
        "families": lambda: _each({n: {"deformation": n} for n in sorted(DEFORMATIONS)}, made, plan),
        "step": lambda: _each(_steps(), made, plan),
        "epsilon": lambda: _epsilon(made, plan),
        "gradients": _gradients,
    }
    command = "python benchmarks/registration_studies.py " + " ".join(sys.argv[1:])
    result: dict[str, Any] = {"meta": {**measure.meta(command), "resolution_mm": options.resolution}}
    for name in options.only:
        result[name] = studies[name]()
        print(json.dumps({name: result[name]}), file=sys.stderr, flush=True)
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        Path(options.output).write_text(text + "\n", encoding="utf-8")


def _each(variants: dict[str, dict[str, Any]], made: list[pairs.Pair], plan: Schedule) -> dict[str, Any]:
    return {str(name): _mean(list(_rows(made, plan, settings))) for name, settings in variants.items()}


def _steps() -> dict[str, dict[str, Any]]:
    """Euler steps of the published sizes (100 and 10 to either end), and those that the slope asks for."""
    return {
        f"euler h={h}": {"deformation": partial(DECODER, integrator="euler", steps=round(0.5 / h))}
        for h in (0.05, 0.005)
    } | {"chosen by slope": {"deformation": partial(DECODER, integrator="euler")}}


def _epsilon(made: list[pairs.Pair], plan: Schedule) -> dict[str, Any]:
    """Hardly any other regulariser, so that folding is possible; the run's own refusal is what is counted."""
    out = {}
    for epsilon in (None, 0.0, 0.1, 0.3, 0.5):
        barrier = {"barrier": 0.0} if epsilon is None else {"barrier": 10.0, "epsilon": epsilon}
        loose = replace(plan, weight=1e-3, step=1.0, **barrier)
        settings = {"deformation": partial(DEFORMATIONS["svf"], smoothing=0.5)}
        out["none" if epsilon is None else str(epsilon)] = _mean(list(_rows(made, loose, settings)))
    return out


def _rows(made: list[pairs.Pair], plan: Schedule, settings: dict[str, Any]) -> Iterator[dict[str, float | bool]]:
    for pair in made:
        started = time.process_time()
        options: dict[str, Any] = {"metric": METRIC, **settings}
        try:
            found = register(
                pair.fixed, pair.moving, initial=IDENTITY, fixed_mask=pair.fixed_mask,
                moving_mask=pair.moving_mask, schedule=plan, **options,
            )  # fmt: skip
        except TractodeError:
            yield {"refused": True}
            continue
        spent = time.process_time() - started
        points = pair.fixed.grid.centres()[pair.fixed_mask.mask]
        error = float((found.map(points) - pair.truth.map(points)).norm(dim=-1).mean()) if pair.truth else float("nan")
        moved = pairs.moved_labels(pair, found.map(pair.fixed_labels.grid.centres()))
        overlap = statistics.mean(pairs.dice(pair.fixed_labels.values, moved.values).values())
        folding = certificate(found, pair.fixed.grid)
        yield {
            "refused": False, "epe_mm": error, "dice": overlap, "processor_seconds": spent,
            "folded_voxels": folding.n_folded, "min_jacobian": folding.min_jacobian,
        }  # fmt: skip


def _mean(rows: list[dict[str, float | bool]]) -> dict[str, float | int]:
    good = [row for row in rows if not row["refused"]]
    keys = good[0].keys() - {"refused"} if good else set()
    means = {key: round(statistics.mean(float(row[key]) for row in good), 4) for key in sorted(keys)}
    return {"n": len(rows), "refused_for_folding": len(rows) - len(good), **means}


def _gradients() -> dict[str, Any]:
    """What autograd keeps between forward and backward (bytes of saved tensors) and the gradient's distance from the discrete one."""
    generator = torch.Generator().manual_seed(0)
    shape = (30, 34, 30)
    values = torch.randn(1, 3, *shape, generator=generator) * 0.15 * border_window(shape)
    weights = torch.randn(3, *shape, generator=generator)
    out: dict[str, Any] = {"n": 1, "nodes": list(shape)}
    for integrator in ("squaring", "euler", "rk4"):
        reference = None
        for gradient in ("discrete",) if integrator == "squaring" else ("discrete", "adjoint"):
            for steps in (2, 8, 32):
                leaf = values.clone().requires_grad_(True)
                kept: dict[int, int] = {}

                def pack(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
                    kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                    return tensor

                started = time.process_time()
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                    forward, _ = half_flows(leaf, integrator, gradient, steps)  # type: ignore[arg-type]
                slope = torch.autograd.grad((forward * weights).sum(), leaf)[0]
                if gradient == "discrete" and steps == 32:
                    reference = slope
                apart = None if reference is None else float((slope - reference).norm() / reference.norm())
                out[f"{integrator} {gradient} {steps}"] = {
                    "n": 1,
                    "saved_mb": round(sum(kept.values()) / 2**20, 2),
                    "processor_seconds": round(time.process_time() - started, 3),
                    "distance_from_discrete_32": apart,
                }
                if integrator == "squaring":
                    break
    return out


if __name__ == "__main__":
    main()
