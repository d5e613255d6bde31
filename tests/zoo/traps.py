"""Models and batches that mislead: equal sizes, equal samples, faint coupling, odd storage, rare operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint_sequential

from zoo import oracle
from zoo.case import Case, Net, Problem, classified, classifier, integers, normal, regressed, regressor, then, three


def in_turn(m: Any, x: Tensor) -> Tensor:
    """The three layers in turn."""
    return m.last(m.inner(m.first(x).tanh()).tanh())


def cube(function: Callable[..., Tensor], **parts: Tensor | nn.Module) -> Problem:
    """Inputs (3, 3, 3) and three layers of width 3: no size tells a dimension from another."""
    layers = {name: nn.Linear(3, 3) for name in ("first", "inner", "last")}
    return classifier(function, normal(3, 3, 3), **layers, **parts)


EQUAL_SIZES = (
    Case("cube_of_tokens", lambda: cube(in_turn)),
    Case(
        "cube_sequence_first",
        lambda: cube(lambda m, x: m.last(m.inner(m.first(x).mT.transpose(0, 1)).tanh().transpose(0, 1).mT)),
    ),
    Case(
        "cube_samples_last",
        lambda: cube(lambda m, x: m.last(m.inner(m.first(x).movedim(0, -1).movedim(-1, 1)).tanh().transpose(0, 1))),
    ),
    Case("cube_of_positions", lambda: cube(lambda m, x: in_turn(m, x + m.place), place=normal(3, 3))),
    Case("cube_of_shared_positions", lambda: cube(lambda m, x: in_turn(m, x + m.place), place=normal(1, 3, 3))),
    Case("cube_of_mixed_tokens", lambda: cube(lambda m, x: in_turn(m, m.mix @ x), mix=normal(3, 3))),
    Case(
        "cube_of_mixed_samples",
        lambda: cube(lambda m, x: in_turn(m, torch.tensordot(m.mix, x, 1)), mix=normal(3, 3)),
        coupled=True,
    ),
    Case(
        "cube_of_attention",
        lambda: cube(
            lambda m, x: m.last(m.attention(h := m.inner(m.first(x)), h, h)[0]),
            attention=nn.MultiheadAttention(3, 1, batch_first=True),
        ),
    ),
    Case(
        "cube_attention_over_samples",
        lambda: cube(
            lambda m, x: m.last(m.attention(h := m.inner(m.first(x)), h, h)[0]), attention=nn.MultiheadAttention(3, 1)
        ),
        coupled=True,
    ),
    Case(
        "square_matmul_left",
        lambda: classifier(lambda m, x: (m.w @ x.T).T @ m.v, normal(4, 4), w=normal(4, 4), v=normal(4, 4)),
    ),
    Case(
        "square_conv",
        lambda: classified(
            nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 3), nn.Flatten()),
            normal(3, 3, 3, 3),
        ),
    ),
)


def batch(x: Tensor) -> Problem:
    """The three layers on given samples."""
    return three(in_turn, x)


def ignoring_a_sample() -> Problem:
    """No token of the second sample has a target."""
    problem = batch(normal(3, 2, 4))
    problem.targets[1] = oracle.IGNORED
    return problem


def dead_sample(m: Any, x: Tensor) -> Tensor:
    """The inner layer's gradient is zero for the samples whose first input is negative."""
    return m.last(m.first(x).tanh() + (x[:, :1] > 0) * m.inner(m.first(x)))


