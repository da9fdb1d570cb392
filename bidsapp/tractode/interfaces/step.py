"""A workflow step: one nipype interface that reads files, makes one call, and writes through the participant's ledger."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits

from tractode.bids.manifest import Ledger, StepWriter
from tractode.bids.names import FIGURES, derivative
from tractode.errors import InternalError, OutOfMemoryError, TractodeError
from tractode.fields import Image
from tractode.io.nifti import write_image
from tractode.io.system_errors import translated
from tractode.reports.reportlet import Reportlet


@dataclass(frozen=True)
class Job:
    """What every step of a participant's workflow needs to know of the run it belongs to."""

    bids_dir: Path
    output_dir: Path
    participant: str
    run_id: str
    device: str
    random_seed: int
    omp_nthreads: int
    sloppy: bool

    def ledger(self) -> Ledger:
        return Ledger(self.output_dir, self.participant, self.run_id)

    def generator(self, step: str) -> torch.Generator:
        """Random numbers that depend on the seed and the step's name only, not on the order steps run in."""
        digest = hashlib.sha256(f"{self.random_seed}:{self.participant}:{step}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class StepInputSpec(BaseInterfaceInputSpec):
    job = traits.Any(mandatory=True, desc="the Job")
    step = traits.Str(mandatory=True, desc="unique name of the step in the ledger")


class StepOutputSpec(TraitedSpec):
    outputs = traits.Dict(desc="role → absolute path")
    facts = traits.Dict(desc="plain data for the report and for later steps")


class Step(SimpleInterface):
    """Base of every interface of ours. A finished step whose inputs, parameters, code and files are unchanged is reused."""

    input_spec: ClassVar[type] = StepInputSpec
    output_spec = StepOutputSpec

    @abstractmethod
    def needs(self) -> list[Path]:
        """Files whose content decides the result."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Everything else that decides the result, as plain data."""

    @abstractmethod
    def compute(self, writer: StepWriter) -> None:
        """Make the outputs."""

    def _run_interface(self, runtime: Any) -> Any:
        job: Job = self.inputs.job
        step: str = self.inputs.step
        torch.set_num_threads(job.omp_nthreads)
        ledger = job.ledger()
        facts: dict[str, Any] = {}
        try:
            inputs, parameters = self.needs(), self.parameters()
            record = ledger.reusable(step, inputs, parameters)
            if record is None:
                with ledger.writing(step, inputs, parameters) as writer:
                    facts = writer.facts
                    self.compute(writer)
                record = ledger.record(step)
        except Exception as error:
            failure = self._failure(error)
            # With what was found out before it failed: a refused run shows why in the report.
            ledger.record_error(step, failure, facts)
            if failure is error:
                raise
            raise failure from error
        if record is None:
            raise InternalError(f"The record of {step} vanished while it was written", id="E-BUG-RECORD")
        self._results["outputs"] = ledger.absolute(record)
        self._results["facts"] = record.facts
        return runtime

    def _failure(self, error: Exception) -> TractodeError:
        """The error a user should meet: with a path where one is missing, and of ours where it is the system's."""
        step: str = self.inputs.step
        if isinstance(error, TractodeError):
            source = getattr(self.inputs, "run", None) or getattr(self.inputs, "anat", None)
            if error.path or source is None:
                return error
            return type(error)(error.found, id=error.id, needed=error.needed, fix=error.fix, path=source.path)
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return OutOfMemoryError(
                f"Memory ran out in {step} ({error})",
                id="E-MEMORY",
                fix="give more memory, or fewer processes with --nprocs",
            )
        known = translated(error) if isinstance(error, OSError) else None
        return known or InternalError(
            f"{step} failed: {type(error).__name__}: {error}", id="E-BUG", fix="report it with the crash bundle"
        )


def save_reportlets(writer: StepWriter, participant: str, reportlets: Iterable[Reportlet]) -> None:
    """Write figures under ``sub-X/figures``; the report finds them through the step's record."""
    folder = Path(f"sub-{participant}") / FIGURES
    for reportlet in reportlets:
        for filename, body in reportlet.to_files().items():
            writer.write(f"figure-{filename}", folder / filename, partial(Path.write_bytes, data=body))
        writer.facts.setdefault("reportlets", []).append(str(folder / f"{reportlet.name}.json"))


def write_with_sidecar(
    writer: StepWriter, role: str, image: Image, content: Mapping[str, Any], source: Mapping[str, str], **name: str
) -> None:
    """An image and its JSON file under the derivative's name."""
    writer.write(role, derivative(source, extension=".nii.gz", **name), lambda path: write_image(path, image))
    writer.write_json(f"{role}-sidecar", derivative(source, extension=".json", **name), content)
