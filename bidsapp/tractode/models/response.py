"""The signal of one fibre, estimated from the voxels that look most like one.

Tournier, Calamante & Connelly, *Determination of the appropriate b-value and number of gradient directions for
high-angular-resolution diffusion-weighted imaging*, NMR Biomed 2013, doi:10.1002/nbm.3017. Departures: candidates come
from a tensor fit instead of a dilated mask; the profile is a sum of Gaussians of the angle's cosine with weights ≥ 0, so
it is positive and rises from the fibre to its equator whatever the noise, instead of harmonics under constraints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.models.deconvolution import constrained_deconvolution, rotational_harmonics
from tractode.models.dti import DTI
from tractode.ops import sphere, symmetric
from tractode.ops import spherical_harmonics as sh

RESPONSE_ORDER = 10


@dataclass(frozen=True, eq=False)
class Response:
    """Zonal coefficients of the signal of a fibre along z at one b-value (even degrees 0, 2, …), in signal units.

    ``s0`` is the mean b=0 signal of the same voxels; ``method``, ``n_voxels`` say how it was found.
    """

    coefficients: Float[Tensor, " r"]
    b: float
    s0: float
    method: str = "given"
    n_voxels: int = 0

    def __post_init__(self) -> None:
        if (
            self.coefficients.ndim != 1
            or len(self.coefficients) < 2
            or not bool(torch.isfinite(self.coefficients).all())
        ):
            raise ValueError("A response needs at least two finite zonal coefficients (degrees 0 and 2).")

    @property
    def order(self) -> int:
        return 2 * (len(self.coefficients) - 1)

    def rotational(self, order: int) -> Float[Tensor, " r"]:
        """See `rotational_harmonics`."""
        return rotational_harmonics(self.coefficients, order)

    def facts(self) -> dict[str, Any]:
        return {
            "Coefficients": [[round(float(c), 6) for c in self.coefficients]],
            "BValue": round(self.b),
            "S0": round(self.s0, 4),
            "Method": self.method,
            "NumberOfVoxels": self.n_voxels,
        }


@dataclass(frozen=True)
class ResponseSettings:
    n_single_fibre: int = 300
    n_candidates: int = 3000
    max_iterations: int = 10
    fa_threshold: float = 0.2
    fallback_fa: float = 0.7
    fewest_voxels: int = 20


def gaussian_response(gtab_b: float, axial: float, radial: float, s0: float, order: int = RESPONSE_ORDER) -> Response:
    """The response of an axially symmetric tensor (diffusivities in mm²/s), by Gauss–Legendre quadrature."""
    nodes, weights = _quadrature()
    signal = s0 * (-gtab_b * (radial + (axial - radial) * nodes**2)).exp()
    return Response(_zonal_coefficients(signal, nodes, weights, order), gtab_b, s0, method="tensor")


def estimate_response(
    signal: Float[Tensor, "v n"],
    gtab: GradientTable,
    shell: Int[Tensor, " m"],
    settings: ResponseSettings | None = None,
) -> Response:
    """The response at the volumes ``shell``; raises `InputDataError` (E-CSD-RESPONSE) where no voxel looks like one fibre."""
    settings = settings or ResponseSettings()
    data = signal.to(torch.float64)
    found = _found(data, gtab, shell, settings)
    return Response(
        found.response.coefficients, found.response.b, float(found.s0.mean()), found.method, len(found.voxels)
    )


def single_fibre_voxels(
    signal: Float[Tensor, "v n"],
    gtab: GradientTable,
    shell: Int[Tensor, " m"],
    settings: ResponseSettings | None = None,
) -> tuple[Int[Tensor, " s"], Float[Tensor, "s 3"], str]:
    """The voxels that `estimate_response` rests on, the fibre's direction in each (RAS+), and how they were found."""
    found = _found(signal.to(torch.float64), gtab, shell, settings or ResponseSettings())
    return found.voxels, found.axes, found.method


@dataclass(frozen=True, eq=False)
class _Found:
    voxels: Int[Tensor, " s"]
    axes: Float[Tensor, "s 3"]
    s0: Float[Tensor, " s"]
    response: Response
    method: str


