"""Two participants: two runs of opposite encoding with two T1w images, and a lone run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.bids.raw_dataset import add_run, write


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "a data set é#%"
    write(root / "dataset_description.json", json.dumps({"Name": "x", "BIDSVersion": "1.10.0", "DatasetType": "raw"}))
    add_run(root, "sub-01_dir-AP")
    add_run(root, "sub-01_dir-PA", sidecar={"PhaseEncodingDirection": "j"})
    write(root / "sub-01/anat/sub-01_T1w.nii.gz")
    write(root / "sub-01/anat/sub-01_acq-nonorm_T1w.nii.gz")
    add_run(root, "sub-02")
    return root
