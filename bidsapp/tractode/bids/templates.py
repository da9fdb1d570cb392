"""Templates: the one built into the installation, and any of TemplateFlow's.

TemplateFlow: Ciric et al., *TemplateFlow: FAIR-sharing of multi-scale, multi-species brain models*, Nature Methods 2022,
doi:10.1038/s41592-022-01681-2. It is imported only when one of its templates is named: the import itself writes files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from tractode.errors import ResourceUnavailableError, UsageError
from tractode.fields import Image

BUILT_IN = "MNI152NLin2009aSym"
# Enough for the registration, and what the usual dwi voxel asks for; used where no `:res-` is given and it exists.
_USUAL_RESOLUTION = 2


@dataclass(frozen=True)
class SpaceSpec:
    """One entry of ``--output-spaces``: ``NAME[:res-N][:cohort-N]``."""

    name: str
    resolution: int | None = None
    cohort: str | None = None


@dataclass(frozen=True)
class Template:
    """Files of a template. The built-in one has no ``mask`` file: it is made from its T1w.

    ``resolution`` is TemplateFlow's number, for the built-in template the voxel size in mm.
    """

    name: str
    resolution: int
    t1w: Path
    mask: Path | None
    t2w: Path | None = None

    @property
    def is_builtin(self) -> bool:
        return self.mask is None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file whose content decides the result."""
        return tuple(path for path in (self.t1w, self.mask, self.t2w) if path is not None)


@dataclass(frozen=True)
class TemplateImages:
    """A template in memory: ``mask`` holds booleans on the grid of ``image``."""

    image: Image
    mask: Image
    contrast: str


def parse_output_spaces(specs: Sequence[str]) -> tuple[SpaceSpec, ...]:
    """Entries of ``--output-spaces``, each template once.

    Raises
    ------
    UsageError
        An entry is malformed.
    """
    return tuple(dict.fromkeys(parse_space(spec) for spec in specs))


def parse_space(spec: str) -> SpaceSpec:
    """``MNI152NLin2009cAsym:res-2`` taken apart; ``res-native`` means no choice.

    Raises
    ------
    UsageError
        Not of that form.
    """
    name, *modifiers = spec.split(":")
    values: dict[str, str] = {}
    for modifier in modifiers:
        match = re.fullmatch(r"(res|resolution|cohort)-([0-9A-Za-z+]+)", modifier)
        key = "res" if match and match[1] == "resolution" else match[1] if match else ""
        if match is None or key in values:
            raise _malformed(spec)
        values[key] = match[2]
    resolution = values.get("res", "native")
    if not re.fullmatch(r"[0-9A-Za-z]+", name) or not (resolution == "native" or resolution.isdecimal()):
        raise _malformed(spec)
    return SpaceSpec(name, None if resolution == "native" else int(resolution), values.get("cohort"))


@cache
def find_template(spec: str) -> Template:
    """The files of a template, from the installation or TemplateFlow.

    Raises
    ------
    UsageError
        ``spec`` is malformed.
    ResourceUnavailableError
        There is no such template, it lacks a T1w or a brain mask, or it is not here and cannot be fetched.
    """
    space = parse_space(spec)
    if space.name == BUILT_IN:
        from tractode.io.builtin_template import builtin_path

        return Template(BUILT_IN, space.resolution or _USUAL_RESOLUTION, builtin_path("T1w"), None)
    return _from_templateflow(space)


def load_template(template: Template, contrast: str = "T1w") -> TemplateImages:
    """Image and brain mask of a template.

    Parameters
    ----------
    contrast
        ``T1w``, or ``T2w`` / ``b0`` for the T2w image where the template has one (else its T1w).
    """
    from tractode.io.builtin_template import load_builtin
    from tractode.io.nifti import read_image

    if template.mask is None:
        size = float(template.resolution)
        return TemplateImages(load_builtin("T1w", size), load_builtin("mask", size), "T1w")
    use_t2w = contrast in ("T2w", "b0") and template.t2w is not None
    path = template.t2w if use_t2w and template.t2w is not None else template.t1w
    image, _ = read_image(path, template.name)
    mask, _ = read_image(template.mask, template.name)
    if mask.grid.shape != image.grid.shape:
        raise ResourceUnavailableError(
            f"Mask and image of the template differ in shape ({mask.grid.shape}, {image.grid.shape})",
            id="E-TPL-SHAPE",
            path=template.mask,
            needed="both on one grid",
            fix="delete both files and fetch the template again",
        )
    return TemplateImages(image, Image(image.grid, mask.values > 0.5), "T2w" if use_t2w else "T1w")


def tissue_files(template: Template) -> dict[str, Path]:
    """Probability maps of a template: ``GM`` and ``WM``, and ``CSF`` where it has one.

    Raises
    ------
    ResourceUnavailableError
        It has none, or they are not here and cannot be fetched.
    """
    if template.is_builtin:
        from tractode.io.builtin_template import builtin_path

        return {"GM": builtin_path("GM"), "WM": builtin_path("WM")}
    space = SpaceSpec(template.name)
    api = _api(space)
    found = {
        label: _get(api, space, template.resolution, suffix="probseg", desc=None, label=label)
        for label in ("GM", "WM", "CSF")
    }
    known = {label: path for label, path in found.items() if path is not None}
    if not {"GM", "WM"} <= known.keys():
        raise ResourceUnavailableError(
            f"{template.name} has no maps of grey and white matter",
            id="E-TPL-TISSUES",
            needed="probseg images with label-GM and label-WM",
            fix=f"use --act labels with a segmentation of the participant, or --output-spaces {BUILT_IN}",
        )
    return known


