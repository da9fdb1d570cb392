"""Bundles to learn from: lines of named bundles at equally spaced points, alike in direction, with their mirror partners.

No paper. The reference of a bundle's direction is its medoid: the line with the least summed distance (MDF, Garyfallidis et
al., doi:10.3389/fnins.2012.00175, here of squares) to the others; a bundle on the right follows that of its left partner.
Every third line of a bundle from outside is held out: never learned from, used as the truth of test subjects only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields import Streamlines
from tractode.simulate import bundles as tubes
from tractode.simulate.tissues import Anatomy

N_POINTS = 31
_FOLDS, _HELD_OUT = 3, 2


@dataclass(frozen=True, eq=False)
class BundleLibrary:
    """Lines in RAS+ mm of the template; ``bundle`` is each line's index into ``names``.

    ``mirror`` is the bundle on the other side: itself for commissures and where there is none. ``is_simulated`` marks the
    simulator's own courses, ``is_held_out`` the lines that nothing may learn from.
    """

    names: tuple[str, ...]
    lines: Float[Tensor, "s 31 3"]
    bundle: Int[Tensor, " s"]
    mirror: Int[Tensor, " b"]
    is_held_out: Bool[Tensor, " s"]
    is_simulated: Bool[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.lines)

    def hash(self) -> str:
        """A sum of names and lines that tells one library from another."""
        total = hashlib.sha256("\n".join(self.names).encode())
        for part in (self.lines, self.bundle, self.is_held_out):
            total.update(part.contiguous().numpy().tobytes())
        return total.hexdigest()


def library(
    atlas: Mapping[str, Streamlines], simulated: Mapping[str, Streamlines] | None = None, fewest: int = 15
) -> BundleLibrary:
    """From named bundles of an atlas and of the simulator, all in the template.

    An atlas bundle is taken if it or its mirror partner has at least ``fewest`` lines; cranial nerves are not.
    """
    simulated = simulated or {}
    chosen = [name for name in atlas if not name.startswith("CranialNerve") and len(atlas[name])]
    enough = {name for name in chosen if len(atlas[name]) >= fewest}
    kept = [name for name in chosen if name in enough or mirror_name(name, chosen) in enough]
    names = (*kept, *simulated)
    parts: dict[str, Float[Tensor, "n 31 3"]] = {}
    for name in names:
        lines = equally_spaced(simulated[name] if name in simulated else atlas[name])
        partner = parts.get(mirror_name(name, names)) if mirror_name(name, names) != name else None
        reference = None if partner is None else partner.mean(0) * torch.tensor([-1.0, 1, 1])
        parts[name] = alike(lines, reference)
    counts = torch.tensor([len(parts[name]) for name in names])
    bundle = torch.repeat_interleave(torch.arange(len(names)), counts)
    place = torch.cat([torch.arange(int(n)) for n in counts])
    is_simulated = torch.tensor([name in simulated for name in names])
    return BundleLibrary(
        names,
        torch.cat([parts[name] for name in names]),
        bundle,
        torch.tensor([names.index(mirror_name(name, names)) for name in names]),
        (place % _FOLDS == _HELD_OUT) & ~is_simulated[bundle],
        is_simulated,
    )


def simulated_bundles(anatomy: Anatomy, lines_per_bundle: int = 60, seed: int = 0) -> dict[str, Streamlines]:
    """The simulator's own courses in the template; thick ones have more lines."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, course in tubes.courses().items():
        lines = tubes.bundle(name, anatomy.white_matter, lines_per_bundle * course.fibres, generator)
        found[name] = Streamlines(lines.points.float(), lines.offsets, lines.space)
    return found


def mirror_name(name: str, names: Iterable[str]) -> str:
    """The same bundle on the other side, if it is among ``names``, else the name itself.

    >>> mirror_name("CingulumL_Parolfactory", ["CingulumR_Parolfactory"])
    'CingulumR_Parolfactory'
    >>> mirror_name("DentatorubrothalamicTractlr", ["DentatorubrothalamicTractrl"])
    'DentatorubrothalamicTractrl'
    """
    other = {"L": "R", "R": "L", "lr": "rl", "rl": "lr"}
    swapped = re.sub(r"(?:lr|rl|[LR])(?=_|$)", lambda side: other[side[0]], name, count=1)
    return swapped if swapped in set(names) else name


def equally_spaced(lines: Streamlines, n: int = N_POINTS) -> Float[Tensor, "s n 3"]:
    """Every line at ``n`` points equally spaced by arc length, ends kept."""
    share = np.linspace(0, 1, n)
    out = np.empty((len(lines), n, 3), dtype=np.float32)
    points, offsets = lines.points.double().numpy(), lines.offsets.tolist()
    for row, (start, stop) in enumerate(pairwise(offsets)):
        line = points[start:stop]
        arc = np.concatenate([[0.0], np.linalg.norm(np.diff(line, axis=0), axis=1).cumsum()])
        for axis in range(3):
            out[row, :, axis] = np.interp(share * arc[-1], arc, line[:, axis])
    return torch.from_numpy(out)


def alike(lines: Float[Tensor, "s n 3"], reference: Float[Tensor, "n 3"] | None = None) -> Float[Tensor, "s n 3"]:
    """Lines turned to run as the reference does: the medoid, or the one given; once more by the mean of the result."""
    if reference is None:
        flat, flipped = lines.flatten(1), lines.flip(1).flatten(1)
        distance = torch.minimum(torch.cdist(flat, flat), torch.cdist(flat, flipped)).square().sum(1)
        reference = lines[int(distance.argmin())]
    for _ in range(2):
        direct = (lines - reference).square().sum((1, 2))
        turned = (lines.flip(1) - reference).square().sum((1, 2))
        lines = torch.where((turned < direct)[:, None, None], lines.flip(1), lines)
        reference = lines.mean(0)
    return lines
