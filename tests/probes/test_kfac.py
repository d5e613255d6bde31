"""K-FAC where samples have several loss terms: a column per term, without cross terms (docs/peers.md)."""

from __future__ import annotations

import pytest
import torch
from judging import near
from torch import Tensor, nn

import curvbench as cb


class Meeting(nn.Module):
    """Tokens that meet between two layers, so that every position reaches every loss term."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.last(hidden + hidden.mean(1, keepdim=True))


@pytest.mark.parametrize("name", ["first", "last"])
def test_reduce_has_a_column_per_loss_term(name: str) -> None:
    """By autograd, term by term; the control sums a sample's terms first, as curvlinops does."""
    torch.manual_seed(0)
    model, x, y = Meeting().double(), torch.randn(3, 4, 5).double(), torch.randint(3, (3, 4))
    seen: list[tuple[Tensor, Tensor]] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
    outputs = model(x)
    hook.remove()
    [(inputs, reached)] = seen
    A, B, crossed = 0, 0, 0
    for n in range(3):
        mean = torch.cat([inputs[n].detach().mean(0), torch.ones(1).double()])
        A = A + torch.outer(mean, mean) / 3
        terms = []
        for t in range(4):
            loss = nn.functional.cross_entropy(outputs[n, t][None], y[n, t][None])
            terms.append(torch.autograd.grad(loss, reached, retain_graph=True)[0][n].sum(0))
        B = B + sum(torch.outer(u, u) for u in terms) / 12
        crossed = crossed + torch.outer(sum(terms), sum(terms)) / 12
    probe = cb.probe("kfac", fisher_type="empirical", kfac_approx="reduce")
    found = probe.fit(cb.Instance(model, x, y)).factors[("first", "last").index(name)]
    assert near(found.right[0], A) and near(found.left[0], B)
    assert not near(found.left[0], crossed, 0.1)
