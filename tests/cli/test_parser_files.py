"""Files that options name: queries of pybids, and settings that the command line overrides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tractode.cli.parser import parse
from tractode.errors import ConfigurationError, MissingInputError, TractodeError
from tractode.settings import Settings

BASE = ["/data/bids", "/data/out", "participant"]


def test_filter_file(tmp_path: Path) -> None:
    path = tmp_path / "filters.json"
    path.write_text(json.dumps({"dwi": {"run": None, "acquisition": "*"}}))
    assert parse([*BASE, "--bids-filter-file", str(path)]).settings.bids_filters == {
        "dwi": {"run": None, "acquisition": "*"}
    }


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{,}", ConfigurationError),
        ("[1]", ConfigurationError),
        ('{"dwi": 3}', ConfigurationError),
        (None, MissingInputError),
    ],
)
def test_bad_filter_files(tmp_path: Path, text: str | None, kind: type[TractodeError]) -> None:
    path = tmp_path / "filters.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(kind):
        parse([*BASE, "--bids-filter-file", str(path)])


def test_config_file_is_overridden_by_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'bids_dir = "/data/bids"\noutput_dir = "/elsewhere"\nanalysis_level = "subject"\nn_streamlines = 7\nrandom_seed = 5\nparticipants = ["sub-01"]\nb0_threshold = 50\n'
    )
    settings = parse(["--config-file", str(path), "--n-streamlines", "9"]).settings
    assert (settings.n_streamlines, settings.random_seed, settings.participants, settings.b0_threshold) == (
        9,
        5,
        ("01",),
        50.0,
    )
    assert settings.analysis_level == "participant"
    settings = parse(["/a", "/b", "group", f"--config-file={path}"]).settings
    assert (settings.bids_dir, settings.output_dir, settings.analysis_level) == (Path("/a"), Path("/b"), "group")


def test_saved_settings_are_a_config_file(tmp_path: Path) -> None:
    settings = parse(
        [*BASE, "--participant-label", "01", "--mem", "3G", "--no-tracking", "--debug", "workdir"]
    ).settings
    path = tmp_path / "settings.toml"
    path.write_text(settings.to_toml())
    assert parse(["--config-file", str(path)]).settings == settings
    assert Settings.from_toml(settings.to_toml()) == settings


@pytest.mark.parametrize(
    "text",
    [
        "nonsense = 1",
        "nprocs = 'two'",
        "nprocs = 0",
        "= 3",
        "models = ['noddi9']",
        "participants = ['../x']",
        "device = 'gpu'",
        "anat_modality = 'T3w'",
        "sloppy = 1",
    ],
)
def test_bad_config_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        parse([*BASE, "--config-file", str(path)])
    assert str(path) in str(caught.value)


def test_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        parse([*BASE, "--config-file", str(tmp_path / "none.toml")])
