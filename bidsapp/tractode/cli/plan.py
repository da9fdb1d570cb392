"""What a run would do, before it does it: files found and ignored, models that will run or why not, memory and disk.

Reads sidecars, gradient tables and image headers; no voxel. The estimates are rough upper ends measured on real
scans, meant to stop a run that cannot end well, not to schedule one that can.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tractode.errors import InputOutputError, OutOfMemoryError, TractodeError
from tractode.settings import Settings

_GIB = 2**30
_PARENT_GB = 0.5  # the process that schedules
_N_VOLUMES = 65  # of the maps of the tensor and of an orientation distribution
_MEAN_LENGTH_MM = 80  # 62 mm on a real scan of 3 mm; rather too much than too little
_STEP_VOXELS = 0.1
_SLAB_MM = 100  # no adult brain is less than this in any direction


@dataclass(frozen=True)
class RunPlan:
    """One dwi run. ``models`` are those asked for, in order, each with why it runs; ``refused`` those that cannot, with the reason.

    ``left_out`` holds every other model with the reason.
    """

    participant: str
    name: str
    files: tuple[str, ...]
    anat: str | None = None
    correction: str = ""
    preprocessing: str = ""
    shape: tuple[int, ...] = ()
    voxel_sizes: tuple[float, ...] = ()
    n_b0: int = 0
    shells: tuple[tuple[int, int], ...] = ()
    models: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    untracked: str = ""
    steps_gb: dict[str, float] = field(default_factory=dict)
    generation: str = ""
    memory_gb: float = 0.0
    disk_gb: float = 0.0
    problems: tuple[TractodeError, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything the run would do, and what stands in its way."""

    runs: tuple[RunPlan, ...]
    ignored: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    memory_gb: float
    memory_limit_gb: float
    disk_gb: float
    disk_free_gb: float

    def input_problems(self) -> list[TractodeError]:
        return [problem for run in self.runs for problem in run.problems]

    def resource_problem(self) -> TractodeError | None:
        """Memory or disk that the run would surely lack."""
        if self.memory_gb > self.memory_limit_gb:
            return OutOfMemoryError(
                f"The run needs about {self.memory_gb:.1f} GiB of memory and may use {self.memory_limit_gb:.1f} GiB",
                id="E-MEM-ESTIMATE",
                needed=f"{self.memory_gb:.1f} GiB",
                fix="raise --mem or the limit of the batch job or container, or take fewer runs or a smaller image",
            )
        if self.disk_gb > self.disk_free_gb:
            return InputOutputError(
                f"The run writes about {self.disk_gb:.1f} GiB and the output disk has {self.disk_free_gb:.1f} GiB free",
                id="E-IO-SPACE",
                needed=f"{self.disk_gb:.1f} GiB",
                fix="free space, choose another output folder, or lower --n-streamlines",
            )
        return None

    def summary(self) -> list[str]:
        """What is said before the run starts: the models of the runs, what their data do not support, and the bound on memory."""
        said: dict[str, list[str]] = {}
        for run in self.runs:
            lines = [f"model {name}: {why}" for name, why in {**run.models, **run.refused}.items()]
            for line in [*lines, run.untracked]:
                said.setdefault(line, []).append(run.name)
        told = [f"{_few(names)}: {line}" for line, names in said.items() if line]
        return [*told, self.memory_text()]

    def memory_text(self) -> str:
        """The bound on memory, for people: said before the run starts."""
        largest = max((run for run in self.runs if run.steps_gb), key=lambda run: run.memory_gb, default=None)
        step = ""
        if largest is not None:
            name = max(largest.steps_gb, key=lambda step: largest.steps_gb[step])
            step = f"; the largest step is {name} of {largest.name}, at most {largest.memory_gb:.1f} GiB"
        return f"Memory: about {self.memory_gb:.1f} GiB of {self.memory_limit_gb:.1f} GiB{step}"

    def text(self) -> str:
        """The plan for people; plain lines, so that it can be piped and searched."""
        lines = [f"Plan for {len({run.participant for run in self.runs})} participant(s), {len(self.runs)} dwi run(s)"]
        for run in self.runs:
            lines += _run_lines(run)
        lines += [f"Ignored files: {len(self.ignored)}", *(f"  {path}: {reason}" for path, reason in self.ignored)]
        lines += [f"Note: {note}" for note in self.notes]
        lines.append(self.memory_text())
        lines.append(f"Disk: about {self.disk_gb:.1f} GiB of {self.disk_free_gb:.1f} GiB free")
        return "\n".join(lines)


