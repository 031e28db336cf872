from __future__ import annotations

import base64
import gzip
import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import report_samples
from golden_files import assert_golden

from precaudit.errors import PrecauditError
from precaudit.formats import FORMATS
from precaudit.model import Difference, Exponents, Plan, Report, TensorStats, Trial, Verification
from precaudit.reporting import costs, drawing, html, page_data, render, svg
from precaudit.reporting.headline import headline
from precaudit.reporting.serialize import load_plan, write_json

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("altair")
pytest.importorskip("vl_convert")

MAX_BYTES = 1.5e6


class Page(HTMLParser):
    """Elements, their attributes, and the text of the page outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        (self.scripts if self.inside == "script" else [] if self.inside == "style" else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def pages():
    return {name: Page(render(report_samples.sample_report(name), "html")) for name in report_samples.SAMPLES}


def test_verdict_comes_first(pages):
    for name, page in pages.items():
        head = headline(report_samples.sample_report(name))
        headings = [i for i, (tag, _) in enumerate(page.tags) if re.fullmatch(r"h[1-6]", tag)]
        assert page.tags[headings[0]][0] == "h1"
        assert " ".join(head.title.split()) in page.text


def test_nothing_is_loaded_from_elsewhere(pages):
    for page in pages.values():
        for tag, attributes in page.tags:
            assert tag not in {"iframe", "object", "embed", "base", "link", "img"}
            for name in ("src", "href", "action", "data"):
                assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)


def test_content_security_policy_forbids_network_and_eval(pages):
    policy = next(a["content"] for tag, a in pages["passing"].tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert "connect-src" not in policy


def test_hostile_strings_make_no_elements_and_no_scripts(pages):
    def shape(page: Page) -> set[tuple[str, str | None]]:
        return {(tag, attributes.get("type")) for tag, attributes in page.tags if tag != "p"}

    assert shape(pages["hostile"]) <= shape(pages["failing"])
    assert len(pages["hostile"].scripts) == len(pages["failing"].scripts)
    attributes = {name for _, found in pages["hostile"].tags for name in found}
    assert not any(name.startswith("on") for name in attributes)
    assert report_samples.HOSTILE[0] in pages["hostile"].text


def test_packed_data_is_base64_and_unchanged():
    value = [text.encode("utf-8", "backslashreplace").decode() for text in report_samples.HOSTILE]
    made = html.packed(value)
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", made)
    assert json.loads(gzip.decompress(base64.b64decode(made))) == value


def test_five_thousand_layers_stay_small():
    assert len(render(report_samples.huge(), "html").encode()) < MAX_BYTES


def test_without_altair_the_page_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(drawing, "find_spec", lambda name: None)
    page = Page(render(report_samples.passing(), "html"))
    assert "precaudit[html]" in page.text
    assert "embed output grad" in page.text


def test_where_addresses_are_limited_the_page_has_no_charts_and_says_why(tmp_path):
    """The engine that draws would end the process, and with it a whole profile's output."""
    report, page = tmp_path / "report.json", tmp_path / "report.html"
    write_json(report, report_samples.passing())
    limited = f"ulimit -v 8000000; exec {sys.executable} -m precaudit report {report} -o {page} -o {tmp_path / 'r.md'}"
    subprocess.run(["bash", "-c", limited], check=True)
    assert "ulimit -v unlimited" in page.read_text()


# ---------------------------------------------------------------- data of the charts


def test_zones_are_those_of_the_format():
    zones = page_data.page_data(report_samples.empty())["formats"]
    assert set(zones) == set(FORMATS)
    for name, zone in zones.items():
        assert 2.0 ** zone["cut"] == FORMATS[name].flush_threshold
        assert 2.0 ** zone["sub"] * 2.0 ** -FORMATS[name].mantissa == 2 * 2.0 ** zone["cut"]
        assert 2.0 ** (zone["top"] - 1) <= FORMATS[name].overflow_threshold


def test_what_rounding_leaves_of_zero_hurts_at_no_scale():
    data = page_data.page_data(report_samples.with_residue())
    known = {(name, residue) for role in data["tensors"] for _, name, *_, residue in data["tensors"][role]}
    assert known == {("", 0), ("weight", 0), ("bias", 1)}
    rest = next(tensor for tensor in data["tensors"]["weight_grad"] if tensor[1] == "bias")
    zones = data["formats"]["float16"]
    assert not svg._is_hurt(rest, zones, 0)
    assert svg._is_hurt([*rest[:-1], 0], zones, 0)
    assert svg._is_hurt(rest, zones, 80)


