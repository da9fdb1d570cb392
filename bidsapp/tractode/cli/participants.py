"""The participant level: find, check, lock, compute, verify, report, and say in one exit code what became of it."""

from __future__ import annotations

import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tractode.bids.citations import boilerplate, citation_keys, write_citations
from tractode.bids.dataset import write_description
from tractode.bids.lock import ParticipantLock
from tractode.bids.manifest import Ledger
from tractode.bids.query import Discovery, Participant, find_participants
from tractode.bids.templates import BUILT_IN, find_template
from tractode.cli import environment, folders, verdict
from tractode.cli.crash import write_bundle
from tractode.cli.logs import logging_to
from tractode.cli.parser import Request
from tractode.cli.plan import Plan, make_plan
from tractode.errors import (
    InternalError,
    LockedError,
    MissingInputError,
    NoMatchError,
    ResourceUnavailableError,
    TractodeError,
)
from tractode.io.atomic import TEMPORARY_PREFIX, write_text
from tractode.settings import Settings, templates_among
from tractode.workflows.outcome import Outcome, outcome
from tractode.workflows.report import methods, write_report


def run_participants(request: Request) -> int:
    """Everything between the parsed command line and the exit code."""
    settings = request.settings
    folders.check_apart(settings)
    if settings.reports_only:
        return _reports_only(settings)
    folders.check_input(settings.bids_dir)
    with logging_to(None, settings.verbosity):
        discovery = _discover(settings)
        settings, notes = _resolved(request)
        plan = _plan(discovery, settings, [*request.notes, *notes])
    if settings.dry_run:
        return _show(plan)
    for note in plan.notes:
        print(f"Note: {note}")
    for line in plan.summary():
        print(line, flush=True)
    if (problem := plan.resource_problem()) is not None:
        raise problem
    folders.check_output(settings.output_dir)
    _describe_output(settings)
    return _Run(settings, discovery).carry_out()


def _discover(settings: Settings) -> Discovery:
    return find_participants(
        settings.bids_dir,
        participants=settings.participants,
        sessions=settings.sessions,
        filters=settings.bids_filters,
        anat_modality=settings.anat_modality,
        validate=not settings.skip_bids_validation,
        sdc="none" if "sdc" in settings.ignore else settings.sdc,
        ignore_fieldmaps="fieldmaps" in settings.ignore,
        needs_correction=settings.require_sdc,
        input_type=settings.input_type,
        combine_runs=settings.combine_runs == "all",
    )


def _resolved(request: Request) -> tuple[Settings, list[str]]:
    """Settings with the device and templates that will really be used.

    Raises
    ------
    ResourceUnavailableError
        A device or template that was asked for is not to be had.
    """

    settings = request.settings
    device, note = environment.resolve_device(settings.device)
    notes = [note] if note else []
    spaces = settings.output_spaces
    try:
        for space in templates_among(spaces):
            find_template(space)
    except ResourceUnavailableError as error:
        if "output_spaces" in request.asked:
            raise
        spaces = (BUILT_IN,)
        notes.append(f"{error.found}: the built-in {BUILT_IN} is used (see TEMPLATEFLOW_HOME in the documentation).")
    notes += _generators(settings)
    return replace(settings, device=device, output_spaces=spaces), notes


def _generators(settings: Settings) -> list[str]:
    """What models of streamlines will be used; raises where their weights are not to be had or a bundle is unknown."""
    from tractode.interfaces.methods import is_generative

    notes = []
    for method in filter(is_generative, settings.tracking):
        from tractode.workflows.tracking import generation_of

        generation = generation_of(settings)
        model = generation.model(method)
        notes.append(
            f"{method}: streamlines of {len(generation.bundles or model.names)} bundles are generated with the weights "
            f"{generation.weights_facts(method)['Name']}; runs are registered to {model.space} for it."
        )
    if settings.encode_bundles and settings.tracking:
        from tractode.workflows.bundles import codec_of

        plan = codec_of(settings)
        codec = plan.codec()
        notes.append(
            f"Bundles are named ({len(codec.names)} of them) with the weights {plan.weights_facts()['Name']}; "
            f"runs are registered to {codec.space} for it."
        )
    return notes


def _plan(discovery: Discovery, settings: Settings, notes: Sequence[str]) -> Plan:

    return make_plan(discovery, settings, environment.memory_limit_gb(settings.memory_gb), notes)


