"""Stopping on request: SIGTERM, SIGINT and SIGUSR1 become one exception in the main thread, whose ``finally`` blocks clean up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

# Batch systems send SIGUSR1, where asked to, some time before they kill.
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(BaseException):
    """Not an `Exception`, so that no library swallows it."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)

    @property
    def exit_code(self) -> int:
        """128 + the signal; a warning of the batch system counts as its SIGTERM."""
        return 130 if self.number == signal.SIGINT else 143


@contextmanager
def stoppable() -> Iterator[None]:
    """Signals raise `Stopped` inside the block, once; what comes while it cleans up is ignored. Elsewhere than in the main thread this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _raise) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    for handled in HANDLED:
        signal.signal(handled, signal.SIG_IGN)
    raise Stopped(number)
