"""Tables that are read off the source when the documentation is built, so that they cannot be out of date.

``error-table``: every stable error ID, its exit code, and what it says. ``registry-table``: what a registry lists.
"""

import ast
from importlib import import_module
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import tractode
from tractode import errors


def error_ids(package: Path) -> dict[str, tuple[str, str]]:
    """ID → (class of the error, what it says, with ``…`` where a value is filled in)."""
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            ids = [k.value.value for k in node.keywords if k.arg == "id" and isinstance(k.value, ast.Constant)]
            if ids and str(ids[0]).startswith("E-"):
                name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
                text = _text(node.args[0]) if node.args else next((_text(k.value) for k in node.keywords if k.arg == "found"), "")
                found.setdefault(ids[0], (name, text))
    return found


def _text(node: ast.expr) -> str:
    """The words of a string or f-string."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…"


class ErrorTable(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        rows = []
        for id_, (name, text) in sorted(error_ids(Path(tractode.__file__).parent).items()):
            code = getattr(getattr(errors, name, None), "exit_code", "")
            rows.append((id_, str(code), text))
        return [table(("ID", "exit code", "what it says"), rows, (25, 8, 67))]


class RegistryTable(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        registry = getattr(import_module(module), name)
        rows = [(key, registry[key].__name__, (import_module(registry[key].__module__).__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")) for key in registry]
        return [table(("name", "class", "what it is"), rows, (12, 18, 70))]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], widths: tuple[int, ...]) -> nodes.table:
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=width) for width in widths]
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *(_row(row) for row in rows))
    return nodes.table("", group)


def _row(cells: tuple[str, ...]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", cell)) for cell in cells))


def setup(app):
    app.add_directive("error-table", ErrorTable)
    app.add_directive("registry-table", RegistryTable)
    return {"parallel_read_safe": True}
