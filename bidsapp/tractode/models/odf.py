"""What the models of the orientation distribution share: the shell, the regularised harmonic fit, and GFA.

Laplace–Beltrami regularisation: Descoteaux et al., *Regularized, fast, and robust analytical Q-ball imaging*, MRM 2007,
doi:10.1002/mrm.21277. Generalised fractional anisotropy: Tuch, *Q-ball imaging*, MRM 2004, doi:10.1002/mrm.20279.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.contracts import OrientationModel
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.fields.needs import FEWEST_DIRECTIONS, LEAST_B, SHELLED, Needs
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh

UNIT_INTEGRAL = 1 / math.sqrt(4 * math.pi)  # the first coefficient of a function that integrates to 1


@dataclass(frozen=True)
class ShellOdf(OrientationModel):
    """A model of one shell by harmonics up to ``order``, with Laplace–Beltrami regularisation of weight ``smooth``."""

    order: int = 8
    smooth: float = 0.006

    needs: ClassVar[Needs] = Needs(
        directions=FEWEST_DIRECTIONS, volumes=FEWEST_DIRECTIONS, least_b=LEAST_B, schemes=SHELLED
    )
    recovers: ClassVar[float] = 2e-2  # the regularisation

    def facts(self) -> dict[str, Any]:
        return {"Order": self.order, "LaplaceBeltrami": self.smooth}

    @classmethod
    def taken(cls, gtab: GradientTable) -> Int[Tensor, " m"]:
        return with_b0(gtab, cls.shell(gtab))

    @classmethod
    def shell(cls, gtab: GradientTable) -> Int[Tensor, " m"]:
        """Volumes of the shell that is fitted; raises `InputDataError` (E-ODF-TABLE) where the table has none that does."""
        reason, shell = cls.why_not(gtab), chosen_shell(gtab, cls.needs)
        if reason or shell is None:
            raise InputDataError(
                reason or "No shell", id="E-ODF-TABLE", needed="b=0 and a shell of at least 15 directions"
            )
        return shell


def chosen_shell(gtab: GradientTable, needs: Needs) -> Int[Tensor, " m"] | None:
    """Volumes of the shell that a single-shell model uses: the largest b that counts; ``None`` without one."""
    usable = needs.usable_shells(gtab)
    return usable[-1][1] if usable else None


def not_spanning(gtab: GradientTable) -> str | None:
    """Why the weighted volumes do not span the sphere, whatever their b-values; ``None`` if they do."""
    directions = gtab.bvecs[~gtab.is_b0].to(torch.float64)
    if int(torch.linalg.matrix_rank(sh.basis(directions, 2), rtol=1e-3)) == sh.n_coefficients(2):
        return None
    return f"The {len(directions)} weighted volumes lie in a plane or repeat each other; they do not support order 2"


def only_shell(gtab: GradientTable) -> Int[Tensor, " m"]:
    """Volumes of the table's one shell; `InputDataError` (E-ODF-SHELL) where there are more, which the model cannot predict."""
    shells = gtab.shells()
    if len(shells) > 1:
        found = ", ".join(f"b={b:.0f}" for b, _ in shells)
        raise InputDataError(
            f"This model predicts the signals of one shell; this table has {found}",
            id="E-ODF-SHELL",
            needed="the table of the volumes that the model explains",
        )
    return shells[0][1] if shells else torch.zeros(0, dtype=torch.int64)


def with_b0(gtab: GradientTable, shell: Int[Tensor, " m"]) -> Int[Tensor, " m2"]:
    """The shell and the b=0 volumes, in the table's order."""
    return torch.cat([shell, gtab.is_b0.nonzero().ravel().to(shell)]).sort().values


