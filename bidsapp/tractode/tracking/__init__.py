"""Trackers: methods that follow an orientation field from seeds, and what can be asked of their streamlines.

``from tractode.tracking import SDStream, track_until`` gives the library; nothing is loaded before it is asked for.
"""

from typing import Any

from tractode.registry import Registry

TRACKERS = Registry(
    "tracker",
    {
        "sdstream": "tractode.tracking.sdstream:SDStream",
        "tensordet": "tractode.tracking.tensordet:TensorDet",
        "eudx": "tractode.tracking.eudx:EuDX",
        "ifod1": "tractode.tracking.ifod1:IFOD1",
        "ifod2": "tractode.tracking.ifod2:IFOD2",
        "ptt": "tractode.tracking.ptt:PTT",
    },
)

_PUBLIC = Registry(
    "part of tractode.tracking",
    {
        "SDStream": "tractode.tracking.sdstream:SDStream",
        "TensorDet": "tractode.tracking.tensordet:TensorDet",
        "EuDX": "tractode.tracking.eudx:EuDX",
        "IFOD1": "tractode.tracking.ifod1:IFOD1",
        "IFOD2": "tractode.tracking.ifod2:IFOD2",
        "PTT": "tractode.tracking.ptt:PTT",
        "StreamlineLayer": "tractode.tracking.module:StreamlineLayer",
        "track_until": "tractode.tracking.propagate:track_until",
        "MaskSeeding": "tractode.tracking.seeding:MaskSeeding",
        "ImageSeeding": "tractode.tracking.seeding:ImageSeeding",
        "GridSeeding": "tractode.tracking.seeding:GridSeeding",
        "ListSeeding": "tractode.tracking.seeding:ListSeeding",
        "InterfaceSeeding": "tractode.tracking.interface_seeding:InterfaceSeeding",
        "DynamicSeeding": "tractode.tracking.dynamic_seeding:DynamicSeeding",
        "Include": "tractode.tracking.regions:Include",
        "OrderedInclude": "tractode.tracking.regions:OrderedInclude",
        "Exclude": "tractode.tracking.regions:Exclude",
        "Anatomy": "tractode.tracking.anatomy:Anatomy",
        "TissueMaps": "tractode.tracking.tissues:TissueMaps",
        "fit_weights": "tractode.tracking.streamline_weights:fit_weights",
        "FodTarget": "tractode.tracking.streamline_weights:FodTarget",
        "SignalTarget": "tractode.tracking.streamline_weights:SignalTarget",
        "SoftTermination": "tractode.tracking.survival:SoftTermination",
        "visitation_map": "tractode.tracking.survival:visitation_map",
        "connectome": "tractode.tracking.survival:connectome",
        "refine": "tractode.tracking.refinement:refine",
    },
)


def __getattr__(name: str) -> Any:
    """What a notebook imports from here; see `_PUBLIC`."""
    if name in _PUBLIC:
        return _PUBLIC[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
