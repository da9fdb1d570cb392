"""The first floor: frozen dataclasses, tensors plus their geometry. Each checks itself once, at construction."""

from tractode.fields.dwi import DWI
from tractode.fields.gradients import GradientTable
from tractode.fields.image import Image, ImageGrid
from tractode.fields.sh import PeakField, ShField, TensorField
from tractode.fields.streamlines import Streamlines
from tractode.fields.transform import Affine, Chain, Displacement, Flow, Transform
from tractode.fields.velocity import VelocityField

__all__ = [
    "DWI",
    "Affine",
    "Chain",
    "Displacement",
    "Flow",
    "GradientTable",
    "Image",
    "ImageGrid",
    "PeakField",
    "ShField",
    "Streamlines",
    "TensorField",
    "Transform",
    "VelocityField",
]
