"""Trackers: methods that follow an orientation field from seeds."""

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
