"""One live run per participant: refused while alive, taken over when dead, never by two at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tractode.bids import lock
from tractode.bids.lock import ParticipantLock
from tractode.errors import LockedError


def _path(output: Path) -> Path:
    return output / "logs/sub-01/lock.json"


def _plant(output: Path, age: float = 0.0, **owner: object) -> Path:
    """A lock of somebody else, last touched ``age`` seconds ago."""
    path = _path(output)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**lock._identity(), "token": "theirs", **owner}))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_held_while_inside_and_gone_after(tmp_path: Path) -> None:
    with ParticipantLock(tmp_path, "01") as held:
        assert held.is_held()
        content = json.loads(_path(tmp_path).read_text())
        assert (content["host"], content["pid"]) == (socket.gethostname(), os.getpid())
        with ParticipantLock(tmp_path, "02"):
            pass
    assert list(_path(tmp_path).parent.iterdir()) == []


def test_a_live_lock_is_refused_with_host_process_and_age(tmp_path: Path) -> None:
    with ParticipantLock(tmp_path, "01") as first:
        with pytest.raises(LockedError, match=rf"{socket.gethostname()}.*{os.getpid()}.*\d+ s ago") as caught:
            ParticipantLock(tmp_path, "01").__enter__()
        assert caught.value.exit_code == 75
        assert first.is_held()


def test_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ParticipantLock(tmp_path, "01"):
        raise RuntimeError
    assert not _path(tmp_path).exists()


def test_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    _plant(tmp_path, pid=child.pid, started="1")
    with ParticipantLock(tmp_path, "01") as held:
        assert held.is_held()


def test_a_reused_process_number_is_not_the_owner(tmp_path: Path) -> None:
    _plant(tmp_path, started="1")  # our own number, but started at another time
    with ParticipantLock(tmp_path, "01") as held:
        assert held.is_held()


@pytest.mark.parametrize(
    ("owner", "age", "is_live"),
    [
        ({}, 0, True),
        ({}, 601, False),
        ({"host": "elsewhere", "pid": 1}, 300, True),
        ({"host": "elsewhere", "pid": 1}, 601, False),
        ({"boot": "before", "started": "1"}, 0, False),
        ({"namespace": "pid:[1]", "pid": 999_999_999}, 300, True),
        ({"namespace": "pid:[1]", "pid": 999_999_999}, 601, False),
    ],
)
def test_who_counts_as_alive(tmp_path: Path, owner: dict[str, object], age: float, is_live: bool) -> None:
    _plant(tmp_path, age=age, **owner)
    if is_live:
        with pytest.raises(LockedError):
            ParticipantLock(tmp_path, "01").__enter__()
    else:
        with ParticipantLock(tmp_path, "01") as held:
            assert held.is_held()


def test_an_unreadable_lock_waits_for_its_time(tmp_path: Path) -> None:
    path = _plant(tmp_path)
    path.write_text("")
    with pytest.raises(LockedError):
        ParticipantLock(tmp_path, "01").__enter__()
    os.utime(path, (1, 1))
    with ParticipantLock(tmp_path, "01") as held:
        assert held.is_held()


def test_the_heartbeat_keeps_it_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    with ParticipantLock(tmp_path, "01"):
        os.utime(_path(tmp_path), (1, 1))
        for _ in range(500):
            if _path(tmp_path).stat().st_mtime > 1:
                break
            time.sleep(0.01)
        assert _path(tmp_path).stat().st_mtime > 1


def test_a_lost_lock_is_noticed_and_not_removed(tmp_path: Path) -> None:
    with ParticipantLock(tmp_path, "01") as held:
        _path(tmp_path).write_text('{"token": "theirs"}')
        assert not held.is_held()
    assert _path(tmp_path).exists()


def _try(output: Path, go: object, answers: object) -> None:
    go.wait()  # type: ignore[attr-defined]
    try:
        with ParticipantLock(output, "01"):
            answers.put(True)  # type: ignore[attr-defined]
            time.sleep(1.0)
    except LockedError:
        answers.put(False)  # type: ignore[attr-defined]


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path: Path) -> None:
    _plant(tmp_path, started="1")
    context = multiprocessing.get_context("fork")
    go, answers = context.Event(), context.Queue()
    workers = [context.Process(target=_try, args=(tmp_path, go, answers)) for _ in range(6)]
    for worker in workers:
        worker.start()
    go.set()
    found = [answers.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(found) == [False] * 5 + [True]
