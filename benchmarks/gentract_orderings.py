"""The published GenTract at the size of two cores: steps, depth, diffusion against flow matching, and whether it looks.

    python benchmarks/gentract_orderings.py --subjects FOLDER --work FOLDER [--data $TRACTODE_TEST_DATA]
        [--runs diffusion:4:500,flow_matching:4:500,flow_matching_edm:4:500] [--output benchmarks/results/gentract_orderings.json]

The recipe ``small`` of `generative/paper_model.py` is fitted with equal numbers of steps and lines, then draws lines of
subjects that were never seen. ``--subjects`` is the folder of made subjects (`training/tract_subjects.py`; made where they
are missing), the first ``--train`` are learned from and the ``--test`` behind them are not.

- ``mdf_mm``: mean distance (MDF, 16 points) of a drawn line to the nearest true line of the subject; true are the lines of the
  bundles that exist in the subject, those of the atlas that no training subject has shown among them.
- ``valid_rate``: share of drawn lines with such a line within 6 mm. ``bundles_found``: share of the subject's bundles with
  at least one such line. Standard deviations over subjects; ``n`` subjects of ``lines`` lines each.
- ``conditioning``: the subject's own field, another's (the next one's), nobody (the learned null context), the mean field of
  the training subjects, and the own field with guidance 2.
- ``atlas``: lines of the library as it is, drawn at random: what a model that ignores its subject can reach.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from measure import meta
from torch import Tensor

from tractode.evaluate.bundle_distance import mdf_matrix
from tractode.fields import ShField
from tractode.generative.paper_model import RECIPES, PaperModel, PaperSettings
from tractode.generative.space import ORDER, training_grid
from tractode.generative.transformer import Memory
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.tract_subject import TractSubject
from tractode.training.coefficient_vae import RECIPES as VAE_RECIPES
from tractode.training.coefficient_vae import VaeProblem
from tractode.training.gentract_paper import RECIPES as TRAINING_RECIPES
from tractode.training.gentract_paper import Made, PaperProblem, normalise, volumes_of, with_points
from tractode.training.loop import LoopSettings, fit
from tractode.training.tract_subjects import SubjectCache, read_library

Record = dict[str, Any]
VALID_MM = 6.0
N_POINTS = 16
STEPS = (5, 10, 25, 50)


# --- fitting -----------------------------------------------------------------------------------------------------------


def settings_of(run: str) -> tuple[PaperSettings, LoopSettings]:
    """``paradigm[_edm]:layers:steps[:learning rate]`` → the small recipe with them."""
    paradigm, layers, steps, *rate = run.split(":")
    loop = replace(TRAINING_RECIPES["small"].loop, steps=int(steps))
    small = RECIPES["small"]
    changed = replace(
        small,
        paradigm="diffusion" if paradigm == "diffusion" else "flow_matching",
        flow_times="edm" if paradigm.endswith("_edm") else "uniform",
        transformer=replace(small.transformer, layers=int(layers)),
    )
    return changed, replace(loop, learning_rate=float(rate[0])) if rate else loop


def fitted_vaes(train: list[TractSubject], work: Path, steps: int) -> tuple[PaperModel, Record]:
    """The autoencoders that all runs share, with the training set's statistics."""
    torch.manual_seed(0)
    model = normalise(PaperModel(RECIPES["small"]), train)
    volumes = volumes_of(model, train)
    problem = VaeProblem(volumes, model.vaes, VAE_RECIPES["small"])
    started = time.process_time()
    losses = fit(
        problem,
        LoopSettings(steps=steps, learning_rate=3e-3, warm_up=20, checkpoint_every=100),
        work / "vae.safetensors",
        tell("vae"),
    )
    with torch.no_grad():
        some = volumes[:3]
        error = [(model.vaes.reconstructed(volume) - volume)[:, volume[0] != 0].abs().mean() for volume in some]
    record = {"steps": steps, "cpu_s": round(time.process_time() - started, 1) if losses else None}
    return model, {**record, "mean_absolute_error_z": round(float(torch.stack(error).mean()), 3), "n": len(some)}


