"""The page in a real browser, headless; skipped where chromium, its driver or selenium is absent."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import pytest
import report_samples

from precaudit.reporting import write

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
INTERACTIVE_SECONDS = 3.0  # of the page's own thread: what other programs take at the time is not the page's


def start():
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(DRIVER))


@pytest.fixture(scope="module")
def browser():
    driver = start()
    driver.set_window_size(1200, 900)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name in ("passing", "hostile"):
        write(report_samples.sample_report(name), folder / f"{name}.html")
    return folder


def show(browser, path):
    """Open the page and wait for its heat map; what the console said and which requests were made."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(path.as_uri())
    wait(browser, "return document.getElementById('chart-heat_map').dataset.drawn === 'true'")


def wait(browser, condition, limit=20.0):
    end = time.monotonic() + limit
    while not browser.execute_script(condition):
        assert time.monotonic() < end, f"never true: {condition}"
        time.sleep(0.02)


def picture(browser, chart="heat_map"):
    return browser.execute_script(f"return document.querySelector('#chart-{chart} canvas').toDataURL()")


def choose(browser, id, value, event="change"):
    script = """
      const [id, value, event] = arguments, node = document.getElementById(id);
      node.value = value;
      node.dispatchEvent(new Event(event));
    """
    browser.execute_script(script, id, value, event)


def requests(browser):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("file:", "data:"))]


@pytest.mark.parametrize("name", ["passing", "hostile"])
def test_no_console_message_and_no_request(browser, files, name):
    show(browser, files / f"{name}.html")
    browser.execute_script("document.getElementById('training').scrollIntoView({behavior: 'instant'})")
    wait(browser, "return document.getElementById('chart-losses').dataset.drawn === 'true'")
    assert browser.get_log("browser") == []
    assert requests(browser) == []


def test_hostile_names_are_shown_and_never_run(browser, files):
    show(browser, files / "hostile.html")
    choose(browser, "order", "model")
    browser.execute_script("document.getElementById('heat-table').closest('details').open = true")
    wait(browser, "return document.querySelectorAll('#heat-table td').length > 0")
    assert (
        browser.execute_script("return document.querySelector('#heat-table td').textContent")
        == report_samples.HOSTILE[0]
    )
    assert report_samples.HOSTILE[0] in browser.execute_script("return document.getElementById('tree').textContent")
    names = browser.execute_script("return [...document.querySelectorAll('#tree .mono')].map((n) => n.textContent)")
    assert "::error file=x,line=1::pwned" in names, "its colons part no names"
    assert browser.execute_script("return document.querySelectorAll('script').length") == 3


def test_the_slider_moves_the_picture_and_says_what_is_lost(browser, files):
    show(browser, files / "passing.html")
    pictures, texts = [], []
    for k in (0, 16, 32):
        choose(browser, "k", str(k), "input")
        pictures.append(picture(browser))
        texts.append(browser.execute_script("return document.getElementById('k-effect').textContent"))
    assert len(set(pictures)) == 3
    assert texts[1].startswith("All 36 gradients survive in float16")
    others = "Of modules that the plan runs in other formats, 8 gradients are not counted."
    assert texts[1].endswith(f"no value rounds to zero. {others}")
    assert "36 would overflow" in texts[2]


def test_the_slider_counts_no_gradient_that_is_zero_but_for_rounding(browser, tmp_path):
    write(report_samples.with_residue(), tmp_path / "r.html")
    show(browser, tmp_path / "r.html")
    said = browser.execute_script("return document.getElementById('k-effect').textContent")
    assert said.startswith("All 36 gradients survive in float16")
    assert said.endswith("Not counted: 1 gradient, zero but for rounding (such as a bias's before a norm).")


def test_the_slider_works_from_the_keyboard(browser, files):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, files / "passing.html")
    before = picture(browser)
    slider = browser.find_element(By.ID, "k")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert slider.get_attribute("value") == "17"
    assert slider.get_attribute("aria-valuetext") == "2 to the power of 17"
    assert picture(browser) != before


