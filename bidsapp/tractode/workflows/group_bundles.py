"""The group level's table of bundles: the summaries and latents of all participants, runs and methods, one row a bundle."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.bids.manifest import Ledger
from tractode.io.atomic import write_text
from tractode.io.bundle_table import LATENT, columns_of

TABLE = "group_bundles.tsv"
_WHOSE = {
    "participant_id": {"Description": "Participant"},
    "session_id": {"Description": "Session"},
    "run": {"Description": "Entities of the dwi run"},
    "track": {"Description": "Method that made the streamlines"},
    "weights": {"Description": "sha256 of the codec's model; latents of different ones cannot be compared"},
}


@dataclass(frozen=True, eq=False)
class GroupBundles:
    """What was gathered: ``skipped`` rows are of other weights than most and are not in ``latents``."""

    rows: list[dict[str, str]]
    bundles: list[str]
    latents: Float[Tensor, "n d"]
    skipped: int


def gather(ledgers: Iterable[Ledger]) -> GroupBundles:
    """Every table of bundles that the latest runs left; one that cannot be read is passed over."""
    rows: list[dict[str, str]] = []
    for ledger in ledgers:
        run_of = {entry["step"]: entry["run"] for entry in ledger.plan()["steps"]}
        for record in ledger.records():
            if "bundles" not in record.roles or "coding" not in record.facts:
                continue
            run = run_of.get(record.step, "")
            session = next((part for part in run.split("_") if part.startswith("ses-")), "n/a")
            sums = record.facts["coding"]["Weights"]["SHA256"]
            model = " ".join(digest for name, digest in sorted(sums.items()) if name.endswith(".safetensors"))
            whose = (f"sub-{ledger.participant}", session, run, str(record.facts["track"]), model)
            rows += [
                dict(zip(_WHOSE, whose, strict=True)) | row
                for row in _read(ledger.output_dir / record.roles["bundles"])
            ]
    models = [row["weights"] for row in rows]
    usual = max(sorted(set(models)), key=models.count, default="")
    alike = [row for row in rows if row["weights"] == usual]
    latents = [[float(value) for name, value in row.items() if name.startswith(LATENT)] for row in alike]
    return GroupBundles(
        rows,
        [row["bundle"] for row in alike],
        torch.tensor(latents) if latents else torch.zeros(0, 0),
        len(rows) - len(alike),
    )


def write_table(output_dir: Path, found: GroupBundles) -> tuple[Path, Path] | None:
    """The table and its data dictionary; an earlier one is removed where there are no bundles any more."""
    table, dictionary = output_dir / TABLE, (output_dir / TABLE).with_suffix(".json")
    if not found.rows:
        table.unlink(missing_ok=True)
        dictionary.unlink(missing_ok=True)
        return None
    n_latents = max(sum(name.startswith(LATENT) for name in row) for row in found.rows)
    columns = _WHOSE | columns_of(n_latents)
    lines = ["\t".join(columns), *("\t".join(row.get(name, "n/a") for name in columns) for row in found.rows)]
    write_text(table, "\n".join(lines) + "\n")
    write_text(dictionary, json.dumps(columns, indent=2, ensure_ascii=False) + "\n")
    return table, dictionary


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        for row in rows:
            if None in row or None in row.values() or "bundle" not in row:
                return []
            for name, value in row.items():
                if name.startswith(LATENT):
                    float(value)
    except (OSError, ValueError, csv.Error):
        return []
    return rows
