"""The derivative of a root in the data, without unrolling the search that found it (the implicit function theorem).

Where ``F(p, y) = 0`` defines p as a function of y, ``dp/dy = −(∂F/∂p)⁻¹ ∂F/∂y``. See Griewank & Walther, *Evaluating
derivatives*, 2nd ed., section 15, doi:10.1137/1.9780898717761.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops.levenberg_marquardt import value_and_jacobian


def at_root(
    equations: Callable[..., Float[Tensor, "t q"]], root: Float[Tensor, "t q"], *data: Float[Tensor, "t _"]
) -> Float[Tensor, "t q"]:
    """``root``, with its derivative in the data.

    Parameters
    ----------
    equations
        ``F(p, *data)``, row by row, of torch operations that have derivatives of both modes; as many as unknowns.
    root
        Where they hold; taken as given. A row whose matrix is singular there gets a derivative of 0.
    """
    root = root.detach()
    if not (torch.is_grad_enabled() and any(d.requires_grad for d in data)):
        return root
    with torch.no_grad():
        fixed = [d.detach() for d in data]
        jacobian = value_and_jacobian(lambda p: equations(p, *fixed), root)[1]
        inverse, failed = torch.linalg.inv_ex(jacobian)
        usable = (failed == 0) & torch.isfinite(inverse).all(-1).all(-1)
        inverse = torch.where(usable[:, None, None], inverse, 0.0)
    step = (inverse @ equations(root, *data)[..., None])[..., 0]
    return root - (step - step.detach())
