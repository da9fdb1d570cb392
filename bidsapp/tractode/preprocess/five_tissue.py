"""Five-tissue maps: cortical grey, subcortical grey, white matter, CSF and pathological tissue, as fractions of voxels.

The format of anatomically constrained tractography, Smith, Tournier, Calamante & Connelly, NeuroImage 2012,
doi:10.1016/j.neuroimage.2012.06.005. Which FreeSurfer label (Fischl et al., Neuron 2002,
doi:10.1016/S0896-6273(02)00569-X) is which tissue follows MRtrix3's ``5ttgen freesurfer``. Departure: from grey- and
white-matter maps alone, subcortical grey matter is what lies in a fixed region of MNI space, which is coarse.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.errors import InputDataError, ShapeError
from tractode.fields import Image, Transform

CORTICAL, SUBCORTICAL, WHITE, CSF, PATHOLOGICAL = range(5)
LABELS = ("CGM", "SGM", "WM", "CSF", "PT")

# FreeSurferColorLUT: single numbers, and ranges with both ends. Hippocampus and amygdala (17 18 53 54 96 97) stand apart.
_CORTICAL = (3, 8, 42, 47, (1000, 1035), (2000, 2035), (1100, 1181), (2100, 2181), (11100, 11175), (12100, 12175))
_SUBCORTICAL = (9, 10, 11, 12, 13, 25, 26, 48, 49, 50, 51, 52, 57, 58)
_WHITE = (
    2, 7, 16, 28, 41, 46, 60, 85, 86, 155, 156, 157, 158, (170, 175), 192, (250, 255),
    (3000, 3035), (4000, 4035), (3100, 3181), (4100, 4181), (13100, 13175), (14100, 14175), 5001, 5002,
)  # fmt: skip
_CSF = (4, 5, 14, 15, 24, 30, 31, 43, 44, 62, 63, 72, 75, 76)
_PATHOLOGICAL = (77, 78, 79, 80, 81, 82, 180, 181)
_MEDIAL_TEMPORAL = (17, 18, 53, 54, 96, 97)

# An ellipsoid on each side of MNI space around thalamus, caudate, putamen, pallidum and accumbens: centre, semi-axes (mm).
_DEEP_CENTRE, _DEEP_AXES = (17.0, -3.0, 5.0), (16.5, 27.0, 17.0)


def from_labels(labels: Image, *, limbic_is_subcortical: bool = False) -> Image:
    """Five-tissue maps (0 or 1) from a FreeSurfer label image: aseg, aparc+aseg or aparc.a2009s+aseg.

    Labels that are no tissue of the brain (skull, eyes, unknown) belong to none.

    Parameters
    ----------
    limbic_is_subcortical
        Count hippocampus and amygdala as subcortical, not cortical, grey matter.

    Raises
    ------
    InputDataError
        The image holds no grey or no white matter under FreeSurfer's numbers.
    """
    values = labels.values[0].round().long()
    tissue = torch.full((int(values.max().clamp_min(0)) + 1,), -1, dtype=torch.int8)
    limbic = _SUBCORTICAL if limbic_is_subcortical else _CORTICAL
    groups = (_CORTICAL, _SUBCORTICAL, _WHITE, _CSF, _PATHOLOGICAL)
    for number, group in enumerate(groups):
        for entry in group + (_MEDIAL_TEMPORAL if group is limbic else ()):
            low, high = entry if isinstance(entry, tuple) else (entry, entry)
            tissue[low : high + 1] = number
    kind = tissue[values.clamp_min(0)]
    maps = torch.stack([kind == number for number in range(len(groups))]).float()
    if not bool(maps[WHITE].any()) or not bool((maps[CORTICAL] + maps[SUBCORTICAL]).any()):
        present = ", ".join(str(int(label)) for label in values.unique()[:12])
        raise InputDataError(
            f"The label image holds no {'grey' if bool(maps[WHITE].any()) else 'white'} matter (labels {present} …)",
            id="E-TISSUE-LABELS",
            needed="FreeSurfer's numbers, as in aseg and aparc+aseg (white matter 2 and 41, cortex 3 and 42 or 1000 and more)",
            fix="give another segmentation, or a five-tissue image",
        )
    return Image(labels.grid, maps)


def from_fractions(
    grey: Image, white: Image, mask: Image, csf: Image | None = None, to_mni: Transform | None = None
) -> Image:
    """Five-tissue maps from fractions of grey matter, white matter and CSF, scaled down where they sum to more than 1.

    Without ``csf`` that is the rest of the mask. Subcortical grey matter is what lies near the centre of MNI space (module docstring).

    Parameters
    ----------
    to_mni
        Maps points of the images' space to a template in MNI space; not needed where they are in that space.
    """
    inside = mask.mask.to(grey.values.dtype)
    parts = [grey.values[0], white.values[0]] + ([] if csf is None else [csf.values[0]])
    known = torch.stack(parts).clamp(0, 1) * inside
    known = known / known.sum(0, keepdim=True).clamp_min(1)
    rest = known[2] if csf is not None else (inside - known.sum(0)).clamp_min(0)
    deep = _deep(grey, to_mni)
    none = torch.zeros_like(rest)
    return Image(grey.grid, torch.stack((known[0] * ~deep, known[0] * deep, known[1], rest, none)))


def _deep(image: Image, to_mni: Transform | None) -> Tensor:
    """Voxels in which grey matter is taken for subcortical."""
    space = image.grid.space if to_mni is None else to_mni.target
    if not space.startswith("MNI"):
        raise ShapeError(f"Where subcortical grey matter lies is known in MNI space only, not in {space!r}.")
    # A coarse region needs no fine grid; a deformation costs what its points do.
    coarse = image.grid.resampled(2.0) if to_mni is not None and min(image.grid.voxel_sizes) < 1.5 else image.grid
    points = coarse.centres() if to_mni is None else to_mni.map(coarse.centres())
    folded = torch.cat((points[..., :1].abs(), points[..., 1:]), dim=-1)
    scaled = (folded - torch.tensor(_DEEP_CENTRE)) / torch.tensor(_DEEP_AXES)
    deep = scaled.square().sum(-1) <= 1
    if coarse is image.grid:
        return deep
    return Image(coarse, deep[None].float()).sample(image.grid.centres(), outside="nearest")[..., 0] > 0.5


def checked(image: Image, path: str = "") -> Image:
    """A five-tissue image that was given, with sums of 1 at most; ``path`` is for the message.

    Raises
    ------
    InputDataError
        Not five volumes, values below 0, sums above 1, or nothing at all; all that is wrong in one message.
    """
    values = image.values
    problems = []
    if values.shape[0] != len(LABELS):
        problems.append(f"it has {values.shape[0]} volumes")
    if float(values.min()) < -1e-4:
        problems.append(f"its smallest value is {float(values.min()):.3g}")
    total = values.sum(0)
    if float(total.max()) > 1.01:
        problems.append(f"{_share(total > 1.01)} of its voxels sum to more than 1 (up to {float(total.max()):.3g})")
    if not bool((total > 0.5).any()):
        problems.append("no voxel is more than half tissue")
    if problems:
        raise InputDataError(
            f"The five-tissue image cannot be used: {'; '.join(problems)}",
            id="E-TISSUE-FIVE",
            path=path or None,
            needed=f"five volumes ({', '.join(LABELS)}) of fractions that sum to 1 in the brain and to 0 outside",
            fix="make it anew, for instance with MRtrix3's 5ttgen, and look at it with 5ttcheck",
        )
    clean = values.clamp_min(0)
    return Image(image.grid, clean / clean.sum(0, keepdim=True).clamp_min(1))


def dominant(image: Image) -> Int[Tensor, "i j k"]:
    """The number of each voxel's largest tissue; −1 where they sum to less than half."""
    return torch.where(image.values.sum(0) >= 0.5, image.values.argmax(0), -1)


def filled(image: Image) -> Image:
    """Interpolated maps made whole again: where any brain is left they sum to 1, elsewhere to 0."""
    total = image.values.sum(0, keepdim=True)
    return Image(image.grid, torch.where(total >= 0.5, image.values / total.clamp_min(0.5), 0.0))


def _share(condition: Float[Tensor, "*v"] | Tensor) -> str:
    return f"{100 * float(condition.float().mean()):.3g} %"
