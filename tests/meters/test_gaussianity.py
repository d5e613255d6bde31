"""Kolmogorov distances of inputs, against distribution functions evaluated one value at a time."""

from __future__ import annotations

from statistics import NormalDist, fmean, median, pstdev

import pytest
import torch
from cases import instance_of
from torch import Tensor, nn

import curvbench as cb
from curvbench.meters.gaussianity import METRICS, NETWORK, from_gaussian, from_positive_part, input_rows
from curvbench.spec import METRICS as KNOWN
from curvbench.spec import Status

STANDARD = NormalDist()


def distance(values: list[float], positive: bool) -> float:
    """The largest |share of values up to x - P(Z <= x)| at x, and just left of x, for every value x."""
    mean, spread, zeros = fmean(values), pstdev(values), values.count(0.0) / len(values)
    fitted = NormalDist(mean, spread)
    if positive and zeros:
        ratio = -STANDARD.inv_cdf(zeros)
        scale = mean / (STANDARD.pdf(ratio) + ratio * STANDARD.cdf(ratio))
        fitted = NormalDist(ratio * scale, scale)
    largest = 0.0
    for x in values:
        up_to, below = (sum(map(is_in, values)) / len(values) for is_in in (x.__ge__, x.__gt__))
        left = 0.0 if positive and x <= 0 else fitted.cdf(x)
        largest = max(largest, abs(up_to - fitted.cdf(x)), abs(below - left))
    return largest


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_distances_are_those_of_the_distribution_functions(share: float) -> None:
    values = torch.rand(40, 3, dtype=torch.float64) ** 2 + 0.1
    values[: int(40 * share)] = 0.0
    for column, plain, positive in zip(values.T, from_gaussian(values), from_positive_part(values), strict=True):
        assert float(plain) == pytest.approx(distance(column.tolist(), positive=False), abs=1e-9)
        assert float(positive) == pytest.approx(distance(column.tolist(), positive=True), abs=1e-9)


def test_a_gaussian_and_its_positive_part_are_told_from_others() -> None:
    drawn = torch.randn(20_000, 1, dtype=torch.float64) * 3 + 1
    assert float(from_gaussian(drawn)) < 0.01 < 0.1 < float(from_gaussian(drawn.relu()))
    assert float(from_positive_part(drawn.relu())) < 0.01 < 0.1 < float(from_positive_part(drawn.exp().log1p().exp()))
    uniform = torch.linspace(-1, 1, 20_001, dtype=torch.float64)[:, None]
    assert float(from_gaussian(uniform)) == pytest.approx(0.0572, abs=1e-4)


def test_rows_are_medians_over_coordinates_and_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x = torch.randn(70, 3, dtype=torch.float64)  # more than one pass takes
    instance = cb.Instance(model, x, torch.randint(0, 3, (70,)))
    rows = {(row.metric, row.scope): row for row in input_rows(instance)}
    inputs = {"0": x, "2": model[:2](x), "4": model[:4](x)}
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for name, values in inputs.items():
        for metric, positive in zip(METRICS[:2], (False, True), strict=True):
            found[metric] += _checked(rows[metric, name].value, values, positive)
        norms = values.norm(dim=1).tolist()
        found["inputs.norm"].append(distance(norms, positive=False))
        assert rows["inputs.norm", name].value == pytest.approx(found["inputs.norm"][-1], abs=1e-9)
    assert rows["inputs.positive", "0"].status is Status.SKIPPED
    for metric, distances in found.items():
        assert metric in KNOWN
        assert rows[metric, NETWORK].value == pytest.approx(median(distances), abs=1e-9)


def _checked(value: float | None, values: Tensor, positive: bool) -> list[float]:
    """The distance by the oracle, after a comparison with the measured one; none where there is nothing to compare."""
    varied = [column.tolist() for column in values.detach().T if column.amax() > column.amin()]
    if positive and min(map(min, varied)) < 0:
        return []
    distances = sorted(distance(column, positive) for column in varied)
    assert value == pytest.approx(distances[(len(distances) - 1) // 2], abs=1e-9)
    return [distances[(len(distances) - 1) // 2]]


def test_embeddings_have_no_real_inputs() -> None:
    scopes = {row.scope for row in input_rows(instance_of("embedding"))}
    assert "first" not in scopes and NETWORK in scopes