def _found(
    data: Float[Tensor, "v n"], gtab: GradientTable, shell: Int[Tensor, " m"], settings: ResponseSettings
) -> _Found:
    """Voxels whose FOD has one dominant peak are chosen, the response is refitted to them, until the choice stands still."""
    b = float(gtab.bvals[shell].to(torch.float64).mean())
    directions = gtab.bvecs[shell].to(torch.float64)
    chosen, axes, s0, fa = _candidates(data, gtab, settings)
    candidates = data[chosen][:, shell]
    method = "tournier"
    response = Response(data.new_tensor([1.0, -1.0, 1.0]), b, 1.0)
    order, selected, previous = 4, None, None
    for _ in range(settings.max_iterations):
        cost, peaks = _single_fibre_cost(candidates, directions, response, order)
        selected = cost.argsort(descending=True, stable=True)[: settings.n_single_fibre].sort().values
        axes = peaks
        response = fit_profile(candidates[selected], directions, axes[selected], b)
        order = 8
        if previous is not None and torch.equal(selected, previous):
            break
        previous = selected
    if selected is None or not _is_plausible(response):
        method, selected, axes = "fa", *_by_anisotropy(data[chosen], gtab, fa, settings)
        response = fit_profile(candidates[selected], directions, axes[selected], b)
    return _Found(chosen[selected], axes[selected], s0[selected], response, method)


