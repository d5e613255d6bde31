"""Every figure in these tables is derived by hand; none comes from the meter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from curvbench.meters.flops import FlopMeter


class Op(NamedTuple):
    name: str
    run: Callable[[], object]
    flop: int


def _randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _spd(*batch: int, n: int) -> Tensor:
    a = _randn(*batch, n, n)
    return a @ a.mT + n * torch.eye(n)


def _table() -> list[Op]:
    a34, b45, a334, x4, x3 = _randn(3, 4), _randn(4, 5), _randn(3, 3, 4), _randn(4), _randn(3)
    b345 = _randn(3, 4, 5)
    spd, spds, tall, wide, talls = _spd(n=6), _spd(2, n=6), _randn(9, 6), _randn(6, 9), _randn(2, 9, 6)
    low, lows, six2, sixes2 = torch.linalg.cholesky(spd), torch.linalg.cholesky(spds), _randn(6, 2), _randn(2, 6, 2)
    lu, pivots = torch.linalg.lu_factor(spd)
    reflectors, tau = torch.geqrf(tall)
    index = torch.tensor([0, 2, 0])
    image = _randn(2, 3, 4, 4)
    return [
        # Products: 2 x rows x columns x contracted.
        Op("mm", lambda: a34 @ b45, 2 * 3 * 4 * 5),
        Op("addmm", lambda: torch.addmm(_randn(5), a34, b45), 2 * 3 * 4 * 5),
        Op("linear", lambda: F.linear(a34, b45.T, _randn(5)), 2 * 3 * 4 * 5),
        Op("bmm", lambda: a334 @ b345, 3 * 2 * 3 * 4 * 5),
        Op("baddbmm", lambda: torch.baddbmm(_randn(5), a334, b345), 3 * 2 * 3 * 4 * 5),
        Op("addbmm", lambda: torch.addbmm(_randn(3, 5), a334, b345), 3 * 2 * 3 * 4 * 5),
        Op("mv", lambda: a34 @ x4, 2 * 3 * 4),
        Op("addmv", lambda: torch.addmv(x3, a34, x4), 2 * 3 * 4),
        Op("addmv_", lambda: x3.clone().addmv_(a34, x4), 2 * 3 * 4),
        Op("mm.out", lambda: torch.mm(a34, b45, out=torch.empty(3, 5)), 2 * 3 * 4 * 5),
        Op("dot", lambda: x4 @ x4, 2 * 4),
        Op("vdot", lambda: torch.vdot(x4, x4), 2 * 4),
        Op("outer", lambda: torch.outer(x3, x4), 3 * 4),
        Op("outer through mul", lambda: x3[:, None] * x4, 3 * 4),
        Op("addr", lambda: torch.addr(a34, x3, x4), 2 * 3 * 4),
        Op("kron", lambda: torch.kron(a34, b45), 3 * 4 * 4 * 5),
        Op("einsum", lambda: torch.einsum("bij,bjk->bik", a334, b345), 3 * 2 * 3 * 4 * 5),
        Op("einsum of shared operand", lambda: torch.einsum("ni,nj->ij", a34, a34), 2 * 3 * 4 * 4),
        Op("bilinear", lambda: F.bilinear(a34, _randn(3, 5), _randn(2, 4, 5)), 3 * 3 * 2 * 4 * 5),
        Op("cdist", lambda: torch.cdist(a34, _randn(7, 4), p=1.0), 3 * 3 * 7 * 4),
        Op("cdist by products", lambda: torch.cdist(a34, _randn(30, 4)), 2 * 3 * 30 * 4),
        # Factorizations of n = 6, 216 = n^3.
        Op("cholesky", lambda: torch.linalg.cholesky(spd), 216 // 3),
        Op("cholesky_ex batched", lambda: torch.linalg.cholesky_ex(spds), 2 * 216 // 3),
        Op("legacy cholesky", lambda: torch.cholesky(spd), 216 // 3),
        Op("cholesky_inverse", lambda: torch.cholesky_inverse(lows), 2 * 2 * 216 // 3),
        Op("cholesky_solve", lambda: torch.cholesky_solve(six2, low), 2 * 36 * 2),
        Op("cholesky_solve batched", lambda: torch.cholesky_solve(sixes2, lows), 2 * 2 * 36 * 2),
        Op("inv", lambda: torch.linalg.inv(spd), 2 * 216),
        Op("inv_ex batched", lambda: torch.linalg.inv_ex(spds), 2 * 2 * 216),
        Op("lu_factor", lambda: torch.linalg.lu_factor(spds), 2 * 2 * 216 // 3),
        Op("lu_factor of 9 x 6", lambda: torch.linalg.lu_factor(tall), 36 * (9 - 2)),
        Op("lu", lambda: torch.linalg.lu(spd), 2 * 216 // 3),
        Op("lu_solve", lambda: torch.linalg.lu_solve(lu, pivots, six2), 2 * 36 * 2),
        Op("lu_solve right", lambda: torch.linalg.lu_solve(lu, pivots, six2.T, left=False), 2 * 36 * 2),
        Op("solve", lambda: torch.linalg.solve(spd, six2), 2 * 216 // 3 + 2 * 36 * 2),
        Op("solve batched", lambda: torch.linalg.solve(spds, sixes2), 2 * (2 * 216 // 3 + 2 * 36 * 2)),
        Op("solve vector", lambda: torch.linalg.solve(spd, _randn(6)), 2 * 216 // 3 + 2 * 36),
        Op("solve shared", lambda: torch.linalg.solve(spd, sixes2), 2 * 216 // 3 + 2 * 2 * 36 * 2),
        Op("solve_triangular", lambda: torch.linalg.solve_triangular(low, six2, upper=False), 36 * 2),
        Op("solve_triangular batched", lambda: torch.linalg.solve_triangular(lows, sixes2, upper=False), 2 * 36 * 2),
        Op("det", lambda: torch.linalg.det(spds), 2 * 2 * 216 // 3),
        Op("slogdet", lambda: torch.linalg.slogdet(spd), 2 * 216 // 3),
        Op("ldl", lambda: torch.linalg.ldl_factor(spd), 216 // 3),
        Op("eigh", lambda: torch.linalg.eigh(spd), 9 * 216),
        Op("eigh batched", lambda: torch.linalg.eigh(spds), 2 * 9 * 216),
        Op("eigvalsh", lambda: torch.linalg.eigvalsh(spd), 4 * 216 // 3),
        Op("matrix_norm", lambda: torch.linalg.matrix_norm(spd, ord=2), 4 * 216 - 4 * 216 // 3 + 6),
        Op("eig", lambda: torch.linalg.eig(spds), 2 * 25 * 216),
        Op("eigvals as dispatched", lambda: torch.ops.aten._linalg_eigvals(spd), 10 * 216),
        Op("eigvals", lambda: torch.linalg.eigvals(spd), 10 * 216),
        Op("svdvals", lambda: torch.linalg.svdvals(tall), 4 * 9 * 36 - 4 * 216 // 3),
        Op("svd thin", lambda: torch.linalg.svd(tall, full_matrices=False), 14 * 9 * 36 + 8 * 216),
        Op("svd thin of the transpose", lambda: torch.linalg.svd(wide, full_matrices=False), 14 * 9 * 36 + 8 * 216),
        Op("svd full batched", lambda: torch.linalg.svd(talls), 2 * (4 * 81 * 6 + 8 * 9 * 36 + 9 * 216)),
        Op("pinv", lambda: torch.linalg.pinv(tall), 14 * 9 * 36 + 8 * 216 + 2 * 9 * 36),
        # 2 n^2 (m - n/3) = 2 x 36 x 7 for R of a 9 x 6 matrix, and as much for a thin Q.
        Op("qr r", lambda: torch.linalg.qr(tall, mode="r"), 504),
        Op("qr thin", lambda: torch.linalg.qr(tall), 504 + 504),
        Op("qr thin batched", lambda: torch.linalg.qr(talls), 2 * (504 + 504)),
        Op("qr complete", lambda: torch.linalg.qr(tall, mode="complete"), 504 + 4 * (81 * 6 - 9 * 36 + 72)),
        Op("qr of 6 x 9", lambda: torch.linalg.qr(wide), 2 * 36 * 7 + 4 * 216 // 3),
        Op("geqrf", lambda: torch.geqrf(tall), 504),
        Op("orgqr", lambda: torch.linalg.householder_product(reflectors, tau), 504),
        Op("ormqr", lambda: torch.ormqr(reflectors, tau, _randn(9, 4)), 2 * 4 * 6 * (18 - 6)),
        Op("ormqr right", lambda: torch.ormqr(reflectors, tau, _randn(4, 9), left=False), 2 * 4 * 6 * (18 - 6)),
        Op("lstsq", lambda: torch.linalg.lstsq(tall, _randn(9, 2)), 504 + 2 * (2 * 6 * (18 - 6) + 36)),
        Op("matrix_exp small", lambda: torch.linalg.matrix_exp(torch.eye(6) * 0.5), 5 * 2 * 216),
        Op("matrix_exp", lambda: torch.linalg.matrix_exp(torch.eye(6) * 3.01 * 3.9), (5 + 2) * 2 * 216),
        # Elementwise, reductions, scattered sums.
        Op("add", lambda: a34 + 1, 12),
        Op("axpy", lambda: torch.add(a34, a34, alpha=0.1), 24),
        Op("sub_", lambda: a34.clone().sub_(a34, alpha=2), 24),
        Op("broadcast", lambda: x3[:, None] + x4, 12),
        Op("exp.out", lambda: torch.exp(a34, out=torch.empty(3, 4)), 12),
        Op("relu_", lambda: a34.clone().relu_(), 12),
        Op("addcmul", lambda: torch.addcmul(a34, a34, a34), 24),
        Op("addcdiv", lambda: torch.addcdiv(a34, a34, a34, value=0.5), 36),
        Op("lerp", lambda: torch.lerp(a34, a34, 0.3), 36),
        Op("foreach add", lambda: torch._foreach_add([a34, x4], 1.0), 16),
        Op("foreach axpy_", lambda: torch._foreach_add_([a34.clone(), x4.clone()], [a34, x4], alpha=0.5), 32),
        Op("foreach sqrt_", lambda: torch._foreach_sqrt_([a34.abs().detach(), x4.square()]), 16 + 16),
        Op("foreach norm", lambda: torch._foreach_norm([a34, x4]), 32),
        Op("foreach pow of a scalar", lambda: torch._foreach_pow(0.9, [a34, x4]), 16),
        Op("sum", lambda: a34.sum(0), 12),
        Op("mean", lambda: a34.mean(), 12),
        Op("amax", lambda: a34.amax(1), 12),
        Op("max", lambda: a34.max(1), 12),
        Op("cumsum", lambda: a34.cumsum(0), 12),
        Op("prod", lambda: a34.prod(), 12),
        Op("norm as dispatched", lambda: torch.ops.aten.norm.Scalar(a34), 24),
        Op("norm", lambda: a34.norm(), 24),
        Op("vector_norm", lambda: torch.linalg.vector_norm(a334, dim=-1), 72),
        Op("var", lambda: a34.var(0), 48),
        Op("logsumexp", lambda: a34.logsumexp(1), 48),
        Op("trace", lambda: _randn(4, 4).trace(), 4),
        Op("cross", lambda: torch.linalg.cross(_randn(5, 3), _randn(5, 3)), 5 * 9),
        Op("softmax", lambda: a34.softmax(1), 60),
        Op("safe softmax", lambda: torch.ops.aten._safe_softmax(a34, 1), 60),
        Op("log_softmax", lambda: a34.log_softmax(1), 60),
        Op("acosh", lambda: (x4 + 2).acosh(), 4 + 4),
        Op("amin", lambda: a34.amin(1), 12),
        Op("aminmax", lambda: a34.aminmax(), 24),
        Op("min", lambda: a34.min(), 12),
        Op("cummax", lambda: (a34.cummax(0), a34.cummin(0)), 24),
        Op("cumprod", lambda: a34.cumprod(0), 12),
        Op("nansum", lambda: a34.nansum(), 12),
        Op("std", lambda: (a34.std(), torch.std_mean(a34), torch.var_mean(a34)), 3 * 48),
        Op("logcumsumexp", lambda: a34.logcumsumexp(0), 48),
        Op("dist", lambda: torch.dist(a34, a34), 36),
        Op("renorm", lambda: a34.renorm(2, 0, 1.0), 36),
        Op("hypot", lambda: a34.hypot(a34), 24),
        Op("xlogy", lambda: torch.xlogy(a34.abs(), 2.0), 12 + 24),
        Op("logaddexp", lambda: (torch.logaddexp(a34, a34), torch.logaddexp2(a34, a34)), 72),
        Op("glu", lambda: F.glu(a34), 2 * 6),
        Op("native_dropout", lambda: torch.native_dropout(a34, 0.5, True), 24),
        Op("triangular_solve", lambda: torch.triangular_solve(six2, low, upper=False), 36 * 2),
        Op("ldl_solve", lambda: torch.linalg.ldl_solve(*torch.linalg.ldl_factor(spd), six2), 216 // 3 + 2 * 36 * 2),
        Op("scatter_reduce", lambda: x4.scatter_reduce(0, index, x3, "sum"), 3),
        Op("index_reduce", lambda: torch.zeros(3, 4).index_reduce(0, index, a34, "mean"), 12),
        Op("put", lambda: x4.clone().put_(index, x3, accumulate=True), 3),
        Op("put without sum", lambda: x4.clone().put_(index, x3), 0),
        Op("bincount", lambda: (torch.bincount(index, x3), torch.bincount(index)), 3),
        Op("max_pool3d", lambda: F.max_pool3d(_randn(1, 1, 4, 4, 4), 2), 64),
        Op("rms_norm", lambda: F.rms_norm(a34, (4,)), 3 + 12 + 12 + 3 + 12),
        Op("avg_pool1d", lambda: F.avg_pool1d(a334, 2), 9 * 2 * 2),
        Op("avg_pool3d", lambda: F.avg_pool3d(_randn(1, 1, 4, 4, 4), 2), 64),
        Op("adaptive pools", lambda: (F.adaptive_max_pool2d(image, 2), F.adaptive_max_pool3d(image, 2)), 192),
        Op("adaptive_avg_pool3d", lambda: F.adaptive_avg_pool3d(image, 2), 96),
        Op("interpolate", lambda: F.interpolate(image, scale_factor=2), 0),
        Op("interpolate linear", lambda: F.interpolate(a334, scale_factor=2, mode="linear"), 4 * 72),
        Op("interpolate bilinear", lambda: F.interpolate(image, scale_factor=2, mode="bilinear"), 8 * 384),
        Op("interpolate bicubic", lambda: F.interpolate(image, scale_factor=2, mode="bicubic"), 32 * 384),
        Op("interpolate trilinear", lambda: F.interpolate(image[None], scale_factor=2, mode="trilinear"), 16 * 768),
        Op("losses", lambda: (F.huber_loss(a34, a34), F.smooth_l1_loss(a34, a34)), 72),
        Op("bce", lambda: F.binary_cross_entropy(a34.sigmoid(), a34.sigmoid()), 2 * 12 + 8 * 12),
        Op("bce with logits", lambda: F.binary_cross_entropy_with_logits(a34, a34), 6 * 12),
        Op("nll of images", lambda: F.nll_loss(image, torch.zeros(2, 4, 4, dtype=torch.long)), 32),
        Op(
            "legit batch_norm",
            lambda: torch.ops.aten._native_batch_norm_legit.no_stats(image, x3, x3, True, 0, 1),
            8 * 96,
        ),
        Op(
            "legit batch_norm evaluation",
            lambda: torch.ops.aten._native_batch_norm_legit_no_training(image, x3, x3, x3, x3.abs().detach(), 0, 1),
            2 * 96 + 3,
        ),
        Op("index_add", lambda: torch.zeros(3, 4).index_add(0, index, a34), 12),
        Op("scatter_add_", lambda: torch.zeros(3, 4).scatter_add_(0, index[:, None].expand(3, 4), a34), 12),
        Op("index_copy_", lambda: torch.zeros(3, 4).index_copy_(0, index[:2], _randn(2, 4)), 0),
        Op("index_put accumulate", lambda: torch.zeros(3, 4).index_put((index,), a34, accumulate=True), 12),
        Op("fold", lambda: F.fold(F.unfold(image, 3), (4, 4), 3), 2 * 3 * 9 * 4),
        Op("max_pool2d", lambda: F.max_pool2d(image, 2), 2 * 3 * 4 * 4),
        Op("avg_pool2d overlapping", lambda: F.avg_pool2d(image, 3, 1), 2 * 3 * 2 * 2 * 9),
        Op("adaptive_avg_pool2d", lambda: F.adaptive_avg_pool2d(image, 2), 2 * 3 * 16),
        Op("batch_norm training", lambda: F.batch_norm(image, None, None, training=True), 6 * 96),
        Op("batch_norm affine", lambda: F.batch_norm(image, None, None, x3, x3, training=True), 8 * 96),
        Op("batch_norm evaluation", lambda: F.batch_norm(image, x3, x3.square(), x3, x3), 2 * 96 + 3),
        Op("layer_norm", lambda: F.layer_norm(image, (4, 4)), 6 * 96),
        Op("layer_norm affine", lambda: F.layer_norm(a34, (4,), x4, x4), 8 * 12),
        Op("group_norm", lambda: F.group_norm(image, 3, x3, x3), 8 * 96),
        Op("cross_entropy", lambda: F.cross_entropy(a34, index), 5 * 12 + 3),
        Op("mse_loss", lambda: F.mse_loss(a34, a34), 36),
        # Free: layout, copies, choices, integers.
        Op("views", lambda: (a34.T, a34[0], a34.reshape(-1), a34.unbind(), a34.expand(2, 3, 4), a34.split(1)), 0),
        Op("copies", lambda: (a34.clone(), a34.double(), torch.cat([a34, a34]), a34.repeat(2, 1), a34.contiguous()), 0),
        Op("factories", lambda: (torch.zeros(3), torch.eye(3), torch.arange(3.0), torch.tensor([1.0])), 0),
        Op("draws", lambda: (torch.randn(3), torch.bernoulli(a34.sigmoid().detach()), torch.rand(3).normal_()), 12),
        Op("choices", lambda: (a34 > 0, torch.where(a34 > 0, a34, 0), a34.masked_fill(a34 > 0, 0), a34.argmax()), 0),
        Op("order", lambda: (a34.sort(), a34.topk(2), a34.flip(0)), 0),
        Op("indexing", lambda: (a34[index], a34.gather(1, torch.zeros(3, 1, dtype=torch.long)), x4[0].item()), 0),
        Op("patches", lambda: F.unfold(image, 3), 0),
        Op("embedding", lambda: F.embedding(index, a34), 0),
        Op("integers", lambda: (index + 1, index.sum(), (a34 > 0).sum(), index * index, index @ index), 0),
    ]


@pytest.mark.filterwarnings("ignore:torch.cholesky is deprecated", "ignore:torch.triangular_solve is deprecated")
@pytest.mark.filterwarnings("ignore:index_reduce.. is in beta")
@pytest.mark.parametrize("op", _table(), ids=lambda op: op.name)
def test_operation(op: Op) -> None:
    op.run()
    with FlopMeter() as meter:
        op.run()
    assert (meter.total, meter.uncounted) == (op.flop + _making(op), ())


def _making(op: Op) -> int:
    """FLOP of the operands that an entry makes on the spot, all of them random draws: none but these."""
    return {"foreach sqrt_": 0, "matrix_exp small": 36, "matrix_exp": 2 * 36}.get(op.name, 0)


def test_values_cost_their_vectors_where_these_are_needed() -> None:
    matrix, matrices = _spd(n=6).requires_grad_(), _spd(2, n=6)
    with FlopMeter() as gradient:
        torch.linalg.eigvalsh(matrix)
    with FlopMeter() as transform:
        torch.func.vmap(torch.linalg.eigvalsh)(matrices)
    assert (gradient.by_op["_linalg_eigh"], transform.by_op["_linalg_eigh"]) == (9 * 216, 2 * 9 * 216)


UNARY = """
    abs acos angle asinh asin atan atanh ceil clamp clamp_max clamp_min cos cosh deg2rad digamma erf erfc erfinv exp
    exp2 expm1 float_power floor frac lgamma log log10 log1p log2 logit neg pow rad2deg reciprocal relu round rsqrt sgn
    sigmoid sign sin sinc sinh sqrt square tan tanh threshold trunc
    """.split()
ACTIVATIONS = """
    celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu6 selu silu softplus
    softshrink
    """.split()
BINARY = "atan2 div floor_divide fmax fmin fmod maximum minimum mul prelu remainder rsub".split()


@pytest.mark.parametrize("name", [*UNARY, *ACTIVATIONS, *BINARY])
def test_one_function_of_each_element(name: str) -> None:
    x = torch.full((3, 4), 0.5)
    special: dict[str, tuple[object, ...]] = {
        **{"clamp_min": (x, 0.0), "clamp_max": (x, 0.0), "clamp": (x, 0.0, 1.0), "pow": (x, 3)},
        **{"float_power": (x.double(), 3), "threshold": (x, 0.0, 0.0), "prelu": (x, torch.ones(1))},
    }
    operands = special.get(name, (x, x) if name in BINARY else (x,))
    function = getattr(F, name, None) or getattr(torch, name)
    with FlopMeter() as meter:
        function(*operands)
    assert (meter.total, meter.uncounted) == (12, ())


@pytest.mark.parametrize("op", [op for op in _table() if op.name in ("linear", "solve", "softmax", "views")])
def test_inference_mode_counts_the_same(op: Op) -> None:
    with FlopMeter() as meter, torch.inference_mode():
        op.run()
    assert (meter.total, meter.uncounted) == (op.flop, ())


class Conv(NamedTuple):
    name: str
    layer: nn.Module
    shape: tuple[int, ...]
    forward: int


CONVOLUTIONS = [
    # 2 x batch x output positions x kernel x outputs x inputs of a group.
    Conv("3x3", nn.Conv2d(4, 6, 3, bias=False), (2, 4, 8, 8), 2 * 2 * 36 * 9 * 6 * 4),
    Conv("padded", nn.Conv2d(4, 6, 3, padding=1, bias=False), (2, 4, 8, 8), 2 * 2 * 64 * 9 * 6 * 4),
    Conv("strided", nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 8, 8), 2 * 2 * 16 * 9 * 6 * 4),
    Conv("dilated", nn.Conv2d(4, 6, 3, dilation=2, bias=False), (2, 4, 8, 8), 2 * 2 * 16 * 9 * 6 * 4),
    Conv("grouped", nn.Conv2d(4, 6, 3, groups=2, bias=False), (2, 4, 8, 8), 2 * 2 * 36 * 9 * 6 * 2),
    Conv("depthwise", nn.Conv2d(4, 4, 3, groups=4, bias=False), (2, 4, 8, 8), 2 * 2 * 36 * 9 * 4 * 1),
    Conv("1x1", nn.Conv2d(4, 6, 1, bias=False), (2, 4, 8, 8), 2 * 2 * 64 * 6 * 4),
    Conv("1x1 strided", nn.Conv2d(4, 6, 1, stride=2, bias=False), (2, 4, 8, 8), 2 * 2 * 16 * 6 * 4),
    Conv("1d", nn.Conv1d(4, 6, 3, bias=False), (2, 4, 8), 2 * 2 * 6 * 3 * 6 * 4),
    Conv("3d", nn.Conv3d(2, 3, 2, bias=False), (1, 2, 4, 4, 4), 2 * 27 * 8 * 3 * 2),
    # Every input position meets the whole kernel.
    Conv("transposed", nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False), (2, 4, 5, 5), 2 * 2 * 25 * 9 * 4 * 6),
    Conv("transposed grouped", nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), (2, 4, 5, 5), 2 * 2 * 25 * 9 * 4 * 3),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=lambda conv: conv.name)
def test_convolution_and_its_gradients(conv: Conv) -> None:
    inputs = _randn(*conv.shape).requires_grad_()
    with FlopMeter() as meter:
        output = conv.layer(inputs)
        assert meter.total == conv.forward
        torch.autograd.grad(output, [inputs, *conv.layer.parameters()], torch.ones_like(output))
    assert meter.by_op == {"convolution": conv.forward, "convolution_backward": 2 * conv.forward}
    with FlopMeter() as meter:
        output = conv.layer(inputs.detach())
        torch.autograd.grad(output, list(conv.layer.parameters()), torch.ones_like(output))
    assert meter.total == 2 * conv.forward


@pytest.mark.parametrize("conv", [c for c in CONVOLUTIONS if "grouped" not in c.name and c.name != "depthwise"])
def test_ungrouped_convolutions_agree_with_torch(conv: Conv) -> None:
    inputs = _randn(*conv.shape).requires_grad_()
    with FlopMeter() as ours, FlopCounterMode(display=False) as theirs:
        conv.layer(inputs).sum().backward()
    assert ours.by_op["convolution"] + ours.by_op["convolution_backward"] == theirs.get_total_flops()


def test_weight_norm_costs_what_its_operations_cost() -> None:
    """Forward and backward, written out: v g / |v|, (w - v <w, v> / |v|^2) g / |v| for v, and <w, v> / |v| for g."""
    v, g, w = _randn(3, 4).requires_grad_(), _randn(3, 1).requires_grad_(), _randn(3, 4).cos()
    with FlopMeter() as fused:
        found = torch.autograd.grad(torch._weight_norm(v, g), [v, g], w)
    with FlopMeter() as written, torch.no_grad():
        norms = torch.linalg.vector_norm(v, dim=1, keepdim=True)
        v * (g / norms)
        along = (w * v).sum(1, keepdim=True)
        expected = (w - v * (along / (norms * norms))) * (g / norms), along / norms
    assert all(torch.allclose(*pair) for pair in zip(found, expected, strict=True))
    assert (fused.total, fused.uncounted) == (written.total, ())


def _backward_of(make: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> FlopMeter:
    inputs = _randn(*shape).requires_grad_()
    output = make(inputs)
    cotangent = torch.ones_like(output)
    with FlopMeter() as meter:
        torch.autograd.grad(output, inputs, cotangent)
    return meter


@pytest.mark.parametrize(
    ("make", "shape", "flop"),
    [
        (lambda x: x @ torch.ones(4, 5), (3, 4), 2 * 3 * 5 * 4),
        (lambda x: x.relu(), (3, 4), 12),
        (lambda x: x.tanh(), (3, 4), 12),
        (lambda x: x.softmax(1), (3, 4), 4 * 12),
        (lambda x: x.log_softmax(1), (3, 4), 4 * 12),
        (lambda x: F.max_pool2d(x, 2), (2, 3, 4, 4), 2 * 3 * 4),
        (lambda x: F.avg_pool2d(x, 2), (2, 3, 4, 4), 2 * 3 * 4 * 4),
        (lambda x: F.adaptive_avg_pool2d(x, 2), (2, 3, 4, 4), 2 * 3 * 4),
        (lambda x: F.layer_norm(x, (4,)), (3, 4), 9 * 12),
        (lambda x: F.group_norm(x, 1), (2, 3, 4, 4), 9 * 96),
        (lambda x: F.batch_norm(x, None, None, training=True), (2, 3, 4, 4), 9 * 96),
        (lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3)), (2, 3, 4, 4), 96),
        (lambda x: F.nll_loss(x, torch.tensor([0, 1, 2])), (3, 4), 3),
        (lambda x: F.mse_loss(x, torch.zeros(3, 4)), (3, 4), 36),
        (lambda x: F.embedding(torch.tensor([0, 0, 1]), x), (3, 4), 12),
        (lambda x: x[torch.tensor([0, 0, 1])], (3, 4), 12),
        (F.elu, (3, 4), 12),
        (F.hardsigmoid, (3, 4), 12),
        (F.hardswish, (3, 4), 12),
        (F.hardtanh, (3, 4), 12),
        (F.leaky_relu, (3, 4), 12),
        (F.logsigmoid, (3, 4), 12),
        (F.mish, (3, 4), 12),
        (F.silu, (3, 4), 12),
        (F.softplus, (3, 4), 12),
        (torch.sigmoid, (3, 4), 12),
        (F.gelu, (3, 4), 12),
        (F.glu, (3, 4), 24),
        (lambda x: F.prelu(x, torch.ones(1)), (3, 4), 24),
        (lambda x: torch.logit(x, 0.1), (3, 4), 12),
        (lambda x: torch.native_dropout(x, 0.5, True)[0], (3, 4), 24),
        (lambda x: F.huber_loss(x, torch.zeros(3, 4)), (3, 4), 48),
        (lambda x: F.smooth_l1_loss(x, torch.zeros(3, 4)), (3, 4), 48),
        (lambda x: F.binary_cross_entropy(x * 0 + 0.5, torch.ones(3, 4)), (3, 4), 5 * 12 + 12),
        (lambda x: F.nll_loss(x, torch.zeros(2, 4, 4, dtype=torch.long)), (2, 3, 4, 4), 32),
        (lambda x: torch.cdist(x, torch.ones(7, 4), p=1.0), (3, 4), 4 * 3 * 7 * 4),
        (lambda x: x.unfold(0, 2, 1), (3, 4), 16),
        (lambda x: F.pad(x, (1, 1), mode="reflect"), (3, 4), 18),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), (1, 3, 4), 30),
        (lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="reflect"), (1, 1, 2, 3, 4), 120),
        (lambda x: F.pad(x, (1, 1), mode="replicate"), (3, 4), 18),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"), (1, 3, 4), 30),
        (lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="replicate"), (1, 1, 2, 3, 4), 120),
        (lambda x: F.adaptive_max_pool2d(x, 2), (2, 3, 4, 4), 24),
        (lambda x: F.adaptive_max_pool3d(x, 2), (2, 3, 4, 4), 16),
        (lambda x: F.adaptive_avg_pool3d(x, 2), (2, 3, 4, 4), 16),
        (lambda x: F.max_pool3d(x, 2), (1, 4, 4, 4), 8),
        (lambda x: F.avg_pool3d(x, 2), (1, 4, 4, 4), 64),
        (lambda x: F.interpolate(x, scale_factor=2), (2, 3, 4), 48),
        (lambda x: F.interpolate(x, scale_factor=2), (2, 3, 4, 4), 384),
        (lambda x: F.interpolate(x, scale_factor=2), (1, 2, 3, 4, 4), 768),
        (lambda x: F.interpolate(x, scale_factor=2, mode="linear"), (2, 3, 4), 4 * 48),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (2, 3, 4, 4), 8 * 384),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), (2, 3, 4, 4), 32 * 384),
        (lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), (1, 2, 3, 4, 4), 16 * 768),
        (lambda x: F.pad(x, (1, 1)).T.reshape(-1), (3, 4), 0),
    ],
)
def test_backward(make: Callable[[Tensor], Tensor], shape: tuple[int, ...], flop: int) -> None:
    meter = _backward_of(make, shape)
    assert (meter.total, meter.uncounted) == (flop, ())


def test_unknown_operations_are_named_and_change_nothing() -> None:
    @torch.library.custom_op("curvbench_test::double", mutates_args=())
    def double(x: Tensor) -> Tensor:
        return x * 2

    x = torch.ones(3, 4)
    with FlopMeter() as meter:
        x + x
        torch.special.bessel_j0(x)
        double(x)
    assert meter.uncounted == ("aten::special_bessel_j0", "curvbench_test::double")
    assert (meter.total, meter.by_op) == (12, {"add": 12})


class Block(nn.Module):
    """Convolutions of every kind, batch normalisation, a shortcut, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.first(x)), inplace=True)
        x = F.relu(x + self.norms[1](self.grouped(x)))
        x = F.gelu(self.norms[2](self.depthwise(x))) + x
        return self.last(F.dropout(F.max_pool2d(x, 2).mean((2, 3)), 0.1))


