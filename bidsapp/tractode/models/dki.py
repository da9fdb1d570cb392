"""Diffusion kurtosis: the tensor and the first departure from a Gaussian, linear in the log signal.

Jensen et al., *Diffusional kurtosis imaging: the quantification of non-Gaussian water diffusion by means of magnetic
resonance imaging*, MRM 2005, doi:10.1002/mrm.20508; constraints of Tabesh et al., MRM 2011, doi:10.1002/mrm.22655.
Departures: kurtosis maps are cut at −3/7 and 10, beyond which no tissue lies; volumes above b = 3250 s/mm² are left out
of the fit, where the series in b has left its range (Jensen & Helpern 2010, doi:10.1002/nbm.1518); the logarithm's floor
is that of `tractode.ops.log_linear`, where the ways to fit are described.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.contracts import MapSpec, SignalModel, table_of_shells
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.fields.needs import Needs
from tractode.models.dti import TENSOR_MAPS, tensor_maps
from tractode.ops import inequality, kurtosis, least_squares, log_linear, sphere, symmetric

_B_SCALE = 1000.0  # b in ms/µm² makes the columns of the design comparable
_LARGEST_CONDITION = 1000.0
_TILE = 512
_LEAST_KURTOSIS, _LARGEST_KURTOSIS = -3 / 7, 10.0

Method = Literal["ols", "wls", "iwls", "cwls", "nlls", "rician"]


@dataclass(frozen=True)
class DKI(SignalModel):
    """Parameters in the RAS+ scanner frame: D (6, mm²/s), V = MD² W (15, µm⁴/ms², as `tractode.ops.kurtosis`), then ln S0.

    ``fit_method`` is one of `tractode.ops.log_linear`, or ``cwls``: weighted least squares under the constraints that along
    no direction measured the kurtosis is negative or the signal grows with b, up to the largest b.
    """

    fit_method: Method = "cwls"
    sigma: float | None = None

    label: ClassVar[str] = "dki"
    citation: ClassVar[str] = "Jensen2005"
    needs: ClassVar[Needs] = Needs(shells=2, directions=15, volumes=21, least_b=300.0, largest_b=3250.0, reach=1500.0)
    maps: ClassVar[tuple[MapSpec, ...]] = (
        *TENSOR_MAPS,
        MapSpec("mk", "Mean kurtosis", "arbitrary"),
        MapSpec("ak", "Axial kurtosis", "arbitrary"),
        MapSpec("rk", "Radial kurtosis", "arbitrary"),
        MapSpec("mkt", "Mean of the kurtosis tensor", "arbitrary"),
        MapSpec("kfa", "Anisotropy of the kurtosis tensor", "arbitrary"),
    )

    def facts(self) -> dict[str, Any]:
        return {"FitMethod": self.fit_method, "LargestB": round(self.needs.largest_b)}

    @classmethod
    def why_not(cls, gtab: GradientTable) -> str | None:
        return super().why_not(gtab) or _why_not(gtab[used(gtab, cls.needs.largest_b)])

    @classmethod
    def example_table(cls, n: int = 60) -> GradientTable:
        return table_of_shells((1000.0, 2000.0), n)

    def predict(self, params: Float[Tensor, "v 22"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        """``S0 exp(−b D(g) + b² V(g) / 6)``."""
        return (params * _units(params) @ design(gtab.to(params)).mT).exp()

    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v 22"]:
        reason = self.why_not(gtab)
        if reason:
            raise InputDataError(reason, id="E-DKI-TABLE", needed="two shells of at least 15 directions, and b=0")
        index = used(gtab, self.needs.largest_b)
        chosen = gtab[index].to(signal.to(torch.float64))
        matrix = least_squares.Design(design(chosen))
        method = self.fit_method
        if method == "cwls":
            bounds = constraints(chosen)
            fitted = least_squares.in_tiles(
                lambda tile: _constrained(tile, matrix, bounds), _of(signal, index), _TILE, threaded=True
            )
        else:
            fitted = log_linear.fit_voxels(_of(signal, index), matrix, method, self.sigma)
        # In place where that may be: fresh memory costs as much as half of the fit.
        return fitted / _units(fitted) if fitted.requires_grad else fitted.div_(_units(fitted))

    def to_maps(self, params: Float[Tensor, "v 22"]) -> dict[str, Float[Tensor, "v _"]]:
        return tensor_maps(params[:, :6], params[:, 21:]) | kurtosis_maps(params)

    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n 22"]:
        """Two or three tensors side by side in each voxel: a kurtosis that is not negative, and a signal that falls."""
        generator = torch.Generator().manual_seed(seed)
        share = torch.rand(n, 3, generator=generator, dtype=torch.float64) + 0.3
        share = share / share.sum(-1, keepdim=True)
        tensors = torch.stack([_tensors(n, generator) for _ in range(3)], 1)
        mean = (share[..., None] * tensors).sum(1)
        apart = tensors - mean[:, None]
        product = 3e6 * (share[..., None] * _squared(apart)).sum(1)  # V(g) = 3 Var D(g)
        log_s0 = torch.rand(n, 1, generator=generator, dtype=torch.float64) * 3 + 3.9
        return torch.cat([mean, product, log_s0], -1)


def used(gtab: GradientTable, largest_b: float) -> Int[Tensor, " m"]:
    """The volumes that are fitted."""
    return (gtab.bvals <= largest_b).nonzero().ravel()


def design(gtab: GradientTable) -> Float[Tensor, "n 22"]:
    """``ln S = X β`` with β the tensor in µm²/ms, V in µm⁴/ms² and ln S0."""
    b = gtab.bvals[:, None] / _B_SCALE
    quartic = kurtosis.quartic_form(gtab.bvecs)
    return torch.cat([-b * symmetric.quadratic_form(gtab.bvecs), b.square() / 6 * quartic, torch.ones_like(b)], -1)


def constraints(gtab: GradientTable) -> Float[Tensor, "m 22"]:
    """Rows c with ``c · β ≥ 0``: along every direction measured ``V ≥ 0``, and ``3 D ≥ b V`` at the largest b (Tabesh 2011, eq. 19, 20)."""
    g = gtab.bvecs[~gtab.is_b0]
    again = ((g @ g.mT).abs() > 1 - 1e-8).tril(-1).any(-1)  # shells often share their directions
    g = g[~again]
    largest = float(gtab.bvals.max()) / _B_SCALE
    second, fourth = symmetric.quadratic_form(g), kurtosis.quartic_form(g)
    zero = torch.zeros_like(g[:, :1])
    convex = torch.cat([torch.zeros_like(second), fourth, zero], -1)
    falling = torch.cat([3 * second, -largest * fourth, zero], -1)
    rows = torch.cat([convex, falling])
    return rows / rows.norm(dim=-1, keepdim=True)


def kurtosis_maps(params: Float[Tensor, "v 22"]) -> dict[str, Float[Tensor, "v 1"]]:
    """Those of the kurtosis, a tile at a time."""
    columns = least_squares.in_tiles(_kurtosis_columns, params, _TILE, threaded=True).split(1, dim=-1)
    return dict(zip(("mk", "ak", "rk", "mkt", "kfa"), columns, strict=True))


def _kurtosis_columns(params: Float[Tensor, "t 22"]) -> Float[Tensor, "t 5"]:
    values, vectors = symmetric.eigen(params[:, :6] * _B_SCALE)
    means = kurtosis.averages(values, vectors, params[:, 6:21])
    tensor = kurtosis_tensor(params)
    cut = torch.stack([*means, kurtosis.mean_of_tensor(tensor)], -1).clamp(_LEAST_KURTOSIS, _LARGEST_KURTOSIS)
    return torch.cat([cut, kurtosis.anisotropy(tensor)[:, None]], -1)


def kurtosis_tensor(params: Float[Tensor, "v 22"]) -> Float[Tensor, "v 15"]:
    """``W = V / MD²``; 0 where the mean diffusivity is not positive."""
    md = symmetric.trace(params[:, :6] * _B_SCALE)[:, None] / 3
    usable = md > 0
    return torch.where(usable, params[:, 6:21] / torch.where(usable, md, 1).square(), 0)


def kurtosis_in(params: Float[Tensor, "v 22"], exponents: Sequence[str]) -> Float[Tensor, "v 15"]:
    """The kurtosis tensor W in another order of its components, each named by its axes (``xxyz``)."""
    return kurtosis_tensor(params)[:, [kurtosis.EXPONENTS.index(e) for e in exponents]]


def _constrained(
    signal: Float[Tensor, "t n"], matrix: least_squares.Design, bounds: Float[Tensor, "m 22"]
) -> Float[Tensor, "t 22"]:
    free, weights = log_linear.linear(*log_linear.logarithm(signal), matrix, "wls")
    assert weights is not None
    return inequality.constrained(matrix, weights.to(torch.float64), free, bounds).mT.to(signal.dtype)


def _of(signal: Float[Tensor, "v n"], index: Int[Tensor, " m"]) -> Float[Tensor, "v m"]:
    return signal if len(index) == signal.shape[1] else signal[:, index.to(signal.device)]


def _units(params: Float[Tensor, "v 22"]) -> Float[Tensor, " 22"]:
    return params.new_tensor([_B_SCALE] * 6 + [1.0] * 16)


def _why_not(gtab: GradientTable) -> str | None:
    matrix = design(gtab.to(torch.zeros(1, dtype=torch.float64)))
    table = f"this table has {len(gtab)} volumes up to b={DKI.needs.largest_b:.0f}"
    if len(matrix) < 22:
        return f"The kurtosis model has 22 unknowns and {table}"
    condition = float(torch.linalg.cond(matrix))
    if not condition < _LARGEST_CONDITION:
        return f"The kurtosis model has 22 unknowns, which these b-values and directions hardly tell apart (condition number {condition:.0f}, at most {_LARGEST_CONDITION:.0f}): {table}"
    return None


def _tensors(n: int, generator: torch.Generator) -> Float[Tensor, "n 6"]:
    axis = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    frame = sphere.frame_to_z(axis / axis.norm(dim=-1, keepdim=True))
    spread = torch.rand(n, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 0.2, 0.2]).double()
    values = (spread + torch.tensor([0.9, 0.5, 0.3]).double()) * 1e-3
    return symmetric.from_matrix(frame.mT @ torch.diag_embed(values) @ frame)


def _squared(tensor: Float[Tensor, "*v 6"]) -> Float[Tensor, "*v 15"]:
    """The symmetric part of ``A ⊗ A``: its quartic form is ``(gᵀ A g)²``."""
    probes = sphere.directions(60).to(tensor)
    values = (tensor @ symmetric.quadratic_form(probes).mT).square()
    return values @ torch.linalg.pinv(kurtosis.quartic_form(probes)).mT
