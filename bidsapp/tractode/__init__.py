"""tractode: diffusion MRI as flows, from a BIDS dataset to derivatives, every step differentiable.

``from tractode import resample, reoriented, read_transform`` gives what a notebook needs; nothing is loaded before it is asked for.
"""

from typing import Any

from tractode.registry import Registry

__version__ = "0.1.0"

_PUBLIC = Registry(
    "part of tractode",
    {
        "register": "tractode.registration.optimise:register",
        "register_affine": "tractode.registration.affine:register_affine",
        "subject_template": "tractode.registration.within_subject:subject_template",
        "resample": "tractode.fields.transform:resample",
        "reoriented": "tractode.fields.reorient:reoriented",
        "reoriented_axes": "tractode.fields.reorient:reoriented_axes",
        "read_transform": "tractode.io.transforms:read_transform",
        "write_itk": "tractode.io.transforms:write_itk",
        "write_warp": "tractode.io.transforms:write_warp",
        "write_x5": "tractode.io.transforms:write_x5",
    },
)


def __getattr__(name: str) -> Any:
    """What a notebook imports from here; see `_PUBLIC`."""
    if name in _PUBLIC:
        return _PUBLIC[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
