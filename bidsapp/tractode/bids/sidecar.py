"""Sidecars of derivatives as plain dictionaries: BEP016 for maps, BEP046 for tractograms, BIDS derivatives for the rest.

Where the two drafts leave a gap the key is ours and says so in its name or its description.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import tractode
from tractode.bids.spec_files import load

RAW = "raw"


@runtime_checkable
class _Map(Protocol):
    """What a `tractode.contracts.MapSpec` says of a map."""

    @property
    def param(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def units(self) -> str: ...
    @property
    def components(self) -> str: ...


def bids_uri(path: Path | str, bids_dir: Path | None) -> str:
    """A BIDS URI: ``bids:raw:…`` inside the input dataset, ``bids::…`` inside our own output."""
    path = Path(path)
    if bids_dir is not None:
        for root in (bids_dir, bids_dir.resolve()):
            if path.is_relative_to(root):
                return f"bids:{RAW}:{path.relative_to(root).as_posix()}"
    # Our own outputs all lie in a participant's folder, so the output folder itself need not be known.
    starts = [i for i, part in enumerate(path.parts[:-1]) if part.startswith("sub-")]
    inside = Path(*path.parts[starts[-1] :]) if starts else Path(path.name)
    return f"bids::{inside.as_posix()}"


def _common(description: str, sources: Sequence[Path | str], bids_dir: Path | None) -> dict[str, Any]:
    return {
        "Description": description,
        "Sources": [bids_uri(source, bids_dir) for source in sources],
        "TractodeVersion": tractode.__version__,
    }


def _space(space: str | None, reference: str | None) -> dict[str, Any]:
    """`SpatialReference`, which BIDS wants for every space that is not one of its own."""
    if space is None or space in load("sidecars")["standard_spaces"]:
        return {}
    return {"SpatialReference": reference or f"The grid that the transforms named from-… to-{space} lead to"}


def map_sidecar(
    spec: _Map,
    model: str,
    parameters: Mapping[str, Any],
    sources: Sequence[Path | str],
    bids_dir: Path | None,
    *,
    response: Sequence[Sequence[float]] | None = None,
    sh_order: int | None = None,
    space: str | None = None,
    spatial_reference: str | None = None,
) -> dict[str, Any]:
    """Sidecar of a parameter map (BEP016).

    Parameters
    ----------
    model
        The model's label, ``tensor``.
    parameters
        How the model was fitted, for instance ``{"FitMethod": "wls"}``.
    response
        Zonal SH coefficients, one row a shell; for models that deconvolve.
    sh_order
        Harmonic order of a map whose components are ``sh``.
    space
        Template the map was resampled into; ``None`` in its own grid.
    """
    facts = load("sidecars")
    known = facts["models"].get(model, {"Description": model})
    described = {key: known[key] for key in ("Description", "URL") if key in known}
    content = _common(spec.description, sources, bids_dir)
    content["Units"] = spec.units or "arbitrary"
    content["Model"] = {**described, "Parameters": dict(parameters)}
    if spec.components != "scalar":
        content["OrientationEncoding"] = _encoding(spec.components, sh_order)
    if "NonNegativity" in known and spec.components == "sh":
        content["NonNegativity"] = known["NonNegativity"]
    if response is not None:
        content["ResponseFunction"] = {"Type": "zsh", "Coefficients": [[float(c) for c in shell] for shell in response]}
    return content | _space(space, spatial_reference)


def response_rows(response: Mapping[str, Any] | None, param: str) -> list[list[float]] | None:
    """The coefficients of a map's response in a model's facts: of its only one, or of the tissue that the map shows."""
    if not response:
        return None
    own = response if "Coefficients" in response else response.get(param, {})
    return own.get("Coefficients") if isinstance(own, Mapping) else None


def _encoding(components: str, sh_order: int | None) -> dict[str, Any]:
    encodings = load("sidecars")["orientation_encodings"]
    if components not in encodings:
        raise ValueError(f"{components!r} is no kind of map; choose from scalar, {', '.join(encodings)}.")
    encoding = dict(encodings[components])
    if components == "sh":
        if sh_order is None:
            raise ValueError("A map of spherical-harmonic coefficients needs sh_order.")
        encoding |= {"SphericalHarmonicDegree": sh_order, "SphericalHarmonicsDegree": sh_order}
    return encoding


def tractogram_sidecar(
    track: str,
    parameters: Mapping[str, Any],
    sources: Sequence[Path | str],
    bids_dir: Path | None,
    *,
    seed_mask: Path | str,
    mask: Path | str,
    n_seeds: int,
    n_generated: int,
    n_accepted: int,
    random_seed: int | None = None,
    space: str | None = None,
    spatial_reference: str | None = None,
) -> dict[str, Any]:
    """Sidecar of a tractogram with every REQUIRED key of BEP046.

    ``parameters`` holds the tracker's plain facts (its ``parameters(grid)``): ``StepSize``, ``MinimumLength`` and
    ``MaximumLength`` in mm, ``MaximumAngle`` between steps in degrees, ``CutoffAmplitude``. What a tracker does not say
    is written as null; everything it says is kept under ``Parameters``.
    """
    # Lengths and angles go through voxel sizes and radians: no more digits than they have.
    parameters = {key: round(value, 6) if isinstance(value, float) else value for key, value in parameters.items()}
    step, degrees = parameters.get("StepSize"), parameters.get("MaximumAngle")
    # The circle on which chords of one step turn by the largest angle allowed.
    radius = None if not step or not degrees else round(step / (2 * math.sin(math.radians(degrees) / 2)), 6)
    masks = [bids_uri(mask, bids_dir)]
    content = _common("Streamlines, points in RAS+ millimetres", sources, bids_dir)
    content["StreamlineSeeding"] = {
        "Sources": [
            {"Type": "Random", "Source": bids_uri(seed_mask, bids_dir), "Unidirectional": False, "AttemptsPerSeed": 1}
        ],
        "AcceptanceCriteria": _amplitude(parameters, sources, bids_dir),
    }
    content["StreamlinePropagation"] = {
        "Algorithm": dict(load("sidecars")["trackers"].get(track, {"Name": track, "Description": track, "URL": ""})),
        "AnglePerStep": degrees,
        "Interpolation": parameters.get("Interpolation", "Linear"),
        "InterpolationOrder": parameters.get("InterpolationOrder", 1),
        "MinimumRadius": radius,
        "IntegrationOrder": parameters.get("IntegrationOrder", 1),
        "Source": bids_uri(sources[0], bids_dir) if sources else None,
        "StepSize": step,
        "AttemptsPerVertex": 1,
    }
    content["StreamlineTermination"] = {
        "AnatomicalSegmentation": None,
        "Anisotropy": _amplitude(parameters, sources, bids_dir),
        "AnglePerStep": degrees,
        "MinimumRadius": radius,
        "Masks": masks,
        "SatisfiedAllAcceptance": False,
        "MaximumLength": parameters.get("MaximumLength"),
    }
    content["StreamlineAcceptanceCriteria"] = {
        "InclusionRegions": [],
        "OrderedInclusionRegions": [],
        "ExclusionRegions": [],
        "MinimumLength": parameters.get("MinimumLength"),
        "MaximumLength": parameters.get("MaximumLength"),
        "AnatomicalSegmentation": None,
    }
    content["StreamlineReconstructionDensity"] = {
        "Seeds": n_seeds,
        "GeneratedStreamlines": n_generated,
        "AcceptedStreamlines": n_accepted,
    }
    content["Parameters"] = {**parameters, "RandomSeed": random_seed}
    return content | _space(space, spatial_reference)


def generated_sidecar(
    track: str,
    parameters: Mapping[str, Any],
    sources: Sequence[Path | str],
    bids_dir: Path | None,
    *,
    mask: Path | str,
    generation: Mapping[str, Any],
    n_generated: int,
    n_accepted: int,
    random_seed: int | None = None,
) -> dict[str, Any]:
    """Sidecar of streamlines that a trained model drew whole, with every REQUIRED key of BEP046.

    The draft knows streamlines only as tracked from seeds. What has no counterpart is null or empty here: there are no
    seeds, no steps and no place where a line had to end. ``generation`` is ours: the key ``StreamlineGeneration``.
    """
    content = tractogram_sidecar(
        track, parameters, sources, bids_dir, seed_mask=mask, mask=mask,
        n_seeds=0, n_generated=n_generated, n_accepted=n_accepted, random_seed=random_seed,
    )  # fmt: skip
    content["Description"] = (
        "Streamlines generated whole by a trained model given the orientation field, not tracked from seeds; "
        "points in RAS+ millimetres"
    )
    content["StreamlineSeeding"] = {"Sources": [], "AcceptanceCriteria": []}
    content["StreamlinePropagation"] |= {"IntegrationOrder": None, "AttemptsPerVertex": None}
    content["StreamlineTermination"]["Masks"] = []
    return content | {"StreamlineGeneration": dict(generation)}


def compressed_sidecar(sources: Sequence[Path | str], compression: Mapping[str, Any]) -> dict[str, Any]:
    """Sidecar of a compressed tractogram: what wrote it, how large it is and how far its lines are from the truth."""
    text = "Streamlines as the codes of a trained codec, and as points where these are not near enough; tractode-codec decodes it"
    return _common(text, sources, None) | {"Compression": dict(compression)}


def _amplitude(
    parameters: Mapping[str, Any], sources: Sequence[Path | str], bids_dir: Path | None
) -> list[dict[str, Any]]:
    if parameters.get("CutoffAmplitude") is None:
        return []
    source = bids_uri(sources[0], bids_dir) if sources else None
    return [{"Metric": "amplitude", "Source": source, "Threshold": parameters["CutoffAmplitude"]}]


def preproc_sidecar(
    description: str,
    sources: Sequence[Path | str],
    bids_dir: Path | None,
    *,
    skull_stripped: bool = False,
    metadata: Mapping[str, Any] | None = None,
    space: str | None = None,
    spatial_reference: str | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Sidecar of a ``desc-preproc`` image; ``metadata`` is the raw sidecar, of which what stays true is kept.

    Further ``facts`` are written as they are, for instance ``GradientCheck={"Verdict": "PASS"}``.
    """
    content = _common(description, sources, bids_dir)
    content["SkullStripped"] = skull_stripped
    raw = metadata or {}
    content |= {key: raw[key] for key in load("sidecars")["inherited"] if key in raw}
    return content | facts | _space(space, spatial_reference)


