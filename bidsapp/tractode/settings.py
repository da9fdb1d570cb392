"""Everything a run was asked to do, decided once by the command line, frozen, passed by hand and saved as TOML in the output."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from tractode.errors import ConfigurationError

#: Fields that say where, how fast or how loudly a run works, or which participants it takes, but not what a result is.
WITHOUT_EFFECT_ON_RESULTS = frozenset(
    {
        "bids_dir", "output_dir", "work_dir", "analysis_level", "participants", "sessions", "skip_bids_validation",
        "nprocs", "omp_nthreads", "memory_gb", "plugin_file", "stop_on_first_crash", "dry_run", "reports_only",
        "md_only_boilerplate", "debug", "verbosity",
    }
)  # fmt: skip


#: Words of ``--output-spaces`` that mean the participant's own anatomical image, as other apps spell it.
ANATOMICAL = ("anat", "T1w", "T2w")


def templates_among(spaces: Iterable[str]) -> tuple[str, ...]:
    """Those of ``--output-spaces`` that are templates, not the participant's anatomy."""
    return tuple(space for space in spaces if space not in ANATOMICAL)


@dataclass(frozen=True)
class Settings:
    """What a run was asked to do. Labels are without their ``sub-`` and ``ses-`` prefixes; empty tuples mean all or none.

    Attributes
    ----------
    participants, sessions
        Labels asked for; empty means every one found.
    bids_filters
        Query name → entity → value or list of values, as in ``--bids-filter-file``; the strings ``"*"`` and null keep
        their meaning (any value, entity absent).
    memory_gb
        Limit for the whole process tree in GiB; ``None`` lets the limit of the machine or of its control group decide.
    output_spaces
        Templates with modifiers (``MNI152NLin2009cAsym:res-2``), and ``T1w`` or ``T2w`` for the participant's own image;
        empty means no output but in the scan's space.
    subject_anatomical_reference
        What runs are registered through where there are several sessions: each session's own image, the first one's, or
        each its own and then a template of all of them.
    output_resolution
        Isotropic voxel size in mm of the maps in these spaces; ``None`` keeps a template's own, and the scan's in anatomy.
    fod_modulation
        What a change of volume does to orientation distributions in these spaces; see `tractode.ops.reorient_fod`.
    input_type
        Raw scans, or which folders of preprocessed ones; ``auto`` looks.
    denoise, unring, motion, outliers, bias
        Steps of preprocessing: ``auto`` where the scan supports it, ``on`` (``mppca``) or the run fails, ``none``.
    combine_runs
        Whether the dwi runs of a session that have one grid become one series.
    b0_threshold
        b-value in s/mm² at or below which a volume is a b=0; ``None`` finds them by clustering.
    device
        Resolved: ``cpu`` or ``cuda:0``.
    models
        Models and recipes, as `tractode.workflows.recipe` reads them: ``auto`` takes what each run's data support.
    dti_largest_b
        The largest b-value in s/mm² that the tensor is fitted to; ``None`` lets the table decide.
    uncertainty
        How the standard deviation of every map is found: not at all, by Laplace's approximation or by bootstrap.
    response, response_group
        Files of response functions (one a tissue: white matter, grey matter, CSF), or those that the group level averaged.
    mtnormalise
        Whether the tissues of multi-tissue deconvolution are brought to one scale over the brain.
    fixels
        Whether peaks, integrals and dispersions of the lobes of orientation distributions are written.
    tracking
        Names of trackers, or ``auto``: what follows the best field that a run's models yield; empty means ``--no-tracking``.
    n_seeds
        Where given, every streamline of so many seeds is kept, whatever their number (``n_streamlines`` is not used).
    seeding
        Where streamlines start: see the seedings of `tractode.tracking.seeding`.
    step_mm, angle_deg, min_radius_mm, cutoff, min_length_mm, max_length_mm
        Given to every tracker; ``None`` leaves each its own default.
    gentract_steps, gentract_min_confidence
        Steps of the flow, and the confidence (0 to 1) that a generated line must have; ``None`` is as the model was shipped.
    gentract_bundles
        Names of bundles to generate; empty means all.
    gentract_weights
        Folder of weights to use instead of those that came with the installation.
    encode_bundles
        Whether streamlines are coded, named after bundles and compressed.
    codec_max_error_mm, codec_min_confidence
        The largest error of a compressed streamline; the confidence (0 to 1) that a name needs, else the line is "other".
    codec_weights
        Folder of the codec's weights to use instead of those that came with the installation.
    act
        Anatomical constraint: tissues from a label or five-tissue image of the participant, from the segmentation of its anatomical
        image, or from the template; ``auto`` takes the first of these that there is.
    derivatives
        Folders in which such images are looked for, besides the dataset itself.
    dwi_mask
        What makes a scan's brain mask: see `tractode.preprocess.mask_consensus`.
    segmentation
        Whether the anatomical image's tissues are taken from derivatives where there are any, always our own, or not wanted.
    include, include_ordered, exclude
        Region masks (paths) in the space of the first of ``output_spaces``.
    sensitivity
        Two such masks, the ends of a connection; empty means no sensitivity map.
    sdc, ignore, require_sdc
        What may correct susceptibility distortion; what of the dataset is left aside for it (``fieldmaps``: the ``fmap``
        folders, ``sdc``: all); whether a run that is not corrected fails.
    apply_gradient_fix
        Name of the fix the gradient check proposed (``flipx``, ``swapxy``, …).
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: str = "participant"
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    bids_filters: dict[str, Any] = field(default_factory=dict)
    skip_bids_validation: bool = False
    work_dir: Path = Path("work")
    nprocs: int = 1
    omp_nthreads: int = 1
    memory_gb: float | None = None
    plugin_file: Path | None = None
    output_spaces: tuple[str, ...] = ("MNI152NLin2009cAsym",)
    output_resolution: float | None = None
    fod_modulation: Literal["none", "fod", "jacobian"] = "none"
    stop_on_first_crash: bool = False
    sloppy: bool = False
    dry_run: bool = False
    reports_only: bool = False
    md_only_boilerplate: bool = False
    debug: tuple[str, ...] = ()
    anat_modality: Literal["T1w", "T2w", "none"] = "T1w"
    subject_anatomical_reference: Literal["sessionwise", "first-lex", "unbiased"] = "sessionwise"
    sdc: Literal["auto", "reversed", "fieldmap", "anatomy", "none"] = "auto"
    ignore: tuple[str, ...] = ()
    require_sdc: bool = False
    input_type: Literal["auto", "bids", "qsiprep", "hcpya", "ukb"] = "auto"
    denoise: Literal["auto", "mppca", "none"] = "auto"
    unring: Literal["auto", "on", "none"] = "auto"
    motion: Literal["auto", "on", "none"] = "auto"
    outliers: Literal["auto", "on", "none"] = "auto"
    bias: Literal["auto", "on", "none"] = "auto"
    dwi_mask: Literal["auto", "threshold", "weighted", "surface", "template"] = "auto"
    segmentation: Literal["auto", "own", "none"] = "auto"
    combine_runs: Literal["none", "all"] = "none"
    b0_threshold: float | None = None
    random_seed: int = 0
    device: str = "cpu"
    models: tuple[str, ...] = ("auto",)
    dti_largest_b: float | None = None
    uncertainty: Literal["none", "laplace", "bootstrap"] = "none"
    response: tuple[str, ...] = ()
    response_group: bool = False
    mtnormalise: bool = False
    fixels: bool = False
    tracking: tuple[str, ...] = ("auto",)
    n_streamlines: int = 100_000
    n_seeds: int | None = None
    seeding: Literal["white-matter", "brain", "grid", "interface", "dynamic"] = "white-matter"
    step_mm: float | None = None
    angle_deg: float | None = None
    min_radius_mm: float | None = None
    cutoff: float | None = None
    min_length_mm: float | None = None
    max_length_mm: float | None = None
    gentract_steps: int | None = None
    gentract_min_confidence: float | None = None
    gentract_bundles: tuple[str, ...] = ()
    gentract_weights: Path | None = None
    encode_bundles: bool = False
    codec_max_error_mm: float = 2.0
    codec_min_confidence: float = 0.5
    codec_weights: Path | None = None
    act: Literal["none", "auto", "segment", "labels", "template"] = "none"
    derivatives: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    include_ordered: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    refine_orientations: bool = False
    streamline_weights: Literal["none", "fod", "signal"] = "none"
    sensitivity: tuple[str, ...] = ()
    tractogram_formats: tuple[str, ...] = ("trx",)
    assume_orientation: bool = False
    bval_from_norm: Literal["square", "none"] | None = None
    estimate_s0: bool = False
    accept_gradients: bool = False
    apply_gradient_fix: str | None = None
    verbosity: int = 0

    def to_toml(self) -> str:
        """All settings as TOML; a value of ``None`` is left out because TOML has no null."""
        return tomli_w.dumps({name: value for name, value in self._plain().items() if value is not None})

    @classmethod
    def from_toml(cls, text: str) -> Settings:
        """Settings saved by `to_toml`.

        Raises
        ------
        ConfigurationError
            The text is not TOML, misses a folder, or holds an unknown setting or a value of the wrong type.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(
                f"The settings are not TOML ({error})", id="E-CONFIG-TOML", fix="correct the file at the place named"
            ) from None
        missing = {"bids_dir", "output_dir"} - table.keys()
        if missing:
            raise ConfigurationError(
                f"The settings miss {', '.join(sorted(missing))}",
                id="E-CONFIG-MISSING",
                needed="bids_dir and output_dir",
            )
        return cls(**typed(table))

    def result_hash(self) -> str:
        """Hash of the settings that change results: the same hash means that earlier results may be reused.

        Devices of one kind are alike here; a CPU and a GPU are not, because their sums round differently.
        """
        kept = {name: value for name, value in self._plain().items() if name not in WITHOUT_EFFECT_ON_RESULTS}
        kept["device"] = self.device.partition(":")[0]
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()

    def _plain(self) -> dict[str, Any]:
        plain = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Path):
                value = str(value)
            elif isinstance(value, tuple):
                value = list(value)
            elif item.name == "bids_filters":
                value = json.dumps(value, sort_keys=True)  # filters may hold null, which TOML has not
            plain[item.name] = value
        return plain


