"""CUDA autocast's policy by operation name: which run in low precision, in float32, or in the widest input's.

The names are those of torch's `ATen/autocast_mode.h` (`AT_FORALL_LOWER_PRECISION_FP`, `AT_FORALL_FP32`,
`AT_FORALL_FP32_SET_OPT_DTYPE`, `AT_FORALL_PROMOTE`); tests hold these tables against the installed header and against
what torch registered for autocast.
"""

from __future__ import annotations

from typing import Literal

import torch

Category = Literal["lower", "fp32", "promote", "banned", "other"]


def has_autocast(op: str) -> bool:
    """Whether this release of torch has an operation in its CUDA autocast lists, whatever the build."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{op}", "AutocastCUDA"))


HEADER_LOWER = frozenset(
    "_convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution prelu "
    "addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot "
    "_thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell "
    "_scaled_dot_product_flash_attention scaled_dot_product_attention".split()
)
HEADER_FP32 = frozenset(
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus layer_norm "
    "native_layer_norm group_norm frobenius_norm nuclear_norm cosine_similarity poisson_nll_loss "
    "cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss "
    "margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss "
    "binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d _upsample_nearest_exact1d "
    "upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d "
    "upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa "
    "prod softmax log_softmax cumprod cumsum linalg_vector_norm linalg_matrix_norm sum norm".split()
) | frozenset(filter(has_autocast, ["rms_norm"]))
"""Up to torch 2.11 autocast leaves `rms_norm` in its input's dtype."""
HEADER_PROMOTE = frozenset(
    "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add".split()
)

LOWER = HEADER_LOWER | frozenset(
    "lstm gru rnn_tanh rnn_relu multi_dot matrix_power linalg_matrix_power _native_multi_head_attention "
    "affine_grid_generator".split()
)
"""Adds cuDNN's recurrent kernels, whose autocast wrapper is outside the header's lists, and functions that call the
listed ones inside torch."""

FP32 = HEADER_FP32 | frozenset(
    "cross_entropy_loss vector_norm matrix_norm _softmax _log_softmax nll_loss_nd gaussian_nll_loss norm_except_dim "
    "_weight_norm triplet_margin_with_distance_loss linalg_norm pairwise_distance square sum_to_size trapezoid trapz "
    "cumulative_trapezoid".split()
)
"""Adds functions that call the listed ones inside torch, by the names that a function mode sees; see also
`cross_entropy.py`."""

PROMOTE = HEADER_PROMOTE | frozenset({"inner"})

CONVOLUTIONS = frozenset("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split())
"""cuDNN rounds their products to half, before torch adds the bias: two roundings."""

ADDENDS = {
    **dict.fromkeys(("linear", *CONVOLUTIONS), (2, "bias")),
    **dict.fromkeys("addmm addmv addbmm baddbmm addr".split(), (0, "input")),
    "scaled_dot_product_attention": (3, "attn_mask"),
}
"""Position and keyword of the argument that is added to a product."""

MASKED = {"scaled_dot_product_attention": ("query", "key", "value")}
"""Products with a mask, and the names of their factors, which come first: a mask may have any magnitude, as -inf is
what it means."""

BANNED = frozenset({"binary_cross_entropy"})

ACCUMULATING = LOWER - {"prelu"}
"""Products that are accumulated in float32 on Tensor Cores and rounded once."""


def category(op: str) -> Category:
    """CUDA autocast's category of an operation by torch's name for it."""
    if op in LOWER:
        return "lower"
    if op in FP32:
        return "fp32"
    if op in BANNED:
        return "banned"
    return "promote" if op in PROMOTE else "other"
