"""Writes a raw BIDS dataset of simulated participants, with everything they were made from in ``derivatives/truth``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode import __version__
from tractode.bids.names import derivative
from tractode.errors import OutputError, UsageError
from tractode.fields import GradientTable, Image, ImageGrid
from tractode.io.atomic import atomic_path, write_text
from tractode.io.builtin_template import SPACE, load_builtin
from tractode.io.gradients import parse_gradients, to_table, write_gradients
from tractode.io.nifti import write_image
from tractode.io.tractogram import write_tractogram
from tractode.io.transforms import write_itk
from tractode.models.dti import DTI
from tractode.simulate import seeds
from tractode.simulate.gradients import multi_shell
from tractode.simulate.subject import Participant, SubjectSettings, field_of_view, simulate
from tractode.simulate.tissues import Anatomy, anatomy
from tractode.simulate.warp import participant_warp

TRUTH = Path("derivatives") / "truth"


@dataclass(frozen=True)
class SimulationSettings:
    """What to simulate. ``gradients`` (bval, bvec files) replaces ``shells`` and ``n_b0``; ``orientation`` names the
    direction of each stored axis; ``oblique_deg`` turns the dwi grid away from the scanner's axes."""

    participants: int = 1
    seed: int = 0
    resolution: tuple[float, float, float] = (2.0, 2.0, 2.0)
    t1w_resolution: float | None = 1.0
    shells: tuple[tuple[float, int], ...] = ((1000.0, 32), (2500.0, 64))
    n_b0: int = 8
    gradients: tuple[Path, Path] | None = None
    orientation: str = "LAS"
    t1w_orientation: str = "RAS"
    oblique_deg: float = 0.0
    subject: SubjectSettings = field(default_factory=SubjectSettings)


