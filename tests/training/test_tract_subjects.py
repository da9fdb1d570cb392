"""Subjects on disk: what is read is what was made, once, and never mixed with others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tractode.errors import ConfigurationError, MissingInputError
from tractode.generative.space import training_grid
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.tissues import Anatomy
from tractode.simulate.tract_subject import TractSubject, TractSubjectSettings
from tractode.training import tract_subjects
from tractode.training.tract_subjects import SubjectCache, read_library


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the subjects that were synthesised, by a stand-in that costs nothing."""
    numbers: list[int] = []

    def synthesise(
        library: BundleLibrary, brain: Anatomy | None, number: int, settings: TractSubjectSettings
    ) -> TractSubject:
        numbers.append(number)
        generator = torch.Generator().manual_seed(number)
        coeffs = torch.zeros(28, *training_grid().shape)
        coeffs[:, 20:30, 20:30, 20:30] = torch.rand(28, 10, 10, 10, generator=generator) + 0.1
        lines = library.lines + 5 * torch.randn(library.lines.shape, generator=generator)
        return TractSubject(coeffs, lines, torch.tensor([True, False, True]), ~library.is_held_out)

    monkeypatch.setattr(tract_subjects, "synthesise", synthesise)
    monkeypatch.setattr(tract_subjects.SubjectCache, "anatomy", None)
    return numbers


def test_what_is_read_is_what_was_made(tmp_path: Path, library: BundleLibrary, made: list[int]) -> None:
    cache = SubjectCache(tmp_path, library)
    first, again = cache[7], SubjectCache(tmp_path, library)[7]
    assert made == [7]
    assert torch.equal(first.coeffs, again.coeffs)
    true = tract_subjects.synthesise(library, None, 7, TractSubjectSettings())  # type: ignore[arg-type]
    assert (first.coeffs - true.coeffs).abs().max() < 1e-3
    assert (first.lines - true.lines).norm(dim=-1).max() < 0.02
    assert torch.equal(first.present, true.present)
    assert torch.equal(first.kept, true.kept)


def test_filling_makes_what_is_missing(tmp_path: Path, library: BundleLibrary, made: list[int]) -> None:
    cache = SubjectCache(tmp_path, library)
    cache.make(1)
    cache.fill(0, 4)
    assert made == [1, 0, 2, 3]
    assert cache.ready() == [0, 1, 2, 3]


def test_subjects_of_other_settings_or_bundles_are_refused(
    tmp_path: Path, library: BundleLibrary, made: list[int]
) -> None:
    SubjectCache(tmp_path, library).make(0)
    with pytest.raises(ConfigurationError) as error:
        SubjectCache(tmp_path, library, TractSubjectSettings(seed=1))
    assert error.value.id == "E-SUBJECTS-SETTINGS"
    other = BundleLibrary(
        library.names, library.lines + 1, library.bundle, library.mirror, library.is_held_out, library.is_simulated
    )
    with pytest.raises(ConfigurationError):
        SubjectCache(tmp_path, other)


def test_a_damaged_subject_is_named(tmp_path: Path, library: BundleLibrary, made: list[int]) -> None:
    cache = SubjectCache(tmp_path, library)
    cache.make(0)
    cache.path(0).write_bytes(cache.path(0).read_bytes()[:1000])
    with pytest.raises(ConfigurationError) as error:
        cache[0]
    assert error.value.id == "E-SUBJECTS-READ"


def test_an_empty_folder_is_no_library(tmp_path: Path, library: BundleLibrary) -> None:
    with pytest.raises(MissingInputError):
        read_library(tmp_path, object.__new__(Anatomy))


def test_the_atlas_reads_with_its_sides(test_data: Path) -> None:
    folder = test_data / "bundles_atlas"
    if not folder.is_dir():
        pytest.skip("no atlas of bundles")
    found = read_library(folder)
    left, right = (found.names.index(f"Association_ArcuateFasciculus{side}") for side in "LR")
    assert found.mirror[left] == right
    assert found.lines[found.bundle == left][..., 0].max() < 0 < found.lines[found.bundle == right][..., 0].min()
    assert 0.3 < float(found.is_held_out[~found.is_simulated[found.bundle]].float().mean()) < 0.35
    assert int(found.is_simulated.sum()) == 28
