"""Independent random streams: one generator for each participant and purpose, whatever else is simulated."""

from __future__ import annotations

import numpy as np
import torch

PURPOSES = ("warp", "bundles", "dwi noise", "T1w noise", "demographics")


def stream(seed: int, participant: int, purpose: str) -> torch.Generator:
    """The generator of one purpose of one participant; adding participants or purposes changes no other stream."""
    state = np.random.SeedSequence([seed, participant, PURPOSES.index(purpose)]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed((int(state[0]) << 31) ^ int(state[1]))
