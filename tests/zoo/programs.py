"""Models as programs: rows that move, routing, derivatives inside, coupled samples, complex numbers, whole nets."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint

from zoo.case import Case, Net, Problem, classified, classifier, integers, normal, regressor, then, three


def mlp(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())))


def rows_moved(away: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Problem:
    """An inner layer that sees its rows in another order or shape than the layers around it."""
    return three(lambda m, x: m.last(back(m.inner(away(m.first(x))).tanh())), normal(3, 4, 4))


def shuffled(rows: int) -> Tensor:
    """An order that depends on the number of rows alone."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(0))


def sorted_by_content(m: nn.Module, x: Tensor) -> Tensor:
    """Samples in the order of their sums, as sentences are sorted by length."""
    order = (h := m.first(x)).sum((1, 2)).argsort()
    return m.last(m.inner(h[order]).tanh()[order.argsort()])


def refined(m: nn.Module, x: Tensor) -> Tensor:
    """An inner layer sees only samples that need it."""
    rows = (x[:, 0] > 0).nonzero()[:, 0]
    return m.last((h := m.first(x)).index_add(0, rows, m.inner(h[rows]).tanh()))


ROWS = (
    Case("rows_folded", lambda: rows_moved(lambda h: h.flatten(0, 1), lambda h: h.unflatten(0, (-1, 4)))),
    Case("rows_folded_at_a_fixed_size", lambda: rows_moved(lambda h: h.view(12, 5), lambda h: h.view(3, 4, 5))),
    Case(
        "rows_folded_tokens_first",
        lambda: rows_moved(
            lambda h: h.transpose(0, 1).flatten(0, 1), lambda h: h.unflatten(0, (4, -1)).transpose(0, 1)
        ),
    ),
    Case("rows_sequence_first", lambda: rows_moved(lambda h: h.transpose(0, 1), lambda h: h.transpose(0, 1))),
    Case("rows_permuted", lambda: rows_moved(lambda h: h[shuffled(len(h))], lambda h: h[shuffled(len(h)).argsort()])),
    Case("rows_sorted", lambda: three(sorted_by_content, normal(4, 3, 4))),
    Case("rows_flipped", lambda: rows_moved(lambda h: h.flip(0), lambda h: h.flip(0))),
    Case(
        "rows_shuffled_tokens",
        lambda: rows_moved(
            lambda h: h.flatten(0, 1)[shuffled(4 * len(h))],
            lambda h: h[shuffled(len(h)).argsort()].unflatten(0, (-1, 4)),
        ),
    ),
    Case("rows_windowed", lambda: rows_moved(lambda h: h.view(-1, 2, 5), lambda h: h.view(-1, 4, 5))),
    Case("rows_rolled", lambda: rows_moved(lambda h: h.roll(1, 1), lambda h: h.roll(-1, 1).cumsum(1))),
    Case("rows_dropped", lambda: rows_moved(lambda h: h[:, ::2], lambda h: h.repeat_interleave(2, 1))),
    Case(
        "rows_doubled", lambda: rows_moved(lambda h: torch.cat([h, h.sin()]), lambda h: h.chunk(2)[0] * h.chunk(2)[1])
    ),
    Case(
        "rows_at_the_end",
        lambda: rows_moved(lambda h: h.movedim(0, 1).contiguous(), lambda h: h.movedim(1, 0).logsumexp(1)),
    ),
    Case("rows_one_at_a_time", lambda: rows_moved(lambda h: h, lambda h: torch.cat([row[None] for row in h]))),
    Case(
        "rows_chosen_by_top_k",
        lambda: three(
            lambda m, x: m.last(
                m.inner((h := m.first(x)).gather(1, h.sum(-1).topk(2).indices[..., None].expand(-1, -1, 5)))
                .tanh()
                .mean(1)
            ),
            normal(3, 4, 4),
        ),
    ),
    Case("rows_of_one_sample_missing", lambda: three(refined, normal(5, 4))),
    Case(
        "bag_of_points",
        lambda: classifier(
            lambda m, x: m.last(m.inner(x).amax(1)), normal(3, 6, 2), inner=mlp(2, 5), last=nn.Linear(5, 3)
        ),
    ),
)


def routed(m: nn.Module, x: Tensor) -> Tensor:
    """Each token goes to its best expert alone."""
    tokens, out = x.flatten(0, 1), torch.zeros_like(x).flatten(0, 1)
    weight, chosen = m.gate(tokens).softmax(-1).max(-1)
    for e, expert in enumerate(m.experts):
        rows = (chosen == e).nonzero()[:, 0]
        out = out.index_add(0, rows, expert(tokens[rows]) * weight[rows, None])
    return m.head(out.view_as(x))


