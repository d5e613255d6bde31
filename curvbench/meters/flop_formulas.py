"""What an operation costs in floating-point operations (FLOP): the tables and formulas behind ``FlopMeter``.

Convention (``FLOP_MODEL``), the same on every version of torch:

- A multiply-add is 2 FLOP. In products, convolutions, attention and factorizations only the leading order
  counts (no bias, no scaling by alpha or beta, padding and causal masks as if dense), so the gradient of a
  convolution costs one forward pass for its input and one for its weight.
- Factorizations and solves count the leading order of the textbook algorithm, whatever the library does:
  G. H. Golub, C. F. Van Loan, Matrix Computations (GVL below), and LAPACK Working Note 41 for ``orgqr``.
- One elementwise function of one operation is 1 FLOP per result, exp and sqrt included. Operations that fuse
  several (``addcmul``, ``add`` with alpha, optimizers, normalisations, losses) count each of them, so that a
  method gains nothing by how it is written.
- A reduction is 1 FLOP per element taken in, multiply-adds 2 (norms), and likewise the adding of scattered
  values. A maximum of floating-point values counts like a sum.
- Free: views, copies, casts, fills, masks, comparisons, sorting, indexing, random draws, and arithmetic on
  integers and booleans.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

FLOP_MODEL = "1"
"""Version of the convention, recorded beside every count; changes with any change of a formula."""

Arguments = Mapping[str, Any]
"""Arguments of one call by their name in the operation's schema, defaults included."""

Formula = Callable[[Arguments, Any], int]
"""(arguments, result) -> FLOP."""


def numel(value: Any) -> int:
    """Number of floating-point numbers in a tensor or a (nested) sequence of tensors; 0 for anything else."""
    if isinstance(value, Tensor):
        return value.numel() if value.is_floating_point() or value.is_complex() else 0
    return sum(map(numel, value)) if isinstance(value, (list, tuple)) else 0


def matrices(matrix: Tensor) -> tuple[int, int, int, int]:
    """(batch, short side, long side, rows) of a stack of matrices (..., rows, columns)."""
    rows, columns = matrix.shape[-2:]
    return math.prod(matrix.shape[:-2]), min(rows, columns), max(rows, columns), rows


# Formulas that a table entry makes: per result, per argument, per matrix.


def per_result(weight: int) -> Formula:
    return lambda a, out: weight * numel(out)


def per_element(weight: int, name: str) -> Formula:
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
    return 2 * a["batch1"].numel() * a["batch2"].shape[-1]


def trilinear(a: Arguments, out: Any) -> int:
    """Two products and a sum for each entry of the three operands broadcast against each other."""
    operands = [a["i1"], a["i2"], a["i3"]]
    for i, expand in enumerate((a["expand1"], a["expand2"], a["expand3"])):
        for dim in sorted(expand):
            operands[i] = operands[i].unsqueeze(dim)
    return 3 * math.prod(torch.broadcast_shapes(*(x.shape for x in operands)))


def _convolution(small: Tensor, weight: Tensor) -> int:
    # `small` is the side that is read or written once per position of the kernel: the output, or the
    # input of a transposed convolution. The weight's shape is per group already.
    return 2 * small.shape[0] * math.prod(small.shape[2:]) * weight.numel()


def convolution(a: Arguments, out: Any) -> int:
    return _convolution(a["input"] if a["transposed"] else out, a["weight"])


def convolution_backward(a: Arguments, out: Any) -> int:
    small = a["input"] if a["transposed"] else a["grad_output"]
    return (a["output_mask"][0] + a["output_mask"][1]) * _convolution(small, a["weight"])


def distances(weight: int) -> Formula:
    """``weight`` FLOP for each coordinate of each pair of points."""
    return lambda a, out: weight * a["x1"].shape[-1] * a["x1"].shape[-2] * a["x2"].numel() // a["x2"].shape[-1]


# Attention: scores and their product with the values; backward makes the scores again and four gradients.


def _attention(query: Tensor, key: Tensor, value: Tensor, by_key: int, by_value: int) -> int:
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return 2 * scores * (by_key * key.shape[-1] + by_value * value.shape[-1])


def attention(a: Arguments, out: Any) -> int:
    return _attention(a["query"], a["key"], a["value"], 1, 1)


