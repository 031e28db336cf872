from __future__ import annotations

import io
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import report_samples
from golden_files import assert_golden

from precaudit.model import Difference, Layer, Location, OpFormat, Plan, Repair, Report, Verification
from precaudit.reporting import pasting, planned, render, story, terminal, words
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


def test_commands_are_continued_as_a_shell_does():
    report = report_samples.passing()
    argv = ["--data", "a file with blanks", *(f"--option-{i}" for i in range(9))]
    report = replace(report, job=report.job | {"argv": argv})
    command = render_terminal(report, written=WRITTEN).split("deploy: ")[1]
    assert max(map(len, command.splitlines())) <= 80
    plan = ["--plan", "reports/train/plan.json"]
    assert shlex.split(command.replace("\\\n", "")) == ["precaudit", "check", *plan, "train.py", *argv]


def test_5000_layers_stay_readable():
    text = render_terminal(report_samples.huge())
    assert len(text.splitlines()) < 120
    assert "4,996 more layers" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_verdict_comes_first_in_plain_words():
    title = render_terminal(report_samples.passing()).split("\n\n")[1].split("\n  ")[0].replace("\n", " ")
    assert title == "VERIFIED: float16 trains the same as float32 (difference +0.01%, within ±0.25%), emulated"


VERDICTS = {
    "fail": "NOT VERIFIED: float16 does not train like float32 (difference +0.01%, allowed ±0.25%)",
    "inconclusive": "NOT DECIDED: whether float16 trains the same as float32 (difference -0.04% to +0.06%",
    "screened": "SCREENED, not verified: float16 looks the same",
    "not_run": "NOT VERIFIED: float16 is proposed",
}


@pytest.mark.parametrize(("verdict", "words"), VERDICTS.items())
def test_other_verdicts_never_say_verified_alone(verdict, words):
    report = report_samples.passing()
    head = story.headline(replace(report, verification=replace(report.verification, verdict=verdict)))
    assert head.title.startswith(words)
    assert not head.title.startswith("VERIFIED")


@pytest.mark.parametrize(
    ("cause", "option"), [("noise", "--seeds"), ("float32", "--steps"), ("unchanged", None), ("interrupted", None)]
)
def test_the_next_command_has_more_of_what_would_decide(cause, option):
    report = report_samples.passing()
    report = replace(report, verification=replace(report.verification, verdict="inconclusive", cause=cause))
    _, command = pasting.next_command(report)
    assert [part for part in command if part in ("--seeds", "--steps")] == ([option] if option else [])


def test_seeds_are_not_asked_for_where_no_number_of_them_would_decide():
    report = report_samples.passing()
    doubt = replace(report.verification, verdict="inconclusive", cause="noise", margin=0.01, seeds=tuple(range(8)))
    for reach, asked in ((0.03, True), (0.9, False)):
        scattered = replace(doubt, difference=Difference(0.0, -reach, reach))
        text = " ".join(story.actions(replace(report, verification=scattered)))
        assert ("--seeds" in text) is asked
        assert ("--seeds" in story.what_decides(replace(report, verification=scattered))) is asked


def test_the_next_command_is_for_the_same_folder_with_the_same_options():
    report = report_samples.passing()
    job = {**report.job, "options": {"--formats": "float16", "--seeds": "2"}}
    doubt = replace(report.verification, verdict="inconclusive", cause="noise")
    _, command = pasting.next_command(replace(report, job=job, verification=doubt), Path("my runs/plan.json"))
    options = ["--out", "'my runs'", "--formats", "float16", "--seeds", "8"]
    assert command[: 3 + len(options)] == ["precaudit", "profile", "--force", *options]
    _, command = pasting.next_command(replace(report, verification=doubt), Path("reports/train/plan.json"))
    assert "--out" not in command


