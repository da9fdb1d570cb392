"""``tractode-codec``: streamlines to codes and back, names for them, and new ones, without a BIDS dataset.

tractode-codec encode LINES OUT.safetensors     compress; no point is farther than --max-error-mm from where it was
tractode-codec decode FILE.safetensors OUT      back to .trx (with names) or .tck
tractode-codec name LINES OUT.trx               the same lines with the bundle of each, and TRX groups
tractode-codec synthesise OUT --bundle NAME …   new lines of named bundles

LINES is .trx, .tck or .trk in MNI152NLin2009aSym, or in another space with --transform.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tractode.cli.small_command import Parser, exit_code_of, positive


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``tractode-codec``; prints one JSON object on stdout and returns the exit code."""
    return exit_code_of(lambda: _run(_parser().parse_args(argv)))


def _run(options: argparse.Namespace) -> None:
    from tractode.cli import environment

    environment.prepare()
    from tractode.interfaces.codec_plan import CodecPlan
    from tractode.workflows import codec

    plan = CodecPlan(options.max_error_mm, options.min_confidence, options.weights)
    place = codec.Place(tuple(options.transform), options.reference)
    if options.work == "encode":
        result = codec.encode(options.source, options.target, plan, place)
    elif options.work == "decode":
        result = codec.decode(options.source, options.target, plan, place)
    elif options.work == "name":
        result = codec.name(options.source, options.target, plan, place, options.table)
    else:
        result = codec.synthesise(
            options.target, options.bundle, options.n_streamlines, options.random_seed, plan, place
        )
    print(json.dumps(result, indent=2))


def _parser() -> argparse.ArgumentParser:
    from tractode import __version__

    parser = Parser(
        prog="tractode-codec",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    works = parser.add_subparsers(dest="work", required=True, metavar="{encode,decode,name,synthesise}")
    encode = _work(works, "encode", "a tractogram as codes", "LINES")
    encode.add_argument("target", metavar="OUT.safetensors", type=Path)
    encode.add_argument(
        "--max-error-mm", type=float, default=2.0, metavar="MM", help="largest error of any point (default: 2)"
    )
    decode = _work(works, "decode", "a compressed tractogram as streamlines", "FILE.safetensors")
    decode.add_argument("target", metavar="OUT", type=Path, help=".trx or .tck")
    name = _work(works, "name", "the bundle of each streamline", "LINES")
    name.add_argument("target", metavar="OUT.trx", type=Path)
    name.add_argument("--table", type=Path, metavar="FILE.tsv", help="also a table of the bundles")
    for one in (decode, name):
        _add_confidence(one)
    synthesise = _work(works, "synthesise", "new streamlines of named bundles", None)
    synthesise.add_argument("target", metavar="OUT", type=Path, help=".trx or .tck")
    synthesise.add_argument(
        "--bundle", nargs="+", required=True, metavar="NAME", help="a wrong one is answered with the nearest"
    )
    synthesise.add_argument(
        "--n-streamlines", type=positive, default=100, metavar="N", help="of each bundle (default: 100)"
    )
    synthesise.add_argument("--random-seed", type=int, default=0, metavar="N")
    parser.set_defaults(max_error_mm=2.0, min_confidence=0.5)
    return parser


def _work(works: Any, name: str, text: str, source: str | None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = works.add_parser(name, help=text, description=text, allow_abbrev=False)
    if source is not None:
        parser.add_argument("source", metavar=source, type=Path)
    way = (
        "from the space of the lines to MNI152NLin2009aSym"
        if name in ("encode", "name")
        else "from MNI152NLin2009aSym to the space of OUT"
    )
    parser.add_argument(
        "--transform", nargs="+", type=Path, default=[], metavar="FILE",
        help=f"ITK, ANTs or X5 files that bring points {way}, in the order in which points pass them (from-A_to-B brings points of B to A)",
    )  # fmt: skip
    parser.add_argument(
        "--reference", type=Path, metavar="IMAGE", help="image whose grid the header of a TRX file names"
    )
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="weights instead of those shipped")
    return parser


def _add_confidence(parser: argparse.ArgumentParser) -> None:
    from tractode.cli.words import share

    parser.add_argument(
        "--min-confidence", type=share, default=0.5, metavar="P", help="below it a streamline is 'other' (default: 0.5)"
    )


if __name__ == "__main__":
    sys.exit(main())
