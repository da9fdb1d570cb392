"""Synthetic subjects made ahead by processes of their own, and several sources of subjects as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tractode.errors import InternalError, TractodeError
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.tract_subject import TractSubject, TractSubjectSettings
from tractode.training.gentract import Subjects
from tractode.training.tract_subjects import SubjectCache, read_library

_LOOK_AGAIN_S = 10.0


class Synthetic:
    """The first ``n`` subjects of a cache. While they are still being made, the ones that exist stand for the others."""

    def __init__(self, cache: SubjectCache, n: int) -> None:
        self.cache, self.n = cache, n
        self._ready: list[int] = []
        self._looked = -_LOOK_AGAIN_S

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, number: int) -> TractSubject:
        if self.cache.path(number).is_file():
            return self.cache[number]
        if time.monotonic() - self._looked > _LOOK_AGAIN_S:
            self._ready = [one for one in self.cache.ready() if one < self.n]
            self._looked = time.monotonic()
        return self.cache[self._ready[number % len(self._ready)] if self._ready else number]


class Mixed:
    """Several sources as one, shuffled, so that the first few are of every source."""

    def __init__(self, sources: Sequence[Subjects]) -> None:
        self.sources = list(sources)
        places = [(source, number) for source, one in enumerate(sources) for number in range(len(one))]
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0)).tolist()
        self._places = [places[index] for index in order]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> TractSubject:
        source, within = self._places[number]
        return self.sources[source][within]


class Makers:
    """Processes that make the first ``n`` subjects of a folder; they end with the ``with`` block."""

    def __init__(self, atlas: Path, cache: SubjectCache, n: int, n_processes: int = 1) -> None:
        from torch.multiprocessing import get_context

        context = get_context("spawn")
        self.cache, self.n = cache, n
        self._errors: Any = context.SimpleQueue()
        missing = [number for number in range(n) if not cache.path(number).is_file()]
        self._processes = [
            context.Process(  # type: ignore[attr-defined]
                target=_make, args=(self._errors, atlas, cache.folder, cache.settings, part), daemon=True
            )
            for part in (missing[first::n_processes] for first in range(n_processes))
            if part
        ]

    def __enter__(self) -> Makers:
        for process in self._processes:
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
            process.join()

    def wait(self, n: int, tell: Callable[[int], None], every_s: float = 0.5) -> None:
        """Until the first ``n`` subjects are there.

        Raises
        ------
        TractodeError
            A process failed with it.
        InternalError
            E-TRAIN-MAKER: a process died.
        """
        while (missing := self._missing(n)) > 0:
            tell(n - missing)
            self._check()
            time.sleep(every_s)
        tell(n)

    def _missing(self, n: int) -> int:
        return sum(not self.cache.path(number).is_file() for number in range(n))

    def _check(self) -> None:
        if not self._errors.empty():
            error: TractodeError = self._errors.get()
            raise error
        dead = [process.exitcode for process in self._processes if process.exitcode]
        if dead:
            raise InternalError(
                f"A process that makes subjects ended with code {dead[0]}",
                id="E-TRAIN-MAKER",
                path=self.cache.folder,
                fix="run the command again, with fewer --makers if memory was short",
            )


def _make(errors: Any, atlas: Path, folder: Path, settings: TractSubjectSettings, numbers: Sequence[int]) -> None:
    torch.set_num_threads(1)
    try:
        cache = SubjectCache(folder, read_library(atlas), settings)
        for number in numbers:
            cache.fill(number, number + 1)
    except TractodeError as error:
        errors.put(error)


def pool_of(synthetic: Synthetic | None, real: Subjects | None) -> Subjects:
    """Synthetic and real subjects together, or the one kind that there is."""
    sources: list[Subjects] = [one for one in (synthetic, real) if one is not None and len(one)]
    return sources[0] if len(sources) == 1 else Mixed(sources)


def cache_of(folder: Path, library: BundleLibrary, seed: int) -> SubjectCache:
    """The subjects of a seed; another seed's lie in another folder."""
    return SubjectCache(folder, library, TractSubjectSettings(seed=seed))
