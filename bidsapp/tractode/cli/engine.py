"""nipype, set up: which plugin runs a workflow, with which limits, and which nodes failed."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from tractode.cli import environment
from tractode.cli.plugin_file import load_plugin_file
from tractode.cli.watchdog import POLL_SECONDS, Failure, WatchdogPlugin, step_of, with_recorder
from tractode.errors import ConfigurationError
from tractode.settings import Settings

_STATUS = {"start": "started", "end": "done", "exception": "FAILED"}


def configure(settings: Settings, run_dir: Path) -> None:
    """nipype's configuration. Workflows and nodes copy it when they are made: it must be called before any is."""
    import nipype

    nipype.config.update_config({"execution": _execution(settings, run_dir), "monitoring": {"enabled": "false"}})


def run_workflow(workflow: Any, settings: Settings, log_file: Path) -> list[Failure]:
    """Run every node that can run; returns those that failed. What is no node's failure is raised."""
    plugin = make_plugin(settings, log_file)
    try:
        workflow.run(plugin=plugin)
    except Exception:
        # nipype raises the first node's error at the end; all of them were recorded as they happened.
        if "pdb" in settings.debug and sys.stdin.isatty():
            import pdb

            pdb.post_mortem()
        if not plugin.failures:
            raise
    return list(plugin.failures)


def _execution(settings: Settings, run_dir: Path) -> dict[str, str]:
    return {
        "crashdump_dir": str(run_dir / "crash"),
        "crashfile_format": "txt",  # never a pickle
        "stop_on_first_crash": str(settings.stop_on_first_crash).lower(),
        "poll_sleep_duration": str(POLL_SECONDS),
        "check_version": "false",
        "create_report": "false",
        "remove_unnecessary_outputs": "false",
        "job_finished_timeout": "60",  # network file systems show a batch job's result late
    }


def make_plugin(settings: Settings, log_file: Path) -> Any:
    """The watched MultiProc, or the plugin that ``--use-plugin`` names, or one process for ``--debug pdb``.

    Raises
    ------
    ConfigurationError
        nipype has no plugin of that name, or it does not take these arguments.
    """
    from nipype.pipeline import plugins

    asked = load_plugin_file(settings.plugin_file) if settings.plugin_file else {}
    arguments: dict[str, Any] = {"status_callback": _tell}
    name = "Linear" if "pdb" in settings.debug else asked.get("plugin") or "MultiProc"
    if name in ("MultiProc", "LegacyMultiProc"):
        limits = {
            "n_procs": settings.nprocs,
            "memory_gb": environment.memory_limit_gb(settings.memory_gb),
            "raise_insufficient": False,
            "log_file": str(log_file.resolve()),
            "preload": ("tractode.cli.preloaded",),
        }
        return WatchdogPlugin(arguments | limits | (asked.get("plugin_args") or {}))
    plugin = getattr(plugins, f"{name}Plugin", None)
    if plugin is None:
        known = sorted(
            item.removesuffix("Plugin") for item in dir(plugins) if item.endswith("Plugin") and "Base" not in item
        )
        raise ConfigurationError(
            f"nipype has no plugin {name!r}",
            id="E-PLUGIN-NAME",
            path=settings.plugin_file,
            needed=f"one of {', '.join(known)}",
        )
    runner = with_recorder(plugin)(plugin_args=arguments | (asked.get("plugin_args") or {}))
    if not hasattr(plugin, "_report_crash"):  # Linear: it tells of a failure only through the callback
        runner._status_callback = partial(_tell_and_record, runner.failures)
    return runner


def _tell(node: Any, status: str) -> None:
    """One line as a step starts and one as it ends; steps that take no work (lists put together) have no name of their own."""
    if status in _STATUS and (status == "exception" or getattr(node.inputs, "step", None)):
        print(f"{time.strftime('%H:%M:%S')} {_STATUS[status]} {step_of(node)}", flush=True)


def _tell_and_record(failures: list[Failure], node: Any, status: str) -> None:
    _tell(node, status)
    if status == "exception":
        failures.append(Failure(node.fullname, step_of(node), "see the log of the run\n"))
