"""The floor is cheap to stand on: importing it loads no index, no template library and no tensors."""

from __future__ import annotations

import subprocess
import sys

from tractode.bids.index import pybids_config
from tractode.bids.spec_files import load


def test_names_sidecars_and_discovery_import_nothing_heavy() -> None:
    code = (
        "import sys, tractode.bids.query, tractode.bids.names, tractode.bids.sidecar, tractode.bids.lock, tractode.bids.dataset\n"
        "print([name for name in ('torch', 'bids', 'nibabel', 'templateflow', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_facts_lie_in_the_package() -> None:
    assert {"entities", "suffixes", "derived"} <= load("entities").keys()
    for name in ("sidecars", "dataset", "references"):
        assert load(name)
    assert pybids_config().is_file()
