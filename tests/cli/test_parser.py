"""argv → settings: every option in every spelling, and everything else refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tractode.cli.parser import build_parser, parse
from tractode.errors import ConfigurationError, MissingInputError, UnknownLevelError, UsageError
from tractode.settings import WITHOUT_EFFECT_ON_RESULTS, Settings

BASE = ["/data/bids", "/data/out", "participant"]

SPELLINGS = [
    (["--participant-label", "01", "sub-02"], "participants", ("01", "02")),
    (["--participant_label", "sub-01"], "participants", ("01",)),
    (["--subject-label", "01"], "participants", ("01",)),
    (["--participant-label=01", "--participant-label", "02", "01"], "participants", ("01", "02")),
    (["--session-label", "pre", "ses-post"], "sessions", ("pre", "post")),
    (["--session-id", "ses-pre"], "sessions", ("pre",)),
    (["--session_label", "pre"], "sessions", ("pre",)),
    (["--skip-bids-validation"], "skip_bids_validation", True),
    (["--skip_bids_validation"], "skip_bids_validation", True),
    (["--skip_bids_validator"], "skip_bids_validation", True),
    (["--skip-bids-validator"], "skip_bids_validation", True),
    (["-w", "/scratch/w"], "work_dir", Path("/scratch/w")),
    (["--work-dir", "/scratch/w"], "work_dir", Path("/scratch/w")),
    (["--nprocs", "3"], "nprocs", 3),
    (["--nthreads", "3"], "nprocs", 3),
    (["--n_cpus", "3"], "nprocs", 3),
    (["--n-cpus", "3"], "nprocs", 3),
    (["--nprocs", "9", "--omp-nthreads", "2"], "omp_nthreads", 2),
    (["--nprocs", "9"], "omp_nthreads", 4),
    (["--mem", "8G"], "memory_gb", 8.0),
    (["--mem_mb", "2048"], "memory_gb", 2.0),
    (["--mem-mb", "512M"], "memory_gb", 0.5),
    (["--mem", "1T"], "memory_gb", 1024.0),
    (["--mem", "1048576K"], "memory_gb", 1.0),
    (["--mem", "1073741824B"], "memory_gb", 1.0),
    (["--mem", "4GiB"], "memory_gb", 4.0),
    (["--use-plugin", "p.yml"], "plugin_file", Path("p.yml")),
    (["--nipype-plugin-file", "p.yml"], "plugin_file", Path("p.yml")),
    (
        ["--output-spaces", "MNI152NLin2009cAsym:res-2", "MNI152NLin2009aSym"],
        "output_spaces",
        ("MNI152NLin2009cAsym:res-2", "MNI152NLin2009aSym"),
    ),
    (["--output-spaces", "native"], "output_spaces", ()),
    (["--output-spaces", "T1w", "anat"], "output_spaces", ("T1w",)),
    (["--fod-modulation", "fod"], "fod_modulation", "fod"),
    (["--output-resolution", "2.5"], "output_resolution", 2.5),
    (["--stop-on-first-crash"], "stop_on_first_crash", True),
    (["--sloppy"], "sloppy", True),
    (["--debug", "pdb"], "debug", ("pdb",)),
    (["--debug", "all"], "debug", ("pdb", "workdir")),
    (["--dry-run"], "dry_run", True),
    (["--reports-only"], "reports_only", True),
    (["--md-only-boilerplate"], "md_only_boilerplate", True),
    (["--anat-modality", "T2w"], "anat_modality", "T2w"),
    (["--anat-modality", "none"], "anat_modality", "none"),
    *[(["--sdc", name], "sdc", name) for name in ("auto", "reversed", "fieldmap", "anatomy", "none")],
    (["--ignore", "fieldmaps", "sdc"], "ignore", ("fieldmaps", "sdc")),
    (["--require-sdc"], "require_sdc", True),
    (["--subject-anatomical-reference", "first-lex"], "subject_anatomical_reference", "first-lex"),
    (["--longitudinal"], "subject_anatomical_reference", "unbiased"),
    (["--use-syn-sdc", "error"], "require_sdc", True),
    (["--use-syn-sdc"], "require_sdc", False),
    *[(["--input-type", name], "input_type", name) for name in ("auto", "bids", "qsiprep", "hcpya", "ukb")],
    (["--input_type", "ukb"], "input_type", "ukb"),
    *[(["--denoise", name], "denoise", name) for name in ("auto", "mppca", "none")],
    (["--denoise-method", "none"], "denoise", "none"),
    *[([f"--{step}", name], step, name) for step in ("unring", "motion") for name in ("auto", "on", "none")],
    *[([f"--{step}", name], step, name) for step in ("outliers", "bias") for name in ("on", "none")],
    (["--combine-runs", "all"], "combine_runs", "all"),
    (["--combine-runs", "none"], "combine_runs", "none"),
    (["--combine-all-dwis"], "combine_runs", "all"),
    (["--b0-threshold", "50"], "b0_threshold", 50.0),
    (["--random-seed", "7"], "random_seed", 7),
    *[(["--device", name], "device", name) for name in ("auto", "cpu", "cuda", "cuda:1")],
    (["--models", "csd"], "models", ("csd",)),
    (["--models", "dti", "msmt_csd|csd"], "models", ("dti", "msmt_csd|csd")),
    (["--recipe", "orientations"], "models", ("msmt_csd@2|csd|gqi", "csa?", "qball?", "gqi?")),
    (["--recon-spec", "all"], "models", ("*",)),
    (["--dti-largest-b", "1000"], "dti_largest_b", 1000.0),
    (["--uncertainty", "laplace"], "uncertainty", "laplace"),
    (["--response", __file__], "response", (__file__,)),
    (["--response-group"], "response_group", True),
    (["--mtnormalise"], "mtnormalise", True),
    (["--fixels"], "fixels", True),
    (["--tracking", "sdstream"], "tracking", ("sdstream",)),
    (["--no-tracking"], "tracking", ()),
    (["--n-streamlines", "500"], "n_streamlines", 500),
    (["--n-seeds", "500"], "n_seeds", 500),
    (["--seeding", "dynamic"], "seeding", "dynamic"),
    (["--step-mm", "0.5"], "step_mm", 0.5),
    (["--angle-deg", "30"], "angle_deg", 30.0),
    (["--min-radius-mm", "2"], "min_radius_mm", 2.0),
    (["--min-length-mm", "20"], "min_length_mm", 20.0),
    (["--max-length-mm", "250"], "max_length_mm", 250.0),
    (["--cutoff", "0"], "cutoff", 0.0),
    (["--gentract-steps", "4"], "gentract_steps", 4),
    (["--gentract-min-confidence", "0.7"], "gentract_min_confidence", 0.7),
    (["--gentract-bundles", "AF_L", "CST_R", "AF_L"], "gentract_bundles", ("AF_L", "CST_R")),
    (["--gentract-weights", "/w"], "gentract_weights", Path("/w")),
    (["--encode-bundles"], "encode_bundles", True),
    (["--codec-max-error-mm", "1.5"], "codec_max_error_mm", 1.5),
    (["--codec-min-confidence", "0.8"], "codec_min_confidence", 0.8),
    (["--codec-weights", "/w"], "codec_weights", Path("/w")),
    (["--tracking", "gentract", "sdstream"], "tracking", ("gentract", "sdstream")),
    *[(["--act", name], "act", name) for name in ("auto", "segment", "labels")],
    (["--dwi-mask", "surface"], "dwi_mask", "surface"),
    (["--segmentation", "own"], "segmentation", "own"),
    (["--derivatives", "/tmp", "/"], "derivatives", ("/tmp", "/")),
    *[([f"--{name.replace('_', '-')}", "/"], name, ("/",)) for name in ("include", "include_ordered", "exclude")],
    (["--refine-orientations"], "refine_orientations", True),
    (["--streamline-weights", "fod"], "streamline_weights", "fod"),
    (["--sensitivity", "/", "/tmp"], "sensitivity", ("/", "/tmp")),
    (["--tractogram-formats", "tck"], "tractogram_formats", ("trx", "tck")),
    (["--assume-orientation"], "assume_orientation", True),
    (["--bval-from-norm", "square"], "bval_from_norm", "square"),
    (["--bval-from-norm", "none"], "bval_from_norm", "none"),
    (["--estimate-s0"], "estimate_s0", True),
    (["--accept-gradients"], "accept_gradients", True),
    (["--apply-gradient-fix", "flipx"], "apply_gradient_fix", "flipx"),
    (["-v"], "verbosity", 1),
    (["-vv"], "verbosity", 2),
    (["-v", "-v", "-v"], "verbosity", 3),
]


@pytest.mark.parametrize(
    ("words", "name", "value"), SPELLINGS, ids=lambda item: " ".join(item) if isinstance(item, list) else None
)
def test_every_spelling_sets_its_setting_and_nothing_else(words: list[str], name: str, value: object) -> None:
    settings, plain = parse([*BASE, *words]).settings, parse(BASE).settings
    assert getattr(settings, name) == value
    related = {name, "nprocs", "omp_nthreads"}
    for item in dataclasses.fields(Settings):
        if item.name not in related:
            assert getattr(settings, item.name) == getattr(plain, item.name)


def test_every_spelling_is_tried_above() -> None:
    tried = {word.partition("=")[0] for words, _, _ in SPELLINGS for word in words if word.startswith("-")}
    elsewhere = {"--bids-filter-file", "--config-file", "--notrack", "--version", "-h", "--help"}
    spellings = {spelling for action in build_parser()._actions for spelling in action.option_strings}
    assert spellings - elsewhere <= tried | {"-v"}


def test_options_before_and_between_positionals() -> None:
    settings = parse(["--nprocs", "2", "/data/bids", "--sloppy", "/data/out", "-v", "participant"]).settings
    assert (settings.bids_dir, settings.output_dir, settings.sloppy, settings.nprocs) == (
        Path("/data/bids"),
        Path("/data/out"),
        True,
        2,
    )


def test_notrack_is_a_no_op() -> None:
    assert parse([*BASE, "--notrack"]).settings == parse(BASE).settings


@pytest.mark.parametrize(
    ("word", "level"),
    [("participant", "participant"), ("subject", "participant"), ("group", "group"), ("dataset", "group")],
)
def test_levels(word: str, level: str) -> None:
    assert parse([*BASE[:2], word]).settings.analysis_level == level


@pytest.mark.parametrize("word", ["session", "run", "meta", "preproc", "Participant", ""])
def test_unknown_level(word: str) -> None:
    with pytest.raises(UnknownLevelError):
        parse([*BASE[:2], word])


@pytest.mark.parametrize(
    "label", ["../../etc", "/etc/passwd", "a b", "a\nb", "a\0b", "sub-", "", "sub-a_b", "01;rm", "é", "sub-sub-01"]
)
@pytest.mark.parametrize("option", ["--participant-label", "--session-label"])
def test_a_label_that_could_be_a_path_is_refused(option: str, label: str) -> None:
    with pytest.raises(UsageError):
        parse([*BASE, option, label])


@pytest.mark.parametrize(
    "words",
    [
        ["--frobnicate"],
        ["--anat-only"],
        ["--low-mem"],
        ["--derivative-path", "/x"],
        ["--participant", "01"],  # no abbreviations: a later option must not change what an old command means
        ["--n-stream", "10"],
        ["extra"],
        ["--nprocs", "0"],
        ["--nprocs", "two"],
        ["--nprocs"],
        ["--omp-nthreads", "-1"],
        ["--mem", "lots"],
        ["--mem", "0"],
        ["--mem", "-4G"],
        ["--output-resolution", "0"],
        ["--output-resolution", "nan"],
        ["--output-resolution", "inf"],
        ["--b0-threshold", "-5"],
        ["--random-seed", "1.5"],
        ["--device", "gpu"],
        ["--device", "cuda:x"],
        ["--models", "noddi9"],
        ["--models", "csd|noddi9"],
        ["--models", "csd@two"],
        ["--models"],
        ["--dti-largest-b", "0"],
        ["--uncertainty", "jackknife"],
        ["--tracking", "magic"],
        ["--n-streamlines", "0"],
        ["--gentract-steps", "0"],
        ["--gentract-min-confidence", "1.5"],
        ["--codec-min-confidence", "2"],
        ["--codec-max-error-mm", "0"],
        ["--anat-modality", "T1W"],
        ["--bval-from-norm", "cube"],
        ["--debug", "everything"],
        ["--tractogram-formats", "vtk"],
        ["--participant-label"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse([*BASE, *words])
    assert caught.value.exit_code == 64


def test_a_near_miss_is_named() -> None:
    with pytest.raises(UsageError, match="--participant-label"):
        parse([*BASE, "--participant-labels", "01"])


@pytest.mark.parametrize("argv", [[], ["/data/bids"], ["/data/bids", "/data/out"]])
def test_missing_positionals(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(argv)


@pytest.mark.parametrize(
    "words",
    [
        ["--no-tracking", "--tracking", "sdstream"],
        ["--models", "dti", "--tracking", "sdstream"],
        ["--accept-gradients", "--apply-gradient-fix", "flipx"],
        ["--dry-run", "--reports-only"],
        ["--output-spaces", "native", "--output-resolution", "2"],
        ["--no-tracking", "--streamline-weights", "fod"],
        ["--no-tracking", "--encode-bundles"],
        ["--encode-bundles", "--codec-max-error-mm", "0.05"],
        ["--seeding", "interface"],
        ["--n-seeds", "5", "--n-streamlines", "5"],
        ["--min-radius-mm", "2", "--angle-deg", "30"],
        ["--include", "/", "--output-spaces", "native"],
        ["--act", "template", "--output-spaces", "native"],
        ["--act", "template", "--output-spaces", "T1w"],
        ["--output-spaces", "T2w"],
        ["--output-spaces", "anat", "--anat-modality", "none"],
        ["--tracking", "sdstream", "--models", "dti"],
        ["--tracking", "gentract", "--models", "dti"],
        ["--tracking", "sdstream", "--models", "tensor"],
        ["--models", "dti", "--recipe", "tensor"],
        ["--response", __file__, "--response-group"],
        ["--response", __file__, __file__, __file__, __file__],
    ],
    ids=" ".join,
)
def test_contradictions(words: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        parse([*BASE, *words])


def test_anat_is_the_modality_in_use() -> None:
    assert parse([*BASE, "--output-spaces", "anat", "--anat-modality", "T2w"]).settings.output_spaces == ("T2w",)


def test_without_an_orientation_model_there_is_no_tracking_and_it_is_said() -> None:
    request = parse([*BASE, "--models", "dti"])
    assert request.settings.tracking == ()
    assert any("tractography" in note for note in request.notes)


def test_options_of_methods_that_are_not_used_are_said() -> None:
    assert any("--gentract-steps" in note for note in parse([*BASE, "--gentract-steps", "4"]).notes)
    assert any("--codec-weights" in note for note in parse([*BASE, "--codec-weights", "/w"]).notes)
    assert parse([*BASE, "--encode-bundles", "--codec-weights", "/w"]).notes == parse(BASE).notes
    alone = parse([*BASE, "--tracking", "gentract", "--step-mm", "0.5"])
    assert any("--step-mm" in note for note in alone.notes)
    assert parse([*BASE, "--tracking", "gentract", "sdstream", "--step-mm", "1", "--gentract-steps", "4"]).notes == ()


def test_a_region_that_is_not_there_is_said() -> None:
    with pytest.raises(MissingInputError, match="no such file"):
        parse([*BASE, "--exclude", "/data/no-such-mask.nii.gz"])


def test_more_threads_than_processors_is_said() -> None:
    request = parse([*BASE, "--nprocs", "2", "--omp-nthreads", "4"])
    assert request.settings.omp_nthreads == 2
    assert request.notes


def test_result_hash_is_of_what_changes_results() -> None:
    plain = parse(BASE).settings
    for words, name, value in SPELLINGS:
        same = dataclasses.replace(plain, **{name: value}).result_hash() == plain.result_hash()
        assert same == (name in WITHOUT_EFFECT_ON_RESULTS or value == getattr(plain, name)), words
    assert (
        dataclasses.replace(plain, device="cuda:0").result_hash()
        == dataclasses.replace(plain, device="cuda:1").result_hash()
    )


def test_paths_are_absolute_because_steps_run_in_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = parse(["bids", "out/../derivatives", "participant", "-w", "work"]).settings
    assert settings.bids_dir == tmp_path / "bids"
    assert settings.output_dir == tmp_path / "derivatives"
    assert settings.work_dir == tmp_path / "work"
