"""What is kept of a named bundle of one participant: how many lines, how long, how wide, and the latent of their mean course.

No paper. Lines by equal numbers of points are turned to run as the bundle's reference does before their mean is taken, point by
point; width is the root mean square distance of the lines from that mean course. Sums only, so that lines may come in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BundleSummary:
    """``length`` is in mm of the space where it was measured; ``width`` and ``course`` in mm of the template."""

    name: str
    n_lines: int
    length: float
    width: float
    confidence: float
    course: Float[Tensor, "n 3"]


class BundleSums:
    """Sums over lines that come in batches, for bundles of the given names.

    Parameters
    ----------
    references
        A line of each bundle that says which way it runs; a bundle without one follows its first line.
    """

    def __init__(
        self, names: Sequence[str], references: Mapping[str, Float[Tensor, "n 3"]], n_points: int = 31
    ) -> None:
        self.names = tuple(names)
        self._references = {name: line.detach().cpu().double() for name, line in references.items()}
        k = len(self.names)
        self.count = torch.zeros(k, dtype=torch.long)
        self._course = torch.zeros(k, n_points, 3, dtype=torch.float64)
        self._square, self._length, self._confidence = (torch.zeros(k, dtype=torch.float64) for _ in range(3))

    def add(
        self,
        lines: Float[Tensor, "s n 3"],
        bundle: Int[Tensor, " s"],
        lengths: Float[Tensor, " s"],
        confidence: Float[Tensor, " s"],
    ) -> None:
        """Lines and the bundle of each, as an index into the names; others, of a higher index, are passed over."""
        for number in bundle.unique().tolist():
            if number >= len(self.names):
                continue
            mine = bundle == number
            some = self._alike(self.names[number], lines[mine].detach().cpu().double())
            self.count[number] += len(some)
            self._course[number] += some.sum(0)
            self._square[number] += some.square().sum()
            self._length[number] += lengths[mine].double().sum()
            self._confidence[number] += confidence[mine].double().sum()

    def _alike(self, name: str, lines: Float[Tensor, "s n 3"]) -> Float[Tensor, "s n 3"]:
        reference = self._references.setdefault(name, lines[0])
        back = (lines.flip(1) - reference).square().sum((1, 2)) < (lines - reference).square().sum((1, 2))
        return torch.where(back[:, None, None], lines.flip(1), lines)

    def summaries(self) -> list[BundleSummary]:
        """Of every bundle that has a line, in the order of the names."""
        found = []
        for number, name in enumerate(self.names):
            n = int(self.count[number])
            if not n:
                continue
            course = self._course[number] / n
            variance = float(self._square[number] / n - course.square().sum()) / len(course)
            found.append(
                BundleSummary(
                    name,
                    n,
                    float(self._length[number]) / n,
                    max(variance, 0.0) ** 0.5,
                    float(self._confidence[number]) / n,
                    course,
                )
            )
        return found


def latents_of(
    summaries: Sequence[BundleSummary], latents: Callable[[Float[Tensor, "s n 3"]], Float[Tensor, "s d"]]
) -> Float[Tensor, "s d"]:
    """The latent of each mean course."""
    courses = torch.stack([one.course for one in summaries]) if summaries else torch.zeros(0, 31, 3)
    with torch.no_grad():
        return latents(courses.float()).detach().cpu().float()
