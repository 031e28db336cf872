"""What CUDA's fused attention kernels keep for their backward pass: the result as it is stored, rounded.

From it they take what the gradients of a row's scores have in common, rowsum(dO * O) of FlashAttention. With a rounded
O these no longer add up to zero, which matters where the keys, and the values, are much alike: the gradient of the
queries may then be off by as much as it is large (arXiv:2510.04212).
"""

from __future__ import annotations

import torch

from precaudit.instrument.torch_function import Call


def keeping_rounded(call: Call, dtype: torch.dtype) -> torch.Tensor:
    """Attention in float32, with the backward pass of a kernel that keeps its result in `dtype`."""
    result: torch.Tensor = call()
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(result)
    if result.grad_fn is None or result.dtype != torch.float32 or wrapped:
        return result
    rounded = result.detach().to(dtype).float()
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None  # checkpointing keeps another copy
    if "ScaledDotProduct" in result.grad_fn.name() and not hooked:  # a fused kernel here too: it keeps this memory
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(result):
            return result.copy_(rounded)
    if result.dim() != 4:  # none of CUDA's kernels is for it either
        return result
    lost = (result.detach() - rounded).nan_to_num(0.0, 0.0, 0.0)
    total = _log_sums(*call.args, **call.kwargs)
    return result + lost * (total - total.detach())  # adds zero; the gradient of `total` is the row's probabilities


def _log_sums(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The logarithm of each row's sum of exponentials; for a row that is masked throughout, a constant."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    empty = scores.isneginf().all(-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).logsumexp(-1, keepdim=True)
