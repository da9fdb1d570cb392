"""The group level: one row a dwi run from what participants' runs left in the output folder, as a table and a page.

Reads the output folder only, and writes the same bytes whenever it holds the same results: it can be run at any time,
while participants are still being processed too.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tractode
from tractode.bids.dataset import check_output
from tractode.bids.manifest import Ledger, StepRecord
from tractode.errors import MissingInputError, NoMatchError, TractodeError
from tractode.io.atomic import write_text
from tractode.io.nifti import read_image
from tractode.reports.group import group_report
from tractode.reports.group_bundles import bundle_map
from tractode.workflows import group_bundles
from tractode.workflows.group_responses import average_responses

MISSING = "n/a"

#: Column → meaning and unit; the order of the table.
DICTIONARY: dict[str, dict[str, str]] = {
    "participant_id": {"Description": "Participant"},
    "session_id": {"Description": "Session"},
    "run": {"Description": "Entities of the dwi run"},
    "status": {"Description": "complete: every promised output is there; failed: an error was reported; unfinished: neither (yet)"},
    "n_volumes": {"Description": "Volumes of the scan as used"},
    "n_b0": {"Description": "Volumes taken as b=0"},
    "n_directions": {"Description": "Weighted volumes"},
    "max_b": {"Description": "Largest mean b-value of a shell", "Units": "s/mm^2"},
    "voxel_volume": {"Description": "Volume of a voxel", "Units": "mm^3"},
    "brain_ml": {"Description": "Volume of the brain mask", "Units": "mL"},
    "gradient_verdict": {"Description": "Does the gradient table fit the image: PASS, FAIL or INCONCLUSIVE"},
    "gradients_used": {"Description": "What was done with the table"},
    "distortion_correction": {"Description": "What corrected susceptibility distortion, or why nothing did"},
    "preprocessing": {"Description": "Steps of preprocessing that were done"},
    "raw_masked_neighbor_corr": {"Description": "Mean correlation of each weighted volume with its nearest in q-space, in the brain, as acquired", "Units": "1"},
    "processed_masked_neighbor_corr": {"Description": "The same after preprocessing", "Units": "1"},
    "mean_fd": {"Description": "Mean framewise displacement (shifts, and turns at 50 mm)", "Units": "mm"},
    "max_fd": {"Description": "Largest framewise displacement", "Units": "mm"},
    "num_bad_slices": {"Description": "Slices that had lost signal", "Units": "1"},
    "median_fa": {"Description": "Median fractional anisotropy inside the brain mask", "Units": "1"},
    "median_md": {"Description": "Median mean diffusivity inside the brain mask", "Units": "mm^2/s"},
    "n_streamlines": {"Description": "Accepted streamlines, all methods"},
    "median_length": {"Description": "Median length of the accepted streamlines", "Units": "mm"},
    "coregistration_dice": {"Description": "Overlap of the brain masks after b=0 was registered to the anatomy or, without one, to the template", "Units": "1"},
    "boundary_distance": {"Description": "About how far the border of the anatomy's white matter lies from where b=0 shows it, after registration", "Units": "mm"},
    "template_dice": {"Description": "Overlap of the brain masks after the anatomy was registered to the first template", "Units": "1"},
    "n_folded": {"Description": "Voxels where a transform to a template folds"},
    "n_errors": {"Description": "Errors reported for this run"},
    "computing_time": {"Description": "Sum over the run's steps as last computed", "Units": "s"},
}  # fmt: skip


@dataclass(frozen=True)
class GroupResult:
    """The files written, the rows they hold, and what could not be made."""

    table: Path
    dictionary: Path
    page: Path
    rows: list[dict[str, Any]]
    responses: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def write_group(output_dir: Path, participants: Sequence[str] = ()) -> GroupResult:
    """Write ``group_desc-qc.tsv``, its data dictionary and ``group.html``; where bundles were named also ``group_bundles.tsv``;
    where responses were estimated their averages.

    Raises
    ------
    MissingInputError
        The folder holds no results.
    NoMatchError
        Participants were named that have none.
    OutputError, ConfigurationError
        The folder is not ours, or of another version.
    """
    labels = _labels(output_dir, participants)
    check_output(output_dir, None)
    rows, errors = [], []
    ledgers = [Ledger(output_dir, label) for label in labels]
    for label, ledger in zip(labels, ledgers, strict=True):
        mine = [{"participant": f"sub-{label}", **error} for error in ledger.errors()]
        rows += _rows(ledger, mine)
        errors += mine
    table, dictionary, page = (output_dir / f"group{ending}" for ending in ("_desc-qc.tsv", "_desc-qc.json", ".html"))
    write_text(table, _tsv(rows))
    write_text(dictionary, json.dumps(DICTIONARY, indent=2, ensure_ascii=False) + "\n")
    links = {f"sub-{label}": f"sub-{label}.html" for label in labels if (output_dir / f"sub-{label}.html").is_file()}
    complete = sum(row["status"] == "complete" for row in rows)
    text = group_report(
        rows,
        summary=[("Participants", len(labels)), ("Runs", len(rows)), ("Complete runs", complete)],
        dictionary=DICTIONARY,
        links=links,
        provenance={"version": tractode.__version__, "participants": ", ".join(f"sub-{label}" for label in labels)},
        errors=errors,
        bundles=_bundles(output_dir, ledgers),
    )
    write_text(page, text)
    responses, notes = average_responses(output_dir, ledgers)
    return GroupResult(table, dictionary, page, rows, tuple(responses), tuple(notes))


def _bundles(output_dir: Path, ledgers: Sequence[Ledger]) -> tuple[str, str] | None:
    """The table of all bundles is written; its map and caption for the page, where any were named."""
    found = group_bundles.gather(ledgers)
    group_bundles.write_table(output_dir, found)
    if not found.bundles:
        return None
    picture, caption = bundle_map(found.bundles, found.latents)
    if found.skipped:
        caption += f" {found.skipped:,} rows of the table were made with other weights than most and are not shown."
    return picture, f"{caption} All numbers: {group_bundles.TABLE}."


def _labels(output_dir: Path, asked: Sequence[str]) -> list[str]:
    present = sorted(path.parent.name.removeprefix("sub-") for path in (output_dir / "logs").glob("sub-*/plan.json"))
    if not present:
        raise MissingInputError(
            "There are no participants' results",
            id="E-OUT-EMPTY",
            path=output_dir,
            needed="an output folder of tractode",
            fix="run the participant level first",
        )
    absent = [label for label in asked if label not in present]
    if absent:
        raise NoMatchError(
            f"No results of {', '.join(f'sub-{label}' for label in absent)}",
            id="E-LABEL-OUTPUT",
            path=output_dir,
            needed=f"labels among {', '.join(present[:10])}",
        )
    return [label for label in present if not asked or label in asked]


def _rows(ledger: Ledger, errors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a dwi run of a participant; anatomy has none of its own."""
    run_of = {entry["step"]: entry["run"] for entry in ledger.plan()["steps"]}
    anatomical = {run for step, run in run_of.items() if "_prepare-T" in step}
    records = ledger.records()
    rows = []
    for run in dict.fromkeys(run_of.values()):
        if run in anatomical:
            continue
        mine = [record for record in records if run_of.get(record.step) == run]
        shared = [record for record in records if run_of.get(record.step) in anatomical]
        failed = [error for error in errors if run_of.get(str(error.get("step"))) == run]
        promised = {step for step, owner in run_of.items() if owner == run}
        row = {"participant_id": f"sub-{ledger.participant}", "session_id": _session(run), "run": run}
        row["status"] = _status(ledger.output_dir, mine, promised, failed)
        row |= _scan_facts([*(dict(error.get("facts") or {}) for error in failed), *(record.facts for record in mine)])
        row |= _map_facts(ledger.output_dir, mine)
        row |= _registration_facts(mine, shared)
        row |= {"n_errors": len(failed), "computing_time": round(sum(record.seconds for record in mine), 1)}
        rows.append({column: row.get(column, MISSING) for column in DICTIONARY})
    return rows


