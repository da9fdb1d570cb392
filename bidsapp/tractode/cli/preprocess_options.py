"""The options of ``tractode`` for what is done to a raw scan before any model, and for scans that had it done already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tractode.cli.words import one_of

INPUT_TYPES = ("auto", "bids", "qsiprep", "hcpya", "ukb")
DENOISE = ("auto", "mppca", "none")
STEP = ("auto", "on", "none")
COMBINE = ("none", "all")


def add_preprocessing(add: Callable[..., Any]) -> None:
    """Every step has a switch. ``auto`` leaves out what a scan cannot support; ``on`` makes that an error."""
    add(
        "--input-type",
        "--input_type",
        dest="input_type",
        type=one_of("kind of input", INPUT_TYPES),
        metavar="{auto,bids,qsiprep,hcpya,ukb}",
        help="bids: raw scans; qsiprep: preprocessed ones under BIDS derivatives' names (QSIPrep's and our own); hcpya, ukb: "
        "the folders of the Human Connectome Project's young adults and of UK Biobank; auto (default) looks. What is "
        "preprocessed is not processed twice",
    )
    add(
        "--denoise",
        "--denoise-method",
        dest="denoise",
        type=one_of("denoising", DENOISE),
        metavar="{auto,mppca,none}",
        help="noise by principal components of neighbourhoods (MP-PCA); auto (default) where there are volumes enough",
    )
    _step(add, "unring", "Gibbs ringing, by sub-voxel shifts", "where the scan is not known to be interpolated")
    _step(add, "motion", "head motion and eddy currents", "where there are directions enough to foretell a volume")
    _step(add, "outliers", "slices that lost their signal, by what the others foretell", "where motion is found")
    _step(add, "bias", "the receive coils' sensitivity (B1 bias)", "where there is brain enough to tell it from")
    add(
        "--combine-runs",
        "--combine-all-dwis",
        dest="combine_runs",
        nargs="?",
        const="all",
        type=one_of("answer", COMBINE),
        metavar="{none,all}",
        help="all: one series of all dwi runs of a session that have the same grid (default: none, each by itself)",
    )


def _step(add: Callable[..., Any], name: str, what: str, when: str) -> None:
    add(
        f"--{name}",
        dest=name,
        type=one_of("answer", STEP),
        metavar="{auto,on,none}",
        help=f"correct {what}; auto (default) {when}",
    )
