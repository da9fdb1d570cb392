"""Parameters of greatest likelihood where magnitudes follow Rice's distribution, for many voxels at once.

Sijbers, den Dekker, Scheunders & Van Dyck, *Maximum-likelihood estimation of Rician distribution parameters*, IEEE Trans
Med Imaging 1998, doi:10.1109/42.712125, by expectation and maximisation: the phase that the magnitude lost is the missing
datum, ``E[cos φ] = I₁(z)/I₀(z)`` with ``z = y A/σ²``, and the step that maximises is one of Gauss and Newton; Newton's method on
the likelihood equations ends it. Departure: where σ is not known it is estimated in the voxel along with the rest, with
2n − p in place of 2n for the p parameters that the fit uses up. The derivative in the data is that of the likelihood equations (`tractode.ops.implicit`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops.implicit import at_root
from tractode.ops.levenberg_marquardt import value_and_jacobian

_LEAST_NOISE = 1e-6  # of the voxel's largest signal
_LARGE = 1e3  # beyond this the ratio of Bessel functions is its own expansion
_TOLERANCE = 1e-10
_DAMPING = 1e-9
_N_NEWTON = 6
_SHORT = 0.02


def rician_fit(
    predict: Callable[[Float[Tensor, "t p"]], Float[Tensor, "t n"]],
    data: Float[Tensor, "t n"],
    start: Float[Tensor, "t p"],
    sigma: Float[Tensor, "t 1"] | None = None,
    n_iterations: int = 50,
    *,
    linearised: Callable[[Float[Tensor, "t p"]], tuple[Float[Tensor, "t n"], Float[Tensor, "t n p"]]] | None = None,
) -> Float[Tensor, "t p"]:
    """The most likely parameters, from a least-squares fit; float64.

    ``predict`` gives amplitudes, row by row, ``linearised`` those and their derivative by hand; ``sigma`` is the noise of one channel, where known, in units of the data.
    """
    p, n = start.shape[1], data.shape[1]
    slopes = linearised or (lambda q: value_and_jacobian(predict, q))

    def equations(unknown: Tensor, y: Tensor) -> Tensor:
        """The likelihood's slope in the parameters, and what is left of the noise's own equation."""
        variance = unknown[:, p:].exp()
        value, pull = torch.func.vjp(predict, unknown[:, :p])[:2]
        expected = y * bessel_ratio(y * value / variance)
        noise = (y.square() + value.square() - 2 * value * expected).sum(-1, keepdim=True) / ((2 * n - p) * variance)
        return torch.cat([pull(value - expected)[0], noise - 1 if sigma is None else unknown[:, p:] - fixed], -1)

    with torch.no_grad():
        fixed = torch.zeros_like(data[:, :1]) if sigma is None else sigma.square().log()
        root = _ascend(predict, slopes, data.detach(), start.detach(), sigma, n_iterations)
        root = _polished(equations, predict, root, data.detach(), p)
    return at_root(equations, root, data)[:, :p]


def _polished(
    equations: Callable[[Tensor, Tensor], Tensor],
    predict: Callable[[Tensor], Tensor],
    root: Float[Tensor, "t q"],
    data: Float[Tensor, "t n"],
    p: int,
) -> Float[Tensor, "t q"]:
    """A few of Newton's steps; a row takes only short ones that bring its equations nearer to zero.

    In mere noise the likelihood may grow for ever towards infinite parameters: there the search stays where it is.
    """
    for _ in range(_N_NEWTON):
        value, jacobian = value_and_jacobian(lambda p: equations(p, data), root)
        trial = root - torch.linalg.solve_ex(jacobian, value).result
        better = equations(trial, data).square().sum(-1) < value.square().sum(-1)  # False where it is NaN
        before = predict(root[:, :p])
        short = (predict(trial[:, :p]) - before).norm(dim=-1) < _SHORT * before.norm(dim=-1)
        root = torch.where((better & short)[:, None], trial, root)
    return root


def bessel_ratio(z: Float[Tensor, "*v"]) -> Float[Tensor, "*v"]:
    """``I₁(z)/I₀(z)`` for z ≥ 0."""
    far = z > _LARGE
    small, large = torch.where(far, 1.0, z), torch.where(far, z, _LARGE)
    near = torch.special.i1e(small) / torch.special.i0e(small)
    return torch.where(far, 1 - (1 + (1 + 1 / large) / (4 * large)) / (2 * large), near)


def _ascend(
    predict: Callable[[Tensor], Tensor],
    slopes: Callable[[Tensor], tuple[Tensor, Tensor]],
    data: Float[Tensor, "t n"],
    params: Float[Tensor, "t p"],
    sigma: Float[Tensor, "t 1"] | None,
    n_iterations: int,
) -> Float[Tensor, "t q"]:
    """Rounds of expectation and maximisation; a row that stands still is left as it is, whatever the others do."""
    p, n = params.shape[1], data.shape[1]
    least = (_LEAST_NOISE * data.amax(-1, keepdim=True)).square().clamp_min(torch.finfo(data.dtype).tiny)
    value = predict(params)
    variance = (data - value).square().sum(-1, keepdim=True) / (n - p) if sigma is None else sigma.square()
    variance = variance.maximum(least)
    moving = torch.ones_like(least, dtype=torch.bool)
    unit = torch.eye(p, dtype=data.dtype, device=data.device)
    for _ in range(n_iterations):
        value, jacobian = slopes(params)
        expected = data * bessel_ratio(data * value / variance)
        normal = jacobian.mT @ jacobian
        scale = normal.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(data.dtype).tiny)
        right = (jacobian * (expected - value)[..., None]).sum(-2)
        damped = normal + _DAMPING * scale[:, :, None] * unit
        step = torch.linalg.solve_ex(damped, right).result
        usable = moving & torch.isfinite(step).all(-1, keepdim=True)
        params = torch.where(usable, params + step, params)
        before = variance
        if sigma is None:
            spread = (data.square() + value.square() - 2 * value * expected).sum(-1, keepdim=True) / (2 * n - p)
            variance = torch.where(usable, spread.maximum(least), variance)
        moved = (scale * step.square()).sum(-1, keepdim=True) > _TOLERANCE**2 * value.square().sum(-1, keepdim=True)
        moving = usable & (moved | ((variance - before).abs() > _TOLERANCE * variance))
        if not bool(moving.any()):
            break
    return torch.cat([params, variance.log()], -1)
