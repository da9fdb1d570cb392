"""Generative tractography: whole streamlines drawn from a model that was trained, given a subject's orientation field; bundle codecs.

``from tractode.generative import CODECS, GENERATORS`` gives the methods by name; nothing is loaded before it is asked for.
"""

from tractode.registry import Registry

GENERATORS = Registry("generative tracker", {"gentract": "tractode.generative.gentract:GenTract"})

CODECS = Registry(
    "bundle codec",
    {
        "tractode": "tractode.generative.codec:BundleCodec",
        "ae": "tractode.generative.autoencoder:Autoencoder",
        "vae": "tractode.generative.variational:VariationalAutoencoder",
        "vq": "tractode.generative.vq_vae:VqVae",
        "vq_ema": "tractode.generative.vq_ema:VqEma",
        "vq_diff": "tractode.generative.vq_diff:VqDiff",
    },
)