def _show(plan: Plan) -> int:
    """Print the plan; its exit code is the one the run would end with, as far as that is known before it."""
    print(plan.text())
    problems = plan.input_problems()
    if (lack := plan.resource_problem()) is not None:
        problems.append(lack)
    for problem in problems:
        print(f"tractode: {problem}", file=sys.stderr)
    return verdict.exit_code(problem.exit_code for problem in problems)


def _describe_output(settings: Settings) -> None:

    write_description(settings.output_dir, settings.bids_dir)


def _reports_only(settings: Settings) -> int:
    """Assemble reports again from the ledgers of an output folder."""

    logs = settings.output_dir / "logs"
    present = sorted(path.name.removeprefix("sub-") for path in logs.glob("sub-*") if (path / "plan.json").is_file())
    if not present:
        raise MissingInputError(
            "There are no results to report on",
            id="E-OUT-EMPTY",
            path=settings.output_dir,
            needed="an output folder of tractode",
            fix="run without --reports-only first",
        )
    absent = [label for label in settings.participants if label not in present]
    if absent:
        raise NoMatchError(
            f"No results of {', '.join(f'sub-{label}' for label in absent)}",
            id="E-LABEL-OUTPUT",
            path=settings.output_dir,
            needed=f"labels among {', '.join(present[:10])}",
        )
    outcomes = []
    for label in settings.participants or present:
        print(f"Report: {write_report(settings.output_dir, label)}")
        outcomes.append(outcome(settings.output_dir, label))
    verdict.print_table(outcomes, {})
    return 0


