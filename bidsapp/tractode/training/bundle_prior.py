"""Fitting the prior of a codec's latents on the atlas's training lines and what lies between them."""

from __future__ import annotations

from dataclasses import replace

import torch

from tractode.generative.bundle_prior import RANK, BundlePrior
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.bundle_variation import NO_VARIATION
from tractode.simulate.line_samples import LineSamples, LineSampleSettings
from tractode.simulate.seeds import stream
from tractode.training.naming import LatentCodec

SAMPLES = LineSampleSettings(
    variation=replace(NO_VARIATION, lines="training"),
    evenness=1.0, mirrored=0.5, mixed=0.8, misaligned=0.0, cut=0.0, waver_mm=0.3, other=0.0, simulated=0.0,
)  # fmt: skip


@torch.no_grad()
def fit_prior(
    codec: LatentCodec, library: BundleLibrary, n_per_bundle: int = 600, rank: int = RANK, seed: int = 0
) -> BundlePrior:
    """The prior of a finished codec. Subjects are not varied: what is drawn lies where the atlas lies."""
    samples = LineSamples(library, SAMPLES)
    lines, label = samples.draw(n_per_bundle * len(samples.names), stream(seed, 3, "atlas bundles"))
    latents = torch.cat([codec.latents(part) for part in lines.split(4096)])
    return BundlePrior.fit(latents, label, samples.names, lines, rank)
