"""The truth of what happened during a simulated series, as tables: motion and eddy currents, lost slices; and the coils' shading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tractode.bids.names import sidecar_of
from tractode.fields import Image
from tractode.io.atomic import write_text
from tractode.simulate.disturbance import Disturbance
from tractode.workflows.simulate_raw import as_json, image
from tractode.workflows.simulate_visit import Visit

EDDY_TERMS = ("x", "y", "z", "xx", "yy", "zz", "xy", "xz", "yz")
MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")


def write_disturbance(path: Callable[..., Path], visit: Visit) -> None:
    """Below the truth of a visit: ``desc-motion`` and ``desc-slices`` tables and ``desc-shading``; nothing where nothing happened."""
    happened = visit.disturbance
    if happened is None:
        return
    _motion(path("dwi", "timeseries", ".tsv", desc="motion"), happened)
    _slices(path("dwi", "timeseries", ".tsv", desc="slices"), happened)
    shading = path("dwi", "dwimap", desc="shading")
    image(shading, Image(visit.true.grid, happened.shading[None].float()))
    as_json(sidecar_of(shading), {"Description": "Factor by which the coils make each voxel brighter"})


def _motion(file: Path, happened: Disturbance) -> None:
    columns = [*MOTION, *(f"eddy_{name}" for name in EDDY_TERMS)]
    rows = [[*rigid, *eddy] for rigid, eddy in zip(happened.rigid.tolist(), happened.eddy.tolist(), strict=True)]
    write_text(file, _table(columns, rows))
    x, y, z = happened.centre.tolist()
    about = f"the point ({x:.3f}, {y:.3f}, {z:.3f}) mm, RAS+"
    described = {name: {"Description": "From where the head lies by itself", "Units": "mm"} for name in MOTION[:3]}
    turned = {name: {"Description": f"Rotation vector about {about}", "Units": "rad"} for name in MOTION[3:]}
    shift = "Shift along the phase encoding, in mm at 100 mm from the image's middle along the stored axes"
    eddy = {f"eddy_{name}": {"Description": shift, "Units": "mm"} for name in EDDY_TERMS}
    as_json(file.with_suffix(".json"), described | turned | eddy)


def _slices(file: Path, happened: Disturbance) -> None:
    columns = [f"slice_{number}" for number in range(happened.left.shape[1])]
    write_text(file, _table(columns, happened.left.tolist()))
    as_json(
        file.with_suffix(".json"),
        {"Description": "Share of its signal that each slice (third axis) of each volume kept"},
    )


def _table(columns: list[str], rows: list[list[float]]) -> str:
    lines = ["\t".join(columns), *("\t".join(f"{value:.6g}" for value in row) for row in rows)]
    return "\n".join(lines) + "\n"
