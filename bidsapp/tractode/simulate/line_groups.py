"""Groups of 64 lines of one bundle of one person, in random order: what the published bundle codecs take as one piece.

A. Lizarraga et al., "Differentiable VQ-VAE's for robust white matter streamline encodings" (github.com/drewrl3v/diff-vq-vae), section 2.2: bundles are cut
into groups of 64 streamlines, as many of each bundle. Departures: persons are varied from a library (`bundle_variation`); a
bundle of fewer than 64 lines fills its group by lines over again, each moved as a whole by about a millimetre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.fields import ImageGrid
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.bundle_variation import VariationSettings, vary

N_LINES = 64
REPEAT_SHIFT_MM = 1.0  # standard deviation along each axis

# Every bundle of the atlas and of the simulator, with all the lines that may be learned from.
TO_LEARN = VariationSettings(sources=(0.0, 0.0, 1.0), presence=1.0, shares=(1.0, 1.0), lines="training")
# Every bundle of the atlas, by the lines that nothing may learn from.
TO_TEST = VariationSettings(sources=(1.0, 0.0, 0.0), presence=1.0, shares=(1.0, 1.0), lines="held-out")


@dataclass(frozen=True, eq=False)
class Person:
    """``lines`` in RAS+ mm of the template, those of a bundle after one another; ``bundle`` as in the library."""

    lines: Float[Tensor, "s 31 3"]
    bundle: Int[Tensor, " s"]

    def of(self, index: int) -> Float[Tensor, "n 31 3"]:
        """The lines of one bundle."""
        return self.lines[self.bundle == index]


def person(
    library: BundleLibrary, grid: ImageGrid, number: int, settings: VariationSettings, fewest: int = 1
) -> Person:
    """The person of that number. Bundles of fewer than ``fewest`` lines are left out."""
    drawn = vary(library, grid, torch.Generator().manual_seed(number), settings)
    counts = torch.bincount(library.bundle[drawn.kept], minlength=len(library.names))
    rows = (drawn.kept & (counts >= fewest)[library.bundle]).nonzero().ravel()
    return Person(
        drawn.lines[rows],
        library.bundle[rows],
    )


def group(lines: Float[Tensor, "n 31 3"], generator: torch.Generator) -> Float[Tensor, "64 31 3"]:
    """64 of a bundle's lines in random order; where there are fewer, lines again, each moved by a random shift."""
    order = torch.randperm(len(lines), generator=generator)
    if len(lines) >= N_LINES:
        return lines[order[:N_LINES]]
    again = torch.randint(len(lines), (N_LINES - len(lines),), generator=generator)
    shift = REPEAT_SHIFT_MM * torch.randn(len(again), 1, 3, generator=generator)
    every = torch.cat([lines, lines[again] + shift])
    return every[torch.randperm(N_LINES, generator=generator)]


class Groups:
    """Draws groups from persons that are in memory: every bundle as often, mirrored half of the time."""

    def __init__(self, persons: Sequence[Person]) -> None:
        self.persons = tuple(persons)
        self._bundles = [one.bundle.unique() for one in self.persons]

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n 64 31 3"]:
        """``n`` groups, each of a bundle of a person of its own."""
        found = []
        for _ in range(n):
            number = int(torch.randint(len(self.persons), (), generator=generator))
            bundles = self._bundles[number]
            index = int(bundles[int(torch.randint(len(bundles), (), generator=generator))])
            side = torch.where(torch.rand((), generator=generator) < 0.5, _MIRROR, torch.ones(3))
            found.append(group(self.persons[number].of(index), generator) * side)
        return torch.stack(found)


_MIRROR = torch.tensor([-1.0, 1.0, 1.0])
