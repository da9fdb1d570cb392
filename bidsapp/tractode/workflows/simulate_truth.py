"""The truth of a simulated dataset: what one visit's scans were made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tractode.bids.names import derivative, sidecar_of
from tractode.fields import Image, ImageGrid, Transform
from tractode.io.atomic import atomic_path
from tractode.io.builtin_template import SPACE, load_builtin
from tractode.io.tractogram import write_tractogram
from tractode.io.transforms import write_itk
from tractode.models.dti import DTI
from tractode.simulate.subject import Diffusion
from tractode.workflows.simulate_disturbance import write_disturbance
from tractode.workflows.simulate_raw import as_json, bare, gradients, image
from tractode.workflows.simulate_visit import Visit

IGNORED = (
    "*_xfm.*",
    "*_dwimap.*",
    "*_tractogram.*",
    "*_tract-*",
    "*_desc-noisefree_dwi.*",
    "*_desc-truth_fieldmap.*",
    "*_timeseries.*",
)
_Namer = Callable[..., Path]


def write_truth(out: Path, visit: Visit) -> None:
    """Transforms, masks, tissues, orientations, signal, tensor, bundles and field of a visit, below ``out``."""

    def path(datatype: str, suffix: str, extension: str = ".nii.gz", **more: str) -> Path:
        return out / derivative(visit.entities, suffix=suffix, extension=extension, datatype=datatype, **more)

    _warps(path, visit)
    _poses(path, visit, out)
    image(path("anat", "mask", desc="brain"), visit.t1w_mask)
    _diffusion(path, visit.true)
    _tensor(path, visit)
    _bundles(path, visit.true)
    _fields(path, visit)
    write_disturbance(path, visit)


def _transform(path: Path, one_way: Transform, grid: ImageGrid) -> None:
    with atomic_path(path) as temporary:
        # 3 mm: a smooth warp sampled so differs from itself by less than 0.05 mm between the points.
        write_itk(temporary, one_way, grid.resampled(3.0))


def _warps(path: _Namer, visit: Visit) -> None:
    template = load_builtin("T1w", 2.0).grid
    for one_way, source, target, grid in (
        (visit.warp, "T1w", SPACE, visit.t1w.grid),
        (visit.warp.inverse(), SPACE, "T1w", template),
    ):
        # An image transform from A to B resamples A's images on B, so it maps points of B to points of A.
        _transform(path("anat", "xfm", ".h5", from_=target, to=source, mode="image"), one_way, grid)


def _poses(path: _Namer, visit: Visit, out: Path) -> None:
    """Where the head lay in the other scans, and in the first session."""
    grid = visit.t1w.grid
    for scan, pose in visit.poses.items():
        datatype = "anat" if scan in visit.painted else "dwi" if scan == "dwi" else "fmap"
        _transform(path(datatype, "xfm", ".h5", from_="T1w", to=scan, mode="image"), pose, grid)
        _transform(path(datatype, "xfm", ".h5", from_=scan, to="T1w", mode="image"), pose.inverse(), grid)
    if visit.to_first is None:
        return
    this = visit.entities["ses"]

    def between(first: str, second: str) -> Path:
        names = {"from_": f"ses{first}", "to": f"ses{second}", "mode": "image"}
        return out / derivative({"sub": visit.entities["sub"]}, suffix="xfm", extension=".h5", datatype="anat", **names)

    _transform(between("01", this), visit.to_first, grid)
    _transform(between(this, "01"), visit.to_first.inverse(), grid)


def _diffusion(path: _Namer, true: Diffusion) -> None:
    grid, fibres = true.grid, true.fibres
    image(path("dwi", "mask", desc="brain"), Image(grid, true.mask[None]))
    image(path("dwi", "mask", desc="singlefibre"), Image(grid, fibres.single[None]))
    for tissue, values in zip(("GM", "WM", "CSF"), fibres.tissues, strict=True):
        image(path("dwi", "probseg", label=tissue), Image(grid, values[None].float()))
    fod = path("dwi", "dwimap", model="csd", param="fod")
    image(fod, Image(grid, fibres.fod.coeffs))
    content = {
        "Model": {
            "Description": "Orientation distribution that the signal was made from; it integrates to the white-matter fraction"
        },
        "OrientationEncoding": {
            "EncodingAxis": 3,
            "Reference": "xyz",
            "Type": "sh",
            "SphericalHarmonicBasis": "MRtrix3",
            "SphericalHarmonicDegree": fibres.fod.order,
        },
    }
    as_json(sidecar_of(fod), content)
    series = path("dwi", "dwi", desc="noisefree")
    image(series, Image(grid, true.signal.float()))
    gradients(bare(series), true.gtab, grid)


def _tensor(path: _Namer, visit: Visit) -> None:
    true = visit.true
    signal = true.signal.float()[:, true.mask].mT.double()
    model = DTI.for_data(signal, true.gtab)  # up to the b-value that a scan's tensor is fitted to
    maps = model.to_maps(model.fit(signal, true.gtab))
    for param in ("diffusivity", "fa", "md", "direction"):
        file = path("dwi", "dwimap", model="tensor", param=param)
        image(file, visit.dwi.unravel(maps[param].float()))
        as_json(
            sidecar_of(file),
            {
                "Model": {
                    "Description": "Diffusion tensor of the noise-free signal up to LargestB",
                    "Parameters": model.facts(),
                }
            },
        )


def _bundles(path: _Namer, true: Diffusion) -> None:
    for tract, bundle in true.bundles.items():
        with atomic_path(path("dwi", "tractogram", ".trx", tract=tract)) as temporary:
            write_tractogram(temporary, bundle.streamlines, true.grid)
        for desc, mask in (("bundle", bundle.mask), ("start", bundle.start), ("end", bundle.end)):
            image(path("dwi", "mask", tract=tract, desc=desc), Image(true.grid, mask[None]))


def _fields(path: _Namer, visit: Visit) -> None:
    """The field on the grid of the dwi, and on that of the reversed scan if the head lay elsewhere in it."""
    content = {
        "Units": "Hz",
        "Description": "Field of the simulated head, at every place that is in the voxel in truth",
    }
    if visit.field_hz is not None:
        file = path("fmap", "fieldmap", desc="truth")
        image(file, Image(visit.true.grid, visit.field_hz[None].float()))
        as_json(sidecar_of(file), content)
    if visit.reverse is not None and "epi" in visit.poses:
        made = visit.reverse
        file = path("fmap", "fieldmap", desc="truth", dir=made.encoding.label(made.image.grid))
        image(file, Image(made.image.grid, made.field_hz[None].float()))
        as_json(sidecar_of(file), content)