def fitted(run: str, base: PaperModel, train: list[TractSubject], work: Path, made: Made) -> tuple[PaperModel, Record]:
    """A run of the small recipe on the shared autoencoders."""
    settings, loop = settings_of(run)
    torch.manual_seed(1)
    model = PaperModel(replace(settings, box_low=base.settings.box_low, box_high=base.settings.box_high))
    model.vaes.load_state_dict(base.vaes.state_dict())
    model.mean.copy_(base.mean)
    model.deviation.copy_(base.deviation)
    recipe = TRAINING_RECIPES["small"]
    problem = PaperProblem(train, model, recipe.batch, made=made)
    name = run.replace(":", "-")
    started = time.process_time()
    losses = fit(problem, loop, work / f"{name}.safetensors", tell(name))
    if losses:
        tenth = max(1, len(losses) // 10)
        curve = [round(sum(losses[i : i + tenth]) / tenth, 4) for i in range(0, tenth * 10, tenth)]
        spent = {
            "cpu_s": round(time.process_time() - started, 1),
            "loss_by_tenths": curve,
            "lines_per_step": problem.settings.n_lines,
        }
        (work / f"{name}.json").write_text(json.dumps(spent))
    spent = json.loads((work / f"{name}.json").read_text())
    n = sum(parameter.numel() for parameter in model.denoiser.parameters())
    return model.eval(), {"loop": asdict(loop), "parameters": n, **spent}


def tell(name: str) -> Any:
    def say(step: int, steps: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"{name} {step}/{steps} {loss:.4f} {time.process_time():.0f} s", file=sys.stderr, flush=True)

    return say


# --- judging -----------------------------------------------------------------------------------------------------------


class Truth:
    """The true lines of a subject, by N_POINTS points, and which bundle each belongs to."""

    def __init__(self, subject: TractSubject, library: BundleLibrary) -> None:
        self.subject = subject
        rows = subject.present[library.bundle] & (subject.kept | library.is_held_out)
        self.lines = with_points(subject.lines[rows].float(), N_POINTS)
        self.bundle = library.bundle[rows]

    def scores(self, drawn: Tensor) -> tuple[float, float, float]:
        """Mean nearest MDF, valid share, share of bundles found."""
        nearest, which = mdf_matrix(with_points(drawn.float(), N_POINTS), self.lines).min(1)
        valid = nearest < VALID_MM
        found = self.bundle[which[valid]].unique()
        return float(nearest.mean()), float(valid.float().mean()), len(found) / len(self.bundle.unique())


def summary(scores: list[tuple[float, float, float]], lines: int) -> Record:
    """Mean and standard deviation over subjects."""
    table = torch.tensor(scores, dtype=torch.float64)
    record: Record = {}
    for n, key in enumerate(("mdf_mm", "valid_rate", "bundles_found")):
        record[key] = round(float(table[:, n].mean()), 4)
        record[key + "_sd"] = round(float(table[:, n].std()), 4)
    return {**record, "n": len(scores), "lines": lines}


def judged(model: PaperModel, contexts: list[Memory], truths: list[Truth], lines: int, **how: Any) -> Record:
    drawn_scores, spent, n_drawn = [], 0.0, 0
    for number, (context, truth) in enumerate(zip(contexts, truths, strict=True)):
        started = time.process_time()
        drawn = model.sample(context, lines, torch.Generator().manual_seed(number), **how)
        spent, n_drawn = spent + time.process_time() - started, n_drawn + lines
        drawn_scores.append(truth.scores(drawn))
    return {**summary(drawn_scores, lines), "lines_per_cpu_s": round(n_drawn / spent, 1)}


def judge(model: PaperModel, truths: list[Truth], mean: Tensor, lines: int) -> Record:
    """All the questions to one fitted model."""
    grid = training_grid()
    contexts = [model.context(ShField(grid, truth.subject.coeffs, ORDER)) for truth in truths]
    typical = model.context(ShField(grid, mean, ORDER))
    by_steps = {str(n): judged(model, contexts, truths, lines, n_steps=n) for n in STEPS}
    for n in STEPS:
        by_steps[str(n)]["evaluations"] = model.settings.path.evaluations(n)
    asked = {
        "other": (contexts[1:] + contexts[:1], 1.0),
        "mean": ([typical] * len(truths), 1.0),
        "none": (contexts, 0.0),
        "right_guidance_2": (contexts, 2.0),
    }
    conditioning = {
        name: judged(model, which, truths, lines, n_steps=10, guidance=guidance)
        for name, (which, guidance) in asked.items()
    }
    return {"steps": by_steps, "conditioning": {"right": by_steps["10"], **conditioning}}


def atlas(library: BundleLibrary, truths: list[Truth], lines: int) -> Record:
    """Lines of the library that training subjects show, at random."""
    generator = torch.Generator().manual_seed(99)
    rows = (~library.is_held_out).nonzero().ravel()
    scores = []
    for truth in truths:
        some = rows[torch.randint(len(rows), (lines,), generator=generator)]
        scores.append(truth.scores(library.lines[some]))
    return summary(scores, lines)


# --- the whole ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TRACTODE_TEST_DATA", ".")))
    parser.add_argument("--subjects", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--train", type=int, default=24)
    parser.add_argument("--test", type=int, default=10)
    parser.add_argument(
        "--first-test", type=int, default=0, help="number of the first test subject (default: behind the others)"
    )
    parser.add_argument("--lines", type=int, default=64)
    parser.add_argument("--vae-steps", type=int, default=600)
    parser.add_argument("--runs", default="diffusion:4:500,flow_matching:4:500")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    library = read_library(options.data / "bundles_atlas")
    cache = SubjectCache(options.subjects, library)
    train = [cache[number] for number in range(options.train)]
    base, vae = fitted_vaes(train, options.work, options.vae_steps)
    first = options.first_test or options.train
    truths = [Truth(cache[number], library) for number in range(first, first + options.test)]
    mean = torch.stack([subject.coeffs for subject in train]).mean(0)
    made: Made = {}
    runs: Record = {}
    for run in options.runs.split(","):
        kept = options.work / f"{run.replace(':', '-')}.judged.json"
        if not kept.is_file():
            model, spent = fitted(run, base, train, options.work, made)
            kept.write_text(json.dumps({"training": spent, **judge(model, truths, mean, options.lines)}))
        runs[run] = json.loads(kept.read_text())
    record: Record = {
        "atlas": atlas(library, truths, options.lines),
        "vae": vae,
        "runs": runs,
        "valid_within_mm": VALID_MM,
        "train_subjects": options.train,
        "settings": asdict(RECIPES["small"]),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "meta": meta(
            "python benchmarks/gentract_orderings.py --data $TRACTODE_TEST_DATA --subjects SUBJECTS --work WORK "
            f"--train {options.train} --test {options.test} --first-test {first} --lines {options.lines} "
            f"--vae-steps {options.vae_steps} --runs {options.runs}"
        ),
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
