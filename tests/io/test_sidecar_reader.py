"""Sidecars: strict JSON, the fields that we use checked, and the place of the fault named."""

from __future__ import annotations

import pytest

from tractode.errors import InputDataError, MissingInputError
from tractode.io.sidecar_reader import read_sidecar


def save(path, content: bytes):
    path.write_bytes(content)
    return path


def test_a_good_sidecar(tmp_path):
    path = save(
        tmp_path / "x.json", b'\xef\xbb\xbf{"EchoTime": 0.09, "PhaseEncodingDirection": "j-", "Other": [1, null]}'
    )
    assert read_sidecar(path) == {"EchoTime": 0.09, "PhaseEncodingDirection": "j-", "Other": [1, None]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": 1,\n "b": 2,}', "line 2, column"),
        (b"{", "line 1, column 2"),
        ('{"a": "37 °C"}'.encode("latin-1"), "byte 10 is not UTF-8"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b'{"a": 1, "b": 2, "a": 3}', "the field a occurs twice"),
        (b"[1, 2]", "holds a list"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_invalid_json(tmp_path, content, says):
    with pytest.raises(InputDataError, match=says) as caught:
        read_sidecar(save(tmp_path / "x.json", content))
    assert caught.value.id == "E-JSON-INVALID"
    assert "x.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"EchoTime": "0.05"}', 'EchoTime is "0.05".*as a number'),
        (b'{"TotalReadoutTime": null}', "TotalReadoutTime is null"),
        (b'{"RepetitionTime": true}', "RepetitionTime is true"),
        (b'{"PhaseEncodingDirection": "AP"}', "one of i, j, k, i-, j-, k-"),
        (b'{"SliceTiming": [0, "1"]}', "a list of numbers"),
        (b'{"IntendedFor": [1]}', "text or a list of texts"),
    ],
)
def test_fields_that_we_use(tmp_path, content, says):
    with pytest.raises(InputDataError, match=says) as caught:
        read_sidecar(save(tmp_path / "x.json", content))
    assert caught.value.id == "E-JSON-FIELD"


def test_empty_and_missing(tmp_path):
    with pytest.raises(InputDataError, match="0 bytes"):
        read_sidecar(save(tmp_path / "x.json", b""))
    with pytest.raises(MissingInputError, match="does not exist"):
        read_sidecar(tmp_path / "y.json")
