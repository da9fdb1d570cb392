"""The options of ``tractode``: every spelling and its help. Those of tractography are in `tracking_options`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tractode import __version__
from tractode.cli.anatomy_options import add_anatomy
from tractode.cli.model_options import add_models
from tractode.cli.preprocess_options import add_preprocessing
from tractode.cli.tracking_options import add_tracking
from tractode.cli.words import device, label, memory, one_of, positive, threshold, whole

LEVELS = {"participant": "participant", "subject": "participant", "group": "group", "dataset": "group"}
ANAT_MODALITIES = ("T1w", "T2w", "none")
ANATOMICAL_REFERENCES = ("sessionwise", "first-lex", "unbiased")
TRACTOGRAM_FORMATS = ("trx", "tck")
MODULATIONS = ("none", "fod", "jacobian")
SDC = ("auto", "reversed", "fieldmap", "anatomy", "none")
IGNORED = ("fieldmaps", "sdc")
SYN_SDC = ("warn", "error")
BVAL_RULES = ("square", "none")
DEBUG_MODES = ("pdb", "workdir", "all")


def add_options(parser: argparse.ArgumentParser, models: tuple[str, ...], trackers: tuple[str, ...]) -> None:
    """All options. Defaults are suppressed so that one given can be told from one left out."""
    _add_selection(parser)
    _add_resources(parser)
    _add_outputs(parser)
    add_preprocessing(_group(parser, "preprocessing"))
    add_anatomy(_group(parser, "masks and tissues"))
    _add_methods(parser, models)
    _add_distortion(parser)
    add_tracking(_group(parser, "tractography"), trackers)
    _add_permissions(parser)
    _add_other(parser)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "which data")
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    add(
        "--participant-label",
        "--participant_label",
        "--subject-label",
        dest="participants",
        type=label("sub-"),
        metavar="LABEL",
        **several,
        help="participants, with or without 'sub-' (default: all)",
    )
    add(
        "--session-label",
        "--session-id",
        "--session_label",
        dest="sessions",
        type=label("ses-"),
        metavar="LABEL",
        **several,
        help="sessions, with or without 'ses-' (default: all)",
    )
    add(
        "--bids-filter-file",
        dest="bids_filter_file",
        type=Path,
        metavar="FILE",
        help="JSON of pybids filters by query name ('dwi', 't1w', …)",
    )
    add(
        "--anat-modality",
        dest="anat_modality",
        type=one_of("anatomical modality", ANAT_MODALITIES),
        metavar="{T1w,T2w,none}",
        help="anatomical image to register through (default: T1w; data without one are registered by their b=0)",
    )
    add(
        "--subject-anatomical-reference",
        dest="subject_anatomical_reference",
        type=one_of("anatomical reference", ANATOMICAL_REFERENCES),
        metavar="{sessionwise,first-lex,unbiased}",
        help="with several sessions: each goes through its own image (default) or through the first one's, or each through its own and then a template of all sessions that none is nearer to",
    )
    add(
        "--longitudinal",
        dest="longitudinal",
        action="store_true",
        help="the same as --subject-anatomical-reference unbiased",
    )
    add(
        "--skip-bids-validation",
        "--skip_bids_validation",
        "--skip_bids_validator",
        "--skip-bids-validator",
        dest="skip_bids_validation",
        action="store_true",
        help="do not check the dataset as a whole; the files in use are always checked",
    )


def _add_resources(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "resources")
    add(
        "--nprocs",
        "--nthreads",
        "--n_cpus",
        "--n-cpus",
        dest="nprocs",
        type=whole(1),
        metavar="N",
        help="threads over all processes (default: all CPUs that may be used)",
    )
    add(
        "--omp-nthreads",
        dest="omp_nthreads",
        type=whole(1),
        metavar="N",
        help="threads per process (default: half of --nprocs, at least 1, at most 8)",
    )
    add(
        "--mem",
        "--mem_mb",
        "--mem-mb",
        dest="memory_gb",
        type=memory,
        metavar="MEMORY",
        help="memory for the whole run: 8G, 8000M; a bare number is MiB (default: what the machine or batch system allows)",
    )
    add(
        "--device",
        dest="device",
        type=device,
        metavar="{auto,cpu,cuda,cuda:N}",
        help="where to compute (default: auto, a GPU if one works)",
    )
    add(
        "--use-plugin",
        "--nipype-plugin-file",
        dest="plugin_file",
        type=Path,
        metavar="FILE",
        help="YAML with a nipype plugin and its plugin_args",
    )
    add(
        "-w",
        "--work-dir",
        dest="work_dir",
        type=Path,
        metavar="PATH",
        help="private folder for passing files (default: a folder of your own under $TMPDIR)",
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "outputs")
    add(
        "--output-spaces",
        dest="output_spaces",
        nargs="+",
        action="extend",
        metavar="SPACE[:res-N]",
        help="templates for maps, orientations and tractograms, T1w (or anat) for the participant's own image, 'native' for none (default: MNI152NLin2009cAsym, or the built-in MNI152NLin2009aSym where TemplateFlow has no files)",
    )
    add(
        "--output-resolution",
        dest="output_resolution",
        type=positive,
        metavar="MM",
        help="isotropic voxel size of maps in these spaces (default: the template's; in anatomy the scan's)",
    )
    add(
        "--fod-modulation",
        dest="fod_modulation",
        type=one_of("modulation", MODULATIONS),
        metavar="{none,fod,jacobian}",
        help="fibre densities in these spaces: kept at a point (default), over a bundle's width (fod) or over volume (jacobian)",
    )
    add(
        "--tractogram-formats",
        dest="tractogram_formats",
        nargs="+",
        action="extend",
        type=one_of("tractogram format", TRACTOGRAM_FORMATS),
        metavar="{trx,tck}",
        help="file formats of tractograms (default: trx; trx is always written)",
    )
    add(
        "--reports-only",
        dest="reports_only",
        action="store_true",
        help="only assemble the reports again from what is there",
    )
    add(
        "--md-only-boilerplate",
        dest="md_only_boilerplate",
        action="store_true",
        help="write the methods text as Markdown only",
    )


def _add_methods(parser: argparse.ArgumentParser, models: tuple[str, ...]) -> None:
    add = _group(parser, "methods")
    add_models(add, models)
    add(
        "--b0-threshold",
        dest="b0_threshold",
        type=threshold,
        metavar="B",
        help="volumes at or below this b-value (s/mm²) are b=0 (default: found by clustering)",
    )
    add(
        "--random-seed",
        dest="random_seed",
        type=whole(0),
        metavar="SEED",
        help="the one seed of everything random (default: 0)",
    )
    add("--sloppy", dest="sloppy", action="store_true", help="fast and poor, for testing the installation only")


def _add_distortion(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "susceptibility distortion")
    add(
        "--sdc",
        dest="sdc",
        type=one_of("correction", SDC),
        metavar="{auto,reversed,fieldmap,anatomy,none}",
        help="correct by opposite phase encodings, a field map or the anatomical image; auto (default) takes the first of these that there is",
    )
    add(
        "--ignore",
        dest="ignore",
        nargs="+",
        action="extend",
        type=one_of("thing to ignore", IGNORED),
        metavar="{fieldmaps,sdc}",
        help="fieldmaps: leave the fmap folders aside; sdc: no correction of distortion, as --sdc none",
    )
    add(
        "--require-sdc",
        dest="require_sdc",
        action="store_true",
        help="a run whose distortion cannot be corrected fails (code 65)",
    )
    add(
        "--use-syn-sdc",
        dest="use_syn_sdc",
        nargs="?",
        const="warn",
        type=one_of("answer", SYN_SDC),
        metavar="{warn,error}",
        help="accepted for other apps' scripts: the anatomical image serves where no field was measured, as by default; 'error' means --require-sdc",
    )


def _add_permissions(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "explicit permissions, for data that would otherwise be refused")
    add(
        "--assume-orientation",
        dest="assume_orientation",
        action="store_true",
        help="trust a header that does not say which way the voxels lie",
    )
    add(
        "--bval-from-norm",
        dest="bval_from_norm",
        type=one_of("rule", BVAL_RULES),
        metavar="{square,none}",
        help="vectors are not unit: 'square' multiplies b by their squared length, 'none' only makes them unit",
    )
    add("--estimate-s0", dest="estimate_s0", action="store_true", help="accept data without a b=0 volume")
    add(
        "--accept-gradients",
        dest="accept_gradients",
        action="store_true",
        help="go on with a gradient table that the check found wrong",
    )
    add(
        "--apply-gradient-fix",
        dest="apply_gradient_fix",
        metavar="FIX",
        help="apply the change that the gradient check names (flipx, swapxy, …)",
    )


def _add_other(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "running")
    add(
        "--config-file",
        dest="config_file",
        type=Path,
        metavar="FILE",
        help="TOML settings, as saved in logs/; the command line overrides it",
    )
    add("--dry-run", dest="dry_run", action="store_true", help="print the plan (files, models, memory, disk) and stop")
    add(
        "--stop-on-first-crash",
        dest="stop_on_first_crash",
        action="store_true",
        help="stop the whole run at the first failure",
    )
    add(
        "--debug",
        dest="debug",
        nargs="+",
        action="extend",
        type=one_of("debug mode", DEBUG_MODES),
        metavar="{pdb,workdir,all}",
        help="pdb: one process, debugger on failure; workdir: keep the work folder",
    )
    add("--notrack", dest="notrack", action="store_true", help="accepted and ignored: nothing is ever sent")
    add("-v", dest="verbosity", action="count", help="more to read: -v, -vv, -vvv")
    add("--version", action="version", version=f"tractode {__version__}")
    add("-h", "--help", action="help", help="show this and exit")


def _group(parser: argparse.ArgumentParser, title: str) -> Callable[..., Any]:
    group = parser.add_argument_group(title)

    def add(*spellings: str, **options: Any) -> None:
        if options.get("action") not in ("version", "help"):
            options.setdefault("default", argparse.SUPPRESS)
        group.add_argument(*spellings, **options)

    return add