def dense_experts(m: nn.Module, x: Tensor) -> Tensor:
    """All experts by one product, mixed by a softmax gate."""
    hidden = torch.einsum("nti,eio->nteo", x, m.up) + m.shift
    return m.head(torch.einsum("nteo,eoi,nte->nti", hidden.tanh(), m.down, m.gate(x).softmax(-1)))


def pooled(nodes: Tensor, owner: Tensor) -> Tensor:
    """The sum of the nodes of each graph, for nodes in any order."""
    return nodes.new_zeros(int(owner.max()) + 1, nodes.shape[1]).index_add(0, owner, nodes)


def early_exit(m: nn.Module, x: Tensor) -> Tensor:
    """Samples take as many steps as they need."""
    done = []
    for row in x:
        h, steps = m.first(row), 0
        while h.detach().norm() < 3 and steps < 4:
            h, steps = h + m.inner(h).sin(), steps + 1
        done.append(m.last(h))
    return torch.stack(done)


ROUTED = (
    Case(
        "experts_routed",
        lambda: classifier(
            routed,
            normal(3, 4, 4),
            gate=nn.Linear(4, 3),
            experts=nn.ModuleList([mlp(4, 4) for _ in range(3)]),
            head=nn.Linear(4, 3),
        ),
        left_out=frozenset({"experts.1.0.weight", "experts.1.0.bias"}),
    ),
    Case(
        "experts_dense",
        lambda: classifier(
            dense_experts,
            normal(3, 2, 4),
            gate=nn.Linear(4, 2),
            up=normal(2, 4, 3),
            shift=normal(2, 3),
            down=normal(2, 3, 4),
            head=nn.Linear(4, 3),
        ),
    ),
    Case("early_exit", lambda: three(early_exit, normal(3, 4))),
    Case(
        "soft_tree",
        lambda: classifier(
            lambda m, x: torch.stack([g := m.gate(x).sigmoid(), 1 - g], -1).flatten(1) @ m.leaves,
            normal(3, 4),
            gate=nn.Linear(4, 2),
            leaves=normal(4, 3),
        ),
    ),
    Case(
        "vector_quantised",
        lambda: classifier(
            lambda m, x: m.last(m.codes[torch.cdist(h := m.first(x), m.codes).argmin(1)] + h - h.detach()),
            normal(3, 4),
            first=nn.Linear(4, 5),
            codes=normal(6, 5),
            last=nn.Linear(5, 3),
        ),
    ),
    Case(
        "graph_batch_of_nodes",
        lambda: three(
            lambda m, x, owner: m.last(pooled(m.inner(m.first(x).relu()), owner)),
            normal(6, 4),
            torch.tensor([0, 1, 0, 1, 1, 2]),
        ),
        coupled=None,
    ),
    Case(
        "graph_of_each_sample",
        lambda: three(
            lambda m, x, a: m.last((a @ m.inner((a @ m.first(x)).relu())).mean(1)),
            normal(3, 4, 4),
            normal(3, 4, 4).sigmoid(),
        ),
    ),
)


class Cube(torch.autograd.Function):
    """x^3 of x W^T, with a backward pass of its own."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return (x @ w.T) ** 3

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        g = 3 * (x @ w.T) ** 2 * g
        return g @ w, g.T @ x


class Reversed(torch.autograd.Function):
    """The identity with a gradient of the other sign."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> Tensor:
        return -g