def attention_backward(a: Arguments, out: Any) -> int:
    return _attention(a["query"], a["key"], a["value"], 3, 2)


def multi_head_attention(a: Arguments, out: Any) -> int:
    width = a["embed_dim"]
    batch, queries, _ = a["query"].shape
    keys = a["key"].shape[1]
    projections = 2 * batch * width**2 * (2 * queries + 2 * keys)
    return projections + 4 * batch * queries * keys * width


def encoder_layer(a: Arguments, out: Any) -> int:
    batch, tokens, width = a["src"].shape
    weights = ("qkv_weight", "proj_weight", "ffn_weight_1", "ffn_weight_2")
    return 2 * batch * tokens * sum(a[w].numel() for w in weights) + 4 * batch * tokens**2 * width


# Dense linear algebra.


def lu(a: Arguments, out: Any) -> int:
    """GVL 3.2: n^2 (m - n/3), which is 2 n^3 / 3 for a square."""
    batch, short, long, _ = matrices(a["A"])
    return batch * short**2 * (3 * long - short) // 3


def solve(a: Arguments, out: Any) -> int:
    return lu(a, out) + substitution(2, "A")(a, out)


def _householder_qr(batch: int, short: int, long: int) -> int:
    """GVL 5.2: 2 n^2 (m - n/3), without Q."""
    return 2 * batch * short**2 * (3 * long - short) // 3


def _householder_form(batch: int, rows: int, columns: int, reflectors: int) -> int:
    """LAPACK Working Note 41, orgqr: 2 n^2 (m - n/3) for a thin Q."""
    k = reflectors
    return batch * (12 * rows * columns * k - 6 * (rows + columns) * k**2 + 4 * k**3) // 3


def geqrf(a: Arguments, out: Any) -> int:
    batch, short, long, _ = matrices(a["self"])
    return _householder_qr(batch, short, long)


def householder_product(a: Arguments, out: Any) -> int:
    batch, _, _, rows = matrices(a["input"])
    return _householder_form(batch, rows, a["input"].shape[-1], a["tau"].shape[-1])


def ormqr(a: Arguments, out: Any) -> int:
    """GVL 5.1: k reflectors applied to an m x n matrix from its side of length m, 2 n k (2 m - k)."""
    side, other = out.shape[-2:] if a["left"] else out.shape[:-3:-1]
    k = a["input2"].shape[-1]
    return math.prod(out.shape[:-2]) * 2 * other * k * (2 * side - k)


def qr(a: Arguments, out: Any) -> int:
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
    return cubic(9, 1, "A")(a, out) if a["compute_v"] else cubic(4, 3, "A")(a, out)


def svd(a: Arguments, out: Any) -> int:
    """GVL 8.6, table of the Golub-Reinsch algorithm, for m >= n: values, thin, full."""
    batch, n, m, _ = matrices(a["A"])
    if not a["compute_uv"]:
        return batch * (12 * m * n**2 - 4 * n**3) // 3
    if a["full_matrices"]:
        return batch * (4 * m**2 * n + 8 * m * n**2 + 9 * n**3)
    return batch * (14 * m * n**2 + 8 * n**3)


def matrix_exp(a: Arguments, out: Any) -> int:
    """Taylor polynomial of degree 18 in 5 products, then squarings: Bader, Blanes, Casas, Mathematics 7 (2019)."""
    batch, n, _, _ = matrices(a["self"])
    radius = 1.09 if a["self"].dtype == torch.float64 else 3.01
    norms = a["self"].detach().abs().sum(-2).amax(-1) if batch * n else a["self"].new_zeros(1)
    squarings = (norms / radius).log2().ceil().clamp(min=0).sum()
    return 2 * n**3 * (5 * batch + int(squarings))


def trace(a: Arguments, out: Any) -> int:
    return min(a["self"].shape)


def targets(a: Arguments, out: Any) -> int:
    return int(a["target"].numel())


# Normalisation. Moments 4 (sum; subtract, square, add), normalise 2, scale and shift 2; backward per piece:
# the normalised input 2, the sums for scale 2 and shift 1, the gradient of the input 4 (1 where the moments are
# constants). A layer's or group's own sums for the input's gradient come on top of those for scale and shift.


