"""Formulas for the floating-point operations (FLOP) of one call, by the convention of ``flop_model``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Arguments = Mapping[str, Any]
"""Arguments of one call by their name in the operation's schema, defaults included."""

Formula = Callable[[Arguments, Any], int]
"""(arguments, result) -> FLOP."""


def numel(value: Any) -> int:
    """Number of floating-point numbers in a tensor or a (nested) sequence of tensors; 0 for anything else.

    Shapes without numbers have none: meta tensors, and the zero tangents of forward-mode differentiation.
    """
    if isinstance(value, Tensor):
        if value.is_meta or value._is_zerotensor():
            return 0
        return value.numel() if value.is_floating_point() or value.is_complex() else 0
    return sum(map(numel, value)) if isinstance(value, (list, tuple)) else 0


def results(a: Arguments, out: Any) -> Any:
    """The tensors that the operation computed; foreach operations in place return nothing."""
    return a["self"] if out is None else out


def matrices(matrix: Tensor) -> tuple[int, int, int, int]:
    """(batch, short side, long side, rows) of a stack of matrices (..., rows, columns)."""
    rows, columns = matrix.shape[-2:]
    return math.prod(matrix.shape[:-2]), min(rows, columns), max(rows, columns), rows


# Formulas with parameters, for table entries: per result, per argument, per matrix.


def per_result(weight: int) -> Formula:
    """``weight`` FLOP for each floating-point number of the result."""
    return lambda a, out: weight * numel(results(a, out))


def per_element(weight: int, name: str) -> Formula:
    """``weight`` FLOP for each floating-point number of the argument ``name``."""
    return lambda a, out: weight * numel(a[name])


def product(left: str) -> Formula:
    """Any product whose left operand is contracted over its last dimension."""
    return lambda a, out: 2 * numel(out) * a[left].shape[-1]


def cubic(numerator: int, denominator: int, name: str) -> Formula:
    """A constant times n^3 for each n x n matrix of the argument."""

    def formula(a: Arguments, out: Any) -> int:
        batch, n, _, _ = matrices(a[name])
        return numerator * batch * n**3 // denominator

    return formula


def substitution(weight: int, name: str) -> Formula:
    """``weight`` times n FLOP for each number of the solution, n the side of the argument's matrices."""

    def formula(a: Arguments, out: Any) -> int:
        solution = out[0] if isinstance(out, (list, tuple)) else out
        return weight * a[name].shape[-1] * numel(solution)

    return formula


# Products and convolutions.


def addbmm(a: Arguments, out: Any) -> int:
    """The sum of a batch of products."""
    return 2 * a["batch1"].numel() * a["batch2"].shape[-1]


def trilinear(a: Arguments, out: Any) -> int:
    """Two products and a sum for each entry of the three operands broadcast against each other."""
    operands = [a["i1"], a["i2"], a["i3"]]
    for i, expand in enumerate((a["expand1"], a["expand2"], a["expand3"])):
        for dim in sorted(expand):
            operands[i] = operands[i].unsqueeze(dim)
    return 3 * math.prod(torch.broadcast_shapes(*(x.shape for x in operands)))


def _convolution(small: Tensor, weight: Tensor) -> int:
    # `small` is the side that every kernel entry reads or writes once: the output, or the input of a transposed
    # convolution. The weight's shape is that of one group.
    return 2 * small.shape[0] * math.prod(small.shape[2:]) * weight.numel()


def convolution(a: Arguments, out: Any) -> int:
    """Grouped, strided, dilated, transposed: every kernel position of every channel pair of a group."""
    return _convolution(a["input"] if a.get("transposed") else out, a["weight"])


def convolution_backward(a: Arguments, out: Any) -> int:
    """One forward pass for each of the input's and the weight's gradient that is asked for."""
    small = a["input"] if a.get("transposed") else a["grad_output"]
    # ``curvbench.instance.convolution`` has no mask, because it computes the input's gradient alone.
    mask = a.get("output_mask", (True, False))
    return (mask[0] + mask[1]) * _convolution(small, a["weight"])


def distances(weight: int) -> Formula:
    """``weight`` FLOP for each coordinate of each pair of points."""
    return lambda a, out: weight * a["x1"].shape[-1] * a["x1"].shape[-2] * a["x2"].numel() // a["x2"].shape[-1]


# Attention: scores and their product with the values; backward computes the scores again and four gradients.


def _attention(query: Tensor, key: Tensor, value: Tensor, by_key: int, by_value: int) -> int:
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return 2 * scores * (by_key * key.shape[-1] + by_value * value.shape[-1])


def attention(a: Arguments, out: Any) -> int:
    """Scores, and their product with the values; softmax is of lower order."""
    return _attention(a["query"], a["key"], a["value"], 1, 1)


def attention_backward(a: Arguments, out: Any) -> int:
    """Scores again, and the gradients of scores, queries, keys and values."""
    return _attention(a["query"], a["key"], a["value"], 3, 2)


