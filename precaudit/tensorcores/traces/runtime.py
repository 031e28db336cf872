"""Tensor Core usage of a running model: a few steps under torch.profiler, read back as any other trace is."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from precaudit.errors import ExitCode, PrecauditError
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.patches import set_to, wrapped
from precaudit.instrument.scopes import Frame, ModuleScopes, ScopeListener
from precaudit.model import Finding, TensorCores
from precaudit.tensorcores.traces.analysis import NO_PTX, analyse
from precaudit.tensorcores.traces.columns import SCOPE
from precaudit.tensorcores.traces.trace import read_trace

NO_GPU = TensorCores(method="not measured: no GPU")
OWN_PROFILER = TensorCores(method="not measured: the script runs torch.profiler itself, and there is one at a time")
NO_KERNELS = "torch.profiler saw no GPU kernels: another tool may be using CUPTI, or the driver may refuse it"
ACTIVITIES = (ProfilerActivity.CPU, ProfilerActivity.CUDA)


@dataclass
class Recording:
    """The results of the profiled steps, after their end; `seconds` is the GPU's time in all of them."""

    tensor_cores: TensorCores = NO_GPU
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0


class ScopeMarks(ScopeListener):
    """Puts `fwd::<fqn>` around every forward; the analysis gives backward ops to these too."""

    def __init__(self, names: ModuleNames) -> None:
        self._names = names

    def entered(self, frame: Frame) -> None:
        mark = record_function(SCOPE + self._names.shown(frame.name))
        frame.data["mark"] = mark
        mark.__enter__()

    def left(self, frame: Frame, output: Any) -> None:
        mark = frame.data.pop("mark", None)
        if mark is not None:
            mark.__exit__(None, None, None)


@contextmanager
def marked_scopes(names: ModuleNames | None = None) -> Iterator[None]:
    names = names or ModuleNames()
    scopes = ModuleScopes(names)
    scopes.listeners.append(ScopeMarks(names))
    with scopes.installed():
        yield


class Turns:
    """Whose turn it is to profile. torch has one profiler at a time: the process ends if a second one is begun, or
    ended, while a script's own runs. So ours is not begun once the script has used its own, and ends as soon as the
    script begins one."""

    def __init__(self) -> None:
        self.scripts = False
        self._ours = ExitStack()
        self._begins = False

    def watched(self) -> AbstractContextManager[None]:
        return wrapped(torch.autograd.profiler.profile, "_prepare_trace", self._preparing)

    def _preparing(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._begins:
            self.scripts = True
            self._ours.close()
        return original(*args, **kwargs)

    @contextmanager
    def ours(self) -> Iterator[profile]:
        # Without acc_events torch warns of cycles, though a profile without a schedule has but one.
        profiler = profile(activities=ACTIVITIES, record_shapes=True, acc_events=True)
        with self._ours:
            with set_to(self, "_begins", True):
                self._ours.enter_context(profiler)
            yield profiler


@contextmanager
def profiled_steps(names: ModuleNames | None = None, turns: Turns | None = None) -> Iterator[Recording]:
    """Profile the steps inside, which should be none that are timed or audited; warm up before.

    Without a CUDA device the steps run as they are, and nothing is measured.
    """
    recording, turns = Recording(), turns or Turns()
    if turns.scripts or not torch.cuda.is_available():
        recording.tensor_cores = OWN_PROFILER if turns.scripts else NO_GPU
        yield recording
        return
    with marked_scopes(names), turns.ours() as profiler:
        yield recording
        torch.cuda.synchronize()
    if turns.scripts:
        recording.tensor_cores = OWN_PROFILER
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steps.json"
        profiler.export_chrome_trace(str(path))
        vars(recording).update(vars(read_back(path, compiled_ptx())))


def read_back(path: Path, ptx: Mapping[str, Sequence[str]] = NO_PTX) -> Recording:
    """Analyse a trace that was just written; an unreadable one gives the reason instead of an exception."""
    try:
        analysis = analyse(read_trace(path), ptx=ptx)
    except PrecauditError as error:
        unseen = error.exit_code == ExitCode.NOTHING_TO_MEASURE
        why = NO_KERNELS if unseen else str(error).replace(str(path), "the trace")
        return Recording(TensorCores(method=f"not measured: {why}"))
    return Recording(analysis.tensor_cores, analysis.findings, analysis.seconds)


def compiled_ptx() -> dict[str, list[str]]:
    """The PTX of every Triton kernel that this process has compiled or loaded, by kernel name."""
    kind: Any = getattr(sys.modules.get("triton.compiler"), "CompiledKernel", None)
    found: dict[str, list[str]] = {}
    for kernel in gc.get_objects() if kind else ():
        # type(), for isinstance asks every object for an attribute, which some of them mind
        if issubclass(type(kernel), kind) and (text := kernel.asm.get("ptx")):
            found.setdefault(kernel.name, []).append(text)
    return found
