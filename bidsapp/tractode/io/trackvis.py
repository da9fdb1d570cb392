"""TrackVis tractograms (``.trk``, read only) and folders of bundles, one file a bundle, in RAS+ mm with voxel centres at integers.

http://trackvis.org/docs/?subsect=fileformat; read by nibabel, which undoes the format's corner-based millimetres.
"""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel
import numpy as np
import torch

from tractode.errors import InputDataError, MissingInputError
from tractode.fields import Streamlines
from tractode.io.tractogram import read_tractogram

SUFFIXES = (".trk", ".tck", ".trx")


def read_trk(path: Path, space: str) -> Streamlines:
    """The lines of a TrackVis file, without the data that it may carry; broken or empty lines are left out.

    Raises
    ------
    InputDataError
        Not a whole TrackVis file.
    """
    try:
        found = nibabel.streamlines.load(path)
        lines = [np.asarray(line, dtype=np.float32) for line in found.tractogram.streamlines]
    except (ValueError, OSError, EOFError, struct.error, nibabel.streamlines.tractogram_file.HeaderError) as error:
        raise InputDataError(
            f"This is not a readable TRK file ({error})",
            id="E-TRACT-TRK",
            path=path,
            needed="a whole TrackVis file",
            fix="write the tractogram again, or leave it out",
        ) from error
    sound = [torch.from_numpy(line) for line in lines if len(line) and np.isfinite(line).all()]
    return Streamlines.from_list(sound, space)


def read_bundles(folder: Path, space: str) -> dict[str, Streamlines]:
    """Every tractogram of a folder, by its name without extension, in the order of the names.

    Raises
    ------
    MissingInputError
        The folder holds no tractogram.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise MissingInputError(
            "There are no bundles in this folder",
            id="E-BUNDLES-MISSING",
            path=folder,
            needed="tractograms (.trk, .tck or .trx), one a bundle",
            fix="check the path",
        )
    return {
        path.stem: read_trk(path, space) if path.suffix == ".trk" else read_tractogram(path, space)[0] for path in paths
    }
