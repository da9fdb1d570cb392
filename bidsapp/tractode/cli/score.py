"""``tractode-score {tractogram,dti,warp,all} OUTPUT TRUTH``: derivatives of simulated data against their truth, as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tractode.errors import MissingInputError, TractodeError, UsageError


class _Parser(argparse.ArgumentParser):
    """Raises our error, so that the exit code is the one of the house (64) and not argparse's 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, id="E-CLI-USAGE", fix="see tractode-score --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``tractode-score``; prints one JSON object on stdout and returns the exit code."""
    try:
        options = _parser().parse_args(argv)
        for folder in (options.output, options.truth):
            if not folder.is_dir():
                raise MissingInputError(
                    "There is no such folder",
                    id="E-SCORE-FOLDER",
                    path=folder,
                    needed="the output of tractode, then derivatives/truth of the simulated dataset",
                )
        from tractode.cli import environment

        environment.prepare()
        from tractode.workflows.score import score

        print(json.dumps(score(options.kind, options.output, options.truth, options.participant_label), indent=2))
    except SystemExit as end:  # argparse after --help and --version
        return end.code if isinstance(end.code, int) else 0
    except TractodeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    from tractode import __version__

    parser = _Parser(prog="tractode-score", description=__doc__, allow_abbrev=False)
    parser.add_argument("kind", choices=("tractogram", "dti", "warp", "all"), help="what to score")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="output folder of tractode")
    parser.add_argument("truth", metavar="TRUTH", type=Path, help="derivatives/truth of the simulated dataset")
    parser.add_argument(
        "--participant-label",
        "--participant_label",
        metavar="LABEL",
        nargs="+",
        default=[],
        help="only these (default: all in TRUTH)",
    )
    parser.add_argument("--version", action="version", version=__version__)
    return parser


if __name__ == "__main__":
    sys.exit(main())