def with_slope(m: nn.Module, x: Tensor) -> Tensor:
    """A network and its derivatives by its inputs: u, u' and the residual u'' + u."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        u = m.body(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return torch.cat([u, slope, bend + u], 1)


def hamiltonian(m: nn.Module, x: Tensor) -> Tensor:
    """The field of a learnt energy, by functional derivatives of each sample."""
    return torch.func.vmap(torch.func.grad(lambda row: m.body(row).sum()))(x) @ m.turn


def denoised(m: nn.Module, x: Tensor) -> Tensor:
    """Two steps down the slope of a learnt energy."""
    with torch.enable_grad():
        for _ in range(2):
            x = x.requires_grad_() if x.is_leaf else x
            x = x - 0.1 * torch.autograd.grad(m.body(x).sum(), x, create_graph=True)[0]
    return m.last(x)


def many_at_once(m: nn.Module, x: Tensor) -> Tensor:
    """An ensemble in one vectorised call."""
    return torch.func.vmap(lambda w, b: F.linear(x, w, b).tanh())(m.w, m.b).mean(0) @ m.last


DERIVATIVES = (
    Case(
        "physics_informed",
        lambda: regressor(with_slope, normal(4, 1), body=nn.Sequential(mlp(1, 4, 4), nn.Linear(4, 1))),
    ),
    Case(
        "physics_informed_by_hand",
        lambda: regressor(
            lambda m, x: torch.cat([(x @ m.w + m.b).sin() @ m.v, (x @ m.w + m.b).cos() * m.w @ m.v], 1),
            normal(4, 1),
            w=normal(1, 4),
            b=normal(4),
            v=normal(4, 1),
        ),
    ),
    Case(
        "hamiltonian",
        lambda: regressor(
            hamiltonian, normal(3, 2), body=nn.Sequential(mlp(2, 4), nn.Linear(4, 1, bias=False)), turn=normal(2, 2)
        ),
    ),
    Case(
        "energy_descent",
        lambda: classifier(
            denoised, normal(3, 4), body=nn.Sequential(mlp(4, 4), nn.Linear(4, 1, bias=False)), last=nn.Linear(4, 3)
        ),
    ),
    Case(
        "ensemble_vectorised",
        lambda: classifier(many_at_once, normal(3, 4), w=normal(2, 5, 4), b=normal(2, 5), last=normal(5, 3)),
    ),
    Case(
        "checkpointed",
        lambda: classifier(
            lambda m, x: m.last(checkpoint(m.inner, m.first(x), use_reentrant=False)),
            normal(3, 4),
            first=nn.Linear(4, 5),
            inner=mlp(5, 5, 5),
            last=nn.Linear(5, 3),
        ),
    ),
    Case(
        "function_with_weight",
        lambda: classifier(
            lambda m, x: m.last(Cube.apply(m.first(x).tanh(), m.w)),
            normal(3, 4),
            first=nn.Linear(4, 5),
            w=normal(5, 5),
            last=nn.Linear(5, 3),
        ),
    ),
    Case(
        "gradient_reversed",
        lambda: classifier(
            lambda m, x: m.last(Reversed.apply(m.first(x)).tanh()),
            normal(3, 4),
            first=nn.Linear(4, 5),
            last=nn.Linear(5, 3),
        ),
    ),
    Case(
        "spline_network",
        lambda: classifier(
            lambda m, x: (
                torch.einsum(
                    "nik,iko->no", torch.exp(-((x[..., None] - torch.linspace(-1, 1, 4, dtype=x.dtype)) ** 2)), m.w
                )
                + F.linear(F.silu(x), m.base)
            ),
            normal(3, 4),
            w=normal(4, 4, 3),
            base=normal(3, 4),
        ),
    ),
    Case(
        "spline_then_mlp",
        lambda: classified(
            nn.Sequential(
                Net(
                    lambda m, x: torch.einsum("nik,iko->no", torch.stack([x, x**2, x.sin()], -1), m.w),
                    w=normal(4, 3, 5),
                ),
                nn.Tanh(),
                nn.Linear(5, 3),
            ),
            normal(3, 4),
        ),
    ),
    Case(
        "quantum_of_parameters",
        lambda: classifier(
            lambda m, x: torch.stack([m.angle.cos() * x[:, 0], m.angle.sin() * x[:, 1], m.angle * x[:, 2]], 1),
            normal(3, 3),
            angle=torch.tensor(0.4, dtype=torch.float64),
        ),
    ),
    Case(
        "solved",
        lambda: regressor(
            lambda m, x: torch.linalg.solve(m.a @ m.a.T + torch.eye(4, dtype=x.dtype), x[..., None])[..., 0],
            normal(3, 4),
            a=normal(4, 4),
        ),
    ),
    Case(
        "hooked", lambda: classified(hooked(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))), normal(3, 4))
    ),
)


def hooked(model: nn.Sequential) -> nn.Sequential:
    """A model whose first layer's outputs a hook doubles."""
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


ADJACENCY = torch.tensor(
    [[1.0, 0.5, 0.0, 0.2], [0.5, 1.0, 0.3, 0.0], [0.0, 0.3, 1.0, 0.1], [0.2, 0.0, 0.1, 1.0]]
).double()


def coupled_row(name: str, function: Callable[..., Tensor], **parts: Tensor | nn.Module) -> Case:
    """A case of four samples whose outputs depend on each other."""
    return Case(
        name, lambda: classified(Net(function, **{k: p() for k, p in parts.items()}), normal(4, 4)), coupled=True
    )


def hidden() -> nn.Linear:
    return nn.Linear(4, 5)


def head() -> nn.Linear:
    return nn.Linear(5, 3)


