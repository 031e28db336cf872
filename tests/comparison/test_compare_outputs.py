"""What compare prints and writes: golden files, hostile names, 80 columns, exit codes, no torch."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from xml.etree import ElementTree

import pandas as pd
import pytest
import report_samples
from golden_files import assert_golden
from synthetic_reports import change, gpt, odd_vocabulary, profile, renamed, widened, without_autocast

from precaudit.__main__ import main
from precaudit.commands.compare import FORMATS
from precaudit.comparison import outputs, trend
from precaudit.comparison.changes import Change, Comparison
from precaudit.comparison.compare import compare
from precaudit.comparison.markdown import MARKER
from precaudit.comparison.outputs import render
from precaudit.comparison.rows import Row, place, rows
from precaudit.comparison.thresholds import DEFAULTS
from precaudit.finding import finding
from precaudit.model import Plan, Report
from precaudit.reporting.serialize import write_json

ENDINGS = {
    "terminal": "txt",
    "markdown": "md",
    "json": "json",
    "github": "github.txt",
    "sarif": "sarif",
    "gitlab": "gitlab.json",
}


@pytest.mark.parametrize("format", FORMATS)
def test_golden(format):
    base, head = report_samples.passing(), report_samples.failing()
    text = render(compare(base, head), format, ("base/report.json", "head/report.json"), head)
    assert_golden(f"compare.{ENDINGS[format]}", text)


def hostile_comparison():
    changes = [
        Change(metric, 3.0, text, fqn=text, op=text, role="weight", name=text, base=text, head=text, regression=True)
        for metric in ("layers_renamed", "amax", "new_errors")
        for text in report_samples.HOSTILE
    ]
    return Comparison(tuple(changes), tuple(report_samples.HOSTILE), thresholds=DEFAULTS)


def test_names_in_the_terminal_are_broken_where_they_can_be_read():
    """After spaces, or the dots and colons of what is too long; the role is never what is left out."""
    state = "optimizer_state", "weight.momentum_buffer"
    moved = Change("amax", 3.0, "amax rose", "feature_projection_layer", None, *state)
    called = Change("ops", 3.0, "calls", "encoder.classification_output_head", "linear")
    table = render(Comparison((moved, called), thresholds=DEFAULTS), "terminal", ("a", "b"), Report()).splitlines()
    where = [line[6:34].strip() for line in table[6:11]]
    assert where == [
        "feature_projection_layer",
        "optimizer_state",
        "(weight.momentum_buffer)",
        "encoder.",
        "classification_output_head:",
    ]


@pytest.mark.parametrize("format", FORMATS)
def test_hostile_strings_are_escaped(format):
    head = Report(job={"script": report_samples.HOSTILE[1]})
    text = render(hostile_comparison(), format, tuple(report_samples.HOSTILE[:2]), head)
    assert_golden(f"compare-hostile.{ENDINGS[format]}", text)
    text.encode()
    if format != "json":  # JSON holds them as they are, escaped by its own rules
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200e\u200f]", text)
    if format == "markdown":
        assert "<script" not in text
        cells = [re.findall(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("|")]
        assert {len(line) for line in cells} == {5}
    if format == "github":
        assert all(re.match(r"::(error|warning|notice) [^:]*::", line) for line in text.splitlines())
    elif format != "markdown":
        assert "\n::error" not in text
    if format in ("json", "sarif", "gitlab"):
        json.loads(text)


def test_the_terminal_keeps_to_eighty_columns():
    for comparison in (hostile_comparison(), compare(profile(gpt(), 0), profile(widened(gpt()), 1))):
        text = render(comparison, "terminal", ("b" * 300, "h" * 300), Report())
        assert max(map(len, text.splitlines())) <= 80


def test_layers_that_changed_alike_share_a_row():
    comparison = compare(profile(gpt(), 0), profile(without_autocast(gpt()), 1))
    planned = [row for row in rows(comparison) if row.metrics == ("formats",)]
    assert len(planned) == 1
    assert len(planned[0].places) == 7


def test_tensors_that_moved_equally_far_share_a_row():
    """A loss times 1000 moves every gradient, each from another place."""
    moved = [
        Change("amax", 10.0, f"amax rose 10.0 binades ({i} → {1000 * i})", f"layers.{i}", regression=True)
        for i in (1, 2, 3)
    ]
    other = Change("amax", 9.0, "amax rose 9.0 binades (1 → 512)", "head", regression=True)
    assert rows(Comparison(changes=(*moved, other))) == [
        Row(True, ("amax",), ("layers.1", "layers.2", "layers.3"), "amax rose 10.0 binades"),
        Row(True, ("amax",), ("head",), "amax rose 9.0 binades (1 → 512)"),
    ]
    same = replace(moved[0], fqn="layers.4")
    assert rows(Comparison(changes=(moved[0], same)))[0].what == moved[0].message


def test_movements_of_one_tensor_share_a_row_and_regressions_come_first():
    comparison = compare(profile(gpt(), 0), profile(widened(gpt()), 1))
    first = rows(comparison)[0]
    assert first.metrics == ("amax", "distance")
    assert first.places == ("blocks.1.fc1 weight",)
    order = [row.regression for row in rows(comparison)]
    assert order == sorted(order, reverse=True)


# ---------------------------------------------------------------- the command


@pytest.fixture
def folder(tmp_path):
    for name, report in (
        ("base", profile(gpt(), 0)),
        ("same", profile(gpt(), 1)),
        ("odd", profile(odd_vocabulary(gpt()), 2)),
    ):
        write_json(tmp_path / name / "report.json", report)
    return tmp_path


def test_exit_codes(folder, capsys):
    assert main(["compare", str(folder / "base"), str(folder / "same" / "report.json")]) == 0
    assert "NOTHING WORSE" in capsys.readouterr().out
    assert main(["compare", str(folder / "base"), str(folder / "odd")]) == 1
    assert "no multiple\n" in capsys.readouterr().out
    assert main(["compare", str(folder / "base"), str(folder / "odd"), "--fail-on", "all:off"]) == 0
    assert "NO REGRESSION: 4 changes" in capsys.readouterr().out


def test_a_base_that_measured_nothing_is_nothing_to_compare_with(folder, capsys):
    write_json(folder / "empty.json", report_samples.empty())
    base, empty = str(folder / "base"), str(folder / "empty.json")
    assert main(["compare", base, empty]) == 1
    capsys.readouterr()
    for head in (empty, base):
        assert main(["compare", empty, head]) == 3
        said = capsys.readouterr()
        assert f"nothing to compare with: no layer was measured in {empty}" in said.err
        assert not said.out


def test_what_cut_head_short_is_told_once(folder, capsys):
    head = profile(gpt(), 1)
    write_json(folder / "cut.json", replace(head, job={**head.job, "stopped": "failed"}))
    assert main(["compare", str(folder / "base"), str(folder / "cut.json"), "--format", "github"]) == 1
    assert capsys.readouterr().out.count("CUT SHORT") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["base"], "HEAD is missing"),
        (["base", "same", "--trend"], "leave HEAD out"),
        (["base", "nowhere"], "No such file"),
        ([".", "base"], "add --trend"),
        (["base", "same", "--fail-on", "speed:1"], "metrics are verdict"),
        (["base", "same", "-o", "x.html"], "can't be written as html here; what can be is .json, .md"),
        (["base", "same", "-o", "x.docx"], "extension"),
        (["base", "same", "-o", "base/report.json"], "--force"),
        (["base", "same", "--format", "csv"], "can't be printed"),
        (["same", "truncated.json"], "not JSON"),
        (["foreign.json", "same"], "not a precaudit report"),
        (["deep.json", "same"], "deep.json"),
        (["wrong.json", "same"], "wrong.json"),
    ],
)
def test_wrong_use_and_unreadable_reports_are_explained(folder, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(folder)
    text = (folder / "base" / "report.json").read_text()
    (folder / "truncated.json").write_text(text[: len(text) // 2])
    (folder / "foreign.json").write_text("[]")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "wrong.json").write_text(text.replace('"calls":20', '"calls":"many"', 1))
    assert main(["compare", *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert not captured.out


def test_every_output_is_written_and_named(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    outputs = ["c.json", "c.md", "c.txt", "c.sarif", "c.gitlab.json"]
    assert main(["compare", "base", "odd", *(part for name in outputs for part in ("-o", name))]) == 1
    assert f"Written: {', '.join(outputs)}" in capsys.readouterr().err
    data = json.loads((folder / "c.json").read_text())
    assert (data["base"], data["head"], data["clean"]) == ("base", "odd", False)
    assert [change["fqn"] for change in data["changes"][:2]] == ["wte", "head"]
    assert (folder / "c.md").read_text().startswith(MARKER)
    assert (folder / "c.txt").read_text().startswith("REGRESSION")


def test_a_file_that_cannot_be_written_costs_neither_the_others_nor_the_verdict(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "file").write_text("")
    for head, code in (("odd", 1), ("same", 2)):
        assert main(["compare", "base", head, "-o", "file/c.md", "-o", "ok.md", "--force"]) == code
        told = capsys.readouterr()
        assert "layers matched" in told.out
        assert "cannot write file/c.md" in told.err
        assert "Written: ok.md" in told.err
        assert (folder / "ok.md").read_text().startswith(MARKER)


def test_a_step_summary_that_cannot_be_written_changes_no_verdict(folder, monkeypatch, capsys):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(folder))
    assert main(["compare", str(folder / "base"), str(folder / "odd"), "--format", "github"]) == 1
    assert "can't write the step summary" in capsys.readouterr().err


@pytest.mark.parametrize("length", range(20, 60))
def test_table_lines_are_no_ci_commands(length):
    word = "A" * length + "::warning::x"
    found = Change("new_errors", 1.0, word, fqn=word, regression=True)
    text = outputs.render(Comparison((found,), thresholds=DEFAULTS), "terminal", ("b", "h"), Report())
    row = {"script": "s", "time": datetime(2026, 1, 1, tzinfo=UTC), "verdict": "pass", "low_precision": None}
    row |= {"errors": 0, "tensor_cores": None, "step_seconds": None, "against": "b", "first": f"p: {word}"}
    text += trend.terminal(pd.DataFrame([{"report": "r", "regressions": 1, **row}]))
    assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]


def test_github_annotations_and_step_summary(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert main(["compare", str(folder / "base"), str(folder / "odd"), "--format", "github"]) == 1
    title = "compare-layers_resized wte%2C head (2 modules)"
    assert capsys.readouterr().out.startswith(f"::error file=train.py,line=1,title={title}::")
    assert MARKER in (tmp_path / "summary.md").read_text()


def test_changes_of_the_whole_job_have_no_source_line():
    from precaudit.comparison.findings import as_findings
    from precaudit.model import Location, Op

    head = Report(ops=(Op("", "linear", 1, "lower", Location("model.py", 50), ()),))
    found = as_findings(Comparison((Change("verdict", 1.0, "fell"), Change("ops", 1.0, "other", fqn=""))), head)
    assert [finding.location and finding.location.line for finding in found] == [None, 50]


def test_annotations_stand_on_the_line_that_calls_the_operation():
    from precaudit.comparison.findings import as_findings
    from precaudit.model import Location

    head = profile(odd_vocabulary(gpt()), 1)
    head = replace(head, ops=tuple(replace(op, location=Location("model.py", i)) for i, op in enumerate(head.ops)))
    found = {(f.rule, f.fqn): f for f in as_findings(compare(profile(gpt(), 0), head), head)}
    assert found["compare-layers_resized", "wte"].location == Location("model.py", 0)
    assert found["compare-alignment", "head"].location == Location("model.py", len(head.ops) - 1)


def test_the_help_fits_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_comparing_does_not_import_torch(folder):
    program = (
        "import sys; from precaudit.__main__ import main; "
        "main(['compare', 'base', 'same', '-o', 'c.md']); main(['compare', '.', '--trend']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True).returncode == 0


def test_the_model_itself_is_not_the_whole_job():
    """A model of one module has no other name."""
    places = [place(Change("amax", 3.0, "", fqn=fqn, role="weight")) for fqn in ("", "fc", None)]
    assert places == ["(the model itself) weight", "fc weight", "weight"]
    assert [place(Change("verdict", 1.0, "", fqn=fqn)) for fqn in ("", None)] == ["(the model itself)", "the whole job"]


# ---------------------------------------------------------------- the trend


def dated(report, day):
    return replace(report, environment={**report.environment, "created": f"2026-03-{day:02}T10:00:00+00:00"})


@pytest.fixture
def history(tmp_path):
    write_json(tmp_path / "c" / "report.json", dated(profile(gpt(), 0), 1))
    write_json(tmp_path / "b" / "report.json", dated(profile(gpt(), 1), 2))
    write_json(tmp_path / "a.json", dated(profile(renamed(gpt()), 2), 3))
    (tmp_path / "a.txt").write_text("no report")
    (tmp_path / "plan.json").write_text("{}")
    return tmp_path


def test_the_trend_is_ordered_by_the_time_that_reports_state(history, capsys):
    assert main(["compare", str(history), "--trend", "--format", "csv"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["report", "c", "b", "a"]
    assert lines[-1].endswith(",b,blocks.0.down: fc2 became down: a plan or checkpoint that names it no longer fits")


def test_the_trend_in_every_format(history, capsys, monkeypatch):
    monkeypatch.chdir(history)
    written = ["-o", "t.md", "-o", "t.csv", "-o", "t.txt"]
    assert main(["compare", ".", "--trend", *written, "--format", "json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["regressions"] for row in rows] == [None, 0, 1]
    assert rows[0]["verdict"] == "pass"
    assert "| `a` | 2026-03-03 | pass |" in (history / "t.md").read_text()
    text = (history / "t.txt").read_text()
    assert "a against b: blocks.0.down: fc2 became down" in text
    assert max(map(len, text.splitlines())) <= 80
    assert main(["compare", ".", "--trend", "--fail-on", "layers_renamed:off"]) == 0


def test_a_trend_with_everything_measured_fits_the_terminal():
    row = {"report": "2026-03-01/" * 9, "time": datetime(2026, 3, 1, tzinfo=UTC), "verdict": "inconclusive"}
    row |= {"low_precision": 0.9999, "errors": 12, "tensor_cores": 0.9999, "step_seconds": 5e3, "regressions": 12345}
    row["script"] = "train.py"
    text = trend.terminal(pd.DataFrame([row | {"against": "b" * 99, "first": "fell " * 40}]))
    assert re.search("2026-03-01 +inconclusive +>99.9% +12 +>99.9% +83.3 min +12345", text)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("verdicts", "errors", "told"),
    [
        (["pass"], [0], "Nothing to compare with: r0 is the first report of its script."),
        (["pass", "fail"], [0, 0], "Worse: 1 regression in r1 against r0."),
        (["pass", "pass", "pass"], [0, 0, 0], "Steady: nothing in r2 is worse than in the reports before it."),
        (
            ["pass", "fail", "fail"],
            [0, 0, 0],
            "Steady since r1, which was worse than r0: nothing in r2 is worse than there.",
        ),
        (["fail", "pass"], [0, 0], "Better: r1 is verified, as r0 was not, and nothing in it is worse than before."),
        (["pass", "pass"], [2, 1], "Better: r1 has 1 error fewer than r0, and nothing in it is worse than before."),
    ],
)
def test_what_a_trend_is_stands_on_top(verdicts, errors, told):
    report = profile(gpt(), 0)
    entries = []
    for i, (verdict, count) in enumerate(zip(verdicts, errors, strict=True)):
        v = replace(report.verification, verdict=verdict)
        found = tuple(finding("PA101", "error", f"{k} overflows", "", f"layer{k}") for k in range(count))
        entries.append((f"r{i}", datetime(2026, 3, 1 + i, tzinfo=UTC), replace(report, verification=v, findings=found)))
    frame = trend.trend(entries)
    assert trend.terminal(frame).splitlines()[0] == told
    assert trend.markdown(frame).splitlines()[0].startswith(f"- {told[:20]}")


def test_a_slow_drift_is_seen_where_no_report_differs_from_the_one_before():
    names = [f"r{i}" for i in range(7)]
    reports = [profile(change(gpt(), "head", gain=2.0**i), 0) for i in range(7)]
    frame = trend.trend([(n, datetime(2026, 3, 1, tzinfo=UTC), r) for n, r in zip(names, reports, strict=True)])
    assert all(compare(*pair).clean for pair in pairwise(reports))
    seen = frame[frame["regressions"] > 0]
    assert list(zip(seen["report"], seen["against"], strict=True)) == [("r2", "r0"), ("r4", "r2"), ("r6", "r4")]


def test_runs_that_were_cut_short_hide_nothing_from_those_after_them():
    whole = profile(gpt(), 0)
    crashed = Report(job={**whole.job, "stopped": "failed", "steps": 0}, environment=whole.environment)
    failed = replace(whole, verification=replace(whole.verification, verdict="fail"))
    reports = {"a": whole, "b": crashed, "c": crashed, "d": failed, "e": failed}
    frame = trend.trend([(name, datetime(2026, 3, 1, tzinfo=UTC), report) for name, report in reports.items()])
    assert list(frame["against"].fillna("")) == ["", "a", "a", "a", ""]
    assert "NOTHING MEASURED" in frame["first"][2]
    assert "it said pass" in frame["first"][3]


def test_scripts_are_followed_apart(tmp_path, capsys):
    made = [("a.py", gpt()), ("b.py", gpt(64)), ("a.py", renamed(gpt())), ("c.py", gpt(64))]
    for day, (script, model) in enumerate(made):
        report = dated(profile(model, day), day + 1)
        write_json(tmp_path / f"{day}.json", replace(report, job={**report.job, "script": script}))
    assert main(["compare", str(tmp_path), "--trend", "--format", "json"]) == 1
    told = capsys.readouterr()
    assert [row["regressions"] for row in json.loads(told.out)] == [None, None, 1, None]
    assert "3 is the first report of its script" in told.err


def test_scripts_of_one_name_in_two_folders_are_two_and_a_moved_one_is_the_same(tmp_path):
    def entry(name, script, model):
        report = profile(model, 0)
        return name, datetime(2026, 3, 1, tzinfo=UTC), replace(report, job={**report.job, "script": script})

    other = [each for each in gpt(64, blocks=1) if each.fqn != "head"]
    two = [entry("a", "vision/train.py", gpt()), entry("b", "text/train.py", other[:2])]
    assert trend.trend(two)["regressions"].isna().all()
    moved = [entry("a", "old/train.py", gpt()), entry("b", "train.py", renamed(gpt()))]
    assert list(trend.trend(moved)["script"]) == ["old/train.py"] * 2
    made = [entry("a", "build_model", gpt()), entry("b", "build_model", other[:2]), entry("c", "build_model", gpt())]
    python = [(*rest, replace(r, job={**r.job, "kind": "model_file"})) for *rest, r in made]
    assert list(trend.trend(python)["script"]) == ["build_model", "b", "build_model"]


def test_a_trend_tells_what_was_measured_otherwise():
    def entry(day, blocks, argv):
        report = profile(gpt(blocks=blocks), 0)
        return f"run{day}", datetime(2026, 3, day, tzinfo=UTC), replace(report, job={**report.job, "argv": argv})

    frame = trend.trend([entry(1, 2, []), entry(2, 3, ["--blocks", "3"])])
    assert frame["first"][1].endswith("is new (arguments: none in base, --blocks 3 in head)")


def test_a_metric_asked_for_by_name_fails_a_trend_that_cannot_see_it(history):
    (history / "a.json").unlink()
    for name in ("b", "c"):
        path = history / name / "report.json"
        path.write_text(path.read_text().replace("NVIDIA H100", "cpu"))
    assert main(["compare", str(history), "--trend"]) == 0
    assert main(["compare", str(history), "--trend", "--fail-on", "time:20"]) == 1


def test_the_trend_as_a_picture(history):
    pytest.importorskip("vl_convert")
    assert main(["compare", str(history), "--trend", "-o", str(history / "t.svg")]) == 1
    texts = [node.text for node in ElementTree.parse(history / "t.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert [texts.count(name) for name in ("c", "b", "a")] == [1, 1, 1]
    assert texts.count("regressions (ringed)") == 1
    assert texts.count("1") == 1  # not at half a regression too
    assert "loss difference, plan against float32" not in texts  # nothing was measured


def test_hostile_names_stay_text_in_the_trend(tmp_path):
    pytest.importorskip("vl_convert")
    name = '&lt;b>\'"+alert(1)+"<\\u202e'
    frame = trend.trend([(name, datetime(2026, 3, 1, tzinfo=UTC), profile(gpt(), 0))])
    texts = [node.text for node in ElementTree.fromstring(outputs.render_trend(frame, "svg")).iter() if node.text]
    assert name.replace("\u202e", "\\u202e") in texts


def test_damaged_report_is_left_out_of_the_trend_with_a_message(history, capsys):
    (history / "b" / "report.json").write_text("{")
    assert main(["compare", str(history), "--trend"]) == 1
    assert "left out" in capsys.readouterr().err


def test_a_trend_that_could_not_read_a_report_is_not_clean(tmp_path, capsys):
    """It may be the newest one, which the others say nothing of."""
    for name in ("a", "b"):
        write_json(tmp_path / name / "report.json", profile(gpt(), 0))
    write_json(tmp_path / "plan.json", Plan())  # no report, and nobody's mistake
    assert main(["compare", str(tmp_path), "--trend"]) == 0
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "report.json").write_bytes((tmp_path / "b" / "report.json").read_bytes()[:1000])
    assert main(["compare", str(tmp_path), "--trend"]) == 2
    assert "c/report.json: not JSON that can be read" in capsys.readouterr().err


def test_a_pipe_among_the_reports_is_left_out_unread(history, capsys):
    (history / "fifo").mkdir()
    os.mkfifo(history / "fifo" / "report.json")
    assert main(["compare", str(history), "--trend"]) == 1
    assert "report.json: not a regular file" in capsys.readouterr().err


def test_every_report_of_a_folder_has_its_own_name(tmp_path):
    """Of what a folder and a file are both called, the whole path is told."""
    for path in ("report.json", "one/report.json", "one.json", "two/x.json", "two/y.json"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        write_json(tmp_path / path, report_samples.empty())
    entries, skipped = trend.load_folder(tmp_path)
    assert ({name for name, _, _ in entries}, skipped) == (
        {"report", "one/report.json", "one.json", "two/x", "two/y"},
        [],
    )


def test_a_folder_without_reports_has_no_trend(tmp_path, capsys):
    assert main(["compare", str(tmp_path), "--trend"]) == 2
    assert "no readable report" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "gone"), "--trend"]) == 2
    assert capsys.readouterr().err.endswith("gone: no such folder; check the path\n")


def test_one_report_is_a_trend_of_one(tmp_path, capsys):
    write_json(tmp_path / "report.json", profile(gpt(), 0))
    assert main(["compare", str(tmp_path), "--trend"]) == 0
    assert "report" in capsys.readouterr().out
