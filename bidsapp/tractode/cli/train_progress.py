"""Progress bars of training on stderr: where it is, how long it will take, and how the loss falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tractode.training.loop import Progress


@contextmanager
def shown() -> Iterator[Callable[[str], Progress]]:
    """A function that opens a bar of a given name and returns what moves it; the loss shown is a moving average."""
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TextColumn, TimeRemainingColumn

    columns = (*Bars.get_default_columns()[:-1], TimeRemainingColumn(), TextColumn("{task.fields[said]}"))
    with Bars(*columns, console=Console(stderr=True)) as bars:

        def open_bar(name: str) -> Progress:
            task = bars.add_task(name, total=None, said="")
            smooth = [float("nan")]

            def tell(step: int, steps: int, loss: float) -> None:
                smooth[0] = loss if math.isnan(smooth[0]) else 0.95 * smooth[0] + 0.05 * loss
                said = "" if math.isnan(loss) else f"loss {smooth[0]:.3f}"
                bars.update(task, completed=step + 1, total=steps, said=said)

            return tell

        yield open_bar


def silent(name: str) -> Progress:
    """For the processes beside the first."""
    return lambda step, steps, loss: None
