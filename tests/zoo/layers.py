"""Layers in their usual place: linear maps, convolutions, lookups, norms and activations with parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, Net, Problem, classified, classifier, integers, normal, regressed, then


def headed(*body: nn.Module, inputs: Tensor) -> Problem:
    """Layers, tanh, the mean over all positions, and a head."""
    pool = then(lambda h: torch.tanh(h).flatten(2).mean(2) if h.ndim > 2 else torch.tanh(h))
    width = nn.Sequential(*body, pool).double().eval()(inputs).shape[1]
    return classified(nn.Sequential(*body, pool, nn.Linear(width, 3)), inputs)


def worded(lookup: nn.Module, *inputs: Tensor) -> Problem:
    """A lookup of width 4, its mean over a sentence if it gives words, and a head."""
    return classifier(
        lambda m, *x: m.head(torch.tanh(h if (h := m.lookup(*x)).ndim == 2 else h.mean(1))),
        *inputs,
        lookup=lookup,
        head=nn.Linear(4, 3),
    )


def normed(norm: nn.Module, *shape: int, channels: int = 4) -> Problem:
    """A norm between a first layer and what follows; channels first if there are positions."""
    first = (nn.Conv1d, nn.Conv2d)[len(shape) - 2](2, channels, 3) if len(shape) > 1 else nn.Linear(5, channels)
    return headed(first, norm, inputs=normal(3, *(shape or (5,))))


LINEAR = (
    Case("mlp", lambda: classified(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), normal(4, 4))),
    Case("mlp_gaussian", lambda: regressed(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), normal(4, 4))),
    Case(
        "linear_of_tokens",
        lambda: classified(nn.Sequential(nn.Linear(4, 5, bias=False), nn.GELU(), nn.Linear(5, 3)), normal(3, 4, 4)),
    ),
    Case(
        "matmul_right",
        lambda: classifier(
            lambda m, x: torch.tanh(x @ m.w + m.b) @ m.v, normal(3, 4), w=normal(4, 5), b=normal(5), v=normal(5, 3)
        ),
    ),
    Case(
        "matmul_left",
        lambda: classifier(lambda m, x: (m.v @ torch.tanh(m.w @ x.T)).T, normal(3, 4), w=normal(5, 4), v=normal(3, 5)),
    ),
    Case(
        "matmul_of_tokens_left",
        lambda: classifier(lambda m, x: torch.tanh(m.mix @ x) @ m.v, normal(3, 4, 5), mix=normal(4, 4), v=normal(5, 3)),
    ),
    Case(
        "addmm",
        lambda: classifier(
            lambda m, x: torch.addmm(m.c, torch.addmm(m.b, x, m.w, beta=0.5, alpha=2).sin(), m.v),
            normal(3, 4),
            w=normal(4, 5),
            b=normal(5),
            v=normal(5, 3),
            c=normal(3),
        ),
    ),
    Case(
        "vector_matrix",
        lambda: classifier(
            lambda m, x: torch.stack([torch.mv(m.w, row) for row in x]) + torch.outer(x @ m.v, m.u),
            normal(3, 4),
            w=normal(3, 4),
            v=normal(4),
            u=normal(3),
        ),
    ),
    Case(
        "bmm_of_heads",
        lambda: classifier(
            lambda m, x: torch.bmm(x.view(-1, 2, 4).transpose(0, 1), m.w).tanh().sum(0), normal(3, 8), w=normal(2, 4, 3)
        ),
    ),
    Case(
        "baddbmm",
        lambda: classifier(
            lambda m, x: torch.baddbmm(m.b, x.expand(2, -1, -1), m.w).tanh().sum(0),
            normal(3, 4),
            w=normal(2, 4, 3),
            b=normal(2, 1, 3),
        ),
    ),
    Case(
        "einsum_of_heads",
        lambda: classifier(
            lambda m, x: torch.einsum("nthd,hdc->ntc", torch.einsum("nti,hid->nthd", x, m.w).tanh(), m.v),
            normal(3, 3, 4),
            w=normal(2, 4, 3),
            v=normal(2, 3, 3),
        ),
    ),
    Case(
        "tensordot",
        lambda: classifier(
            lambda m, x: torch.tensordot(x, m.w, dims=([1, 2], [0, 1])), normal(3, 3, 4), w=normal(3, 4, 3)
        ),
    ),
    Case(
        "bilinear",
        lambda: classifier(
            lambda m, x: m.head(m.pair(x, x.cos())), normal(3, 4), pair=nn.Bilinear(4, 4, 5), head=nn.Linear(5, 3)
        ),
    ),
    Case(
        "chain_matmul",
        lambda: classifier(
            lambda m, x: torch.linalg.multi_dot([x, m.w, m.v]), normal(3, 4), w=normal(4, 5), v=normal(5, 3)
        ),
    ),
    Case("glu", lambda: classified(nn.Sequential(nn.Linear(4, 8), nn.GLU(), nn.Linear(4, 3)), normal(3, 4))),
    Case(
        "frozen_below",
        lambda: classified(
            nn.Sequential(nn.Linear(4, 5).requires_grad_(False), nn.ReLU(), nn.Linear(5, 3)), normal(3, 4)
        ),
    ),
    Case(
        "lazy",
        lambda: classified(
            warmed(nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(3)), normal(3, 4)), normal(3, 4)
        ),
    ),
)


def warmed(model: nn.Module, x: Tensor) -> nn.Module:
    """A lazy model that has met its first input."""
    model.double()(x)
    return model


CONVOLUTIONS = (
    Case("conv1d", lambda: headed(nn.Conv1d(2, 4, 3, padding=1, dilation=2), inputs=normal(3, 2, 7))),
    Case("conv2d", lambda: headed(nn.Conv2d(2, 4, (3, 2), stride=2), inputs=normal(3, 2, 6, 6))),
    Case(
        "conv2d_grouped_same",
        lambda: headed(nn.Conv2d(4, 6, 3, padding="same", groups=2, dilation=2), inputs=normal(3, 4, 5, 5)),
    ),
    Case(
        "conv2d_circular",
        lambda: headed(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False), inputs=normal(3, 2, 5, 5)),
    ),
    Case(
        "conv2d_depthwise_separable",
        lambda: headed(nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 4, 1), inputs=normal(3, 4, 5, 5)),
    ),
    Case(
        "conv3d",
        lambda: headed(nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1), padding=1, groups=2), inputs=normal(3, 2, 3, 4, 4)),
    ),
    Case(
        "conv3d_reflect",
        lambda: headed(nn.Conv3d(1, 3, 3, padding=1, padding_mode="reflect"), inputs=normal(3, 1, 3, 3, 3)),
    ),
    Case(
        "conv_transpose1d",
        lambda: headed(
            nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), inputs=normal(3, 4, 4)
        ),
    ),
    Case(
        "conv_transpose2d",
        lambda: headed(
            nn.ConvTranspose2d(2, 3, (3, 2), stride=(2, 3), dilation=(1, 2), padding=(1, 0)), inputs=normal(3, 2, 3, 3)
        ),
    ),
    Case(
        "conv_transpose2d_output_size",
        lambda: headed(
            Net(
                lambda m, x: m.up(x, output_size=[6, 6]),
                up=nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, bias=False),
            ),
            inputs=normal(3, 2, 3, 3),
        ),
    ),
    Case(
        "conv_transpose3d",
        lambda: headed(nn.ConvTranspose3d(2, 4, 2, stride=2, groups=2, output_padding=1), inputs=normal(3, 2, 2, 2, 2)),
    ),
    Case(
        "conv_functional",
        lambda: headed(
            Net(
                lambda m, x: F.conv2d(x, m.w, m.b, stride=2).relu() * F.conv2d(x, m.w[:1], stride=2),
                w=normal(3, 2, 3, 3),
                b=normal(3),
            ),
            inputs=normal(3, 2, 5, 5),
        ),
    ),
    Case(
        "conv_by_unfold",
        lambda: headed(
            Net(lambda m, x: F.fold(m.w @ F.unfold(x, 3), 4, 2), w=normal(8, 18)), inputs=normal(3, 2, 5, 5)
        ),
    ),
    Case(
        "conv_causal",
        lambda: headed(
            Net(lambda m, x: m.conv(F.pad(x, (4, 0)))[..., :6], conv=nn.Conv1d(2, 4, 3, dilation=2)),
            inputs=normal(3, 2, 6),
        ),
    ),
    Case(
        "conv_of_one_sample",
        lambda: classifier(
            lambda m, x: torch.stack([m.head(m.conv(image).tanh().flatten(1).mean(1)) for image in x]),
            normal(3, 2, 4, 4),
            conv=nn.Conv2d(2, 4, 3),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "conv_weight_of_batch",
        lambda: headed(
            Net(
                lambda m, x: F.conv1d(x.reshape(1, -1, 5), m.w.repeat(len(x), 1, 1), groups=len(x)).view(-1, 4, 3),
                w=normal(4, 2, 3),
            ),
            inputs=normal(3, 2, 5),
        ),
    ),
)

LOOKUPS = (
    Case("embedding", lambda: worded(nn.Embedding(7, 4), integers(7, 3, 4))),
    Case(
        "embedding_padding",
        lambda: worded(nn.Embedding(7, 4, padding_idx=0), torch.tensor([[1, 2, 0], [3, 0, 0], [1, 1, 1]])),
    ),
    Case("embedding_sparse", lambda: worded(nn.Embedding(7, 4, sparse=True), integers(7, 3, 4))),
    Case("embedding_index", lambda: worded(Net(lambda m, x: m.table[x], table=normal(7, 4)), integers(7, 3, 4))),
    Case(
        "embedding_index_select",
        lambda: worded(
            Net(lambda m, x: m.table.index_select(0, x.flatten()).view(*x.shape, 4), table=normal(7, 4)),
            integers(7, 3, 4),
        ),
    ),
    Case(
        "embedding_gather",
        lambda: worded(
            Net(
                lambda m, x: m.table.gather(0, x[..., None].expand(-1, -1, 4).flatten(0, 1)).view(*x.shape, 4),
                table=normal(7, 4),
            ),
            integers(7, 3, 4),
        ),
    ),
    Case(
        "embedding_one_hot",
        lambda: worded(Net(lambda m, x: F.one_hot(x, 7).double() @ m.table, table=normal(7, 4)), integers(7, 3, 4)),
    ),
    Case("embedding_bag_sum", lambda: worded(nn.EmbeddingBag(7, 4, mode="sum"), integers(7, 3, 4))),
    Case(
        "embedding_bag_mean",
        lambda: worded(
            nn.EmbeddingBag(7, 4, mode="mean", padding_idx=0), torch.tensor([[1, 2, 0], [3, 0, 0], [1, 1, 1]])
        ),
    ),
    Case("embedding_bag_max", lambda: worded(nn.EmbeddingBag(7, 4, mode="max"), integers(7, 3, 4))),
    Case(
        "embedding_bag_offsets",
        lambda: classifier(
            lambda m, o: m.head(m.bag(torch.tensor([1, 2, 3, 1, 5, 6]), o).tanh()),
            torch.tensor([0, 2, 3]),
            bag=nn.EmbeddingBag(7, 4, mode="sum"),
            head=nn.Linear(4, 3),
        ),
        coupled=None,
    ),
    Case(
        "embedding_bag_ragged",
        lambda: worded(nn.EmbeddingBag(7, 4, mode="sum"), torch.tensor([1, 2, 3, 1, 5, 6]), torch.tensor([0, 2, 3])),
        coupled=None,
    ),
    Case(
        "embedding_bag_weights",
        lambda: worded(nn.EmbeddingBag(7, 4, mode="sum"), integers(7, 3, 4), None, normal(3, 4)),
    ),
    Case(
        "embedding_renormed_rows",
        lambda: worded(Net(lambda m, x: F.normalize(m.table, dim=1)[x], table=normal(7, 4)), integers(7, 3, 4)),
    ),
    Case(
        "factorisation_machine",
        lambda: classifier(
            lambda m, x: m.head(((e := m.table(x)).sum(1) ** 2 - (e**2).sum(1)) / 2 + m.first(x).sum(1)),
            integers(7, 3, 3),
            table=nn.Embedding(7, 4),
            first=nn.Embedding(7, 1),
            head=nn.Linear(4, 3),
        ),
    ),
)

NORMS = (
    Case("layer_norm", lambda: normed(nn.LayerNorm(4))),
    Case(
        "layer_norm_of_tokens",
        lambda: classified(nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)), normal(3, 3, 4)),
    ),
    Case("layer_norm_of_images", lambda: normed(nn.LayerNorm((4, 3, 3), bias=False), 2, 5, 5)),
    Case(
        "layer_norm_channels_first",
        lambda: normed(Net(lambda m, x: m.norm(x.movedim(1, -1)).movedim(-1, 1), norm=nn.LayerNorm(4)), 2, 5, 5),
    ),
    Case("rms_norm", lambda: normed(nn.RMSNorm(4))),
    Case(
        "rms_norm_by_hand",
        lambda: normed(
            Net(lambda m, x: m.scale * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)), scale=normal(4))
        ),
    ),
    Case(
        "rms_norm_one_plus", lambda: normed(Net(lambda m, x: F.normalize(x, dim=-1) * (1 + m.scale), scale=normal(4)))
    ),
    Case("group_norm", lambda: normed(nn.GroupNorm(2, 4), 2, 5, 5)),
    Case("batch_norm1d", lambda: normed(nn.BatchNorm1d(4))),
    Case("batch_norm2d", lambda: normed(nn.BatchNorm2d(4), 2, 5, 5)),
    Case(
        "batch_norm2d_relu_inplace",
        lambda: headed(
            nn.Conv2d(2, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(4),
            inputs=normal(3, 2, 4, 4),
        ),
    ),
    Case("instance_norm", lambda: normed(nn.InstanceNorm2d(4, affine=True), 2, 5, 5)),
    Case("instance_norm_tracked", lambda: normed(nn.InstanceNorm1d(4, affine=True, track_running_stats=True), 2, 6)),
    Case("norm_scale_only", lambda: normed(Net(lambda m, x: F.layer_norm(x, (4,), m.scale), scale=normal(4)))),
    Case(
        "norm_shared",
        lambda: classifier(
            lambda m, x: m.last(m.norm(m.inner(m.norm(m.first(x))).tanh())),
            normal(3, 4),
            first=nn.Linear(4, 5),
            inner=nn.Linear(5, 5),
            last=nn.Linear(5, 3),
            norm=nn.LayerNorm(5),
        ),
    ),
    Case("prelu", lambda: headed(nn.Conv2d(2, 4, 3), nn.PReLU(4), inputs=normal(3, 2, 5, 5))),
    Case("prelu_single", lambda: headed(nn.Linear(4, 5), nn.PReLU(), inputs=normal(3, 4))),
    Case(
        "layer_scale",
        lambda: classifier(
            lambda m, x: m.head(x + m.gamma * m.inner(x).tanh()),
            normal(3, 3, 4),
            gamma=normal(4),
            inner=nn.Linear(4, 4),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "swish_beta",
        lambda: headed(
            nn.Linear(4, 5), Net(lambda m, x: x * torch.sigmoid(m.beta * x), beta=normal(5)), inputs=normal(3, 4)
        ),
    ),
    Case(
        "temperature",
        lambda: classifier(
            lambda m, x: m.head(x) / m.temperature.exp(),
            normal(3, 4),
            head=nn.Linear(4, 3),
            temperature=torch.tensor(0.3, dtype=torch.float64),
        ),
    ),
    Case(
        "dynamic_tanh",
        lambda: normed(
            Net(
                lambda m, x: m.scale * torch.tanh(m.alpha * x) + m.shift,
                scale=normal(4),
                alpha=normal(1),
                shift=normal(4),
            )
        ),
    ),
    Case(
        "squeeze_excite",
        lambda: headed(
            nn.Conv2d(2, 4, 3),
            Net(
                lambda m, x: x * m.up(m.down(x.mean((2, 3))).relu()).sigmoid()[..., None, None],
                down=nn.Linear(4, 2),
                up=nn.Linear(2, 4),
            ),
            inputs=normal(3, 2, 5, 5),
        ),
    ),
)

SHIFTS = (
    Case("bias_only", lambda: classifier(lambda m, x: m.b.expand(len(x), 3), normal(3, 2), b=normal(3))),
    Case(
        "bias_in_place",
        lambda: classifier(
            lambda m, x: m.head(added(x @ m.w, m.b).tanh()),
            normal(3, 4),
            w=normal(4, 5),
            b=normal(5),
            head=nn.Linear(5, 3),
        ),
    ),
    Case(
        "bias_subtracted",
        lambda: classifier(
            lambda m, x: (m.b - x.mul(m.a).sin() - m.c) @ m.w,
            normal(3, 4),
            a=normal(1, 4),
            b=normal(4),
            c=normal(1, 1),
            w=normal(4, 3),
        ),
    ),
    Case(
        "positions",
        lambda: classifier(
            lambda m, x: m.head((m.embed(x) + m.place[: x.shape[1]]).tanh()),
            integers(7, 3, 3),
            embed=nn.Embedding(7, 4),
            place=normal(6, 4),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "positions_looked_up",
        lambda: classifier(
            lambda m, x: m.head((m.embed(x) + m.place(torch.arange(x.shape[1])[None])).tanh()),
            integers(7, 3, 3),
            embed=nn.Embedding(7, 4),
            place=nn.Embedding(6, 4),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "positions_interpolated",
        lambda: classifier(
            lambda m, x: m.head((x + F.interpolate(m.place, size=5, mode="linear").mT).tanh()),
            normal(3, 5, 4),
            place=normal(1, 4, 3),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "class_token",
        lambda: classifier(
            lambda m, x: m.head(
                (h := torch.cat([m.cls.expand(len(x), -1, -1), m.inner(x)], 1)).softmax(1).mul(h).sum(1)
            ),
            normal(3, 3, 5),
            cls=normal(1, 1, 4),
            inner=nn.Linear(5, 4),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "registers_repeated",
        lambda: classifier(
            lambda m, x: m.head(torch.cat([x, m.registers.repeat(len(x), 1, 1)], 1).cos().mean(1)),
            normal(3, 3, 4),
            registers=normal(2, 4),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "mask_token",
        lambda: classifier(
            lambda m, x, mask: m.head(torch.where(mask[..., None], m.token, m.inner(x)).tanh()),
            normal(3, 3, 4),
            torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]]).bool(),
            token=normal(4),
            inner=nn.Linear(4, 4),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "mask_token_assigned",
        lambda: classifier(
            lambda m, x, mask: m.head(assigned(m.inner(x), mask, m.token).tanh()),
            normal(3, 3, 4),
            torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]]).bool(),
            token=normal(4),
            inner=nn.Linear(4, 4),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "prefix_of_parameters",
        lambda: classifier(
            lambda m, x: m.head(
                F.scaled_dot_product_attention(
                    x, torch.cat([m.k.expand(len(x), -1, -1), x], 1), torch.cat([m.v.expand(len(x), -1, -1), x], 1)
                )
            ),
            normal(3, 3, 4),
            k=normal(2, 4),
            v=normal(2, 4),
            head=nn.Linear(4, 3),
        ),
    ),
    Case(
        "radial_basis",
        lambda: classifier(
            lambda m, x: m.head(torch.exp(-m.width.square() * torch.cdist(x, m.centres).square())),
            normal(3, 4),
            centres=normal(5, 4),
            width=normal(5),
            head=nn.Linear(5, 3),
        ),
    ),
    Case(
        "fourier_features",
        lambda: classifier(
            lambda m, x: m.head(torch.cat([(x @ m.f).sin(), (x @ m.f + m.phase).cos()], -1)),
            normal(3, 2),
            f=normal(2, 3),
            phase=normal(3),
            head=nn.Linear(6, 3),
        ),
    ),
    Case(
        "cumulated_thresholds",
        lambda: classifier(
            lambda m, x: F.pad(m.score(x) - m.steps.exp().cumsum(0), (1, 0)).cumsum(-1),
            normal(3, 4),
            score=nn.Linear(4, 1),
            steps=normal(3),
        ),
    ),
)


def added(x: Tensor, b: Tensor) -> Tensor:
    """x with b added in place."""
    x += b
    return x


def assigned(x: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    """x with a value written where the mask says so."""
    x = x.clone()
    x[mask] = value
    return x


CASES = (*LINEAR, *CONVOLUTIONS, *LOOKUPS, *NORMS, *SHIFTS)
