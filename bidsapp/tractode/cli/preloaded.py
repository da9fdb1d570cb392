"""Imported once by the process that every node is forked from."""

from tractode.cli.environment import lasting_imports

with lasting_imports():
    import tractode.workflows.participant  # noqa: F401
