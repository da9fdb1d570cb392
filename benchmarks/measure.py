"""What every benchmark shares: running a command while watching its process tree, and the ``meta`` of a result."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
SAMPLING_SECONDS = 0.25


@dataclass(frozen=True)
class Measured:
    """A finished command: wall time, peak resident memory of its whole process tree, exit code, what it printed."""

    seconds: float
    peak_rss_mb: float
    exit_code: int
    output: str


def watch(command: Sequence[str], environment: dict[str, str] | None = None) -> Measured:
    """Run a command to its end. Memory is the largest sum of proportional set sizes over the tree, sampled 4 times a second.

    Proportional size (PSS) counts a page that several processes share once, as the machine does.
    """
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(
        list(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    root = psutil.Process(process.pid)
    # The output is small (a progress table), so the pipe cannot fill while memory is sampled.
    while process.poll() is None:
        peak = max(peak, _tree_bytes(root))
        with suppress(subprocess.TimeoutExpired):
            process.wait(SAMPLING_SECONDS)
    seconds = time.monotonic() - started
    output = process.stdout.read() if process.stdout else ""
    return Measured(round(seconds, 2), round(peak / 2**20, 1), process.returncode, output)


def _tree_bytes(root: psutil.Process) -> int:
    total = 0
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    for member in tree:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def meta(command: str) -> dict[str, Any]:
    """Command (with ``$TRACTODE_TEST_DATA``), commit, processor and date."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
    return {
        "command": command,
        "commit": commit.stdout.strip(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
