"""``tractode-simulate OUT``: a raw BIDS dataset of simulated participants with known truth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tractode.cli.small_command import Parser, exit_code_of
from tractode.errors import UsageError

if TYPE_CHECKING:
    from tractode.workflows.simulate import SimulationSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``tractode-simulate``; returns the exit code. Errors are one line on stderr."""
    return exit_code_of(lambda: _run(_parser().parse_args(argv)))


def _run(options: argparse.Namespace) -> None:
    from tractode.cli import environment

    environment.prepare()
    # Sums round differently for different numbers of threads; one thread gives the same bytes everywhere.
    environment.set_threads(1)
    import torch

    torch.set_num_threads(1)  # in case something imported it before
    from tractode.workflows.simulate import write_dataset

    labels = write_dataset(options.out, _settings(options), lambda text: print(f"simulating {text}", file=sys.stderr))
    print(f"{len(labels)} participants in {options.out}; the truth is in {options.out / 'derivatives' / 'truth'}")


def _parser() -> argparse.ArgumentParser:
    from tractode import __version__

    parser = Parser(prog="tractode-simulate", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("out", metavar="OUT", type=Path, help="folder of the new dataset; must not exist or be empty")
    add("--participants", metavar="N", type=_positive, default=1, help="how many (default: 1)")
    add("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")
    add(
        "--resolution",
        metavar="MM",
        type=_millimetres,
        nargs="+",
        default=[2.0],
        help="dwi voxel size, one number or three (default: 2)",
    )
    add("--t1w-resolution", metavar="MM", type=_millimetres, default=1.0, help="T1w voxel size (default: 1)")
    add("--no-t1w", action="store_true", help="write no T1w")
    add(
        "--shells",
        metavar="B:N[,B:N…]",
        type=_shells,
        default=((1000.0, 32), (2500.0, 64)),
        help="b-value in s/mm² and number of directions of each shell (default: 1000:32,2500:64)",
    )
    add("--b0s", metavar="N", type=_positive, default=8, help="number of b=0 volumes (default: 8)")
    add("--gradients", metavar=("BVAL", "BVEC"), nargs=2, type=Path, help="this table instead of --shells and --b0s")
    add(
        "--snr",
        type=_snr,
        default=30.0,
        help="white matter at b=0 over the noise's sigma; 'inf' for no noise (default: 30)",
    )
    add(
        "--orientation",
        metavar="XYZ",
        default="LAS",
        help="direction of the stored axes of the dwi, such as RAS, LAS or PSR (default: LAS)",
    )
    add("--t1w-orientation", metavar="XYZ", default="RAS", help="the same of the T1w (default: RAS)")
    add(
        "--oblique",
        metavar="DEG",
        type=float,
        default=0.0,
        help="turn the dwi grid away from the scanner's axes (default: 0)",
    )
    add(
        "--bundles",
        metavar="NAME",
        nargs="+",
        default=[],
        help="only these bundles, such as CST AFL CCBody (default: all); the rest is background",
    )
    add(
        "--fibres",
        metavar="N",
        type=_positive,
        default=300,
        help="streamlines of a thin bundle (default: 300); thick ones have more",
    )
    add("--asymmetry", type=float, default=1.0, help="strength of left–right differences (default: 1)")
    add("--version", action="version", version=__version__)
    return parser


def _settings(options: argparse.Namespace) -> SimulationSettings:
    from tractode.simulate.subject import SubjectSettings, chosen_names
    from tractode.simulate.warp import WarpSettings
    from tractode.workflows.simulate import SimulationSettings

    if len(options.resolution) not in (1, 3):
        raise UsageError(
            f"--resolution got {len(options.resolution)} numbers",
            id="E-CLI-RESOLUTION",
            needed="one voxel size, or three",
        )
    sizes = options.resolution * (3 if len(options.resolution) == 1 else 1)
    try:
        bundles = chosen_names(options.bundles)
    except KeyError as unknown:
        from tractode.simulate.bundles import courses

        raise UsageError(
            f"There is no bundle {unknown}",
            id="E-CLI-BUNDLE",
            needed=f"some of {', '.join(courses())}, or a name without its side for both",
        ) from unknown
    noisy = options.snr != float("inf")
    subject = SubjectSettings(
        snr=options.snr if noisy else None,
        t1w_snr=40.0 if noisy else None,
        bundles=bundles,
        fibres_per_bundle=options.fibres,
        warp=WarpSettings(asymmetry=options.asymmetry),
    )
    return SimulationSettings(
        participants=options.participants,
        seed=options.seed,
        resolution=(sizes[0], sizes[1], sizes[2]),
        t1w_resolution=None if options.no_t1w else options.t1w_resolution,
        shells=options.shells,
        n_b0=options.b0s,
        gradients=tuple(options.gradients) if options.gradients else None,
        orientation=options.orientation.upper(),
        t1w_orientation=options.t1w_orientation.upper(),
        oblique_deg=options.oblique,
        subject=subject,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _millimetres(text: str) -> float:
    value = float(text)
    if not 0.5 <= value <= 20:
        raise argparse.ArgumentTypeError(f"{text} mm is not a voxel size between 0.5 and 20")
    return value


def _snr(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _shells(text: str) -> tuple[tuple[float, int], ...]:
    shells = []
    for part in text.split(","):
        b, colon, n = part.partition(":")
        if not colon or float(b) <= 0 or int(n) < 1:
            raise argparse.ArgumentTypeError(f"{part!r} is not B:N with B > 0 and N ≥ 1")
        shells.append((float(b), int(n)))
    return tuple(shells)


if __name__ == "__main__":
    sys.exit(main())
