"""From a NIfTI header to one affine, or a refusal: where do the voxels lie, and which side is left?

NIfTI-1: Cox et al. 2004, https://nifti.nimh.nih.gov/nifti-1. The header can place the image twice (qform and sform)
or not at all, and readers choose differently. Here the sform is used, the qform only where there is no usable sform,
and whatever the two contradict each other about is refused rather than guessed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tractode.errors import InputDataError, TractodeError
from tractode.io.nifti_header import read_header
from tractode.io.notes import Note, info, warning
from tractode.io.stream import ByteSource

_UNITS = {0: ("unknown (taken as mm)", 1.0), 1: ("metres", 1e3), 2: ("mm", 1.0), 3: ("micrometres", 1e-3)}
_SMALLEST, _LARGEST = 0.05, 20.0  # mm, voxel edges of a brain scan
_RECONVERT = "convert the file again from its source, or correct the header with a tool that knows how the head lay"


def choose_affine(
    fields: np.void, shape: tuple[int, ...], path: Path, *, assume_orientation: bool = False
) -> tuple[np.ndarray, list[Note]]:
    """Voxel → RAS+ mm with orthogonal axes, and what there is to say about it."""
    unit, factor = _unit(fields, path)
    notes: list[Note] = []
    pixdim = np.asarray(fields["pixdim"][1:4], float)
    if not np.isfinite(pixdim).all() or (pixdim <= 0).any():
        raise InputDataError(
            f"pixdim is {_listed(pixdim)} ({unit})",
            id="E-IMG-PIXDIM",
            path=path,
            needed="three positive voxel sizes",
            fix=_RECONVERT,
        )
    centre = np.append((np.asarray(shape[:3]) - 1) / 2, 1)
    sform, qform = _sform(fields, path), _qform(fields, pixdim)
    if sform is not None and not _is_invertible(sform):
        if qform is None:
            raise InputDataError(
                "the sform is singular and there is no usable qform",
                id="E-IMG-SFORM",
                path=path,
                needed="an invertible sform or a valid qform",
                fix=_RECONVERT,
            )
        notes.append(warning("W-IMG-SFORM", f"{path.name}: the sform is singular; the qform is used instead"))
        sform = None
    affine = sform if sform is not None else qform
    if affine is None:
        affine = _assumed(pixdim, centre, path, allowed=assume_orientation)
        notes.append(
            warning(
                "W-IMG-ASSUMED",
                f"{path.name}: no orientation is stored; by --assume-orientation it is taken as LAS (radiological), centred",
            )
        )
    elif sform is not None and qform is not None:
        notes += _compare(sform * factor, qform * factor, centre, path)
    elif sform is not None and int(fields["qform_code"]) > 0:
        notes.append(warning("W-IMG-QFORM", f"{path.name}: the qform is invalid; the sform is used"))
    affine = np.vstack([affine[:3] * factor, [0, 0, 0, 1]])
    if factor != 1.0:
        notes.append(warning("W-IMG-UNIT", f"{path.name}: lengths are stored in {unit} and were converted to mm"))
    affine, straightened = _orthogonal(affine, centre, path)
    return affine, notes + straightened + _check_sizes(affine, shape, unit, path)


def read_geometry(path: Path) -> tuple[tuple[float, ...], ...] | None:
    """Shape, voxel sizes (0.01 mm) and which world axis each voxel axis is nearest to; ``None`` if the header cannot be used."""
    try:
        with ByteSource(path) as source:
            header = read_header(source)
        affine, _ = choose_affine(header.fields, header.shape, path, assume_orientation=True)
    except TractodeError:
        return None
    axes = affine[:3, :3]
    nearest = np.abs(axes).argmax(axis=0)
    signs = np.sign(axes[nearest, range(3)]) * (nearest + 1)
    sizes = np.linalg.norm(axes, axis=0).round(2)
    return tuple(map(float, header.shape[:3])), tuple(sizes.tolist()), tuple(signs.tolist())


def _unit(fields: np.void, path: Path) -> tuple[str, float]:
    code = int(fields["xyzt_units"]) & 7
    if code not in _UNITS:
        raise InputDataError(
            f"the spatial unit code is {code}",
            id="E-IMG-UNIT",
            path=path,
            needed="0 (unknown), 1 (m), 2 (mm) or 3 (µm)",
            fix=_RECONVERT,
        )
    return _UNITS[code]


def _sform(fields: np.void, path: Path) -> np.ndarray | None:
    if int(fields["sform_code"]) <= 0:
        return None
    rows = np.array([fields["srow_x"], fields["srow_y"], fields["srow_z"]], float)
    if not np.isfinite(rows).all():
        raise InputDataError(
            "the sform holds NaN or infinity", id="E-IMG-SFORM-NAN", path=path, needed="a finite sform", fix=_RECONVERT
        )
    return np.vstack([rows, [0, 0, 0, 1]])


def _qform(fields: np.void, pixdim: np.ndarray) -> np.ndarray | None:
    """The qform as a matrix; ``None`` where its code is 0 or its quaternion is no rotation."""
    b, c, d = (float(fields[f"quatern_{axis}"]) for axis in "bcd")
    origin = np.array([float(fields[f"qoffset_{axis}"]) for axis in "xyz"])
    rest = 1.0 - (b * b + c * c + d * d)
    # Single precision leaves half turns a little over unit length.
    if int(fields["qform_code"]) <= 0 or not np.isfinite([rest, *origin]).all() or rest < -1e-5:
        return None
    a = np.sqrt(max(rest, 0.0))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    handedness = -1.0 if float(fields["pixdim"][0]) < 0 else 1.0
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * (pixdim * [1, 1, handedness])
    matrix[:3, 3] = origin
    return matrix


def _assumed(pixdim: np.ndarray, centre: np.ndarray, path: Path, *, allowed: bool) -> np.ndarray:
    """LAS with the origin in the middle: what most readers take where both codes are 0 (some take the mirror image)."""
    if not allowed:
        raise InputDataError(
            "no orientation is stored (qform_code and sform_code are 0), so left and right are unknown",
            id="E-IMG-ORIENTATION",
            path=path,
            needed="a qform or sform",
            fix="convert the file again from its source, or pass --assume-orientation if it is surely stored LAS (radiological)",
        )
    matrix = np.diag([-pixdim[0], pixdim[1], pixdim[2], 1.0])
    matrix[:3, 3] = -matrix[:3, :3] @ centre[:3]
    return matrix


def _compare(sform: np.ndarray, qform: np.ndarray, centre: np.ndarray, path: Path) -> list[Note]:
    """Refuse a qform and an sform that place the image differently; both in mm."""
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise InputDataError(
            "qform and sform disagree about handedness, so left and right are unknown",
            id="E-IMG-HANDEDNESS",
            path=path,
            needed="one orientation",
            fix=_RECONVERT,
        )
    turn = _polar(sform).T @ _polar(qform)
    angle = float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
    shift = float(np.linalg.norm(((sform - qform) @ centre)[:3]))
    sizes = [np.linalg.norm(m[:3, :3], axis=0) for m in (sform, qform)]
    stretch = float(np.abs(sizes[0] / sizes[1] - 1).max())
    differ = f"differ by {angle:.2f}°, by {shift:.2f} mm at the centre and by {100 * stretch:.1f} % in voxel size"
    if angle > 1 or shift > 1 or stretch > 0.01:
        raise InputDataError(
            f"qform and sform {differ}: sform {_rows(sform)}, qform {_rows(qform)}",
            id="E-IMG-QSFORM",
            path=path,
            needed="agreement within 1° and 1 mm",
            fix=_RECONVERT,
        )
    if angle > 0.05 or shift > 0.05 or stretch > 1e-3:
        return [warning("W-IMG-QSFORM", f"{path.name}: qform and sform {differ}; the sform is used")]
    return []


def _orthogonal(affine: np.ndarray, centre: np.ndarray, path: Path) -> tuple[np.ndarray, list[Note]]:
    """Axes at right angles about the image's centre; shear beyond 1° is refused."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / sizes
    cosines = np.abs((axes.T @ axes)[np.triu_indices(3, 1)]).max()
    shear = float(np.degrees(np.arcsin(min(cosines, 1.0))))
    if shear > 1:
        raise InputDataError(
            f"the sform is sheared by {shear:.1f}°",
            id="E-IMG-SHEAR",
            path=path,
            needed="axes at right angles",
            fix="resample the image onto a grid with right angles",
        )
    straight = affine.copy()
    straight[:3, :3] = _polar(np.vstack([np.hstack([axes, np.zeros((3, 1))]), [0, 0, 0, 1]])) * sizes
    straight[:3, 3] = (affine @ centre)[:3] - straight[:3, :3] @ centre[:3]
    if shear < 0.01:
        # Rounding of single precision: the stored numbers are kept.
        return affine, []
    return straight, [
        warning(
            "W-IMG-SHEAR", f"{path.name}: the sform is sheared by {shear:.2f}°; the nearest orthogonal axes are used"
        )
    ]


