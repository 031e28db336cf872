"""Which runs a verification makes."""

from dataclasses import dataclass, field

from precaudit.model import Plan
from precaudit.profiling.audit import Audit
from precaudit.profiling.trials import TWIN, Trials
from precaudit.running.job import Job, RunResult, RunSpec
from precaudit.tracing.records import Trace


@dataclass
class Noting:
    """A runner that runs nothing and keeps what it was asked for."""

    specs: list[RunSpec] = field(default_factory=list)

    def __call__(self, spec):
        return self.many([spec])[0]

    def many(self, specs):
        self.specs += specs
        return [RunResult(spec.label, spec.seed, "stopped") for spec in specs]


def test_float32_is_perturbed_anew_when_a_repair_changes_the_plan_s_narrowest_format():
    runner, job = Noting(), Job("script", "train.py", (), ".", 10)
    reference = RunResult("reference", 0, "stopped")
    trials = Trials(Audit(job, reference, Trace()), "emulated", runner, {0: reference})
    for name, seeds in (("float8_e4m3", [1, 2]), ("float8_e4m3", [3]), ("bfloat16", [1, 2])):
        trials.extend("candidate", Plan(default=name), seeds, {})
    twins = [(spec.perturbed, spec.seed) for spec in runner.specs if spec.label == TWIN]
    assert twins == [(name, seed) for name in ("float8_e4m3", "bfloat16") for seed in (0, 1, 2)]
    assert sorted(trials.twins) == [0, 1, 2]
