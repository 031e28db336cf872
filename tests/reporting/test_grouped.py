"""Findings of one cause are told once, and those of different causes never together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import report_samples

from precaudit.finding import finding
from precaudit.model import Location, Plan
from precaudit.reporting import render
from precaudit.reporting.actions import causes
from precaudit.reporting.facts import settled
from precaudit.reporting.grouped import folded, grouped
from precaudit.reporting.places import place

LINE = Location("train.py", 19)
FIX = "keep float32 master weights"


def _rounded_away(fqn: str, share: str, location: Location = LINE, parameter: str = "weight"):
    message = f"{fqn}.{parameter}: {share} of its updates are rounded away, with weights in bfloat16"
    return finding("PA301", "error", message, FIX, fqn, None, location)


STACK = [_rounded_away(f"blocks.{i}.attn", f"{60 + i}%") for i in range(21)]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["blocks.0.attn", "blocks.1.attn", "blocks.2.attn"], ["blocks.0-2.attn"]),
        (["net.0", "net.2", "net.4", "net.5"], ["net.{0,2,4-5}"]),
        ([f"layers.{i}.blocks.{j}.fc" for i in range(2) for j in range(3)], ["layers.0-1.blocks.0-2.fc"]),
        (["a.0.b.0", "a.0.b.1", "a.1.b.0"], ["a.0.b.0-1", "a.1.b.0"]),
        (["head", "blocks.10.fc", "blocks.9.fc"], ["head", "blocks.9-10.fc"]),
        (["x.00", "x.0", "x"], ["x.00", "x.0", "x"]),
        ([], []),
    ],
)
def test_folded_names_expand_to_the_given_ones(names, told):
    assert folded(names) == told


def test_a_stack_is_one_finding_with_its_names_and_its_line():
    (group,) = grouped(STACK)
    assert len(group.members) == 21
    assert place(group.told) == "blocks.0-20.attn (21 modules), train.py:19"
    assert group.told.message.endswith("in bfloat16; likewise in 20 more modules")


@pytest.mark.parametrize(
    "other",
    [
        replace(STACK[1], severity="warning"),
        replace(STACK[1], op="softmax"),
        replace(STACK[1], rule="PA303"),
        replace(STACK[1], suggestion="something else"),
        replace(STACK[1], fqn=None),
        replace(STACK[1], message=STACK[1].message.replace("bfloat16", "float16")),
        _rounded_away("blocks.1.attn", "61%", Location("train.py", 20)),
    ],
)
def test_findings_with_other_causes_are_separate(other):
    assert [len(group.members) for group in grouped([STACK[0], other])] == [1, 1]


def test_findings_without_a_module_are_folded_only_if_repeated():
    whole = finding("PA742", "warning", "inputs times 2^10: 7 values are lost", FIX)
    other = replace(whole, message="inputs times 2^12: 9 values are lost")
    first, second = grouped([whole, other, whole])
    assert first.told == whole
    assert second.told == other


def test_settled_and_open_findings_are_separate():
    found = [replace(each, evidence={"formats": "bfloat16"}) for each in STACK[:2]]
    plan = Plan("bfloat16", {"blocks.0.attn": "bfloat16", "blocks.1.attn": "float32"})
    report = replace(report_samples.passing(), findings=tuple(found), plan=plan)
    assert [settled(plan, group.members[0]) for group in causes(report)] == [False, True]


@pytest.mark.parametrize("format", ["terminal", "markdown", "html", "github"])
def test_every_page_tells_a_stack_once(format):
    report = replace(report_samples.passing(), findings=tuple(STACK))
    text = " ".join(render(report, format).split())
    assert "blocks.0-20.attn (21 modules)" in text
    assert "train.py" in text
    assert text.count("likewise in 20 more modules") == 1


def test_the_page_lists_all_places_folded():
    page = render(replace(report_samples.passing(), findings=tuple(STACK)), "html")
    assert "<summary>All 21 places</summary>" in page
    assert all(f"blocks.{i}.attn, train.py:19" in page for i in range(21))


def test_json_keeps_each_finding():
    assert render(replace(report_samples.passing(), findings=tuple(STACK)), "json").count('"PA301"') == 21


@pytest.mark.parametrize("format", ["terminal", "markdown", "html"])
def test_exceptions_of_a_stack_with_one_reason_are_folded(format):
    modules = {f"blocks.{i}.norm": "float32" for i in range(21)} | {"head": "bfloat16"}
    plan = Plan("bfloat16", modules, because=dict.fromkeys(list(modules)[:21], "it overflows"))
    assert "blocks.0-20.norm" in render(replace(report_samples.passing(), plan=plan), format)
