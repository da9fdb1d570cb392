"""``tractode-score``: derivatives of simulated data against their truth, or two tractograms with each other, as JSON.

tractode-score {tractogram,dti,warp,pose,sessions,field,all} OUTPUT TRUTH    scores of each participant and their means
tractode-score compare FIRST SECOND    agreement of two tractograms, or of two folders of bundles
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tractode.cli.small_command import Parser, exit_code_of
from tractode.cli.words import within
from tractode.errors import MissingInputError, UsageError

COMPARE = "compare"
KINDS = ("tractogram", "dti", "warp", "pose", "sessions", "field")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``tractode-score``; prints one JSON object on stdout and returns the exit code."""
    return exit_code_of(lambda: _run(_parser().parse_args(argv)))


def _run(options: argparse.Namespace) -> None:
    if options.kind == COMPARE and options.participant_label:
        raise UsageError("compare knows no participants", id="E-CLI-USAGE", fix="leave --participant-label out")
    if options.kind != COMPARE:
        for folder in (options.first, options.second):
            if not folder.is_dir():
                raise MissingInputError(
                    "There is no such folder",
                    id="E-SCORE-FOLDER",
                    path=folder,
                    needed="the output of tractode, then derivatives/truth of the simulated dataset",
                )
    from tractode.cli import environment

    environment.prepare()
    if options.kind == COMPARE:
        from tractode.workflows.compare import compare

        result = compare(options.first, options.second, options.voxel_size)
    else:
        from tractode.workflows.score import score

        result = score(options.kind, options.first, options.second, options.participant_label)
    print(json.dumps(result, indent=2))


def _parser() -> argparse.ArgumentParser:
    from tractode import __version__

    parser = Parser(
        prog="tractode-score",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("kind", choices=(*KINDS, "all", COMPARE), help="what to score")
    add(
        "first",
        metavar="OUTPUT",
        type=Path,
        help="output folder of tractode; with compare: a .trx or .tck, or a folder",
    )
    add(
        "second", metavar="TRUTH", type=Path, help="derivatives/truth of the simulated dataset; with compare: the other"
    )
    add(
        "--participant-label",
        "--participant_label",
        metavar="LABEL",
        nargs="+",
        default=[],
        help="only these (default: all in TRUTH)",
    )
    add(
        "--voxel-size",
        "--voxel_size",
        metavar="MM",
        type=within(0.2, 20.0, "a voxel size in mm"),
        default=2.0,
        help="with compare: voxels of the track-density maps (default: 2)",
    )
    add("--version", action="version", version=__version__)
    return parser


if __name__ == "__main__":
    sys.exit(main())
