"""The ledger of a participant: which step made which file, from which inputs, verified by content hashes.

Layout under the output folder::

    logs/sub-X/plan.json             the steps this run promised
    logs/sub-X/steps/<step>.json     one record a finished step
    logs/sub-X/errors/<step>.json    one record a failed step
    logs/sub-X/manifest.json         every output with its sha256, written last

A result is reused only if the hashes of its inputs, its parameters, the code and its own files all agree.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tractode
from tractode.errors import InternalError, TractodeError
from tractode.io.atomic import atomic_path, sha256_of, write_text


@dataclass(frozen=True)
class StepRecord:
    """What one finished step left behind. ``roles`` names its outputs: role → path relative to the output folder."""

    step: str
    run_id: str
    key: str
    inputs: dict[str, str]
    roles: dict[str, str]
    outputs: dict[str, str]
    facts: dict[str, Any]
    seconds: float


@dataclass
class StepWriter:
    """Handed to a step: every file it makes goes through `write`, every fact for the report into ``facts``."""

    output_dir: Path
    roles: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def write(self, role: str, relative: Path, writer: Callable[[Path], object]) -> Path:
        """Let ``writer`` fill a temporary file, then rename it to its final name. Returns the absolute final path."""
        final = self.output_dir / relative
        if final.parent.exists() and not final.parent.resolve().is_relative_to(self.output_dir.resolve()):
            raise InternalError(f"The step would write outside the output folder: {relative}", id="E-BUG-OUTSIDE")
        with atomic_path(final) as temporary:
            writer(temporary)
            digest = sha256_of(temporary)
        self.roles[role] = str(relative)
        self.outputs[str(relative)] = digest
        return final

    def write_json(self, role: str, relative: Path, content: Mapping[str, Any]) -> Path:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return self.write(role, relative, lambda path: path.write_text(text, encoding="utf-8"))


@cache
def code_hash() -> str:
    """Hash of the package's own source and data files: changed code never reuses old results."""
    root = Path(tractode.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Ledger:
    """The records of one participant in one output folder."""

    def __init__(self, output_dir: Path, participant: str, run_id: str = "") -> None:
        self.output_dir = output_dir
        self.participant = participant
        self.run_id = run_id
        self.folder = output_dir / "logs" / f"sub-{participant}"

    def promise(self, steps: Sequence[Mapping[str, str]]) -> None:
        """Write down what this run will make, before it starts; errors of an earlier run are forgotten."""
        for old in (self.folder / "errors").glob("*.json"):
            old.unlink()
        plan = {"run_id": self.run_id, "version": tractode.__version__, "steps": list(steps)}
        write_text(self.folder / "plan.json", json.dumps(plan, indent=2) + "\n")

    def plan(self) -> dict[str, Any]:
        """The promises of the latest run; empty if there was none."""
        return _read_json(self.folder / "plan.json") or {"run_id": "", "steps": []}

    def reusable(self, step: str, inputs: Sequence[Path], parameters: Mapping[str, Any]) -> StepRecord | None:
        """The earlier record of a step if nothing it depends on changed and its files are intact."""
        record = self.record(step)
        if record is None or record.key != _key(step, _hashes(inputs), parameters) or self.damaged(record):
            return None
        fresh = StepRecord(**{**asdict(record), "run_id": self.run_id})
        self._save(fresh)
        return fresh

    @contextmanager
    def writing(self, step: str, inputs: Sequence[Path], parameters: Mapping[str, Any]) -> Iterator[StepWriter]:
        """Run a step; its record is written when it ends well, an error record when it does not."""
        hashes = _hashes(inputs)
        old = self.record(step)
        (self.folder / "steps" / f"{step}.json").unlink(missing_ok=True)
        writer, started = StepWriter(self.output_dir), time.monotonic()
        try:
            yield writer
        except TractodeError as error:
            self.record_error(step, error, writer.facts)
            raise
        if old is not None:
            # Files of an earlier run under other names would otherwise stand beside the new ones as if current.
            for stale in set(old.outputs) - set(writer.outputs):
                (self.output_dir / stale).unlink(missing_ok=True)
        seconds = round(time.monotonic() - started, 3)
        key = _key(step, hashes, parameters)
        self._save(StepRecord(step, self.run_id, key, hashes, writer.roles, writer.outputs, writer.facts, seconds))

    def record_error(self, step: str, error: TractodeError, facts: Mapping[str, Any] | None = None) -> None:
        content = {"step": step, "run_id": self.run_id, **error.record(), "facts": dict(facts or {})}
        write_text(self.folder / "errors" / f"{step}.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def record(self, step: str) -> StepRecord | None:
        content = _read_json(self.folder / "steps" / f"{step}.json")
        try:
            return StepRecord(**content) if content else None
        except TypeError:  # a record of another layout is no record
            return None

    def records(self) -> list[StepRecord]:
        """Every record of the latest run, in the order promised."""
        plan = self.plan()
        found = (self.record(entry["step"]) for entry in plan["steps"])
        return [record for record in found if record is not None and record.run_id == plan["run_id"]]

    def errors(self) -> list[dict[str, Any]]:
        paths = sorted((self.folder / "errors").glob("*.json"))
        return [content for path in paths if (content := _read_json(path)) is not None]

    def damaged(self, record: StepRecord) -> list[str]:
        """Outputs of a record that are missing or whose bytes changed."""
        wrong = []
        for relative, digest in record.outputs.items():
            path = self.output_dir / relative
            if not path.is_file() or sha256_of(path) != digest:
                wrong.append(relative)
        return wrong

    def unkept(self) -> list[str]:
        """Promised steps that have no intact record of this run: exit 0 needs this list empty."""
        kept = {record.step for record in self.records() if not self.damaged(record)}
        return [entry["step"] for entry in self.plan()["steps"] if entry["step"] not in kept]

    def absolute(self, record: StepRecord) -> dict[str, str]:
        """Role → absolute path."""
        return {role: str(self.output_dir / relative) for role, relative in record.roles.items()}

    def close(self) -> Path:
        """Write the manifest: every output of the run with its hash, what made it, and from what."""
        records = self.records()
        manifest = {
            "participant": self.participant,
            "run_id": self.run_id,
            "version": tractode.__version__,
            "code_sha256": code_hash(),
            "complete": bool(self.plan()["steps"]) and not self.unkept(),
            "outputs": {path: digest for record in records for path, digest in sorted(record.outputs.items())},
            "steps": {r.step: {"inputs": r.inputs, "key": r.key, "seconds": r.seconds} for r in records},
        }
        path = self.folder / "manifest.json"
        write_text(path, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        return path

    def _save(self, record: StepRecord) -> None:
        text = json.dumps(asdict(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_text(self.folder / "steps" / f"{record.step}.json", text)


def _hashes(inputs: Sequence[Path]) -> dict[str, str]:
    return {str(path): sha256_of(Path(path)) for path in inputs}


def _key(step: str, hashes: Mapping[str, str], parameters: Mapping[str, Any]) -> str:
    # Paths are left out: a dataset that moved is the same dataset.
    content = [step, list(hashes.values()), dict(parameters), code_hash()]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
