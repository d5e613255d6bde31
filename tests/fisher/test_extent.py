"""What an instance and its Fisher say of the parameters that they cover."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import curvbench as cb
from curvbench.fisher import ExactFisher
from curvbench.fisher.uncovered import covered_trace
from curvbench.spec import Parameters

X, Y = torch.linspace(-1, 1, 24).double().reshape(6, 4).sin(), torch.arange(6) % 3


class Normed(nn.Module):
    """Linear, LayerNorm, Linear, and a parameter that nothing reads; ``centred`` takes the mean of the batch off."""

    def __init__(self, centred: bool = False) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)
        self.spare, self.centred = nn.Parameter(torch.ones(2)), centred

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x))
        outputs: Tensor = self.last(hidden - self.centred * hidden.mean(0))
        return outputs


def instance(parameters: Parameters, centred: bool = False) -> cb.Instance:
    torch.manual_seed(0)
    return cb.Instance(Normed(centred).double(), X, Y, parameters=parameters)


def test_what_is_left_out_is_said_with_its_reason() -> None:
    unused = "left out: 'spare' (not used on this batch)"
    norm = "'norm.bias', 'norm.weight' (no weight of a linear layer or a convolution)"
    assert repr(instance("all")) == (
        f"Instance(6 samples, 53 parameters; all parameters, 96.4% of the trainable ones; {unused})"
    )
    found = instance("weights")
    said = f"weights only, 78.2% of the trainable ones; {unused}, {norm}"
    assert repr(found) == f"Instance(6 samples, 43 parameters; {said})"
    assert repr(cb.exact_fisher(found)) == f"ExactFisher(43 parameters, 2 layers, 6 terms; {said})"


def test_many_names_are_counted() -> None:
    model = nn.Sequential(nn.Linear(4, 3), *(nn.LayerNorm(3) for _ in range(3))).double()
    left_out = cb.Instance(model, X, Y, parameters="weights").extent.note
    assert left_out.startswith("left out: '1.bias', '1.weight', '2.bias' and 3 more (")


@pytest.mark.parametrize("parameters", ["all", "weights"])
def test_errors_and_layers_have_their_share(parameters: Parameters) -> None:
    found = instance(parameters)
    fisher = cb.exact_fisher(found)
    assert cb.errors(fisher, fisher)["coverage"] == fisher.coverage == found.coverage == found.size / 55
    layer = found.layers[0]
    assert fisher.layer(layer.name).coverage == layer.size / 55
    assert math.isnan(ExactFisher(fisher.columns, 6).coverage)


def test_coupled_samples_have_a_trace_outside_too() -> None:
    weights, every = instance("weights", centred=True), instance("all", centred=True)
    assert weights.extent.note.endswith("; the samples are coupled")
    inside, outside = cb.exact_fisher(weights), cb.exact_fisher(every)
    assert covered_trace(weights, inside) == pytest.approx(inside.trace() / outside.trace(), rel=1e-12)
    assert covered_trace(every, outside) == 1.0