@pytest.mark.parametrize("training", [True, False])
def test_resnet_block_leaves_nothing_uncounted(training: bool) -> None:
    model, inputs = Block().train(training), _randn(2, 3, 8, 8)
    with FlopMeter() as meter:
        F.cross_entropy(model(inputs), torch.tensor([0, 1])).backward()
    assert meter.uncounted == ()
    # 4 x 4 outputs of 27, 36 and 9 inputs; the first layer's inputs need no gradient.
    convolutions = [2 * 2 * 16 * 8 * k for k in (27, 36, 9)]
    assert meter.by_op["convolution"] == sum(convolutions)
    assert meter.by_op["convolution_backward"] == 2 * sum(convolutions) - convolutions[0]
    assert meter.by_op["addmm"] == 2 * 2 * 8 * 5
    assert meter.by_op["mm"] == 2 * (2 * 2 * 8 * 5)


# A layer of width 8 and feed-forward width 16 on 2 x 5 tokens: four projections of 8 x 8 and two of 8 x 16;
# attention takes two products of 5 x 5 x 8 per sequence.
PROJECTIONS = 2 * 10 * (4 * 64 + 2 * 128)
ATTENTION = 2 * 2 * (2 * 5 * 5 * 8)


def _encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


def _products(meter: FlopMeter) -> int:
    kinds = ("mm", "addmm", "bmm", "baddbmm", "flash_attention", "encoder_layer")
    return sum(flop for name, flop in meter.by_op.items() if any(kind in name for kind in kinds))


