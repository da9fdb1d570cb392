"""Templates: the built-in one, TemplateFlow's, and what is said when one is not to be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tractode.bids.templates import BUILT_IN, SpaceSpec, find_template, load_template, parse_output_spaces
from tractode.errors import UsageError


def _ask(home: Path, *specs: str) -> list[str]:
    """What `find_template` answers to each in a fresh process: TemplateFlow reads its folder's place when it is imported."""
    code = (
        "import sys\nfrom tractode.bids.templates import find_template, load_template\n"
        "from tractode.errors import TractodeError\n"
        "for spec in sys.argv[1:]:\n"
        "    try:\n"
        "        t = find_template(spec); i = load_template(t, 'b0')\n"
        "        names = [p.name for p in t.paths]\n"
        "        print('>', t.resolution, *names, i.contrast, tuple(i.image.grid.shape), bool(i.mask.values.any()))\n"
        "    except TractodeError as error:\n        print('>', error.exit_code, error)\n"
    )
    # A proxy that refuses at once: no network, whatever the machine has.
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **proxies, "no_proxy": "", "TEMPLATEFLOW_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *specs]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [line.removeprefix("> ") for line in done.stdout.splitlines() if line.startswith("> ")]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("MNI152NLin2009cAsym", SpaceSpec("MNI152NLin2009cAsym")),
        ("MNI152NLin2009cAsym:res-2", SpaceSpec("MNI152NLin2009cAsym", 2)),
        ("MNI152NLin2009cAsym:res-native", SpaceSpec("MNI152NLin2009cAsym")),
        ("MNIInfant:cohort-3:res-01", SpaceSpec("MNIInfant", 1, "3")),
    ],
)
def test_output_spaces(spec: str, expected: SpaceSpec) -> None:
    assert parse_output_spaces([spec, spec]) == (expected,)


@pytest.mark.parametrize("spec", ["", ":res-2", "A:res-", "A:res-x", "A:den-32k", "A:res-1:res-2", "../A", "A B"])
def test_malformed_spaces(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_output_spaces([spec])
    assert caught.value.exit_code == 64


def test_the_built_in_template_needs_nothing() -> None:
    template = find_template(f"{BUILT_IN}:res-4")
    images = load_template(template, "b0")
    assert template.is_builtin
    assert all(path.is_file() for path in template.paths)
    assert images.contrast == "T1w"
    assert images.mask.values.dtype == torch.bool
    assert images.image.grid.shape == images.mask.grid.shape
    assert images.image.grid.space == BUILT_IN
    # About 1.9 litres of brain, whatever the voxel.
    assert images.mask.values.sum().item() * 0.064 == pytest.approx(1.9e3, rel=0.15)


def test_templateflow_files_names_and_resolutions(test_data: Path) -> None:
    found, unknown, lacking = _ask(
        test_data / "templateflow", "MNI152NLin2009cAsym", "MNI152NLin2009Asym", "MNI152NLin2009cAsym:res-7"
    )
    assert found == (
        "2 tpl-MNI152NLin2009cAsym_res-02_T1w.nii.gz tpl-MNI152NLin2009cAsym_res-02_desc-brain_mask.nii.gz "
        "tpl-MNI152NLin2009cAsym_res-02_T2w.nii.gz T2w (97, 115, 97) True"
    )
    assert unknown.startswith("69 [E-TPL-UNKNOWN]")
    assert "MNI152NLin2009cAsym" in unknown
    assert lacking.startswith("69 [E-TPL-LACKS]")


def test_a_template_that_was_not_fetched_names_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "tpl-Demo"
    folder.mkdir()
    (folder / "template_description.json").write_text('{"Identifier": "Demo", "res": {"02": {}}}')
    for name in ("res-02_T1w", "res-02_desc-brain_mask"):
        (folder / f"tpl-Demo_{name}.nii.gz").touch()  # TemplateFlow's placeholders
    (answer,) = _ask(tmp_path, "Demo")
    assert answer.startswith("69 [E-TPL-OFFLINE]")
    assert "api.get('Demo', resolution=2" in answer
