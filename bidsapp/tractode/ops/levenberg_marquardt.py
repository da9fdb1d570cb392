"""Nonlinear least squares for many voxels at once, with the exact derivative of the optimum in the data.

Marquardt, *An algorithm for least-squares estimation of nonlinear parameters*, J SIAM 1963, doi:10.1137/0111030; the
damping follows the gain ratio as in Nielsen, *Damping parameter in Marquardt's method*, IMM-REP-1999-05. Departures:
every voxel has its own damping and stops by itself; those still moving are repacked into blocks of a fixed number of
rows, so that a voxel's answer depends neither on its neighbours nor on how many there are.

At the optimum the gradient ``g(p, y) = Jᵀ W (f(p) − y)`` is zero whatever the data y, hence ``dp/dy = H⁻¹ Jᵀ W`` with the
whole Hessian ``H = Jᵀ W J + Σ w (f − y) ∇²f`` (implicit differentiation: no iteration is unrolled).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 256
_FIRST_DAMPING = 1e-3
_LARGEST_DAMPING = 1e16


def levenberg_marquardt(
    predict: Callable[..., Float[Tensor, "t n"]],
    data: Float[Tensor, "v n"],
    start: Float[Tensor, "v p"],
    *,
    weights: Float[Tensor, "v n"] | None = None,
    constants: Float[Tensor, "v c"] | None = None,
    linearised: Callable[..., tuple[Float[Tensor, "t n"], Float[Tensor, "t n p"]]] | None = None,
    search: Callable[[Float[Tensor, "v n"], Float[Tensor, "v p"]], Float[Tensor, "v p"]] | None = None,
    n_iterations: int = 50,
    tolerance: float = 1e-10,
) -> Float[Tensor, "v p"]:
    """``argmin_p Σ w (f(p) − y)²`` for each row, from its own start; differentiable in the data and in the weights.

    Parameters
    ----------
    predict
        Parameters ``(t, p)`` → signals ``(t, n)``, row by row, of torch operations that have derivatives of both modes.
        It is called with blocks of `BLOCK` rows, picked from all. Where ``constants`` are given it gets those of the same
        rows as a second argument. Bounds are the caller's: reparametrise.
    linearised
        The same, with its derivative by hand where that is much quicker than forward differentiation.
    data, start
        float64, except where the caller knows that single precision will do.
    search
        Data and start → optimum, by a compiled loop that knows this signal; for use on CPUs, without weights and constants.
    n_iterations
        Trial steps a voxel at most; one that has not settled by then keeps its best.
    tolerance
        A voxel has settled when a step changes the prediction by no more than this, relatively.
    """
    rest = () if constants is None else (constants.detach(),)
    with torch.no_grad():
        fixed = None if weights is None else weights.detach()
        slopes = linearised or (lambda p, *others: value_and_jacobian(lambda q: predict(q, *others), p))
        found = (
            search(data.detach(), start.detach())
            if search is not None and data.device.type == "cpu"
            else _minimise(predict, slopes, data.detach(), start.detach(), fixed, rest, n_iterations, tolerance)
        )
    differentiable = data.requires_grad or (weights is not None and weights.requires_grad)
    if not (torch.is_grad_enabled() and differentiable):
        return found
    steps = [
        _newton_step(
            predict, found[rows], data[rows], None if weights is None else weights[rows], [r[rows] for r in rest]
        )
        for rows in _blocks(torch.arange(len(data), device=data.device))
    ]
    step = torch.cat(steps)[: len(data)]
    return found + (step - step.detach())  # worth nothing, but its slope is that of the optimum


def value_and_jacobian(
    function: Callable[[Float[Tensor, "t p"]], Float[Tensor, "t n"]], params: Float[Tensor, "t p"]
) -> tuple[Float[Tensor, "t n"], Float[Tensor, "t n p"]]:
    """A function that treats every row alike, and its derivative row by row, by forward differentiation."""
    unit = torch.eye(params.shape[-1], dtype=params.dtype, device=params.device)

    def along(direction: Tensor) -> Tensor:
        slope: Tensor = torch.func.jvp(function, (params,), (direction.expand_as(params),))[1]
        return slope

    return function(params), torch.func.vmap(along, out_dims=-1)(unit)


def _minimise(
    predict: Callable[..., Tensor],
    slopes: Callable[..., tuple[Tensor, Tensor]],
    data: Float[Tensor, "v n"],
    start: Float[Tensor, "v p"],
    weights: Float[Tensor, "v n"] | None,
    rest: tuple[Tensor, ...],
    n_iterations: int,
    tolerance: float,
) -> Float[Tensor, "v p"]:
    params, damping, growth = (
        start.clone(),
        data.new_full((len(data),), _FIRST_DAMPING),
        data.new_full((len(data),), 2.0),
    )
    moving = torch.arange(len(data), device=data.device)
    for _ in range(n_iterations):
        still = []
        for rows in _blocks(moving):
            p, w = params[rows], None if weights is None else weights[rows]
            others = [r[rows] for r in rest]
            trial, gain, small = _trial(predict, slopes, p, data[rows], w, others, damping[rows], tolerance)
            better = gain > 0
            # A settled voxel takes its last step only if that is an improvement; a step that leaves the finite is none.
            params[rows] = torch.where(better[:, None], trial, p)
            softer = damping[rows] * (1 - (2 * gain.clamp(0, 1) - 1) ** 3).clamp_min(1 / 3)
            damping[rows] = torch.where(better, softer, damping[rows] * growth[rows])
            growth[rows] = torch.where(better, 2.0, growth[rows] * 2)
            still.append(~small & (damping[rows] < _LARGEST_DAMPING))
        moving = moving[torch.cat(still)[: len(moving)]] if still else moving
        if not len(moving):
            break
    return params


def _trial(
    predict: Callable[..., Tensor],
    slopes: Callable[..., tuple[Tensor, Tensor]],
    params: Float[Tensor, "t p"],
    data: Float[Tensor, "t n"],
    weights: Float[Tensor, "t n"] | None,
    others: list[Tensor],
    damping: Float[Tensor, " t"],
    tolerance: float,
) -> tuple[Float[Tensor, "t p"], Float[Tensor, " t"], Tensor]:
    """The damped step's end, the decrease it brought as a share of the expected one, and whether it hardly moved."""
    value, jacobian = slopes(params, *others)
    residual = data - value
    weighted = jacobian if weights is None else weights[..., None] * jacobian
    normal = jacobian.mT @ weighted
    right = (weighted * residual[..., None]).sum(-2)
    scale = normal.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    root = scale.rsqrt()
    step = root * _solve(root[:, :, None] * normal * root[:, None, :], root * right, damping)
    expected = (step * (damping[:, None] * scale * step + right)).sum(-1)
    trial = params + step
    before, after = _cost(residual, weights), _cost(data - predict(trial, *others), weights)
    gain = torch.nan_to_num((before - after) / expected.clamp_min(torch.finfo(data.dtype).tiny), nan=-1.0, neginf=-1.0)
    # Near the optimum a cost is too coarse a measure: steps too short for it to tell are believed.
    noise = 8 * torch.finfo(data.dtype).eps * before
    gain = torch.where((expected <= noise) & (after - before <= noise), 1.0, gain)
    moved, size = (scale * step.square()).sum(-1), (scale * params.square()).sum(-1)
    return trial, gain, moved <= tolerance**2 * size


