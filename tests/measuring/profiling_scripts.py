"""Timed runs of scripts that profile themselves, in a process of their own: torch crashes where two interleave."""

import torch
from timed import timed
from torch.profiler import ProfilerActivity, profile, schedule

from precaudit.measuring.records import Arm
from precaudit.tensorcores.traces import runtime

runtime.ACTIVITIES = (ProfilerActivity.CPU,)
torch.cuda.is_available, torch.cuda.synchronize = lambda: True, lambda *device: None


def steps(count, between):
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(count):
        model(torch.randn(16, 8)).sum().backward()
        optimizer.step()
        between()


def of_all(seen):
    with profile(activities=[ProfilerActivity.CPU]) as own:
        steps(9, lambda: None)
    seen.append(len(own.events()))


def by_schedule(seen, wait, warmup, active):
    ready = schedule(wait=wait, warmup=warmup, active=active, repeat=1)

    def counted(own):
        seen.append(len(own.events()))

    with profile(activities=[ProfilerActivity.CPU], schedule=ready, on_trace_ready=counted) as own:
        steps(10, own.step)


SCRIPTS = {
    "all": of_all,
    "before": lambda seen: by_schedule(seen, wait=1, warmup=4, active=4),
    "within": lambda seen: by_schedule(seen, wait=5, warmup=1, active=3),
    "after": lambda seen: by_schedule(seen, wait=8, warmup=1, active=1),
    "never": lambda seen: steps(10, lambda: None),
}

if __name__ == "__main__":
    for name, script in SCRIPTS.items():
        seen = []
        # three steps of discovery; for each arm one to warm up and two that are profiled
        arms = Arm("float32"), Arm("amp", half="bfloat16")
        result = timed(lambda script=script, seen=seen: script(seen), *arms, rounds=0, profiled=("float32", "amp"))
        ours = [profiled.tensor_cores != runtime.OWN_PROFILER for profiled in result.observed.profiled.values()]
        print("script", name, result.status, bool(seen and seen[0] > 20), ours, flush=True)