def typed(table: dict[str, Any]) -> dict[str, Any]:
    """A TOML table as keyword arguments of `Settings`, each value checked against its field's type.

    Raises
    ------
    ConfigurationError
        An unknown setting, or a value of the wrong type.
    """
    hints = typing.get_type_hints(Settings)
    unknown = [name for name in table if name not in hints]
    if unknown:
        raise ConfigurationError(
            f"There is no setting named {', '.join(map(repr, unknown))}",
            id="E-CONFIG-UNKNOWN",
            needed=f"one of {', '.join(sorted(hints))}",
        )
    return {name: _converted(name, value, hints[name]) for name, value in table.items()}


def _converted(name: str, value: Any, hint: Any) -> Any:
    for kind in (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    ):
        converted = _as_kind(value, kind)
        if converted is not None:
            return converted
    raise ConfigurationError(
        f"The setting {name} = {value!r} has the wrong type",
        id="E-CONFIG-TYPE",
        needed=f"a value of type {hint}".replace("typing.", ""),
    )


def _as_kind(value: Any, kind: Any) -> Any:
    """``value`` as ``kind`` where that loses nothing, else ``None``."""
    if typing.get_origin(kind) is Literal:
        return value if value in typing.get_args(kind) else None
    if typing.get_origin(kind) is tuple:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(values) if all(isinstance(item, str) for item in values) else None
    if typing.get_origin(kind) is dict:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                return None
        return value if isinstance(value, dict) else None
    if kind is Path:
        return Path(value) if isinstance(value, str | Path) else None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    exact = kind in (bool, int, float, str) and type(value) is kind
    return value if exact else None
