"""The options of ``tractode`` for masks and tissues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tractode.cli.words import one_of

DWI_MASKS = ("auto", "threshold", "weighted", "surface", "template")
SEGMENTATIONS = ("auto", "own", "none")


def add_anatomy(add: Callable[..., Any]) -> None:
    add(
        "--dwi-mask",
        dest="dwi_mask",
        type=one_of("method", DWI_MASKS),
        metavar="{auto,threshold,weighted,surface,template}",
        help="brain mask of a scan: by a vote of several methods (auto, the default; a template's where they disagree), or by one",
    )
    add(
        "--segmentation",
        dest="segmentation",
        type=one_of("segmentation", SEGMENTATIONS),
        metavar="{auto,own,none}",
        help="tissues of the anatomical image: those of the derivatives where there are any, else our own (auto, the default); always our own; none",
    )
