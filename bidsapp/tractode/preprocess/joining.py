"""How the volumes of a shell lie to the b=0 volumes: by their contrasts, and by the time at which they were scanned.

By contrast: the weighted mean as a function of the b=0 image (A. Roche et al., *The correlation ratio as a new similarity measure for
multimodal image registration*, MICCAI 1998, doi:10.1007/BFb0056301), rigidly, by Gauss–Newton. It is off by tenths of a millimetre and
more, whatever the noise: the two images are smooth, and shaded, to different degrees. By time: a volume lies near the ones before and
after it. How near, the steps between volumes of one shell say. The two are averaged by their precisions, each component by itself.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.ops import interpolate
from tractode.ops import volume_pose as pose
from tractode.preprocess.level import Level, stepped

_BINS = 48
_STEPS = 12
# Standard deviations of the way found by contrast: mm, and rad. On simulated heads it is off by 0.3 mm; on real ones, where coils shade the
# images and slabs cut the brain, it was seen to be off by 1.4 mm.
_CONTRAST = (1.5, 1.5, 1.5, 0.02, 0.02, 0.02)


def joined(
    motion: Float[Tensor, "n 6"],
    known: Bool[Tensor, " n"],
    own: Bool[Tensor, " n"],
    level: Level,
    unweighted: Float[Tensor, "i j k"],
    weighted: Float[Tensor, "i j k"],
    centre: Float[Tensor, " 3"],
) -> Float[Tensor, "n 6"]:
    """The motions with a shell's ``own`` volumes moved together.

    ``known`` are those that lie right already: the b=0 volumes and shells joined before. The images are the means of the b=0 volumes and
    of the shell, as they are aligned so far.
    """
    by_contrast = between(level, unweighted, weighted, centre)
    by_time, deviation = in_time(motion, known, own)
    precision, other = torch.tensor(_CONTRAST).double().square().reciprocal(), deviation.square().reciprocal()
    change = (precision * by_contrast + other * by_time) / (precision + other)
    out = motion.clone()
    out[own] = pose.then(change.expand(int(own.sum()), -1), motion[own])
    return out


def in_time(
    motion: Float[Tensor, "n 6"], known: Bool[Tensor, " n"], own: Bool[Tensor, " n"]
) -> tuple[Float[Tensor, "1 6"], Float[Tensor, " 6"]]:
    """The change of the reference of a shell's volumes by which they lie nearest to their neighbours in time, and its standard
    deviation (infinite where they have none)."""
    steps = _steps(motion, own, known)
    near = _neighbours(known, own)
    if not len(near) or len(steps) < 3:
        return torch.zeros(1, 6).double(), torch.full((6,), math.inf).double()
    there, here = near.unbind(-1)
    # change, then the shell's volume's motion, is to be its neighbour's.
    apart = pose.then(motion[there], pose.inverse(motion[here]))
    spread = 1.4826 * steps.abs().median(0).values
    # Jumps are not in the median; half of it more, and no less than a little.
    deviation = 1.5 * spread / math.sqrt(len(near)) + torch.tensor([0.02] * 3 + [0.0003] * 3).double()
    return apart.median(0, keepdim=True).values, deviation


def _steps(motion: Float[Tensor, "n 6"], own: Bool[Tensor, " n"], known: Bool[Tensor, " n"]) -> Float[Tensor, "s 6"]:
    """From volume to next volume, where how the two lie to each other is known."""
    both = (own[1:] & own[:-1]) | (known[1:] & known[:-1])
    return motion.diff(dim=0)[both]


def _neighbours(known: Bool[Tensor, " n"], own: Bool[Tensor, " n"]) -> Int[Tensor, "p 2"]:
    """Pairs of a known volume and one of the shell's right before or after it."""
    places = torch.arange(len(known))
    pairs = torch.cat((torch.stack((places[:-1], places[1:]), -1), torch.stack((places[1:], places[:-1]), -1)))
    return pairs[known[pairs[:, 0]] & own[pairs[:, 1]]]


def between(
    level: Level, unweighted: Float[Tensor, "i j k"], weighted: Float[Tensor, "i j k"], centre: Float[Tensor, " 3"]
) -> Float[Tensor, "1 6"]:
    """The motion from the b=0 image to the weighted one."""
    motion, values = torch.zeros(1, 6, dtype=torch.float64), unweighted.reshape(-1)
    for _ in range(_STEPS):
        at = level.grid.to_voxel(pose.moved(level.points, motion, centre)[0])
        seen = interpolate.sample(weighted[None], at, outside="nearest")[:, 0]
        expected = _conditional_mean(values, values[level.chosen], seen)
        gradient = level.gradient(expected.reshape(unweighted.shape))[level.chosen]
        change, _ = stepped(gradient, level.points, centre, expected[level.chosen], seen)
        motion = pose.then(change[None], motion)
        if float(change[:3].norm()) < 1e-3 and float(change[3:].norm()) < 1e-5:
            break
    return motion


def _conditional_mean(
    everywhere: Float[Tensor, " v"], values: Float[Tensor, " p"], seen: Float[Tensor, " p"]
) -> Float[Tensor, " v"]:
    """What is seen on average at points of a value, linear between bins of equally many points."""
    edges = (
        values.quantile(torch.linspace(0, 1, _BINS + 1))
        if len(values) < 2**24
        else torch.linspace(0, float(values.max()), _BINS + 1)
    )
    index = torch.bucketize(values.contiguous(), edges[1:-1])
    sums = torch.zeros(3, _BINS).index_add_(1, index, torch.stack((torch.ones_like(values), values, seen)))
    counted = sums[0] > 0
    place, mean = (sums[1] / sums[0].clamp_min(1))[counted], (sums[2] / sums[0].clamp_min(1))[counted]
    upper = torch.bucketize(everywhere.contiguous(), place).clamp(1, len(place) - 1)
    share = (everywhere - place[upper - 1]) / (place[upper] - place[upper - 1]).clamp_min(1e-9)
    return torch.lerp(mean[upper - 1], mean[upper], share.clamp(0, 1))
