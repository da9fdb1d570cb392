"""Sidecars hold what the drafts require, and mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tractode.bids import sidecar
from tractode.contracts import MapSpec

RAW = Path("/data/raw")
SOURCE = [RAW / "sub-01/dwi/sub-01_dwi.nii.gz"]


def _map(components: str, **options) -> dict:
    spec = MapSpec("x", "Something", "mm^2/s", components)
    return sidecar.map_sidecar(spec, "csd", {"FitMethod": "ols"}, SOURCE, RAW, **options)


def test_scalar_maps_carry_no_orientation() -> None:
    content = _map("scalar")
    assert "OrientationEncoding" not in content
    assert "NonNegativity" not in content
    assert content["Units"] == "mm^2/s"
    assert content["Model"]["Parameters"] == {"FitMethod": "ols"}
    assert content["Sources"] == ["bids:raw:sub-01/dwi/sub-01_dwi.nii.gz"]


def test_tensor_and_vector_maps_are_in_the_scanner_frame() -> None:
    tensor, vector = _map("tensor")["OrientationEncoding"], _map("unit3vector")["OrientationEncoding"]
    assert (tensor["Type"], tensor["Reference"], tensor["TensorRank"], tensor["EncodingAxis"]) == (
        "tensor",
        "xyz",
        2,
        3,
    )
    assert (vector["Type"], vector["Reference"], vector["AntipodalSymmetry"]) == ("unit3vector", "xyz", True)


def test_harmonic_maps_name_basis_and_degree_in_both_spellings() -> None:
    content = _map("sh", sh_order=8, response=[[1.0, -0.5], [0.5, -0.2]])
    encoding = content["OrientationEncoding"]
    assert encoding["SphericalHarmonicBasis"] == encoding["SphericalHarmonicsBasis"] == "mrtrix3"
    assert encoding["SphericalHarmonicDegree"] == encoding["SphericalHarmonicsDegree"] == 8
    assert content["ResponseFunction"] == {"Type": "zsh", "Coefficients": [[1.0, -0.5], [0.5, -0.2]]}
    assert content["NonNegativity"] == "constrained"
    with pytest.raises(ValueError, match="sh_order"):
        _map("sh")
    with pytest.raises(ValueError, match="colour"):
        _map("colour")


def test_one_call_does_not_change_the_next() -> None:
    _map("sh", sh_order=8)
    assert "SphericalHarmonicDegree" not in _map("tensor")["OrientationEncoding"]
    assert _map("sh", sh_order=6)["OrientationEncoding"]["SphericalHarmonicDegree"] == 6


def test_only_unusual_spaces_need_a_reference() -> None:
    assert "SpatialReference" not in _map("scalar", space="MNI152NLin2009aSym")
    assert "SpatialReference" in _map("scalar", space="ACPC")


def test_sources_in_input_and_output() -> None:
    assert sidecar.bids_uri(RAW / "dwi.json", RAW) == "bids:raw:dwi.json"
    assert sidecar.bids_uri(Path("/out/sub-01/dwi/x.nii.gz"), RAW) == "bids::sub-01/dwi/x.nii.gz"
    assert sidecar.bids_uri(Path("/home/sub-9/out/sub-01/dwi/x.nii.gz"), None) == "bids::sub-01/dwi/x.nii.gz"


def test_tractogram_has_every_required_key_of_bep046() -> None:
    parameters = {
        "StepSize": 0.3,
        "MaximumAngle": 60.0,
        "CutoffAmplitude": 0.1,
        "MinimumLength": 15.0,
        "MaximumLength": 300.0,
    }
    content = sidecar.tractogram_sidecar(
        "sdstream", parameters, SOURCE, RAW, seed_mask=SOURCE[0], mask=SOURCE[0], n_seeds=9, n_generated=8, n_accepted=7
    )
    required = {
        "StreamlineSeeding": ("Sources", "AcceptanceCriteria"),
        "StreamlinePropagation": (
            "Algorithm", "AnglePerStep", "Interpolation", "InterpolationOrder", "MinimumRadius", "IntegrationOrder",
            "Source", "StepSize", "AttemptsPerVertex",
        ),
        "StreamlineTermination": (
            "AnatomicalSegmentation", "Anisotropy", "AnglePerStep", "MinimumRadius", "Masks", "SatisfiedAllAcceptance",
            "MaximumLength",
        ),
        "StreamlineAcceptanceCriteria": (
            "InclusionRegions", "OrderedInclusionRegions", "ExclusionRegions", "MinimumLength", "MaximumLength",
            "AnatomicalSegmentation",
        ),
    }  # fmt: skip
    for section, keys in required.items():
        assert set(content[section]) == set(keys)
    assert content["StreamlineReconstructionDensity"] == {
        "Seeds": 9,
        "GeneratedStreamlines": 8,
        "AcceptedStreamlines": 7,
    }
    # An equilateral triangle: chords of 0.3 mm that turn by 60° lie on a circle of radius 0.3 mm.
    assert content["StreamlinePropagation"]["MinimumRadius"] == pytest.approx(0.3)
    assert content["StreamlineTermination"]["MaximumLength"] == 300.0


def test_preprocessed_images_keep_what_stays_true_and_nothing_private() -> None:
    raw = {"EchoTime": 0.1, "PatientName": "x", "PhaseEncodingDirection": "j"}
    content = sidecar.preproc_sidecar("as acquired", SOURCE, RAW, metadata=raw, GradientCheck={"Verdict": "PASS"})
    assert content["SkullStripped"] is False
    assert content["EchoTime"] == 0.1
    assert content["GradientCheck"] == {"Verdict": "PASS"}
    assert "PatientName" not in content


def test_transforms_say_their_direction() -> None:
    content = sidecar.xfm_sidecar("T1w", "MNI152NLin2009cAsym", SOURCE, RAW, FoldingCertificate={"n": 0})
    assert (content["From"], content["To"], content["Mode"]) == ("T1w", "MNI152NLin2009cAsym", "image")
    assert content["FoldingCertificate"] == {"n": 0}