@pytest.mark.parametrize("budget", [0.0, 1e-4, 0.3])
def test_kept_from_splits_the_energy_at_the_budget(budget):
    counts = (900, 0, 40, 7, 1)
    kept = page_data.kept_from(TensorStats(exponents=Exponents(-9, counts)), budget)
    energies = [count * 4.0**i for i, count in enumerate(counts)]
    assert sum(energies[: kept + 9]) <= budget * sum(energies)
    assert sum(energies[: kept + 10]) > budget * sum(energies)


def test_band_is_the_margin_about_the_mean_reference():
    report = report_samples.passing()
    data = page_data.trainings(report)
    references = [t.losses for t in report.verification.trials if t.plan == "reference"]
    for row, losses in zip(data["band"], zip(*references, strict=True), strict=True):
        mean = sum(losses) / len(losses)
        assert row["low"] == pytest.approx(mean * (1 - 0.0025))
        assert row["high"] == pytest.approx(mean * (1 + 0.0025))


def test_the_band_of_a_loss_near_zero_has_the_verdict_s_scale():
    reference = Trial(0, "reference", tuple(5 * 0.8**i for i in range(40)), 0, 40, scale=0.45)
    data = page_data.trainings(Report(verification=Verification("pass", margin=0.0025, trials=(reference,))))
    assert data["band"][-1]["high"] - data["band"][-1]["low"] == pytest.approx(2 * 0.0025 * 0.45)


def test_optimizers_that_take_turns_have_a_curve_each():
    """One curve through a generator's and a discriminator's losses is a saw, and thinned out one of the two."""
    length = 4 * page_data.POINTS
    saw = Trial(0, "reference", tuple(float(1 + i % 2) for i in range(length)), 0, length)
    plan = replace(saw, plan="candidate-1")
    job = {"optimizer_of_loss": [1 + i % 2 for i in range(length)]}
    data = page_data.trainings(Report(job=job, verification=Verification("pass", margin=0.1, trials=(saw, plan))))
    curves = {row["run"]: set() for row in data["curves"]}
    for row in data["curves"]:
        curves[row["run"]].add(row["loss"])
    names = [f"{run}, seed 0, optimizer {n}" for run in ("reference", "candidate-1") for n in (1, 2)]
    assert curves == dict(zip(names, [{1.0}, {2.0}, {1.0}, {2.0}], strict=True))
    for rows in (data["band"], data["pairs"]):
        assert Counter(row["of"] for row in rows) == {", optimizer 1": 150, ", optimizer 2": 150}


def test_every_run_has_its_curve_and_broken_ones_are_named():
    report = report_samples.failing()
    data = page_data.trainings(report)
    assert {row["run"] for row in data["curves"]} == {f"{t.plan}, seed {t.seed}" for t in report.verification.trials}
    assert all(math.isfinite(row["loss"]) for row in data["curves"])
    assert data["broken"] == ["candidate-2, seed 0: the loss is not finite at step 2"]  # counted as findings do


@pytest.mark.parametrize(
    ("name", "legend"), [("passing", "float32 the plan counts"), ("failing", "float32 earlier plans the plan counts")]
)
def test_the_legend_has_the_kinds_of_runs_that_there_are(pages, name, legend):
    assert legend in pages[name].text
    svg = render(report_samples.sample_report(name), "svg")
    assert ("earlier plans orange" in svg) is (name == "failing")


def test_a_report_without_a_plan_offers_none(pages):
    assert "Plan none No module was seen" in pages["empty"].text
    assert "Copy plan.json" not in pages["empty"].text
    assert "Copy plan.json" in pages["passing"].text
    assert "no plan that can be recommended" in pages["failing"].text
    assert "Copy plan.json" not in pages["failing"].text, "nor offered"


# ---------------------------------------------------------------- words


def test_confidence_interval_is_drawn_in_place():
    report = report_samples.passing()
    report = replace(report, verification=replace(report.verification, difference=Difference(0.0, -0.0025, 0.0025)))
    tile = html.tiles(report)[0]
    assert tile["interval"] == [25.0, 50.0, 50.0]


