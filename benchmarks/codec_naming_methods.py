"""Who names the lines of a task in `codec_naming.py`: the codec's namer, and RecoBundles.

RecoBundles: E. Garyfallidis et al., NeuroImage 2018, doi:10.1016/j.neuroimage.2017.07.015, as DIPY has it, with the thresholds of its
workflow (clusters of 15 mm in the tractogram and 2.5 mm in the model, reduction 15 mm, local registration, pruning 8 mm) except that short lines
are kept; the model of each bundle are the library's training lines. A line that several bundles claim goes to the nearest (MDF to the model's lines).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from codec_naming_tasks import model_lines, names
from dipy.segment.bundles import RecoBundles
from dipy.tracking.streamline import Streamlines as DipyStreamlines
from torch import Tensor

from tractode.fields import Streamlines
from tractode.fields.line_shape import resampled
from tractode.generative.codec import BundleCodec
from tractode.generative.line_code import usable


@dataclass(frozen=True, eq=False)
class Named:
    """``index`` of the bundle of each line, the number of bundles for none; ``probability`` where a method states one.

    ``seconds`` by the clock, and of the processor (all threads): what is left of the first where others use the machine too.
    """

    index: Tensor
    probability: Tensor | None
    seconds: float
    processor_seconds: float


class Watch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = (time.perf_counter(), time.process_time())

    def seconds(self) -> tuple[float, float]:
        return time.perf_counter() - self._began[0], time.process_time() - self._began[1]


def ours(codec: BundleCodec, lines: Streamlines) -> Named:
    """The whole way: which lines can be coded, points, codes, names."""
    if codec.namer is None:
        raise ValueError("These weights name nothing.")
    watch = Watch()
    ok = usable(lines, codec.box)
    codes = codec.encode(lines.select(ok.nonzero().ravel())).values
    found, stated = codec.namer.named(codec.dequantise(codes))
    index = torch.full((len(lines),), len(codec.names))
    probability = torch.ones(len(lines))
    index[ok], probability[ok] = found, stated
    return Named(index, probability, *watch.seconds())


def recobundles(lines: Streamlines, registers: bool = True, pruning_mm: float = 8.0, every: int = 1) -> Named:
    """Every bundle of the atlas is looked for (or, to measure time, one of ``every``, whose time stands for that of all)."""
    watch = Watch()
    target = DipyStreamlines([line.numpy() for line in lines])
    finder = RecoBundles(target, greater_than=0, clust_thr=15, rng=np.random.default_rng(0))
    points = resampled(lines, _POINTS).float()
    index = torch.full((len(lines),), len(names()))
    nearest = torch.full((len(lines),), torch.inf)
    ready, searched = watch.seconds(), range(0, len(names()), every)
    for bundle in searched:
        model = model_lines(bundle)
        claimed = _claimed(finder, DipyStreamlines(list(model.numpy())), registers, pruning_mm)
        if not len(claimed):
            continue
        distance = _mdf(points[claimed], model)
        is_nearer = distance < nearest[claimed]
        index[claimed[is_nearer]] = bundle
        nearest[claimed[is_nearer]] = distance[is_nearer]
    wall, processor = (
        first + (last - first) * len(names()) / len(searched)
        for first, last in zip(ready, watch.seconds(), strict=True)
    )
    return Named(index, None, wall, processor)


_POINTS = 16


def _claimed(finder: RecoBundles, model: DipyStreamlines, registers: bool, pruning_mm: float) -> Tensor:
    try:
        _, rows = finder.recognize(
            model, 2.5, reduction_thr=15, slr=registers, pruning_thr=pruning_mm, num_threads=torch.get_num_threads()
        )
    except (ValueError, IndexError, TypeError):  # raised where nothing is left after the reduction
        return torch.zeros(0, dtype=torch.long)
    return torch.as_tensor(np.asarray(rows, dtype=np.int64))


def _mdf(lines: Tensor, model: Tensor) -> Tensor:
    """Of each line to the nearest of the model, mm."""
    others = model[:, ::2]
    found = []
    for part in lines.split(256):
        direct = (part[:, None] - others[None]).norm(dim=-1).mean(-1)
        turned = (part.flip(1)[:, None] - others[None]).norm(dim=-1).mean(-1)
        found.append(torch.minimum(direct, turned).amin(1))
    return torch.cat(found)
