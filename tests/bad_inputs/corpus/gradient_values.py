"""Gradient tables as numbers: norms, vectors that are absent, b=0, shells, directions, units."""

from __future__ import annotations

from typing import Any

import numpy as np

from .run import DIRECTIONS, Check, Run, bad, odd, same, signal_of


def _scaled(run: Run, factor: float, volumes: slice = slice(2, None)) -> None:
    run.bvecs[volumes] *= factor
    run.save_table()


@odd("G06")
def norms_of_1_005(run: Run) -> Check:
    _scaled(run, 1.005)
    return same


@bad("G06", "E-GRAD-NORM", "--bval-from-norm")
def norms_of_1_02(run: Run) -> None:
    _scaled(run, 1.02)


@odd("G06", "W-GRAD-NORM", "multiplied by the squared norm", bval_from_norm="square")
def norms_of_1_02_squared(run: Run) -> Check:
    _scaled(run, 1.02)

    def check(result: Any, good: Any) -> None:
        np.testing.assert_allclose(result.gtab.bvals.numpy()[2:], 1040.4, rtol=1e-6)
        np.testing.assert_allclose(result.gtab.bvecs.numpy(), good.gtab.bvecs.numpy(), atol=1e-6)

    return check


@odd("G06", "W-GRAD-NORM", "b was kept", bval_from_norm="none")
def norms_of_1_02_ignored(run: Run) -> Check:
    _scaled(run, 1.02)
    return same


@bad("G06", "E-GRAD-NORM", "volumes 7 have norms 0.5 to 0.5")
def one_norm_of_a_half(run: Run) -> None:
    _scaled(run, 0.5, slice(7, 8))


@odd("G06", "W-GRAD-NORM", "squared", bval_from_norm="square")
def shells_coded_by_norm(run: Run) -> Check:
    run.bvals[2:] = 2000
    _scaled(run, 0.5**0.5, slice(2, 8))

    def check(result: Any, good: Any) -> None:
        np.testing.assert_allclose(result.gtab.bvals.numpy()[2:], [1000] * 6 + [2000] * 6, rtol=1e-6)

    return check


def _with_extra(run: Run, volume: np.ndarray, b: float, vector: tuple[float, float, float] = (0, 0, 0)) -> None:
    run.data = np.concatenate([run.data, volume[..., None].astype(np.int16)], axis=-1)
    run.bvals, run.bvecs = np.append(run.bvals, b), np.vstack([run.bvecs, vector])
    run.save()


@odd("G07", "W-GRAD-TRACE", r"volumes 14 .*dropped \(15 volumes in, 14 out\)")
def trace_volume(run: Run) -> Check:
    _with_extra(run, np.exp(np.log(run.data[..., 2:].clip(1)).mean(-1)), 1000)
    return same


@odd("G07", "W-GRAD-B0SIGNAL", "volumes 14 .*taken as b=0")
def unweighted_volume_with_a_b_value(run: Run) -> Check:
    _with_extra(run, run.data[..., 0], 1000)

    def check(result: Any, good: Any) -> None:
        assert result.gtab.is_b0.tolist() == [True] * 2 + [False] * 12 + [True]
        assert float(result.gtab.bvals[14]) == 0

    return check


@bad("G07", "E-GRAD-NODIRECTION", r"volumes 14 \(b=1000\).*resembles neither")
def map_in_place_of_a_volume(run: Run) -> None:
    _with_extra(run, (run.data[..., 0] > 300) * 7000 - run.data[..., 1], 1000)


@bad("G07", "E-GRAD-NODIRECTION", "zero vector")
def every_vector_zero(run: Run) -> None:
    run.save_table(bvecs=run.bvecs * 0)


@odd("G08", "W-GRAD-B0NAN", "b=0 volumes 0, 1")
def nan_vector_on_b0(run: Run) -> Check:
    run.bvecs[:2] = np.nan
    run.save_table()
    return same


@bad("G09", "E-GRAD-NONFINITE", "vectors of volumes 5")
def nan_vector_on_weighted_volume(run: Run) -> None:
    run.bvecs[5] = np.nan
    run.save_table()


@bad("G09", "E-GRAD-NONFINITE", "vectors of volumes 6")
def infinite_vector(run: Run) -> None:
    run.bvecs[6, 1] = np.inf
    run.save_table()


@bad("G09", "E-GRAD-NONFINITE", "b-values of volumes 4")
def nan_bval(run: Run) -> None:
    run.bvals[4] = np.nan
    run.save_table()


def _low_b(run: Run, *values: float) -> Check:
    run.bvals[:2] = values
    run.save_table()
    return same


@odd("G10", "N-GRAD-B0", "b-values up to 5")
def b0_of_5(run: Run) -> Check:
    return _low_b(run, 0, 5)


@odd("G10", "N-GRAD-B0", "b-values up to 45")
def b0_of_10_and_45(run: Run) -> Check:
    return _low_b(run, 10, 45)


@odd("G10", "N-GRAD-B0", "b-values up to 60")
def b0_of_60(run: Run) -> Check:
    return _low_b(run, 60, 60)


@odd("G10", "N-GRAD-B0", "b-values up to 100")
def b0_of_100(run: Run) -> Check:
    return _low_b(run, 100, 100)


@odd("G10", "N-GRAD-B0", "b-values up to 15")
def b0_of_15_with_a_direction(run: Run) -> Check:
    run.bvecs[:2] = run.bvecs[4]
    return _low_b(run, 15, 15)