def write_dataset(
    out: Path, settings: SimulationSettings, progress: Callable[[str], None] = lambda text: None
) -> list[str]:
    """The whole dataset; returns the participants' labels. ``out`` must not exist or be empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(
            "The output folder is not empty",
            id="E-OUT-NOTEMPTY",
            path=out,
            needed="a new or empty folder",
            fix="choose another folder, or remove this one first",
        )
    axes = {
        letters: oriented(letters, settings.oblique_deg if letters == settings.orientation else 0.0)
        for letters in (settings.orientation, settings.t1w_orientation)
    }
    brain = anatomy(*(load_builtin(name) for name in ("T1w", "GM", "WM", "mask")))
    labels = [f"{number + 1:02d}" for number in range(settings.participants)]
    for number, label in enumerate(labels):
        progress(f"sub-{label}")
        t1w_grid, dwi_grid = _grids(brain, settings, axes, number, label)
        gtab = _table(settings, dwi_grid)
        made = simulate(brain, t1w_grid, dwi_grid, gtab, settings.seed, number, settings.subject)
        _write_raw(out, label, made, settings)
        _write_truth(out / TRUTH, label, made)
    _write_descriptions(out, labels, settings)
    return labels


def oriented(letters: str, oblique_deg: float) -> Float[Tensor, "3 3"]:
    """Directions of the stored axes as columns, in RAS+: those of ``letters``, all turned about one slanted axis."""
    try:
        codes = nibabel.orientations.axcodes2ornt(tuple(letters.upper()))
        if len(letters) != 3 or np.isnan(codes).any() or len({int(axis) for axis, _ in codes}) != 3:
            raise ValueError
    except ValueError as error:
        raise UsageError(
            f"{letters!r} is not an orientation",
            id="E-CLI-ORIENTATION",
            needed="three letters, one of each pair R/L, A/P, S/I, such as RAS, LAS or PSR",
        ) from error
    matrix = torch.zeros(3, 3, dtype=torch.float64)
    for column, (axis, sign) in enumerate(codes):
        matrix[int(axis), column] = float(sign)
    slant = torch.tensor([0.8, 0.48, 0.36], dtype=torch.float64) * np.deg2rad(oblique_deg)
    x, y, z = slant.tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)) @ matrix


def _grids(
    brain: Anatomy, settings: SimulationSettings, axes: dict[str, Float[Tensor, "3 3"]], number: int, label: str
) -> tuple[ImageGrid, ImageGrid]:
    space = f"sub-{label}_T1w"
    warp = participant_warp(brain.t1w.grid, space, seeds.stream(settings.seed, number, "warp"), settings.subject.warp)
    t1w = (settings.t1w_resolution or 2.0,) * 3
    t1w_grid = field_of_view(brain, warp, (t1w[0], t1w[1], t1w[2]), axes[settings.t1w_orientation], 10.0, space)
    dwi_grid = field_of_view(brain, warp, settings.resolution, axes[settings.orientation], 8.0, f"sub-{label}_dwi")
    return t1w_grid, dwi_grid


def _table(settings: SimulationSettings, grid: ImageGrid) -> GradientTable:
    """The table asked for; a given one is meant for the stored image, as every ``.bvec`` is."""
    if settings.gradients is None:
        return multi_shell(settings.shells, settings.n_b0)
    stored, _ = parse_gradients(*settings.gradients, None)
    return to_table(stored, grid.affine)


def _write_raw(out: Path, label: str, made: Participant, settings: SimulationSettings) -> None:
    folder, name = out / f"sub-{label}", f"sub-{label}"
    if settings.t1w_resolution is not None:
        _image(folder / "anat" / f"{name}_T1w.nii.gz", made.t1w, np.int16)
        _json(
            folder / "anat" / f"{name}_T1w.json",
            {
                "Modality": "MR",
                "MagneticFieldStrength": 3,
                "SkullStripped": True,
                "RepetitionTime": 2.3,
                "EchoTime": 0.003,
                "Description": "Simulated: the built-in template, warped",
            },
        )
    stem = folder / "dwi" / f"{name}_dwi"
    noisy = Image(made.dwi.grid, made.dwi.signal)
    _image(stem.with_suffix(".nii.gz"), noisy, np.float32 if settings.subject.snr is None else np.int16)
    _gradients(stem, made)
    content = {
        "Modality": "MR",
        "MagneticFieldStrength": 3,
        "EchoTime": 0.08,
        "RepetitionTime": 8.0,
        "Description": "Simulated: no motion, no distortion, Rician noise",
    }
    _json(stem.with_suffix(".json"), content)


def _write_truth(out: Path, label: str, made: Participant) -> None:
    entities = {"sub": label}

    def path(datatype: str, suffix: str, extension: str, **more: str) -> Path:
        return out / derivative(entities, suffix=suffix, extension=extension, datatype=datatype, **more)

    anat = made.t1w.grid
    template = load_builtin("T1w", 2.0).grid
    for one_way, source, target, grid in (
        (made.warp, "T1w", SPACE, anat),
        (made.warp.inverse(), SPACE, "T1w", template),
    ):
        # An image transform from A to B resamples A's images on B, so it maps points of B to points of A.
        name = path("anat", "xfm", ".h5", from_=target, to=source, mode="image")
        with atomic_path(name) as temporary:
            write_itk(temporary, one_way, _coarse(grid))
    _image(path("anat", "mask", ".nii.gz", desc="brain"), made.t1w_mask)
    grid, fibres = made.dwi.grid, made.fibres
    _image(path("dwi", "mask", ".nii.gz", desc="brain"), Image(grid, made.dwi.mask[None]))
    _image(path("dwi", "mask", ".nii.gz", desc="singlefibre"), Image(grid, fibres.single[None]))
    for tissue, values in zip(("GM", "WM", "CSF"), fibres.tissues, strict=True):
        _image(path("dwi", "probseg", ".nii.gz", label=tissue), Image(grid, values[None].float()))
    _image(path("dwi", "dwimap", ".nii.gz", model="csd", param="fod"), Image(grid, fibres.fod.coeffs))
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
    _json(path("dwi", "dwimap", ".json", model="csd", param="fod"), content)
    stem = path("dwi", "dwi", ".nii.gz", desc="noisefree")
    _image(stem, Image(grid, made.noise_free))
    _gradients(Path(str(stem).removesuffix(".nii.gz")), made)
    model = DTI()
    maps = model.to_maps(model.fit(made.noise_free[:, made.dwi.mask].mT.double(), made.dwi.gtab))
    for param in ("diffusivity", "fa", "md", "direction"):
        _image(path("dwi", "dwimap", ".nii.gz", model="tensor", param=param), made.dwi.unravel(maps[param].float()))
        _json(
            path("dwi", "dwimap", ".json", model="tensor", param=param),
            {
                "Model": {
                    "Description": "Diffusion tensor of the noise-free signal, all volumes",
                    "Parameters": model.facts(),
                }
            },
        )
    for tract, bundle in made.bundles.items():
        with atomic_path(path("dwi", "tractogram", ".trx", tract=tract)) as temporary:
            write_tractogram(temporary, bundle.streamlines, grid)
        for desc, mask in (("bundle", bundle.mask), ("start", bundle.start), ("end", bundle.end)):
            _image(path("dwi", "mask", ".nii.gz", tract=tract, desc=desc), Image(grid, mask[None]))


def _coarse(grid: ImageGrid) -> ImageGrid:
    """3 mm: a smooth warp sampled so differs from itself by less than 0.05 mm between the points."""
    return grid.resampled(3.0)


def _write_descriptions(out: Path, labels: list[str], settings: SimulationSettings) -> None:
    made_by = [{"Name": "tractode-simulate", "Version": __version__}]
    _json(
        out / "dataset_description.json",
        {
            "Name": "tractode simulated dataset",
            "BIDSVersion": "1.10.0",
            "DatasetType": "raw",
            "Authors": ["tractode-simulate"],
            "GeneratedBy": made_by,
        },
    )
    _json(
        out / TRUTH / "dataset_description.json",
        {
            "Name": "Truth of the tractode simulated dataset",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": made_by,
        },
    )
    rows = "".join(f"sub-{label}\n" for label in labels)
    write_text(out / "participants.tsv", "participant_id\n" + rows)
    noise = "none" if settings.subject.snr is None else f"Rician, SNR {settings.subject.snr:g} in white matter at b=0"
    text = f"Simulated diffusion MRI of {len(labels)} participants made by tractode-simulate {__version__} with seed {settings.seed}.\n\nThe anatomy is nilearn's MNI152NLin2009aSym template, made asymmetric and warped by a known diffeomorphism for each\nparticipant. Noise: {noise}. What the images were made from is in derivatives/truth.\n\nThe template is the ICBM 152 nonlinear symmetric average (2009a), McConnell Brain Imaging Centre, McGill University.\n"
    write_text(out / "README", text)


def _image(path: Path, image: Image, dtype: Any = None) -> None:
    with atomic_path(path) as temporary:
        write_image(temporary, image, dtype=dtype)


def _gradients(stem: Path, made: Participant) -> None:
    with atomic_path(Path(f"{stem}.bval")) as bval, atomic_path(Path(f"{stem}.bvec")) as bvec:
        write_gradients(made.dwi.gtab, made.dwi.grid.affine, bval, bvec)


def _json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
