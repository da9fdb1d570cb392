"""What the commands beside the app share: a parser that raises the house's errors, and one way to end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from tractode.errors import TractodeError, UsageError


class Parser(argparse.ArgumentParser):
    """Raises our error, so that the exit code is the one of the house (64) and not argparse's 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, id="E-CLI-USAGE", fix=f"see {self.prog} --help")


def exit_code_of(command: Callable[[], None]) -> int:
    """Run a command; an error is one line on stderr and its exit code."""
    try:
        command()
    except SystemExit as end:  # argparse after --help and --version
        return end.code if isinstance(end.code, int) else 0
    except TractodeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    return 0


def positive(text: str) -> int:
    """A whole number from 1, for ``type=``."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value