def _session(run: str) -> str:
    return next((part for part in run.split("_") if part.startswith("ses-")), MISSING)


def _status(output_dir: Path, mine: Sequence[StepRecord], promised: set[str], failed: Sequence[object]) -> str:
    if failed:
        return "failed"
    kept = {record.step for record in mine if all((output_dir / path).is_file() for path in record.outputs)}
    return "complete" if promised <= kept else "unfinished"


def _scan_facts(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for some in facts:
        known |= some
    row: dict[str, Any] = {}
    if len(known.get("shape", ())) == 4:
        row["n_volumes"] = known["shape"][3]
    if "voxel_sizes" in known:
        x, y, z = known["voxel_sizes"]
        row["voxel_volume"] = round(x * y * z, 3)
    if known.get("shells"):
        row["n_directions"] = sum(shell["directions"] for shell in known["shells"])
        row["max_b"] = max(shell["b"] for shell in known["shells"])
    for name in ("n_b0", "brain_ml", "gradients_used", "distortion_correction"):
        if name in known:
            row[name] = known[name]
    if "preprocessing" in known:
        row["preprocessing"] = ", ".join(k for k, record in known["preprocessing"].items() if record["done"]) or "none"
    row |= {name: value for name, value in known.get("image_quality", {}).items() if name in DICTIONARY}
    if "gradients" in known:
        row["gradient_verdict"] = known["gradients"].get("verdict", MISSING)
    if any("n_streamlines" in some for some in facts):
        row["n_streamlines"] = sum(some.get("n_streamlines", 0) for some in facts)
        row["median_length"] = known.get("median_length_mm", MISSING)
    return row


def _map_facts(output_dir: Path, mine: Sequence[StepRecord]) -> dict[str, Any]:
    """Medians of two maps inside the brain, read from the files; a file that cannot be read leaves its value out."""
    paths = [Path(path) for record in mine for path in record.outputs if path.endswith(".nii.gz")]
    native = [path for path in paths if "_space-" not in path.name]
    mask = next((path for path in native if path.name.endswith("_desc-brain_mask.nii.gz")), None)
    row: dict[str, Any] = {}
    if mask is None:
        return row
    for param in ("fa", "md"):
        found = next((path for path in native if path.name.endswith(f"_param-{param}_dwimap.nii.gz")), None)
        if found is None:
            continue
        try:
            values, inside = (read_image(output_dir / path, "dwi")[0].values[0] for path in (found, mask))
            row[f"median_{param}"] = float(f"{float(values[inside > 0.5].median()):.4g}")
        except (TractodeError, IndexError):
            continue
    return row


def _registration_facts(mine: Sequence[StepRecord], shared: Sequence[StepRecord]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    own = [record.facts["quality"] for record in mine if "quality" in record.facts]
    anatomy = [record.facts["quality"] for record in shared if "quality" in record.facts]
    if own and own[0].get("dice") is not None:
        row["coregistration_dice"] = own[0]["dice"]
    if anatomy and anatomy[0].get("dice") is not None:
        row["template_dice"] = anatomy[0]["dice"]
    for record in mine:
        if "boundary" in record.facts:
            row["boundary_distance"] = record.facts["boundary"]["distance"]
    folds = [record.facts["folding"].get("n_folded") for record in (*mine, *shared) if "folding" in record.facts]
    if folds and None not in folds:
        row["n_folded"] = sum(folds)
    return row


def _tsv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(DICTIONARY), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: " ".join(str(value).split()) or MISSING for key, value in row.items()} for row in rows)
    return stream.getvalue()
