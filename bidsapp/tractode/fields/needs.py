"""What a diffusion model needs of a gradient table, as data: one table for ``--dry-run``, the run and the documentation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tractode.fields.gradients import GradientTable
from tractode.fields.scheme import Scheme, scheme_of

#: What a distribution of orientations needs. Below 15 directions its degree 4 (15 coefficients), without which crossings
#: look like dispersion, is not measured; below b = 700 s/mm² (less what scanners scatter) it is under 2 % of the b=0
#: signal in a fibre of diffusivities 1.7 and 0.3 µm²/ms, half the noise of 30 directions at an SNR of 20.
FEWEST_DIRECTIONS = 15
LEAST_B = 650.0

SHELLED: tuple[Scheme, ...] = ("single-shell", "multi-shell")
ANY: tuple[Scheme, ...] = ("single-shell", "multi-shell", "grid", "scattered")


@dataclass(frozen=True)
class Needs:
    """The least that a model can be fitted to.

    Attributes
    ----------
    shells
        Number of distinct b-values above 0, of those that count (see ``directions``, ``least_b`` and ``largest_b``).
    directions
        Number of volumes that each of them must have, and that span the sphere.
    volumes
        Number of weighted volumes in all, up to ``largest_b``.
    n_b0
        Number of b=0 volumes.
    least_b, largest_b
        Range of b-values (s/mm²) at which the model's assumptions hold; shells outside it do not count.
    resolving, resolving_b
        One of the shells must have at least ``resolving`` directions at a b-value of at least ``resolving_b`` (s/mm²): the
        others may be too few or too low to tell orientations apart.
    reach
        The largest b-value (s/mm²) that counts must be at least this.
    schemes
        Kinds of sampling that the model can use.
    """

    shells: int = 1
    directions: int = 6
    volumes: int = 6
    n_b0: int = 1
    least_b: float = 0.0
    largest_b: float = float("inf")
    reach: float = 0.0
    resolving: int = 0
    resolving_b: float = 0.0
    schemes: tuple[Scheme, ...] = ANY

    @property
    def words(self) -> str:
        """All of it in a line, for people."""
        parts = [_counted(self.n_b0, "b=0 volume")] if self.n_b0 else []
        if set(self.schemes) <= set(SHELLED):
            parts.append(self._shells_wanted())
        elif self.schemes != ANY:
            parts.append(f"a {' or '.join(self.schemes)} scheme")
        if self.resolving:
            parts.append(self._resolving_wanted())
        n_shelled = max(self.resolving, self.shells * self.directions)
        if self.volumes > n_shelled or not set(self.schemes) <= set(SHELLED):
            parts.append(_counted(self.volumes, "weighted volume"))
        if self.reach:
            parts.append(f"b-values up to at least {self.reach:.0f} s/mm²")
        return "; ".join(parts)

    def usable_shells(self, gtab: GradientTable) -> list[tuple[float, Int[Tensor, " m"]]]:
        """Those shells of the table that count, as ``(mean b, volume indices)``."""
        return [
            (b, index)
            for b, index in gtab.shells()
            if self.least_b <= b <= self.largest_b and _spanning(gtab, index) >= self.directions
        ]

    def unmet(self, gtab: GradientTable, name: str) -> str | None:
        """Why the table does not do for the model ``name``, in words for a user; ``None`` if it does."""
        found = ", ".join(f"b={b:.0f}: {len(index)}" for b, index in gtab.shells()) or "no weighted volume"
        n_b0, n_weighted = int(gtab.is_b0.sum()), int((~gtab.is_b0).sum())
        counting = gtab.bvals[~gtab.is_b0 & (gtab.bvals <= self.largest_b)]
        table = f"this table has {n_b0} b=0 and {found}"
        if n_b0 < self.n_b0:
            return f"{name} needs {_counted(self.n_b0, 'b=0 volume')}; {table}"
        scheme = scheme_of(gtab) if n_weighted else None
        if scheme is not None and scheme not in self.schemes:
            return f"{name} needs a {' or '.join(self.schemes)} scheme; this table is a {scheme} scheme"
        # Of a grid or of scattered directions no shells are asked, but of a table that has shells they are.
        if (scheme in SHELLED or set(self.schemes) <= set(SHELLED)) and len(self.usable_shells(gtab)) < self.shells:
            return f"{name} needs {self._shells_wanted()}; {table}"
        if self.resolving and not self._resolves(gtab):
            return f"{name} needs {self._resolving_wanted()}; {table}"
        if self.reach and (not len(counting) or float(counting.max()) < self.reach):
            beyond = f" (those above {self.largest_b:.0f} do not count)" if self.largest_b < float("inf") else ""
            return f"{name} needs b-values up to at least {self.reach:.0f} s/mm²{beyond}; {table}"
        # Last, since what is said of shells says more than a number.
        if len(counting) < self.volumes:
            limit = f" up to b={self.largest_b:.0f}" if self.largest_b < float("inf") else ""
            return f"{name} needs {_counted(self.volumes, 'weighted volume')}{limit}; {table}"
        return None

    def _resolves(self, gtab: GradientTable) -> bool:
        shells = self.usable_shells(gtab)
        return any(b >= self.resolving_b and _spanning(gtab, index) >= self.resolving for b, index in shells)

    def _resolving_wanted(self) -> str:
        return f"at least {self.resolving} directions on a shell at b={self.resolving_b:.0f} or more"

    def _shells_wanted(self) -> str:
        between = (
            f" between b={self.least_b:.0f} and {self.largest_b:.0f}"
            if self.largest_b < float("inf")
            else f" at b={self.least_b:.0f} or more"
            if self.least_b
            else ""
        )
        return (
            f"{_counted(self.shells, 'shell')}{between} of at least {self.directions} directions that span the sphere"
        )


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _spanning(gtab: GradientTable, index: Int[Tensor, " m"]) -> int:
    """Number of volumes of a shell; 0 where they all lie in one plane or repeat each other."""
    directions = gtab.bvecs[index].to(torch.float64)
    if not len(index):
        return 0
    values = torch.linalg.eigvalsh(directions.mT @ directions / len(index))
    return len(index) if float(values[0]) > 1e-2 else 0
