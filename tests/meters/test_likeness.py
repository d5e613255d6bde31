"""Cosines of layers' Gram matrices, against per-sample gradients taken one by one."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from cases import Truth, instance_of, truth
from torch import Tensor, nn

import curvbench as cb
from curvbench.meters.likeness import ADJACENT, DISTANT, METRIC, likeness, likeness_rows
from curvbench.spec import METRICS, Status


def expected(judge: Truth) -> list[list[float]]:
    """Entry by entry: normalise U'U, leave out its diagonal, and take the cosine of two layers."""
    targets = judge.case.build()[2]
    layers = list(oracles.layer_slices(judge.model).values())
    scores = [oracles.score(term, target, judge.case.loss) for term, target in zip(judge.terms, targets, strict=True)]
    flattened = []
    for part in layers:
        u = [score[part] for score in scores]
        pairs = [(a, b) for i, a in enumerate(u) for j, b in enumerate(u) if i != j]
        flattened.append([float(a @ b / (a.norm() * b.norm())) for a, b in pairs])
    return [[_cosine(a, b) for b in flattened] for a in flattened]


def _cosine(a: list[float], b: list[float]) -> float:
    inner = sum(x * y for x, y in zip(a, b, strict=True))
    return inner / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn"])
def test_rows_are_the_cosines_of_neighbours_and_of_distant_layers(name: str) -> None:
    instance, cosines = instance_of(name), expected(truth(name))
    rows = {row.scope: row.value for row in likeness_rows(instance)}
    assert METRIC in METRICS
    count = len(cosines)
    for k, layer in enumerate(instance.layers[:-1]):
        assert rows[layer.name] == pytest.approx(cosines[k][k + 1], rel=1e-9)
    near = [cosines[i][j] for i in range(count) for j in range(count) if j - i == 1]
    far = [cosines[i][j] for i in range(count) for j in range(count) if j - i >= max(math.ceil(count / 2), 2)]
    assert rows[ADJACENT] == pytest.approx(sum(near) / len(near), rel=1e-9)
    assert rows[DISTANT] == pytest.approx(sum(far) / len(far), rel=1e-9)


def test_a_network_of_one_layer_has_no_pairs() -> None:
    instance = cb.Instance(nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0]))
    rows = list(likeness_rows(instance))
    assert {row.status for row in rows} == {Status.SKIPPED}


def test_samples_without_a_score_are_like_no_other() -> None:
    u, v = torch.randn(2, 5, 3, dtype=torch.float64)
    grams: list[Tensor] = [u @ u.T, v @ v.T]
    padded = [torch.zeros(6, 6, dtype=torch.float64) for _ in grams]
    for large, small in zip(padded, grams, strict=True):
        large[:5, :5] = small
    assert torch.allclose(likeness(padded), likeness(grams), rtol=1e-12)
