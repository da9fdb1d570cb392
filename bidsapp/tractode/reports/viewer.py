"""The scripts of a report: which ones a page needs, and their hashes for its content security policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

MARK = 'class="viewer3d"'  # in the fragments that need the three-dimensional viewer


def participant_scripts(fragments: Sequence[str]) -> list[str]:
    """plotly and the viewer if any fragment shows streamlines in three dimensions, else nothing."""
    if not any(MARK in fragment for fragment in fragments):
        return []
    return [_plotly(), resource("viewer.js")]


def group_scripts() -> list[str]:
    return [resource("sort.js")]


def script_sources(scripts: Sequence[str]) -> str:
    """The ``script-src`` of a page that may run exactly these inline scripts: nothing injected runs."""
    return " ".join(_source(script) for script in scripts) or "'none'"


def _source(script: str) -> str:
    # The parser of the browser turns CR LF into LF before it hashes.
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def resource(name: str) -> str:
    """A text file of this package."""
    return (files("tractode.reports") / name).read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs().replace("\r\n", "\n")
    if "</script" in script.lower():
        raise RuntimeError("The plotly bundle holds a closing script tag and cannot be embedded.")
    return script