def _check_sizes(affine: np.ndarray, shape: tuple[int, ...], unit: str, path: Path) -> list[Note]:
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if sizes.min() < _SMALLEST or sizes.max() > _LARGEST:
        raise InputDataError(
            f"the voxels are {_listed(sizes)} mm (unit in the header: {unit})",
            id="E-IMG-VOXEL",
            path=path,
            needed=f"edges of {_SMALLEST} to {_LARGEST:g} mm",
            fix="correct pixdim, sform and unit in the header",
        )
    if sizes.max() / sizes.min() > 3:
        return [
            warning(
                "W-IMG-ANISOTROPIC",
                f"{path.name}: voxels of {_listed(sizes)} mm; the longest edge hides fibre directions",
            )
        ]
    if min(shape[:3]) > 1 and unit.startswith("unknown"):
        return [info("N-IMG-UNIT", f"{path.name}: no unit of length is stored; mm is taken")]
    return []


def _polar(matrix: np.ndarray) -> np.ndarray:
    """The rotation (or reflection) nearest to the voxel axes."""
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    u, _, vh = np.linalg.svd(axes)
    return u @ vh


def _is_invertible(matrix: np.ndarray) -> bool:
    sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    return bool(sizes.min() > 0) and bool(abs(np.linalg.det(matrix[:3, :3] / sizes)) > 1e-3)


def _listed(values: np.ndarray) -> str:
    return " × ".join(f"{v:.6g}" for v in values)


def _rows(matrix: np.ndarray) -> str:
    return str([[round(float(v), 3) for v in row] for row in matrix[:3]])
