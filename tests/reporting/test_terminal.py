from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import report_samples
from golden_files import assert_golden

from precaudit.model import Difference, Layer, Report
from precaudit.reporting import terminal
from precaudit.reporting.headline import headline
from precaudit.reporting.terminal import render_terminal, use_color

WRITTEN = [Path("reports/train/report.json"), Path("reports/train/plan.json"), Path("reports/train/report.html")]


@pytest.mark.parametrize("name", sorted(report_samples.SAMPLES))
def test_golden(name):
    assert_golden(f"terminal-{name}.txt", render_terminal(report_samples.sample_report(name), written=WRITTEN))


def test_no_line_is_wider_than_the_terminal(sample):
    text = render_terminal(sample, written=WRITTEN)
    if sample.job.get("argv") == report_samples.HOSTILE:  # arguments to copy are never broken
        text = text.split("\nNext")[0]
    assert max(map(len, text.splitlines())) <= 80


def test_5000_layers_stay_readable():
    text = render_terminal(report_samples.huge())
    assert len(text.splitlines()) < 120
    assert "4,996 more layers" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_verdict_comes_first_in_plain_words():
    title = render_terminal(report_samples.passing()).split("\n\n")[1].split("\n  ")[0].replace("\n", " ")
    assert title == "VERIFIED: float16 trains the same as float32 (difference +0.01%, within ±0.25%), emulated"


def test_unmeasured_values_are_not_shown_as_zero():
    text = render_terminal(Report(layers=report_samples.passing().layers))
    for line in ("Time of a step: not measured.", "Energy: not measured.", "Time of this profile: not measured."):
        assert line in text
    report = report_samples.passing()
    report = replace(report, verification=replace(report.verification, difference=Difference()))
    assert headline(report).title == "VERIFIED: float16 trains the same as float32, emulated"


def test_hostile_text_stays_data():
    text = render_terminal(report_samples.hostile(), written=WRITTEN, color=False)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    assert not re.search(r"^\s*::[a-z-]+", text, re.MULTILINE), "a CI host would read this as a command"
    assert "##[" not in text


def test_no_color_beats_force_color_beats_a_terminal():
    pipe, tty = io.StringIO(), io.StringIO()
    tty.isatty = lambda: True
    assert not use_color(tty, {"NO_COLOR": "1", "FORCE_COLOR": "1"})
    assert use_color(pipe, {"FORCE_COLOR": "1"})
    assert use_color(tty, {"TERM": "xterm"})
    assert not use_color(tty, {"TERM": "dumb"})
    assert not use_color(pipe, {})
    assert not use_color(tty, {"FORCE_COLOR": "0"})


def test_color_changes_no_character():
    plain = render_terminal(report_samples.failing())
    colored = render_terminal(report_samples.failing(), color=True)
    assert "\x1b[1;31mNOT VERIFIED" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain


def test_a_long_word_is_not_broken_into_a_command():
    page = terminal.Page(width=30)
    page.text("x" * 30 + "::error file=x::pwned")
    assert page.lines[1:] == [r"\x3a:error file=x::pwned"]


def test_the_table_of_ranges_has_whole_names():
    report = report_samples.passing()
    layers = [replace(layer, fqn=f"model.decoder.layers.{i}.self_attn.q_proj") for i, layer in enumerate(report.layers)]
    text = render_terminal(replace(report, layers=tuple(layers)))
    assert re.search(r"^  model\.decoder\. .*\n  layers\.21\. .*\n  self_attn\.q_proj ", text, re.MULTILINE)


def test_where_names_are_too_long_what_they_begin_with_alike_is_said_once():
    shared, layer = "base_model.model.model.decoder.layers", report_samples.passing().layers[0]
    layers = [replace(layer, fqn=f"{shared}.{i}.self_attention.q_proj", tensors=layer.tensors[:1]) for i in (7, 8)]
    text = render_terminal(Report(layers=tuple(layers)))
    assert f"\n  … is {shared}\n" in text
    assert re.findall(r"^  …\.(\d)\.self", text, re.MULTILINE) == ["7", "8"]


def test_zero_spread_is_not_shown_as_a_range():
    report = report_samples.passing()
    difference = Difference(0.0, -1e-7, 1e-7)
    text = render_terminal(replace(report, verification=replace(report.verification, difference=difference)))
    assert "the loss differs by ±0.00%." in " ".join(text.split())


def test_trace_of_the_counts():
    """The findings' counts in the title add up to the findings listed."""
    report = report_samples.failing()
    title = next(line for line in render_terminal(report).splitlines() if line.startswith("Findings"))
    assert sum(map(int, re.findall(r"\d+", title))) == len(report.findings)


def test_a_row_of_the_ranges_says_which_parameter_it_is_about():
    low, high = report_samples.stats(-30), report_samples.stats(-5)
    tensors = [report_samples.record(role, low, "bias") for role in ("weight", "weight_grad")]
    tensors += [report_samples.record(role, high, "weight") for role in ("weight", "weight_grad")]
    text = render_terminal(Report(layers=(Layer("conv", "Conv2d", 10, 1, tuple(tensors)),)))
    table = text.partition("Ranges of")[2].partition("\n\nTensor Cores")[0]
    assert re.search(r"conv +bias +\d", table)
    assert re.search(r"\n +bias grad +\d", table)
    assert "weight" not in table


def test_a_table_that_is_wide_everywhere_fits_the_terminal():
    """Gradients that no format of 16 bits holds, of a parameter with a long name."""
    report, lost = report_samples.passing(), report_samples.stats(-148, 1.0)
    records = tuple(report_samples.record(role, lost, "in_proj_weight") for role in ("weight", "weight_grad"))
    layers = tuple(replace(layer, tensors=records) for layer in report.layers)
    text = render_terminal(replace(report, layers=layers))
    assert re.search("amax +smallest +bf16 +fp16 +e4m3 +e5m2", text)
    assert max(map(len, text.splitlines())) <= 80


def test_columns_without_room_are_cut_to_an_ellipsis():
    page = terminal.Page(width=30)
    page.table(["name", "role", "value"], [["blocks.0.fc", "output grad", "1" * 25]])
    assert page.lines[-1].split() == ["bl….fc", "…", "1" * 25]


def test_passed_gates_share_a_line_and_failed_ones_are_detailed():
    report = report_samples.failing()
    text = " ".join(render_terminal(report).split())
    failed, passed = ([gate for gate in report.verification.gates if gate.passed is kind] for kind in (False, True))
    assert failed
    assert passed
    assert all(f"FAILED {gate.name}: {gate.detail}" in text for gate in failed)
    assert f"{len(passed)} passed: {', '.join(gate.name for gate in passed)}" in text
    assert not any(gate.detail in text for gate in passed)
