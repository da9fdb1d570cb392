"""Registration: images of any contrast onto one another, as flows and affines of the world."""

from tractode.registry import Registry

METRICS = Registry(
    "similarity metric",
    {
        "mi": "tractode.registration.metrics.mutual_information:MutualInformation",
        "mind": "tractode.registration.metrics.mind:MIND",
        "mse": "tractode.registration.metrics.mse:MeanSquares",
    },
)
REGULARISERS = Registry(
    "regulariser",
    {
        "gradient": "tractode.registration.regularisers.gradient:Gradient",
        "bending": "tractode.registration.regularisers.bending:Bending",
        "folding": "tractode.registration.regularisers.folding:Folding",
    },
)
DEFORMATIONS = Registry("deformation", {"svf": "tractode.registration.svf:StationaryVelocity"})
