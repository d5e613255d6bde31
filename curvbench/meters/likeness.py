"""How alike the samples' scores are from layer to layer: cosines of Gram matrices (FNGD's Figure 3)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from curvbench.fisher import collect, contraction
from curvbench.instance import Instance
from curvbench.spec import Row, Status

ADJACENT, DISTANT = "adjacent", "distant"
METRIC = "gram.cosine"


def likeness_rows(instance: Instance) -> Iterator[Row]:
    """The cosines of ``likeness`` of every layer with the next one, and their means over adjacent and distant pairs.

    Layers are distant that are half of the layers apart or more. The scores are those of the batch's own targets.
    """
    layers, cosines = instance.layers, likeness([contraction.gram(c) for c in collect(instance, "empirical")])
    for k, (layer, after) in enumerate(itertools.pairwise(layers)):
        yield _row(cosines[k, k + 1][None], layer.name, f"with {after.name}")
    places = torch.arange(len(layers), device=cosines.device)
    apart = places - places[:, None]
    half = (len(layers) + 1) // 2
    yield _row(cosines[apart == 1], ADJACENT, "mean over pairs of neighbours")
    yield _row(cosines[apart >= max(half, 2)], DISTANT, f"mean over pairs {max(half, 2)} or more layers apart")


def likeness(grams: list[Tensor]) -> Tensor:
    """Cosines (L, L) of the off-diagonal parts of L Gram matrices (n, n), each normalised to a diagonal of ones.

    A column of zeros has no direction and the cosine 0 with every other; matrices without any off-diagonal part have
    NaN.
    """
    vectors = torch.stack([_off_diagonal(gram).flatten() for gram in grams])
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    return vectors @ vectors.T


def _off_diagonal(gram: Tensor) -> Tensor:
    lengths = gram.diagonal().sqrt()
    normalised = torch.where((lengths > 0) & (lengths[:, None] > 0), gram / lengths / lengths[:, None], 0.0)
    return normalised.fill_diagonal_(0.0)


def _row(cosines: Tensor, scope: str, method: str) -> Row:
    if not len(cosines):
        return Row(METRIC, scope=scope, status=Status.SKIPPED, reason="the network has no such pair of layers")
    mean = float(cosines.mean())
    if mean != mean:
        return Row(METRIC, scope=scope, status=Status.SKIPPED, reason="a layer's scores are orthogonal or zero")
    return Row(METRIC, mean, scope, method=method)
