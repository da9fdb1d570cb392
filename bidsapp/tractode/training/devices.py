"""One process, or several that learn together: each draws its own batch, and all take the mean of their gradients.

S. Li et al., "PyTorch distributed: experiences on accelerating data parallel training", VLDB 2020, doi:10.14778/3415478.3415530,
through Lightning Fabric (https://lightning.ai/docs/fabric, Apache-2.0; the extra ``train``). Fabric is loaded only where there
are several devices.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from tractode.errors import ResourceUnavailableError, TractodeError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Alone:
    """The only process."""

    rank = 0

    def set_up(self, module: nn.Module, optimiser: Optimizer) -> tuple[nn.Module, Any]:
        return module, optimiser

    def descend(self, loss: Float[Tensor, ""]) -> None:
        """Gradients of the loss, the mean over the processes."""
        loss.backward()

    def clip(self, module: nn.Module, optimiser: Any, largest: float) -> None:
        nn.utils.clip_grad_norm_(module.parameters(), largest)

    def mean(self, loss: Float[Tensor, ""]) -> float:
        """Of all processes."""
        return float(loss)

    def agreed(self, value: float) -> float:
        """The first process's value."""
        return value


class Together(Alone):
    """One of several processes."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric, self.rank = fabric, fabric.global_rank

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    def set_up(self, module: nn.Module, optimiser: Optimizer) -> tuple[nn.Module, Any]:
        return self.fabric.setup(module, optimiser, move_to_device=False)

    def descend(self, loss: Float[Tensor, ""]) -> None:
        self.fabric.backward(loss)

    def clip(self, module: nn.Module, optimiser: Any, largest: float) -> None:
        self.fabric.clip_gradients(module, optimiser, max_norm=largest)

    def mean(self, loss: Float[Tensor, ""]) -> float:
        return float(torch.as_tensor(self.fabric.all_reduce(loss.clone(), reduce_op="mean")))

    def agreed(self, value: float) -> float:
        return self.fabric.broadcast(value, 0)


def launch(work: Callable[..., None], n: int, device: torch.device, *given: Any) -> None:
    """``work(workers, device, *given)`` in ``n`` processes, on as many devices of the kind of ``device``.

    ``work`` and what it is given have to be importable and picklable.

    Raises
    ------
    ResourceUnavailableError
        E-TRAIN-FABRIC: Fabric is not installed. E-TRAIN-DEVICE: there are fewer GPUs.
    TractodeError
        The error of the first process that failed with one.
    """
    if n == 1:
        work(Alone(), device, *given)
        return
    if importlib.util.find_spec("lightning_fabric") is None:
        raise ResourceUnavailableError(
            "Several devices need Lightning Fabric, which is not installed",
            id="E-TRAIN-FABRIC",
            fix="pip install 'tractode[train]', or leave --devices out",
        )
    is_cuda = device.type == "cuda"
    if is_cuda and torch.cuda.device_count() < n:
        raise ResourceUnavailableError(
            f"There are {torch.cuda.device_count()} GPUs here, {n} were asked for", id="E-TRAIN-DEVICE"
        )
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from torch.multiprocessing import ProcessRaisedException, get_context

    strategy = DDPStrategy(
        process_group_backend="nccl" if is_cuda else "gloo",
        start_method="spawn",
        find_unused_parameters=True,  # a batch may leave a head of the model out
        broadcast_buffers=False,
    )
    errors = get_context("spawn").SimpleQueue()
    try:
        fabric = Fabric(accelerator="cuda" if is_cuda else "cpu", devices=n, strategy=strategy)
        # Bound, because Fabric looks into what it passes on itself, and refuses frozen dataclasses.
        fabric.launch(partial(_part, errors=errors, work=work, given=given))
    except ProcessRaisedException:
        if errors.empty():
            raise
        raise errors.get() from None


def _part(fabric: Fabric, errors: Any, work: Callable[..., None], given: tuple[Any, ...]) -> None:
    """What each process does; an error of ours is sent back whole, for its text and exit code."""
    workers = Together(fabric)
    try:
        work(workers, workers.device, *given)
    except TractodeError as error:
        errors.put(error)
        raise
