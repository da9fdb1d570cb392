"""Sphinx configuration; `make docs` turns every warning into an error."""

import sys
from pathlib import Path

import tractode

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "tractode"
author = "The tractode developers"
project_copyright = "2026, the tractode developers"
version = release = tractode.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "source_tables",
    "model_cards",
]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "changes/README.md"]
smartquotes = False  # "--option" must stay what one types
autodoc_typehints = "none"
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = f"tractode {release}"
