"""Every way to streamlines in one list: the trackers that follow a field step by step, and the models that draw whole lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tractode.errors import InputDataError
from tractode.generative import GENERATORS
from tractode.tracking import TRACKERS

METHODS = (*TRACKERS, *GENERATORS)
"""The names of ``--tracking``."""


def method_of(name: str) -> Any:
    """The class behind a name of either kind; its ``label`` and ``citation`` are what files and references use."""
    return (GENERATORS if name in GENERATORS else TRACKERS)[name]


def is_generative(name: str) -> bool:
    """Whether a method draws whole streamlines from a trained model, and so needs its weights and its space."""
    return name in GENERATORS


def weights_of(name: str, folder: Path | None = None) -> Path:
    """The folder of a model's weights: the one given, else that which came with the installation."""
    from tractode.io.weights import shipped

    return folder or shipped(name)


def load_generator(
    name: str, folder: Path | None = None, *, steps: int | None = None, min_confidence: float | None = None
) -> Any:
    """A generative tracker with its weights; what is ``None`` is as the weights' settings say.

    Raises
    ------
    ResourceUnavailableError, InputDataError
        The weights are not there, are not what their sums say, or are of another model.
    """
    from tractode.io.weights import read_weights

    tensors, settings = read_weights(weights_of(name, folder))
    try:
        model = GENERATORS[name].from_weights(tensors, settings)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputDataError(
            f"These are not weights of {name} ({type(error).__name__} in their settings or tensors)",
            id="E-GENTRACT-WEIGHTS",
            path=weights_of(name, folder),
            needed=f"a folder that `tractode-train {name}` wrote with a recipe that the app can run",
            fix="give another folder, or leave --gentract-weights out",
        ) from error
    given = {"n_steps": steps, "min_confidence": min_confidence}
    changes = {key: value for key, value in given.items() if value is not None}
    return model.with_sampling(**changes) if changes else model