@pytest.mark.parametrize("verdict", ["pass", "fail", "not_run"])
def test_the_next_command_is_for_a_script_where_none_was_profiled(verdict):
    """A loop of somebody's own is called after its model, and functions after one of them."""
    report = report_samples.passing()
    report = replace(report, verification=replace(report.verification, verdict=verdict))
    for kind, name in (("audit", "Sequential"), ("model_file", "build_model")):
        job = {"kind": kind, "script": name}
        assert pasting.next_command(replace(report, job=job))[1][-1] == "SCRIPT"
    job = {"kind": "model_file", "script": "model.py"}
    assert pasting.next_command(replace(report, job=job))[1][-1] == "model.py"


@pytest.mark.parametrize("verdict", ["pass", "fail", "screened", "not_run"])
def test_a_float32_plan_is_never_sold_as_low_precision(verdict):
    report = report_samples.passing()
    report = replace(report, plan=Plan(), verification=replace(report.verification, verdict=verdict))
    assert story.headline(report).title.startswith("STAY IN FLOAT32")
    doubted = replace(report, verification=replace(report.verification, verdict="inconclusive", cause="noise"))
    assert story.headline(doubted).title.startswith("STAY IN FLOAT32")
    stopped = replace(doubted, verification=replace(doubted.verification, cause="interrupted"))
    assert story.headline(stopped).title.startswith("NOT DECIDED")
    assert "precaudit.apply" not in render_terminal(report)


def test_where_torchscript_compiles_modules_the_lines_say_how_to_run():
    report = report_samples.passing()
    assert not any("PYTORCH_JIT" in line for line in pasting.paste_lines(report))
    scripted = {"scripted": {"path": "train.py", "line": 3}}
    lines = pasting.paste_lines(replace(report, job={**report.job, "baseline": scripted}))
    assert lines[0].endswith("PYTORCH_JIT=0")
    compile("\n".join(lines), "pasted", "exec")


@pytest.mark.parametrize("mine", [False, True])
def test_where_a_library_calls_backward_no_scaler_of_ones_own_is_asked_for(mine):
    places = ["/venv/lib/python3.11/site-packages/transformers/trainer.py:3800", *["train.py:7"] * mine]
    report = report_samples.passing()
    lines = pasting.paste_lines(replace(report, job={**report.job, "backward_at": places}))
    assert ("scaler = plan.grad_scaler()" in lines) is mine
    assert any("transformers/trainer.py:3800" in line and "venv" not in line for line in lines) is not mine
    module = {"kind": "module", "script": "transformers.train", "backward_at": places}
    assert "scaler = plan.grad_scaler()" in pasting.paste_lines(replace(report, job={**report.job, **module}))
    compile("\n".join(lines), "pasted", "exec")


def in_float64(report):
    tensors = [tuple(replace(tensor, dtype="float64") for tensor in layer.tensors) for layer in report.layers]
    return replace(
        report,
        layers=tuple(replace(layer, tensors=own) for layer, own in zip(report.layers, tensors, strict=True)),
    )


def test_a_float64_script_is_told_what_it_trains_in():
    report = in_float64(report_samples.passing())
    alone = replace(report, plan=Plan())
    assert story.headline(alone).title.startswith("STAY IN FLOAT64")
    assert "float64 is the fastest" in story.actions(alone)[0]
    verification = replace(report.verification, verdict="inconclusive", cause="unchanged")
    untouched = replace(report, verification=verification)
    assert "autocast leaves alone" in story.headline(untouched).details[0]
    assert story.actions(untouched)[0].startswith("Build the model and its data in float32 first")


def test_lines_to_paste_run_as_python():
    text = render_terminal(report_samples.passing(), written=WRITTEN)
    assert '  plan = precaudit.load_plan("reports/train/plan.json")' in text.splitlines()
    lines = [line.strip() for line in text.split("model is built\n")[1].split("\n\n")[0].splitlines()]
    compile("\n".join(lines), "pasted", "exec")
    assert lines[3] == "scaler = plan.grad_scaler()"
    assert "unscale_(optimizer), before gradients are clipped" in lines[5]  # which a profile's loss scale needs not
    assert all(line.startswith("#") for line in lines[4:])


