"""One visit of a simulated participant to the scanner: every scan of it, and what is true of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import nibabel
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.errors import UsageError
from tractode.fields import DWI, Affine, Chain, Displacement, GradientTable, Image, ImageGrid, Streamlines
from tractode.io.gradients import parse_gradients, to_table
from tractode.simulate import seeds
from tractode.simulate import subject as head
from tractode.simulate.contrasts import CONTRASTS, painted
from tractode.simulate.disturbance import Disturbance, DisturbanceSettings, disturbance, disturbed
from tractode.simulate.echo_planar import Encoding, distorted, field_on
from tractode.simulate.field_map import GradientEchoes, gradient_echoes
from tractode.simulate.gradients import multi_shell
from tractode.simulate.growth import grown
from tractode.simulate.head_field import HeadField, head_field, head_table
from tractode.simulate.poses import rigid
from tractode.simulate.tissues import Anatomy
from tractode.simulate.warp import participant_warp
from tractode.workflows.simulate_atlas import Atlas, read_atlas
from tractode.workflows.simulate_settings import DistortionSettings, SimulationSettings


@dataclass(frozen=True, eq=False)
class Reversed:
    """The scan encoded the other way, its field in Hz, and its table where it is a whole series."""

    image: Image
    encoding: Encoding
    field_hz: Float[Tensor, "i j k"]
    gtab: GradientTable | None


@dataclass(frozen=True, eq=False)
class Visit:
    """``poses`` map points of the scans that the head lay elsewhere in (``dwi``, ``epi``, ``fmap``, ``T2w``, …) to points of the T1w;
    ``to_first`` maps points of this session's T1w to those of the first session's."""

    entities: dict[str, str]
    warp: Chain
    t1w: Image
    t1w_mask: Image
    true: head.Diffusion
    dwi: DWI
    poses: dict[str, Affine]
    painted: dict[str, Image]
    field_hz: Float[Tensor, "i j k"] | None = None
    reverse: Reversed | None = None
    echoes: tuple[ImageGrid, GradientEchoes] | None = None
    to_first: Affine | Chain | None = None
    disturbance: Disturbance | None = None

    @property
    def run(self) -> str:
        """How spaces of this visit's scans begin."""
        return "_".join(f"{key}-{value}" for key, value in self.entities.items())


@dataclass(frozen=True, eq=False)
class Plan:
    """What all visits share."""

    brain: Anatomy
    settings: SimulationSettings
    axes: Float[Tensor, "3 3"]
    t1w_axes: Float[Tensor, "3 3"]
    atlas: Atlas | None = None


def plan(brain: Anatomy, settings: SimulationSettings) -> Plan:
    """The axes of the images asked for, and the bundles where they come from a folder."""
    return Plan(
        brain,
        settings,
        oriented(settings.orientation, settings.oblique_deg),
        oriented(
            settings.t1w_orientation, settings.oblique_deg if settings.orientation == settings.t1w_orientation else 0.0
        ),
        None if settings.atlas is None else read_atlas(settings.atlas, settings.subject.bundles),
    )


def oriented(letters: str, oblique_deg: float) -> Float[Tensor, "3 3"]:
    """Directions of the stored axes as columns, in RAS+: those of ``letters``, all turned about one slanted axis."""
    try:
        codes = nibabel.orientations.axcodes2ornt(tuple(letters.upper()))
        if len(letters) != 3 or np.isnan(codes).any() or len({int(axis) for axis, _ in codes}) != 3:
            raise ValueError
    except ValueError as error:
        raise UsageError(
            f"{letters!r} is not an orientation",
            id="E-CLI-ORIENTATION",
            needed="three letters, one of each pair R/L, A/P, S/I, such as RAS, LAS or PSR",
        ) from error
    matrix = torch.zeros(3, 3, dtype=torch.float64)
    for column, (axis, sign) in enumerate(codes):
        matrix[int(axis), column] = float(sign)
    slant = torch.tensor([0.8, 0.48, 0.36], dtype=torch.float64) * np.deg2rad(oblique_deg)
    x, y, z = slant.tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)) @ matrix


def template_bundles(shared: Plan, number: int) -> dict[str, Streamlines]:
    """A participant's bundles in the template, the same at every visit."""
    subject = shared.settings.subject
    if shared.atlas is not None:
        generator = seeds.stream(shared.settings.seed, number, "atlas bundles")
        return shared.atlas.drawn(shared.brain, generator, subject.step_mm)
    generator = seeds.stream(shared.settings.seed, number, "bundles")
    return head.template_bundles(shared.brain, subject, generator)


