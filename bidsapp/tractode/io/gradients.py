"""Gradient tables ↔ `GradientTable`: to the RAS+ scanner frame on reading, back on writing, nowhere else.

BIDS (``.bvec`` components are cosines with the image axes, the first negated where the affine's determinant is
positive): ``g = R·F·v`` with ``R`` the unit columns of the affine's 3×3 and ``F = diag(−1, 1, 1)`` if ``det > 0``, else
the identity. MRtrix3 does the same (Tournier et al. 2019, https://doi.org/10.1016/j.neuroimage.2019.116137). Signs are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.io.gradient_scheme import find_b0
from tractode.io.gradient_text import read_bvals, read_bvecs
from tractode.io.notes import Note, info, warning
from tractode.io.problems import Problems
from tractode.ops.affine import axis_directions

_ZERO = 1e-6


@dataclass(frozen=True)
class GradientPolicy:
    """What the user explicitly allows.

    ``bval_from_norm``: vectors that are not unit mean ``b × norm²`` ("square") or nothing ("none"); refused when unset.
    ``estimate_s0``: go on without any b = 0 where there are two shells. ``b0_threshold`` (s/mm²): instead of clustering.
    """

    bval_from_norm: Literal["square", "none"] | None = None
    estimate_s0: bool = False
    b0_threshold: float | None = None


@dataclass(frozen=True)
class StoredGradients:
    """A parsed table, in the frame of the file. ``bvecs`` are unit, or zero for b = 0 and where ``lacks_direction``."""

    bvals: np.ndarray
    bvecs: np.ndarray
    is_b0: np.ndarray
    lacks_direction: np.ndarray


def read_gradients(
    bval: Path,
    bvec: Path,
    affine: Float[Tensor, "4 4"],
    n_volumes: int | None = None,
    *,
    policy: GradientPolicy | None = None,
) -> tuple[GradientTable, list[Note]]:
    """The gradient table of an image with this affine, in the RAS+ scanner frame; b = 0 found by clustering.

    A weighted volume without a direction is an error here; `read_dwi` looks at its signal first.

    Raises
    ------
    MissingInputError, InputDataError
        All that was found wrong, in one message.
    """
    stored, notes = parse_gradients(bval, bvec, n_volumes, policy=policy)
    if stored.lacks_direction.any():
        raise no_direction(stored, bvec, "and there is no signal to tell what they are")
    return to_table(stored, affine), notes


def parse_gradients(
    bval: Path, bvec: Path, n_volumes: int | None, *, policy: GradientPolicy | None = None
) -> tuple[StoredGradients, list[Note]]:
    """Both files read, compared with each other and with the number of volumes, and checked for meaning."""
    problems = Problems()
    values, vectors = problems.attempt(read_bvals, bval), problems.attempt(read_bvecs, bvec)
    if values is not None and vectors is not None:
        problems.attempt(_check_counts, len(values[0]), len(vectors[0]), n_volumes, bval, bvec)
    problems.raise_any()
    assert values is not None
    assert vectors is not None
    stored, notes = _checked(values[0], vectors[0], policy or GradientPolicy(), bval, bvec)
    return stored, [*values[1], *vectors[1], *notes]


def to_table(stored: StoredGradients, affine: Float[Tensor, "4 4"]) -> GradientTable:
    """From the file's frame to the scanner's. b = 0 volumes get b-value 0 and a zero vector."""
    scanner = torch.tensor(stored.bvecs, dtype=torch.float64) @ _file_to_scanner(affine).mT
    is_b0 = torch.tensor(stored.is_b0)
    scanner = torch.where(is_b0[:, None], 0.0, scanner)
    bvals = torch.where(is_b0, 0.0, torch.tensor(stored.bvals, dtype=torch.float64))
    return GradientTable(bvals, scanner, is_b0)


def write_gradients(gtab: GradientTable, affine: Float[Tensor, "4 4"], bval: Path, bvec: Path) -> None:
    """Write BIDS ``.bval`` and ``.bvec`` for an image with this affine: the inverse of reading."""
    write_bvals(gtab, bval)
    write_bvecs(gtab, affine, bvec)


def write_bvals(gtab: GradientTable, path: Path) -> None:
    """Write a BIDS ``.bval``."""
    path.write_text(" ".join(_plain(b, 6) for b in gtab.bvals.tolist()) + "\n", encoding="ascii")


def write_bvecs(gtab: GradientTable, affine: Float[Tensor, "4 4"], path: Path) -> None:
    """Write a BIDS ``.bvec`` for an image with this affine."""
    vectors = gtab.bvecs.detach().cpu().to(torch.float64) @ _file_to_scanner(affine)
    path.write_text(
        "".join(" ".join(_plain(c, 10) for c in row) + "\n" for row in vectors.mT.tolist()), encoding="ascii"
    )


def write_mrtrix_gradients(gtab: GradientTable, path: Path) -> None:
    """Write an MRtrix3 table: one row a volume, x y z in the scanner frame and b."""
    rows = torch.cat([gtab.bvecs, gtab.bvals[:, None]], dim=1).detach().cpu().to(torch.float64)
    path.write_text("".join(" ".join(_plain(c, 10) for c in row) + "\n" for row in rows.tolist()), encoding="ascii")


def no_direction(stored: StoredGradients, bvec: Path, why: str) -> InputDataError:
    """The error for weighted volumes whose vector is zero."""
    volumes = np.flatnonzero(stored.lacks_direction)
    listed = ", ".join(f"{n} (b={stored.bvals[n]:g})" for n in volumes[:8])
    return InputDataError(
        f"volumes {listed} have b > 0 and a zero vector, {why}",
        id="E-GRAD-NODIRECTION",
        path=bvec,
        needed="a direction for each weighted volume",
        fix="remove the volumes (a trace or ADC map?) from image, bval and bvec, or set their b-value to 0 if they are b=0",
    )


def _file_to_scanner(affine: Float[Tensor, "4 4"]) -> Float[Tensor, "3 3"]:
    """``R·F``; orthogonal, so its transpose undoes it."""
    axes = axis_directions(affine.detach().cpu().to(torch.float64))
    # Stored affines are single precision: the nearest orthogonal matrix keeps unit vectors unit.
    u, _, vh = torch.linalg.svd(axes)
    axes = u @ vh
    flip = -1.0 if float(torch.det(axes)) > 0 else 1.0
    return axes * torch.tensor([flip, 1.0, 1.0], dtype=torch.float64)


def _plain(value: float, digits: int) -> str:
    """Fixed-point without trailing zeros, and no minus zero."""
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _check_counts(n_bvals: int, n_bvecs: int, n_volumes: int | None, bval: Path, bvec: Path) -> None:
    if n_bvals != n_bvecs:
        raise InputDataError(
            f"{n_bvecs} vectors, and {n_bvals} b-values in {bval.name}",
            id="E-GRAD-LENGTH",
            path=bvec,
            needed="as many vectors as b-values",
            fix="convert the series again",
        )
    if n_volumes is not None and n_bvals != n_volumes:
        raise InputDataError(
            f"{n_bvals} gradients, {n_volumes} volumes",
            id="E-GRAD-COUNT",
            path=bvec,
            needed="one gradient a volume",
            fix="convert the series again; if volumes were removed, remove their columns from bval and bvec",
        )


def _checked(
    bvals: np.ndarray, bvecs: np.ndarray, policy: GradientPolicy, bval: Path, bvec: Path
) -> tuple[StoredGradients, list[Note]]:
    """Meaning: finite, not negative, in s/mm², unit vectors; b = 0 found."""
    problems = Problems()
    problems.attempt(_check_bvals, bvals, bval)
    problems.raise_any()
    norms = np.linalg.norm(bvecs, axis=1)
    notes: list[Note] = []
    far = np.isfinite(norms) & (norms >= _ZERO) & (np.abs(norms - 1) > 0.01)
    if policy.bval_from_norm == "square" and far.any():
        bvals = np.where(far, bvals * norms**2, bvals)
    is_b0 = find_b0(bvals, policy.b0_threshold)
    problems.attempt(_check_unit, bvals, is_b0, norms, bval)
    infinite = ~np.isfinite(norms) & ~is_b0
    if infinite.any():
        problems.attempt(
            _refuse,
            f"the vectors of volumes {_few(infinite)} are not finite though b > 0",
            "E-GRAD-NONFINITE",
            bvec,
            "finite vectors",
        )
    if (~np.isfinite(norms) & is_b0).any():
        notes.append(
            warning(
                "W-GRAD-B0NAN",
                f"{bvec.name}: the vectors of b=0 volumes {_few(~np.isfinite(norms) & is_b0)} are not finite and were set to 0",
            )
        )
    lacks = ~is_b0 & (norms < _ZERO)
    notes += problems.attempt(_check_norms, norms, far & ~is_b0 & ~lacks, policy, bvec) or []
    problems.raise_any()
    if bool((bvals[is_b0] > 0).any()):
        notes.append(
            info("N-GRAD-B0", f"{bval.name}: b-values up to {bvals[is_b0].max():g} are taken as b=0 and set to 0")
        )
    safe = np.where(np.isfinite(norms) & (norms >= _ZERO) & ~is_b0, norms, np.inf)
    unit = (
        np.where(np.isfinite(safe)[:, None], np.nan_to_num(bvecs), 0.0)
        / np.where(np.isfinite(safe), safe, 1.0)[:, None]
    )
    return StoredGradients(bvals, unit, is_b0, lacks), notes


def _check_bvals(bvals: np.ndarray, bval: Path) -> None:
    if not np.isfinite(bvals).all():
        raise InputDataError(
            f"the b-values of volumes {_few(~np.isfinite(bvals))} are not finite",
            id="E-GRAD-NONFINITE",
            path=bval,
            needed="finite b-values",
            fix="convert the series again, or correct the values",
        )
    if (bvals < 0).any():
        raise InputDataError(
            f"the b-values of volumes {_few(bvals < 0)} are negative (least {bvals.min():g})",
            id="E-GRAD-NEGATIVE",
            path=bval,
            needed="b-values of 0 or more",
            fix="convert the series again, or correct the values",
        )


def _check_unit(bvals: np.ndarray, is_b0: np.ndarray, norms: np.ndarray, bval: Path) -> None:
    """b-values in ms/µm² or s/m² are off by a factor of a thousand or a million."""
    # With values far too low everything looks like b=0: then it is the non-zero ones with a direction that tell.
    candidates = bvals[~is_b0] if (~is_b0).any() else bvals[(bvals > 0) & (norms > 0.5)]
    if not len(candidates):
        return
    middle = float(np.median(candidates))
    if not 50 <= middle <= 50_000:
        guess = "ms/µm²: multiply by 1000" if middle < 50 else "s/m²: divide by 1 000 000"
        raise InputDataError(
            f"the median non-zero b-value is {middle:g}",
            id="E-GRAD-UNIT",
            path=bval,
            needed="b-values in s/mm², 50 to 50 000",
            fix=f"convert the unit (this looks like {guess})",
        )


def _check_norms(norms: np.ndarray, far: np.ndarray, policy: GradientPolicy, bvec: Path) -> list[Note]:
    if not far.any():
        return []
    told = f"vectors of volumes {_few(far)} have norms {norms[far].min():.4g} to {norms[far].max():.4g}"
    if policy.bval_from_norm is None:
        raise InputDataError(
            f"{told}: tools read three different b-values from such a table",
            id="E-GRAD-NORM",
            path=bvec,
            needed="unit vectors within 1 %",
            fix="pass --bval-from-norm square (b × norm², as MRtrix3) or --bval-from-norm none (b as written)",
        )
    rule = "b was multiplied by the squared norm" if policy.bval_from_norm == "square" else "b was kept"
    return [
        warning(
            "W-GRAD-NORM",
            f"{bvec.name}: {told}; by --bval-from-norm {policy.bval_from_norm} {rule} and the vectors made unit",
        )
    ]


def _refuse(found: str, id: str, path: Path, needed: str) -> None:
    raise InputDataError(found, id=id, path=path, needed=needed, fix="convert the series again, or correct the values")


def _few(which: np.ndarray) -> str:
    """Volume numbers, counted from 0, the first few."""
    volumes = np.flatnonzero(which)
    return ", ".join(map(str, volumes[:8])) + (f" and {len(volumes) - 8} more" if len(volumes) > 8 else "")
