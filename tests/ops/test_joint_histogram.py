"""Joint histograms by loops against dense windows, and their gradient against autograd's."""

from __future__ import annotations

import torch

from tractode.ops import affine as aff
from tractode.ops import interpolate
from tractode.ops.joint_histogram import joint_histogram
from tractode.registration.metrics.mutual_information import normalised_mutual_information, parzen


def test_counts_and_gradient_are_those_of_dense_windows() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(2, 11, 9, 10, generator=generator, dtype=torch.float64)
    volume[1] = (volume[1] > 0.3).double()
    points = 14 * torch.rand(400, 3, generator=generator, dtype=torch.float64) - 2  # some out of view
    known, weight = torch.rand(2, 400, generator=generator, dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3] += 0.05 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    matrix.requires_grad_()

    at = aff.apply_affine(matrix, points)
    there = interpolate.sample(volume[:1], at, outside="nearest")[..., 0]
    seen = interpolate.sample(volume[1:], at)[..., 0] * weight
    dense = (parzen(known, 16) * seen[:, None]).mT @ parzen(there, 16)
    joint, total = joint_histogram(matrix, volume, points, known, weight, 16)
    torch.testing.assert_close(joint, dense)
    torch.testing.assert_close(total, seen.sum())

    gradients = [
        torch.autograd.grad(normalised_mutual_information(h) + 0.01 * n, matrix)[0]
        for h, n in ((dense, seen.sum()), (joint, total))
    ]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert float(gradients[0].abs().max()) > 0.01
