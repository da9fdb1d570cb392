"""Fitting the learned models: one loop, one file a model. Nothing here is needed to use them."""

from tractode.registry import Registry

TRAINERS = Registry(
    "model to train",
    {
        "contrastive": "tractode.training.contrastive:ContrastiveProblem",
        "gentract": "tractode.training.gentract:LocalProblem",
        "autoencoders": "tractode.training.coefficient_vae:VaeProblem",
        "published": "tractode.training.gentract_paper:PaperProblem",
        "published_codecs": "tractode.training.codec_paper:GroupProblem",
    },
)
