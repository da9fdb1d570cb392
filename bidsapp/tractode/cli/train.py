"""``tractode-train MODEL … --out FOLDER``: fit a learned model; the same command goes on where it stopped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tractode.cli import train_card, train_codec, train_contrastive, train_gentract
from tractode.cli.small_command import Parser, exit_code_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``tractode-train``; returns the exit code. Errors are one line on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)

    def command() -> None:
        options = _parser().parse_args(words)
        options.words = words
        options.run(options)

    return exit_code_of(command)


def _parser() -> argparse.ArgumentParser:
    from tractode import __version__

    parser = Parser(prog="tractode-train", description=__doc__, allow_abbrev=False)
    kinds = parser.add_subparsers(dest="model", required=True, metavar="MODEL")
    for one in (train_contrastive, train_gentract, train_codec, train_card):
        one.add_parser(kinds)
    parser.add_argument("--version", action="version", version=__version__)
    return parser


if __name__ == "__main__":
    sys.exit(main())