def _candidates(
    data: Float[Tensor, "v n"], gtab: GradientTable, settings: ResponseSettings
) -> tuple[Int[Tensor, " c"], Float[Tensor, "c 3"], Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Voxels with the most linear tensors: indices, principal directions, b=0 signal and FA."""
    params = DTI(fit_method="wls").fit(data, gtab)
    tensor = params[:, :6]
    values = symmetric.eigenvalues(tensor)
    fa, s0 = symmetric.anisotropy(tensor), params[:, 6].exp()
    md = symmetric.trace(tensor) / 3
    middle = s0[s0 > 0].median() if bool((s0 > 0).any()) else s0.new_zeros(())
    # Background, bone and fluid edges have high FA by noise alone: leave out the dark, the absurdly bright and the impossible.
    sound = (
        (values[:, 2] > 0)
        & (values[:, 0] < 3e-3)
        & (md > 2e-4)
        & (md < 1.5e-3)
        & (s0 > 0.25 * middle)
        & (s0 < 4 * middle)
    )
    eligible = (sound & (fa > settings.fa_threshold)).nonzero().ravel()
    if len(eligible) < settings.fewest_voxels:
        raise InputDataError(
            f"Only {len(eligible)} voxels look like white matter (FA > {settings.fa_threshold}, plausible diffusivity)",
            id="E-CSD-RESPONSE",
            needed=f"at least {settings.fewest_voxels} to estimate the single-fibre response",
            fix="look at the mask, the b-values and the gradient directions",
        )
    linear = ((values[:, 0] - values[:, 1]) / values[:, 0].clamp_min(1e-12))[eligible]
    kept = eligible[linear.argsort(descending=True, stable=True)[: settings.n_candidates]].sort().values
    _, vectors = symmetric.eigen(tensor[kept])
    return kept, vectors[:, :, 0], s0[kept], fa[kept]


def _by_anisotropy(
    data: Float[Tensor, "c n"], gtab: GradientTable, fa: Float[Tensor, " c"], settings: ResponseSettings
) -> tuple[Int[Tensor, " s"], Float[Tensor, "c 3"]]:
    """The fallback: FA above 0.7, or the most anisotropic tenth where there are too few, along the tensor's direction."""
    selected = (fa > settings.fallback_fa).nonzero().ravel()
    if len(selected) < settings.fewest_voxels:
        selected = fa.argsort(descending=True, stable=True)[: max(settings.fewest_voxels, len(fa) // 10)].sort().values
    _, vectors = symmetric.eigen(DTI(fit_method="wls").fit(data, gtab)[:, :6])
    return selected, vectors[:, :, 0]


def _single_fibre_cost(
    data: Float[Tensor, "c m"], directions: Float[Tensor, "m 3"], response: Response, order: int
) -> tuple[Float[Tensor, " c"], Float[Tensor, "c 3"]]:
    """``√p₁ (1 − p₂/p₁)²`` of the two largest FOD peaks, and the direction of the first."""
    fod = constrained_deconvolution(data, directions, response.coefficients, order)
    amplitudes, peaks = two_peaks(fod, order)
    first, second = amplitudes.unbind(-1)
    ratio = second / first.clamp_min(1e-12)
    return first.clamp_min(0).sqrt() * (1 - ratio).square(), peaks[:, 0]


def two_peaks(
    fod: Float[Tensor, "c l"], order: int, n_directions: int = 600
) -> tuple[Float[Tensor, "c 2"], Float[Tensor, "c 2 3"]]:
    """Amplitude and direction of the two largest local maxima on a fixed set of axes (0 where there is no second).

    The first is refined to the vertex of a paraboloid through the amplitudes around it.
    """
    axes = sphere.directions(n_directions, hemisphere=True).to(fod)
    amplitudes = fod @ sh.basis(axes, order).mT
    cosine = (axes @ axes.mT).abs()
    neighbours = cosine.argsort(dim=-1, descending=True)[:, 1:9]
    is_peak = (amplitudes[:, :, None] >= amplitudes[:, neighbours]).all(-1) & (amplitudes > 0)
    heights = torch.where(is_peak, amplitudes, torch.zeros_like(amplitudes))
    top = heights.topk(2, dim=-1)
    first = _refined(fod, axes[top.indices[:, 0]], order)
    return top.values, torch.stack([first, axes[top.indices[:, 1]]], dim=1)


def _refined(
    fod: Float[Tensor, "c l"], start: Float[Tensor, "c 3"], order: int, steps: int = 3
) -> Float[Tensor, "c 3"]:
    """Newton steps in the tangent plane, by central differences of the amplitude."""
    direction, h = start, 0.02
    for _ in range(steps):
        frame = sphere.frame_to_z(direction)
        u, v = frame[:, 0], frame[:, 1]

        def at(a: float, b: float, u: Tensor = u, v: Tensor = v, d: Tensor = direction) -> Tensor:
            moved = d + a * u + b * v
            return (sh.basis(moved / moved.norm(dim=-1, keepdim=True), order) * fod).sum(-1)

        centre = at(0.0, 0.0)
        gradient = torch.stack([at(h, 0.0) - at(-h, 0.0), at(0.0, h) - at(0.0, -h)], -1) / (2 * h)
        uu, vv = (at(h, 0.0) + at(-h, 0.0) - 2 * centre) / h**2, (at(0.0, h) + at(0.0, -h) - 2 * centre) / h**2
        uv = (at(h, h) + at(-h, -h) - at(h, -h) - at(-h, h)) / (4 * h**2)
        determinant = uu * vv - uv**2
        concave = (uu < 0) & (determinant > 0)
        safe = torch.where(concave, determinant, torch.ones_like(determinant))
        step = (
            torch.stack([uv * gradient[:, 1] - vv * gradient[:, 0], uv * gradient[:, 0] - uu * gradient[:, 1]], -1)
            / safe[:, None]
        )
        step = torch.where(concave[:, None], step, torch.zeros_like(step)).clamp(-0.1, 0.1)
        direction = direction + step[:, :1] * u + step[:, 1:] * v
        direction = direction / direction.norm(dim=-1, keepdim=True)
    return direction


def fit_profile(
    data: Float[Tensor, "s m"], directions: Float[Tensor, "m 3"], axes: Float[Tensor, "s 3"], b: float
) -> Response:
    """Non-negative weights of Gaussians ``exp(−b D cos²)`` by least squares over all voxels and directions at once."""
    squared_cosine = (axes @ directions.mT).square().ravel()
    diffusivity = torch.linspace(0, 4e-3, 21, dtype=torch.float64)
    atoms = (-b * diffusivity * squared_cosine[:, None]).exp()
    # The normal equations' factor has the same solution and 21 rows instead of one per sample.
    factor = torch.linalg.qr(torch.cat([atoms, data.ravel()[:, None]], dim=-1)).R
    weights, _ = nnls(factor[:, :-1].numpy(), factor[:, -1].numpy())
    nodes, quadrature = _quadrature()
    profile = (-b * diffusivity * nodes[:, None] ** 2).exp() @ torch.tensor(weights, dtype=torch.float64)
    return Response(_zonal_coefficients(profile, nodes, quadrature, RESPONSE_ORDER), b, 1.0, n_voxels=len(data))


def _is_plausible(response: Response) -> bool:
    """A fibre attenuates more along itself: the degree-2 coefficient is clearly negative."""
    c = response.coefficients
    return bool(c[0] > 0) and bool(c[1] < -0.05 * c[0])


def _quadrature() -> tuple[Float[Tensor, " q"], Float[Tensor, " q"]]:
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return torch.tensor(nodes), torch.tensor(weights)


def _zonal_coefficients(
    profile: Float[Tensor, " q"], nodes: Float[Tensor, " q"], weights: Float[Tensor, " q"], order: int
) -> Float[Tensor, " r"]:
    """``c_l = 2π ∫ S(z) Y_l0(z) dz``."""
    return 2 * torch.pi * (sh.zonal(order, nodes) * (profile * weights)[:, None]).sum(0)
