"""The raw side of a simulated dataset: one visit's scans as a converter would have written them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tractode.bids.names import derivative, sidecar_of
from tractode.fields import GradientTable, Image, ImageGrid
from tractode.io.atomic import atomic_path, write_text
from tractode.io.gradients import write_gradients
from tractode.io.nifti import write_image
from tractode.simulate.contrasts import CONTRASTS
from tractode.simulate.echo_planar import Encoding
from tractode.workflows.simulate_settings import DistortionSettings, SimulationSettings
from tractode.workflows.simulate_visit import Visit

Content = dict[str, Any]
_PAIR, _MAP = "pepolar", "fieldmap"


def write_raw(out: Path, visit: Visit, settings: SimulationSettings) -> None:
    """Every scan of the visit, below ``out``."""
    _anatomy(out, visit, settings)
    links = _Links(visit, settings.distortion)
    noisy = settings.subject.snr is not None
    stored = np.int16 if noisy else np.float32
    _series(out, visit, Image(visit.dwi.grid, visit.dwi.signal), visit.dwi.gtab, links, stored)
    if visit.reverse is not None:
        _reversed(out, visit, links, stored)
    if visit.echoes is not None:
        _field_map(out, visit, settings, links)


def scan_path(visit: Visit, datatype: str, suffix: str, extension: str = ".nii.gz", **entities: str) -> Path:
    """A raw file of the visit, relative to the dataset."""
    return derivative(visit.entities, suffix=suffix, extension=extension, datatype=datatype, **entities)


def image(path: Path, values: Image, dtype: Any = None) -> None:
    """Write it whole, or not at all."""
    with atomic_path(path) as temporary:
        write_image(temporary, values, dtype=dtype)


def gradients(stem: Path, gtab: GradientTable, grid: ImageGrid) -> None:
    """``.bval`` and ``.bvec`` beside an image (its path without extension)."""
    with atomic_path(Path(f"{stem}.bval")) as bval, atomic_path(Path(f"{stem}.bvec")) as bvec:
        write_gradients(gtab, grid.affine, bval, bvec)


def as_json(path: Path, content: Content) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def bare(path: Path) -> Path:
    """The path without ``.nii.gz``."""
    return Path(str(path).removesuffix(".nii.gz"))


class _Links:
    """What says which field map belongs to which scan."""

    def __init__(self, visit: Visit, wanted: DistortionSettings | None) -> None:
        self.link = "none" if wanted is None else wanted.link
        self.wanted, self.visit = wanted, visit
        self.is_series_pair = wanted is not None and wanted.reverse == "dwi"

    def dwi_paths(self) -> list[Path]:
        """The diffusion series of the visit, relative to the dataset."""
        if self.wanted is None or not self.is_series_pair:
            return [scan_path(self.visit, "dwi", "dwi")]
        one, grid = self.wanted.encoding, self.visit.dwi.grid
        labels = (one.label(grid), one.reversed().label(grid))
        return [scan_path(self.visit, "dwi", "dwi", dir=label) for label in labels]

    def of_map(self, identifier: str) -> Content:
        """Keys of a file from which the field is made."""
        if self.link == "b0field":
            return {"B0FieldIdentifier": identifier}
        paths = self.dwi_paths()
        if self.link == "intendedfor":
            return {"IntendedFor": [f"bids::{path.as_posix()}" for path in paths]}
        if self.link == "relative":
            return {"IntendedFor": [path.relative_to(path.parts[0]).as_posix() for path in paths]}
        return {}

    def of_dwi(self) -> Content:
        """Keys of a diffusion series: the fields that correct it, and that it makes as one of a pair."""
        if self.link != "b0field" or self.wanted is None:
            return {}
        sources = [_PAIR] * (self.wanted.reverse != "none") + [_MAP] * (self.wanted.field_map != "none")
        made = {"B0FieldIdentifier": _PAIR} if self.wanted.reverse != "none" else {}
        return made | ({"B0FieldSource": sources if len(sources) > 1 else sources[0]} if sources else {})


def _anatomy(out: Path, visit: Visit, settings: SimulationSettings) -> None:
    if settings.t1w_resolution is not None:
        path = out / scan_path(visit, "anat", "T1w")
        image(path, visit.t1w, np.int16)
        as_json(
            sidecar_of(path),
            {
                "Modality": "MR",
                "MagneticFieldStrength": 3,
                "SkullStripped": True,
                "RepetitionTime": 2.3,
                "EchoTime": 0.003,
                "Description": "Simulated: the built-in template, warped",
            },
        )
    for suffix, values in visit.painted.items():
        path, contrast = out / scan_path(visit, "anat", suffix), CONTRASTS[suffix]
        image(path, values, np.int16 if settings.subject.t1w_snr is not None else np.float32)
        content: Content = {
            "Modality": "MR",
            "MagneticFieldStrength": 3,
            "SkullStripped": True,
            "RepetitionTime": contrast.repetition_time,
            "EchoTime": contrast.echo_time,
        }
        if contrast.inversion_time is not None:
            content["InversionTime"] = contrast.inversion_time
        content["Description"] = "Simulated: painted from the tissues of the built-in template, warped"
        as_json(sidecar_of(path), content)


def _series(out: Path, visit: Visit, values: Image, gtab: GradientTable, links: _Links, stored: Any) -> None:
    wanted = links.wanted
    path = out / links.dwi_paths()[0]
    image(path, values, stored)
    gradients(bare(path), gtab, values.grid)
    content = _dwi_sidecar()
    if wanted is not None:
        content |= _encoded() | wanted.encoding.sidecar(values.grid) | links.of_dwi()
    if visit.disturbance is not None:
        # Eddy currents shift along the encoding, whether or not there is susceptibility.
        encoding = Encoding() if wanted is None else wanted.encoding
        content |= {"Description": "Simulated: disturbed during the scan; Rician noise"} | encoding.sidecar(values.grid)
    as_json(sidecar_of(path), content)


def _dwi_sidecar() -> Content:
    return {
        "Modality": "MR",
        "MagneticFieldStrength": 3,
        "EchoTime": 0.08,
        "RepetitionTime": 8.0,
        "Description": "Simulated: no motion, no distortion, Rician noise",
    }


def _encoded() -> Content:
    return {"Description": "Simulated: no motion during the scan, susceptibility distortion, Rician noise"}


def _reversed(out: Path, visit: Visit, links: _Links, stored: Any) -> None:
    assert visit.reverse is not None
    made, grid = visit.reverse, visit.reverse.image.grid
    content = _dwi_sidecar() | _encoded() | made.encoding.sidecar(grid)
    if made.gtab is not None:
        path = out / links.dwi_paths()[1]
        gradients(bare(path), made.gtab, grid)
        content |= links.of_dwi()
    else:
        path = out / scan_path(visit, "fmap", "epi", dir=made.encoding.label(grid))
        content |= links.of_map(_PAIR)
    image(path, made.image, stored)
    as_json(sidecar_of(path), content)


def _field_map(out: Path, visit: Visit, settings: SimulationSettings, links: _Links) -> None:
    assert visit.echoes is not None
    assert settings.distortion is not None
    grid, made = visit.echoes
    kind, times = settings.distortion.field_map, settings.distortion.echoes.echo_times
    exact = settings.subject.snr is None
    linked, source = links.of_map(_MAP), {"B0FieldIdentifier": _MAP} if links.link == "b0field" else {}
    common = {"Modality": "MR", "MagneticFieldStrength": 3, "RepetitionTime": 0.6}

    def write(suffix: str, values: torch.Tensor, stored: Any, content: Content) -> None:
        path = out / scan_path(visit, "fmap", suffix)
        image(path, Image(grid, values), stored)
        as_json(sidecar_of(path), common | content)

    brightness = np.float32 if exact else np.int16
    if kind == "fieldmap":
        write("magnitude", made.magnitudes[:1], brightness, {"EchoTime": times[0], **source})
        write("fieldmap", made.measured_hz, np.float32, {"Units": "Hz", **linked})
        return
    for number, time in enumerate(times):
        write(f"magnitude{number + 1}", made.magnitudes[number : number + 1], brightness, {"EchoTime": time, **source})
    if kind == "phasediff":
        both = {"EchoTime1": times[0], "EchoTime2": times[1]}
        write("phasediff", *_phase(made.difference, exact), both | _units(exact) | linked)
    else:
        for number, time in enumerate(times):
            phase = _phase(made.phases[number : number + 1], exact)
            write(f"phase{number + 1}", *phase, {"EchoTime": time} | _units(exact) | linked)


def _phase(values: torch.Tensor, exact: bool) -> tuple[torch.Tensor, Any]:
    """Without noise in rad; else −4096 … 4095 for a turn, as converters leave it."""
    if exact:
        return values, np.float32
    return (values * (4096 / math.pi)).round().clamp(-4096, 4095), np.int16


def _units(exact: bool) -> Content:
    return {"Units": "rad" if exact else "arbitrary"}
