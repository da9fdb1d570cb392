"""The doorway: what a signal model, a tracker, a codec, a metric and a regulariser must be able to do.

The law tests in ``tests/contracts`` run over every registered class of each family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tractode.fields import GradientTable, Image, ImageGrid, PeakField, ShField, Streamlines, TensorField
from tractode.fields.needs import Needs
from tractode.ops import sphere

Orientations = ShField | TensorField | PeakField


@dataclass(frozen=True)
class MapSpec:
    """One map of a model: feeds its BIDS name, sidecar, report caption and law tests.

    ``components`` is ``scalar``, ``tensor`` (rank 2, order xx xy xz yy yz zz), ``sh``, ``unit3vector``,
    ``3vector`` (its length a value) or ``dec``.
    ``invariant`` says whether the values stay the same when the head turns; ``of_part`` that the map is of one compartment,
    so that it does not read the diffusivity of the whole voxel.
    """

    param: str
    description: str
    units: str
    components: str = "scalar"
    invariant: bool = True
    of_part: bool = False


def table_of_shells(bvals: Iterable[float], n: int) -> GradientTable:
    """A shell of ``n`` directions at each b-value (s/mm²), with a b=0 volume in front and one in the midst of each shell."""
    directions = sphere.directions(n)
    zero, half = directions.new_zeros(1, 3), n // 2
    one = torch.cat([zero, directions[:half], zero, directions[half:]]).double()
    shells = list(bvals)
    bvecs = one.repeat(len(shells), 1)
    is_b0 = bvecs.norm(dim=-1) == 0
    values = torch.tensor(shells, dtype=torch.float64).repeat_interleave(len(one))
    return GradientTable(torch.where(is_b0, 0.0, values), bvecs, is_b0)


class SignalModel(ABC):
    """A model of the diffusion signal. What must be known first (a response) is a field of the model.

    Parameters travel as ``(v, p)`` tensors, signals as ``(v, n)``; every method follows the input's dtype and device.
    ``recovers`` is the largest error of fit∘predict that is allowed, relative to the largest parameter of its kind.
    """

    maps: ClassVar[tuple[MapSpec, ...]]
    label: ClassVar[str]  # the BIDS ``model-`` label
    citation: ClassVar[str]  # a key of bids/spec/references.yaml
    needs: ClassVar[Needs] = Needs()
    recovers: ClassVar[float] = 1e-9

    @classmethod
    def for_data(cls, signal: Float[Tensor, "v n"], gtab: GradientTable) -> SignalModel:
        """The model ready to fit this scan: what must be known first is estimated from it. The default knows nothing."""
        return cls()

    @classmethod
    def taken(cls, gtab: GradientTable) -> Int[Tensor, " m"]:
        """The volumes of a scan that the model `for_data` makes is fitted to, b=0 included."""
        return (gtab.bvals <= cls.needs.largest_b).nonzero().ravel()

    def explains(self, gtab: GradientTable) -> Int[Tensor, " m"]:
        """The volumes that this model is fitted to and that `predict` can be asked for, b=0 included."""
        return self.taken(gtab)

    def facts(self) -> dict[str, Any]:
        """What this fit rested on (method, response, shell), as plain data for the sidecar and the report."""
        return {}

    @abstractmethod
    def predict(self, params: Float[Tensor, "v p"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        """The noise-free signal of given parameters."""

    @abstractmethod
    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v p"]:
        """Parameters of given signals; raises `InputDataError` where the table cannot support the model."""

    @abstractmethod
    def to_maps(self, params: Float[Tensor, "v p"]) -> dict[str, Float[Tensor, "v _"]]:
        """The model's maps, keyed by ``MapSpec.param``."""

    @abstractmethod
    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n p"]:
        """Valid parameters for the law tests, float64."""

    @classmethod
    def why_not(cls, gtab: GradientTable) -> str | None:
        """Why this table cannot support the model, in words for a user; ``None`` if it can."""
        return cls.needs.unmet(gtab, cls.__name__)

    @classmethod
    def example_table(cls, n: int = 60) -> GradientTable:
        """A table that suits the model, of ``n`` directions a shell, for the law tests: two b=0 and b=3000 s/mm²."""
        return table_of_shells((3000.0,), n)


class OrientationModel(SignalModel):
    """A signal model whose parameters describe a distribution of orientations.

    ``cutoff`` is the amplitude of its map below which trackers stop if none is given; ``None`` leaves that to the tracker,
    whose own is meant for FODs (a response's density is 1). A distribution that integrates to 1 is 0.08 where it is uniform.
    """

    cutoff: ClassVar[float | None] = None

    @abstractmethod
    def to_sh(self, params: Float[Tensor, "v p"], order: int) -> Float[Tensor, "v l"]:
        """SH coefficients of the orientation distribution up to ``order``."""