def batch_norm(a: Arguments, out: Any) -> int:
    training = a.get("training", False)
    return a["input"].numel() * ((6 if training else 0) + (2 if a["weight"] is not None or not training else 0))


def batch_norm_update(a: Arguments, out: Any) -> int:
    return 8 * a["input"].numel()


def batch_norm_backward(a: Arguments, out: Any) -> int:
    mask = a.get("output_mask", (True, True, True))
    if a.get("train", a.get("update", True)):
        return 9 * a["input"].numel()
    return a["input"].numel() * (mask[0] + 4 * mask[1] + mask[2])


def layer_norm(a: Arguments, out: Any) -> int:
    return a["input"].numel() * (8 if a["weight"] is not None else 6)


def layer_norm_backward(a: Arguments, out: Any) -> int:
    mask, scaled = a["output_mask"], a["weight"] is not None
    return a["input"].numel() * (2 + mask[0] * (7 + scaled) + 2 * mask[1] + mask[2])


# Elementwise operations and optimizers with options.


def add(a: Arguments, out: Any) -> int:
    """1 per result, 2 where the second operand is scaled; foreach operations in place return nothing."""
    return (1 if a.get("alpha", 1) == 1 else 2) * numel(a["self"] if out is None else out)


def addcmul(a: Arguments, out: Any) -> int:
    return (2 if a.get("value") == 1 else 3) * numel(a["self"] if out is None else out)


def fused_sgd(a: Arguments, out: Any) -> int:
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
    return numel(a["self"]) * (7 + 2 * (a["weight_decay"] != 0) + a["maximize"])


def bincount(a: Arguments, out: Any) -> int:
    return 0 if a["weights"] is None else numel(a["weights"])


def accumulate(name: str) -> Formula:
    """1 per value where values are added to what is there; 0 where they replace it."""
    return lambda a, out: numel(a[name]) if a["accumulate"] else 0


def pooling(dims: int, side: str | None = None) -> Formula:
    """1 per place of a window, for each window; ``side`` names what has one element per window, or the result."""

    def formula(a: Arguments, out: Any) -> int:
        windows = a[side] if side else out[0] if isinstance(out, tuple) else out
        kernel = a["kernel_size"]
        return numel(windows) * math.prod(kernel if len(kernel) == dims else kernel * dims)

    return formula


ELEMENTWISE: dict[int, str] = {
    1: """
        abs acos acosh angle asin asinh atan atan2 atanh ceil celu clamp clamp_max clamp_min clip cos cosh deg2rad
        digamma div elu erf erfc erfinv exp exp2 expm1 float_power floor floor_divide fmax fmin fmod frac gelu
        hardshrink hardsigmoid hardswish hardtanh leaky_relu lgamma log log10 log1p log2 log_sigmoid_forward logit
        maximum minimum mish mul neg pow _prelu_kernel rad2deg reciprocal relu relu6 remainder round rrelu_with_noise
        rsqrt selu sgn sigmoid sign silu sin sinc sinh softplus softshrink sqrt square tan tanh threshold true_divide
        trunc
        elu_backward gelu_backward hardsigmoid_backward hardswish_backward hardtanh_backward leaky_relu_backward
        log_sigmoid_backward logit_backward mish_backward rrelu_with_noise_backward sigmoid_backward silu_backward
        softplus_backward tanh_backward threshold_backward
        """,
    2: "glu glu_backward hypot native_dropout native_dropout_backward _prelu_kernel_backward xlogy",
    3: "lerp linalg_cross logaddexp logaddexp2",
    4: "upsample_linear1d",
    8: "upsample_bilinear2d",
    16: "upsample_trilinear3d",
    32: "upsample_bicubic2d",
}
"""FLOP per floating-point number of the result."""