def visit(shared: Plan, number: int, session: int, lines: dict[str, Streamlines]) -> Visit:
    """Participant ``number`` in session ``session``, both counted from 0."""
    return _Scanner(shared, number, session, lines).visit()


class _Scanner:
    """Scans one participant in one session."""

    def __init__(self, shared: Plan, number: int, session: int, lines: dict[str, Streamlines]) -> None:
        self.shared, self.settings, self.brain = shared, shared.settings, shared.brain
        self.number, self.session, self.lines = number, session, lines
        self.entities = {"sub": f"{number + 1:02d}"}
        if self.settings.sessions is not None:
            self.entities["ses"] = f"{session + 1:02d}"
        self.run = "_".join(f"{key}-{value}" for key, value in self.entities.items())
        self.warp, self.to_first = self._warp()
        self.centre = self.warp.inverse().map(torch.zeros(3, dtype=torch.float64))
        self.poses: dict[str, Affine] = {}

    def visit(self) -> Visit:
        settings, subject = self.settings, self.settings.subject
        t1w = (settings.t1w_resolution or 2.0,) * 3
        t1w_grid = self._grid((t1w[0], t1w[1], t1w[2]), self.shared.t1w_axes, 10.0, "T1w")
        image, mask = head.t1w_scan(self.brain, t1w_grid, self.warp, subject, self._stream("T1w noise"))
        grid = self._grid(settings.resolution, self.shared.axes, self._dwi_margin(), "dwi")
        warp = self._moved("dwi")
        true = head.diffusion(self.brain, grid, _table(settings, grid), warp, self.lines, subject)
        made: dict[str, Any] = {}
        if settings.distortion is not None:
            field = head_field(self.brain, self.warp, settings.distortion.strength_hz, table=self.table)
            made = self._beside(settings.distortion, true, field)
            made["field_hz"] = field_on(field, grid, self.poses.get("dwi"))
        seen, happened = self._scanned(true, made.get("field_hz"))
        dwi = head.scanned(true, seen, subject, self._stream("dwi noise"))
        anats = {suffix: self._painted(suffix, size) for suffix, size in settings.painted}
        return Visit(
            self.entities, self.warp, image, mask, true, dwi, self.poses, anats, to_first=self.to_first, disturbance=happened, **made
        )  # fmt: skip

    def _scanned(
        self, true: head.Diffusion, field_hz: Float[Tensor, "i j k"] | None
    ) -> tuple[Float[Tensor, "n i j k"], Disturbance | None]:
        """The series without noise as it is scanned, and what happened to it besides susceptibility."""
        wanted = self.settings.distortion
        encoding = Encoding() if wanted is None else wanted.encoding
        if self.settings.disturbance == DisturbanceSettings():
            return (true.signal if field_hz is None else distorted(true.signal, field_hz, encoding)), None
        happened = disturbance(true, self.settings.disturbance, self._stream("disturbance"))
        return disturbed(true, happened, self.settings.subject, encoding, field_hz), happened

    def _stream(self, purpose: str) -> torch.Generator:
        return seeds.stream(self.settings.seed, self.number, purpose, self.session)

    # --- where things are --------------------------------------------------------------------------------------

    def _warp(self) -> tuple[Chain, Affine | Chain | None]:
        """This session's T1w space → template, and → the first session's T1w space."""
        space, settings = f"{self.run}_T1w", self.settings
        generator = seeds.stream(settings.seed, self.number, "warp")
        if self.session == 0:
            return participant_warp(self.brain.t1w.grid, space, generator, settings.subject.warp), None
        first = f"sub-{self.entities['sub']}_ses-01_T1w"
        warp = participant_warp(self.brain.t1w.grid, first, generator, settings.subject.warp)
        centre = warp.inverse().map(torch.zeros(3, dtype=torch.float64))
        share = settings.growth * self.session / max(1, (settings.sessions or 1) - 1)
        middle = f"{space}_upright" if share else first
        pose = rigid(space, middle, centre, self._stream("session pose"), settings.session_movement)
        if not share:
            return Chain((pose, *warp.parts)), pose
        change = grown(warp, share, middle)
        return Chain((pose, change, *warp.parts)), Chain((pose, change))

    def _grid(
        self,
        size: tuple[float, float, float],
        axes: Float[Tensor, "3 3"],
        margin: float | tuple[float, float, float],
        suffix: str,
    ) -> ImageGrid:
        return head.field_of_view(self.brain, self.warp, size, axes, margin, f"{self.run}_{suffix}")

    def _dwi_margin(self) -> float | tuple[float, float, float]:
        margin = [8.0] * 3
        if self.settings.distortion is None:
            return 8.0
        margin[self.settings.distortion.encoding.axis] = self.settings.distortion.margin_mm
        return margin[0], margin[1], margin[2]

    @cached_property
    def table(self) -> Displacement:
        """The warp tabulated once, for what is scanned besides T1w and dwi."""
        return head_table(self.brain, self.warp)

    def _tissues(self, scan: str, grid: ImageGrid) -> Float[Tensor, "3 i j k"]:
        """Tissue fractions in a scan, wherever the head lay in it."""
        warp = self._moved(scan)
        pose = self.poses.get(scan)
        return head.tissues_on(self.brain, grid, warp, self.table if pose is None else Chain((pose, self.table)))

    def _moved(self, scan: str) -> Chain:
        """The scan's points → template, and remembers where the head lay in it."""
        movement = self.settings.movement
        if movement.translation_mm == 0 and movement.rotation_deg == 0:
            return self.warp
        space = f"{self.run}_{scan}"
        self.poses[scan] = rigid(space, self.warp.source, self.centre, self._stream(f"{scan} pose"), movement)
        return Chain((self.poses[scan], *self.warp.parts))

    # --- scans -------------------------------------------------------------------------------------------------

    def _painted(self, suffix: str, size: tuple[float, float, float]) -> Image:
        grid = self._grid(size, self.shared.t1w_axes, 10.0, suffix)
        tissues = self._tissues(suffix, grid)
        noise, bias = self._stream(f"{suffix} noise"), self._stream(f"{suffix} bias")
        return painted(tissues, grid, CONTRASTS[suffix], self.settings.subject.t1w_snr, noise, bias)

    def _beside(self, wanted: DistortionSettings, true: head.Diffusion, field: HeadField) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if wanted.reverse != "none":
            made["reverse"] = self._reversed(wanted, true, field)
        if wanted.field_map != "none":
            axes = oriented(self.settings.orientation, 0.0)
            grid = self._grid((wanted.echoes.voxel_mm,) * 3, axes, 10.0, "fmap")
            tissues = self._tissues("fmap", grid)
            on = field_on(field, grid, self.poses.get("fmap"))
            settings = wanted.echoes if self.settings.subject.snr is not None else replace(wanted.echoes, snr=None)
            streams = self._stream("fmap noise"), self._stream("coil phase")
            made["echoes"] = grid, gradient_echoes(tissues, on, grid, settings, *streams)
        return made

    def _reversed(self, wanted: DistortionSettings, true: head.Diffusion, field: HeadField) -> Reversed:
        """The head as it lay in that scan, on the grid of the dwi, encoded the other way."""
        subject, whole = self.settings.subject, wanted.reverse == "dwi"
        grid = true.grid.renamed(f"{self.run}_epi")
        if whole:
            warp = self._moved("epi")
            again = "epi" in self.poses
            true = head.diffusion(self.brain, grid, true.gtab, warp, self.lines, subject) if again else true
            clean, gtab = true.signal, true.gtab
        else:
            clean, gtab = head.unweighted(self._tissues("epi", grid), subject), None
        pose = self.poses.get("epi")
        on, encoding = field_on(field, grid, pose), wanted.encoding.reversed()
        seen = distorted(clean, on, encoding)
        seen = seen if whole else seen.repeat(wanted.n_epi, 1, 1, 1)
        return Reversed(Image(grid, head.noisy(seen, subject, self._stream("epi noise"))), encoding, on, gtab)


def _table(settings: SimulationSettings, grid: ImageGrid) -> GradientTable:
    """The table asked for; a given one is meant for the stored image, as every ``.bvec`` is."""
    if settings.gradients is None:
        return multi_shell(settings.shells, settings.n_b0)
    stored, _ = parse_gradients(*settings.gradients, None)
    return to_table(stored, grid.affine)