class _Run:
    """One run over participants: their locks, their workflow, their outcomes."""

    def __init__(self, settings: Settings, discovery: Discovery) -> None:
        self.settings = settings
        self.participants = list(discovery.participants)
        self.run_id = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}"
        self.log_file = settings.output_dir / "logs" / f"run-{self.run_id}.log"
        self.locked: dict[str, TractodeError] = {}
        self.traces: dict[str, str] = {}

    def carry_out(self) -> int:
        with ExitStack() as stack:
            mine = self._lock(stack)
            if not mine:
                raise next(iter(self.locked.values()))
            stack.enter_context(logging_to(self.log_file, self.settings.verbosity))
            run_dir = folders.make_run_dir(self.settings.work_dir)
            if "workdir" not in self.settings.debug:
                stack.callback(folders.remove_run_dir, run_dir)
            with self._swept(mine):
                self._compute(mine, run_dir)
            outcomes = [self._conclude(participant.label) for participant in mine]
            _cite(self.settings, [participant.label for participant in mine])
        return self._verdict(outcomes)

    def _lock(self, stack: ExitStack) -> list[Participant]:
        """Participants that are ours for this run; the others are another live run's."""

        mine = []
        for participant in self.participants:
            try:
                stack.enter_context(ParticipantLock(self.settings.output_dir, participant.label))
            except LockedError as error:
                self.locked[participant.label] = error
            else:
                mine.append(participant)
        return mine

    @contextmanager
    def _swept(self, mine: Sequence[Participant]) -> Iterator[None]:
        """Half-written files of killed processes, of earlier runs and of this one, are removed under the lock."""
        roots = [
            self.settings.output_dir / folder / f"sub-{participant.label}"
            for participant in mine
            for folder in ("", "logs")
        ]
        _sweep(roots)
        try:
            yield
        finally:
            _sweep(roots)

    def _compute(self, mine: Sequence[Participant], run_dir: Path) -> None:
        from nipype.pipeline import engine as pe

        from tractode.cli.engine import configure, run_workflow

        configure(self.settings, run_dir)
        workflow = pe.Workflow(name="tractode", base_dir=str(run_dir))
        owners: dict[str, str] = {}
        for participant in mine:
            write_text(
                self.settings.output_dir / "logs" / f"sub-{participant.label}" / "settings.toml",
                self.settings.to_toml(),
            )
            part = self._part(participant, run_dir)
            if part is not None and part.list_node_names():
                workflow.add_nodes([part])
                owners[part.name] = participant.label
        n_runs = sum(len(participant.runs) for participant in mine)
        print(
            f"Run {self.run_id}: {len(mine)} participant(s), {n_runs} dwi run(s), device {self.settings.device}",
            flush=True,
        )
        if not owners:
            return
        failures = run_workflow(workflow, self.settings, self.log_file)
        for failure in failures:
            label = next(owners[part] for part in failure.node.split(".") if part in owners)
            self._record(label, failure)
        if failures and self.settings.stop_on_first_crash:
            self._tell_the_stopped(mine)

    def _tell_the_stopped(self, mine: Sequence[Participant]) -> None:
        """Participants that a failure of another's stopped are not at fault: they say so, with that failure's code."""
        ledgers = [Ledger(self.settings.output_dir, participant.label, self.run_id) for participant in mine]
        causes = [error for ledger in ledgers for error in ledger.errors()]
        for ledger in ledgers:
            if ledger.errors() or not ledger.unkept():
                continue
            error = TractodeError(
                f"sub-{ledger.participant} was not finished: another participant failed first",
                id="E-RUN-STOPPED",
                needed="no failure, with --stop-on-first-crash",
                fix="mend the failure or leave out --stop-on-first-crash; the same command goes on from here",
            )
            error.exit_code = int(causes[0]["exit_code"])
            ledger.record_error("stopped", error)

    def _part(self, participant: Participant, run_dir: Path) -> Any:
        """A participant's workflow, or ``None`` where it cannot be laid out; what was found unusable is recorded."""
        from tractode.workflows.participant import init_participant_wf

        ledger = Ledger(self.settings.output_dir, participant.label, self.run_id)
        part, problem = None, None
        try:
            part = init_participant_wf(participant, replace(self.settings, work_dir=run_dir), self.run_id)
        except TractodeError as error:
            ledger.promise([])
            problem = error
        lost = [{"step": f"{failure.name}_find", "run": failure.name} for failure in participant.failures]
        if lost:
            ledger.promise([*ledger.plan()["steps"], *lost])
        for failure in participant.failures:
            ledger.record_error(f"{failure.name}_find", failure.error)
        if problem is not None:
            ledger.record_error("lay-out", problem)
        return part

    def _record(self, label: str, failure: Any) -> None:
        """A failure that left no error of its own in the ledger (a killed worker could not) gets one."""

        ledger = Ledger(self.settings.output_dir, label, self.run_id)
        self.traces[f"{label}/{failure.step}"] = failure.text
        if all(record.get("step") != failure.step for record in ledger.errors()):
            ledger.record_error(failure.step, failure.error())

    def _conclude(self, label: str) -> Outcome:
        """Verify a participant's files, write its manifest and its report: after a crash too."""

        ledger = Ledger(self.settings.output_dir, label, self.run_id)
        ledger.close()
        try:
            path = write_report(self.settings.output_dir, label)
            print(f"Report: {path}", flush=True)
        except TractodeError as error:
            ledger.record_error("report", error)
        except Exception as error:
            from tractode.cli.crash import traceback_text

            self.traces[f"{label}/report"] = traceback_text(error)
            ledger.record_error(
                "report",
                InternalError(
                    f"The report could not be made ({type(error).__name__}: {error})",
                    id="E-BUG-REPORT",
                    fix="please report it with the crash bundle",
                ),
            )
        return outcome(self.settings.output_dir, label)

    def _verdict(self, outcomes: list[Outcome]) -> int:
        verdict.print_table(outcomes, self.locked)
        records = [record for outcome in outcomes for record in verdict.errors_of(outcome)]
        for line in dict.fromkeys([*map(verdict.text_of, records), *map(str, self.locked.values())]):
            print(f"tractode: {line}", file=sys.stderr)
        codes = [int(record.get("exit_code", InternalError.exit_code)) for record in records]
        if InternalError.exit_code in codes:
            texts = {f"traces/{name}.txt": text for name, text in self.traces.items()}
            bundle = write_bundle(
                self.settings.output_dir / "logs", {"settings.toml": self.settings.to_toml(), **texts}, [self.log_file]
            )
            print(f"tractode: This is a bug of tractode. Crash bundle: {bundle}", file=sys.stderr)
        return verdict.exit_code([*codes, *(error.exit_code for error in self.locked.values())])


def _cite(settings: Settings, labels: Sequence[str]) -> None:
    """``logs/CITATION.*``: what to cite for what was used. Jobs that share a folder replace each other's, whole."""
    ledgers = [Ledger(settings.output_dir, label) for label in labels]
    facts = methods(record for ledger in ledgers for record in ledger.records())
    write_citations(
        settings.output_dir / "logs", citation_keys(facts), boilerplate(facts), md_only=settings.md_only_boilerplate
    )


def _sweep(roots: Sequence[Path]) -> None:
    for root in roots:
        for leftover in root.rglob(f"{TEMPORARY_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