PER_ELEMENT: dict[tuple[int, str], str] = {
    (1, "self"): """
        adaptive_max_pool2d adaptive_max_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d amax amin col2im cummax
        cummin _cummax_helper _cummin_helper cumprod cumsum max mean min nansum prod sum
        """,
    (1, "src"): "scatter_add scatter_reduce",
    (1, "source"): "index_add index_reduce",
    (1, "grad_in"): "unfold_backward",
    (1, "grad_output"): """
        _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward adaptive_max_pool2d_backward
        adaptive_max_pool3d_backward embedding_dense_backward max_pool2d_with_indices_backward
        max_pool3d_with_indices_backward reflection_pad1d_backward reflection_pad2d_backward
        reflection_pad3d_backward replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward
        upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward
        """,
    (2, "self"): "aminmax linalg_vector_norm linalg__powsum norm",
    (3, "self"): "dist huber_loss mse_loss mse_loss_backward renorm smooth_l1_loss",
    (4, "self"): "huber_loss_backward logcumsumexp logsumexp smooth_l1_loss_backward std std_mean var var_mean",
    (4, "grad_output"): "_log_softmax_backward_data _softmax_backward_data upsample_linear1d_backward",
    (5, "self"): "_log_softmax _safe_softmax _softmax binary_cross_entropy_backward",
    (6, "self"): "binary_cross_entropy_with_logits",
    (8, "self"): "binary_cross_entropy",
    (8, "grad_output"): "upsample_bilinear2d_backward",
    (16, "grad_output"): "upsample_trilinear3d_backward",
    (32, "grad_output"): "upsample_bicubic2d_backward",
    (4, "input"): "_fused_rms_norm",
    (10, "input"): "_fused_rms_norm_backward",
}
"""FLOP per element of the named argument."""

FORMULAS: dict[str, Formula] = {
    "mm": product("self"),
    "bmm": product("self"),
    "mv": product("self"),
    "dot": product("self"),
    "vdot": product("self"),
    "addmm": product("mat1"),
    "_addmm_activation": product("mat1"),
    "baddbmm": product("batch1"),
    "addmv": product("mat"),
    "addbmm": addbmm,
    "addr": per_result(2),
    "_trilinear": trilinear,
    "_cdist_forward": distances(3),
    "_cdist_backward": distances(4),
    "_euclidean_dist": distances(2),
    "convolution": convolution,
    "convolution_backward": convolution_backward,
    "linalg_cholesky_ex": cubic(1, 3, "self"),
    "cholesky": cubic(1, 3, "self"),
    "linalg_ldl_factor_ex": cubic(1, 3, "self"),
    "cholesky_inverse": cubic(2, 3, "self"),
    "linalg_inv_ex": cubic(2, 1, "A"),
    "linalg_lu_factor_ex": lu,
    "linalg_lu": lu,
    "_linalg_det": lu,
    "_linalg_slogdet": lu,
    "_linalg_solve_ex": solve,
    "linalg_lu_solve": substitution(2, "LU"),
    "linalg_ldl_solve": substitution(2, "LD"),
    "cholesky_solve": substitution(2, "input2"),
    "_cholesky_solve_helper": substitution(2, "A"),
    "linalg_solve_triangular": substitution(1, "self"),
    "triangular_solve": substitution(1, "A"),
    "linalg_qr": qr,
    "geqrf": geqrf,
    "linalg_householder_product": householder_product,
    "ormqr": ormqr,
    "linalg_lstsq": lstsq,
    "_linalg_eigh": eigh,
    "linalg_eig": cubic(25, 1, "self"),  # GVL 7.5, the QR algorithm with vectors
    "linalg_eigvals": cubic(10, 1, "self"),  # GVL 7.5, without
    "_linalg_eigvals": cubic(10, 1, "self"),
    "_linalg_svd": svd,
    "linalg_matrix_exp": matrix_exp,
    "trace": trace,
    "nll_loss_forward": targets,
    "nll_loss_backward": targets,
    "nll_loss2d_forward": targets,
    "nll_loss2d_backward": targets,
    "_native_multi_head_attention": multi_head_attention,
    "_transformer_encoder_layer_fwd": encoder_layer,
    "native_batch_norm": batch_norm,
    "cudnn_batch_norm": batch_norm,
    "_native_batch_norm_legit": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "_batch_norm_no_update": batch_norm,
    "_batch_norm_with_update": batch_norm_update,
    "native_batch_norm_backward": batch_norm_backward,
    "cudnn_batch_norm_backward": batch_norm_backward,
    "batch_norm_backward": batch_norm_backward,
    "native_layer_norm": layer_norm,
    "native_group_norm": layer_norm,
    "native_layer_norm_backward": layer_norm_backward,
    "native_group_norm_backward": layer_norm_backward,
    "add": add,
    "sub": add,
    "rsub": add,
    "addcmul": addcmul,
    "addcdiv": addcmul,
    "_fused_sgd": fused_sgd,
    "_fused_adam": fused_adam(decay=2),
    "_fused_adamw": fused_adam(decay=1),
    "_fused_adagrad": fused_adagrad,
    "index_put": accumulate("values"),
    "_index_put_impl": accumulate("values"),
    "_unsafe_index_put": accumulate("values"),
    "put": accumulate("source"),
    "bincount": bincount,
    "avg_pool1d": pooling(1),
    "avg_pool2d": pooling(2),
    "avg_pool3d": pooling(3),
    "avg_pool2d_backward": pooling(2, "grad_output"),
    "avg_pool3d_backward": pooling(3, "grad_output"),
    "max_pool2d_with_indices": pooling(2),
    "max_pool3d_with_indices": pooling(3),
}
FORMULAS |= {name: per_result(weight) for weight, names in ELEMENTWISE.items() for name in names.split()}
FORMULAS |= {name: per_element(*key) for key, names in PER_ELEMENT.items() for name in names.split()}
for _kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"):
    FORMULAS[f"_scaled_dot_product_{_kind}"] = attention
    FORMULAS[f"_scaled_dot_product_{_kind}_backward"] = attention_backward

