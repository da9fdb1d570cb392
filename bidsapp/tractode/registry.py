"""A read-only mapping from a name to a class that is imported on first use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any


class Registry(Mapping[str, Any]):
    """Name → class, resolved lazily so that listing the choices imports nothing.

    >>> Registry("error", {"usage": "tractode.errors:UsageError"})["usage"].__name__
    'UsageError'
    """

    def __init__(self, noun: str, entries: Mapping[str, str]) -> None:
        self.noun = noun
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        if name not in self._entries:
            raise KeyError(f"There is no {self.noun} named {name!r}; choose from {', '.join(self._entries)}.")
        module, _, attribute = self._entries[name].partition(":")
        return getattr(import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.noun}: {', '.join(self._entries)})"
