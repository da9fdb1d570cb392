"""The entry point: prepare the environment, read argv, run a level, and turn whatever happened into an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tractode.cli import environment
from tractode.cli.signals import Stopped, stoppable
from tractode.errors import InternalError, OutOfMemoryError, TractodeError


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``tractode``; returns the exit code of HOUSE §10 and prints errors on stderr, one line each, never a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with stoppable():
            environment.prepare()
            return _run(arguments)
    except Stopped as stop:
        _say(f"Stopped by {stop}. What was finished is kept: the same command goes on from there.")
        return stop.exit_code
    except SystemExit as end:  # argparse after --help and --version
        return end.code if isinstance(end.code, int) else 0
    except TractodeError as error:
        return _report(error, arguments)
    except MemoryError as error:
        return _report(
            OutOfMemoryError(
                f"Memory ran out ({error or 'in the main process'})", id="E-MEM-MAIN", fix="give more memory"
            ),
            arguments,
        )
    except OSError as error:
        return _report(_of_system(error), arguments, error)
    except Exception as error:
        return _report(_bug(error), arguments, error)


def _run(arguments: list[str]) -> int:
    from tractode.cli.parser import parse

    request = parse(arguments)
    environment.set_threads(request.settings.omp_nthreads)
    if request.settings.analysis_level == "group":
        from tractode.cli.group import run_group

        return run_group(request.settings)
    from tractode.cli.participants import run_participants

    return run_participants(request)


def _bug(error: BaseException) -> InternalError:
    first = str(error).partition("\n")[0]
    return InternalError(f"{type(error).__name__}: {first}", id="E-BUG")


def _of_system(error: OSError) -> TractodeError:
    from tractode.io.system_errors import translated

    return translated(error) or _bug(error)


def _report(error: TractodeError, arguments: list[str], cause: BaseException | None = None) -> int:
    _say(str(error))
    if error.exit_code == InternalError.exit_code:
        from tractode.cli.crash import traceback_text, write_bundle

        bundle = write_bundle(
            _crash_folder(arguments),
            {"traceback.txt": traceback_text(cause or error), "arguments.txt": "\n".join(arguments) + "\n"},
        )
        _say(f"This is a bug of tractode. Crash bundle: {bundle}")
    return error.exit_code


def _crash_folder(arguments: list[str]) -> Path:
    """``logs`` in the output folder if there is one already: a crash must not create it."""
    candidates = [Path(word) / "logs" for word in arguments[1:2] if Path(word, "dataset_description.json").is_file()]
    return candidates[0] if candidates else Path(os.environ.get("TMPDIR", "/tmp"))


def _say(text: str) -> None:
    print(f"tractode: {text}", file=sys.stderr, flush=True)
