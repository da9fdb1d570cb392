"""Tracking as a layer of a network: field and seeds in, streamlines out, gradients back.

The layer adds nothing to a tracker but a place in `torch.nn`: its mask moves with the network, its step can be learned,
and both are in its ``state_dict``. What has no derivative in the tracker has none here (see `adjoint`): how many points
lines have, where they stop, which seeds are refused and which peak is followed are piecewise constant.

Under `torch.compile` the layer runs as it is: what stands before and after it is compiled and the tracking, whose
length depends on the data and whose loop is compiled already, is a break between the two. A single torch step
(``PeakStepper.advance``) is without breaks and may be compiled whole (``fullgraph=True``).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tractode.contracts import Orientations
from tractode.errors import ShapeError
from tractode.fields import Image, ShField, Streamlines
from tractode.fields.sh import order_of
from tractode.tracking.method import StreamlineTracker


class StreamlineLayer(nn.Module):
    """Streamlines as a function of a field, of seeds and, where it is learned, of the step.

    Parameters
    ----------
    tracker
        Any streamline tracker; its settings stay as they are but for a learned step.
    mask
        Where lines may go. Its grid is also that of coefficients given as a tensor.
    learn_step
        Make the step a parameter: ``log_step``, its logarithm in mm, which keeps it positive. The points of `SDStream`
        have this gradient. Lengths are limited in mm, so the number of points changes as the step does.
    """

    mask: Tensor

    def __init__(self, tracker: StreamlineTracker, mask: Image, learn_step: bool = False) -> None:
        super().__init__()
        if not tracker.is_differentiable:
            raise ValueError(f"The points of {type(tracker).__name__} have no derivative to be learned from.")
        self.tracker, self.grid = tracker, mask.grid
        self.register_buffer("mask", mask.mask.clone())
        step, _, _ = tracker.lengths(mask.grid)
        self.log_step = nn.Parameter(torch.tensor(math.log(step))) if learn_step else None

    @property
    def step_mm(self) -> Float[Tensor, ""]:
        """The step, mm."""
        if self.log_step is not None:
            return self.log_step.exp()
        return torch.tensor(self.tracker.lengths(self.grid)[0])

    @torch.compiler.disable
    def forward(
        self,
        orientations: Orientations | Float[Tensor, "l i j k"],
        seeds: Float[Tensor, "s 3"],
        directions: Float[Tensor, "s 3"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Streamlines:
        """All lines of the seeds (RAS+ mm), those that are too short or refused left out.

        ``orientations`` may be the coefficients of an FOD on the mask's grid. ``per_streamline["seed"]`` says which
        seed each line belongs to, ``["seed_point"]`` which of its points that is.
        """
        field = self._field(orientations) if isinstance(orientations, Tensor) else orientations
        tracker = self.tracker if self.log_step is None else replace(self.tracker, step_mm=self.log_step.exp())
        parts = list(tracker.track(field, seeds, Image(self.grid, self.mask[None]), generator, directions))
        return parts[0] if len(parts) == 1 else Streamlines.concatenate(parts, self.grid.space)

    def _field(self, coeffs: Float[Tensor, "l i j k"]) -> ShField:
        if coeffs.ndim != 4 or tuple(coeffs.shape[1:]) != self.grid.shape:
            raise ShapeError(
                f"Coefficients on the mask's grid are (l, {', '.join(map(str, self.grid.shape))}); "
                f"got {tuple(coeffs.shape)}. Give an ShField if they lie on another grid."
            )
        return ShField(self.grid, coeffs, order_of(len(coeffs)))

    def extra_repr(self) -> str:
        return f"{self.tracker}, space={self.grid.space!r}"
