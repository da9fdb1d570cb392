"""Tables that are read off the source when the documentation is built, so that they cannot be out of date.

``error-table``: every stable error ID, its exit code, and what it says. ``option-table``: the command line.
``registry-table``: what a registry lists. ``model-table``: what diffusion models need and give, ``map-table`` their maps.
"""

from importlib import import_module
from pathlib import Path

import error_ids
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import tractode
from tractode import errors
from tractode.cli.parser import build_parser


def error_rows() -> list[tuple[str, str, str]]:
    """ID, exit code and the different texts of every error of the package."""
    kinds = {name: kind.exit_code for name, kind in vars(errors).items() if hasattr(kind, "exit_code")}
    found: dict[str, list[error_ids.Use]] = {}
    for use in error_ids.uses(Path(tractode.__file__).parent, frozenset(kinds)):
        found.setdefault(use.id, []).append(use)
    rows = []
    for id_, places in sorted(found.items()):
        codes = sorted({str(kinds.get(use.kind, "")) for use in places})
        rows.append((id_, ", ".join(codes), " / ".join(dict.fromkeys(use.text for use in places))))
    return rows


class ErrorTable(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return [table(("ID", "exit code", "what it says"), error_rows(), (25, 8, 67))]


class OptionTable(SphinxDirective):
    """Every option of ``tractode`` with all its spellings, group by group, as its parser has them."""

    def run(self) -> list[nodes.Node]:
        rows = []
        for group in build_parser()._action_groups:
            options = [action for action in group._group_actions if action.option_strings]
            if options:
                rows.append((str(group.title), "", ""))
            for action in options:
                value = action.metavar if isinstance(action.metavar, str) else ""
                rows.append(("", f"{', '.join(action.option_strings)} {value}".strip(), action.help or ""))
        return [table(("", "option", "what it does"), rows, (12, 38, 50))]


class RegistryTable(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        registry = getattr(import_module(module), name)
        rows = [
            (
                key,
                registry[key].__name__,
                (import_module(registry[key].__module__).__doc__ or "").strip().split("\n\n")[0].replace("\n", " "),
            )
            for key in registry
        ]
        return [table(("name", "class", "what it is"), rows, (12, 18, 70))]


class ModelTable(SphinxDirective):
    """What every diffusion model needs of a gradient table, and the maps it writes, as its class declares them."""

    def run(self) -> list[nodes.Node]:
        from tractode.models import MODELS

        rows = []
        for name in MODELS:
            kind = MODELS[name]
            maps = ", ".join(spec.param for spec in kind.maps)
            rows.append((name, kind.label, kind.needs.words, maps))
        return [table(("name", "label in files", "needs at least", "maps"), rows, (12, 12, 40, 36))]


class MapTable(SphinxDirective):
    """Every map of every diffusion model, as its class declares them."""

    def run(self) -> list[nodes.Node]:
        from tractode.models import MODELS

        rows = [
            (f"{MODELS[name].label}, {spec.param}", f"{spec.description} ({spec.components})", spec.units)
            for name in MODELS
            for spec in MODELS[name].maps
        ]
        return [table(("model, param", "values", "units"), rows, (25, 60, 15))]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], widths: tuple[int, ...]) -> nodes.table:
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=width) for width in widths]
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *(_row(row) for row in rows))
    return nodes.table("", group)


def _row(cells: tuple[str, ...]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", _paragraph(cell)) for cell in cells))


def _paragraph(cell: str) -> nodes.paragraph:
    """Options and IDs are what one types or searches for: set as code."""
    if cell.startswith(("-", "E-")):
        return nodes.paragraph("", "", nodes.literal(text=cell))
    return nodes.paragraph("", cell)


def setup(app):
    app.add_directive("error-table", ErrorTable)
    app.add_directive("option-table", OptionTable)
    app.add_directive("registry-table", RegistryTable)
    app.add_directive("model-table", ModelTable)
    app.add_directive("map-table", MapTable)
    return {"parallel_read_safe": True}