class Tracker(ABC):
    """Follows an orientation field from seeds. Yields batches so that memory is bounded."""

    label: ClassVar[str]  # the BEP046 ``track-`` label
    citation: ClassVar[str]
    is_differentiable: ClassVar[bool]

    @abstractmethod
    def parameters(self, grid: ImageGrid | None = None) -> dict[str, Any]:
        """Plain facts for the BEP046 sidecar and the report, under the names ``bids.sidecar.tractogram_sidecar`` knows."""

    @abstractmethod
    def track(
        self,
        orientations: Orientations,
        seeds: Float[Tensor, "s 3"],
        mask: Image,
        generator: torch.Generator | None = None,
    ) -> Iterator[Streamlines]:
        """Streamlines from seeds (RAS+ mm) inside a mask; a generative tracker may only count the seeds."""

    def prepared(self, orientations: Orientations, mask: Image) -> Callable[..., Iterator[Streamlines]]:
        """`track` for many sets of seeds (then generator and options) in one field, whose preparation may be shared."""

        def follow(seeds: Tensor, generator: torch.Generator | None = None, **options: Any) -> Iterator[Streamlines]:
            return self.track(orientations, seeds, mask, generator, **options)

        return follow


class Rule(ABC):
    """A rule on finished streamlines: it ends them earlier or leaves them out, whatever tracker made them.

    What it does with one line never depends on the others, and the points it keeps are those it was given (or lie
    between them), so gradients pass through.
    """

    @abstractmethod
    def apply(self, lines: Streamlines) -> Streamlines:
        """The lines that pass, in their order, with their data; ``per_streamline["seed_point"]`` follows what was cut."""

    def tracking_mask(self, mask: Image) -> Image:
        """The mask to track in where lines shall be judged by this rule: that of the request, unless it must see further."""
        return mask

    def facts(self) -> dict[str, Any]:
        """The rule as plain data for sidecar and report."""
        return {"Rule": type(self).__name__}


@dataclass(frozen=True, eq=False)
class Codes:
    """What a codec made of streamlines.

    ``values`` are whole numbers of a discrete codec, floats of a continuous one; one row is one streamline, or one group of
    streamlines for a codec that takes groups. ``n_streamlines`` is how many lines they stand for.
    """

    values: Shaped[Tensor, "r c"]
    n_streamlines: int


class Codec(ABC):
    """Streamlines of one space (RAS+ mm) to codes and back.

    Parameters
    ----------
    is_discrete
        Whether codes are whole numbers; a method may have settings of both kinds, so this is read from an instance.
    is_deterministic
        Whether the same lines always give the same codes. `False` only where a published method draws random numbers here.
    is_reversal_invariant, is_order_invariant
        Whether codes stay what they are when lines are reversed, and go with their lines when those change places.
    space
        The space that lines must be in, and that decoded ones are in.
    bits_per_streamline
        As stored: the sum of log2 of the levels of a discrete codec, 16 bits a number of a continuous one.
    """

    label: ClassVar[str]
    citation: ClassVar[str]  # a key of bids/spec/references.yaml
    is_reversal_invariant: ClassVar[bool]
    is_order_invariant: ClassVar[bool]
    space: str

    @property
    @abstractmethod
    def is_discrete(self) -> bool: ...

    @property
    def is_deterministic(self) -> bool:
        return True

    @property
    @abstractmethod
    def bits_per_streamline(self) -> float: ...

    @classmethod
    @abstractmethod
    def tiny(cls, seed: int = 0) -> Codec:
        """A small untrained one, for tests."""

    @classmethod
    @abstractmethod
    def from_weights(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Codec:
        """A trained one, of tensors by name and their settings."""

    @abstractmethod
    def encode(self, streamlines: Streamlines) -> Codes:
        """Codes of streamlines; raises `InputDataError` for lines that it cannot stand for."""

    @abstractmethod
    def decode(self, codes: Codes, n_points: int = 64) -> Streamlines:
        """The lines, in their order, in `space`, each by ``n_points`` points."""


class SimilarityMetric(ABC):
    """A cost between images on one grid: least where they are aligned.

    Parameters
    ----------
    is_multimodal
        Whether it may compare images of different contrast.
    invariances
        What may happen to one image's intensities without changing the cost: ``linear`` (gain of either sign, offset),
        ``shading`` (a gain that varies slowly over the image), ``mapping`` (any smooth one-to-one change).
    needs_grid
        Whether it compares neighbourhoods, so that it must be given whole grids and not points picked from them.
    """

    is_multimodal: ClassVar[bool]
    invariances: ClassVar[frozenset[str]] = frozenset()
    needs_grid: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        fixed: Float[Tensor, "c i j k"],
        moving: Float[Tensor, "c i j k"],
        mask: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        """The cost; voxels outside ``mask`` have no gradient."""


class Regulariser(ABC):
    """A cost of a velocity or displacement on a grid; 0 for a shift unless ``resists_shifts``."""

    resists_shifts: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        values: Float[Tensor, "3 i j k"],
        voxel_sizes: tuple[float, float, float],
        weight: Float[Tensor, "i j k"] | None = None,
    ) -> Float[Tensor, ""]:
        """The cost of a vector field in mm on voxels of the given size in mm, components along the grid's axes.

        ``weight`` multiplies the cost of every voxel before the mean over all of them is taken, so a weight of 2
        everywhere costs twice as much, and a weight of 0 frees a place.
        """
