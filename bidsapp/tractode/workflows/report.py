"""A participant's page, put together from what the steps left in the ledger: it can be made again at any time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import tractode
from tractode.bids import citations
from tractode.bids.manifest import Ledger, StepRecord
from tractode.io.atomic import write_text
from tractode.reports.assemble import ReportData, RunSummary, participant_report
from tractode.reports.reportlet import Reportlet
from tractode.workflows.outcome import outcome


def write_report(output_dir: Path, participant: str) -> Path:
    """Write ``sub-X.html`` from the ledger of the latest run; works after a crash and without running anything."""
    ledger = Ledger(output_dir, participant)
    records, errors = ledger.records(), ledger.errors()
    result = outcome(output_dir, participant)
    by_step = {entry["step"]: entry["run"] for entry in ledger.plan()["steps"]}
    data = ReportData(
        title="tractode",
        participant=f"sub-{participant}",
        summary=_summary(result.complete, records, errors),
        runs=[
            _run(name, done, records, errors, by_step) for name, done in result.runs.items() if _is_scan(name, by_step)
        ],
        reportlets=_of_runs(
            _reportlets(output_dir, [*(r.facts for r in records), *(e.get("facts", {}) for e in errors)]),
            [*((r.step, r.facts) for r in records), *((e["step"], e.get("facts", {})) for e in errors)],
            by_step,
        ),
        plan=[
            (entry["step"], "missing" if entry["step"] in result.missing else "complete")
            for entry in ledger.plan()["steps"]
        ],
        notes=list(_notes(records)),
        errors=errors,
        provenance=_provenance(ledger, records),
        methods_md=citations.boilerplate(methods(records)),
        manifest=[
            {"file": path, "sha256": digest[:16]}
            for record in records
            for path, digest in record.outputs.items()
            if "/figures/" not in path
        ],
    )
    path = output_dir / f"sub-{participant}.html"
    write_text(path, participant_report(data))
    return path


def methods(records: Iterable[StepRecord]) -> dict[str, Any]:
    """What the methods text needs to know: which models, trackers, registrations and references were used."""
    facts: dict[str, Any] = {"models": [], "trackers": [], "sentences": [], "templates": [], "keys": []}
    for record in records:
        known = record.facts
        if "gradients" in known:  # a scan was prepared
            done_by = known.get("preprocessed_by")
            facts.setdefault("preprocessed", []).extend([done_by] if done_by else [])
            facts["raw"] = facts.get("raw", False) or not done_by
        if "fit" in known:
            facts["models"].append({"label": known["label"], **known["fit"]})
            facts["keys"].append(known["citation"])
        if "spread" in known:
            facts["sentences"].append(tuple(known["spread"]))
        if "tracker" in known:
            facts["trackers"].append({"method": known["method"], "n_streamlines": known["n_asked"], **known["tracker"]})
            facts["keys"].append(known["citation"])
        if "sentence" in known:
            facts["sentences"].append((known["sentence"], known["citation"]))
        facts["sentences"] += [(sentence, key) for sentence, key in known.get("sentences", [])]
        if "template" in known and "folding" in known:
            facts["templates"].append(known["template"])
            facts["anatomical"] = True
        if known.get("dof") == "affine":  # no anatomy: the scan itself went to the template
            facts["templates"].append(known["target"])
            facts.setdefault("anatomical", False)
    return facts


def _summary(complete: bool, records: list[StepRecord], errors: list[dict[str, Any]]) -> list[tuple[str, object]]:
    streamlines = sum(record.facts.get("n_streamlines", 0) for record in records)
    return [
        ("Result", "complete and verified" if complete else "not complete"),
        ("Errors", len(errors)),
        ("Runs prepared", sum("gradients" in record.facts for record in records)),
        ("Streamlines", f"{streamlines:,}"),
        ("Computing time (sum over steps)", f"{sum(record.seconds for record in records) / 60:.1f} min"),
        ("tractode", tractode.__version__),
    ]


def _is_scan(name: str, by_step: dict[str, str]) -> bool:
    return any(run == name and step.endswith(("_prepare-dwi", "_find")) for step, run in by_step.items())


def _run(
    name: str, done: bool, records: list[StepRecord], errors: list[dict[str, Any]], by_step: dict[str, str]
) -> RunSummary:
    """One line of the table of runs."""
    mine = [record.facts for record in records if by_step.get(record.step) == name]
    failed = [error for error in errors if by_step.get(error["step"]) == name]
    known: dict[str, Any] = {}
    for facts in [*(error.get("facts", {}) for error in failed), *mine]:
        known |= facts
    shown: dict[str, object] = {}
    if "shape" in known:
        shown["matrix"] = " × ".join(map(str, known["shape"]))
        shown["voxel (mm)"] = " × ".join(f"{size:g}" for size in known["voxel_sizes"])
        shown["shells"] = (
            ", ".join(f"{shell['directions']} at b={shell['b']}" for shell in known["shells"])
            + f", {known['n_b0']} at b=0"
        )
    if "gradients" in known:
        shown["gradient check"] = known["gradients"]["verdict"]
        shown["table used"] = known.get("gradients_used", "none")
    if "distortion_correction" in known:
        shown["distortion corrected by"] = known["distortion_correction"]
    if "preprocessing" in known:
        steps = [step for step, record in known["preprocessing"].items() if record["done"]]
        shown["preprocessing"] = ", ".join(steps) or "none"
    if "mean_fd" in known.get("image_quality", {}):
        shown["motion (mean, max mm a volume)"] = (
            f"{known['image_quality']['mean_fd']:.2f}, {known['image_quality']['max_fd']:.2f}"
        )
        shown["slices that lost signal"] = known["image_quality"]["num_bad_slices"]
    if fitted := [str(facts["model"]) for facts in mine if "fit" in facts]:
        shown["models"] = ", ".join(fitted)
    if "n_streamlines" in known:
        shown["streamlines"] = f"{known['n_streamlines']:,} of {known['n_asked']:,}"
    if "skipped" in known:
        shown["template outputs"] = known["skipped"]
    return RunSummary(name, "complete" if done else "failed", shown, "; ".join(error["found"] for error in failed))


def _notes(records: Iterable[StepRecord]) -> Iterable[tuple[str, str]]:
    for record in records:
        for note in record.facts.get("notes", []):
            yield note["level"], f"{record.step}: {note['message']}"
        if reason := record.facts.get("reason"):
            yield "info", f"{record.step}: model {record.facts['model']}: {reason}"
        for name, why in record.facts.get("left_out", {}).items():
            yield "info", f"{record.step}: model {name} was left out: {why}"
        if "skipped" in record.facts:
            yield "warning", f"{record.step}: {record.facts['skipped']}"


def _reportlets(output_dir: Path, facts: Iterable[dict[str, Any]]) -> list[Reportlet]:
    found = []
    for known in facts:
        for relative in known.get("reportlets", []):
            path = output_dir / relative
            # A figure that is gone or spoilt leaves its step "missing" in the plan; the rest of the page is still made.
            with suppress(OSError, ValueError, KeyError):
                description = path.read_text(encoding="utf-8")
                body = path.with_suffix(f".{json.loads(description)['kind']}").read_bytes()
                found.append(Reportlet.from_files(description, body))
    return found


def _of_runs(
    reportlets: list[Reportlet], facts: Iterable[tuple[str, dict[str, Any]]], by_step: dict[str, str]
) -> list[Reportlet]:
    """Pictures of the parts of a combined run stand with that run, under the part's name."""
    owner = {part: by_step[step] for step, known in facts for part in known.get("parts", []) if step in by_step}
    return [
        replace(item, run=owner[item.run], title=f"{item.title}, {item.run}") if item.run in owner else item
        for item in reportlets
    ]


def _provenance(ledger: Ledger, records: list[StepRecord]) -> dict[str, object]:
    plan = ledger.plan()
    inputs = {
        path: digest
        for record in records
        for path, digest in record.inputs.items()
        if not Path(path).is_relative_to(ledger.output_dir)
    }
    return {
        "run": plan["run_id"],
        "version": tractode.__version__,
        "torch": torch.__version__,
        **{f"input {Path(path).name}": digest[:16] for path, digest in inputs.items()},
    }
