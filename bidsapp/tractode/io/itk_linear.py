"""ITK's linear transforms: ``.txt``/``.tfm`` text and the ``.mat`` of ANTs (``0GenericAffine.mat``), affine, rigid, similarity, shift.

Read here and not through nitransforms, which knows the affine kinds only and rounds their numbers to single precision.
A transform turns about a centre c and then shifts: ``x ↦ M (x − c) + c + t``, in LPS.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from scipy.spatial.transform import Rotation

from tractode.fields.transform import Transform
from tractode.io.transform_parts import chain_of, from_lps, unreadable

_FIRST_LINE = "#Insight Transform File"


def linear_matrix(kind: str, parameters: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The 4×4 matrix (LPS) of a linear transform as ITK stores it.

    Raises
    ------
    ValueError
        A kind that is not linear, or too few numbers.
    """
    name = kind.partition("_")[0]
    numbers = np.asarray(parameters, dtype=np.float64).ravel()
    known = {
        "AffineTransform": _affine, "MatrixOffsetTransformBase": _affine, "Euler3DTransform": _euler,
        "VersorRigid3DTransform": _versor, "Similarity3DTransform": _similarity,
    }  # fmt: skip
    matrix = np.eye(4)
    if name == "IdentityTransform":
        return matrix
    if name == "TranslationTransform":
        matrix[:3, 3] = numbers[:3]
        return matrix
    if name not in known:
        raise ValueError(f"transforms of type {kind} are not supported")
    fixed = np.asarray(fixed, dtype=np.float64).ravel()
    linear, shift = known[name](numbers, fixed)
    centre = fixed[:3]
    matrix[:3, :3], matrix[:3, 3] = linear, shift + centre - linear @ centre
    return matrix


def _affine(numbers: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return numbers[:9].reshape(3, 3), numbers[9:12].reshape(3)


def _euler(numbers: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles about x, y, z in radians: about y first, then x, then z; a fourth fixed number asks for x, y, z."""
    x, y, z = numbers[:3]
    order, angles = ("xyz", (x, y, z)) if len(fixed) > 3 and fixed[3] else ("yxz", (y, x, z))
    return Rotation.from_euler(order, angles).as_matrix(), numbers[3:6].reshape(3)


def _versor(numbers: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vector part of a unit quaternion, then the shift."""
    vector = numbers[:3]
    scalar = np.sqrt(max(0.0, 1 - float(vector @ vector)))
    return Rotation.from_quat([*vector, scalar]).as_matrix(), numbers[3:6].reshape(3)


def _similarity(numbers: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    linear, shift = _versor(numbers, fixed)
    return linear * numbers[6:7].item(), shift


def read_itk_linear(path: Path, source: str, target: str) -> Transform:
    """An ITK text or ``.mat`` file; a composite of linear transforms becomes a chain, the last in the file first.

    Raises
    ------
    InputDataError
        E-XFM-READ: not such a file, a kind that is not linear, or a list of transforms that is no composite.
    """
    try:
        found = _from_matlab(path) if path.suffix == ".mat" else _from_text(path.read_text(encoding="ascii"))
    except (OSError, ValueError, TypeError, IndexError, KeyError, NotImplementedError, MatReadError) as error:
        raise unreadable(path, error) from error
    return chain_of([from_lps(matrix) for matrix in reversed(found)], source, target)


def _from_matlab(path: Path) -> list[np.ndarray]:
    stored = loadmat(str(path))
    kinds = [name for name in stored if "Transform" in name]
    if len(kinds) != 1:
        raise ValueError(f"it holds {len(kinds)} transforms, not one")
    return [linear_matrix(kinds[0], stored[kinds[0]], stored["fixed"])]


def _from_text(text: str) -> list[np.ndarray]:
    if not text.startswith(_FIRST_LINE):
        raise ValueError(f"it does not begin with {_FIRST_LINE!r}")
    records: list[dict[str, str]] = []
    for line in text.splitlines():
        if line.startswith("#Transform"):
            records.append({})
        elif ":" in line and records:
            key, _, value = line.partition(":")
            records[-1][key.strip()] = value.strip()
    is_composite = bool(records) and records[0].get("Transform", "").startswith("CompositeTransform")
    parts = records[1:] if is_composite else records
    if len(parts) != 1 and not is_composite:
        raise ValueError(f"it lists {len(parts)} transforms, one a volume perhaps; give the file of one")
    return [
        linear_matrix(r["Transform"], _numbers(r["Parameters"]), _numbers(r.get("FixedParameters", ""))) for r in parts
    ]


def _numbers(text: str) -> np.ndarray:
    return np.array([float(word) for word in text.split()])
