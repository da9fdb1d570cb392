"""How an image was phase-encoded: axis, sign and total readout time (s) out of its sidecar, and where it says less than that.

BIDS only recommends ``PhaseEncodingDirection`` and ``TotalReadoutTime``; converters that are not told them write an axis
without a sign, or an estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tractode.bids.found import Encoding

NOMINAL_READOUT = 0.05  # s; where no sidecar tells, shifts are found all the same, and only their size in Hz is a guess
_OPPOSITE = ({"AP", "PA"}, {"LR", "RL"}, {"SI", "IS"}, {"HF", "FH"})


def encoding_of(metadata: Mapping[str, Any]) -> Encoding | None:
    """The encoding that a sidecar states, sign 0 where it tells the axis only; ``None`` if it does not tell the axis."""
    direction = metadata.get("PhaseEncodingDirection")
    axis = direction or metadata.get("PhaseEncodingAxis")
    if not axis:
        return None
    readout, note = _readout(metadata)
    notes = (note,) if note else ()
    if not direction:
        notes = ("PhaseEncodingAxis only: the sign is tried", *notes)
    return Encoding("ijk".index(axis[0]), 0 if not direction else -1 if axis.endswith("-") else 1, readout, notes)


def _readout(metadata: Mapping[str, Any]) -> tuple[float | None, str]:
    """The total readout time in s, and by which rule it was come by ("" where it is stated)."""
    stated, estimated = metadata.get("TotalReadoutTime"), metadata.get("EstimatedTotalReadoutTime")
    spacing = metadata.get("EffectiveEchoSpacing") or metadata.get("EstimatedEffectiveEchoSpacing")
    lines = metadata.get("ReconMatrixPE")
    if stated is not None and _is_time(stated):
        return float(stated), ""
    wrong = "" if stated is None else f"TotalReadoutTime {stated:g} is not in seconds; "
    if estimated is not None and _is_time(estimated):
        return float(estimated), f"{wrong}EstimatedTotalReadoutTime {estimated:g} s is used"
    if spacing and isinstance(lines, int | float) and _is_time(spacing * (lines - 1)):
        time = spacing * (lines - 1)
        formula = f"EffectiveEchoSpacing × (ReconMatrixPE − 1) = {spacing:g} s × {lines - 1:g} = {time:.4g} s"
        return time, f"{wrong}readout time from {formula}"
    return None, f"{wrong}no readout time in the sidecar"


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and 1e-4 < value < 0.5


@dataclass(frozen=True)
class Labelled:
    """An encoding and the ``dir`` label of the image, which tells what the sidecar may not."""

    encoding: Encoding
    label: str
    is_fieldmap: bool = False


def are_opposite(first: str, second: str) -> bool:
    """Whether two ``dir`` labels are a reversed pair."""
    return {first.upper(), second.upper()} in _OPPOSITE


def signed(images: Sequence[Labelled]) -> list[Encoding]:
    """The encodings with every unknown sign assumed: opposite to the first known one where the labels differ,
    or, without labels, between a run and a field map.

    Which of two opposite signs is the positive one does not matter to a pair: the field changes its sign, the shifts do not.
    Unknown readout times are taken to be those of the images that have one.
    """
    known = next((image for image in images if image.encoding.sign), images[0])
    reference = known.encoding.sign or 1
    time = next((image.encoding.readout for image in images if image.encoding.readout), None)
    found = []
    for image in images:
        encoding = image.encoding
        if encoding.readout is None:
            said = f"readout time taken to be {time or NOMINAL_READOUT:g} s" + ("" if time else "; Hz are nominal")
            encoding = replace(encoding, readout=time or NOMINAL_READOUT, notes=(*encoding.notes, said))
        if not encoding.sign:
            labels = (image.label, known.label)
            differs = labels[0] != labels[1] if all(labels) else image.is_fieldmap != known.is_fieldmap
            encoding = replace(encoding, sign=-reference if differs else reference)
        found.append(encoding)
    return found
