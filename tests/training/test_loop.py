"""The loop: averaged weights, the clock, resuming; on a problem whose every step can be done by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tractode.errors import ConfigurationError, ResourceUnavailableError
from tractode.training import devices, loop
from tractode.training.loop import LoopSettings, fit, losses_of


class Line:
    """``y = 3 x`` from noisy samples, with one weight."""

    def __init__(self) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        self.seen: list[float] = []

    def loss(self, generator: torch.Generator) -> Tensor:
        self.seen.append(float(self.module.weight.detach()))
        x = torch.randn(8, 1, generator=generator)
        return (self.module(x) - 3 * x).square().mean()

    def record(self) -> dict[str, Any]:
        return {"slope": 3.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tells what it is told, and goes on by a second each time it is asked."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(loop.time, "monotonic", monotonic)
    return now


def test_average_is_the_recursion_of_the_weights_after_each_step() -> None:
    settings = LoopSettings(steps=30, learning_rate=0.1, average=0.8)
    problem, plain = Line(), Line()
    fit(problem, settings)
    fit(plain, LoopSettings(steps=30, learning_rate=0.1))
    assert problem.seen == plain.seen  # averaging does not touch the descent
    after, average = [*problem.seen[1:], plain.module.weight.item()], 0.0
    for step, weight in enumerate(after):
        decay = min(0.8, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert problem.module.weight.item() == pytest.approx(average, rel=1e-5)
    assert problem.module.weight.item() != pytest.approx(after[-1], rel=1e-4)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_resumed_run_ends_as_the_whole_one(tmp_path: Path, average: float) -> None:
    settings = LoopSettings(steps=9, learning_rate=0.1, checkpoint_every=4, average=average)
    whole, broken, again = Line(), Line(), Line()
    losses = fit(whole, settings)

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 6:
            raise InterruptedError

    path = tmp_path / "c.safetensors"
    with pytest.raises(InterruptedError):
        fit(broken, settings, path, stop)
    assert fit(again, settings, path) == losses[4:]
    assert torch.equal(again.module.weight, whole.module.weight)
    torch.testing.assert_close(losses_of(path), torch.tensor(losses))
    done = Line()
    assert fit(done, settings, path) == []
    assert torch.equal(done.module.weight, whole.module.weight)


def test_time_ends_a_run_with_a_checkpoint_and_a_finished_schedule(clock: list[float], tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    settings = LoopSettings(steps=1000, learning_rate=0.1, warm_up=1, minutes=0.5)
    losses = fit(Line(), settings, path)
    assert len(losses) == 15  # asked twice a step, 30 s in all
    assert len(losses_of(path)) == 15
    assert fit(Line(), settings, path) == []  # its time is over
    assert settings.rate(0, 0.0) == pytest.approx(0.1)
    assert settings.rate(29, 0.5) == pytest.approx(0.05, rel=1e-3)
    assert settings.rate(29, 1.0) == pytest.approx(0.0, abs=1e-9)


def test_time_of_earlier_parts_counts(clock: list[float], tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    settings = LoopSettings(steps=1000, minutes=0.5, checkpoint_every=5)

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 11:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(Line(), settings, path, stop)
    assert 2 <= len(fit(Line(), settings, path)) <= 6


def test_slow_steps_are_kept_every_five_minutes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = iter(range(0, 10**6, 40))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(now)))
    totals = []

    def stop(step: int, steps: int, loss: float) -> None:
        totals.append(steps)
        if step == 12:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(Line(), LoopSettings(steps=1000, minutes=100.0), tmp_path / "c.safetensors", stop)
    assert len(losses_of(tmp_path / "c.safetensors")) in range(6, 13)  # checkpoints of every 50 steps were not reached
    assert totals[-1] < 200  # as the clock has it


def test_loss_that_is_no_number_stops_before_it_spoils_the_weights(tmp_path: Path) -> None:
    class Broken(Line):
        def loss(self, generator: torch.Generator) -> Tensor:
            return super().loss(generator) * (math.nan if len(self.seen) == 5 else 1.0)

    problem, path = Broken(), tmp_path / "c.safetensors"
    with pytest.raises(ConfigurationError, match=r"E-TRAIN-DIVERGED.*step 5"):
        fit(problem, LoopSettings(steps=9, checkpoint_every=2), path)
    assert bool(problem.module.weight.isfinite().all())
    assert len(losses_of(path)) == 4


TWO = """
import sys, torch
from pathlib import Path
from torch import nn
from tractode.errors import InputDataError
from tractode.training.devices import Alone, launch
from tractode.training.loop import LoopSettings, fit, generator_of, losses_of

SETTINGS = LoopSettings(steps=5, learning_rate=0.1, warm_up=1, average=0.5, minutes=5.0, checkpoint_every=2, seed=3)

class Line:
    def __init__(self, ranks):
        torch.manual_seed(0)
        self.module, self.ranks, self.step = nn.Linear(2, 1), ranks, 0
        self.module.unused = nn.Parameter(torch.ones(1))

    def loss(self, generator):
        generators = [generator_of(SETTINGS.seed, self.step, rank) for rank in self.ranks] or [generator]
        self.step += 1
        return sum(self.one(g) for g in generators) / len(generators)

    def one(self, generator):
        x = torch.randn(4, 2, generator=generator)
        return (self.module(x) - 3 * x.sum(1, keepdim=True)).square().mean()

    def record(self):
        return {}

def work(workers, device, folder):
    assert workers.rank == torch.distributed.get_rank()
    problem = Line([])
    fit(problem, SETTINGS, folder / "two.safetensors", workers=workers)
    torch.save(problem.module.state_dict(), folder / f"rank{workers.rank}.pt")

def fail(workers, device):
    if workers.rank == 1:
        raise InputDataError("It is broken", id="E-TEST")
    workers.agreed(0.0)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    launch(work, 2, torch.device("cpu"), folder)
    both = Line([0, 1])
    losses = fit(both, SETTINGS)
    torch.testing.assert_close(losses_of(folder / "two.safetensors"), torch.tensor(losses))
    for rank in range(2):
        for name, value in torch.load(folder / f"rank{rank}.pt").items():
            torch.testing.assert_close(value, both.module.state_dict()[name], atol=1e-6, rtol=1e-5)
    one = Line([])
    fit(one, SETTINGS)
    assert not torch.allclose(one.module.weight, both.module.weight, rtol=1e-3)
    try:
        launch(fail, 2, torch.device("cpu"))
    except InputDataError as error:
        print(error)
"""


@pytest.mark.slow
def test_two_processes_learn_the_mean_gradient_and_an_error_of_one_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    script = tmp_path / "two.py"
    script.write_text(TWO, encoding="utf-8")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "[E-TEST] It is broken." in done.stdout


def test_several_devices_without_fabric_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceUnavailableError, match="E-TRAIN-FABRIC"):
        devices.launch(print, 2, torch.device("cpu"))
