"""Response functions that come from files: the user's, or the average that the group level made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tractode.contracts import SignalModel
from tractode.errors import InputDataError
from tractode.fields import DWI, GradientTable
from tractode.io.response import load_response
from tractode.models.tissue_response import TissueResponse

TISSUES = {1: ("wm",), 2: ("wm", "csf"), 3: ("wm", "gm", "csf")}


def with_responses(kind: type[SignalModel], paths: Sequence[Path], gtab: GradientTable) -> SignalModel | None:
    """The model with the responses of these files, ``None`` where none are given or the model takes none.

    A model of one tissue takes the first, white matter; one of several takes two (white matter, CSF) or three.
    """
    if not paths or not hasattr(kind, "with_responses"):
        return None
    tissues = TISSUES[len(paths)]
    responses = [load_response(path, tissue) for path, tissue in zip(paths, tissues, strict=True)]
    try:
        return kind.with_responses(responses, gtab)
    except ValueError as error:
        raise InputDataError(
            f"The responses do not suit the scan: {error}",
            id="E-RESPONSE-TABLE",
            path=paths[0],
            needed="a row for each b-value of the scan, the b=0 among them",
            fix="make them from data of the same protocol, or leave --response out",
        ) from None


def fitted_model(kind: type[SignalModel], outputs: Mapping[str, str], scan: DWI) -> SignalModel:
    """The model as `FitModel` had it: with the responses that it wrote; without any, learned from the scan again."""
    paths = [Path(outputs[role]) for tissue in TISSUES[3] if (role := f"response-{tissue}") in outputs]
    return with_responses(kind, paths, scan.gtab) or kind.for_data(scan.voxels(), scan.gtab)


def own_responses(model: SignalModel) -> list[TissueResponse]:
    """The responses that a model was made with, to be written; none where it has none."""
    several = getattr(model, "responses", None)
    if several is not None:
        return list(several)
    one = getattr(model, "response", None)
    if one is None:
        return []
    return [
        TissueResponse(
            "wm", torch.tensor([one.b], dtype=torch.float64), one.coefficients[None], one.method, one.n_voxels
        )
    ]
