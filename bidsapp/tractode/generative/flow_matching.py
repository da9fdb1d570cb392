"""Flow matching: a network learns the velocity that carries a source to the data along straight lines.

Y. Lipman et al., "Flow matching for generative modeling", ICLR 2023, doi:10.48550/arXiv.2210.02747, with the straight path
``x_t = (1 − t) x_0 + t x_1``; sources that depend on the data: M. S. Albergo et al., "Stochastic interpolants with
data-dependent couplings", ICML 2024, doi:10.48550/arXiv.2310.03725. The skewed times and the graded grid of steps are those of
T. Karras et al., NeurIPS 2022, doi:10.48550/arXiv.2206.00364 (σ = (1 − t) / t), which the published GenTract uses.

Departure: times are given to the network as they are, in [0, 1]; the network's embedding multiplies them by 1,000
(`generative/transformer.py`). GenTract's training code fed them unscaled to an embedding made for 0 … 1,000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops import ode

# What a network predicts from points of shape (s, …) and one time in [0, 1] for each of the s.
Prediction = Callable[[Tensor, Tensor], Tensor]
_EARLIEST = 1e-4


@dataclass(frozen=True)
class FlowMatching:
    """Straight paths from a source (time 0) to the data (time 1).

    Parameters
    ----------
    times
        How training times are drawn: ``uniform`` in [0, 1], or ``edm``: σ is log-normal and ``t = 1 / (1 + σ)``.
    log_mean, log_deviation
        Of the log-normal σ.
    grid
        Sampling steps: ``equal``, or ``edm``: graded, fine near the data.
    method
        Of the integration; ``midpoint`` evaluates the network twice a step.
    """

    times: Literal["uniform", "edm"] = "uniform"
    log_mean: float = -1.2
    log_deviation: float = 1.2
    grid: Literal["equal", "edm"] = "equal"
    method: Literal["euler", "midpoint"] = "euler"

    def training_pair(
        self, x1: Float[Tensor, "s *p"], source: Float[Tensor, "s *p"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "s *p"], Float[Tensor, " s"], Float[Tensor, "s *p"]]:
        """A point of each path, its time, and the velocity ``x_1 − x_0`` that the network shall predict there.

        ``source`` is noise, or anything that is drawn together with the data: row i of it starts the path that ends in row i
        of ``x1``. At sampling time the start has to be drawn as the source was.
        """
        time = self._times(len(x1), generator).to(x1)
        share = time.reshape(-1, *[1] * (x1.ndim - 1))
        return (1 - share) * source + share * x1, time, x1 - source

    def sample(self, velocity: Prediction, start: Float[Tensor, "s *p"], n_steps: int) -> Float[Tensor, "s *p"]:
        """The data at the end of the flow that begins at ``start``."""

        def derivative(time: Tensor, x: Tensor) -> Tensor:
            return velocity(x, time.to(x).expand(len(x)))

        if self.grid == "equal":
            return ode.integrate(derivative, start, 0.0, 1.0, n_steps, self.method)
        x = start
        for first, last in pairwise(graded_times(n_steps)):
            x = ode.integrate(derivative, x, first, last, 1, self.method)
        return x

    def evaluations(self, n_steps: int) -> int:
        """How often the network is evaluated in so many steps."""
        return n_steps * (2 if self.method == "midpoint" else 1)

    def _times(self, n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
        if self.times == "uniform":
            return torch.rand(n, generator=generator, device=generator.device)
        normal = torch.randn(n, generator=generator, device=generator.device)
        return (1 / (1 + (self.log_mean + self.log_deviation * normal).exp())).clamp_min(_EARLIEST)


def graded_times(n_steps: int, largest: float = 80.0, smallest: float = 0.002, power: float = 7.0) -> tuple[float, ...]:
    """``n_steps + 1`` times from 0 to 1 whose σ falls as Karras et al., equation 5 (ρ = 7); the ends are exact."""
    if n_steps < 1:
        raise ValueError(f"An integration needs at least one step; got {n_steps}.")
    inner = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    root = largest ** (1 / power) + inner * (smallest ** (1 / power) - largest ** (1 / power))
    times = 1 / (1 + root**power)
    return 0.0, *times[1:-1].tolist(), 1.0
