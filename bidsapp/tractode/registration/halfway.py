"""Poses halfway between two images, so that what is found from A to B is the inverse of what is found from B to A.

The generators are those of V. Arsigny et al., "A fast and log-Euclidean polyaffine framework for locally linear registration",
JMIV 33:222 (2009), doi:10.1007/s10851-008-0135-9; the halfway space is that of M. Reuter, H. D. Rosas, B. Fischl, NeuroImage
53:1181 (2010), doi:10.1016/j.neuroimage.2010.07.020.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import sqrtm
from torch import Tensor

from tractode.ops import affine as aff

Dof = Literal["rigid", "similarity", "affine"]
N_PARAMETERS = {"rigid": 6, "similarity": 7, "affine": 12}
# One unit of every parameter moves a point this far (mm) from the centre by about one millimetre.
RADIUS = 80.0


def step(parameters: Float[Tensor, " p"], centre: Float[Tensor, " 3"]) -> Float[Tensor, "4 4"]:
    """``exp G(p)`` about ``centre``: shift, turn, size and shape in mm at 80 mm. ``step(−p)`` is the inverse of ``step(p)``."""
    shift, rest = parameters[:3], parameters[3:] / RADIUS
    zero = torch.zeros((), dtype=parameters.dtype)
    x, y, z = rest[:3]
    linear = torch.stack([torch.stack([zero, -z, y]), torch.stack([z, zero, -x]), torch.stack([-y, x, zero])])
    if len(rest) == 4:
        linear = linear + torch.eye(3, dtype=parameters.dtype) * rest[3]
    elif len(rest) > 4:
        a, b, c, d, e, f = rest[3:]
        linear = linear + torch.stack([torch.stack([a, d, e]), torch.stack([d, b, f]), torch.stack([e, f, c])])
    generator = torch.cat([torch.cat([linear, shift[:, None]], dim=1), torch.zeros(1, 4, dtype=parameters.dtype)])
    moved = torch.linalg.matrix_exp(generator)
    offset = centre - moved[:3, :3] @ centre + moved[:3, 3]
    return torch.cat([torch.cat([moved[:3, :3], offset[:, None]], dim=1), moved[3:]])


def half(matrix: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"] | None:
    """The square root of an affine; ``None`` where it has none that is real (a mirror, a turn by 180°)."""
    root = np.asarray(sqrtm(matrix.double().numpy()))
    if not np.isfinite(root).all() or np.abs(root.imag).max() > 1e-8:
        return None
    found = torch.from_numpy(np.ascontiguousarray(root.real))
    return found if torch.allclose(found @ found, matrix.double(), atol=1e-6) else None


class Halfway:
    """Poses around ``start`` as ``S · step(p) · S`` with ``S² = start``; of the inverse start, those are the inverses.

    Parameters
    ----------
    start
        Fixed → moving.
    fixed_centre, moving_centre
        Parameters turn about the middle of these two, both brought to the halfway space.
    """

    def __init__(
        self, start: Float[Tensor, "4 4"], fixed_centre: Float[Tensor, " 3"], moving_centre: Float[Tensor, " 3"]
    ) -> None:
        root = half(start)
        # Without a root the steps are taken in the fixed space: right, only no longer the same from either side.
        self.before, self.after = (torch.eye(4).double(), start) if root is None else (root, root)
        back = torch.linalg.inv(self.after)
        self.centre = (aff.apply_affine(self.before, fixed_centre) + aff.apply_affine(back, moving_centre)) / 2

    def pose(self, parameters: Float[Tensor, " p"]) -> Float[Tensor, "4 4"]:
        return self.after @ step(parameters, self.centre) @ self.before
