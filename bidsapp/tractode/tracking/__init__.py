"""Trackers: methods that follow an orientation field from seeds."""

from tractode.registry import Registry

TRACKERS = Registry(
    "tracker",
    {
        "sdstream": "tractode.tracking.sdstream:SDStream",
        "tensordet": "tractode.tracking.tensordet:TensorDet",
        "eudx": "tractode.tracking.eudx:EuDX",
        "ptt": "tractode.tracking.ptt:PTT",
    },
)