COUPLED = (
    coupled_row(
        "graph_of_samples", lambda m, x: ADJACENCY @ m.last((ADJACENCY @ m.first(x)).relu()), first=hidden, last=head
    ),
    coupled_row(
        "graph_of_samples_matmul",
        lambda m, x: ADJACENCY @ (ADJACENCY @ x @ m.w).relu() @ m.v,
        w=lambda: normal(4, 5),
        v=lambda: normal(5, 3),
    ),
    coupled_row(
        "graph_attention_of_samples",
        lambda m, x: m.last(((h := m.first(x)) @ h.T).softmax(1) @ h),
        first=hidden,
        last=head,
    ),
    coupled_row(
        "batch_statistics",
        lambda m, x: m.last(((h := m.first(x)) - h.mean(0)) / (h.var(0) + 0.1).sqrt()),
        first=hidden,
        last=head,
    ),
    coupled_row(
        "batch_mean_of_inputs",
        lambda m, x: m.last(m.first(x).tanh() + m.aside(x.mean(0))),
        first=hidden,
        aside=hidden,
        last=head,
    ),
    coupled_row(
        "contrastive",
        lambda m, x: F.normalize(m.first(x), dim=1) @ F.normalize(m.other(x.sin()), dim=1).T / m.temperature.exp(),
        first=hidden,
        other=hidden,
        temperature=lambda: torch.zeros(1).double(),
    ),
    coupled_row("neighbours", lambda m, x: m.last((h := m.first(x)).tanh() + h.roll(1, 0)), first=hidden, last=head),
    coupled_row("transported", lambda m, x: m.last((m.first(x) / 2).softmax(0).cumsum(0)), first=hidden, last=head),
    Case(
        "batch_norm_of_the_batch",
        lambda: classified(
            nn.Sequential(hidden(), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh(), head()), normal(4, 4)
        ),
        coupled=True,
    ),
)

FIXED = torch.tensor([[1.0 + 1j, 2.0], [0.5j, 1.0]], dtype=torch.complex128)


def complex_normal(*shape: int) -> Tensor:
    return torch.complex(normal(*shape), normal(*shape))


COMPLEX = (
    Case(
        "complex_linear",
        lambda: classifier(
            lambda m, x: m.head((x.to(m.w.dtype) @ m.w + m.b).abs()),
            normal(3, 4),
            w=complex_normal(4, 5),
            b=complex_normal(5),
            head=nn.Linear(5, 3),
        ),
    ),
    Case(
        "fourier_operator",
        lambda: classifier(
            lambda m, x: m.head(
                torch.fft.irfft(F.pad(torch.einsum("nik,iok->nok", torch.fft.rfft(x)[..., :3], m.w), (0, 1)), n=6)
                .tanh()
                .mean(2)
            ),
            normal(3, 2, 6),
            w=complex_normal(2, 4, 3),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "fourier_operator_of_reals",
        lambda: classifier(
            lambda m, x: m.head(torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(m.w), n=6).tanh()),
            normal(3, 6),
            w=normal(4, 2),
            head=nn.Linear(6, 3),
        ),
    ),
    Case(
        "complex_between",
        lambda: classifier(
            lambda m, x: m.last(
                torch.view_as_real(torch.view_as_complex(m.first(x).view(-1, 2, 2)) @ FIXED).flatten(1)
            ),
            normal(3, 4),
            first=nn.Linear(4, 4),
            last=nn.Linear(4, 3),
        ),
    ),
)


def pixels(h: Tensor) -> Tensor:
    """(N, C, H, W) as tokens (N, H W, C)."""
    return h.flatten(2).mT


def u_net(m: nn.Module, x: Tensor) -> Tensor:
    down = m.down(x).relu()
    deep = m.deep(F.max_pool2d(down, 2)).relu()
    return pixels(m.head(torch.cat([down, m.up(deep)], 1)))


def patches(m: nn.Module, x: Tensor) -> Tensor:
    """A vision transformer: patches, a class token, positions, one block, the class token's head."""
    h = torch.cat([m.cls.expand(len(x), -1, -1), pixels(m.patch(x))], 1) + m.place
    h = h + m.attention(n := m.norm(h), n, n)[0]
    return m.head((h + m.inner(m.norm2(h)))[:, 0])


def mixer(m: nn.Module, x: Tensor) -> Tensor:
    x = x + m.tokens(m.norm(x).mT).mT
    return m.head((x + m.channels(x)).mean(1))