@pytest.mark.parametrize(
    ("names", "pasted"),
    [
        (("net", "net"), ["net"]),
        (("", ""), ["model"]),
        (("generator", "critic"), ["generator", "critic"]),
        (("generator", "exit() or net"), ["model"]),
    ],
)
def test_every_model_of_the_plan_has_a_line(names, pasted):
    layers = tuple(Layer(f"{name}.{i}", "Linear", 8, 1, (), model=name) for i, name in enumerate(names))
    plan = Plan(default="bfloat16", modules={layer.fqn: "bfloat16" for layer in layers})
    lines = pasting.paste_lines(replace(report_samples.passing(), layers=layers, plan=plan))
    several = {name: f', name="{name}"' * (len(pasted) > 1) for name in pasted}
    assert lines[2:] == [f"precaudit.apply({name}, plan{more})" for name, more in several.items()]


@pytest.mark.parametrize("verdict", ["pass", "inconclusive", "screened", "not_run"])
def test_pasted_lines_say_of_a_plan_that_it_is_not_verified(verdict):
    report = report_samples.passing()
    lines = pasting.paste_lines(replace(report, verification=replace(report.verification, verdict=verdict)))
    assert ("# this plan is not verified" in lines) is (verdict != "pass")


def test_modules_are_named_as_they_were_run():
    report = report_samples.passing()
    report = replace(report, job=report.job | {"kind": "module", "script": "package.train"})
    assert render_terminal(report).startswith("precaudit 0.1.0: -m package.train --lr 0.1\n")


def test_no_scaler_is_pasted_where_none_is_needed():
    report = report_samples.passing()
    assert "grad_scaler" not in render_terminal(replace(report, plan=report_samples.failing().plan))


def test_unmeasured_is_never_zero():
    text = render_terminal(Report(layers=report_samples.passing().layers))
    for line in ("Time of a step: not measured.", "Energy: not measured.", "Time of this profile: not measured."):
        assert line in text
    report = report_samples.passing()
    report = replace(report, verification=replace(report.verification, difference=Difference()))
    assert story.headline(report).title == "VERIFIED: float16 trains the same as float32, emulated"


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0%"),
        (1, "100%"),
        (1e-9, "<0.01%"),
        (0.99999, ">99.9%"),
        (0.005, "0.50%"),
        (0.5, "50.0%"),
        (None, "not measured"),
    ],
)
def test_shares_never_round_to_none_or_all(value, text):
    assert words.share(value) == text


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("::error file=x::pwned", r"\x3a:error file=x::pwned"),
        ("a ::Set-Output name=x", r"a \x3a:Set-Output name=x"),
        ("a ##[group]b ##vso[task.x]c", r"a \x23#[group]b \x23#vso[task.x]c"),
        ("void cudnn::detail::wgrad_alg0_engine<at::Half> ::", "void cudnn::detail::wgrad_alg0_engine<at::Half> ::"),
        ("std::vector x, at::native::add", "std::vector x, at::native::add"),
    ],
)
def test_only_what_a_ci_host_would_obey_is_altered(text, made):
    assert words.inert(text) == made


def test_a_long_word_is_not_broken_into_a_command():
    page = terminal.Page(width=30)
    page.text("x" * 30 + "::error file=x::pwned")
    assert page.lines[1:] == [r"\x3a:error file=x::pwned"]


def test_names_are_cut_in_the_middle():
    assert words.shorten("blocks.10.mlp.proj", 11) == "block….proj"
    assert words.shorten("short", 11) == "short"


@pytest.mark.parametrize(
    ("name", "most", "lines"),
    [
        ("model.layers.0.self_attn.q_proj", 4, ["model.layers.0.", "self_attn.q_proj"]),
        ("model.layers.0.post_attention_layernorm", 4, ["model.layers.0.", "post_atte…layernorm"]),
        ("encoder.layers.10.attention.query", 1, ["encoder.l…ion.query"]),
        ("encoder.layers.10.attention.output.dense", 2, ["encoder.layers.10.…", "ention.output.dense"]),
        ("fc", 1, ["fc"]),
        ("", 1, [""]),
    ],
)
def test_long_names_are_broken_after_dots_before_they_are_cut(name, most, lines):
    assert words.broken(name, 19, most) == lines


