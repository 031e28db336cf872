"""A recorder of module scopes and training events, for the tests beside."""

from contextlib import contextmanager

from precaudit.instrument.events import TrainingEvents, TrainingListener
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import ModuleScopes


class Recorder(TrainingListener):
    """Notes what it hears, in order; raises or replaces nothing."""

    def __init__(self):
        self.entered_names, self.left_names, self.heard = [], [], []
        self.steps = 0

    def entered(self, frame):
        self.entered_names.append((frame.name.model, frame.name.fqn))

    def left(self, frame, output):
        self.left_names.append((frame.name.fqn, output is not None))
        return output

    def backward_starts(self, roots, gradients):
        self.heard.append("backward")

    def backward_nested(self, roots):
        self.heard.append("nested")

    def backward_ended(self, roots):
        self.heard.append("ended")

    def gradient_taken(self, outputs):
        self.heard.append("grad")

    def step_starts(self, optimizer):
        self.heard.append(f"step {type(optimizer).__name__}")

    def step_ended(self, optimizer):
        self.heard.append("stepped")

    def step_complete(self, optimizer):
        self.steps += 1


@contextmanager
def recorded(has_optimizer=False):
    """Scopes and events that one recorder listens to: (recorder, scopes, events)."""
    recorder, scopes, events = Recorder(), ModuleScopes(ModuleNames()), TrainingEvents(has_optimizer)
    scopes.listeners += [events, recorder]
    events.listeners.append(recorder)
    with scopes.installed(), events.installed():
        yield recorder, scopes, events