def mask_sidecar(
    sources: Sequence[Path | str],
    bids_dir: Path | None,
    description: str = "Brain mask",
    *,
    space: str | None = None,
    spatial_reference: str | None = None,
) -> dict[str, Any]:
    """Sidecar of a brain mask."""
    return _common(description, sources, bids_dir) | {"Type": "Brain"} | _space(space, spatial_reference)


def dwiref_sidecar(
    sources: Sequence[Path | str], bids_dir: Path | None, description: str = "Mean of the b=0 volumes"
) -> dict[str, Any]:
    """Sidecar of a ``dwiref`` image."""
    return _common(description, sources, bids_dir)


def xfm_sidecar(
    from_: str,
    to: str,
    sources: Sequence[Path | str],
    bids_dir: Path | None,
    *,
    description: str = "",
    **facts: Any,
) -> dict[str, Any]:
    """Sidecar of a transform named ``from-<moving>_to-<fixed>``: it resamples ``from_`` onto ``to`` and maps points the other way.

    Further ``facts`` are written as they are, for instance ``FoldingCertificate={…}``.
    """
    text = (
        description
        or f"Resamples images of {from_} onto the grid of {to}; points of {to} (millimetres) are mapped to {from_}"
    )
    return _common(text, sources, bids_dir) | {"From": from_, "To": to, "Mode": "image"} | facts


def qc_sidecar(description: str, sources: Sequence[Path | str], bids_dir: Path | None, **facts: Any) -> dict[str, Any]:
    """A quality record kept as JSON (``desc-gradients_qc.json``)."""
    return _common(description, sources, bids_dir) | facts