@pytest.mark.parametrize("training", [True, False])
def test_transformer_with_gradient(training: bool) -> None:
    model, inputs = _encoder_layer().train(training), _randn(2, 5, 8).requires_grad_()
    with FlopMeter() as meter:
        output = model(inputs)
        assert _products(meter) == PROJECTIONS + ATTENTION
        output.square().sum().backward()
    assert meter.uncounted == ()
    fused = any("flash" in name for name in meter.by_op)  # whose backward makes the scores again
    assert _products(meter) == 3 * (PROJECTIONS + ATTENTION) + fused * ATTENTION // 2


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_transformer_in_evaluation_without_gradient(guard: Callable[[], torch.no_grad]) -> None:
    with FlopMeter() as meter, guard():
        _encoder_layer().eval()(_randn(2, 5, 8))
    assert meter.uncounted == ()
    assert _products(meter) == PROJECTIONS + ATTENTION


def test_attention_in_evaluation_without_gradient() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    tokens = _randn(2, 5, 8)
    with FlopMeter() as meter, torch.no_grad():
        attention(tokens, tokens, tokens)
    assert meter.uncounted == ()
    assert _products(meter) == 2 * 10 * 4 * 64 + ATTENTION


def test_fused_layers_of_evaluation() -> None:
    layer, tokens = _encoder_layer().eval(), _randn(2, 5, 8)
    attention = layer.self_attn
    projections = (attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight, attention.out_proj.bias)
    norms = (layer.norm1.weight, layer.norm1.bias, layer.norm2.weight, layer.norm2.bias)
    feed_forward = (layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias)
    with FlopMeter() as meter, torch.no_grad():
        torch._transformer_encoder_layer_fwd(tokens, 8, 2, *projections, False, False, 1e-5, *norms, *feed_forward)
    assert (meter.total, meter.uncounted) == (PROJECTIONS + ATTENTION, ())
    with FlopMeter() as meter, torch.no_grad():
        torch._native_multi_head_attention(tokens, tokens, tokens, 8, 2, *projections)
    assert (meter.total, meter.uncounted) == (2 * 10 * 4 * 64 + ATTENTION, ())


