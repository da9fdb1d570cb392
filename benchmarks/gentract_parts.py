"""What `gentract.py` computes for one test subject at a time; every record is kept in the work folder as soon as it is made."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gentract_lines import Case, Drawer, Made, atlas_lines
from gentract_scores import Record, is_valid, scored
from gentract_trackers import LOCAL, track
from scipy import stats
from torch import Tensor

from tractode.evaluate.calibration import discrimination, reliability
from tractode.fields import Streamlines, Transform
from tractode.fields.line_shape import resampled
from tractode.simulate.bundle_library import BundleLibrary

QUALITIES = ("base", "noise", "lowres", "lowres_noise")
ATLAS = ("atlas", "atlas_affine", "atlas_registered", "atlas_registered_present", "atlas_registered_spread")
CEILING = "ceiling"
SHOWN = ("other", "mean", "none", "other_field_only", "mean_field_only", "none_field_only")
STEPS = (1, 2, 4, 6, 10, 25, 50)
NOISE_STEPS = (5, 10, 25, 50)
FROM_NOISE = {"min_confidence": 0.0, "least_presence": 0.0, "n_steps": 10}
_UNGUIDED = {"climb_mm": 0.0, "contrast": 0.0}
GUIDANCE: dict[str, dict[str, float]] = {
    "as_shipped": {},
    "none": _UNGUIDED,
    "field_0.5mm": {**_UNGUIDED, "climb_mm": 0.5},
    "field_1mm": {**_UNGUIDED, "climb_mm": 1.0},
    "classifier_free_0.5": {**_UNGUIDED, "contrast": 0.5},
    "classifier_free_1": {**_UNGUIDED, "contrast": 1.0},
}


@dataclass
class Bench:
    """What every part needs. ``load`` gives a test subject at a quality, ``whole`` all lines of the library as they run in it and
    the way from its scan to there, ``drawers`` a generator by the method's name.

    While ``is_frozen`` nothing is computed: parts gather what there is.
    """

    work: Path
    library: BundleLibrary
    numbers: tuple[int, ...]
    n_lines: int
    n_few: int
    load: Callable[[int, str], Case]
    whole: Callable[[int], tuple[Tensor, Transform]]
    drawers: dict[str, Drawer] = field(default_factory=dict)
    is_frozen: bool = False

    def kept(self, name: str, make: Callable[[], Record]) -> Record | None:
        """The record of that name from the work folder, made if it is not there."""
        path = self.work / "records" / f"{name}.json"
        if not path.is_file():
            if self.is_frozen:
                return None
            started = time.monotonic()
            record = {**make(), "seconds": round(time.monotonic() - started, 1)}
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(record))
            partial.rename(path)
            told = {key: round(record[key], 3) for key in ("valid_rate", "overlap", "mdf_mm") if record.get(key)}
            print(f"{name} {told} {record['seconds']} s", file=sys.stderr, flush=True)
        return json.loads(path.read_text())

    def folder(self, method: str) -> str:
        """Records of a generator belong to its weights, and all to the number of lines."""
        of = f"-{self.drawers[method].hash}" if method in self.drawers else ""
        return f"{method}{of}-n{self.n_lines}"

    def ours(self) -> Drawer:
        return self.drawers["gentract"]


def table(bench: Bench, quality: str, methods: Sequence[str]) -> dict[str, dict[int, Record]]:
    """The scores of each method in each subject at one quality; subjects outermost, so that each is read once."""
    found: dict[str, dict[int, Record]] = {method: {} for method in methods}
    for number in bench.numbers:
        case = Late(bench, number, quality)
        for method in methods:
            name = f"tables/{quality}/{bench.folder(method)}/{number}"
            record = bench.kept(name, lambda m=method, c=case: _scores(bench, m, c()))
            _put(found[method], number, record)
    return found


def _put(found: dict[int, Record], number: int, record: Record | None) -> None:
    if record is not None:
        found[number] = record


class Late:
    """A test subject, read when it is first asked for."""

    def __init__(self, bench: Bench, number: int, quality: str) -> None:
        self._make, self._case = (lambda: bench.load(number, quality)), None

    def __call__(self) -> Case:
        if self._case is None:
            self._case = self._make()
        return self._case


def _scores(bench: Bench, method: str, case: Case) -> Record:
    made = _made(bench, method, case)
    return scored(made.lines, case.regions, case.lines, made.made_for)


def _made(bench: Bench, method: str, case: Case) -> Made:
    if method in LOCAL:
        return Made(track(method, case.fod, case.white, bench.n_lines, seed=case.number + 1))
    if method in ATLAS:
        return _atlas(bench, method, case)
    if method == CEILING:
        own, way = bench.whole(case.number)
        return atlas_lines(bench.library, bench.n_lines, set(case.regions), own=own).carried(way)
    return drawn(bench, method, case).carried(case.registered)


def _atlas(bench: Bench, method: str, case: Case) -> Made:
    """The library's lines; of the two pictures of anatomy (atlas, simulator) the one that the subject was made of."""
    exist, family = set(case.regions), _family(bench, case)
    made = atlas_lines(
        bench.library,
        bench.n_lines,
        exist if method.endswith("_present") else family,
        spread=method.endswith("_spread"),
    )
    way = {"atlas": case.centred, "atlas_affine": case.affine}.get(method, case.registered)
    return made.carried(way)


