"""Check reports built by hand for the renderers."""

from __future__ import annotations

import report_samples

from precaudit.checking.deployments import deployments
from precaudit.checking.outcomes import hard_inputs, outputs
from precaudit.checking.records import Answer, CheckReport, CheckSettings, HardInput, Observed, OutputMatch
from precaudit.checking.target import target
from precaudit.finding import finding
from precaudit.hardware.peaks import get_gpu
from precaudit.model import Location, Plan

KINDS = ("zeros", "large", "denormals", "batch of one", "longest")
HOSTILE = report_samples.HOSTILE


def build(gpu, coverage, ranges, observed, names=("fc1", "fc2"), formats=(), **fields):
    plan = Plan("bfloat16", dict.fromkeys(names, "bfloat16"))
    wanted = deployments(plan, CheckSettings(formats=formats))
    answers = [Answer("coverage", "the plan names 2 of 2 modules that compute, in 8 optimizer steps", coverage)]
    for each in wanted:
        answers += [
            Answer("ranges", f"9 operations held against {each.format}", ranges, format=each.format),
            target(get_gpu(gpu), each),
            outputs(observed, each),
            hard_inputs(observed, each),
        ]
    job = {"script": "train.py", "plan": "plan.json", "steps": 8}
    report = CheckReport(tuple(answers), wanted, gpu, observed.outputs, observed.hard_inputs, job=job)
    return CheckReport(**{**vars(report), "precaudit_version": "0.1.0", **fields})


def match(format, error, **values):
    return OutputMatch(format, values.pop("model", "model"), values.pop("output", ""), 4, 640, 1.0, error, **values)


def passing():
    observed = Observed(
        outputs=(match("bfloat16", 1e-5, rows=64, agreeing=64), match("bfloat16", 0.0, output="aux")),
        hard_inputs=tuple(HardInput("bfloat16", "model", kind) for kind in KINDS),
    )
    return build("h100", (), (), observed)


def failing():
    observed = Observed(
        outputs=(
            match("bfloat16", 1e-5, rows=64, agreeing=60, near_ties=4),
            match("float16", 0.04, rows=64, agreeing=32, nonfinite=12),
        ),
        hard_inputs=(
            *(HardInput("bfloat16", "model", kind, skipped="it has no floating-point input") for kind in KINDS[1:3]),
            HardInput("bfloat16", "model", "zeros", reference_nonfinite=3),
            HardInput("float16", "model", "zeros"),
            HardInput("float16", "model", "large", nonfinite=7, safe_exponent=3),
            HardInput("float16", "model", "longest", raised="RuntimeError: expected Half"),
        ),
        unanswered={"critic": "TypeError: forward() missing 1 argument"},
    )
    gone = finding(
        "PA701", "error", "the plan names fc9 (Linear), which this model doesn't have", "plan anew", fqn="fc9"
    )
    place = {"fqn": "fc1", "op": "linear", "location": Location("train.py", 12)}
    wide = finding("PA711", "error", "fc1: linear reaches 7e+04", "run it in bfloat16", **place, value=7e4)
    return build("t4", (gone,), (wide,), observed, formats=("bfloat16", "float16"))


def hostile():
    findings = tuple(
        finding("PA702", "error", text, text, fqn=text, op=text, location=Location(text, 3), text=text)
        for text in HOSTILE
    )
    observed = Observed(
        outputs=tuple(match("bfloat16", 0.5, model=text, output=text) for text in HOSTILE),
        hard_inputs=(
            *(HardInput("bfloat16", text, "zeros", raised=text) for text in HOSTILE),
            *(HardInput("bfloat16", text, "large", skipped=text) for text in HOSTILE),
        ),
        raised=tuple(("bfloat16", text, text) for text in HOSTILE),
        unanswered={text: text for text in HOSTILE},
    )
    job = {"script": HOSTILE[2], "plan": HOSTILE[1], "argv": HOSTILE}
    return build("t4", findings, (), observed, tuple(HOSTILE), job=job)


SAMPLES = {"passing": passing, "failing": failing, "hostile": hostile}