BATCHES = (
    Case("one_sample", lambda: batch(normal(1, 4))),
    Case(
        "one_sample_of_tokens",
        lambda: three(lambda m, x: m.last(m.inner(m.first(x).flatten(0, 1))).view(1, 3, 3), normal(1, 3, 4)),
    ),
    Case("two_samples", lambda: batch(normal(2, 4))),
    Case("seven_samples", lambda: batch(normal(7, 4))),
    Case("equal_samples", lambda: batch(normal(1, 4).repeat(3, 1))),
    Case(
        "equal_samples_permuted",
        lambda: three(lambda m, x: m.last(m.inner(m.first(x).roll(1, 0)).roll(-1, 0)), normal(1, 4).repeat(3, 1)),
    ),
    Case("zero_sample", lambda: batch(torch.cat([torch.zeros(1, 4).double(), normal(2, 4)]))),
    Case("ignored_sample", ignoring_a_sample),
    Case("dead_sample", lambda: three(dead_sample, torch.tensor([[-1.0], [1.0], [1.0]]) * normal(3, 4).abs())),
    Case(
        "position_in_the_batch",
        lambda: three(lambda m, x: in_turn(m, x + torch.arange(len(x))[:, None]), normal(3, 4)),
        coupled=None,
    ),
    Case("samples_of_scales", lambda: batch(normal(3, 4) * torch.tensor([[1e-6], [1.0], [1e2]]))),
    Case(
        "sure_and_unsure",
        lambda: classified(nn.Sequential(nn.Linear(4, 3), then(lambda h: 8 * h)), normal(3, 4)),
        tolerance=1e-9,
    ),
    Case("two_classes", lambda: classified(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), normal(3, 4))),
    Case("one_output", lambda: regressed(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), normal(3, 4))),
    Case(
        "inputs_of_integers_and_floats",
        lambda: classifier(
            lambda m, x, k: m.last(m.first(x) * m.table(k)),
            normal(3, 4),
            integers(3, 3),
            first=nn.Linear(4, 5),
            table=nn.Embedding(3, 5),
            last=nn.Linear(5, 3),
        ),
    ),
    Case(
        "constant_input_beside", lambda: three(lambda m, x, grid: in_turn(m, x + grid), normal(3, 2, 4), normal(2, 4))
    ),
    Case(
        "constant_input_as_long", lambda: three(lambda m, x, grid: in_turn(m, x + grid), normal(3, 3, 4), normal(3, 4))
    ),
)


def coupled(name: str, function: Callable[..., Tensor]) -> Case:
    """Three layers whose samples share something."""
    return Case(name, lambda: three(function, normal(4, 4)), coupled=True)


FAINT = (
    coupled("coupled_faintly", lambda m, x: m.last((h := m.first(x)).tanh() + 1e-6 * m.inner(h).mean(0))),
    coupled("coupled_in_one_layer", lambda m, x: m.last(m.inner((h := m.first(x).tanh()) + h.mean(0)).tanh())),
    coupled(
        "coupled_two_samples", lambda m, x: m.last(torch.cat([(h := m.inner(m.first(x)))[:1] + h[1:2], h[1:]]).tanh())
    ),
    coupled(
        "coupled_next_sample",
        lambda m, x: m.last(m.first(x).tanh() + torch.cat([(h := m.inner(m.first(x)))[1:], h[:1] * 0]).tanh()),
    ),
    coupled("coupled_by_the_largest", lambda m, x: m.last((h := m.first(x)) / m.inner(h).amax(0).abs().add(1))),
    coupled("coupled_by_a_norm", lambda m, x: m.last(m.inner((h := m.first(x)) / h.norm()).tanh())),
    Case(
        "coupled_without_gradient",
        lambda: three(lambda m, x: m.last(m.inner((h := m.first(x)) - h.mean(0).detach()).tanh()), normal(4, 4)),
        coupled=None,
    ),
    Case(
        "inputs_mixed_over_samples", lambda: three(lambda m, x: in_turn(m, x + x.mean(0)), normal(4, 4)), coupled=None
    ),
    Case(
        "gradient_of_scales",
        lambda: three(lambda m, x: m.last(m.first(x).tanh() + 1e-5 * m.inner(m.first(x))), normal(3, 4)),
    ),
)


def sharing_storage() -> Problem:
    """Two parameters in one block of memory, as sharded training lays them."""
    flat = normal(35)
    net = Net(lambda m, x: F.linear(F.linear(x, m.w).tanh(), m.v), w=flat[:20].view(5, 4), v=flat[20:].view(3, 5))
    return classified(net, normal(3, 4))