@pytest.mark.parametrize(("startup", "shown"), [(2.6, True), (-33.9, False), (32.0, False), ("nan", False)])
def test_impossible_times_are_not_shown(startup, shown):
    report = report_samples.passing()
    report = replace(report, performance=report.performance | {"seconds_startup": startup})
    lines = " ".join(costs.profiling(report))
    assert ("outside training steps" in lines) == shown
    assert "-" not in lines.replace("forward-backward", "")


def test_many_findings_are_folded_and_all_there():
    report = report_samples.failing()
    one = report.findings[0]
    many = [replace(one, rule=f"PA{900 + i}", message=f"finding {i}.", fingerprint=str(i)) for i in range(15)]
    page = Page(render(replace(report, findings=tuple(many)), "html"))
    assert "3 more findings" in page.text
    assert all(f"finding {i}" in page.text for i in range(15))
    assert "more finding" not in Page(render(report, "html")).text


def test_no_slider_without_measured_values():
    base = report_samples.passing()
    report = replace(base, layers=tuple(replace(layer, tensors=()) for layer in base.layers))
    page = Page(render(report, "html"))
    assert "No value but zero was measured in any layer." in page.text
    assert not {"role", "heat-table"} & {attributes.get("id") for _, attributes in page.tags}
    assert "most at risk" not in page.text


def test_further_reasons_are_counted():
    reasons = {f"a.{i}": f"why {letter}" for i, letter in enumerate("abcdefghijklmno")}
    plan = Plan("bfloat16", dict.fromkeys(reasons, "float32"), because=reasons)
    page = Page(render(replace(report_samples.passing(), plan=plan), "html"))
    assert "why l: a.11 ... and 3 more reasons" in page.text


# ---------------------------------------------------------------- plan.json and SVG


@pytest.mark.parametrize("name", ["passing", "failing"])
def test_golden_plan(name):
    assert_golden(f"plan-{name}.json", render(report_samples.sample_report(name), "plan"))


def test_plan_json_is_the_plan_alone(tmp_path):
    from precaudit.reporting import write

    report = report_samples.passing()
    write(report, tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    assert document["default"] == "float16"
    assert "layers" not in document
    jsonschema.validate(document, schema("plan"))
    assert load_plan(tmp_path / "plan.json") == report.plan


def schema(name: str) -> dict[str, object]:
    from importlib.resources import files

    return json.loads((files("precaudit") / "schemas" / f"{name}.schema.json").read_text())


def test_svg_has_a_row_a_tensor_and_the_share_that_is_lost():
    report = report_samples.passing(blocks=2)
    root = ElementTree.fromstring(render(report, "svg"))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {layer.fqn for layer in report.layers} <= set(texts)
    assert render(report, "svg") == render(report, "svg")


def test_svg_hostile_names_stay_text():
    root = ElementTree.fromstring(render(report_samples.hostile(), "svg"))
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))


def test_svg_has_the_charts_below_each_other():
    root = ElementTree.fromstring(render(report_samples.passing(blocks=1), "svg"))
    pictures = list(root)
    tops = [float(picture.attrib["y"]) for picture in pictures]
    heights = [float(picture.attrib["height"]) for picture in pictures]
    assert len(pictures) == 3
    assert tops == [0, heights[0], heights[0] + heights[1]]
    assert float(root.attrib["height"]) == sum(heights)
    shown = [[node.text for node in picture.iter("{http://www.w3.org/2000/svg}text")] for picture in pictures]
    losses, differences = ([text for text in texts if text.isdigit()] for texts in shown[1:])
    assert losses == differences  # steps, of which none is the 0th


def test_svg_of_two_steps_numbers_them():
    runs = tuple(Trial(0, plan, (2.0, 1.0), 0, 2) for plan in ("reference", "candidate-1"))
    root = ElementTree.fromstring(render(Report(verification=Verification("pass", trials=runs)), "svg"))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"0", "1"} <= set(texts)
    assert "1.00" not in texts


def test_svg_without_trainings_is_the_heat_map():
    report = replace(report_samples.passing(blocks=1), verification=Verification())
    assert len(ElementTree.fromstring(render(report, "svg"))) == 1


def test_svg_of_an_empty_report_has_a_message():
    with pytest.raises(PrecauditError, match="nothing to draw"):
        render(report_samples.empty(), "svg")