def _few(names: Sequence[str]) -> str:
    """Names of runs that share a line."""
    return ", ".join(names) if len(names) < 4 else f"{len(names)} runs ({names[0]}, {names[1]}, …)"


def make_plan(discovery: Any, settings: Settings, memory_limit_gb: float, notes: Sequence[str] = ()) -> Plan:
    """Look at every run of a `Discovery` without opening an image beyond its header."""
    runs = tuple(
        _plan_run(participant, run, settings) for participant in discovery.participants for run in participant.runs
    )
    failed = tuple(
        RunPlan(participant.label, failure.name, (), problems=(failure.error,))
        for participant in discovery.participants
        for failure in participant.failures
    )
    concurrent = max(1, settings.nprocs // settings.omp_nthreads)
    needs = sorted((run.memory_gb for run in runs), reverse=True)
    # With room for one step at a time the run is slower, not impossible: the least it needs is its largest step.
    least = _PARENT_GB + max(needs, default=0.0)
    usual = _PARENT_GB + sum(needs[:concurrent])
    return Plan(
        runs=(*runs, *failed),
        ignored=tuple((item.path, item.reason) for item in discovery.ignored),
        notes=(*notes, *(str(getattr(note, "message", note)) for note in discovery.notes)),
        memory_gb=usual if usual <= memory_limit_gb else least,
        memory_limit_gb=memory_limit_gb,
        disk_gb=sum(run.disk_gb for run in runs),
        disk_free_gb=shutil.disk_usage(existing_parent(settings.output_dir)).free / _GIB,
    )


def existing_parent(path: Path) -> Path:
    """The nearest folder at or above ``path`` that exists."""
    return next(folder for folder in (path, *path.resolve().parents) if folder.exists())


def _plan_run(participant: Any, run: Any, settings: Settings) -> RunPlan:
    from tractode.bids.query import choose_anat
    from tractode.io.problems import parts_of

    anat = (
        None
        if settings.anat_modality == "none"
        else choose_anat(participant, run.session, settings.subject_anatomical_reference)
    )
    plan = RunPlan(
        participant=participant.label,
        name=run.name,
        files=tuple(str(path) for scan in run.scans for path in (scan.path, scan.bval, scan.bvec)),
        anat=str(anat.path) if anat else None,
        correction="; ".join(
            dict.fromkeys(str(c) for scan in run.scans for c in participant.corrections if c.run.name == scan.name)
        ),
    )
    try:
        return replace(plan, **_read_facts(run, settings))
    except TractodeError as error:
        return replace(plan, problems=tuple(parts_of(error)))


def _read_facts(run: Any, settings: Settings) -> dict[str, Any]:
    from tractode.models import MODELS
    from tractode.workflows.eligibility import choose, read_table
    from tractode.workflows.memory import components_of, fixel_components_of, step_memory_gb
    from tractode.workflows.preprocessing import outlook

    shape, voxel_sizes, gtab = read_table(run, settings)
    choice = choose(settings.models, gtab, settings.dti_largest_b)
    steps = step_memory_gb(
        shape, choice.models, settings, voxel_sizes=voxel_sizes, is_raw=not run.done_by, n_parts=len(run.scans)
    )
    n_tracts = len(settings.tracking) * (1 + len(settings.output_spaces)) * len(settings.tractogram_formats)
    n_tracts += len(settings.tracking) * settings.encode_bundles
    n_maps = sum(sum(components_of(MODELS[name])) for name in choice.models) * (1 + len(settings.output_spaces))
    n_maps += settings.fixels * sum(sum(fixel_components_of(MODELS[name])) for name in choice.models)
    return {
        "preprocessing": outlook(run, gtab, settings),
        "shape": shape,
        "voxel_sizes": voxel_sizes,
        "n_b0": int(gtab.is_b0.sum()),
        "shells": tuple((round(float(b)), len(index)) for b, index in gtab.shells()),
        "models": {name: choice.reasons[name] for name in choice.models if name not in choice.refused},
        "refused": {name: choice.reasons[name] for name in choice.models if name in choice.refused},
        "left_out": {name: why for name, why in choice.reasons.items() if name not in choice.models},
        "untracked": choice.untracked(settings.tracking),
        "steps_gb": steps,
        "generation": _generation(settings, choice.trackers(settings.tracking), shape, voxel_sizes),
        "memory_gb": max(steps.values()),
        "disk_gb": disk_gb(shape, voxel_sizes, settings.n_streamlines * n_tracts, n_maps),
    }


def _generation(
    settings: Settings, trackers: tuple[str, ...], shape: tuple[int, ...], voxel_sizes: tuple[float, ...]
) -> str:
    """What the header tells of generated streamlines and of bundles; the scan itself is looked at in the run."""
    from tractode.interfaces.methods import is_generative

    methods = [name for name in trackers if is_generative(name)]
    bundles = f"bundles of {', '.join(trackers)}: will be named if the registration passes"
    named = [bundles] if settings.encode_bundles and trackers else []
    if not methods:
        return "".join(named)
    least = min(n * size for n, size in zip(shape[:3], voxel_sizes, strict=True))
    fate = "will run if the registration passes" if least >= _SLAB_MM else f"will be refused: a slab of {least:.0f} mm"
    return "; ".join([f"streamlines {', '.join(methods)}: {fate}", *named])


def disk_gb(
    shape: tuple[int, ...], voxel_sizes: tuple[float, ...], n_streamlines: int, n_volumes: int = _N_VOLUMES
) -> float:
    """GiB that a run writes: scan and ``n_volumes`` of maps uncompressed (noise hardly compresses), and all tractograms."""
    n_voxels = shape[0] * shape[1] * shape[2]
    n_volumes += shape[3] if len(shape) > 3 else 1
    points = _MEAN_LENGTH_MM / (_STEP_VOXELS * min(voxel_sizes))
    return (n_voxels * n_volumes * 4 + n_streamlines * points * 12) / _GIB


def _run_lines(run: RunPlan) -> list[str]:
    lines = [
        f"  {run.name}",
        *(f"    {path}" for path in run.files),
        f"    anatomy: {run.anat or 'none; registered by its b=0'}",
    ]
    if run.correction:
        lines.append(f"    distortion: {run.correction}")
    if run.preprocessing:
        lines.append(f"    preprocessing: {run.preprocessing}")
    for problem in run.problems:
        lines.append(f"    cannot be used: {problem}")
    if run.shape:
        sizes = " x ".join(f"{size:.2f}" for size in run.voxel_sizes)
        shells = ", ".join(f"b={b} ({n} directions)" for b, n in run.shells)
        lines.append(f"    {' x '.join(map(str, run.shape))} voxels of {sizes} mm; {run.n_b0} b=0; {shells}")
        lines += [f"    model {name}: will run: {why}" for name, why in run.models.items()]
        lines += [f"    model {name}: will not run: {why}" for name, why in run.refused.items()]
        lines += [f"    model {name}: left out: {why}" for name, why in run.left_out.items()]
        lines += [f"    {text}" for text in (run.untracked, run.generation) if text]
        largest = max(run.steps_gb, key=lambda step: run.steps_gb[step])
        lines.append(f"    memory at most about {run.memory_gb:.1f} GiB ({largest}), disk about {run.disk_gb:.2f} GiB")
    return lines
