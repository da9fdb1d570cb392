"""Gradient tables of multi-shell acquisitions: evenly spread directions, each shell alone and all of them together.

Caruyer et al., *Design of multishell sampling schemes with uniform coverage in diffusion MRI*, MRM 2013,
doi:10.1002/mrm.24736. Departure: each shell is spread by itself and turned against the others, not optimised jointly.
"""

from __future__ import annotations

import math

import torch

from tractode.fields import GradientTable
from tractode.ops import sphere


def multi_shell(shells: tuple[tuple[float, int], ...], n_b0: int) -> GradientTable:
    """``(b in s/mm², number of directions)`` for each shell; b=0 volumes spread evenly, the first one first.

    Volumes of the shells are interleaved, so that a scan cut short still has all of them. Half of the directions point
    the other way, as scanners do against eddy currents.
    """
    if n_b0 < 1:
        raise ValueError(f"A gradient table needs at least one b=0 volume; got {n_b0}.")
    rows: list[tuple[float, float, torch.Tensor]] = []
    for number, (b, n) in enumerate(shells):
        directions = sphere.directions(n) @ _turn(number).mT
        # Shuffled by a stride that visits every direction once, so that neighbours in time are far apart in angle.
        order = [(index * _stride(n)) % n for index in range(n)]
        rows += [((place + 0.5) / n, b, directions[i] * (-1) ** place) for place, i in enumerate(order)]
    rows.sort(key=lambda row: row[0])
    weighted = [(b, direction) for _, b, direction in rows]
    total = len(weighted) + n_b0
    at_b0 = {round(k * total / n_b0) for k in range(n_b0)}
    volumes = iter(weighted)
    zero = (0.0, torch.zeros(3, dtype=torch.float64))
    table = [zero if index in at_b0 else next(volumes) for index in range(total)]
    bvals = torch.tensor([b for b, _ in table], dtype=torch.float64)
    return GradientTable(bvals, torch.stack([direction for _, direction in table]), bvals == 0)


def _turn(number: int) -> torch.Tensor:
    """A rotation for each shell, the first one unturned."""
    angle = 2.4 * number
    axis = torch.tensor([0.48, 0.6, 0.64], dtype=torch.float64)
    cross = torch.linalg.cross(axis.expand(3, 3), torch.eye(3, dtype=torch.float64)).mT
    return torch.eye(3, dtype=torch.float64) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def _stride(n: int) -> int:
    """Near the golden share of ``n`` and coprime to it."""
    stride = max(1, round(0.618 * n))
    while math.gcd(stride, n) != 1:
        stride += 1
    return stride
