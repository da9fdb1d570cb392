"""One live run per participant and output folder; different participants may share a folder.

The lock is a small file that names its owner. The owner touches it every half minute; it is taken over when its process
is known to be dead, or when nobody has touched it for ten minutes. Ages are read off the file system's own clock, so
that machines whose clocks differ agree.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tractode.errors import LockedError
from tractode.io.atomic import atomic_path

HEARTBEAT_S = 30.0
STALE_S = 600.0
NAME = "lock.json"


class ParticipantLock:
    """``with ParticipantLock(output_dir, "01"): …``

    Raises
    ------
    LockedError
        Another live run has this participant (host, process and age in the text).
    """

    def __init__(self, output_dir: Path, participant: str) -> None:
        self.path = output_dir / "logs" / f"sub-{participant}" / NAME
        self.participant = participant
        self._owner = {**_identity(), "token": uuid.uuid4().hex}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ParticipantLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _guarded(self.path.parent):
            found = _read(self.path)
            if found is not None and (age := self._age()) is not None and _is_alive(found, age):
                raise self._taken(found, age)
            self._write()
        self._thread = threading.Thread(target=self._beat, name=f"lock of sub-{self.participant}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(OSError), _guarded(self.path.parent):
            if self.is_held():
                self.path.unlink()

    def is_held(self) -> bool:
        """Whether the lock is still ours: another machine may have taken it while this one was suspended."""
        found = _read(self.path)
        return found is not None and found.get("token") == self._owner["token"]

    def _write(self) -> None:
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(self._owner, indent=1) + "\n", encoding="utf-8")

    def _age(self) -> float | None:
        """Seconds since the owner's last sign of life; `None` if the lock went away meanwhile."""
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=".tmp-clock-") as clock:
            try:
                return Path(clock.name).stat().st_mtime - self.path.stat().st_mtime
            except FileNotFoundError:
                return None

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            if not self.is_held():
                return
            with suppress(OSError):
                os.utime(self.path)

    def _taken(self, found: dict[str, Any], age: float) -> LockedError:
        return LockedError(
            f"sub-{self.participant} is being processed by another run (host {found.get('host')}, process {found.get('pid')}, "
            f"last sign of life {max(age, 0):.0f} s ago)",
            id="E-LOCK-LIVE",
            path=self.path,
            needed="one run per participant and output folder",
            fix="wait for it and try again, or use another output folder",
        )


def _identity() -> dict[str, Any]:
    """Where this process lives, precisely enough to know whether a process number means the same thing."""
    return {
        "host": socket.gethostname(),
        "boot": _text(Path("/proc/sys/kernel/random/boot_id")),
        "namespace": _link(Path("/proc/self/ns/pid")),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _is_alive(found: dict[str, Any], age: float) -> bool:
    if age > STALE_S:
        return False
    here = _identity()
    if found.get("host") != here["host"]:
        return True
    if found.get("boot") != here["boot"]:
        return False  # the machine was started anew since
    if found.get("namespace") != here["namespace"]:
        return True  # another container: its process numbers mean nothing here
    pid = found.get("pid")
    return isinstance(pid, int) and _started(pid) is not None and _started(pid) == found.get("started")


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: a reused number has another. `None` if there is none, or a zombie."""
    stat = _text(Path(f"/proc/{pid}/stat"))
    if not stat:
        return None
    fields = stat.rpartition(")")[2].split()  # the command's name may hold spaces
    return None if fields[0] in ("Z", "X") else fields[19]


def _read(path: Path) -> dict[str, Any] | None:
    """The owner; an unreadable file counts as one whose owner is not known, an absent one as none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def _guarded(folder: Path) -> Iterator[None]:
    """Only one process at a time decides about a lock; where the file system cannot do it, go on without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
