"""Independent random streams: one generator for each participant, session and purpose, whatever else is simulated."""

from __future__ import annotations

import numpy as np
import torch

# New purposes go to the end: the place in this list is part of the seed.
PURPOSES = (
    "warp",
    "bundles",
    "dwi noise",
    "T1w noise",
    "demographics",
    "dwi pose",
    "epi pose",
    "epi noise",
    "fmap pose",
    "fmap noise",
    "coil phase",
    "T2w pose",
    "T2w noise",
    "T2w bias",
    "FLAIR pose",
    "FLAIR noise",
    "FLAIR bias",
    "session pose",
    "bundle variation",
    "tract scan",
    "tract noise",
    "atlas bundles",
    "disturbance",
)


def stream(seed: int, participant: int, purpose: str, session: int = 0) -> torch.Generator:
    """The generator of one purpose of one participant (and session, 0 for the first); adding any changes no other stream."""
    # The first session's streams are those of a participant without sessions.
    entropy = [seed, participant, PURPOSES.index(purpose), *([session] if session else [])]
    state = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return torch.Generator().manual_seed((int(state[0]) << 31) ^ int(state[1]))
