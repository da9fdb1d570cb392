"""The published studies in kind: metrics on the same pairs, step size, the barrier's ε against folding, and the memory of both gradients.

    python benchmarks/registration_studies.py [--work FOLDER] [--output benchmarks/results/registration_studies.json]

A. Rodríguez-Sanz, M. Hernandez, arXiv:2512.22689: descriptors against mutual information, Euler steps of 0.005 and 0.05, ε. The
pairs are the simulated ones of `registration_accuracy.py`. ``seconds`` are processor seconds of one thread. A study that
is finished is kept in ``--work``.
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
from unittest import mock

import measure
import registration_pairs as pairs
import torch

from tractode.errors import TractodeError
from tractode.evaluate.folding import certificate
from tractode.fields.transform import Affine
from tractode.io.weights import load_metric
from tractode.registration import DEFORMATIONS, optimise
from tractode.registration.deformation import border_window, half_flows
from tractode.registration.metrics.local_mutual_information import LocalMutualInformation
from tractode.registration.metrics.mind import MIND
from tractode.registration.optimise import COARSE, Schedule, Stage, register

IDENTITY = Affine(torch.eye(4, dtype=torch.float64), "fixed", "moving")
METRIC = MIND(radius=1, dilation=1)
SVF, DECODER = DEFORMATIONS["svf"], DEFORMATIONS["decoder"]
ADAM = partial(SVF)  # the same family, but not by Gauss-Newton
AT_4_MM = Schedule((Stage(6.0, 12.0, 6), Stage(4.0, 8.0, 6)), repeats=0)
WIDE = Schedule((Stage(4.0, 16.0, 4),), repeats=0)  # few nodes: a hundred steps of Euler are dear


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=3, help="of every study but those that say otherwise")
    parser.add_argument("--only", nargs="+", default=["metrics", "families", "step", "epsilon", "gradients"])
    parser.add_argument("--work", type=Path, default=Path("registration_work"))
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(1)
    fine, rough = (partial(pairs.made, "simulated", Path(), resolution, options.work) for resolution in (2.0, 4.0))
    studies: dict[str, Callable[[], Any]] = {
        "metrics": lambda: {
            "2 mm, default schedule": _each(_metrics("mind", "contrastive"), fine(options.pairs), COARSE),
            "4 mm": _each(
                {**_metrics("mind", "contrastive", "lmi"), "mind by Adam": {"deformation": ADAM}},
                rough(options.pairs),
                AT_4_MM,
            ),
        },
        "families": lambda: _each({"svf by Gauss-Newton": {}, **_families()}, rough(options.pairs), AT_4_MM),
        "step": lambda: _each(_steps(), rough(min(options.pairs, 2)), WIDE),
        "epsilon": lambda: _epsilon(rough(options.pairs)),
        "gradients": _gradients,
    }
    given = " ".join("$WORK" if a == str(options.work) else a for a in sys.argv[1:])
    command = f"python benchmarks/registration_studies.py {given}"
    result: dict[str, Any] = {
        "meta": {**measure.meta(command), "threads": 1, "seconds": "processor seconds; certificate within, imports not"}
    }
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        kept = options.work / f"study_{name}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(studies[name]()), encoding="utf-8")
        result[name] = json.loads(kept.read_text(encoding="utf-8"))
    text = json.dumps(result, indent=1)
    text = pairs.compact(text)
    print(text)
    if options.output:
        Path(options.output).write_text(text + "\n", encoding="utf-8")


def _each(variants: dict[str, dict[str, Any]], made: Any, plan: Schedule) -> dict[str, Any]:
    chosen = [pairs.load(folder) for folder in made]
    out = {}
    for name, settings in variants.items():
        out[name] = _mean(list(_rows(chosen, plan, settings)))
        print(name, json.dumps(out[name]), file=sys.stderr, flush=True)
    return out


def _metrics(*names: str) -> dict[str, dict[str, Any]]:
    """By Gauss-Newton, but for mutual information, which is no sum of squares: by Adam."""
    known = {"mind": METRIC, "contrastive": load_metric("contrastive"), "lmi": LocalMutualInformation()}
    return {name: {"metric": known[name]} for name in names}


def _families() -> dict[str, dict[str, Any]]:
    return {
        f"{name} by Adam": {"deformation": partial(DEFORMATIONS[name])} for name in ("svf", "tvf", "neural", "decoder")
    }


def _steps() -> dict[str, dict[str, Any]]:
    """Euler steps of the published sizes: 10 and 100 to either end."""
    return {
        f"decoder, euler h={h}": {"deformation": partial(DECODER, integrator="euler", steps=round(0.5 / h))}
        for h in (0.05, 0.005)
    }


def _epsilon(made: list[Any]) -> dict[str, Any]:
    """The barrier alone against folding: hardly any other regulariser, no repeats, and what folds is kept and counted."""
    out: dict[str, Any] = {}
    loose = Schedule(AT_4_MM.stages, weight=1e-4, step=1.0, repeats=0)
    plans = {"default regulariser, no barrier": AT_4_MM, "no barrier": loose}
    for epsilon in (0.0, 0.1, 0.3, 0.5, 0.8):
        plans[f"epsilon {epsilon}"] = replace(loose, barrier=10.0, epsilon=epsilon)
    for name, plan in plans.items():
        settings = {"deformation": partial(SVF, smoothing=0.5)}
        # The run's own refusal is set aside here: it is the folding that is asked for.
        with mock.patch.object(optimise, "_folds", return_value=False):
            out |= _each({name: settings}, made, plan)
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
        brain = int(pair.fixed_mask.mask.sum())
        yield {
            "refused": False, "epe_mm": error, "dice": overlap, "seconds": spent, "repeats": found.repeats,
            "folded_voxels": folding.n_folded, "folded_share_of_brain": folding.n_folded / brain,
            "non_diffeomorphic_volume": folding.non_diffeomorphic_volume, "min_jacobian": folding.min_jacobian,
        }  # fmt: skip


def _mean(rows: list[dict[str, float | bool]]) -> dict[str, float | int]:
    good = [row for row in rows if not row["refused"]]
    keys = good[0].keys() - {"refused"} if good else set()
    means = {key: round(statistics.mean(float(row[key]) for row in good), 4) for key in sorted(keys)}
    return {"n": len(good), "refused_for_folding": len(rows) - len(good), **means}


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
            # Scaling and squaring chooses its own number, by the slope.
            for steps in (0,) if integrator == "squaring" else (2, 8, 32):
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
                out[f"{integrator} {gradient} {steps}" if steps else "squaring"] = {
                    "n": 1,
                    "saved_mb": round(sum(kept.values()) / 2**20, 2),
                    "seconds": round(time.process_time() - started, 3),
                    **({} if apart is None else {"distance_from_discrete_32": apart}),
                }
    return out


if __name__ == "__main__":
    main()
