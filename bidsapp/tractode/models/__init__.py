"""Diffusion models: one file each. To add one, write the file and add its line here."""

from tractode.registry import Registry

MODELS = Registry(
    "diffusion model",
    {
        "dti": "tractode.models.dti:DTI",
        "dki": "tractode.models.dki:DKI",
        "wmti": "tractode.models.wmti:WMTI",
        "msdki": "tractode.models.msdki:MSDKI",
        "fwdti": "tractode.models.free_water:FreeWaterDTI",
        "csd": "tractode.models.csd:CSD",
        "msmt_csd": "tractode.models.msmt_csd:MSMTCSD",
        "csa": "tractode.models.csa:CSA",
        "qball": "tractode.models.q_ball:QBall",
        "gqi": "tractode.models.gqi:GQI",
        "mapmri": "tractode.models.map_mri:MAPMRI",
        "noddi": "tractode.models.noddi:NODDI",
        "ballsticks": "tractode.models.ball_and_sticks:BallAndSticks",
    },
)