def _family(bench: Bench, case: Case) -> set[str]:
    """All bundles of the kinds (atlas's, simulator's) that the subject has any of."""
    kinds = dict(zip(bench.library.names, bench.library.is_simulated.tolist(), strict=True))
    own = {kinds[name] for name in case.regions}
    return {name for name, kind in kinds.items() if kind in own}


def drawn(bench: Bench, method: str, case: Case, n: int | None = None, **sampling: Any) -> Made:
    """A generator's lines for the subject's own field, in the training space; ``sampling`` also takes ``bundles``."""
    name = f"{case.quality}/{case.number}"
    return bench.drawers[method].made(case.field, name, n or bench.n_lines, **sampling)


def conditioning(bench: Bench, quality: str) -> dict[str, dict[int, Record]]:
    """Ours with something else than the subject's field: another's, the mean, none; all of it, or only what the model sees."""
    found: dict[str, dict[int, Record]] = {name: {} for name in SHOWN}
    for place, number in enumerate(bench.numbers):
        case = Late(bench, number, quality)
        other = Late(bench, bench.numbers[(place + 1) % len(bench.numbers)], quality)
        for shown in SHOWN:
            name = f"conditioning/{quality}/{bench.folder('gentract')}/{shown}/{number}"
            _put(found[shown], number, bench.kept(name, lambda s=shown, c=case, o=other: _shown(bench, s, c(), o)))
    return found


def _shown(bench: Bench, shown: str, case: Case, other: Callable[[], Case]) -> Record:
    what = shown.removesuffix("_field_only")
    if what == "other":
        made = drawn(bench, "gentract", other())
    else:
        field_shown = bench.ours().mean_field() if what == "mean" else None
        # Told which of the two pictures of anatomy to draw, which no subject's field would tell.
        made = bench.ours().made(field_shown, what, bench.n_lines, bundles=tuple(sorted(_family(bench, case))))
    if shown.endswith("_field_only"):
        own = made.carried(case.registered)
    elif what == "other":
        # Made for the other one and taken home by its registration; then the two heads are laid on one another.
        home = made.carried(other().registered)
        own = Made(home.lines.moved(other().centred), made.made_for).carried(case.centred)
    else:
        own = made.carried(case.centred)
    return scored(own.lines, case.regions, case.lines, own.made_for)


def sampling(bench: Bench, quality: str) -> dict[str, dict[int, Record]]:
    """Fewer lines, with more or fewer steps, and with guidance; all are told which bundles exist."""
    ways: dict[str, dict[str, Any]] = {f"steps/{n}": {"n_steps": n} for n in STEPS}
    ways |= {f"guidance/{name}": change for name, change in GUIDANCE.items()}
    found: dict[str, dict[int, Record]] = {name: {} for name in ways}
    for number in bench.numbers:
        case = Late(bench, number, quality)
        for way, change in ways.items():
            name = f"sampling/{quality}/{bench.ours().hash}-n{bench.n_few}/{way}/{number}"
            _put(found[way], number, bench.kept(name, lambda c=case, d=change: _drawn_scores(bench, c(), d)))
    return found


def noise_steps(bench: Bench, quality: str) -> dict[str, dict[int, Record]]:
    """The networks that start from noise, with more or fewer steps; told which bundles exist, no line refused."""
    methods = [name for name in bench.drawers if name != "gentract"]
    found: dict[str, dict[int, Record]] = {f"{method}/{n}": {} for method in methods for n in NOISE_STEPS}
    for number in bench.numbers:
        case = Late(bench, number, quality)
        for way, kept in found.items():
            method, _, steps = way.partition("/")
            name = f"noise_steps/{quality}/{bench.drawers[method].hash}-n{bench.n_few}/{steps}/{number}"
            make = lambda c=case, m=method, n=steps: _drawn_scores(bench, c(), {"n_steps": int(n)}, m)  # noqa: E731
            _put(kept, number, bench.kept(name, make))
    return found


def _drawn_scores(bench: Bench, case: Case, change: dict[str, Any], method: str = "gentract") -> Record:
    started = time.monotonic()
    made = drawn(bench, method, case, bench.n_few, bundles=tuple(case.regions), **change)
    seconds = time.monotonic() - started
    own = made.carried(case.registered)
    return {**scored(own.lines, case.regions, case.lines, own.made_for), "draw_seconds": seconds}