@odd("G10", "N-GRAD-SHELLS", "b=90: 1 directions")
def low_shell_beside_b0(run: Run) -> Check:
    run.bvecs[1] = run.bvecs[5]
    _low_b(run, 0, 90)

    def check(result: Any, good: Any) -> None:
        assert result.gtab.is_b0.tolist() == [True] + [False] * 13
        assert float(result.gtab.bvals[1]) == 90

    return check


@odd("G10", "N-GRAD-B0", "b-values up to 200", b0_threshold=200.0)
def threshold_by_hand(run: Run) -> Check:
    return _low_b(run, 0, 200)


@odd("G11", "N-GRAD-SHELLS", "b=985–1015: 12 directions")
def b_values_jitter(run: Run) -> Check:
    run.bvals[2:] += np.array([-15, 15] * 6)
    run.save_table()

    def check(result: Any, good: Any) -> None:
        assert len(result.gtab.shells()) == 1

    return check


@bad("G12", "E-GRAD-NODWI", "all 14 volumes are b=0")
def only_b0(run: Run) -> None:
    run.save_table(run.bvals * 0)


@bad("G13", "E-GRAD-NOB0", "no volume has b=0")
def no_b0(run: Run) -> None:
    run.data, run.bvals, run.bvecs = run.data[..., 2:], run.bvals[2:], run.bvecs[2:]
    run.save()


def _two_shells(run: Run) -> None:
    bvals = np.array([1000.0] * 6 + [2000] * 6)
    run.data = signal_of(bvals, DIRECTIONS, np.random.default_rng(1)).round().astype(np.int16)
    run.bvals, run.bvecs = bvals, run.bvecs[2:]
    run.save()


@bad("G13", "E-GRAD-NOB0", "--estimate-s0")
def no_b0_but_two_shells(run: Run) -> None:
    _two_shells(run)


@bad("G13", "E-GRAD-NOB0", "cannot be estimated", estimate_s0=True)
def no_b0_and_one_shell(run: Run) -> None:
    no_b0(run)


@odd("G13", "W-GRAD-NOB0", "extrapolated from 2 shells", estimate_s0=True)
def no_b0_estimated(run: Run) -> Check:
    _two_shells(run)

    def check(result: Any, good: Any) -> None:
        inside = good.mean_b0().values > 500
        ratio = result.mean_b0().values[inside] / good.mean_b0().values[inside]
        assert abs(float(ratio.median()) - 1) < 0.15

    return check


def _directions(run: Run, vectors: np.ndarray) -> None:
    run.bvecs[2:] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    run.save_table()


@bad("G14", "E-GRAD-DIRECTIONS", "5 different directions")
def five_directions(run: Run) -> None:
    _directions(run, np.resize(DIRECTIONS[:5], (12, 3)))


@bad("G14", "E-GRAD-DIRECTIONS", "12 different directions.*infinite")
def coplanar_directions(run: Run) -> None:
    angles = np.arange(12) * np.pi / 12
    _directions(run, np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1))


@bad("G14", "E-GRAD-DIRECTIONS", "1 different direction,")
def one_direction(run: Run) -> None:
    _directions(run, np.tile([0.6, 0, 0.8], (12, 1)))


@bad("G14", "E-GRAD-DIRECTIONS", "condition number")
def directions_in_a_narrow_cone(run: Run) -> None:
    _directions(run, [0, 0, 1] + 0.05 * DIRECTIONS)


@odd("G14")
def six_directions(run: Run) -> None:
    _directions(run, np.resize(DIRECTIONS[:6], (12, 3)))


def grid_table() -> tuple[np.ndarray, np.ndarray]:
    """q-space on a lattice of radius 3: b-values and directions of its half, b=0 first."""
    steps = [(x, y, z) for x in range(-3, 4) for y in range(-3, 4) for z in range(4) if 0 < x * x + y * y + z * z <= 9]
    q = np.array([(0, 0, 0), *[s for s in steps if s[2] > 0 or s[:2] > (0, 0)]], float)
    squares = (q**2).sum(1)
    return squares * 400, q / np.sqrt(squares.clip(1))[:, None]


@odd("G15", "W-GRAD-SCHEME", "Cartesian grid")
def cartesian_grid(run: Run) -> Check:
    run.bvals, run.bvecs = grid_table()
    run.data = signal_of(run.bvals, run.bvecs, np.random.default_rng(2)).round().astype(np.int16)
    run.save()

    def check(result: Any, good: Any) -> None:
        assert len(result.gtab.shells()) >= 5

    return check


@bad("G16", "E-GRAD-UNIT", "multiply by 1000")
def b_in_ms_per_square_micrometre(run: Run) -> None:
    run.save_table(run.bvals / 1000)


@bad("G16", "E-GRAD-UNIT", "divide by 1 000 000")
def b_in_s_per_square_metre(run: Run) -> None:
    run.save_table(run.bvals * 1e6)


@bad("G17", "E-GRAD-NEGATIVE", r"volumes 3 are negative \(least -1000\)")
def negative_b(run: Run) -> None:
    run.bvals[3] *= -1
    run.save_table()


@odd("G18", "N-GRAD-SHELLS", "b=40000: 12 directions")
def very_high_b(run: Run) -> Check:
    run.save_table(run.bvals * 40)

    def check(result: Any, good: Any) -> None:
        assert float(result.gtab.bvals.max()) == 40_000

    return check