def test_scaled_dot_product_attention_of_unequal_lengths() -> None:
    query, key, value = _randn(2, 3, 5, 4), _randn(2, 3, 7, 4), _randn(2, 3, 7, 4)
    with FlopMeter() as meter:
        F.scaled_dot_product_attention(query, key, value)
    assert meter.uncounted == ()
    assert _products(meter) == 2 * (2 * 2 * 3 * 5 * 7 * 4)


# FLOP per parameter of the second step. SGD: momentum x buffer + gradient 2, update 2. Adam: first moment 3,
# second 1 + 3, denominator sqrt, divide, add 3, update 3; weight decay 2, or 1 where it shrinks the parameter.
OPTIMIZERS = [
    (torch.optim.SGD, {"lr": 0.1}, 2),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, 4),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}, 6),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, 6),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}, 5),
    (torch.optim.Adam, {"weight_decay": 0.0}, 13),
    (torch.optim.Adam, {"weight_decay": 0.1}, 15),
    (torch.optim.Adam, {"amsgrad": True}, 14),
    (torch.optim.AdamW, {"weight_decay": 0.1}, 14),
    (torch.optim.Adagrad, {"weight_decay": 0.1}, 9),
]


@pytest.mark.parametrize("variant", ["foreach", "fused", "single"])
@pytest.mark.parametrize(("optimizer", "options", "flop"), OPTIMIZERS)
def test_optimizer(optimizer: type[torch.optim.Optimizer], options: dict[str, object], flop: int, variant: str) -> None:
    parameters = [nn.Parameter(_randn(30, 4)), nn.Parameter(_randn(7))]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    variants = {"foreach": variant == "foreach", "fused": variant == "fused"}
    update = optimizer(parameters, **options, **variants)  # type: ignore[call-arg]
    update.step()
    with FlopMeter() as meter:
        update.step()
    assert meter.uncounted == ()
    steps = 0 if optimizer is torch.optim.SGD else len(parameters)  # Adam counts its steps in floating point
    assert meter.total == 127 * flop + steps