def multi_head_attention(a: Arguments, out: Any) -> int:
    """The fused self- or cross-attention of evaluation: four projections and the attention."""
    width = a["embed_dim"]
    batch, queries, _ = a["query"].shape
    keys = a["key"].shape[1]
    projections = 2 * batch * width**2 * (2 * queries + 2 * keys)
    return projections + 4 * batch * queries * keys * width


def encoder_layer(a: Arguments, out: Any) -> int:
    """The fused Transformer encoder layer of evaluation."""
    batch, tokens, width = a["src"].shape
    weights = ("qkv_weight", "proj_weight", "ffn_weight_1", "ffn_weight_2")
    return 2 * batch * tokens * sum(a[w].numel() for w in weights) + 4 * batch * tokens**2 * width


# Dense linear algebra.


def lu(a: Arguments, out: Any) -> int:
    """GVL 3.2: n^2 (m - n/3), which is 2 n^3 / 3 for a square."""
    batch, short, long, _ = matrices(a["A"])
    return batch * short**2 * (3 * long - short) // 3


def solve(a: Arguments, out: Any) -> int:
    """LU factorization and two triangular solves per right-hand side."""
    return lu(a, out) + substitution(2, "A")(a, out)


def _householder_qr(batch: int, short: int, long: int) -> int:
    """GVL 5.2: 2 n^2 (m - n/3), without Q."""
    return 2 * batch * short**2 * (3 * long - short) // 3


def _householder_form(batch: int, rows: int, columns: int, reflectors: int) -> int:
    """LAPACK Working Note 41, orgqr: 2 n^2 (m - n/3) for a thin Q."""
    k = reflectors
    return batch * (12 * rows * columns * k - 6 * (rows + columns) * k**2 + 4 * k**3) // 3


def geqrf(a: Arguments, out: Any) -> int:
    """QR with Q left as reflectors."""
    batch, short, long, _ = matrices(a["self"])
    return _householder_qr(batch, short, long)


def householder_product(a: Arguments, out: Any) -> int:
    """Q formed from its reflectors."""
    batch, _, _, rows = matrices(a["input"])
    return _householder_form(batch, rows, a["input"].shape[-1], a["tau"].shape[-1])


def ormqr(a: Arguments, out: Any) -> int:
    """GVL 5.1: k reflectors applied to an m x n matrix from its side of length m, 2 n k (2 m - k)."""
    side, other = out.shape[-2:] if a["left"] else out.shape[:-3:-1]
    k = a["input2"].shape[-1]
    return math.prod(out.shape[:-2]) * 2 * other * k * (2 * side - k)


def qr(a: Arguments, out: Any) -> int:
    """QR by Householder reflections, with the columns of Q that the mode asks for."""
    batch, short, long, rows = matrices(a["A"])
    columns = {"r": 0, "reduced": short, "complete": rows}[a["mode"]]
    form = _householder_form(batch, rows, columns, short) if columns else 0
    return _householder_qr(batch, short, long) + form


def lstsq(a: Arguments, out: Any) -> int:
    """GVL 5.3.3, Householder: factorize, apply the reflectors to the right-hand sides, substitute."""
    batch, short, long, rows = matrices(a["self"])
    columns = a["b"].numel() // rows
    return _householder_qr(batch, short, long) + columns * (2 * short * (2 * rows - short) + short**2)


def eigh(a: Arguments, out: Any) -> int:
    """GVL 8.3: 9 n^3 with eigenvectors, 4 n^3 / 3 without."""
    return cubic(9, 1, "A")(a, out) if a["compute_v"] else eigvalsh(a, out)


def eigvalsh(a: Arguments, out: Any) -> int:
    """Eigenvalues of symmetric matrices."""
    return cubic(4, 3, "A")(a, out)


def svd(a: Arguments, out: Any) -> int:
    """GVL 8.6, table of the Golub-Reinsch algorithm, for m >= n: values, thin, full."""
    batch, n, m, _ = matrices(a["A"])
    if not a["compute_uv"]:
        return svdvals(a, out)
    if a["full_matrices"]:
        return batch * (4 * m**2 * n + 8 * m * n**2 + 9 * n**3)
    return batch * (14 * m * n**2 + 8 * n**3)


def svdvals(a: Arguments, out: Any) -> int:
    """Singular values."""
    batch, n, m, _ = matrices(a["A"])
    return batch * (12 * m * n**2 - 4 * n**3) // 3


def pinv(a: Arguments, out: Any) -> int:
    """Thin decomposition, and the product of its two halves."""
    batch, n, m, _ = matrices(a["self"])
    decomposition = 9 * n**3 if a["hermitian"] else 14 * m * n**2 + 8 * n**3
    return batch * (decomposition + 2 * m * n**2)


