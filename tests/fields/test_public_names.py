"""What ``from tractode import …`` offers is there, and costs nothing until it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tractode


@pytest.mark.parametrize("name", list(tractode._PUBLIC))
def test_every_name_is_the_thing_itself(name: str) -> None:
    assert getattr(tractode, name).__name__ == name


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    code = "import sys, tractode; sys.exit('torch' in sys.modules or hasattr(tractode, 'nonsense'))"
    subprocess.run([sys.executable, "-c", code], check=True)
