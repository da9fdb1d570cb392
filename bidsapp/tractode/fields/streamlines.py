"""Streamlines as a ragged array in world coordinates, laid out as TRX does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.errors import ShapeError, SpaceMismatchError
from tractode.fields.transform import Transform


@dataclass(frozen=True, eq=False)
class Streamlines:
    """All points one after another (RAS+ mm) and where each streamline starts.

    ``offsets`` has one entry more than there are streamlines: 0 first, the number of points last.
    ``per_point`` values are ``(p, …)``, ``per_streamline`` values ``(s, …)``.
    """

    points: Float[Tensor, "p 3"]
    offsets: Int[Tensor, " s_plus_1"]
    space: str
    per_point: dict[str, Tensor] = field(default_factory=dict)
    per_streamline: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        offsets = self.offsets
        if self.points.ndim != 2 or self.points.shape[1] != 3:
            raise ShapeError(f"Points must be (p, 3); got {tuple(self.points.shape)}.")
        if (
            len(offsets) < 1
            or int(offsets[0]) != 0
            or int(offsets[-1]) != len(self.points)
            or bool((offsets.diff() < 0).any())
        ):
            raise ShapeError("Offsets must start at 0, never fall, and end at the number of points.")
        for name, value in self.per_point.items():
            if len(value) != len(self.points):
                raise ShapeError(f"per_point[{name!r}] has {len(value)} rows for {len(self.points)} points.")
        for name, value in self.per_streamline.items():
            if len(value) != len(self):
                raise ShapeError(f"per_streamline[{name!r}] has {len(value)} rows for {len(self)} streamlines.")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Float[Tensor, "m 3"]:
        return self.points[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def __iter__(self) -> Iterator[Float[Tensor, "m 3"]]:
        return (self[i] for i in range(len(self)))

    @property
    def n_points(self) -> Int[Tensor, " s"]:
        """Points of each streamline."""
        return self.offsets.diff()

    @property
    def streamline_of_point(self) -> Int[Tensor, " p"]:
        """Index of the streamline each point belongs to."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.points.device), self.n_points)

    def lengths(self) -> Float[Tensor, " s"]:
        """Arc length of each streamline, mm."""
        total = torch.zeros(len(self), dtype=self.points.dtype, device=self.points.device)
        if len(self.points) < 2:
            return total
        owner = self.streamline_of_point
        segments = self.points.diff(dim=0).norm(dim=-1) * (owner[1:] == owner[:-1])
        return total.index_add(0, owner[1:], segments)

    def select(self, index: Int[Tensor, " m"]) -> Streamlines:
        """The streamlines of the given indices, in that order, with their data."""
        counts = self.n_points[index]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        within = torch.arange(int(offsets[-1]), device=self.points.device) - torch.repeat_interleave(
            offsets[:-1], counts
        )
        rows = torch.repeat_interleave(self.offsets[:-1][index], counts) + within
        return Streamlines(
            self.points[rows],
            offsets,
            self.space,
            {k: v[rows] for k, v in self.per_point.items()},
            {k: v[index] for k, v in self.per_streamline.items()},
        )

    def moved(self, transform: Transform) -> Streamlines:
        """Every point mapped by a transform whose source is this space."""
        if transform.source != self.space:
            raise SpaceMismatchError(
                f"These streamlines are in {self.space!r} and the transform maps points of {transform.source!r}; "
                f"insert a transform from {self.space!r} to {transform.source!r}, or use .inverse()."
            )
        return Streamlines(
            transform.map(self.points), self.offsets, transform.target, self.per_point, self.per_streamline
        )

    @classmethod
    def from_list(cls, lines: Sequence[Float[Tensor, "_ 3"]], space: str) -> Streamlines:
        """From separate ``(m, 3)`` tensors."""
        counts = torch.tensor([0, *(len(line) for line in lines)])
        points = torch.cat(list(lines)) if len(lines) else torch.zeros(0, 3)
        return cls(points, counts.cumsum(0), space)

    @classmethod
    def concatenate(cls, parts: Iterable[Streamlines], space: str) -> Streamlines:
        """Several sets of one space as one; data that not every part carries is an error."""
        parts = list(parts)
        if not parts:
            return cls(torch.zeros(0, 3), torch.zeros(1, dtype=torch.long), space)
        for part in parts:
            if part.space != space:
                raise SpaceMismatchError(f"Cannot join streamlines of {part.space!r} to those of {space!r}.")
        counts = torch.cat([part.n_points for part in parts])
        return cls(
            torch.cat([part.points for part in parts]),
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            space,
            {k: torch.cat([part.per_point[k] for part in parts]) for k in parts[0].per_point},
            {k: torch.cat([part.per_streamline[k] for part in parts]) for k in parts[0].per_streamline},
        )
