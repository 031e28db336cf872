"""Alternates arms within one training run.

One process runs all arms by turns (A B C D, A B C D, ...), a block of steps each, in the same training: drift (of
clocks, temperature, other users of the machine, the data) affects all alike, nothing is imported or compiled twice, and
a ratio comes from two blocks seconds apart. Weights drift too, which does not affect time. Before every block some
steps run under its arm untimed; in these the models are named and the wait for data is measured, so that timed steps
have no overhead beyond the arm's own. The device is synchronized around blocks, not steps, so that a script can still
run ahead of the GPU. Blocks start with one step and double, so that a short script has several rounds too; the first
round is warm-up.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import nn

from precaudit.hardware.counters import Pipes
from precaudit.hardware.energy import Meter
from precaudit.instrument.events import TrainingEvents, TrainingListener
from precaudit.instrument.names import ModuleNames, has_parameters
from precaudit.instrument.patches import set_to, wrapped
from precaudit.instrument.scopes import ModuleScopes, ScopeListener
from precaudit.measuring.arms import FusedScaler, engaged
from precaudit.measuring.devices import (
    CPU,
    Devices,
    devices_of,
    is_recording,
    own_counters,
    peak_bytes,
    reset_peak,
    wait_for,
)
from precaudit.measuring.feeding import Feeding
from precaudit.measuring.program import Program
from precaudit.measuring.records import FLOAT32, PLAN, Arm, Block, Observation, Profiled
from precaudit.measuring.replaying import LayerCalls, replay
from precaudit.running.monitor import Stop
from precaudit.tensorcores.traces.runtime import Turns, profiled_steps

Steps = Generator[None, Any, None]
DISCOVERY, WARM, PROFILED, CYCLE = 3, 1, 2, 32


class Cycle:
    """The end of a script's cycle of optimizers: the step of the least frequent one, or of the last of several such."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=CYCLE)
        self._met: dict[int, int] = {}

    def ends_with(self, optimizer: Any) -> bool:
        key = id(optimizer)
        self._met.setdefault(key, len(self._met))
        self._recent.append(key)
        counts = Counter(self._recent)
        return key == min(counts, key=lambda other: (counts[other], -self._met[other]))


