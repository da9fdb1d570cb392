"""tractode: diffusion MRI as flows, from a BIDS dataset to derivatives, every step differentiable."""

__version__ = "0.1.0"
