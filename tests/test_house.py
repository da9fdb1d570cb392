"""The house's own rules: floors import only downwards, files stay readable in one sitting, names say what is inside."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tractode

PACKAGE = Path(tractode.__file__).parent
ROOT = Path(__file__).parents[1]
LONGEST = 400
NAMELESS = {"utils", "util", "misc", "helpers", "helper", "common", "tools"}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_the_floors_import_only_what_stands_below_them(capfd: pytest.CaptureFixture[str]) -> None:
    """import-linter's contracts of ``pyproject.toml``, in this process; its cache stays out of the tree."""
    linter = pytest.importorskip("importlinter.cli", reason="import-linter is not installed")
    kept = (
        linter.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == linter.EXIT_STATUS_SUCCESS
    )
    assert kept, capfd.readouterr().out


def test_every_module_stands_on_a_floor() -> None:
    """A package that no layer names would be free to import anything."""
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    named = {name.strip() for layer in layers for name in layer.replace(":", "|").split("|")}
    present = {
        f"tractode.{path.stem}"
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").exists())
    }
    assert present - named <= {"tractode.__init__", "tractode.__main__"}
    assert named <= present


def test_no_file_is_longer_than_one_sitting() -> None:
    lengths = {str(p.relative_to(PACKAGE)): len(p.read_text(encoding="utf-8").splitlines()) for p in _modules()}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_no_module_is_named_after_nothing() -> None:
    assert [str(path) for path in _modules() if path.stem in NAMELESS or path.parent.name in NAMELESS] == []


def test_every_file_says_in_its_first_line_what_it_is() -> None:
    without = [p for p in _modules() if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert [str(path.relative_to(PACKAGE)) for path in without] == []


def test_every_registered_method_has_a_page_of_theory() -> None:
    from tractode.generative import CODECS
    from tractode.models import MODELS
    from tractode.registration import METRICS
    from tractode.tracking import TRACKERS

    pages = {path.stem for path in (ROOT / "docs" / "theory").glob("*.md")}
    modules = [registry[name].__module__ for registry in (MODELS, TRACKERS, METRICS, CODECS) for name in registry]
    # The mean of squares needs no theory.
    assert {module.rpartition(".")[2] for module in modules} - {"mse"} <= pages
