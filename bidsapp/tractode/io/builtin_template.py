"""The anatomy that comes with the installation: nilearn's MNI152NLin2009aSym, 1 mm, brain only, mirror-symmetric.

Fonov et al., *Unbiased average age-appropriate atlases for pediatric studies*, NeuroImage 2011,
doi:10.1016/j.neuroimage.2010.07.033. Departure: read from nilearn's package folder, without importing nilearn's
loaders (they rescale, and pull in much that is not needed); T1w, GM and WM are scaled to 0–1.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import torch
from scipy import ndimage

from tractode.errors import ResourceUnavailableError
from tractode.fields import Image, ImageGrid
from tractode.fields.transform import Affine, resample

SPACE = "MNI152NLin2009aSym"
Kind = Literal["T1w", "GM", "WM", "mask"]
_FILES = {"T1w": "t1", "GM": "gm", "WM": "wm"}


def builtin_path(name: Literal["T1w", "GM", "WM"]) -> Path:
    """The file of one of the three maps."""
    spec = find_spec("nilearn")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / "datasets" / "data" / f"mni_icbm152_{_FILES[name]}_tal_nlin_sym_09a_converted.nii.gz"
        if path.is_file():
            return path
    raise ResourceUnavailableError(
        f"The built-in template's {name} map is not in this installation",
        id="E-TPL-BUILTIN",
        needed="the nilearn package with its MNI152 maps",
        fix="reinstall nilearn (pip install --force-reinstall nilearn)",
    )


def load_builtin(name: Kind, resolution: float = 1.0) -> Image:
    """One map in the space ``MNI152NLin2009aSym``: values in [0, 1], the mask as booleans.

    The brain mask is where the T1w is not zero, holes filled. Coarser resolutions are averaged (a Gaussian of the
    voxel's width, then linear interpolation) on the same field of view.
    """
    if name == "mask":
        whole = load_builtin("T1w")
        filled = ndimage.binary_fill_holes(whole.values[0].numpy() > 0)
        mask = Image(whole.grid, torch.from_numpy(filled)[None])
        if resolution == 1.0:
            return mask
        soft = _at(Image(whole.grid, mask.values.float()), resolution)
        return Image(soft.grid, soft.values > 0.5)
    source = nibabel.Nifti1Image.from_filename(builtin_path(name))
    values = np.asarray(source.dataobj, dtype=np.float32) / 255.0
    grid = ImageGrid((source.shape[0], source.shape[1], source.shape[2]), torch.from_numpy(source.affine), SPACE)
    image = Image(grid, torch.from_numpy(values)[None])
    return image if resolution == 1.0 else _at(image, resolution)


def _at(image: Image, resolution: float) -> Image:
    grid = image.grid.resampled(resolution)
    # A box of one voxel and a Gaussian of this width have the same variance.
    sigma = np.sqrt(max(resolution**2 - 1, 0) / 12)
    smooth = ndimage.gaussian_filter(image.values[0].numpy(), sigma)
    source = Image(image.grid, torch.from_numpy(smooth)[None])
    return resample(source, grid, Affine(torch.eye(4, dtype=torch.float64), SPACE, SPACE))