# A foreach operation costs what its members cost; in place it returns nothing, so its first list is measured.
FORMULAS |= {f"_foreach_{name}": per_element(w, "self") for w, names in ELEMENTWISE.items() for name in names.split()}
FORMULAS |= {f"_foreach_{name}": FORMULAS[name] for name in ("add", "sub", "addcmul", "addcdiv", "max")}
FORMULAS |= {"_foreach_norm": per_element(2, "self"), "_foreach_powsum": per_element(2, "self")}

FREE: frozenset[str] = frozenset(
    """
    alias as_strided as_strided_scatter block_diag cat channel_shuffle _chunk_cat clone constant_pad_nd copy
    copysign detach diag_embed diagonal_backward diagonal_scatter expand fill flip _foreach_clone _foreach_copy
    _foreach_zero _fw_primal im2col index_fill _lazy_clone lift lift_fresh _make_dual masked_fill masked_scatter
    masked_scatter_backward new_empty new_empty_strided new_full new_ones new_zeros
    _new_zeros_with_same_feature_meta ones_like permute _pin_memory pixel_shuffle pixel_unshuffle record_stream
    reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d
    replication_pad2d replication_pad3d _reshape_alias resize resize_as _resize_output roll rot90
    select_backward select_scatter set slice_backward slice_scatter split split_with_sizes squeeze stack _stack
    t _to_copy transpose tril triu unfold unsafe_split unsafe_split_with_sizes _unsafe_view unsqueeze
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d where zero

    arange bartlett_window blackman_window empty empty_like empty_permuted empty_strided eye full full_like
    hamming_window hann_window linspace logspace ones range scalar_tensor tril_indices triu_indices zeros
    zeros_like

    bernoulli binomial cauchy exponential geometric log_normal multinomial normal normal_functional poisson rand
    rand_like randint randint_like randn randn_like random randperm uniform

    embedding gather index index_select isin lu_unpack masked_select max_unpool2d max_unpool3d nonzero
    nonzero_static scatter take _unsafe_index _unsafe_masked_index

    argmax argmin bucketize count_nonzero histc kthvalue median mode nanmedian searchsorted sort topk _unique
    _unique2 unique_consecutive unique_dim unique_dim_consecutive

    all allclose any bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor eq
    equal ge gt heaviside _is_all_true _is_any_true is_same_size isinf isnan isneginf isposinf le logical_and
    logical_not logical_or logical_xor __lshift__ lt nan_to_num ne nextafter __rshift__ signbit

    _assert_async _assert_scalar _assert_tensor_metadata _fused_sdp_choice is_pinned _linalg_check_errors
    _local_scalar_dense
    """.split()
)
"""Operations that cost nothing by the convention. Views are known by their schema and need no entry."""