SPY = """
  const fill = CanvasRenderingContext2D.prototype.fillText;
  window.written = [];
  CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
    written.push(text);
    return fill.call(this, text, ...rest);
  };
"""


@pytest.mark.parametrize("width", [390, 1200])
def test_long_names_that_differ_in_their_middle_have_different_labels(browser, tmp_path, width):
    base = report_samples.passing()
    names = [f"vision_language_backbone.encoder.layers.{i}.self_attention_query_key_value" for i in range(20)]
    layers = tuple(replace(base.layers[1], fqn=name) for name in names)
    write(replace(base, layers=layers, plan=report_samples.plan_for(layers)), tmp_path / "long.html")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    spy = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": SPY})
    try:
        show(browser, tmp_path / "long.html")
        written = browser.execute_script("return [...new Set(written)]")
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", spy)
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert len([text for text in written if text.endswith("value")]) == 20, written


def test_the_table_has_the_rows_of_the_picture(browser, files):
    show(browser, files / "passing.html")
    choose(browser, "role", "activation")
    choose(browser, "find", "HEAD", "input")
    browser.execute_script("document.getElementById('heat-table').closest('details').open = true")
    wait(browser, "return document.querySelectorAll('#heat-table tr').length === 2")
    cells = browser.execute_script("return [...document.querySelectorAll('#heat-table td')].map((n) => n.textContent)")
    assert [cells[0], cells[4]] == ["head", "fits"]
    assert browser.execute_script("return document.getElementById('slider').hidden")


def test_the_plan_is_filtered_by_name_reason_and_format(browser, files):
    def leaves():
        script = "return [...document.querySelectorAll('#tree li')].filter((n) => !n.querySelector('li')).length"
        return browser.execute_script(script)

    show(browser, files / "passing.html")
    choose(browser, "plan-find", "normalisation", "input")
    assert leaves() == 4
    choose(browser, "plan-find", "", "input")
    choose(browser, "plan-format", "float32")
    assert leaves() == 5


def test_the_theme_repaints_page_and_charts(browser, files):
    from selenium.webdriver.common.by import By

    show(browser, files / "passing.html")
    color = "return getComputedStyle(document.body).backgroundColor"
    before = (browser.execute_script(color), picture(browser))
    browser.find_element(By.ID, "theme").click()
    after = (browser.execute_script(color), picture(browser))
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_copy_plan_gives_plan_json(browser, files):
    from selenium.webdriver.common.by import By

    show(browser, files / "passing.html")
    browser.execute_script(
        "window.copied = null; navigator.clipboard.writeText = async (text) => { window.copied = text; };"
    )
    browser.find_element(By.CSS_SELECTOR, "[data-copy=plan]").click()
    wait(browser, "return window.copied !== null")
    assert json.loads(browser.execute_script("return window.copied"))["default"] == "float16"


def test_gpu_time_is_drawn_before_and_under_the_plan(browser, tmp_path):
    write(report_samples.failing(), tmp_path / "failing.html")
    show(browser, tmp_path / "failing.html")
    browser.execute_script("document.getElementById('chart-times').scrollIntoView({behavior: 'instant'})")
    wait(browser, "return document.getElementById('chart-times').dataset.drawn === 'true'")
    assert browser.get_log("browser") == []
    cells = browser.execute_script("""
      const rows = [...document.querySelectorAll("#cost tbody tr")].slice(0, 2);
      return rows.map((row) => [...row.cells].map((n) => n.textContent));
    """)
    assert cells == [
        ["blocks.0.attn.qkv", "11 ms", "0%", "5 ms", "80.0%"],
        ["head", "-", "-", "3.5 ms", "60.0%"],
    ]


def test_every_control_is_reached_by_the_tab_key_and_shows_its_focus(browser, files):
    from selenium.webdriver.common.keys import Keys

    show(browser, files / "passing.html")
    browser.execute_script("document.activeElement.blur()")
    reached, outlined = set(), True
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        node = "document.activeElement"
        reached.add(browser.execute_script(f"return {node}.id || {node}.dataset.copy || {node}.tagName"))
        style = f"getComputedStyle({node}).outlineStyle"
        outlined &= browser.execute_script(f"return {node} === document.body || {style} !== 'none'")
    assert {"theme", "code", "plan", "role", "format", "order", "find", "k", "plan-find", "plan-format"} <= reached
    assert outlined