def calibration(bench: Bench, quality: str) -> dict[int, Record]:
    """Lines of every confidence: whether they are valid, and whether a true line of their bundle is near."""
    found: dict[int, Record] = {}
    for number in bench.numbers:
        case = Late(bench, number, quality)
        name = f"calibration/{quality}/{bench.ours().hash}-n{bench.n_few}/{number}"
        _put(found, number, bench.kept(name, lambda c=case: _calibrated(bench, c())))
    return found


def _calibrated(bench: Bench, case: Case) -> Record:
    made = drawn(bench, "gentract", case, bench.n_few, min_confidence=0.0).carried(case.registered)
    assert made.confidence is not None
    assert made.made_for is not None
    valid = is_valid(made.lines, case.regions)
    near = is_near(made, case, 4.0)
    model = bench.ours().model
    spread = model.spread(model.context(case.field), torch.Generator().manual_seed(1), n_lines=6, n_repeats=4)
    errors = scored(made.lines, case.regions, case.lines, made.made_for)["bundles"]
    both = [
        (float(spread[model.names.index(name)]), one["mdf_mm"])
        for name, one in errors.items()
        if "mdf_mm" in one and name in model.names and not spread[model.names.index(name)].isnan()
    ]
    return {
        "confidence": [round(float(c), 4) for c in made.confidence],
        "valid": valid.int().tolist(),
        "near": near.int().tolist(),
        "spread_mm": [a for a, _ in both],
        "error_mm": [b for _, b in both],
    }


def is_near(made: Made, case: Case, within_mm: float) -> Tensor:
    """Whether a true line of the bundle that a line was made for is within a distance (root mean square over 16 points)."""
    assert made.made_for is not None
    points = resampled(made.lines, 16)
    near = torch.zeros(len(points), dtype=torch.bool)
    for name in set(made.made_for) & set(case.lines):
        rows = torch.tensor([name == own for own in made.made_for]).nonzero().ravel()
        truth = resampled(case.lines[name], 16)
        both = torch.cat([truth, truth.flip(1)]).flatten(1)
        near[rows] = torch.cdist(points[rows].flatten(1), both).amin(1) / 4 < within_mm
    return near


def calibration_summary(found: dict[int, Record]) -> Record:
    """Reliability of all lines together; errors as mean and deviation over subjects."""
    entry: Record = {"n": len(found)}
    for key in ("valid", "near"):
        one = [(torch.tensor(r["confidence"]), torch.tensor(r[key]).bool()) for r in found.values()]
        every = reliability(torch.cat([p for p, _ in one]), torch.cat([y for _, y in one]))
        own = [reliability(p, y).error for p, y in one]
        areas = [discrimination(p, y) for p, y in one]
        entry[key] = {
            "stated": [round(x, 4) for x in every.stated],
            "observed": [round(x, 4) for x in every.observed],
            "lines": list(every.counts),
            "expected_calibration_error": round(every.error, 4),
            **_spread("expected_calibration_error_of_subjects", own),
            **_spread("discrimination", areas),
            "brier": round(every.brier, 4),
            "n": len(found),
        }
    ranks = [float(stats.spearmanr(r["spread_mm"], r["error_mm"]).statistic) for r in found.values()]
    entry["spread_against_error"] = {**_spread("spearman", ranks), "n": len(found)}
    return entry


def _spread(name: str, values: Sequence[float]) -> Record:
    deviation = round(statistics.stdev(values), 4) if len(values) > 1 else None
    return {name: round(statistics.fmean(values), 4), f"{name}_sd": deviation}


def invariance(bench: Bench, quality: str) -> Record | None:
    """Same seed, same streamlines: however many are asked for, whatever the number of threads, drawn again."""

    def once() -> Record:
        case = bench.load(bench.numbers[0], quality)
        model, threads = bench.ours().model, torch.get_num_threads()
        seen = model.context(case.field)

        def draw(n: int) -> Tensor:
            parts = list(model.sample(seen, n, torch.Generator().manual_seed(5)))
            return Streamlines.concatenate(parts, model.space).points

        few, more = draw(300), draw(900)
        torch.set_num_threads(2 if threads == 1 else 1)
        again = draw(300)
        torch.set_num_threads(threads)
        return {
            "same_again": bool(torch.equal(few, draw(300))),
            "same_of_more": bool(torch.equal(few, more[: len(few)])),
            "same_with_other_threads": bool(torch.equal(few, again)),
            "largest_difference_other_threads_mm": float((few - again).abs().max()),
            "n": 300,
        }

    return bench.kept(f"sampling/{quality}/{bench.ours().hash}-n{bench.n_few}/invariance", once)
