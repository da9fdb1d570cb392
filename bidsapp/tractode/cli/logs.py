"""Where libraries' messages go: all to one log file a run, to the terminal only what ``-v`` asks for."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LEVELS = (logging.CRITICAL + 1, logging.WARNING, logging.INFO, logging.DEBUG)


@contextmanager
def logging_to(log_file: Path | None, verbosity: int) -> Iterator[None]:
    """Inside the block the root logger and nipype's (which would print tracebacks) write to ``log_file`` alone, and to stderr by ``-v``."""
    handlers: list[logging.Handler] = []
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(_LEVELS[min(verbosity, len(_LEVELS) - 1)])
    handlers.append(console)
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
    import nipype  # noqa: F401  its import installs a handler on stdout, which is replaced below

    loggers = [logging.getLogger(), logging.getLogger("nipype")]
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in loggers]
    shown = warnings.showwarning
    for logger in loggers:
        logger.handlers = list(handlers) if logger is loggers[0] else []
        logger.propagate = True
    loggers[0].setLevel(logging.DEBUG if verbosity > 2 else logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        warnings.showwarning = shown
        for logger, old, level, propagate in before:
            logger.handlers, logger.propagate = old, propagate
            logger.setLevel(level)
        for handler in handlers:
            handler.close()
