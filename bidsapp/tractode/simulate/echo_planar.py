"""Echo-planar scans in a field: distortion along the phase-encoding axis, both ways, as BIDS names the ways.

The physics is `ops.epi`'s. BIDS: ``PhaseEncodingDirection`` names the axis of the stored image, and its polarity goes "from
zero index to maximum index unless ``-`` sign is present". A positive field moves signal with the polarity: ``j`` towards
higher indices, ``j-`` towards lower ones. So do FSL's topup (``0 1 0`` for a P→A scan of an LAS image, which is ``j``; its FAQ) and
SDCFlows (``B0FieldTransform``: the scan is read at ``index + Hz · TotalReadoutTime``, the sign turned by ``-``), and a real AP/PA
pair gives the field of its phase-difference map with that sign (`benchmarks/distortion.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import ImageGrid, Transform
from tractode.ops import epi
from tractode.simulate.head_field import HeadField

DIRECTIONS = ("i", "i-", "j", "j-", "k", "k-")


@dataclass(frozen=True)
class Encoding:
    """``direction`` as BIDS's ``PhaseEncodingDirection``, ``readout`` as ``TotalReadoutTime`` (s)."""

    direction: str = "j-"
    readout: float = 0.05

    @property
    def axis(self) -> int:
        return "ijk".index(self.direction[0])

    @property
    def sign(self) -> int:
        return -1 if self.direction.endswith("-") else 1

    def reversed(self) -> Encoding:
        """The same axis the other way."""
        return Encoding(self.direction[0] + ("-" if self.sign > 0 else ""), self.readout)

    def label(self, grid: ImageGrid) -> str:
        """What the ``dir`` entity says of it: ``AP`` where indices grow from anterior to posterior."""
        column = grid.affine[:3, self.axis] * self.sign
        largest = int(column.abs().argmax())
        ends = ("LR", "PA", "IS")[largest]
        return ends if float(column[largest]) > 0 else ends[::-1]

    def sidecar(self, grid: ImageGrid) -> dict[str, float | str]:
        """The three keys of the sidecar that say how the scan is distorted."""
        return {
            "PhaseEncodingDirection": self.direction,
            "TotalReadoutTime": self.readout,
            "EffectiveEchoSpacing": self.readout / (grid.shape[self.axis] - 1),
        }


def field_on(field: HeadField, grid: ImageGrid, pose: Transform | None = None) -> Float[Tensor, "i j k"]:
    """Hz in each voxel of a scan; ``pose`` maps its points to the T1w's, `None` where the head did not move between them."""
    points = grid.centres(torch.float64)
    return field.at(points if pose is None else pose.map(points))


def distorted(
    signal: Float[Tensor, "n i j k"], field_hz: Float[Tensor, "i j k"], encoding: Encoding
) -> Float[Tensor, "n i j k"]:
    """Every volume as it is scanned in the field (Hz). No signal is made or lost but what leaves the image."""
    shift = epi.shift_vox(field_hz, encoding.sign, encoding.readout)
    # One volume at a time: the fine pieces of all would take sixteen times the memory of the scan.
    return torch.cat([epi.distorted(volume[None], shift, encoding.axis) for volume in signal])