def _solve(
    normal: Float[Tensor, "t p p"], right: Float[Tensor, "t p"], damping: Float[Tensor, " t"]
) -> Float[Tensor, "t p"]:
    """``(N + λ) x = r`` for scaled, nearly singular, symmetric N; zero where even damping leaves it indefinite."""
    unit = torch.eye(right.shape[-1], dtype=right.dtype, device=right.device)
    factor, failed = torch.linalg.cholesky_ex(normal + damping[:, None, None] * unit)
    usable = (failed == 0) & torch.isfinite(right).all(-1)
    factor = torch.where(usable[:, None, None], factor, unit)
    return torch.cholesky_solve(torch.where(usable[:, None], right, 0.0)[..., None], factor)[..., 0]


def _cost(residual: Float[Tensor, "t n"], weights: Float[Tensor, "t n"] | None) -> Float[Tensor, " t"]:
    squared = residual.square()
    return (squared if weights is None else weights * squared).sum(-1)


def _newton_step(
    predict: Callable[..., Tensor],
    params: Float[Tensor, "t p"],
    data: Float[Tensor, "t n"],
    weights: Float[Tensor, "t n"] | None,
    others: list[Tensor],
) -> Float[Tensor, "t p"]:
    """``H⁻¹ Jᵀ W (y − f)``: zero at the optimum, with the optimum's derivative in y and W.

    Where H is not positive (the search ended at no minimum) the matrix of Gauss and Newton stands for it.
    """

    def function(p: Tensor) -> Tensor:
        return predict(p, *others)

    fixed_data, fixed = data.detach(), None if weights is None else weights.detach()

    def gradient(p: Tensor) -> Tensor:
        value, pull = torch.func.vjp(function, p)[:2]
        residual = value - fixed_data
        slope: Tensor = pull(residual if fixed is None else fixed * residual)[0]
        return slope

    with torch.no_grad():
        value, jacobian = value_and_jacobian(function, params)
        _, hessian = value_and_jacobian(gradient, params)
        plain = jacobian.mT @ (jacobian if fixed is None else fixed[..., None] * jacobian)
        scale = plain.diagonal(dim1=-2, dim2=-1)
        root = torch.where(scale > 0, scale, torch.ones_like(scale)).rsqrt()
        both = root[:, :, None] * torch.stack([hessian, plain]) * root[:, None, :]
        positive = torch.linalg.cholesky_ex(both[0]).info == 0
        normal = torch.where(positive[:, None, None], both[0], both[1])
    residual = data - value
    right = (jacobian * (residual if weights is None else weights * residual)[..., None]).sum(-2)
    return root * _solve(normal, root * right, torch.where(positive, 0.0, 1e-9).to(data))


def _blocks(rows: Int[Tensor, " m"]) -> list[Int[Tensor, " b"]]:
    """Row numbers in blocks of exactly `BLOCK`; the last is filled up by its last row.

    A matrix product rounds differently for different numbers of rows. A row that stands twice gets the same answer twice.
    """
    missing = -len(rows) % BLOCK
    return list(torch.cat([rows, rows[-1:].expand(missing)]).split(BLOCK)) if len(rows) else []
