"""The README's picture of a report, taken anew: python tests/reporting/screenshot.py (needs chromium and selenium)."""

from __future__ import annotations

from pathlib import Path

from test_browser import choose, show, start

REPORTS = Path(__file__).parents[2] / "reports"


def main() -> None:
    browser = start()
    try:
        size = {"width": 1200, "height": 1446, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        show(browser, REPORTS / "text_transformer" / "report.html")
        choose(browser, "find", "blocks.3", "input")
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        browser.save_screenshot(str(REPORTS / "images" / "report.png"))
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
