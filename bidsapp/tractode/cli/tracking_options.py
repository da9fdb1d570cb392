"""The options of ``tractode`` for tractography: method, seeds, when a streamline ends, what is made of the streamlines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tractode.cli.words import at_least_zero, one_of, positive, share, whole
from tractode.errors import ConfigurationError, MissingInputError
from tractode.settings import templates_among

SEEDINGS = ("white-matter", "brain", "grid", "interface", "dynamic")
TISSUES = ("none", "auto", "segment", "labels", "template")
WEIGHTS = ("none", "fod", "signal")
REGIONS = ("include", "include_ordered", "exclude", "sensitivity")
CODING = ("codec_max_error_mm", "codec_min_confidence", "codec_weights")
GENERATION = ("gentract_steps", "gentract_min_confidence", "gentract_bundles", "gentract_weights")
LEAST_ERROR_MM = 0.1
FOLLOWING = ("seeding", "step_mm", "angle_deg", "min_radius_mm", "cutoff")
AUTO = ("auto",)
FEATURES = ("encode_bundles", "streamline_weights", "refine_orientations", *REGIONS)


def add_tracking(add: Callable[..., Any], trackers: tuple[str, ...]) -> None:
    """Lengths in mm, angles in degrees; without a value each tracker keeps its own default."""
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    add(
        "--tracking",
        dest="tracking",
        type=one_of("tracker", ("auto", *trackers)),
        metavar="TRACKER",
        **several,
        help=f"methods: {', '.join(trackers)}; gentract generates whole streamlines with a trained model; auto (default) is sdstream, "
        "or tensordet where no model yields fibre orientations",
    )
    add("--no-tracking", dest="no_tracking", action="store_true", help="no tractography")
    add(
        "--n-streamlines",
        dest="n_streamlines",
        type=whole(1),
        metavar="N",
        help="accepted streamlines per tractogram (default: 100000)",
    )
    add(
        "--n-seeds",
        dest="n_seeds",
        type=whole(1),
        metavar="N",
        help="instead of a number of streamlines: keep all that come of N seeds",
    )
    add(
        "--seeding",
        dest="seeding",
        type=one_of("seeding", SEEDINGS),
        metavar="WHERE",
        help="white-matter (FA above 0.2, the default), brain, grid (every voxel of white matter alike), "
        "interface (of grey and white matter; needs --act) or dynamic (where streamlines are still too few)",
    )
    _add_rules(add)
    _add_generation(add, several)
    _add_coding(add)
    _add_regions(add, several)
    _add_features(add, several)


def _add_rules(add: Callable[..., Any]) -> None:
    for name, dest, text in (
        ("--step-mm", "step_mm", "step"),
        ("--angle-deg", "angle_deg", "largest turn of one step, degrees"),
        ("--min-radius-mm", "min_radius_mm", "least radius of curvature, instead of an angle"),
        ("--min-length-mm", "min_length_mm", "least length"),
        ("--max-length-mm", "max_length_mm", "greatest length"),
    ):
        add(
            name,
            dest=dest,
            type=positive,
            metavar=name.rpartition("-")[2].upper(),
            help=f"{text} (default: the method's)",
        )
    add(
        "--cutoff",
        dest="cutoff",
        type=at_least_zero("an amplitude (or FA) of at least 0"),
        metavar="A",
        help="least FOD amplitude, or FA of tensor methods, to follow (default: 0.1; half of it with --act)",
    )


def _add_generation(add: Callable[..., Any], several: dict[str, Any]) -> None:
    add(
        "--gentract-steps",
        dest="gentract_steps",
        type=whole(1),
        metavar="N",
        help="steps of gentract's flow (default: the model's)",
    )
    add(
        "--gentract-min-confidence",
        dest="gentract_min_confidence",
        type=share,
        metavar="P",
        help="least confidence of a generated streamline, 0 to 1 (default: the model's)",
    )
    add(
        "--gentract-bundles",
        dest="gentract_bundles",
        metavar="NAME",
        **several,
        help="generate these bundles only (default: all that the model knows; a wrong name is answered with the nearest)",
    )
    add(
        "--gentract-weights",
        dest="gentract_weights",
        type=Path,
        metavar="FOLDER",
        help="weights to use instead of those shipped, as tractode-train writes them",
    )


def _add_coding(add: Callable[..., Any]) -> None:
    add(
        "--encode-bundles",
        dest="encode_bundles",
        action="store_true",
        help="code every tractogram with the bundle codec: bundles by name, a summary of each, and a compressed tractogram",
    )
    add(
        "--codec-max-error-mm",
        dest="codec_max_error_mm",
        type=positive,
        metavar="MM",
        help="largest error of any point of the compressed tractogram (default: 2); lines beyond it are kept as points",
    )
    add(
        "--codec-min-confidence",
        dest="codec_min_confidence",
        type=share,
        metavar="P",
        help="least confidence of a bundle's name, 0 to 1; below it a streamline is 'other' (default: 0.5)",
    )
    add(
        "--codec-weights",
        dest="codec_weights",
        type=Path,
        metavar="FOLDER",
        help="weights to use instead of those shipped, as tractode-train codec writes them",
    )


def _add_regions(add: Callable[..., Any], several: dict[str, Any]) -> None:
    add(
        "--act",
        dest="act",
        type=one_of("source of tissues", TISSUES),
        metavar="{none,auto,segment,labels,template}",
        help="anatomically constrained: tissues from a FreeSurfer-style label image or a five-tissue image of the "
        "participant (labels), from our segmentation of its anatomical image (segment), from the template (template: coarse), or from the first of these that there is (auto)",
    )
    add(
        "--derivatives",
        dest="derivatives",
        metavar="DIR",
        **several,
        help="folders in which anatomical derivatives (label images, five-tissue images) are looked for",
    )
    for name, text in (
        ("include", "streamlines must visit all of these regions"),
        ("include-ordered", "… in this order"),
        ("exclude", "streamlines must not enter these regions"),
    ):
        add(
            f"--{name}",
            dest=name.replace("-", "_"),
            metavar="MASK",
            **several,
            help=f"{text} (masks in the first of --output-spaces)",
        )


def _add_features(add: Callable[..., Any], several: dict[str, Any]) -> None:
    add(
        "--refine-orientations",
        dest="refine_orientations",
        action="store_true",
        help="refine the orientation field by fibre continuity before tracking: for noisy scans (SNR below about 10)",
    )
    add(
        "--streamline-weights",
        dest="streamline_weights",
        type=one_of("target of weights", WEIGHTS),
        metavar="{none,fod,signal}",
        help="a weight for every streamline such that together they explain the FOD or the signal (default: none)",
    )
    add(
        "--sensitivity",
        dest="sensitivity",
        metavar="MASK",
        nargs=2,
        help="two regions (masks in the first of --output-spaces): a map of which voxels' signal their connection rests on",
    )


def check_tracking(values: dict[str, Any], asked: frozenset[str], notes: list[str]) -> None:
    """Conflicts among the settings of tractography; drops tracking where no model yields a field to follow."""
    _check_fields(values, asked, notes)
    features = [name for name in FEATURES if values.get(name, "none") not in ("none", (), False)]
    if not values.get("tracking", AUTO) and features:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in features)
        _conflict(f"{named} needs streamlines and there is no tractography", "E-CONFIG-TRACKING", "leave them out")
    if values.get("seeding") == "interface" and values.get("act", "none") == "none":
        _conflict("--seeding interface needs tissue maps", "E-CONFIG-SEEDING", "add --act auto")
    if values.get("n_seeds") and "n_streamlines" in asked:
        _conflict("--n-seeds and --n-streamlines contradict each other", "E-CONFIG-SEEDS")
    if values.get("act") in ("auto", "segment") and values.get("segmentation") == "none":
        _conflict("--act needs the tissues that --segmentation none leaves out", "E-CONFIG-SEGMENTATION")
    if values.get("min_radius_mm") and values.get("angle_deg"):
        _conflict("--min-radius-mm and --angle-deg contradict each other", "E-CONFIG-ANGLE")
    _check_generation(values, asked, notes)
    if values.get("encode_bundles") and values.get("codec_max_error_mm", 2.0) < LEAST_ERROR_MM:
        _conflict(
            f"--codec-max-error-mm {values['codec_max_error_mm']:g} is less than float16 can keep",
            "E-CONFIG-CODEC",
            f"give at least {LEAST_ERROR_MM:g}",
        )
    if not values.get("encode_bundles"):
        for name in sorted(asked & set(CODING)):
            notes.append(f"--{name.replace('_', '-')} is for --encode-bundles and has no effect here.")
    if len(values.get("sensitivity", ())) not in (0, 2):
        _conflict("A sensitivity map needs two regions", "E-CONFIG-SENSITIVITY", "name the two ends of one connection")
    regions = [path for name in REGIONS for path in values.get(name, ())]
    if (regions or values.get("act", "none") != "none") and not templates_among(
        values.get("output_spaces", ("default",))
    ):
        _conflict(
            "Regions and tissues need a registration and no template is asked for",
            "E-CONFIG-REGIONS",
            "name a template with --output-spaces: that which the masks are in",
        )
    for path in (*regions, *values.get("derivatives", ())):
        if not Path(path).exists():
            raise MissingInputError(
                "There is no such file or folder", id="E-REGION-MISSING", path=Path(path), fix="check the path"
            )


def _check_generation(values: dict[str, Any], asked: frozenset[str], notes: list[str]) -> None:
    """What is asked of generated streamlines where there are none, and of tracked ones where there are none of these."""
    trackers = values.get("tracking", AUTO)
    if "gentract" not in trackers:
        for name in sorted(asked & set(GENERATION)):
            notes.append(f"--{name.replace('_', '-')} is for --tracking gentract and has no effect here.")
    elif len(trackers) == 1:
        for name in sorted(asked & set(FOLLOWING)):
            notes.append(f"--{name.replace('_', '-')} is for trackers; gentract follows no steps and takes no seeds.")


def _check_fields(values: dict[str, Any], asked: frozenset[str], notes: list[str]) -> None:
    """Trackers whose field none of the models can yield; what a run's own data yield is seen when it is laid out."""
    from tractode.workflows.recipe import possible_models

    models, trackers = possible_models(values.get("models", ("auto",))), values.get("tracking", AUTO)
    # Those known by name first: to ask a class, its module must be imported.
    is_oriented = "csd" in models or any(_is_oriented(name) for name in models)
    unfed = [name for name in trackers if not ("dti" in models if name == "tensordet" else is_oriented)]
    if unfed and "tracking" in asked:
        _conflict(
            f"--tracking {' '.join(unfed)} follows an orientation field that --models {' '.join(models)} does not yield",
            "E-CONFIG-TRACKING",
            "add csd to --models (dti for tensordet), or give --no-tracking",
        )
    if unfed:
        notes.append("No orientation model among --models: no tractography (--tracking tensordet follows the tensor).")
        values["tracking"] = tuple(name for name in trackers if name not in unfed)


def _is_oriented(name: str) -> bool:
    from tractode.contracts import OrientationModel
    from tractode.models import MODELS

    return issubclass(MODELS[name], OrientationModel)


def _conflict(found: str, id: str, fix: str = "give one of them") -> NoReturn:
    raise ConfigurationError(found, id=id, fix=fix)
