"""File names: entities read from a name, and the name of a derivative built in BIDS entity order.

Order and formats are data (``spec/entities.yaml``): BIDS schema 2.0.1, BEP014 (from, to, mode), BEP016 (model, param)
and BEP046 (tract, track) as their drafts stood in July 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePath

from tractode.bids.spec_files import load

_FORMATS = {"label": re.compile(r"[0-9A-Za-z+]+"), "index": re.compile(r"[0-9]+")}
_EXTENSION = re.compile(r"\.[A-Za-z0-9.]+")
_SUFFIX = re.compile(r"[0-9A-Za-z]+")
FIGURES = "figures"


@cache
def entity_order() -> tuple[str, ...]:
    """All entity keys, as they stand in file names (``sub``, ``ses`` …), in order."""
    return tuple(entity["key"] for entity in load("entities")["entities"])


@cache
def derived_entities() -> frozenset[str]:
    """Entities that only derivatives carry."""
    return frozenset(load("entities")["derived"])


@cache
def _formats() -> dict[str, re.Pattern[str]]:
    return {entity["key"]: _FORMATS[entity["format"]] for entity in load("entities")["entities"]}


def is_label(text: str) -> bool:
    """Whether a text may be the value of an entity, for instance a participant's label."""
    return _FORMATS["label"].fullmatch(text) is not None


def parse(path: PurePath | str) -> tuple[dict[str, str], str, str] | None:
    """Entities, suffix and extension of a BIDS file name; ``None`` if it is not one.

    Values stay text, so that ``run-01`` is written back as ``run-01``.
    """
    name = PurePath(path).name
    stem, dot, rest = name.partition(".")
    *pairs, suffix = stem.split("_")
    if not dot or not pairs or not _SUFFIX.fullmatch(suffix):
        return None
    entities: dict[str, str] = {}
    for pair in pairs:
        key, dash, value = pair.partition("-")
        pattern = _formats().get(key)
        if not dash or pattern is None or key in entities or not pattern.fullmatch(value):
            return None
        entities[key] = value
    return entities, suffix, dot + rest


def stem(entities: Mapping[str, str]) -> str:
    """Entities joined in BIDS order, without suffix: the name of a run (``sub-01_dir-AP``)."""
    unknown = [key for key in entities if key not in _formats()]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not BIDS entities; choose from {', '.join(entity_order())}.")
    for key, value in entities.items():
        if not _formats()[key].fullmatch(value):
            raise ValueError(f"{key}-{value} cannot stand in a BIDS name: letters and digits only.")
    return "_".join(f"{key}-{entities[key]}" for key in entity_order() if key in entities)


def derivative(
    source: Mapping[str, str],
    *,
    suffix: str,
    extension: str,
    datatype: str | None = None,
    **entities: str | None,
) -> Path:
    """Path of a derivative, relative to the output folder.

    Parameters
    ----------
    source
        Entities of the source file, as `parse` gives them; they are kept.
    suffix, extension
        ``dwimap``, ``.nii.gz``.
    datatype
        ``dwi`` or ``anat``; by default where the suffix belongs. ``figures`` is the report's folder, one per participant.
    **entities
        Added to those of the source; ``None`` takes one away. ``from`` is a word of Python, so write ``from_``.

    Examples
    --------
    >>> derivative({"sub": "01", "dir": "AP"}, suffix="dwimap", extension=".nii.gz", param="fa", model="tensor").as_posix()
    'sub-01/dwi/sub-01_dir-AP_model-tensor_param-fa_dwimap.nii.gz'
    >>> derivative({"sub": "01"}, suffix="xfm", extension=".h5", datatype="anat", from_="T1w", to="dwi", mode="image").name
    'sub-01_from-T1w_to-dwi_mode-image_xfm.h5'
    """
    if not _SUFFIX.fullmatch(suffix) or not _EXTENSION.fullmatch(extension):
        raise ValueError(f"{suffix!r} with {extension!r} cannot end a BIDS name.")
    merged = {key: str(value) for key, value in source.items()}
    for key, value in entities.items():
        name = key.removesuffix("_")
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = str(value)
    if "sub" not in merged:
        raise ValueError("A derivative belongs to a participant: the entity 'sub' is missing.")
    folder = _folder(merged, datatype or _home_of(suffix))
    return folder / f"{stem(merged)}_{suffix}{extension}"


def sidecar_of(path: PurePath) -> Path:
    """The JSON file beside a data file, whatever the length of its extension."""
    return Path(path).with_name(path.name.partition(".")[0] + ".json")


def _home_of(suffix: str) -> str:
    homes = load("entities")["suffixes"]
    if suffix not in homes:
        raise ValueError(f"Say which folder a {suffix!r} belongs to; known by themselves are {', '.join(homes)}.")
    return homes[suffix][0]


def _folder(entities: Mapping[str, str], datatype: str) -> Path:
    folder = Path(f"sub-{entities['sub']}")
    if "ses" in entities and datatype != FIGURES:
        folder /= f"ses-{entities['ses']}"
    return folder / datatype