def test_the_table_of_ranges_has_whole_names():
    report = report_samples.passing()
    layers = [replace(layer, fqn=f"model.decoder.layers.{i}.self_attn.q_proj") for i, layer in enumerate(report.layers)]
    text = render_terminal(replace(report, layers=tuple(layers)))
    assert re.search(r"^  model\.decoder\. .*\n  layers\.21\. .*\n  self_attn\.q_proj ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("plan", "own", "rules", "kept"),
    [
        (Plan("bfloat16", {"a": "bfloat16"}), "bfloat16", [], True),
        (Plan("bfloat16", {"a": "bfloat16"}), "bfloat16", ["PA401"], True),
        (Plan("bfloat16", {"a": "bfloat16"}), "bfloat16", ["PA306"], False),
        (Plan("bfloat16", {"a": "bfloat16"}), "bfloat16", ["PA503"], False),
        (Plan("bfloat16", {"a": "bfloat16"}), "float16", [], False),
        (Plan("bfloat16", {"a": "bfloat16", "b": "tf32"}), "bfloat16", [], False),
        (Plan("bfloat16", {"a": "bfloat16"}), None, [], False),
    ],
)
def test_a_script_that_has_the_plan_already_keeps_it_unless_its_own_precision_is_at_fault(plan, own, rules, kept):
    report = report_samples.passing()
    found = tuple(report_samples.finding(rule=rule, severity="note") for rule in rules)
    report = replace(report, plan=plan, job={**report.job, "baseline": {"autocast": own}}, findings=found)
    assert story.actions(report)[0].startswith("Keep what you have") is kept
    assert pasting.paste_lines(report)[0].startswith("# not needed") is kept


def test_a_difference_of_nothing_is_no_range():
    report = report_samples.passing()
    difference = Difference(0.0, -1e-7, 1e-7)
    text = render_terminal(replace(report, verification=replace(report.verification, difference=difference)))
    assert "the loss differs by ±0.00%." in " ".join(text.split())


def test_one_remedy_for_many_places_is_told_once():
    report = report_samples.passing()
    found = [report_samples.finding(fqn=f"layers.{i}.norm", suggestion="keep float32 weights") for i in range(40)]
    steps = story.actions(replace(report, findings=tuple(found)))
    assert len(steps) == 2
    assert steps[1].startswith("Keep float32 weights [layers.0.norm")
    assert steps[1].endswith("and 38 more]")


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/venv/lib/python3.12/site-packages/transformers/models/t5.py", "transformers/models/t5.py:7"),
        ("/home/me/train.py", "/home/me/train.py:7"),
    ],
)
def test_files_of_libraries_go_by_their_import_names(path, shown):
    found = report_samples.finding(fqn="a", op="linear", location=Location(path, 7))
    assert story.place(found) == f"a, linear, {shown}"


def test_trace_of_the_counts():
    """The findings' counts in the title add up to the findings listed."""
    report = report_samples.failing()
    title = next(line for line in render_terminal(report).splitlines() if line.startswith("Findings"))
    assert sum(map(int, re.findall(r"\d+", title))) == len(report.findings)


@pytest.mark.parametrize("stopped", ["killed", "failed", "interrupted"])
def test_a_run_that_was_cut_short_is_told_from_one_that_trains_nothing(stopped):
    report = replace(report_samples.empty(), job={"stopped": stopped}, verification=Verification())
    text = render_terminal(report)
    assert "NOTHING MEASURED" in text
    assert "before its first step" in text
    assert "None: nothing was measured." in text


