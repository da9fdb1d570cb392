"""``tractode-simulate OUT``: a raw BIDS dataset of simulated participants with known truth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tractode.cli import disturbance_options
from tractode.cli.small_command import Parser, exit_code_of, positive
from tractode.cli.words import within
from tractode.errors import UsageError

if TYPE_CHECKING:
    from tractode.workflows.simulate_settings import AtlasSettings, DistortionSettings, SimulationSettings

_AMOUNT = within(0.0, 50.0)
_READOUT = within(0.001, 0.5, "a readout time in seconds")
_VOXEL = within(0.5, 20.0, "a voxel size in mm")


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
    add("--participants", metavar="N", type=positive, default=1, help="how many (default: 1)")
    add("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")
    add(
        "--resolution",
        metavar="MM",
        type=_VOXEL,
        nargs="+",
        default=[2.0],
        help="dwi voxel size, one number or three (default: 2)",
    )
    add(
        "--anat",
        metavar="SUFFIX",
        nargs="+",
        choices=("T1w", "T2w", "FLAIR"),
        default=["T1w"],
        help="anatomical images: some of T1w, T2w, FLAIR (default: T1w)",
    )
    add("--t1w-resolution", metavar="MM", type=_VOXEL, default=1.0, help="T1w voxel size (default: 1)")
    for suffix in ("t2w", "flair"):
        add(
            f"--{suffix}-resolution",
            metavar="MM",
            type=_VOXEL,
            nargs="+",
            help="the same of this image, one number or three (default: that of the T1w)",
        )
    add("--no-t1w", action="store_true", help="write no T1w")
    add(
        "--shells",
        metavar="B:N[,B:N…]",
        type=_shells,
        default=((1000.0, 32), (2500.0, 64)),
        help="b-value in s/mm² and number of directions of each shell (default: 1000:32,2500:64)",
    )
    add("--b0s", metavar="N", type=positive, default=8, help="number of b=0 volumes (default: 8)")
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
        type=positive,
        help="streamlines of a thin bundle (default: 300); thick ones have more",
    )
    add("--asymmetry", type=float, default=1.0, help="strength of left–right differences (default: 1)")
    _add_atlas(parser.add_argument_group("bundles of an atlas"))
    _add_distortion(parser.add_argument_group("susceptibility distortion"))
    _add_visits(parser.add_argument_group("movement and sessions"))
    disturbance_options.add(parser.add_argument_group("disturbances of the dwi"))
    add("--version", action="version", version=__version__)
    return parser


def _add_atlas(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--atlas",
        metavar="FOLDER",
        type=Path,
        help="bundles of this folder instead of the simulator's own: tractograms in MNI space (.trk, .tck, .trx), one a bundle",
    )
    add(
        "--atlas-lines",
        choices=("all", "training", "held-out"),
        help="streamlines of the atlas that may exist: all, those that generative models learn from, or those they never see "
        "(default: all)",
    )
    add(
        "--bundle-variation",
        metavar="SCALE",
        type=_AMOUNT,
        help="how much bundles vary between participants; 0: every line of every bundle where the atlas has it (default: 1)",
    )


def _add_distortion(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--distortion",
        metavar="on|HZ",
        type=_strength,
        help="distort the dwi by the field of air below the brain: that of 3 T, or so strong that 95 %% of the brain has "
        "less than HZ (default: none)",
    )
    add(
        "--phase-encoding",
        choices=("i", "i-", "j", "j-"),
        default="j-",
        help="PhaseEncodingDirection of the dwi (default: j-, which is AP as LAS is stored)",
    )
    add("--readout", metavar="S", type=_READOUT, default=0.05, help="TotalReadoutTime (default: 0.05)")
    add(
        "--reverse-encoding",
        choices=("none", "epi", "dwi"),
        default="none",
        help="encoded the other way: three b=0 volumes in fmap, or the whole series again (default: none)",
    )
    add(
        "--field-map",
        choices=("none", "phasediff", "phases", "fieldmap"),
        default="none",
        help="gradient echoes: phase difference, both phases, or the field in Hz (default: none)",
    )
    add(
        "--fmap-link",
        choices=("intendedfor", "relative", "b0field", "none"),
        default="intendedfor",
        help="how field maps name the dwi: IntendedFor as BIDS URI, or as relative path; B0FieldIdentifier and "
        "B0FieldSource; not at all (default: intendedfor)",
    )


def _add_visits(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--movement",
        metavar="MM",
        type=_AMOUNT,
        default=0.0,
        help="the head moves between the scans of a session: standard deviation of each shift in mm and of each turn in "
        "degrees (default: 0)",
    )
    add("--sessions", metavar="N", type=positive, help="scan the same heads N times, in folders ses-01 …")
    add(
        "--session-movement",
        metavar="MM",
        type=_AMOUNT,
        default=5.0,
        help="the same between sessions (default: 5)",
    )
    add(
        "--growth",
        metavar="SHARE",
        type=_AMOUNT,
        default=0.0,
        help="from the first session to the last the lateral ventricles grow, in their middle by this share (default: 0)",
    )


def _settings(options: argparse.Namespace) -> SimulationSettings:
    from tractode.simulate.poses import MovementSettings
    from tractode.simulate.subject import SubjectSettings, chosen_names
    from tractode.simulate.warp import WarpSettings
    from tractode.workflows.simulate_settings import SimulationSettings

    _check_combination(options)
    sizes = _three("--resolution", options.resolution)
    painted = tuple(
        (suffix, _three(f"--{suffix.lower()}-resolution", given or [options.t1w_resolution]))
        for suffix, given in (("T2w", options.t2w_resolution), ("FLAIR", options.flair_resolution))
        if suffix in options.anat
    )
    try:
        # Names of an atlas are checked when it is read.
        bundles = tuple(options.bundles) if options.atlas else chosen_names(options.bundles)
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
        fibres_per_bundle=options.fibres or 300,
        warp=WarpSettings(asymmetry=options.asymmetry),
    )
    return SimulationSettings(
        participants=options.participants,
        seed=options.seed,
        resolution=sizes,
        t1w_resolution=None if options.no_t1w or "T1w" not in options.anat else options.t1w_resolution,
        shells=options.shells,
        n_b0=options.b0s,
        gradients=tuple(options.gradients) if options.gradients else None,
        orientation=options.orientation.upper(),
        t1w_orientation=options.t1w_orientation.upper(),
        oblique_deg=options.oblique,
        subject=subject,
        distortion=None if options.distortion is None else _distortion(options),
        painted=painted,
        movement=MovementSettings(options.movement, options.movement),
        sessions=options.sessions,
        session_movement=MovementSettings(options.session_movement, options.session_movement),
        growth=options.growth,
        atlas=None if options.atlas is None else _atlas(options),
        disturbance=disturbance_options.settings(options),
    )


def _atlas(options: argparse.Namespace) -> AtlasSettings:
    from tractode.workflows.simulate_settings import AtlasSettings

    variation = 1.0 if options.bundle_variation is None else options.bundle_variation
    return AtlasSettings(options.atlas, options.atlas_lines or "all", variation)


def _distortion(options: argparse.Namespace) -> DistortionSettings:
    from tractode.simulate.echo_planar import Encoding
    from tractode.workflows.simulate_settings import DistortionSettings

    return DistortionSettings(
        strength_hz=None if options.distortion == "on" else options.distortion,
        encoding=Encoding(options.phase_encoding, options.readout),
        reverse=options.reverse_encoding,
        field_map=options.field_map,
        link=options.fmap_link,
    )


def _check_combination(options: argparse.Namespace) -> None:
    """Options that do nothing without another are mistakes."""
    asked = {"--reverse-encoding": options.reverse_encoding, "--field-map": options.field_map}
    for name, value in asked.items():
        if options.distortion is None and value != "none":
            raise UsageError(
                f"{name} {value} without --distortion",
                id="E-CLI-USAGE",
                needed="a field to be mapped",
                fix="add --distortion on",
            )
    for name, given in (("--atlas-lines", options.atlas_lines), ("--bundle-variation", options.bundle_variation)):
        if given is not None and options.atlas is None:
            raise UsageError(f"{name} without --atlas", id="E-CLI-USAGE", needed="a folder of bundles")
    if options.fibres and options.atlas is not None:
        raise UsageError(
            "--fibres with --atlas", id="E-CLI-USAGE", needed="one of them: an atlas has its own streamlines"
        )
    if options.growth and (options.sessions or 1) < 2:
        raise UsageError("--growth without two sessions", id="E-CLI-USAGE", fix="add --sessions 2")


def _three(option: str, sizes: list[float]) -> tuple[float, float, float]:
    if len(sizes) not in (1, 3):
        raise UsageError(f"{option} got {len(sizes)} numbers", id="E-CLI-RESOLUTION", needed="one voxel size, or three")
    i, j, k = sizes * (3 if len(sizes) == 1 else 1)
    return i, j, k


def _strength(text: str) -> float | str:
    if text == "on":
        return text
    value = float(text)
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is neither 'on' nor a field between 0 and 1000 Hz")
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
