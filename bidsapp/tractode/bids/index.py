"""Which files a user's filters select: one pybids index of the asked participants, in memory, never kept on disk."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from tractode.bids.scan import IMAGES
from tractode.errors import ConfigurationError

# What a query of the filter file means before the user's own entities are laid over it.
QUERIES: Mapping[str, dict[str, Any]] = {
    "dwi": {"datatype": "dwi", "suffix": "dwi"},
    "t1w": {"datatype": "anat", "suffix": "T1w"},
    "t2w": {"datatype": "anat", "suffix": "T2w"},
    "fmap": {"datatype": "fmap"},
}
# Queries of other apps: a filter file may be shared with them.
FOREIGN_QUERIES = frozenset({"asl", "bold", "flair", "m0scan", "pet", "roi", "sbref", "t2star"})


def pybids_config() -> Path:
    """A pybids configuration with the entities that it does not know yet (``track``, ``tract``, ``param`` …).

    ``BIDSLayout(output_dir, validate=False, config=["bids", "derivatives", pybids_config()])`` then answers
    ``layout.get(param="fa")``.
    """
    return Path(str(files("tractode.bids").joinpath("spec", "pybids.json")))


class Index:
    """Answers the queries ``dwi``, ``t1w``, ``t2w`` and ``fmap``; finds only files of the given participants."""

    def __init__(self, bids_dir: Path, labels: Collection[str], filters: Mapping[str, Mapping[str, Any]]) -> None:
        from bids.layout import BIDSLayout, BIDSLayoutIndexer, Query

        self._filters = {name.lower(): _with_queries(wanted, Query) for name, wanted in filters.items()}
        self._check_names()
        asked = "|".join(re.escape(label) for label in labels)
        # Only the folders where images belong are entered: a large dataset costs what was asked for, and a loop of
        # links (which pybids follows, doubling at each turn) ends at once.
        elsewhere = re.compile(rf"^(?!/sub-(?:{asked})(?:/ses-[^/]+)?(?:/(?:anat|dwi|fmap)(?:/[^/]+)?)?$)")
        indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=[elsewhere])
        # Our own reading of dataset_description.json says more than pybids's, which with validate=True refuses to start.
        self._layout = BIDSLayout(bids_dir, validate=False, indexer=indexer)

    def select(self, query: str, label: str) -> set[Path]:
        """Paths of one participant's images that a query and the user's filters select.

        Raises
        ------
        ConfigurationError
            The filters name something that is not a BIDS entity.
        """
        wanted = {"extension": list(IMAGES), **QUERIES[query], **self._filters.get(query, {})}
        wanted.pop("subject", None)
        try:
            found = self._layout.get(subject=label, return_type="filename", **wanted)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"The filters of {query!r} cannot be used: {str(error).splitlines()[0]}"[:400],
                id="E-FILTER-ENTITY",
                needed="entities as pybids names them (acquisition, direction, run, session …)",
                fix="correct the file given with --bids-filter-file",
            ) from error
        return {Path(path) for path in found}

    def is_filtered(self, query: str) -> bool:
        """Whether the user gave filters for a query."""
        return bool(self._filters.get(query))

    def _check_names(self) -> None:
        unknown = [name for name in self._filters if name not in QUERIES and name not in FOREIGN_QUERIES]
        if unknown:
            raise ConfigurationError(
                f"There is no query named {', '.join(unknown)}",
                id="E-FILTER-QUERY",
                needed=f"queries among {', '.join(QUERIES)}",
                fix="correct the file given with --bids-filter-file",
            )


def _with_queries(value: Any, query: Any) -> Any:
    """JSON's null and ``"*"`` as pybids's NONE and ANY, at any depth."""
    if value is None:
        return query.NONE
    if value == "*":
        return query.ANY
    if isinstance(value, Mapping):
        return {key: _with_queries(item, query) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_queries(item, query) for item in value]
    return value
