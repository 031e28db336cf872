"""Runs training code under a tracer, for the tests beside."""

from contextlib import contextmanager

from torch.overrides import TorchFunctionMode

from precaudit.instrument.events import TrainingEvents
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import ModuleScopes
from precaudit.tracing.snapshot import snapshot
from precaudit.tracing.tracer import TraceOptions, Tracer


class Counting(TorchFunctionMode):
    """How many calls a mode around the training sees."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        return func(*args, **(kwargs or {}))


class Tracing:
    """What is listening; `trace` is what was seen so far."""

    def __init__(self, **options):
        self.names, self.events = ModuleNames(), TrainingEvents()
        self.scopes = ModuleScopes(self.names)
        self.tracer = Tracer(self.scopes, TraceOptions(**options))
        self.scopes.listeners += [self.events, self.tracer]
        self.events.listeners.append(self.tracer)

    @property
    def trace(self):
        return snapshot(self.tracer, self.names)

    def layer(self, fqn):
        return next(layer for layer in self.trace.layers if layer.fqn == fqn)

    def op(self, fqn, op):
        return next(each for each in self.trace.ops if (each.fqn, each.op) == (fqn, op))


@contextmanager
def tracing(**options):
    traced = Tracing(**options)
    with traced.scopes.installed(), traced.events.installed():
        try:
            yield traced
        finally:
            traced.tracer.remove()
