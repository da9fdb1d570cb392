"""The output as a BIDS derivative dataset: its description, what validators should pass over, and whose it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tractode
from tractode.bids.sidecar import RAW
from tractode.bids.spec_files import load
from tractode.errors import ConfigurationError, OutputError
from tractode.io.atomic import write_text

NAME = "tractode"


def check_output(output_dir: Path, bids_dir: Path | None) -> None:
    """Whether results of this version may go into a folder; nothing is written.

    Raises
    ------
    OutputError
        The folder is the input, lies inside it, or holds another app's dataset.
    ConfigurationError
        It holds results of another version of ours.
    """
    if bids_dir is not None and output_dir.resolve().is_relative_to(bids_dir.resolve()):
        raise OutputError(
            "The output folder is the input folder or lies inside it",
            id="E-OUT-OUTPUT-IN-INPUT",
            path=output_dir,
            needed="a folder of its own: input is never written to",
            fix="choose a folder outside the dataset",
        )
    path = output_dir / "dataset_description.json"
    if not path.exists():
        if any(output_dir.glob("sub-*/")):
            raise _foreign(output_dir, "participants' folders without a dataset_description.json")
        return
    try:
        makers = json.loads(path.read_text(encoding="utf-8"))["GeneratedBy"]
        maker = {str(key): str(value) for key, value in makers[0].items()}
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _foreign(output_dir, "a dataset_description.json that does not say what made it") from None
    if maker.get("Name") != NAME:
        raise _foreign(output_dir, f"a dataset made by {maker.get('Name')}")
    if maker.get("Version") != tractode.__version__:
        raise ConfigurationError(
            f"The output was made by tractode {maker.get('Version')}, this is {tractode.__version__}",
            id="E-OUT-VERSION",
            path=output_dir,
            needed="one version per output folder",
            fix="use a new output folder, or run the version that made this one",
        )


def write_description(
    output_dir: Path,
    bids_dir: Path | None,
    *,
    container: Mapping[str, str] | None = None,
) -> None:
    """Write ``dataset_description.json`` and ``.bidsignore`` unless they stand there already, byte for byte.

    Many single-participant jobs may do so at once: each writes the whole file under another name and renames it.

    Parameters
    ----------
    container
        ``{"Type": "docker", "Tag": "…"}`` where the app runs in one.

    Raises
    ------
    OutputError, ConfigurationError
        As `check_output`.
    """
    check_output(output_dir, bids_dir)
    description = json.dumps(_description(bids_dir, container), indent=2, ensure_ascii=False) + "\n"
    _write_once(output_dir / "dataset_description.json", description)
    _write_once(output_dir / ".bidsignore", "\n".join(load("dataset")["bidsignore"]) + "\n")


def _description(bids_dir: Path | None, container: Mapping[str, str] | None) -> dict[str, Any]:
    facts = load("dataset")
    maker: dict[str, Any] = {"Name": NAME, "Version": tractode.__version__, "Description": facts["description"]}
    if container:
        maker["Container"] = dict(container)
    content = {
        "Name": facts["name"],
        "BIDSVersion": facts["bids_version"],
        "DatasetType": "derivative",
        "GeneratedBy": [maker],
        "HowToAcknowledge": facts["how_to_acknowledge"],
    }
    if bids_dir is not None:
        uri = bids_dir.resolve().as_uri()
        content["SourceDatasets"] = [{"URL": uri, **_identifiers(bids_dir)}]
        content["DatasetLinks"] = {RAW: uri}
    return content


def _identifiers(bids_dir: Path) -> dict[str, str]:
    """DOI and version of the input, where its description gives them."""
    try:
        raw = json.loads((bids_dir / "dataset_description.json").read_text(encoding="utf-8-sig"))
        found = {"DOI": raw.get("DatasetDOI"), "Version": raw.get("Version")}
    except (OSError, ValueError, AttributeError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str) and value}


def _write_once(path: Path, text: str) -> None:
    try:
        if path.read_bytes() == text.encode():
            return
    except OSError:
        pass  # absent: written below
    write_text(path, text)


def _foreign(output_dir: Path, what: str) -> OutputError:
    return OutputError(
        f"The output folder holds {what}",
        id="E-OUT-FOREIGN",
        path=output_dir,
        needed="an empty folder, or one made by tractode",
        fix="choose another output folder",
    )