class ArmScheduler(TrainingListener):
    """Called after every step, as the last listener, to continue the program."""

    def __init__(self, program: Program, events: TrainingEvents, stop: Stop) -> None:
        self.program, self.events, self._stop = program, events, stop
        self.names, self.feeding, self.cycle = ModuleNames(), Feeding(), Cycle()
        self.devices: Devices = (CPU,)
        self.running, self.blocks, self.captured = FLOAT32, list[Block](), set[str]()
        self.meter, self.pipes, self.turns = Meter(), Pipes(), Turns()
        self.profiles: dict[str, Profiled] = {}
        self.layers: dict[str, dict[str, float]] = {}
        self._scalers: dict[str, FusedScaler] = {}
        self._models: dict[str, nn.Module] = {}
        self._backwards = 0
        self._play = self._program()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """All changes by arms and measurements are undone when the block ends."""
        self.events.listeners = [self]
        try:
            with (
                self.feeding.loaders.installed(),
                self.turns.watched(),
                wrapped(torch.cuda.CUDAGraph, "capture_begin", self._capturing),
            ):
                next(self._play)
                yield
        finally:
            self._play.close()

    def backward_ended(self, roots: Sequence[torch.Tensor]) -> None:
        self._backwards += 1

    def step_complete(self, optimizer: Any) -> None:
        if is_recording():
            return
        self.feeding.count(self._backwards)
        self._backwards = 0
        try:
            self._play.send(optimizer)
        except StopIteration:
            self._stop()

    def observation(self) -> Observation:
        return Observation(
            self.device,
            torch.get_num_threads(),
            tuple(self.blocks),
            self.feeding.feed(),
            self.profiles,
            self.running,
            self.meter.method,
            self.pipes.method,
            self.layers,
            frozenset(self.captured),
        )

    def _capturing(self, original: Any, graph: Any, *args: Any, **kwargs: Any) -> Any:
        self.captured.add(self.running)
        return original(graph, *args, **kwargs)

    # ------------------------------------------------------------ the program; each `yield` waits for a step's end

    def _program(self) -> Steps:
        with self._named():
            yield from self._steps(1)
        # Not earlier: a script may choose its GPUs until it uses one.
        with own_counters(self.devices) as (self.meter, self.pipes):
            began = self._now()
            taken = yield from self._steps(DISCOVERY - 1)
            pace = (self._now() - began) / taken
            arms = self._arms()
            yield from self._rounds(arms, pace)
            for arm in arms:
                if arm.name in self.program.profiled:
                    yield from self._profile(arm)
            yield from self._replays([arm for arm in arms if arm.name in (FLOAT32, PLAN)])

    @property
    def device(self) -> str:
        return self.devices[0].type

    def _arms(self) -> Sequence[Arm]:
        native = self.device in self.program.devices
        return [arm for arm in self.program.arms if native or arm.name == FLOAT32]

    def _rounds(self, arms: Sequence[Arm], pace: float) -> Steps:
        program, began = self.program, time.perf_counter()
        size, number, complete = 1, 0, 0
        while complete < program.rounds:
            if complete >= program.fewest and time.perf_counter() - began > program.budget:
                break
            for arm in arms:
                yield from self._block(arm, number, size)
            pace = self.blocks[-len(arms)].step_seconds
            full = ceil(program.window / pace)
            complete += 2 * size > full and number > 0
            size, number = min(full, 2 * size), number + 1
        if program.rounds and (self.meter.counts or self.pipes.counts) and self.device in program.devices:
            for arm in arms:
                with self.pipes.watching() as tensor:
                    yield from self._block(arm, number, ceil(program.energy_window / pace), program.energy_window)
                self.blocks[-1] = replace(self.blocks[-1], tensor_share=tensor.share)

    def _block(self, arm: Arm, number: int, size: int, seconds: float = 0.0) -> Steps:
        """A block of at least `size` steps and `seconds`. Energy is read only in blocks with a duration, outside of the
        timed part, as reading may take as long as a step."""
        with self._engaged(arm):
            with self._named():
                self.feeding.step_begins()
                yield from self._steps(WARM)
            reset_peak(self.devices)
            wait_for(self.devices)
            joules = self.meter.read() if seconds else None
            began, steps, skips = self._now(), 0, self._skips(arm)
            while not steps or self._now() - began < seconds:
                steps += yield from self._steps(size)
            ended = self._now()
            after = self.meter.read() if joules is not None else None
            used = after - joules if after is not None and joules is not None else None
            peak, skipped = peak_bytes(self.devices), self._skips(arm) - skips
            self.blocks.append(Block(arm.name, number, steps, ended - began, peak, used, skipped=skipped))

    def _skips(self, arm: Arm) -> int:
        scaler = self._scalers.get(arm.name)
        return scaler.skipped if scaler else 0

    def _profile(self, arm: Arm) -> Steps:
        with self._engaged(arm):
            with self._named():
                yield from self._steps(WARM)
            with profiled_steps(self.names, self.turns) as recording:
                steps = yield from self._steps(PROFILED)
                wait_for(self.devices)
            self.profiles[arm.name] = Profiled(recording.tensor_cores, recording.findings, steps, recording.seconds)

    def _replays(self, arms: Sequence[Arm]) -> Steps:
        """Replay single layers under each arm, at the very end, since a layer may remember its calls."""
        if not (self.program.rounds and self.pipes.counts and self.device in self.program.devices):
            return
        calls = LayerCalls()
        with self._named(calls):
            yield from self._steps(WARM)
        for arm in arms:
            with self._engaged(arm):
                for call in calls:
                    with self.pipes.watching() as tensor:
                        works = replay(call, partial(wait_for, self.devices))
                    if works and tensor.share is not None:
                        self.layers.setdefault(self.names.shown(call.name), {})[arm.name] = tensor.share

    def _steps(self, count: int) -> Generator[None, Any, int]:
        """Run at least `count` steps, until the end of the script's cycle of optimizers; returns how many."""
        taken = 0
        while True:
            ends = self.cycle.ends_with((yield))
            taken += 1
            if taken >= count and (ends or taken >= count + CYCLE):
                return taken

    # ------------------------------------------------------------ contexts that last over several yields

    @contextmanager
    def _named(self, *listeners: ScopeListener) -> Iterator[None]:
        """Enable module scopes, so that all models have names at the end."""
        scopes = ModuleScopes(self.names)
        scopes.listeners += [self.feeding, *listeners]
        with scopes.installed():
            yield
        self._models = _outermost(self.names.models)
        self.devices = devices_of(self._models.values())

    @contextmanager
    def _engaged(self, arm: Arm) -> Iterator[None]:
        self.running = arm.name
        with ExitStack() as stack:
            stack.enter_context(engaged(arm, self._models, self.device))
            if arm.scale is not None:
                scaler = self._scalers.setdefault(arm.name, FusedScaler(arm.scale, self._parameters))
                stack.enter_context(set_to(self.events, "listeners", [scaler, self]))
            yield

    def _parameters(self) -> Iterator[torch.Tensor]:
        return (p for model in self._models.values() for p in model.parameters())

    def _now(self) -> float:
        wait_for(self.devices)
        return time.perf_counter()


def _outermost(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Models with parameters that are not part of another one."""
    trained = {name: model for name, model in models.items() if has_parameters(model)}
    inner = {id(part) for model in trained.values() for part in model.modules() if part is not model}
    return {name: model for name, model in trained.items() if id(model) not in inner}
