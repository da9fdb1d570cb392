"""Adam on the parameters of any deformation, for any metric and regulariser.

D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, arXiv:1412.6980; some of the points at each step:
S. Klein et al., doi:10.1109/TIP.2007.909412. Where a metric compares neighbourhoods (``needs_grid``) or describes the warped image
itself, whole lattices are compared instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import SimilarityMetric
from tractode.ops import interpolate
from tractode.registration.deformation import Deformation
from tractode.registration.gauss_newton import Penalty, pair_weight
from tractode.registration.midpoint import Level
from tractode.registration.regularisers.folding import Folding


@dataclass(frozen=True, eq=False)
class Descent:
    """What is descended on: a metric between both sides, a penalty of the velocity, a barrier against folding.

    Parameters
    ----------
    described
        Whether the level holds descriptors (compared as they are) or intensities.
    barrier
        Weight of the barrier on the displacements of both halves; 0 for none.
    epsilon
        Ratio of volumes below which the barrier stands.
    points
        Compared at each step, at most.
    """

    level: Level
    metric: SimilarityMetric
    penalty: Penalty
    described: bool
    barrier: float
    epsilon: float
    points: int
    seed: int

    def run(
        self,
        deformation: Deformation,
        parameters: Float[Tensor, "..."],
        iterations: int,
        step: float,
        report: Callable[[int, float], None],
    ) -> Float[Tensor, "..."]:
        """The parameters after ``iterations`` steps."""
        leaf = parameters.detach().clone().requires_grad_(True)
        optimiser = torch.optim.Adam([leaf], lr=step)
        generator = torch.Generator().manual_seed(self.seed)
        for iteration in range(iterations):
            optimiser.zero_grad()
            cost = self.cost(deformation, leaf, generator)
            cost.backward()
            optimiser.step()
            report(iteration, float(cost.detach()))
        return leaf.detach()

    def cost(
        self, deformation: Deformation, parameters: Float[Tensor, "..."], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Half the metric (as in Gauss–Newton), the penalty over all times, and the barrier."""
        velocity = deformation.velocity(parameters)
        forward, back = deformation.halves(velocity)
        cost = self.dissimilarity(forward, back, generator) / 2
        cost = cost + torch.stack([self.penalty(v) for v in velocity]).mean()
        if self.barrier > 0:
            edge = self.level.nodes.voxel_sizes[0]
            fold = Folding(self.epsilon)
            cost = cost + self.barrier * sum(fold(edge * u, (edge,) * 3) for u in (forward, back))
        return cost

    def dissimilarity(
        self, forward: Float[Tensor, "3 i j k"], back: Float[Tensor, "3 i j k"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """The metric in the middle, at some points or on the whole lattice."""
        level, whole = self.level, self.metric.needs_grid or not self.described
        if whole:
            axes = [torch.arange(n, dtype=forward.dtype, device=forward.device) for n in level.shape]
            here = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
            moved = [level.spread(u).permute(1, 2, 3, 0) * level.ratio for u in (back, forward)]
        else:
            here = self._points(generator)
            corner = torch.tensor([a for a, _ in level.window], dtype=here.dtype, device=here.device)
            moved = [interpolate.sample(u, here / level.ratio + corner) * level.ratio for u in (back, forward)]
        sides = [
            interpolate.sample(values, here + u, outside="nearest").movedim(-1, 0)
            for values, u in zip((level.fixed, level.moving), moved, strict=True)
        ]
        weight = pair_weight(level.weights, here + moved[0], here + moved[1]).detach()
        if not whole:
            sides, weight = [side[:, :, None, None] for side in sides], weight[:, None, None]
        compare = getattr(self.metric, "compare", self.metric) if self.described else self.metric
        return compare(sides[0], sides[1], weight)

    def _points(self, generator: torch.Generator) -> Float[Tensor, "p 3"]:
        """Random places (lattice voxels) where both sides count; off the lattice, so that its blur favours none."""
        seen = (self.level.weights.amax(0) > 0).nonzero()
        chosen = torch.randint(len(seen), (min(self.points, len(seen)),), generator=generator).to(seen.device)
        off = torch.rand(len(chosen), 3, generator=generator).to(self.level.weights) - 0.5
        return seen[chosen].to(off) + off
