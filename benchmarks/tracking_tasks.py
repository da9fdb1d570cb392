"""The three problems solved with the gradient: streamline weights, sensitivity, refinement, in one result file.

Runs ``task_weights.py``, ``task_sensitivity.py`` and ``task_refinement.py`` one after another and joins what they save;
``--saved`` takes what a script has saved before instead of running it, from several files where it ran in portions. Each
part keeps the ``meta`` of its runs (command, commit, date). ``--output`` saves the result (``results/tracking_tasks.json``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import meta

HERE = Path(__file__).parent
TASKS = ("weights", "sensitivity", "refinement")


def task(name: str, arguments: list[str], folder: Path) -> Path:
    """Runs one script; where it has saved its result."""
    saved = folder / f"{name}.json"
    command = [sys.executable, str(HERE / f"task_{name}.py"), *arguments, "--output", str(saved)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=HERE)
    return saved


def part(name: str, saved: list[Path]) -> dict[str, Any]:
    """What one script found in all its runs; no run may say again what an earlier one has said otherwise."""
    out: dict[str, Any] = {}
    runs = []
    for path in saved:
        found = json.loads(path.read_text())
        runs.append(found["meta"])
        for key, value in found[name].items():
            if out.setdefault(key, value) != value:
                raise ValueError(
                    f"{path}: {name} has {key!r} already, with another value; join runs of equal settings."
                )
    return {**out, "meta": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saved", nargs="*", default=[], metavar="NAME=FILE,…", help="results of scripts run before")
    parser.add_argument("--arguments", nargs="*", default=[], metavar="NAME=ARGS", help="weights='--lines 5000'")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    given = {name: text.split() for name, _, text in (item.partition("=") for item in options.arguments)}
    before = {
        name: [Path(path) for path in text.split(",")]
        for name, _, text in (item.partition("=") for item in options.saved)
    }
    with tempfile.TemporaryDirectory() as folder:
        result = {
            name: part(name, before.get(name) or [task(name, given.get(name, []), Path(folder))]) for name in TASKS
        }
    text = json.dumps(
        result | {"meta": meta("benchmarks/tracking_tasks.py; each part's own command is in its meta")}, indent=2
    )
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
