"""What each operation costs in floating-point operations (FLOP): the convention and the tables of ``FlopMeter``.

Convention (``spec.FLOP_MODEL``; a change of any formula changes it), the same on every version of torch:

- A multiply-add is 2 FLOP. In products, convolutions, attention and factorizations only the leading order
  counts (no bias, no scaling by alpha or beta, padding and causal masks as if dense), so the gradient of a
  convolution costs one forward pass for its input and one for its weight.
- Factorizations and solves count the leading order of the textbook algorithm, not the library's own:
  G. H. Golub, C. F. Van Loan, Matrix Computations (GVL below), and LAPACK Working Note 41 for ``orgqr``.
- One elementwise function of one operation is 1 FLOP per result, exp and sqrt included. Operations that fuse
  several (``addcmul``, ``add`` with alpha, optimizers, normalisations, losses) count each of them, so that the
  count of a method does not depend on the way in which it is written.
- A reduction is 1 FLOP per element, or 2 with multiply-adds (norms). Adding scattered values counts
  alike. A maximum of floating-point values counts like a sum.
- Free: views, copies, casts, fills, masks, comparisons, sorting, indexing, random draws, and arithmetic on
  integers and booleans.
"""

from __future__ import annotations

from curvbench.meters import flop_formulas as f

ELEMENTWISE: dict[int, str] = {
    1: """
        abs acos acosh angle asin asinh atan atan2 atanh ceil celu clamp clamp_max clamp_min cos cosh deg2rad digamma
        div elu erf erfc erfinv exp exp2 expm1 floor floor_divide fmax fmin fmod frac gelu hardshrink
        hardsigmoid hardswish hardtanh leaky_relu lgamma log log10 log1p log2 logit maximum minimum mish mul neg pow
        _prelu_kernel rad2deg reciprocal relu remainder round rsqrt sgn sigmoid sign silu sin sinc sinh softplus
        softshrink sqrt tan tanh threshold trunc

        elu_backward gelu_backward hardsigmoid_backward hardswish_backward hardtanh_backward leaky_relu_backward
        log_sigmoid_backward logit_backward mish_backward _prelu_kernel_backward sigmoid_backward silu_backward
        softplus_backward tanh_backward threshold_backward
        """,
    2: "glu glu_backward hypot native_dropout native_dropout_backward xlogy",
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
        cummin cumprod cumsum log_sigmoid_forward max mean min nansum prod sum
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
    (2, "self"): "aminmax linalg_vector_norm norm",
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

FORMULAS: dict[str, f.Formula] = {
    "mm": f.product("self"),
    "bmm": f.product("self"),
    "mv": f.product("self"),
    "dot": f.product("self"),
    "vdot": f.product("self"),
    "addmm": f.product("mat1"),
    "baddbmm": f.product("batch1"),
    "addmv": f.product("mat"),
    "addbmm": f.addbmm,
    "addr": f.per_result(2),
    "_trilinear": f.trilinear,
    "_cdist_forward": f.distances(3),
    "_cdist_backward": f.distances(4),
    "_euclidean_dist": f.distances(2),
    "convolution": f.convolution,
    "convolution_backward": f.convolution_backward,
    "linalg_cholesky_ex": f.cubic(1, 3, "self"),
    "cholesky": f.cubic(1, 3, "self"),
    "linalg_ldl_factor_ex": f.cubic(1, 3, "self"),
    "cholesky_inverse": f.cubic(2, 3, "self"),
    "linalg_inv_ex": f.cubic(2, 1, "A"),
    "linalg_lu_factor_ex": f.lu,
    "linalg_lu": f.lu,
    "_linalg_det": f.lu,
    "_linalg_slogdet": f.lu,
    "_linalg_solve_ex": f.solve,
    "linalg_lu_solve": f.substitution(2, "LU"),
    "linalg_ldl_solve": f.substitution(2, "LD"),
    "cholesky_solve": f.substitution(2, "input2"),
    "linalg_solve_triangular": f.substitution(1, "self"),
    "triangular_solve": f.substitution(1, "A"),
    "linalg_qr": f.qr,
    "geqrf": f.geqrf,
    "linalg_householder_product": f.householder_product,
    "ormqr": f.ormqr,
    "linalg_lstsq": f.lstsq,
    "_linalg_eigh": f.eigh,
    "linalg_eig": f.cubic(25, 1, "self"),  # GVL 7.5, the QR algorithm with vectors
    "_linalg_eigvals": f.cubic(10, 1, "self"),  # GVL 7.5, without
    "_linalg_svd": f.svd,
    "linalg_pinv": f.pinv,
    "linalg_matrix_exp": f.matrix_exp,
    "trace": f.trace,
    "nll_loss_forward": f.targets,
    "nll_loss_backward": f.targets,
    "nll_loss2d_forward": f.targets,
    "nll_loss2d_backward": f.targets,
    "_native_multi_head_attention": f.multi_head_attention,
    "_transformer_encoder_layer_fwd": f.encoder_layer,
    "native_batch_norm": f.batch_norm,
    "cudnn_batch_norm": f.batch_norm,
    "_native_batch_norm_legit": f.batch_norm,
    "_native_batch_norm_legit_no_training": f.batch_norm,
    "native_batch_norm_backward": f.batch_norm_backward,
    "cudnn_batch_norm_backward": f.batch_norm_backward,
    "native_layer_norm": f.layer_norm,
    "native_group_norm": f.layer_norm,
    "native_layer_norm_backward": f.layer_norm_backward,
    "native_group_norm_backward": f.layer_norm_backward,
    "_weight_norm_interface": f.weight_norm,
    "_weight_norm_interface_backward": f.weight_norm_backward,
    "add": f.add,
    "sub": f.add,
    "rsub": f.add,
    "addcmul": f.addcmul,
    "addcdiv": f.addcmul,
    "_fused_sgd": f.fused_sgd,
    "_fused_adam": f.fused_adam(decay=2),
    "_fused_adamw": f.fused_adam(decay=1),
    "_fused_adagrad": f.fused_adagrad,
    "index_put": f.accumulate("values"),
    "put": f.accumulate("source"),
    "bincount": f.bincount,
    "avg_pool2d": f.pooling(2),
    "avg_pool3d": f.pooling(3),
    "avg_pool2d_backward": f.pooling(2, "grad_output"),
    "avg_pool3d_backward": f.pooling(3, "grad_output"),
    "max_pool2d_with_indices": f.pooling(2),
    "max_pool3d_with_indices": f.pooling(3),
}
FORMULAS |= {name: f.per_result(weight) for weight, names in ELEMENTWISE.items() for name in names.split()}
FORMULAS |= {name: f.per_element(*key) for key, names in PER_ELEMENT.items() for name in names.split()}
for _kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"):
    FORMULAS[f"_scaled_dot_product_{_kind}"] = f.attention
    FORMULAS[f"_scaled_dot_product_{_kind}_backward"] = f.attention_backward

# A foreach operation costs what its members cost.
FORMULAS |= {f"_foreach_{name}": f.per_result(w) for w, names in ELEMENTWISE.items() for name in names.split()}
FORMULAS |= {f"_foreach_{name}": FORMULAS[name] for name in ("add", "sub", "addcmul", "addcdiv", "max")}
FORMULAS |= {"_foreach_norm": f.per_element(2, "self"), "_foreach_powsum": f.per_element(2, "self")}

VALUES_ONLY: dict[str, f.Formula] = {
    "_linalg_eigh": f.eigvalsh,
    "_linalg_svd": f.svdvals,
    "linalg_eig": FORMULAS["_linalg_eigvals"],
}
"""Formulas of decompositions whose caller takes the values alone, so that torch would not compute the vectors."""

FREE: frozenset[str] = frozenset(
    """
    alias as_strided as_strided_scatter block_diag cat channel_shuffle _chunk_cat clone constant_pad_nd copy
    copysign detach diag_embed diagonal_backward diagonal_scatter expand fill flip _foreach_clone _foreach_copy
    _foreach_zero _fw_primal im2col index_fill _lazy_clone lift lift_fresh _make_dual masked_fill masked_scatter
    masked_scatter_backward new_empty new_empty_strided new_full new_ones new_zeros
    _new_zeros_with_same_feature_meta ones_like permute _pin_memory pixel_shuffle pixel_unshuffle record_stream
    reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d _reshape_alias resize resize_as _resize_output roll rot90 select_backward select_scatter set
    slice_backward slice_scatter split split_with_sizes squeeze stack _stack t _to_copy transpose tril triu unfold
    unsafe_split unsafe_split_with_sizes _unsafe_view unsqueeze upsample_nearest1d upsample_nearest2d
    upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d where zero

    arange bartlett_window blackman_window _efficientzerotensor empty empty_like empty_permuted empty_strided eye
    full full_like hamming_window hann_window linspace logspace ones range scalar_tensor tril_indices triu_indices
    zeros zeros_like

    bernoulli binomial cauchy exponential geometric log_normal multinomial normal normal_functional poisson rand
    rand_like randint randint_like randn randn_like random randperm uniform

    embedding gather index index_copy index_select isin lu_unpack masked_select max_unpool2d max_unpool3d nonzero
    nonzero_static scatter take _unsafe_index _unsafe_masked_index

    argmax argmin bucketize count_nonzero histc kthvalue median mode nanmedian searchsorted sort topk _unique
    _unique2 unique_consecutive unique_dim unique_dim_consecutive

    all allclose any bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor eq equal
    ge gt _has_same_storage_numel heaviside __ilshift__ __irshift__ _is_all_true _is_any_true is_same_size isinf
    isnan isneginf isposinf le logical_and logical_not logical_or logical_xor __lshift__ lt nan_to_num ne nextafter
    __rshift__ signbit

    _assert_async _assert_scalar _assert_tensor_metadata _fused_sdp_choice is_pinned _linalg_check_errors
    _local_scalar_dense
    """.split()
)
"""Operations that cost nothing by the convention. Views need no entry, because their schema marks them."""