def test_kfac_step() -> None:
    """N = 10 samples, D = 6 inputs, M = 4 outputs."""
    inputs, gradients, weight = _randn(10, 6), _randn(10, 4), _randn(4, 6)
    with FlopMeter() as meter:
        a = torch.einsum("ni,nj->ij", inputs, inputs) / 10
        b = torch.einsum("ni,nj->ij", gradients, gradients) / 10
        values_a, vectors_a = torch.linalg.eigh(a)
        values_b, vectors_b = torch.linalg.eigh(b)
        rotated = vectors_b.mT @ weight @ vectors_a / (torch.outer(values_b, values_a) + 1e-3)
        torch.cholesky_solve(rotated.mT, torch.linalg.cholesky(a + torch.eye(6)))
        torch.linalg.solve(torch.kron(b, a) + torch.eye(24), weight.reshape(-1))
    assert meter.uncounted == ()
    factors = 2 * 10 * 36 + 36 + 2 * 10 * 16 + 16
    eigen = 9 * 216 + 9 * 64
    rotation = 2 * 4 * 4 * 6 + 2 * 4 * 6 * 6 + 3 * 24
    cholesky = 36 + 216 // 3 + 2 * 36 * 4
    kron = 576 + 576 + 2 * 24**3 // 3 + 2 * 24**2
    assert meter.total == factors + eigen + rotation + cholesky + kron


