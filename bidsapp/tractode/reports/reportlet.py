"""A reportlet: one picture or fragment of the report with its title and caption, and how it is kept on disk."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["webp", "png", "html"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Reportlet:
    """One item of a report.

    ``name`` is the file's stem in ``sub-X/figures``, ``section`` a key of ``reports-spec.yml``, ``run`` the run it
    belongs to ("" for the participant). ``title``, ``caption`` and ``alt`` are plain text: the assembler escapes them.
    ``body`` is an encoded picture, or for ``html`` a fragment made by this package whose own texts are escaped.
    """

    name: str
    section: str
    title: str
    caption: str
    body: bytes | str
    kind: Kind = "webp"
    run: str = ""
    alt: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"A reportlet's name becomes a file name and must match {_NAME.pattern}; got {self.name!r}."
            )
        if isinstance(self.body, bytes) is (self.kind == "html"):
            raise ValueError(f"A reportlet of kind {self.kind!r} cannot hold {type(self.body).__name__}.")

    @property
    def filename(self) -> str:
        return f"{self.name}.{self.kind}"

    def to_files(self) -> dict[str, bytes]:
        """File name → content: the body, and a JSON file with everything else."""
        facts = {key: getattr(self, key) for key in ("name", "section", "title", "caption", "kind", "run", "alt")}
        body = self.body if isinstance(self.body, bytes) else self.body.encode()
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        return {self.filename: body, f"{self.name}.json": text.encode()}

    @classmethod
    def from_files(cls, facts: bytes | str, body: bytes) -> Reportlet:
        """The inverse of `to_files`."""
        known = json.loads(facts)
        return cls(body=body.decode() if known["kind"] == "html" else body, **known)


def stem(run: str, desc: str, suffix: str) -> str:
    """``<run>_desc-<desc>_<suffix>``, the run's characters reduced to those a file name can bear."""
    prefix = re.sub(r"[^A-Za-z0-9_.+-]", "", run)
    return f"{prefix}_desc-{desc}_{suffix}" if prefix else f"desc-{desc}_{suffix}"
