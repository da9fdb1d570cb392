"""Every stable error ID of a package with its error class and what it says, read off the source without running it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ID = re.compile(r"E(-[A-Z0-9]+)+")
_FEWEST_LETTERS = 8  # a text of fewer letters is only made of values that are filled in


@dataclass(frozen=True)
class Use:
    """One place where an error is made. ``text`` has ``…`` where a value is filled in; ``kind`` is the error class."""

    id: str
    kind: str
    text: str
    place: str


def uses(package: Path, kinds: frozenset[str]) -> list[Use]:
    """All uses in the package's files; ``kinds`` are the names of its error classes."""
    found = []
    for path in sorted(package.rglob("*.py")):
        tree = _tree(path)
        makers = _makers(tree, kinds)
        for function, call in _calls(tree):
            for id_ in _ids(call):
                # ``attempt(_refuse, …)`` hands the helper on instead of calling it.
                names = [ast.unparse(part) for part in (call.func, *call.args)]
                known = [name if name in kinds else makers[name] for name in names if name in kinds or name in makers]
                kind = known[0] if known else makers.get(function, "")
                found.append(Use(id_, kind, _message(call), f"{path.relative_to(package)}:{call.lineno}"))
    return found


def literals(package: Path) -> set[str]:
    """Every string of the source that is an error ID as a whole."""
    strings = (
        node.value
        for path in package.rglob("*.py")
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return {text for text in strings if ID.fullmatch(text)}


def built(package: Path) -> list[str]:
    """Places where an ID is put together from pieces, so that nobody can search for it."""
    return [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.JoinedStr)
        and node.values
        and isinstance(node.values[0], ast.Constant)
        and str(node.values[0].value).startswith("E-")
    ]


def ill_formed(package: Path, kinds: frozenset[str]) -> list[str]:
    """Places where an error class is given an ID that is not of the form ``E-…``."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        for _, call in _calls(_tree(path)):
            given = [k.value for k in call.keywords if k.arg == "id" and isinstance(k.value, ast.Constant)]
            if ast.unparse(call.func) in kinds:
                ids = [str(value.value) for value in given if not ID.fullmatch(str(value.value))]
                wrong += [f"{path.relative_to(package)}:{call.lineno}: {id_}" for id_ in ids]
    return wrong


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _calls(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Every call with the name of the function it stands in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            yield function, node
        inside = node.name if isinstance(node, ast.FunctionDef) else function
        yield from _calls(node, inside)


def _makers(tree: ast.AST, kinds: frozenset[str]) -> dict[str, str]:
    """Function → the first error class named in its body: many errors are made by a helper of their module."""
    made = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = (inner for statement in node.body for inner in ast.walk(statement))
            names = [inner.id for inner in body if isinstance(inner, ast.Name) and inner.id in kinds]
            if names:
                made[node.name] = names[0]
    return made


def _ids(call: ast.Call) -> list[str]:
    # An ID may be chosen on the spot (``id=A if … else B``), or handed to a helper as a plain argument.
    if isinstance(call.func, ast.Attribute) and call.func.attr == "get":
        return []
    chosen = [node for keyword in call.keywords if keyword.arg == "id" for node in ast.walk(keyword.value)]
    strings = [node.value for node in [*call.args, *chosen] if isinstance(node, ast.Constant)]
    return [text for text in strings if isinstance(text, str) and ID.fullmatch(text)]


def _message(call: ast.Call) -> str:
    """The words of what was found; where they are all values, what was needed."""
    named = {keyword.arg: text_of(keyword.value) for keyword in call.keywords}
    texts = [text for text in map(text_of, call.args) if not ID.fullmatch(text)]
    said = named.get("found", "") or next((text for text in texts if _letters(text)), texts[0] if texts else "…")
    if _letters(said):
        return said
    needed = named.get("needed") or named.get("fix") or ""
    return f"{said} ({needed})" if needed else said


def _letters(text: str) -> bool:
    return sum(character.isalpha() for character in text) >= _FEWEST_LETTERS


def text_of(node: ast.expr) -> str:
    """The words of a string expression, ``…`` for everything else."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return "…"