def load_tissues(template: Template) -> Image:
    """Five-tissue maps of a template from its probability maps: coarse where grey matter is subcortical."""
    from tractode.io.builtin_template import load_builtin
    from tractode.io.nifti import read_image
    from tractode.preprocess import five_tissue

    if template.is_builtin:
        return five_tissue.from_fractions(load_builtin("GM"), load_builtin("WM"), load_builtin("mask"))
    maps = {label: read_image(path, template.name)[0] for label, path in tissue_files(template).items()}
    mask = load_template(template).mask
    return five_tissue.from_fractions(maps["GM"], maps["WM"], mask, maps.get("CSF"))


def load_priors(template: Template) -> Image:
    """Fractions of grey matter, white matter and CSF (3 channels) of a template, for a segmentation."""
    from tractode.io.builtin_template import load_builtin
    from tractode.io.nifti import read_image
    from tractode.preprocess.tissue_segmentation import template_priors

    if template.is_builtin:
        return template_priors(load_builtin("GM"), load_builtin("WM"), load_builtin("mask"))
    maps = {label: read_image(path, template.name)[0] for label, path in tissue_files(template).items()}
    return template_priors(maps["GM"], maps["WM"], load_template(template).mask, maps.get("CSF"))


def _from_templateflow(space: SpaceSpec) -> Template:
    api = _api(space)
    known = api.templates()
    if space.name not in known:
        close = get_close_matches(space.name, [BUILT_IN, *known], n=3)
        raise ResourceUnavailableError(
            f"There is no template named {space.name}",
            id="E-TPL-UNKNOWN",
            needed=f"{BUILT_IN} (built in) or a template of TemplateFlow",
            fix=f"did you mean {' or '.join(close)}?" if close else "see templateflow.org for the names",
        )
    for resolution in [space.resolution] if space.resolution else [_USUAL_RESOLUTION, 1, None]:
        t1w = _get(api, space, resolution, suffix="T1w", desc=None)
        if t1w is not None:
            break
    mask = _get(api, space, resolution, suffix="mask", desc="brain")
    if t1w is None or mask is None:
        raise ResourceUnavailableError(
            f"{space.name} has no {'T1w image' if t1w is None else 'brain mask'}"
            + (f" at res-{space.resolution}" if space.resolution else "")
            + ("" if space.cohort else " (templates by age need :cohort-N)"),
            id="E-TPL-LACKS",
            needed="a T1w image and its brain mask",
            fix="name another resolution, cohort or template in --output-spaces",
        )
    t2w = _get(api, space, resolution, suffix="T2w", desc=None, is_optional=True)
    return Template(space.name, resolution or 1, t1w, mask, t2w)


def _api(space: SpaceSpec) -> Any:
    try:
        from templateflow import api
    except Exception as error:  # its import writes into its folder, and fails in many ways where it cannot
        raise ResourceUnavailableError(
            f"TemplateFlow cannot start: {type(error).__name__}: {error}"[:300],
            id="E-TPL-HOME",
            needed=f"a folder with {space.name} for TemplateFlow",
            fix=f"set TEMPLATEFLOW_HOME to a writable or filled folder, or use --output-spaces {BUILT_IN}",
        ) from error
    return api


def _get(
    api: Any,
    space: SpaceSpec,
    resolution: int | None,
    *,
    suffix: str,
    desc: str | None,
    is_optional: bool = False,
    **more: str,
) -> Path | None:
    """One file; ``None`` if the template has none of the kind, or none of the kind is here and it is optional."""
    wanted = {
        "resolution": resolution,
        "cohort": space.cohort,
        "suffix": suffix,
        "desc": desc,
        "extension": ".nii.gz",
        **more,
    }
    try:
        found = api.get(space.name, **wanted)
    except Exception as error:  # requests and file errors of every kind mean the same to the user
        if is_optional:
            return None
        arguments = ", ".join(f"{key}={value!r}" for key, value in wanted.items())
        raise ResourceUnavailableError(
            f"The {suffix} of {space.name} is not here and cannot be fetched ({type(error).__name__})",
            id="E-TPL-OFFLINE",
            needed="its files in TEMPLATEFLOW_HOME",
            fix="on a machine with a network run "
            f"`python -c \"from templateflow import api; api.get('{space.name}', {arguments})\"`, "
            f"or use --output-spaces {BUILT_IN}",
        ) from error
    paths = sorted(found) if isinstance(found, list) else [found]
    present = [path for path in paths if path is not None and path.is_file() and path.stat().st_size > 0]
    return present[0] if present else None


def _malformed(spec: str) -> UsageError:
    return UsageError(
        f"{spec!r} is not an output space",
        id="E-ARG-SPACE",
        needed="NAME, NAME:res-2 or NAME:cohort-1",
        fix="correct --output-spaces",
    )
