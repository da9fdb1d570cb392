"""Writing a registration's transform in both directions, for ITK and as X5, with a sidecar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tractode.bids import sidecar
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative
from tractode.fields import ImageGrid, Transform
from tractode.io.transforms import Tables, write_itk, write_x5


def write_transform_pair(
    writer: StepWriter,
    transform: Transform,
    fixed_grid: ImageGrid,
    moving_grid: ImageGrid,
    *,
    source: Mapping[str, str],
    datatype: str,
    moving: str,
    fixed: str,
    sources: Sequence[Path],
    facts: Mapping[str, Any],
    role_prefix: str = "",
) -> None:
    """Save ``transform`` (fixed → moving points) and its inverse. Roles: ``to-<fixed>`` and ``from-<fixed>``.

    ``from-<moving>_to-<fixed>`` resamples moving images onto the fixed grid, as ANTs applies it. A step that saves several
    pairs tells them apart by ``role_prefix``.
    """
    both = (("to", moving, fixed, transform, fixed_grid), ("from", fixed, moving, transform.inverse(), moving_grid))
    for way, from_label, to_label, one_way, reference in both:
        role = f"{role_prefix}{way}"
        name: dict[str, str] = {
            "datatype": datatype,
            "from": from_label,
            "to": to_label,
            "mode": "image",
            "suffix": "xfm",
        }
        tables: Tables = {}
        for extra, extension, write in (("", ".h5", write_itk), ("-x5", ".x5", write_x5)):
            path = derivative(source, extension=extension, **name)
            _write(writer, f"{role}-{fixed}{extra}", path, write, one_way, reference, tables)
        writer.write_json(
            f"{role}-{fixed}-sidecar",
            derivative(source, extension=".json", **name),
            sidecar.xfm_sidecar(from_label, to_label, sources, None, **facts),
        )


def _write(
    writer: StepWriter,
    role: str,
    relative: Path,
    write: Any,
    transform: Transform,
    reference: ImageGrid,
    tables: Tables,
) -> None:
    writer.write(role, relative, lambda path: write(path, transform, reference, tables))