@pytest.mark.parametrize("stopped", ["killed", "failed", "interrupted"])
@pytest.mark.parametrize("format", ["terminal", "markdown", "html"])
def test_an_audit_that_was_cut_short_recommends_nothing(stopped, format):
    report = report_samples.passing()
    verification = Verification(reason="ValueError: wrong labels")
    report = replace(report, job={"stopped": stopped, "steps": 3}, plan=Plan(), verification=verification)
    text = " ".join(render(report, format).split())
    assert story.headline(report).title.startswith("CUT SHORT: ")
    assert "after 3 steps; what was measured until then is below" in text
    assert "ValueError: wrong labels" in text
    assert "profile again" in story.actions(report)[0].lower()
    for wrong in ("STAY IN", "Change nothing", "No module was seen", "no rule found anything wrong.", "memory"):
        assert wrong not in text.partition("<script")[0]


@pytest.mark.parametrize("verdict", ["inconclusive", "fail", "not_run"])
def test_where_float32_itself_fails_that_comes_first(verdict):
    base = report_samples.passing()
    broken = report_samples.finding("PA603", fqn=None, op=None, location=None, suggestion="repair float32 first")
    report = replace(base, findings=(broken,), verification=replace(base.verification, verdict=verdict))
    assert story.headline(report).title.startswith("REPAIR FLOAT32 FIRST")
    assert story.actions(report)[0] == "Repair float32 first"
    assert "precaudit.apply" not in render_terminal(report)


def test_an_audit_of_no_step_says_so():
    report = report_samples.passing()
    verification = Verification(reason="no step of this model was seen")
    report = replace(report, job={"kind": "audit", "audited_steps": 0}, plan=Plan(), verification=verification)
    assert story.headline(report).title == "NOTHING MEASURED: no step of this model was seen"
    assert "precaudit.audit" in story.actions(report)[0]


def test_the_root_module_has_a_name_everywhere():
    repair = Repair("", "float16", "float32", "raised", "div")
    report = replace(report_samples.failing(), plan=Plan("float16", {"": "float32"}, (OpFormat("", "div", "float32"),)))
    report = replace(report, verification=replace(report.verification, repairs=(repair,)))
    assert planned.repairs(report) == ["Round 1: (the model itself):div from float16 to float32: raised"]
    assert planned.exceptions(report.plan)[0].names == ("(the model itself)", "(the model itself):div")


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


def test_columns_that_have_no_room_left_are_cut_to_a_sign():
    page = terminal.Page(width=30)
    page.table(["name", "role", "value"], [["blocks.0.fc", "output grad", "1" * 25]])
    assert page.lines[-1].split() == ["bl….fc", "…", "1" * 25]


def test_lines_to_paste_fit_the_terminal():
    report = report_samples.passing()
    baseline = {"scripted": {}, "autocast": "bfloat16"}
    places = ["/venv/lib/python3.11/site-packages/transformers/trainer.py:3800"]
    report = replace(report, job={**report.job, "baseline": baseline, "backward_at": places})
    assert len(pasting.paste_lines(report)) == 8
    assert max(map(len, render_terminal(report).splitlines())) <= 80


@pytest.mark.parametrize(("baseline", "told"), [({"autocast": "bfloat16"}, True), ({"low": []}, False)])
def test_a_plan_takes_the_place_of_the_script_s_own_mixed_precision(baseline, told):
    report = report_samples.passing()
    text = render_terminal(replace(report, job=report.job | {"baseline": baseline}))
    assert ("in place of the script's own" in text) is told


def test_what_a_plan_that_failed_suits_is_not_taken_care_of():
    """It is not to be used."""
    report = report_samples.failing()
    found = report_samples.finding(fqn="a", evidence={"formats": "float16"})
    plan = Plan("bfloat16", {"a": "bfloat16"})
    told = {
        verdict: story.actions(
            replace(report, plan=plan, findings=(found,), verification=replace(report.verification, verdict=verdict))
        )[-1]
        for verdict in ("pass", "inconclusive", "fail")
    }
    assert told["pass"].startswith("Nothing else for 1 finding")
    assert told["inconclusive"].startswith("No change for 1 finding")
    assert "suits" not in told["fail"]