def channels_last() -> Problem:
    """Convolutions whose weights lie in memory with the channels last."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 2), nn.Flatten(), nn.Linear(12, 3))
    return classified(net.to(memory_format=torch.channels_last), normal(3, 2, 5, 5))


def tied_across_kinds() -> Problem:
    """One parameter as a linear weight and as a convolution with kernels of one pixel."""
    function = lambda m, x: F.linear(F.conv1d(x, m.w[..., None]).tanh().mean(2), m.w) @ m.v  # noqa: E731
    return classifier(function, normal(3, 4, 5), w=normal(4, 4), v=normal(4, 3))


def one_lstm_twice() -> Problem:
    """The same recurrence reads two sentences."""
    return classifier(
        lambda m, a, b: m.head(m.read(a)[1][0][0] - m.read(b)[1][0][0]),
        normal(3, 4, 3),
        normal(3, 2, 3),
        read=nn.LSTM(3, 4, batch_first=True),
        head=nn.Linear(4, 3),
    )


def frozen_head() -> Problem:
    """A tied embedding beside a frozen bias and a frozen norm."""
    net = Net(
        lambda m, x: m.head(m.norm(m.embed(x))), embed=nn.Embedding(5, 4), norm=nn.LayerNorm(4), head=nn.Linear(4, 5)
    )
    net.head.weight = net.embed.weight
    net.norm.requires_grad_(False)
    net.head.bias.requires_grad_(False)
    return classified(net, integers(5, 3, 2))


STORAGE = (
    Case("parameters_of_one_storage", sharing_storage),
    Case("weights_channels_last", channels_last),
    Case(
        "weight_not_contiguous",
        lambda: classifier(
            lambda m, x: F.linear(F.linear(x, m.w).tanh(), m.v), normal(3, 4), w=normal(4, 5).T, v=normal(5, 3).T
        ),
    ),
    Case(
        "scalar_parameters",
        lambda: classifier(
            lambda m, x: m.a * m.layer(x) + m.b, normal(3, 4), a=normal(1)[0], b=normal(1)[0], layer=nn.Linear(4, 3)
        ),
    ),
    Case(
        "parameters_of_size_one",
        lambda: classifier(
            lambda m, x: m.layer(m.scale * x[..., None]).sum(1),
            normal(3, 4),
            scale=normal(1, 1, 1),
            layer=nn.Linear(1, 3),
        ),
    ),
    Case("tied_across_kinds", tied_across_kinds),
    Case("lstm_called_twice", one_lstm_twice),
    Case("tied_beside_frozen", frozen_head),
    Case(
        "bias_as_weight_of_another",
        lambda: classifier(
            lambda m, x: F.linear(F.linear(x, m.w, m.b).tanh(), m.b.view(1, 5)) * m.c,
            normal(3, 4),
            w=normal(5, 4),
            b=normal(5),
            c=normal(3),
        ),
    ),
    Case(
        "norm_scale_as_bias",
        lambda: classifier(
            lambda m, x: F.layer_norm(F.linear(x, m.w, m.s), (5,), m.s) @ m.v,
            normal(3, 4),
            w=normal(5, 4),
            s=normal(5),
            v=normal(5, 3),
        ),
    ),
    Case(
        "weight_cast_and_back",
        lambda: classifier(
            lambda m, x: F.linear(F.linear(x, m.w.contiguous().clone()).tanh(), m.v.to(torch.float64).T.contiguous()),
            normal(3, 4),
            w=normal(5, 4),
            v=normal(5, 3),
        ),
    ),
    Case(
        "weight_padded",
        lambda: classifier(
            lambda m, x: F.linear(F.linear(x, F.pad(m.w, (1, 1))).tanh(), m.v),
            normal(3, 4),
            w=normal(5, 2),
            v=normal(3, 5),
        ),
    ),
    Case(
        "weight_written_into",
        lambda: classifier(lambda m, x: F.linear(x, written(x.new_zeros(3, 4), m.w)), normal(3, 4), w=normal(3, 2)),
    ),
    Case(
        "weight_rolled_and_tiled",
        lambda: classifier(lambda m, x: x @ torch.cat([m.w, m.w.roll(1, 0).flip(1)]), normal(3, 4), w=normal(2, 3)),
    ),
)


def written(into: Tensor, w: Tensor) -> Tensor:
    """Zeros with a parameter written into two columns."""
    into[:, 1:3] = w
    return into


class Split(torch.autograd.Function):
    """Sine and cosine of x W^T, two outputs of one function."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, w)
        return (x @ w.T).sin(), (x @ w.T).cos()

    @staticmethod
    def backward(ctx: FunctionCtx, sine: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        g = (x @ w.T).cos() * sine - (x @ w.T).sin() * cosine
        return g @ w, g.T @ x


def slots(m: Any, x: Tensor) -> Tensor:
    """Learnt slots that compete for the tokens, in two rounds of a recurrent cell."""
    slot = m.slot.expand(len(x), -1, -1)
    for _ in range(2):
        share = (x @ m.query(slot).mT).softmax(-1)
        slot = m.cell((share.mT @ x).flatten(0, 1), slot.flatten(0, 1)).view_as(slot)
    return m.head(slot.mean(1))


def chain_of_labels(m: Any, x: Tensor) -> Tensor:
    """Forward messages of a chain of labels, with learnt transitions."""
    score = m.score(x)
    messages = [score[:, 0] + m.start]
    for t in range(1, x.shape[1]):
        messages.append(score[:, t] + (messages[-1][:, :, None] + m.transition).logsumexp(1))
    return torch.stack(messages, 1)


def graph_attention(m: Any, x: Tensor, edges: Tensor) -> Tensor:
    """Attention along the edges of graphs of three nodes, one graph per sample, nodes folded into rows."""
    h = m.first(x).flatten(0, 1)
    offset = 3 * torch.arange(len(x))[:, None]
    source, target = ((edges[:, k] + offset).flatten() for k in (0, 1))
    weight = m.score(torch.cat([h[source], h[target]], 1)).exp()
    total = h.new_zeros(len(h), 1).index_add(0, target, weight)
    mixed = torch.zeros_like(h).index_add(0, target, weight * h[source]) / (total + 1e-9)[...]
    return m.last(mixed.tanh().view(len(x), 3, -1).mean(1))


def warped(m: Any, x: Tensor) -> Tensor:
    """Images seen through a learnt affine map, and a map that the image itself chooses."""
    grid = F.affine_grid(m.map[None] + 0.1 * m.choose(x.flatten(1)).view(-1, 2, 3), list(x.shape), align_corners=False)
    return m.head(F.grid_sample(x, grid, align_corners=False).flatten(1))


def rendered(m: Any, x: Tensor) -> Tensor:
    """A learnt image read at the samples' places."""
    return m.head(F.grid_sample(m.image.expand(len(x), -1, -1, -1), x[:, None], align_corners=True)[:, :, 0].mT.mean(1))


def inside_another(m: Any, x: Tensor) -> Tensor:
    """A layer run with weights that are its own times another parameter."""
    return m.last(functional_call(m.first, {"weight": m.first.weight * m.gain}, (x,)).tanh())


def sinkhorn(m: Any, x: Tensor) -> Tensor:
    """Tokens in a learnt soft order."""
    order = m.order
    for _ in range(3):
        order = order - order.logsumexp(0, keepdim=True)
        order = order - order.logsumexp(1, keepdim=True)
    return m.last(order.exp() @ m.first(x).tanh())


def unrolled(m: Any, x: Tensor) -> Tensor:
    """Sparse codes by unrolled thresholded steps that share their weights."""
    code = x.new_zeros(len(x), 5)
    for _ in range(3):
        code = F.softshrink(code - 0.1 * (code @ m.w.T - x) @ m.w, 0.01) * m.step
    return m.last(code)


def tree(m: Any, x: Tensor) -> Tensor:
    """Pairs of tokens merged until one is left."""
    parts = list(m.first(x).unbind(1))
    while len(parts) > 1:
        parts = [m.inner(a + b.sin()).tanh() for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return m.last(parts[0])


def beam(m: Any, x: Tensor) -> Tensor:
    """Words made one at a time, each the likeliest after the ones before."""
    h, made = m.first(x).tanh(), []
    for _ in range(3):
        logits = m.last(h)
        made.append(logits)
        h = m.inner(h + m.table(logits.argmax(1))).tanh()
    return torch.stack(made, 1)


RARE = (
    Case(
        "function_of_two_outputs",
        lambda: classifier(
            lambda m, x: torch.cat(Split.apply(m.first(x), m.w), 1) @ m.v,
            normal(3, 4),
            first=nn.Linear(4, 5),
            w=normal(2, 5),
            v=normal(4, 3),
        ),
    ),
    Case(
        "checkpointed_in_segments",
        lambda: classifier(
            lambda m, x: checkpoint_sequential(m.body, 2, x, use_reentrant=False),
            normal(3, 4),
            body=nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)),
        ),
    ),
    Case(
        "called_with_other_weights",
        lambda: classifier(
            inside_another, normal(3, 4), first=nn.Linear(4, 5), gain=normal(5, 1), last=nn.Linear(5, 3)
        ),
    ),
    Case(
        "slot_attention",
        lambda: classifier(
            slots,
            normal(3, 4, 4),
            slot=normal(2, 4),
            query=nn.Linear(4, 4),
            cell=nn.GRUCell(4, 4),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "chain_of_labels",
        lambda: classifier(
            chain_of_labels, normal(3, 3, 4), score=nn.Linear(4, 3), start=normal(3), transition=normal(3, 3)
        ),
    ),
    Case(
        "graph_attention_of_edges",
        lambda: classifier(
            graph_attention,
            normal(3, 3, 4),
            torch.tensor([[0, 1, 2], [1, 2, 0]]).repeat(3, 1, 1),
            first=nn.Linear(4, 5),
            score=nn.Linear(10, 1),
            last=nn.Linear(5, 3),
        ),
    ),
    Case(
        "spatial_transformer",
        lambda: classifier(
            warped, normal(3, 1, 4, 4), map=normal(2, 3), choose=nn.Linear(16, 6), head=nn.Linear(16, 3)
        ),
    ),
    Case(
        "learnt_image",
        lambda: classifier(rendered, normal(3, 4, 2).tanh(), image=normal(1, 3, 4, 4), head=nn.Linear(3, 3)),
    ),
    Case(
        "soft_order",
        lambda: classifier(sinkhorn, normal(3, 3, 4), order=normal(3, 3), first=nn.Linear(4, 5), last=nn.Linear(5, 3)),
    ),
    Case(
        "unrolled_sparse_code",
        lambda: classifier(unrolled, normal(3, 4), w=normal(4, 5), step=normal(5), last=nn.Linear(5, 3)),
    ),
    Case("tree", lambda: three(tree, normal(3, 4, 4))),
    Case(
        "generated",
        lambda: classifier(
            beam,
            normal(3, 4),
            first=nn.Linear(4, 5),
            inner=nn.Linear(5, 5),
            table=nn.Embedding(3, 5),
            last=nn.Linear(5, 3),
        ),
    ),
    Case(
        "largest_of_sums",
        lambda: classifier(
            lambda m, x: (x[:, None] + m.w).amax(-1) @ m.v, normal(3, 4), w=normal(5, 4), v=normal(5, 3)
        ),
    ),
    Case(
        "products_of_powers",
        lambda: classifier(
            lambda m, x: (x.abs().add(0.1).log() @ m.w).exp().tanh() @ m.v, normal(3, 4), w=normal(4, 5), v=normal(5, 3)
        ),
    ),
    Case(
        "polynomial",
        lambda: classifier(
            lambda m, x: torch.stack([((m.a * x + m.b) * x + m.c).sum(1), (m.a.cumprod(0) * x).sum(1)], 1),
            normal(3, 4),
            a=normal(4),
            b=normal(4),
            c=normal(4),
        ),
    ),
    Case(
        "interpolated_table",
        lambda: classifier(
            lambda m, x: torch.lerp(
                m.table[x.long().clamp(0, 3)], m.table[x.long().clamp(0, 3) + 1], x.frac()[..., None]
            ).sum(1),
            normal(3, 4).abs(),
            table=normal(5, 3),
        ),
    ),
    Case(
        "hash_of_features",
        lambda: classifier(
            lambda m, x: m.head(
                x.new_zeros(len(x), 6).scatter_add(1, torch.tensor([0, 3, 3, 5]).expand(len(x), 4), x * m.sign)
            ),
            normal(3, 4),
            sign=normal(4),
            head=nn.Linear(6, 3),
        ),
    ),
    Case(
        "triangular_solve",
        lambda: classifier(
            lambda m, x: (
                torch.linalg.solve_triangular(m.w.tril() + 3 * torch.eye(4).double(), x.T, upper=False).T @ m.v
            ),
            normal(3, 4),
            w=normal(4, 4),
            v=normal(4, 3),
        ),
    ),
    Case(
        "kronecker_weight",
        lambda: classifier(lambda m, x: x @ torch.kron(m.a, m.b), normal(3, 4), a=normal(2, 1), b=normal(2, 3)),
    ),
    Case(
        "chunked_for_memory",
        lambda: three(lambda m, x: torch.cat([in_turn(m, part) for part in x.split(2)]), normal(5, 4)),
    ),
    Case("autocast_inside", lambda: three(lambda m, x: under_autocast(m, x), normal(3, 4))),
    Case(
        "multi_sample_dropout",
        lambda: three(
            lambda m, x: (
                sum(m.last(F.dropout(m.first(x).tanh(), 0.3, m.training)) for _ in range(2))
                + m.last(m.inner(m.first(x)))
            ),
            normal(3, 4),
        ),
    ),
    Case("mutated_input_cache", lambda: three(cached, normal(3, 3, 4))),
    Case(
        "gated_by_argument",
        lambda: classifier(
            lambda m, x, flag: m.b(x) if not bool(flag.any()) else m.a(x),
            normal(3, 4),
            torch.ones(3),
            a=nn.Linear(4, 3),
            b=nn.Linear(4, 3),
        ),
        left_out=frozenset({"b.weight", "b.bias"}),
    ),
    Case(
        "mixture_density",
        lambda: regressor(
            lambda m, x: (m.gate(x).softmax(1)[..., None] * m.mean(x).view(-1, 3, 2)).sum(1),
            normal(3, 4),
            gate=nn.Linear(4, 3),
            mean=nn.Linear(4, 6),
        ),
    ),
)


class Aliased(nn.Module):
    """A layer whose weight is read again past its name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.weights = [self.layer.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + F.linear(x.sin(), self.weights[0])


def experts(m: Any, x: Tensor, scales: Tensor) -> Tensor:
    """Each sample by the expert that its first entry chooses, times its scale."""
    chosen, outputs = x[:, 0] > 0, x.new_zeros(len(x), 3)
    outputs[chosen], outputs[~chosen] = m.a(x[chosen]), m.b(x[~chosen])
    return outputs * scales[:, None]


def one_sample_dwarfs() -> Problem:
    """A sample 1e9 times as large as the others, which another expert serves."""
    x = normal(6, 4)
    x[:, 0] = torch.tensor([1.0, 1, 1, 1, -1, -1])
    scales = torch.tensor([1e9, 1, 1, 1, 1, 1]).double()
    return classifier(experts, x, scales, a=nn.Linear(4, 3), b=nn.Linear(4, 3))


MISLED = (
    Case("read_past_its_name", lambda: classified(Aliased(), normal(4, 4))),
    Case("one_sample_dwarfs_the_others", one_sample_dwarfs),
    Case(
        "short_indices",
        lambda: classified(
            nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randint(7, (5, 4), dtype=torch.int32)
        ),
    ),
    Case(
        "parameter_without_entries",
        lambda: classifier(lambda m, x: m.layer(x) + m.none.sum(), normal(4, 4), layer=nn.Linear(4, 3), none=normal(0)),
    ),
    Case(
        "words_scaled_by_their_counts",
        lambda: classified(
            nn.Sequential(nn.Embedding(7, 4, scale_grad_by_freq=True), nn.Linear(4, 3)), integers(7, 5, 4)
        ),
    ),
)


def under_autocast(m: Any, x: Tensor) -> Tensor:
    """The three layers under autocast, which leaves float64 alone."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return in_turn(m, x)


def cached(m: Any, x: Tensor) -> Tensor:
    """Prefix sums written token by token into a buffer."""
    h, cache = m.first(x), x.new_zeros(len(x), 3, 5)
    for t in range(3):
        cache[:, t] = h[:, : t + 1].sum(1)
    cache.mul_(0.5)
    return m.last(m.inner(cache).relu_())


CASES = (*EQUAL_SIZES, *BATCHES, *FAINT, *STORAGE, *RARE, *MISLED)
