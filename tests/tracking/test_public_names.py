"""What ``from tractode.tracking import …`` offers is there, and is not hidden by a file of the same name."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from tractode import tracking
from tractode.tracking import _PUBLIC


@pytest.mark.parametrize("name", list(_PUBLIC))
def test_every_name_is_the_thing_itself(name: str) -> None:
    import_module(_PUBLIC._entries[name].partition(":")[0])  # a file of that name would now stand in its place
    assert getattr(tracking, name) is _PUBLIC[name]


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        tracking.Nonsense  # noqa: B018


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    code = "import sys, tractode.tracking; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
