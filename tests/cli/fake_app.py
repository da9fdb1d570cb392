"""``tractode`` with a workflow that does what the environment says instead of computing: run as a program by the tests.

``FAKE_STEPS`` maps a participant to what its one step does: ``ok``, ``kill``, ``segv``, ``raise:<ErrorClass>``,
``bug``, ``silent`` (ends well and leaves nothing), ``sleep``, ``layout`` (its workflow cannot be laid out).
"""

from __future__ import annotations

import json
import os
import sys
import types
from typing import Any


def act(what: str, output_dir: str, participant: str, run_id: str, step: str) -> str:
    """The body of a node; nipype sends its source text to the worker, so it imports what it uses."""
    import os
    import signal
    import time
    from pathlib import Path

    from tractode import errors
    from tractode.bids.manifest import Ledger

    ledger = Ledger(Path(output_dir), participant, run_id)
    if what == "silent":
        return what
    if what in ("kill", "segv"):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGSEGV)
    if what == "bug":
        raise KeyError("a bug")
    with ledger.writing(step, [], {}) as writer:
        if what.startswith("raise:"):
            raise getattr(errors, what.partition(":")[2])("It went wrong", id="E-FAKE", fix="nothing")

        def slowly(path: Path) -> None:
            path.write_text("half")
            if what == "sleep":
                Path(output_dir, f"pid-{participant}").write_text(str(os.getpid()))
                time.sleep(300)

        writer.write("file", Path(f"sub-{participant}", "dwi", f"sub-{participant}_fa.txt"), slowly)
    return what


def init_participant_wf(participant: Any, settings: Any, run_id: str) -> Any:
    from nipype.interfaces.utility import Function
    from nipype.pipeline import engine as pe

    from tractode.bids.manifest import Ledger
    from tractode.errors import ResourceUnavailableError

    what = json.loads(os.environ["FAKE_STEPS"])[participant.label]
    if what == "layout":
        raise ResourceUnavailableError("No template", id="E-FAKE")
    step = f"{participant.runs[0].name}_fit" if participant.runs else "fit"
    node = pe.Node(
        Function(
            input_names=["what", "output_dir", "participant", "run_id", "step"], output_names=["out"], function=act
        ),
        name="fit",
    )
    node.inputs.trait_set(
        what=what, output_dir=str(settings.output_dir), participant=participant.label, run_id=run_id, step=step
    )
    workflow = pe.Workflow(name=f"sub_{participant.label}_wf", base_dir=str(settings.work_dir))
    workflow.add_nodes([node])
    Ledger(settings.output_dir, participant.label, run_id).promise([{"step": step, "run": step.removesuffix("_fit")}])
    return workflow


if __name__ == "__main__":
    fake = types.ModuleType("tractode.workflows.participant")
    fake.init_participant_wf = init_participant_wf  # type: ignore[attr-defined]
    sys.modules["tractode.workflows.participant"] = fake

    from tractode.cli.run import main

    sys.exit(main())