NETS = (
    Case(
        "residual_net",
        lambda: classifier(
            lambda m, x: m.head((h := m.stem(x).relu()).add(m.norm2(m.b(m.norm(m.a(h)).relu_()))).relu_().mean((2, 3))),
            normal(3, 2, 5, 5),
            stem=nn.Conv2d(2, 4, 3),
            a=nn.Conv2d(4, 4, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(4),
            b=nn.Conv2d(4, 4, 3, padding=1, bias=False),
            norm2=nn.BatchNorm2d(4),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "dense_net",
        lambda: classifier(
            lambda m, x: m.head(
                (h := torch.cat([x, m.a(x).relu()], 1)).flatten(2).mean(2) + m.b(h).tanh().flatten(2).mean(2)
            ),
            normal(3, 2, 4, 4),
            a=nn.Conv2d(2, 2, 3, padding=1),
            b=nn.Conv2d(4, 4, 1),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "u_net",
        lambda: classifier(
            u_net,
            normal(3, 1, 4, 4),
            down=nn.Conv2d(1, 3, 3, padding=1),
            deep=nn.Conv2d(3, 4, 3, padding=1),
            up=nn.ConvTranspose2d(4, 2, 2, stride=2),
            head=nn.Conv2d(5, 3, 1),
        ),
    ),
    Case(
        "vision_transformer",
        lambda: classifier(
            patches,
            normal(3, 1, 4, 4),
            patch=nn.Conv2d(1, 4, 2, stride=2),
            cls=normal(1, 1, 4),
            place=normal(1, 5, 4),
            norm=nn.LayerNorm(4),
            attention=nn.MultiheadAttention(4, 2, batch_first=True),
            norm2=nn.LayerNorm(4),
            inner=nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "mixer",
        lambda: classifier(
            mixer,
            normal(3, 3, 4),
            norm=nn.LayerNorm(4),
            tokens=mlp(3, 5, 3),
            channels=mlp(4, 5, 4),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "variational_mean",
        lambda: regressor(
            lambda m, x: m.decode((h := m.encode(x).chunk(2, -1))[0] + 0.3 * (h[1] / 2).exp()),
            normal(3, 4),
            encode=nn.Linear(4, 6),
            decode=mlp(3, 4),
        ),
    ),
    Case(
        "normalising_flow",
        lambda: regressor(
            lambda m, x: torch.cat([x[:, :2], x[:, 2:] * m.s(x[:, :2]).exp() + m.t(x[:, :2])], 1) @ m.turn,
            normal(3, 4),
            s=mlp(2, 2),
            t=mlp(2, 2),
            turn=normal(4, 4),
        ),
    ),
    Case(
        "deep_sets_ragged",
        lambda: classifier(
            lambda m, x, mask: m.last((m.inner(x) * mask[..., None]).sum(1)),
            normal(3, 4, 2),
            torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).double(),
            inner=mlp(2, 5),
            last=nn.Linear(5, 3),
        ),
    ),
    Case(
        "keywords",
        lambda: classified(
            Net(
                lambda m, left, right: m.a(left).tanh() @ m.w + m.b(right),
                a=nn.Linear(4, 5),
                w=normal(5, 3),
                b=nn.Linear(2, 3),
            ),
            left=normal(3, 4),
            right=normal(3, 2),
        ),
    ),
    Case(
        "pixel_shuffle",
        lambda: classified(nn.Sequential(nn.Conv2d(1, 12, 1), nn.PixelShuffle(2), then(pixels)), normal(3, 1, 2, 2)),
    ),
    Case(
        "recommender",
        lambda: classifier(
            lambda m, words, numbers: m.top(torch.cat([m.table(words).flatten(1), m.bottom(numbers)], 1)),
            integers(5, 3, 2),
            normal(3, 4),
            table=nn.Embedding(5, 3),
            bottom=mlp(4, 3),
            top=nn.Linear(9, 3),
        ),
    ),
    Case(
        "dropout_everywhere",
        lambda: classified(
            nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 5), nn.AlphaDropout(0.3), nn.SELU(), nn.Linear(5, 3)),
            normal(3, 4),
        ),
    ),
    Case(
        "gated_linear_unit",
        lambda: classifier(
            lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)),
            normal(3, 3, 4),
            gate=nn.Linear(4, 6, bias=False),
            up=nn.Linear(4, 6, bias=False),
            down=nn.Linear(6, 3, bias=False),
        ),
    ),
    Case(
        "compiled",
        lambda: classified(
            torch.compile(nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)), backend="eager"),
            normal(3, 4),
        ),
    ),
)

CASES = (*ROWS, *ROUTED, *DERIVATIVES, *COUPLED, *COMPLEX, *NETS)