def harmonic_fit(directions: Float[Tensor, "m 3"], order: int, smooth: float) -> Float[Tensor, "l m"]:
    """Amplitudes → SH coefficients up to ``order``, float64, on the CPU.

    ``(BᵀB + λL)⁻¹ Bᵀ`` with L = l²(l+1)² on the diagonal and λ = ``smooth``. Degrees with more coefficients than there are
    directions are left out and stay 0.
    """
    directions = directions.to("cpu", torch.float64)
    used = order
    while used and sh.n_coefficients(used) > len(directions):
        used -= 2
    basis, degree = sh.basis(directions, used), sh.degrees(used).double()
    penalty = smooth * (degree * (degree + 1)).square()
    # As a taller system, whose pseudo-inverse keeps the digits that the normal equations would lose.
    tall = torch.cat([basis, penalty.sqrt().diag()])
    inverse = torch.linalg.pinv(tall)[:, : len(directions)]
    return torch.nn.functional.pad(inverse, (0, 0, 0, sh.n_coefficients(order) - len(inverse)))


def legendre_at_zero(order: int) -> Float[Tensor, " l"]:
    """``P_l(0)`` for each coefficient: 1, −1/2, 3/8, …"""
    values = [1.0]
    for degree in range(2, order + 1, 2):
        values.append(-values[-1] * (degree - 1) / degree)
    return torch.tensor(values, dtype=torch.float64)[sh.degrees(order) // 2]


def of_unit_integral(coefficients: Float[Tensor, "v l"]) -> Float[Tensor, "v l"]:
    """Scaled to an integral of 1; the uniform distribution where there is nothing to scale."""
    first = coefficients[:, :1]
    empty = first <= 0
    scaled = UNIT_INTEGRAL * coefficients / torch.where(empty, torch.ones_like(first), first)
    uniform = torch.zeros_like(coefficients).index_fill(1, torch.tensor([0], device=first.device), UNIT_INTEGRAL)
    return torch.where(empty, uniform, scaled)


def gfa(coefficients: Float[Tensor, "v l"]) -> Float[Tensor, "v 1"]:
    """Standard deviation over root mean square of the function on the sphere: 0 for a constant, at most 1 (Tuch, eq. 9).

    From the coefficients by Parseval's theorem, so no sampling of the sphere is involved.
    """
    power = coefficients.square()
    rest, whole = power[:, 1:].sum(-1, keepdim=True), power.sum(-1, keepdim=True)
    # No slope at 0: a constant gets GFA 0 with gradient 0.
    varies = rest > torch.finfo(power.dtype).tiny
    ratio = torch.where(varies, rest, torch.ones_like(rest)) / torch.where(varies, whole, torch.ones_like(whole))
    return torch.where(varies, ratio.sqrt(), torch.zeros_like(ratio))


def cut_to(coefficients: Float[Tensor, "v l"], order: int) -> Float[Tensor, "v l2"]:
    """Coefficients up to ``order``: higher ones left out, missing ones 0."""
    n = sh.n_coefficients(order)
    return torch.nn.functional.pad(coefficients, (0, max(0, n - coefficients.shape[-1])))[:, :n]


def b0_mean(signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v 1"]:
    return signal[:, gtab.is_b0.to(signal.device)].mean(-1, keepdim=True)


def example_profiles(seed: int, n: int, order: int, depth: float) -> Float[Tensor, "n l"]:
    """Smooth functions for law tests: 1 less ``depth`` times one or two broad ridges (degree 2) of random shares."""
    generator = torch.Generator().manual_seed(seed)
    axes = sphere.directions(200)
    centres = torch.randn(n, 2, 3, generator=generator, dtype=torch.float64)
    centres = centres / centres.norm(dim=-1, keepdim=True)
    share = torch.rand(n, 1, generator=generator, dtype=torch.float64) * 0.3 + 0.7
    ridge = (axes @ centres.mT).square()
    values = 1 - depth * (ridge[..., 0] * share + ridge[..., 1] * (1 - share))
    return cut_to(values @ torch.linalg.pinv(sh.basis(axes, 4)).mT, order)
