"""nipype's MultiProc scheduling with one watched process a node: a killed worker ends its node within seconds.

nipype 1.11 hands nodes to a process pool and waits for ever when a worker is killed (nipy/nipype#2548). Here each
node has a process of its own, started from a clean fork server (torch's threads and CUDA do not survive a plain
fork), whose death is seen at the next poll, is laid to the right node, and disturbs no other.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing as mp
import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from nipype.pipeline.engine import Node
from nipype.pipeline.plugins.multiproc import MultiProcPlugin

from tractode.errors import InputOutputError, InternalError, OutOfMemoryError, TractodeError

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0  # between asking a worker to stop and killing it
_GIB = 2**30
_SIGNALS_OF_A_BUG = (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


@dataclass(frozen=True)
class Failure:
    """How one node failed. ``exit_code`` is its process's where that died, else ``None``."""

    node: str
    step: str
    text: str
    exit_code: int | None = None
    peak_gb: float = 0.0
    estimate_gb: float = 0.0
    limit_gb: float = 0.0

    def error(self) -> TractodeError:
        """The error a user should meet, where the step itself left none."""
        step = self.step
        if self.exit_code is not None:
            return self._death(step)
        if "MemoryError" in self.text or "can't allocate memory" in self.text or "out of memory" in self.text:
            return OutOfMemoryError(
                f"The step {step} ran out of memory ({self._memory()})",
                id="E-MEM-STEP",
                needed="more memory",
                fix="raise the limit of the batch job or container, or lower --nprocs",
            )
        if "No space left on device" in self.text or "Disk quota exceeded" in self.text:
            return InputOutputError(
                f"The disk filled up during {step}",
                id="E-IO-SPACE",
                needed="free space (see --dry-run)",
                fix="free space and run the same command again; it resumes",
            )
        last = self.text.strip().splitlines()[-1] if self.text.strip() else "no message"
        return InternalError(
            f"The step {step} failed: {last}", id="E-BUG-STEP", fix="please report it with the crash bundle"
        )

    def _death(self, step: str) -> TractodeError:
        code = self.exit_code or 0
        number = code - 128 if code > 128 else -code
        name = signal.Signals(number).name if number in signal.valid_signals() else f"exit code {self.exit_code}"
        found = f"The process of the step {step} died ({name}; {self._memory()})"
        if number in _SIGNALS_OF_A_BUG or number < 0:
            return InternalError(found, id="E-BUG-WORKER", fix="please report it with the crash bundle")
        if number == signal.SIGBUS:
            return InputOutputError(
                found,
                id="E-IO-SIGBUS",
                needed="free space in the output and work folders",
                fix="free space and run the same command again; it resumes",
            )
        return OutOfMemoryError(
            found,
            id="E-MEM-KILLED",
            needed="more memory; a kill without warning is nearly always the system's answer to its lack",
            fix="raise the limit of the batch job or container, or lower --nprocs; the same command resumes",
        )

    def _memory(self) -> str:
        return f"used {self.peak_gb:.1f} GiB, step estimated at {self.estimate_gb:.1f} GiB, limit of the run {self.limit_gb:.1f} GiB"


class FailureRecorder:
    """Mixin for any nipype plugin: remembers which nodes failed and why, and survives nipype's own crash report."""

    failures: list[Failure]
    memory_gb: float

    def _report_crash(self, node: Node, result: dict[str, Any] | None = None) -> str | None:
        trace = (result or {}).get("traceback") or []
        lines = trace.splitlines(keepends=True) if isinstance(trace, str) else list(trace)
        failure = (result or {}).get("failure") or Failure(
            node.fullname,
            step_of(node),
            "".join(lines),
            estimate_gb=_estimate(node),
            limit_gb=float(getattr(self, "memory_gb", 0.0)),
        )
        self.failures.append(failure)
        # nipype concatenates the traceback with a list, and fails with a TypeError where its own plugins give text.
        return super()._report_crash(node, {"result": None, **(result or {}), "traceback": lines})  # type: ignore[misc]


@dataclass
class _Task:
    node: Node
    process: Any
    connection: Connection
    peak_gb: float = 0.0


