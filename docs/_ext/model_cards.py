"""The model cards that lie beside the shipped weights, copied into the documentation when it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tractode


def copy_cards(app: Any) -> None:
    """``weights/<name>-<version>/card.md`` → ``models/<name>-<version>.md``; cards of weights that are gone are removed."""
    folder = Path(app.srcdir) / "models"
    cards = {path.parent.name: path for path in sorted((Path(tractode.__file__).parent / "weights").glob("*/card.md"))}
    for old in folder.glob("*-[0-9]*.md"):
        if old.stem not in cards:
            old.unlink()
    for name, path in cards.items():
        text, copy = path.read_text(encoding="utf-8"), folder / f"{name}.md"
        if not copy.is_file() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", copy_cards, priority=1)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
