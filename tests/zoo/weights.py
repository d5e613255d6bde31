"""Weights that are no plain parameter: tied, used several times, slices, views, or computed from parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization

from zoo.case import Case, Net, Problem, classified, classifier, integers, normal, regressor


def middle(layer: nn.Module) -> Problem:
    """A layer (5 to 5) with a first and a last one around it."""
    return classified(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 3)), normal(3, 4))


def shared_layer() -> Problem:
    """One module under two names."""
    layer = nn.Linear(5, 5)
    return classified(nn.Sequential(nn.Linear(4, 5), layer, nn.Tanh(), layer, nn.Linear(5, 3)), normal(3, 4))


def tied_words(scale: float = 1.0, bias: bool = False) -> Problem:
    """A language model whose head is its embedding."""
    net = Net(
        lambda m, x: m.head(m.inner(m.embed(x)).tanh() * scale),
        embed=nn.Embedding(5, 4),
        inner=nn.Linear(4, 4),
        head=nn.Linear(4, 5, bias=bias),
    )
    net.head.weight = net.embed.weight
    return classified(net, integers(5, 3, 2))


class Rank1(nn.Module):
    """A weight as the outer product of two vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(normal(5)), nn.Parameter(normal(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.outer(self.a, self.b)


class Symmetric(nn.Module):
    """The upper triangle on both sides."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


def parametrized(parametrization: nn.Module) -> Problem:
    layer = nn.Linear(5, 5).double()
    register_parametrization(layer, "weight", parametrization)
    return middle(layer)


def low_rank(frozen: bool) -> Net:
    """x W^T + (x A^T) B^T."""
    base = nn.Linear(5, 5).requires_grad_(not frozen)
    return Net(
        lambda m, x: m.base(x) + 2 * m.up(m.down(x)),
        base=base,
        down=nn.Linear(5, 2, bias=False),
        up=nn.Linear(2, 5, bias=False),
    )


def flat_views(m: nn.Module, x: Tensor) -> Tensor:
    """An MLP whose weights are views of one vector."""
    w, b, v = m.flat.split([20, 5, 15])
    return F.linear(F.linear(x, w.view(5, 4), b).tanh(), v.view(3, 5))


def hyper(m: nn.Module, x: Tensor) -> Tensor:
    """Weights made from a learnt code by another network."""
    return F.linear(F.linear(x, m.make(m.code).view(5, 4)).tanh(), m.last)


def per_sample_weights(m: nn.Module, x: Tensor) -> Tensor:
    """Weights made from the sample itself."""
    return torch.bmm(m.make(x).view(-1, 3, 4), x[:, :, None])[..., 0]


def standardized(m: nn.Module, x: Tensor) -> Tensor:
    """A convolution whose filters have mean 0 and variance 1."""
    w = (m.w - m.w.mean((1, 2), keepdim=True)) / (m.w.var((1, 2), keepdim=True) + 1e-5).sqrt()
    return m.head(F.conv1d(x, w, m.b).tanh().mean(2))


SHARED = (
    Case("layer_under_two_names", shared_layer),
    Case(
        "layer_called_three_times",
        lambda: classifier(
            lambda m, x: m.last(m.inner(m.inner(m.inner(m.first(x)).tanh()).tanh())),
            normal(3, 4),
            first=nn.Linear(4, 5),
            inner=nn.Linear(5, 5),
            last=nn.Linear(5, 3),
        ),
    ),
    Case(
        "siamese",
        lambda: classifier(
            lambda m, a, b: m.head((m.inner(a).tanh() - m.inner(b).tanh()).abs()),
            normal(3, 4),
            normal(3, 4),
            inner=nn.Linear(4, 5),
            head=nn.Linear(5, 3),
        ),
    ),
    Case(
        "conv_called_twice",
        lambda: classifier(
            lambda m, x: m.head(m.conv(m.conv(x).tanh()).mean((2, 3))),
            normal(3, 2, 4, 4),
            conv=nn.Conv2d(2, 2, 3, padding=1),
            head=nn.Linear(2, 3),
        ),
    ),
    Case(
        "conv_at_two_scales",
        lambda: classifier(
            lambda m, x: m.head(sum(m.conv(s).tanh().mean((2, 3)) for s in (x, F.avg_pool2d(x, 2)))),
            normal(3, 2, 4, 4),
            conv=nn.Conv2d(2, 4, 2),
            head=nn.Linear(4, 3),
        ),
    ),
    Case("tied_embedding", tied_words),
    Case("tied_embedding_with_bias", lambda: tied_words(0.5, True)),
    Case(
        "tied_autoencoder",
        lambda: regressor(
            lambda m, x: F.linear(torch.tanh(F.linear(x, m.w, m.b)), m.w.T, m.c),
            normal(3, 4),
            w=normal(3, 4),
            b=normal(3),
            c=normal(4),
        ),
    ),
    Case(
        "tied_conv_transpose",
        lambda: regressor(
            lambda m, x: F.conv_transpose1d(F.conv1d(x, m.w, m.b).tanh(), m.w).flatten(1),
            normal(3, 1, 5),
            w=normal(3, 1, 3),
            b=normal(3),
        ),
    ),
    Case(
        "bias_used_twice",
        lambda: classifier(
            lambda m, x: F.linear(F.linear(x, m.w, m.b).tanh(), m.v, m.b) @ m.u,
            normal(3, 4),
            w=normal(4, 4),
            v=normal(4, 4),
            b=normal(4),
            u=normal(4, 3),
        ),
    ),
    Case(
        "weight_as_input_too",
        lambda: classifier(
            lambda m, x: F.linear(F.linear(x, m.w).tanh() + m.w.sum(1), m.v),
            normal(3, 4),
            w=normal(5, 4),
            v=normal(3, 5),
        ),
    ),
    Case(
        "layer_skipped_by_data",
        lambda: classifier(
            lambda m, x: m.last(m.inner(h).tanh() if (h := m.first(x)).sum().item() > -1e9 else h),
            normal(3, 4),
            first=nn.Linear(4, 5),
            inner=nn.Linear(5, 5),
            last=nn.Linear(5, 3),
        ),
    ),
    Case(
        "unused_branch",
        lambda: classifier(
            lambda m, x: m.last(m.first(x).tanh()),
            normal(3, 4),
            first=nn.Linear(4, 5),
            never=nn.Linear(5, 5),
            last=nn.Linear(5, 3),
        ),
        left_out=frozenset({"never.weight", "never.bias"}),
    ),
    Case(
        "detached_branch",
        lambda: classifier(
            lambda m, x: m.last(m.first(x).tanh() + m.aside(x).detach()),
            normal(3, 4),
            first=nn.Linear(4, 5),
            aside=nn.Linear(4, 5),
            last=nn.Linear(5, 3),
        ),
        left_out=frozenset({"aside.weight", "aside.bias"}),
    ),
    Case(
        "no_grad_branch",
        lambda: classifier(
            lambda m, x: m.last(m.first(x).tanh() + torch.no_grad()(m.first)(x)),
            normal(3, 4),
            first=nn.Linear(4, 5),
            last=nn.Linear(5, 3),
        ),
    ),
    Case(
        "straight_through",
        lambda: classifier(
            lambda m, x: m.last((h := m.first(x)) + (h.round() - h).detach()),
            normal(3, 4),
            first=nn.Linear(4, 5),
            last=nn.Linear(5, 3),
        ),
    ),
    Case(
        "fixed_point",
        lambda: classifier(
            lambda m, x: m.last(iterated(lambda z: torch.tanh(m.inner(z) + m.first(x)), x.new_zeros(len(x), 5), 5)),
            normal(3, 4),
            first=nn.Linear(4, 5),
            inner=nn.Linear(5, 5, bias=False),
            last=nn.Linear(5, 3),
        ),
    ),
    Case(
        "neural_ode",
        lambda: classifier(
            lambda m, x: m.last(iterated(lambda z: z + 0.1 * m.field(z + 0.05 * m.field(z)), x, 4)),
            normal(3, 4),
            field=nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)),
            last=nn.Linear(4, 3),
        ),
    ),
)


def iterated(step, z: Tensor, times: int) -> Tensor:
    """z after some steps."""
    for _ in range(times):
        z = step(z)
    return z


SLICED = (
    Case("views_of_a_flat_vector", lambda: classifier(flat_views, normal(3, 4), flat=normal(40))),
    Case(
        "overlapping_slices",
        lambda: classifier(
            lambda m, x: F.linear(F.linear(x, m.w[:5]).tanh() + F.linear(x.cos(), m.w[1:]), m.v),
            normal(3, 4),
            w=normal(6, 4),
            v=normal(3, 5),
        ),
    ),
    Case(
        "transposed_view",
        lambda: classifier(
            lambda m, x: F.linear(torch.addmm(m.b, x, m.w.T).tanh(), m.v.T),
            normal(3, 4),
            w=normal(5, 4),
            b=normal(5),
            v=normal(5, 3),
        ),
    ),
    Case(
        "strided_slice",
        lambda: classifier(
            lambda m, x: F.linear(F.linear(x, m.w[::2, 1:]).tanh(), m.w[1::3, :3]), normal(3, 4), w=normal(6, 5)
        ),
    ),
    Case(
        "weights_gathered_by_index",
        lambda: classifier(
            lambda m, x: F.linear(F.linear(x, m.w[torch.tensor([0, 2, 2])]).tanh(), m.v),
            normal(3, 4),
            w=normal(4, 4),
            v=normal(3, 3),
        ),
    ),
    Case(
        "stacked_experts",
        lambda: classifier(
            lambda m, x: m.head(torch.stack([F.linear(x, m.w[e], m.b[e]).tanh() for e in range(3)], -1) @ m.mix),
            normal(3, 4),
            w=normal(3, 5, 4),
            b=normal(3, 5),
            mix=normal(3),
            head=nn.Linear(5, 3),
        ),
    ),
    Case(
        "parameter_list",
        lambda: classifier(
            lambda m, x: sum(x.pow(k) @ w for k, w in enumerate(m.powers)),
            normal(3, 4),
            powers=nn.ParameterList([normal(4, 3) for _ in range(3)]),
        ),
    ),
    Case(
        "layers_weighted_by_softmax",
        lambda: classifier(
            lambda m, x: m.head(
                torch.tensordot(m.mix.softmax(0), torch.stack([x, h := m.first(x).tanh(), m.inner(h)]), 1)
            ),
            normal(3, 4),
            mix=normal(3),
            first=nn.Linear(4, 4),
            inner=nn.Linear(4, 4),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "weights_stacked",
        lambda: classifier(
            lambda m, x: F.linear(x, torch.stack([m.a, m.b, m.a + m.b])), normal(3, 4), a=normal(4), b=normal(4)
        ),
    ),
    Case(
        "kernels_concatenated",
        lambda: classifier(
            lambda m, x: m.head(F.conv1d(x, torch.cat([m.a, m.b])).tanh().mean(2)),
            normal(3, 2, 5),
            a=normal(2, 2, 3),
            b=normal(3, 2, 3),
            head=nn.Linear(5, 3),
        ),
    ),
)

COMPUTED = (
    Case("weight_norm", lambda: middle(parametrizations.weight_norm(nn.Linear(5, 5)))),
    Case(
        "weight_norm_of_conv",
        lambda: classified(
            nn.Sequential(
                parametrizations.weight_norm(nn.Conv1d(2, 4, 3), dim=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
            ),
            normal(3, 2, 5),
        ),
    ),
    Case("spectral_norm", lambda: middle(parametrizations.spectral_norm(nn.Linear(5, 5)))),
    Case("orthogonal", lambda: middle(parametrizations.orthogonal(nn.Linear(5, 5), orthogonal_map="cayley"))),
    Case("rank_one_update", lambda: parametrized(Rank1())),
    Case("symmetric", lambda: parametrized(Symmetric())),
    Case("pruned", lambda: middle(prune.random_unstructured(nn.Linear(5, 5), "weight", 0.4))),
    Case("low_rank_adapter", lambda: middle(low_rank(frozen=True))),
    Case("low_rank_beside_trained", lambda: middle(low_rank(frozen=False))),
    Case("low_rank_product", lambda: middle(Net(lambda m, x: F.linear(x, m.b @ m.a), a=normal(2, 5), b=normal(5, 2)))),
    Case(
        "low_rank_direction",
        lambda: middle(
            Net(
                lambda m, x: F.linear(x, m.scale * F.normalize(m.base.weight + m.b @ m.a, dim=1)),
                base=nn.Linear(5, 5, bias=False).requires_grad_(False),
                a=normal(2, 5),
                b=normal(5, 2),
                scale=normal(5, 1),
            )
        ),
    ),
    Case(
        "activation_scaled",
        lambda: middle(
            Net(
                lambda m, x: m.base(x * m.before) * m.after,
                base=nn.Linear(5, 5).requires_grad_(False),
                before=normal(5),
                after=normal(5),
            )
        ),
    ),
    Case(
        "hypernetwork",
        lambda: classifier(hyper, normal(3, 4), code=normal(2), make=nn.Linear(2, 20), last=normal(3, 5)),
    ),
    Case("weights_of_each_sample", lambda: classifier(per_sample_weights, normal(3, 4), make=nn.Linear(4, 12))),
    Case(
        "weight_standardization",
        lambda: classifier(standardized, normal(3, 2, 5), w=normal(4, 2, 3), b=normal(4), head=nn.Linear(4, 3)),
    ),
    Case(
        "positive_weights",
        lambda: middle(Net(lambda m, x: F.linear(x, F.softplus(m.w), m.b), w=normal(5, 5), b=normal(5))),
    ),
    Case(
        "ternary_weights",
        lambda: middle(
            Net(lambda m, x: F.linear(x, m.w + (m.w.sign() * m.w.abs().mean() - m.w).detach()), w=normal(5, 5))
        ),
    ),
    Case(
        "matrix_exponential", lambda: middle(Net(lambda m, x: x @ torch.linalg.matrix_exp(m.w - m.w.T), w=normal(5, 5)))
    ),
    Case(
        "tensor_train",
        lambda: classifier(
            lambda m, x: x @ torch.einsum("aib,bjc->ijac", m.u, m.v).reshape(4, 3),
            normal(3, 4),
            u=normal(1, 2, 2),
            v=normal(2, 2, 3),
        ),
    ),
    Case(
        "toeplitz",
        lambda: middle(Net(lambda m, x: x @ m.t[torch.arange(5)[:, None] - torch.arange(5) + 4], t=normal(9))),
    ),
    Case(
        "circulant_by_fft",
        lambda: middle(Net(lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(m.c), n=5), c=normal(5))),
    ),
    Case(
        "scaled_by_norm_of_others",
        lambda: classifier(
            lambda m, x: m.last(m.first(x).tanh()) / m.first.weight.norm(),
            normal(3, 4),
            first=nn.Linear(4, 5),
            last=nn.Linear(5, 3),
        ),
    ),
)

CASES = (*SHARED, *SLICED, *COMPUTED)