class WatchdogPlugin(FailureRecorder, MultiProcPlugin):
    """MultiProc whose every node is watched.

    Extra ``plugin_args``: ``log_file`` takes what workers print; ``preload`` names modules that the fork server
    imports once for all workers.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool.shutdown()  # nipype's own pool is never used; it starts no process before its first job
        self.failures = []
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(["nipype.pipeline.engine", *self.plugin_args.get("preload", ())])
        self._tasks: dict[int, _Task] = {}

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        # nipype collects garbage at every poll, which with all our modules in memory took a fifth of a core all the while.
        gc.freeze()
        try:
            super().run(graph, config, updatehash=updatehash)
        finally:
            gc.unfreeze()
            self.stop()

    def _submit_job(self, node: Node, updatehash: bool = False) -> int:
        self._taskid += 1
        ours, theirs = self._context.Pipe(duplex=True)
        process = self._context.Process(
            target=_work,
            args=(theirs, node, updatehash, self._cwd, self.plugin_args.get("log_file")),
            name=node.fullname,
        )
        process.start()
        theirs.close()  # or its end would never be seen
        self._tasks[self._taskid] = _Task(node, process, ours)
        return self._taskid

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        task = self._tasks[taskid]
        is_alive = task.process.is_alive()  # asked first: what a process sent before it ended is read below
        if task.connection.poll():
            with contextlib.suppress(EOFError, ConnectionResetError):
                return {"result": None, "traceback": task.connection.recv(), "taskid": taskid}
            task.process.join(GRACE_SECONDS)
            is_alive = False
        if is_alive:
            task.peak_gb = max(task.peak_gb, _resident_gb(task.process.pid))
            return None
        failure = Failure(
            task.node.fullname,
            step_of(task.node),
            f"The worker process died with exit code {task.process.exitcode}.\n",
            exit_code=task.process.exitcode if task.process.exitcode is not None else -signal.SIGKILL,
            peak_gb=task.peak_gb,
            estimate_gb=_estimate(task.node),
            limit_gb=float(self.memory_gb),
        )
        return {"result": None, "traceback": [failure.text], "taskid": taskid, "failure": failure}

    def _clear_task(self, taskid: int) -> None:
        task = self._tasks.pop(taskid)
        task.connection.close()
        task.process.join(GRACE_SECONDS)
        if task.process.is_alive():
            stop_tree(task.process.pid)

    def _postrun_check(self) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop every worker and what it started; none outlives this call."""
        tasks, self._tasks = list(self._tasks.values()), {}
        stop_tree(*(task.process.pid for task in tasks))
        for task in tasks:
            task.process.join(GRACE_SECONDS)
            task.connection.close()


def with_recorder(plugin: type) -> type:
    """Another nipype plugin (SLURM, SGE, PBS, Linear, …) that also records failures."""
    if not hasattr(plugin, "_report_crash"):
        return type(plugin.__name__, (plugin,), {"failures": []})
    return type(plugin.__name__, (FailureRecorder, plugin), {"failures": []})


def stop_tree(*pids: int) -> None:
    """Ask processes and their descendants to stop, then kill what is left after a grace period."""
    processes: set[psutil.Process] = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            processes |= {process, *process.children(recursive=True)}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(list(processes), timeout=GRACE_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=GRACE_SECONDS)


def _work(connection: Connection, node: Node, updatehash: bool, cwd: str, log_file: str | None) -> None:
    """A worker's life: run one node, send ``None`` or the traceback, end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    _offer_to_the_oom_killer()
    if log_file:
        _redirect_output(Path(log_file))
    os.chdir(cwd)
    try:
        node.run(updatehash=updatehash)
        message = None
    except Exception:
        message = traceback.format_exception(*sys.exc_info())
    connection.send(message)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # libraries' exit handlers have been seen to hang; everything that matters is on disk


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)  # runs the `finally` that removes half-written files


def _end_with_parent(connection: Connection) -> None:
    """The parent never sends: reading ends only when it is gone, however it died."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    os._exit(128 + signal.SIGTERM)


def _offer_to_the_oom_killer() -> None:
    """Where memory runs out, a worker shall go, not the parent that can still tell the user."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _redirect_output(log_file: Path) -> None:
    descriptor = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


def _resident_gb(pid: int) -> float:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).memory_info().rss / _GIB
    return 0.0


def step_of(node: Node) -> str:
    """The name of the ledger's step that a node runs."""
    return str(getattr(node.inputs, "step", "") or node.name)


def _estimate(node: Node) -> float:
    try:
        return float(node.mem_gb)
    except Exception:  # an estimate that depends on inputs which are not there
        return 0.0