def test_nothing_is_wider_than_a_phone(browser, files):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for name in ("passing", "hostile"):
            show(browser, files / f"{name}.html")
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
            broken = browser.execute_script("""
              document.querySelectorAll("details.more").forEach((folded) => { folded.open = true; });
              const text = document.createRange();
              const lines = (cell) => { text.selectNodeContents(cell); return text.getClientRects().length; };
              return [...document.querySelectorAll("#ranges td.n")].filter((cell) => lines(cell) > 1).length;
            """)
            assert broken == 0
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_trace_is_no_wider_than_a_phone(browser, tmp_path):
    from precaudit.tensorcores.traces.analysis import analyse
    from precaudit.tensorcores.traces.rendering import render_html
    from precaudit.tensorcores.traces.trace import read_trace

    kernel = {"ph": "X", "cat": "kernel", "name": "sm90_xmma_gemm_" + "bf16bf16_" * 12, "ts": 1, "dur": 5, "args": {}}
    (tmp_path / ("trace_" * 12 + ".json")).write_text(json.dumps([kernel]), encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text(render_html(analyse(read_trace(next(tmp_path.glob("trace*"))))), encoding="utf-8")
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get(page.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_control_and_picture_has_a_name(browser, files):
    show(browser, files / "passing.html")
    unnamed = browser.execute_script("""
      const named = (n) => n.getAttribute("aria-label") || n.textContent.trim() || (n.labels && n.labels.length);
      const controls = [...document.querySelectorAll("button, select, input, [role=img]")];
      return controls.filter((n) => !named(n)).map((n) => n.id);
    """)
    assert unnamed == []


def test_five_thousand_layers_are_interactive_soon(browser, tmp_path):
    write(report_samples.huge(), tmp_path / "huge.html")
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    show(browser, tmp_path / "huge.html")
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    drawn = next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")
    before = picture(browser)
    moved = browser.execute_script("""
      const slider = document.getElementById("k"), start = performance.now();
      slider.value = "3";
      slider.dispatchEvent(new Event("input"));
      return performance.now() - start;
    """)
    assert 0 < drawn < INTERACTIVE_SECONDS
    assert moved < 500
    assert picture(browser) != before


def test_on_paper_every_chart_is_there_whole_and_on_white(browser, files):
    """Also those that nobody has scrolled to, and where the reader's screen is dark."""
    show(browser, files / "passing.html")
    browser.execute_script(
        "if (document.documentElement.dataset.theme !== 'dark') document.getElementById('theme').click()"
    )
    browser.execute_script(
        "addEventListener('beforeprint', () => { window.printed = document.documentElement.dataset.theme })"
    )
    browser.execute_cdp_cmd("Page.printToPDF", {})
    assert browser.execute_script("return window.printed") == "light"
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    charts = ("scales", "losses", "differences")
    for name in charts:
        assert browser.execute_script(f"return document.getElementById('chart-{name}').dataset.drawn") == "true"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.execute_script("document.querySelectorAll('.chart').forEach((chart) => { chart.style.width = '300px' })")
    widths = browser.execute_script("return [...document.querySelectorAll('.chart canvas')].map((c) => c.clientWidth)")
    legend = "getComputedStyle(document.querySelector('.legend i'))"  # its colour is a background
    assert browser.execute_script(f"return {legend}.printColorAdjust") == "exact"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert max(widths) <= 300


def test_without_javascript_nothing_is_promised_that_is_not_there(browser, files):
    try:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        browser.get((files / "passing.html").as_uri())
        assert not any(button.is_displayed() for button in browser.find_elements("tag name", "button"))
        said = browser.find_element("id", "ranges").text
        assert "need JavaScript" in said
        assert "Each row is a tensor" not in said
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
