"""The plugin against nodes that die, fail, hang, start children and print: no hang, the right node blamed, no orphan."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import nipype
import psutil
import pytest
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe

from tractode.cli.signals import Stopped, stoppable
from tractode.cli.watchdog import Failure, WatchdogPlugin, stop_tree
from tractode.errors import InputOutputError, InternalError, OutOfMemoryError

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def touch(path: str) -> str:
    from pathlib import Path

    Path(path).write_text("done")
    return path


def kill_self(number: int) -> int:
    import os
    import time

    time.sleep(0.5)
    os.kill(os.getpid(), number)
    return number


def fail(text: str) -> str:
    raise ValueError(text)


def sleep_with_child(pid_file: str) -> str:
    import os
    import subprocess
    import time
    from pathlib import Path

    child = subprocess.Popen(["sleep", "600"])
    Path(pid_file).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
    return pid_file


def shout(word: str) -> str:
    import os

    print("printed", word)
    os.write(2, b"from native code\n")
    return word


@pytest.fixture
def nipype_config(tmp_path: Path):
    before = {
        key: nipype.config.get("execution", key)
        for key in ("poll_sleep_duration", "crashdump_dir", "crashfile_format", "check_version", "stop_on_first_crash")
    }
    nipype.config.update_config(
        {
            "execution": {
                "poll_sleep_duration": "0.1",
                "crashdump_dir": str(tmp_path / "crash"),
                "crashfile_format": "txt",
                "check_version": "false",
            }
        }
    )
    yield
    nipype.config.update_config({"execution": before})


def _node(name: str, function: object, argument: str, value: object) -> pe.Node:
    node = pe.Node(Function(input_names=[argument], output_names=["out"], function=function), name=name)
    setattr(node.inputs, argument, value)
    return node


def _plugin(**arguments: object) -> WatchdogPlugin:
    return WatchdogPlugin({"n_procs": 2, "memory_gb": 8, "raise_insufficient": False, **arguments})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_ends_its_node_within_ten_seconds_and_spares_the_others(
    tmp_path: Path, nipype_config: None, number: int
) -> None:
    workflow = pe.Workflow("wf", base_dir=str(tmp_path / "work"))
    killed, after = _node("killed", kill_self, "number", int(number)), _node("after", touch, "path", "unset")
    workflow.connect([(killed, after, [("out", "path")])])
    workflow.add_nodes([_node("other", touch, "path", str(tmp_path / "other.txt"))])
    plugin = _plugin()
    started = time.monotonic()
    with pytest.raises(RuntimeError):
        workflow.run(plugin=plugin)
    assert time.monotonic() - started < 10
    assert (tmp_path / "other.txt").read_text() == "done"
    (failure,) = plugin.failures
    assert (failure.node, failure.exit_code) == ("wf.killed", -number)
    expected = OutOfMemoryError if number == signal.SIGKILL else InternalError
    assert isinstance(failure.error(), expected)
    assert "killed" in str(failure.error())
    assert "8.0 GiB" in str(failure.error())


def test_an_exception_reaches_the_recorder_and_results_pass_between_nodes(tmp_path: Path, nipype_config: None) -> None:
    workflow = pe.Workflow("wf", base_dir=str(tmp_path / "work"))
    first, second = _node("first", touch, "path", str(tmp_path / "a.txt")), _node("second", fail, "text", "unset")
    workflow.connect([(first, second, [("out", "text")])])
    plugin = _plugin()
    with pytest.raises(RuntimeError):
        workflow.run(plugin=plugin)
    (failure,) = plugin.failures
    assert failure.exit_code is None
    assert "ValueError" in failure.text
    assert str(tmp_path / "a.txt") in failure.text
    assert failure.error().exit_code == 70


def test_what_workers_print_goes_to_the_log(
    tmp_path: Path, nipype_config: None, capfd: pytest.CaptureFixture[str]
) -> None:
    workflow = pe.Workflow("wf", base_dir=str(tmp_path / "work"))
    workflow.add_nodes([_node("loud", shout, "word", "hello")])
    workflow.run(plugin=_plugin(log_file=str(tmp_path / "log.txt")))
    log = (tmp_path / "log.txt").read_text()
    assert "printed hello" in log
    assert "from native code" in log
    assert "printed hello" not in capfd.readouterr().out


def test_a_signal_stops_workers_and_their_children(tmp_path: Path, nipype_config: None) -> None:
    pid_file = tmp_path / "pids"
    workflow = pe.Workflow("wf", base_dir=str(tmp_path / "work"))
    workflow.add_nodes([_node("slow", sleep_with_child, "pid_file", str(pid_file))])

    def send() -> None:
        for _ in range(200):
            if pid_file.exists() and pid_file.read_text().count(" ") == 1:
                break
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Stopped) as caught, stoppable():
        workflow.run(plugin=_plugin())
    stopped_at = time.monotonic()
    sender.join()
    assert caught.value.exit_code == 143
    assert time.monotonic() - stopped_at < 10
    assert not any(
        psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
        for pid in pid_file.read_text().split()
    )


def test_stop_tree_of_nothing_and_of_the_dead() -> None:
    stop_tree()
    stop_tree(2**22 - 7)


@pytest.mark.parametrize(
    ("text", "exit_code", "kind"),
    [
        ("MemoryError: no", None, OutOfMemoryError),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory",
            None,
            OutOfMemoryError,
        ),
        ("torch.OutOfMemoryError: CUDA out of memory.", None, OutOfMemoryError),
        ("OSError: [Errno 28] No space left on device", None, InputOutputError),
        ("KeyError: 'x'", None, InternalError),
        ("", None, InternalError),
        ("", -signal.SIGKILL, OutOfMemoryError),
        ("", 128 + signal.SIGTERM, OutOfMemoryError),
        ("", -signal.SIGBUS, InputOutputError),
        ("", -signal.SIGABRT, InternalError),
        ("", 3, InternalError),
    ],
)
def test_causes_become_errors(text: str, exit_code: int | None, kind: type) -> None:
    error = Failure("wf.step", "step", text, exit_code, 3.0, 2.0, 4.0).error()
    assert type(error) is kind
    assert "step" in str(error)
