"""The YAML file of ``--use-plugin``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tractode.errors import ConfigurationError, MissingInputError


def load_plugin_file(path: Path) -> dict[str, Any]:
    """The YAML of ``--use-plugin``: ``plugin`` (a nipype plugin's name) and ``plugin_args``, both optional.

    Raises
    ------
    MissingInputError
        The file cannot be read.
    ConfigurationError
        It is not such a YAML.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingInputError(
            f"The plugin file cannot be read ({error.strerror})",
            id="E-PLUGIN-FILE",
            path=path,
            needed="a YAML file that exists",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The plugin file is not YAML ({str(error).splitlines()[0]})",
            id="E-PLUGIN-YAML",
            path=path,
            fix="correct it",
        ) from None
    is_good = (
        isinstance(content, dict)
        and set(content) <= {"plugin", "plugin_args"}
        and isinstance(content.get("plugin_args") or {}, dict)
    )
    if not is_good:
        raise ConfigurationError(
            "The plugin file holds something else than plugin and plugin_args",
            id="E-PLUGIN-SHAPE",
            path=path,
            needed="plugin: <name> and plugin_args: {...}",
        )
    return content
