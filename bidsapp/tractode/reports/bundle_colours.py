"""Colours and readable names of bundles: the same in every report, one hue a family, a shade for each side and part.

The colours of the families were chosen in advance so that each is as far as may be from all others in CIELAB; a family that is not
among them takes the colour that its name's sum leads to.
"""

from __future__ import annotations

import colorsys
import hashlib
import re

FAMILIES = {
    "ArcuateFasciculus": "#ff3b30", "SuperiorLongitudinalFasciculus": "#ff9400", "InferiorFrontoOccipitalFasciculus": "#ffd60a",
    "InferiorLongitudinalFasciculus": "#33c759", "UncinateFasciculus": "#00e6d1", "CorticospinalTract": "#4c73ff",
    "CorpusCallosum": "#00d2ff", "Cingulum": "#a5e100", "ThalamicRadiation": "#d94cff", "OpticRadiation": "#ff0f96",
    "CorticostriatalTract": "#a54ba5", "CorticopontineTract": "#5a3cff", "FrontalAslantTract": "#f0a5c3",
    "MiddleCerebellarPeduncle": "#ffa578", "ExtremeCapsule": "#78692d", "MiddleLongitudinalFasciculus": "#d2e187",
    "ParietalAslantTract": "#b4a5ff", "VerticalOccipitalFasciculus": "#00784b", "HippocampusAlveus": "#b43c4b",
    "AnteriorCommissure": "#96c3ff", "Cerebellum": "#a54b00", "Vermis": "#b4960f", "InferiorCerebellarPeduncle": "#5a8700",
    "SuperiorCerebellarPeduncle": "#b4c32d", "MedialLemniscus": "#0f69c3", "ReticularTract": "#0f9696",
    "CorticobulbarTract": "#0078a5", "DentatorubrothalamicTract": "#ff87ff", "NonDecussatingDentatorubrothalamicTract": "#964bd2",
    "AcousticRadiation": "#f0005a", "AnsaLenticularis": "#87c396", "AnsaSubthalamica": "#8769a5", "FasciculusLenticularis": "#a55a78",
    "FasciculusSubthalamicus": "#f069a5", "Fornix": "#00ff00", "MedialForebrainBundle": "#00ffb4",
}  # fmt: skip
OTHER = "#6b7280"
_GROUPS = {
    "Association": "association", "Cerebellum": "cerebellum", "Commissure": "commissure", "CranialNerve": "cranial nerve",
    "ProjectionBasalGanglia": "projection", "ProjectionBrainstem": "brainstem",
}  # fmt: skip
_CUTS = {
    "Superior ": "Sup. ", "Inferior ": "Inf. ", "Fasciculus": "Fasc.", "Fronto Occipital": "Fronto-Occ.", "Longitudinal": "Long.",
    "Non Decussating": "Non-dec.", "Dentatorubrothalamic": "DRT", "Parahippocampal": "Parahipp.", "Frontal ": "Front. ", "Middle ": "Mid. ",
}  # fmt: skip
_SIDE = re.compile(r"(L|R|lr|rl)$")


def parts_of(name: str) -> tuple[str, str, str, str]:
    """The bundle's group, family, side and part.

    >>> parts_of("ProjectionBasalGanglia_ThalamicRadiationL_Anterior")
    ('projection', 'ThalamicRadiation', 'L', 'Anterior')
    >>> parts_of("Commissure_CorpusCallosum_Body")
    ('commissure', 'CorpusCallosum', '', 'Body')
    >>> parts_of("Cerebellum_CerebellumR")
    ('cerebellum', 'Cerebellum', 'R', '')
    """
    first, _, rest = name.partition("_")
    group, plain = (_GROUPS[first], rest) if first in _GROUPS and rest else ("", name)
    stem, _, part = plain.partition("_")
    side = _SIDE.search(stem)
    if side is None or stem == side[0]:
        return group, stem, "", part
    return group, stem.removesuffix(side[0]), side[0], part


def readable(name: str) -> str:
    """The name for people.

    >>> readable("Association_ArcuateFasciculusL")
    'Arcuate Fasciculus L'
    >>> readable("Association_CingulumR_SuperiorLongitudinalFasciculus1")
    'Cingulum R, Superior Longitudinal Fasciculus 1'
    """
    _, family, side, part = parts_of(name)
    return " ".join(filter(None, (_spaced(family), side))) + (f", {_spaced(part)}" if part else "")


def short(name: str, most: int = 34) -> str:
    """`readable`, with common words cut where it is long: side and part stay.

    >>> short("Association_SuperiorLongitudinalFasciculusL_2")
    'Sup. Longitudinal Fasc. L, 2'
    """
    text = readable(name)
    for word, cut in _CUTS.items():
        if len(text) <= most:
            return text
        text = text.replace(word, cut)
    return text if len(text) <= most else text[: most - 1] + "…"


def _spaced(text: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", text)


def colour_of(name: str) -> str:
    """``#rrggbb``: the family's hue, lighter on the right, its shade shifted by the part.

    >>> colour_of("Association_ArcuateFasciculusL")
    '#ff3b30'
    """
    _, family, side, part = parts_of(name)
    red, green, blue = (int(_hex_of(family)[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    lighter = 0.09 * (side in ("R", "rl"))
    if part:
        share = _sum(part) % 5 - 2
        hue, lighter = (hue + 0.012 * share) % 1, lighter + 0.07 * ((_sum(part) // 5) % 3 - 1)
    values = colorsys.hls_to_rgb(hue, min(max(lightness + lighter, 0.28), 0.84), saturation)
    return "#" + "".join(f"{round(255 * value):02x}" for value in values)


def rgb_of(name: str) -> tuple[float, float, float]:
    """`colour_of` as numbers from 0 to 1."""
    text = colour_of(name)
    red, green, blue = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _hex_of(family: str) -> str:
    palette = list(FAMILIES.values())
    return FAMILIES.get(family) or palette[_sum(family) % len(palette)]


def _sum(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
