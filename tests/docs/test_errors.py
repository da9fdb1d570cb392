"""Error IDs: searchable in the source, one error class each, and all of them in the table of ``docs/errors.md``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import tractode
from tractode import errors

PACKAGE = Path(tractode.__file__).parent
EXTENSION = Path(__file__).parents[2] / "docs" / "_ext"
KINDS = frozenset(name for name, kind in vars(errors).items() if hasattr(kind, "exit_code"))


def _load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXTENSION / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def error_ids() -> Iterator[ModuleType]:
    """One for all tests here: it keeps what it has parsed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield _load("error_ids", monkeypatch)


def test_every_id_of_the_source_is_found_where_its_error_is_made(error_ids: ModuleType) -> None:
    found = {use.id for use in error_ids.uses(PACKAGE, KINDS)}
    assert len(found) > 100
    # The stand-in for a record without an ID is no error that a user could meet.
    assert error_ids.literals(PACKAGE) - found <= {"E-UNKNOWN"}


def test_no_id_is_put_together_from_pieces(error_ids: ModuleType) -> None:
    assert error_ids.built(PACKAGE) == []


def test_an_id_means_one_kind_of_error_wherever_it_is_used(error_ids: ModuleType) -> None:
    kinds: dict[str, set[str]] = {}
    for use in error_ids.uses(PACKAGE, KINDS):
        kinds.setdefault(use.id, set()).add(use.kind)
    assert {id_: sorted(found) for id_, found in kinds.items() if len(found) != 1 or "" in found} == {}


def test_every_id_given_to_an_error_has_the_stated_form(error_ids: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        'raise UsageError("text", id="e-lower")\nraise UsageError("text", id="E-GOOD-1")\n'
    )
    assert [use.id for use in error_ids.uses(tmp_path, KINDS)] == ["E-GOOD-1"]
    assert error_ids.ill_formed(tmp_path, KINDS) == ["module.py:1: e-lower"]
    assert error_ids.ill_formed(PACKAGE, KINDS) == []


def test_the_table_of_the_documentation_holds_every_id(error_ids: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx", reason="Sphinx is not installed")
    rows = _load("source_tables", monkeypatch).error_rows()
    found = error_ids.uses(PACKAGE, KINDS)
    assert [row[0] for row in rows] == sorted({use.id for use in found})
    codes = {use.id: str(vars(errors)[use.kind].exit_code) for use in found}
    assert {id_: code for id_, code, _ in rows} == codes
    assert all(text.strip() for _, _, text in rows)
