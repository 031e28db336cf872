"""How the device multiplies float32 matrices: in float32, or as TF32 on Tensor Cores: a setting of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch

from precaudit.instrument.patches import all_wrapped, replaced_by

# torch's own functions, which stay in force here while a script's calls of them are ignored.
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
    """Inside the block products and convolutions of float32 tensors run as TF32 where the hardware has it, or never.

    Blocks of several threads, or of plans on several models, may end in any order: what the latest of those that last
    wants holds, and what was there before the first is back after the last.
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
            if len(others) == len(_in_force):  # a copy, such as a copied model's, was never entered
                return
            _in_force[:] = others
            if others:
                _set(others[-1].allowed)
                return
            tf32._put_back()


def _set(allowed: bool) -> None:
    """By torch's old settings, which scripts may read, and its new ones, which the old ones let inherit another."""
    for set_ in _SET:
        set_(allowed)
    if _SET_NEW is not None:
        for name in _OPERATIONS:
            _SET_NEW("cuda", name, "tf32" if allowed else "ieee")


def _putting_back() -> Callable[[], None]:
    """What brings the settings back that are in force now. torch refuses to tell the old ones where a script has made
    new ones."""
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
    """Each operation's own, "none" where it inherits, which torch tells where there is nothing to inherit."""
    get: Any = torch._C._get_fp32_precision_getter
    inherited = {}
    for backend in ("generic", "cuda"):
        inherited[backend] = get(backend, "all")
        _SET_NEW(backend, "all", "none")
    own = {name: get("cuda", name) for name in _OPERATIONS}
    for backend, value in inherited.items():
        _SET_NEW(backend, "all", value)
    return own


@contextmanager
def own_settings_ignored() -> Iterator[None]:
    """What the script asks of float32 products is not done."""

    def ignored(*arguments: Any) -> None:
        return None

    # cuDNN's flags hold torch's setters, the others look them up when they are set.
    flags = vars(type(torch.backends.cudnn))
    owners = [(torch._C, name) for name in _SETTERS if hasattr(torch._C, name)]
    owners += [(flags[name], "setter") for name in ("allow_tf32", "fp32_precision") if name in flags]
    with all_wrapped(*((owner, name, replaced_by(ignored)) for owner, name in owners)):
        yield
