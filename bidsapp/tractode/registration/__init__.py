"""Registration: images of any contrast onto one another, as flows and affines of the world."""

from tractode.registry import Registry

METRICS = Registry(
    "similarity metric",
    {
        "contrastive": "tractode.registration.metrics.contrastive:Contrastive",
        "cr": "tractode.registration.metrics.correlation_ratio:CorrelationRatio",
        "lmi": "tractode.registration.metrics.local_mutual_information:LocalMutualInformation",
        "lncc": "tractode.registration.metrics.lncc:LNCC",
        "mi": "tractode.registration.metrics.mutual_information:MutualInformation",
        "mind": "tractode.registration.metrics.mind:MIND",
        "mind6": "tractode.registration.metrics.mind:MIND6",
        "mind_intensity": "tractode.registration.metrics.mind_intensity:MINDAndIntensity",
        "mse": "tractode.registration.metrics.mse:MeanSquares",
    },
)
REGULARISERS = Registry(
    "regulariser",
    {
        "gradient": "tractode.registration.regularisers.gradient:Gradient",
        "bending": "tractode.registration.regularisers.bending:Bending",
        "curvature": "tractode.registration.regularisers.curvature:Curvature",
        "magnitude": "tractode.registration.regularisers.magnitude:Magnitude",
        "folding": "tractode.registration.regularisers.folding:Folding",
    },
)
DEFORMATIONS = Registry(
    "deformation",
    {
        "svf": "tractode.registration.svf:StationaryVelocity",
        "tvf": "tractode.registration.tvf:TimeVelocity",
        "neural": "tractode.registration.neural_field:NeuralVelocity",
        "decoder": "tractode.registration.decoder:DecodedVelocity",
    },
)
