"""The process-wide setting for products of float32 matrices: in float32, or as TF32 on Tensor Cores."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any

import torch

from precaudit.instrument.patches import all_wrapped

# Bound here, as the module attributes are patched while a script's settings are ignored.
_GET = (torch._C._get_cublas_allow_tf32, torch._C._get_cudnn_allow_tf32)
_SET = (torch._C._set_cublas_allow_tf32, torch._C._set_cudnn_allow_tf32)
_SET_NEW: Any = getattr(torch._C, "_set_fp32_precision_setter", None)  # since torch 2.9
_OPERATIONS = ("matmul", "conv", "rnn")
_SETTERS = (
    "_set_cublas_allow_tf32",
    "_set_cudnn_allow_tf32",
    "_set_onednn_allow_tf32",
    "_set_float32_matmul_precision",
    "_set_fp32_precision_setter",
)


_in_force: list[tf32] = []
_lock = threading.Lock()


class tf32:
    """In this block products and convolutions of float32 tensors run as TF32 where the hardware has it, or never.

    Blocks of several threads, or of plans on several models, may end in any order: the latest active one decides, and
    the settings from before the first are restored after the last.
    """

    _put_back: Callable[[], None]

    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed

    def __enter__(self) -> None:
        with _lock:
            if not _in_force:
                tf32._put_back = staticmethod(_putting_back())
            _in_force.append(self)
            _set(self.allowed)

    def __exit__(self, *exception: Any) -> None:
        with _lock:
            others = [other for other in _in_force if other is not self]
            if len(others) == len(_in_force):  # a copy (of a model with a plan) was never entered
                return
            _in_force[:] = others
            if others:
                _set(others[-1].allowed)
                return
            tf32._put_back()


def _set(allowed: bool) -> None:
    """Set torch's old settings, which scripts may read, and the new ones, which the old ones may leave inherited."""
    for set_ in _SET:
        set_(allowed)
    if _SET_NEW is not None:
        for name in _OPERATIONS:
            _SET_NEW("cuda", name, "tf32" if allowed else "ieee")


def _putting_back() -> Callable[[], None]:
    """A function that restores the current settings. torch refuses to read the old ones where new ones were set."""
    old, new = [], _new_settings() if _SET_NEW is not None else {}
    for get, set_ in zip(_GET, _SET, strict=True):
        with suppress(RuntimeError):
            old.append(partial(set_, get()))

    def put_back() -> None:
        for set_ in old:
            set_()
        for name, value in new.items():
            _SET_NEW("cuda", name, value)

    return put_back


def _new_settings() -> dict[str, str]:
    """The new settings of each operation, "none" if inherited. torch tells that only while nothing is inherited."""
    get: Any = torch._C._get_fp32_precision_getter
    inherited = {}
    for backend in ("generic", "cuda"):
        inherited[backend] = get(backend, "all")
        _SET_NEW(backend, "all", "none")
    own = {name: get("cuda", name) for name in _OPERATIONS}
    for backend, value in inherited.items():
        _SET_NEW(backend, "all", value)
    return own


def own_settings_ignored() -> AbstractContextManager[None]:
    """Ignore the script's settings for float32 products."""

    def ignored(original: Any, *arguments: Any) -> None:
        return None

    # cuDNN's flags store references to torch's setters; other flags look them up.
    flags = vars(type(torch.backends.cudnn))
    owners = [(torch._C, name) for name in _SETTERS if hasattr(torch._C, name)]
    owners += [(flags[name], "setter") for name in ("allow_tf32", "fp32_precision") if name in flags]
    return all_wrapped(*((owner, name, ignored) for owner, name in owners))
