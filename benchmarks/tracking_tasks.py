"""The three problems solved with the gradient: streamline weights, sensitivity, refinement, in one result file.

Runs ``task_weights.py``, ``task_sensitivity.py`` and ``task_refinement.py`` one after another and joins what they print.
``--output`` saves the result (``results/tracking_tasks.json``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import meta

HERE = Path(__file__).parent
TASKS = ("weights", "sensitivity", "refinement")


def task(name: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """What one script found; its own ``meta`` is kept where it ran with another command."""
    saved = folder / f"{name}.json"
    started = time.monotonic()
    command = [sys.executable, str(HERE / f"task_{name}.py"), *arguments, "--output", str(saved)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=HERE)
    found = json.loads(saved.read_text())
    own = found.pop("meta", {})
    inside = found.get(name, found)
    return {**inside, "seconds": round(time.monotonic() - started, 1), "command": own.get("command", "")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arguments", nargs="*", default=[], metavar="NAME=ARGS", help="weights='--lines 5000'")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    given = {name: text.split() for name, _, text in (item.partition("=") for item in options.arguments)}
    result: dict[str, Any] = {}
    if options.output and options.output.exists():
        result = json.loads(options.output.read_text())
        result.pop("meta", None)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            result[name] = task(name, given.get(name, []), Path(folder))
    text = json.dumps(result | {"meta": meta("benchmarks/tracking_tasks.py")}, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
