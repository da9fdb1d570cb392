"""The gradient table: b-values, unit directions in the RAS+ scanner frame, and which volumes are b=0."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.errors import ShapeError


@dataclass(frozen=True, eq=False)
class GradientTable:
    """One row per volume.

    ``bvals`` in s/mm², ``bvecs`` unit vectors in the RAS+ scanner frame (zero for b=0), ``is_b0`` found by
    clustering at ingest. ``small_delta``, ``big_delta``, ``echo_time`` in seconds where known.
    """

    bvals: Float[Tensor, " n"]
    bvecs: Float[Tensor, "n 3"]
    is_b0: Bool[Tensor, " n"]
    small_delta: Float[Tensor, " n"] | None = None
    big_delta: Float[Tensor, " n"] | None = None
    echo_time: Float[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        n = len(self.bvals)
        if self.bvecs.shape != (n, 3) or self.is_b0.shape != (n,):
            raise ShapeError(
                f"A table of {n} b-values needs bvecs ({n}, 3) and is_b0 ({n},); got {tuple(self.bvecs.shape)} and {tuple(self.is_b0.shape)}."
            )
        norms = self.bvecs.norm(dim=-1)
        wrong = ~self.is_b0 & ((norms - 1).abs() > 1e-3)
        if bool(wrong.any()):
            raise ShapeError(
                f"Directions of diffusion-weighted volumes must be unit vectors; volumes {wrong.nonzero().ravel().tolist()} are not."
            )

    def __len__(self) -> int:
        return len(self.bvals)

    def __getitem__(self, index: Int[Tensor, " m"] | Bool[Tensor, " n"] | slice) -> GradientTable:
        """The table of some volumes, in the given order."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {name: None if value is None else value[index] for name, value in parts.items()}
        return GradientTable(**chosen)

    def rotated(self, rotation: Float[Tensor, "3 3"]) -> GradientTable:
        """Every direction turned by a proper or improper rotation (scanner frame in, scanner frame out)."""
        return replace(self, bvecs=self.bvecs @ rotation.to(self.bvecs).mT)

    def shells(self, gap: float = 100.0) -> list[tuple[float, Int[Tensor, " m"]]]:
        """Non-zero shells as ``(mean b, volume indices)``, ascending: b-values closer than ``gap`` join one shell."""
        index = (~self.is_b0).nonzero().ravel()
        order = index[torch.argsort(self.bvals[index])]
        groups: list[list[int]] = []
        for volume in order.tolist():
            if groups and float(self.bvals[volume] - self.bvals[groups[-1][-1]]) <= gap:
                groups[-1].append(volume)
            else:
                groups.append([volume])
        return [(float(self.bvals[group].mean()), torch.tensor(sorted(group))) for group in groups]

    def to(self, like: Tensor) -> GradientTable:
        """Floating tensors cast to the dtype and device of ``like``."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        cast: dict[str, Any] = {
            k: v if v is None else (v.to(like.device) if k == "is_b0" else v.to(like)) for k, v in parts.items()
        }
        return GradientTable(**cast)
