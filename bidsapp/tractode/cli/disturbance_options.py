"""Options of ``tractode-simulate`` for what happens during the diffusion series: motion, eddy currents, lost slices, shading."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tractode.cli.words import within

if TYPE_CHECKING:
    from tractode.simulate.disturbance import DisturbanceSettings

_AMOUNT = within(0.0, 20.0)
_SHARE = within(0.0, 0.8)


def add(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--head-motion",
        metavar="MM",
        type=_AMOUNT,
        default=0.0,
        help="the head moves during the dwi, at the farthest by so many mm and as many degrees (default: 0)",
    )
    group.add_argument(
        "--eddy-currents",
        metavar="MM",
        type=_AMOUNT,
        default=0.0,
        help="eddy currents: standard deviation of the shift along the phase encoding, 100 mm from the middle (default: 0)",
    )
    group.add_argument(
        "--dropped-slices",
        metavar="SHARE",
        type=_SHARE,
        default=0.0,
        help="this share of the slices of weighted volumes loses 40 to 90 %% of its signal (default: 0)",
    )
    group.add_argument(
        "--shading",
        metavar="SHARE",
        type=_SHARE,
        default=0.0,
        help="receive coils shade the dwi: standard deviation of the factor's logarithm in the brain (default: 0)",
    )


def settings(options: argparse.Namespace) -> DisturbanceSettings:
    from tractode.simulate import bias, disturbance, eddy, motion, outliers

    return disturbance.DisturbanceSettings(
        motion=motion.HeadMotionSettings(options.head_motion, options.head_motion) if options.head_motion else None,
        eddy=eddy.EddySettings(options.eddy_currents) if options.eddy_currents else None,
        dropped=outliers.DroppedSlicesSettings(options.dropped_slices) if options.dropped_slices else None,
        bias=bias.BiasSettings(options.shading) if options.shading else None,
    )
