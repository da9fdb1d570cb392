"""Voxels with a known truth for `uncertainty.py` and `models_truth.py`: tissue by formulas that no model shares.

Fibres are a stick and a hindered tensor spread by Watson's distribution (`tractode.simulate.signal`), grey matter and CSF
isotropic; magnitudes with complex noise. S0 of white matter is 1, and SNR is that of white matter at b=0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tractode.fields import GradientTable
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh
from tractode.simulate import signal as physics

ORDER = 12
SNRS = (30, 20, 10)


def table(bvals: tuple[float, ...], n: int = 64, n_b0: int = 6) -> GradientTable:
    """``n`` directions for each b-value, each shell turned so that none repeats another, and ``n_b0`` volumes of b=0."""
    directions, zero = sphere.directions(n), torch.zeros(n_b0, 3, dtype=torch.float64)
    shells = [directions @ turn(seed).mT for seed in range(len(bvals))]
    values = [torch.zeros(n_b0, dtype=torch.float64), *(torch.full((n,), b, dtype=torch.float64) for b in bvals)]
    bvals_all = torch.cat(values)
    return GradientTable(bvals_all, torch.cat([zero, *shells]), bvals_all == 0)


TABLES = {
    "b1000": (1000.0,),
    "b1500": (1500.0,),
    "b3000": (3000.0,),
    "low": (500.0, 1000.0, 1500.0),
    "mid": (1000.0, 2000.0),
    "multi": (1000.0, 2000.0, 3000.0),
}


def turn(seed: int) -> Tensor:
    """A rotation; none for seed 0."""
    if not seed:
        return torch.eye(3, dtype=torch.float64)
    matrix = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = torch.linalg.qr(matrix).Q
    return q * torch.linalg.det(q).sign()


@dataclass(frozen=True)
class Voxels:
    """Fractions of grey matter, white matter and CSF; the fibres' axes (zero where there is none) and their shares."""

    fod: Tensor  # v l, integral = white-matter fraction
    tissues: Tensor  # v 3
    axes: Tensor  # v k 3
    shares: Tensor  # v k

    def signal(self, gtab: GradientTable) -> Tensor:
        return physics.predict(self.fod, self.tissues, gtab, physics.TissueModel())

    @property
    def is_white(self) -> Tensor:
        return self.tissues[:, 1] > 0.5


def mixed(n: int, seed: int) -> Voxels:
    """Brain-like voxels: one or two fibres (dispersed, κ from 6 to 60) in 4 of 5, with some grey matter and CSF in all."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    axes = torch.stack([random_axes(n, generator), random_axes(n, generator)], 1)
    share = torch.where(uniform(n) < 0.6, torch.ones(n, dtype=torch.float64), 0.5 + 0.3 * uniform(n))
    shares = torch.stack([share, 1 - share], 1)
    white = torch.where(uniform(n) < 0.8, 0.7 + 0.3 * uniform(n), 0.3 * uniform(n))
    csf = (1 - white) * uniform(n) * 0.5
    kappa = torch.exp(math.log(6.0) + uniform(n, 2) * math.log(10.0))
    tissues = torch.stack([1 - white - csf, white, csf], 1)
    return Voxels(lobes(axes, shares * white[:, None], kappa), tissues, axes * (shares > 0)[..., None], shares)


def crossings(n: int, angle: float, seed: int, kappa: float = 40.0) -> Voxels:
    """White matter of two equal fibres at ``angle`` (rad); one fibre at angle 0."""
    generator = torch.Generator().manual_seed(seed)
    first = random_axes(n, generator)
    side = torch.linalg.cross(first, random_axes(n, generator))
    side = side / side.norm(dim=-1, keepdim=True)
    second = math.cos(angle) * first + math.sin(angle) * side
    half = torch.full((n, 2), 0.5, dtype=torch.float64)
    fod = lobes(torch.stack([first, second], 1), half, torch.full((n, 2), kappa, dtype=torch.float64))
    if angle:
        axes, shares = torch.stack([first, second], 1), half
    else:
        axes, shares = first[:, None], torch.ones(n, 1, dtype=torch.float64)
    return Voxels(fod, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand(n, 3), axes, shares)


def of_tissue(n: int, which: int) -> Voxels:
    """Pure grey matter (0) or CSF (2): no fibre, so every peak in it is false."""
    tissues = torch.zeros(n, 3, dtype=torch.float64)
    tissues[:, which] = 1
    none = torch.zeros(n, sh.n_coefficients(ORDER), dtype=torch.float64)
    return Voxels(none, tissues, torch.zeros(n, 1, 3, dtype=torch.float64), torch.zeros(n, 1, dtype=torch.float64))


def random_axes(n: int, generator: torch.Generator) -> Tensor:
    axes = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return axes / axes.norm(dim=-1, keepdim=True)


def lobes(axes: Tensor, weights: Tensor, kappa: Tensor) -> Tensor:
    """SH coefficients of Watson's distributions about the axes, which integrate to the weights."""
    degree = sh.degrees(ORDER)
    factors = physics.watson(kappa, ORDER)[..., degree // 2]
    delta = sh.basis(axes, ORDER)  # coefficients of a delta function
    return (delta * factors * weights[..., None]).sum(1)


def noisy(signal: Tensor, snr: float, seed: int) -> Tensor:
    return physics.rician(signal, 1.0 / snr, torch.Generator().manual_seed(seed))