def _network() -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    return model, {name: p.detach() for name, p in model.named_parameters()}, _randn(5, 4)


FORWARD = 2 * 5 * 4 * 3 + 5 * 3 + 2 * 5 * 3 * 2


def test_functional_call() -> None:
    model, parameters, inputs = _network()
    with FlopMeter() as meter:
        torch.func.functional_call(model, parameters, (inputs,))
    assert (meter.total, meter.uncounted) == (FORWARD, ())


def test_vmap_counts_the_batch() -> None:
    spd, inputs = _spd(7, n=6), _randn(7, 6)
    with FlopMeter() as meter:
        torch.func.vmap(lambda a, x: torch.linalg.cholesky(a) @ x)(spd, inputs)
    assert meter.uncounted == ()
    assert meter.total == 7 * (216 // 3 + 2 * 36)


def test_per_sample_gradients() -> None:
    model, parameters, inputs = _network()

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, p, (x,)).square().sum()

    with FlopMeter() as meter:
        torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, inputs)
    assert meter.uncounted == ()
    # Forward, the gradients of both weights as outer products, and of the hidden layer.
    products = {k: v for k, v in meter.by_op.items() if k in ("mm", "addmm", "bmm", "baddbmm", "mv")}
    outer = sum(products.values()) - (2 * 5 * 4 * 3 + 2 * 5 * 3 * 2 + 2 * 5 * 2 * 3)
    assert outer in (2 * 5 * (12 + 6), 0)  # as products with one column, or elementwise


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_jvp_and_vjp() -> None:
    model, parameters, inputs = _network()

    def function(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, p, (x,))

    with FlopMeter() as forward:
        torch.func.jvp(function, (parameters, inputs), (parameters, inputs))
    with FlopMeter() as backward:
        output, pull = torch.func.vjp(lambda x: function(parameters, x), inputs)
        pull(torch.ones_like(output))
    assert forward.uncounted == backward.uncounted == ()
    products = 2 * 5 * 4 * 3 + 2 * 5 * 3 * 2
    assert _products(forward) == 3 * products  # the output, and the tangents of weight and input
    assert _products(backward) == 2 * products


def test_shapes_without_numbers_cost_nothing() -> None:
    x = torch.ones(3, 4, device="meta")
    with FlopMeter() as meter:
        x + x @ x.T @ x
        torch.special.bessel_j0(x)
    assert (meter.total, meter.uncounted) == (0, ())


def test_blocks_add_up_and_nest() -> None:
    x = torch.ones(3, 4)
    with FlopMeter() as outer:
        x + x
        with FlopMeter() as inner:
            x * x
    x + x
    assert inner.by_op == {"mul": 12}
    assert outer.by_op == {"add": 12, "mul": 12}
    assert outer.total == 24
    assert math.prod(x.shape) == 12