def matrix_exp(a: Arguments, out: Any) -> int:
    """Taylor polynomial of degree 18 in 5 products, then squarings: Bader, Blanes, Casas, Mathematics 7 (2019)."""
    batch, n, _, _ = matrices(a["self"])
    radius = 1.09 if a["self"].dtype == torch.float64 else 3.01
    norms = a["self"].detach().abs().sum(-2).amax(-1) if batch * n else a["self"].new_zeros(1)
    squarings = (norms / radius).log2().ceil().clamp(min=0).sum()
    return 2 * n**3 * (5 * batch + int(squarings))


def trace(a: Arguments, out: Any) -> int:
    """1 for each diagonal entry."""
    return min(a["self"].shape)


def targets(a: Arguments, out: Any) -> int:
    """1 for each term of a negative log likelihood."""
    return int(a["target"].numel())


# Normalisation. Moments 4 (sum; subtract, square, add), normalise 2, scale and shift 2; backward per piece:
# the normalised input 2, the sums for scale 2 and shift 1, the gradient of the input 4 (1 where the moments are
# constants). A layer's or group's own sums for the input's gradient come on top of those for scale and shift.


def batch_norm(a: Arguments, out: Any) -> int:
    """Training mode: moments, normalise, scale and shift where affine; evaluation: one multiply-add."""
    training = a.get("training", False)
    return a["input"].numel() * ((6 if training else 0) + (2 if a["weight"] is not None or not training else 0))


def batch_norm_backward(a: Arguments, out: Any) -> int:
    """Training mode needs every sum for any output; evaluation mode counts by output."""
    if a.get("train", True):
        return 9 * a["input"].numel()
    mask = a["output_mask"]
    return a["input"].numel() * (mask[0] + 4 * mask[1] + mask[2])


def layer_norm(a: Arguments, out: Any) -> int:
    """Layer and group normalisation."""
    return a["input"].numel() * (8 if a["weight"] is not None else 6)


def layer_norm_backward(a: Arguments, out: Any) -> int:
    """Layer and group normalisation, by output."""
    mask, scaled = a["output_mask"], a["weight"] is not None
    return a["input"].numel() * (2 + mask[0] * (7 + scaled) + 2 * mask[1] + mask[2])


def weight_norm(a: Arguments, out: Any) -> int:
    """Norms 2; v times g over them."""
    return 3 * numel(a["v"]) + numel(a["g"])


def weight_norm_backward(a: Arguments, out: Any) -> int:
    """Inner products with v 2, which over the norms are the gradient of g; that of v 3, and 3 quotients per norm."""
    return 5 * numel(a["saved_v"]) + 4 * numel(a["saved_g"])


# Elementwise operations and optimizers with options.


def add(a: Arguments, out: Any) -> int:
    """1 per result, 2 where the second operand is scaled."""
    return (1 if a.get("alpha", 1) == 1 else 2) * numel(results(a, out))


def addcmul(a: Arguments, out: Any) -> int:
    """Addcmul and addcdiv: 2 per result, 3 where the product is scaled."""
    return (2 if a.get("value") == 1 else 3) * numel(results(a, out))


def fused_sgd(a: Arguments, out: Any) -> int:
    """Update 2, momentum 2 (3 with dampening), Nesterov 2, weight decay 2."""
    momentum = a["momentum"] != 0 and not a["is_first_step"]
    buffer = (2 + (a["dampening"] != 0)) * momentum + 2 * bool(a["momentum"] and a["nesterov"])
    return numel(a["self"]) * (2 + buffer + 2 * (a["weight_decay"] != 0) + a["maximize"])


def fused_adam(decay: int) -> Formula:
    """First moment 3, second 4, denominator 3, update 3, and the options."""

    def formula(a: Arguments, out: Any) -> int:
        options = decay * (a["weight_decay"] != 0) + a["amsgrad"] + a["maximize"]
        return numel(a["self"]) * (13 + options)

    return formula


def fused_adagrad(a: Arguments, out: Any) -> int:
    """Sum of squares 2, denominator 2, update 3, and the options."""
    return numel(a["self"]) * (7 + 2 * (a["weight_decay"] != 0) + a["maximize"])


def bincount(a: Arguments, out: Any) -> int:
    """1 for each weight; without weights it counts integers."""
    return 0 if a["weights"] is None else numel(a["weights"])


def accumulate(name: str) -> Formula:
    """1 per value that is added to an entry; 0 if values replace the entries."""
    return lambda a, out: numel(a[name]) if a["accumulate"] else 0


def pooling(dims: int, side: str | None = None) -> Formula:
    """1 per place of a window, for each window; ``side`` names an argument with one element per window."""

    def formula(a: Arguments, out: Any) -> int:
        windows = a[side] if side else out[0] if isinstance(out, tuple) else out
        kernel = a["kernel_size"]
        return numel(windows) * math.prod(kernel if len(kernel) == dims else kernel * dims)

    return formula
