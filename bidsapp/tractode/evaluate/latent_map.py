"""Many latents as points of a plane: principal components, and neighbourhoods by t-SNE.

t-SNE: L. van der Maaten, G. Hinton, "Visualizing data using t-SNE", JMLR 9, 2579-2605, 2008 (scikit-learn's, started from the
principal components, so that the same latents give the same map). Its distances between far groups mean nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

MOST_FOR_TSNE = 3000
FEWEST_FOR_TSNE = 20
_PERPLEXITY = 30.0


def principal_plane(latents: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n 2"], tuple[float, float]]:
    """The two directions in which latents vary most, and the shares of variance they have; zeros where there are fewer.

    Signs are such that each axis's greatest value is positive.
    """
    centred = latents.double() - latents.double().mean(0) if len(latents) else latents.double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    plane = torch.zeros(len(latents), 2, dtype=torch.float64)
    k = min(2, len(s))
    plane[:, :k] = u[:, :k] * s[:k]
    for axis in range(k):
        extreme = plane[plane[:, axis].abs().argmax(), axis]
        plane[:, axis] *= -1 if float(extreme) < 0 else 1
    total = float(s.square().sum())
    shares = [float(value.square()) / total if total > 0 else 0.0 for value in s[:2]] + [0.0, 0.0]
    return plane.float(), (shares[0], shares[1])


def neighbour_map(latents: Float[Tensor, "n d"]) -> Float[Tensor, "n 2"] | None:
    """t-SNE of at least `FEWEST_FOR_TSNE` and at most `MOST_FOR_TSNE` latents, else ``None``."""
    n = len(latents)
    if not FEWEST_FOR_TSNE <= n <= MOST_FOR_TSNE or float(latents.std(0).max()) == 0:
        return None
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (n - 1) / 3)
    found = TSNE(2, perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(latents.double().numpy())
    return torch.from_numpy(found).float()
