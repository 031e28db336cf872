"""pytest plugin: a `precaudit` fixture that profiles a model and holds the report against a committed baseline.

    def test_precision(precaudit):
        report = precaudit.profile(build_model, batches, loss, steps=20)
        precaudit.check(report)

Baselines stand beside the tests in `__precaudit__/` and are written by `pytest --precaudit-update` only.
`@pytest.mark.precision(fail_on=["amax:4"], steps=20)` sets thresholds and defaults for `profile`.
Loading the plugin imports neither torch nor anything else heavy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from precaudit.comparison.changes import Comparison
    from precaudit.model import Report

MARKER = "precision(fail_on=[...], **profile_options): thresholds and options of the `precaudit` fixture"
WRITTEN = "precaudit_baseline_written"
FOLDER = "__precaudit__"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("precaudit").addoption(
        "--precaudit-update",
        action="store_true",
        help="write the precision baselines of the tests that run, in place of comparing with them",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def precaudit(request: pytest.FixtureRequest) -> Auditor:
    """Profiles models and compares the reports with the baselines of this test."""
    return Auditor(request)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names the baselines written; user properties travel from xdist's workers with the test reports."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    written = [value for report in reports for key, value in report.user_properties if key == WRITTEN]
    if written:
        terminalreporter.section("precaudit baselines written: review and commit them")
        for path in sorted(map(str, written)):
            terminalreporter.line(path)


class Auditor:
    """What the `precaudit` fixture gives to a test."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._node = request.node
        self._update = request.config.getoption("--precaudit-update")
        marker = request.node.get_closest_marker("precision")
        if marker and marker.args:
            pytest.fail("the precision marker takes its options by name: precision(steps=20)", pytrace=False)
        self._options: dict[str, Any] = dict(marker.kwargs) if marker else {}
        self._fail_on: str | Sequence[str] = self._options.pop("fail_on", ())
        self._checked: set[Path] = set()

    def profile(
        self,
        build_model: Callable[[], Any],
        batches: Callable[[], Iterable[Any]],
        loss: Callable[[Any, Any], Any],
        **options: Any,
    ) -> Report:
        """`precaudit.profile` with the marker's options, which those given here override."""
        from precaudit import profile

        return profile(build_model, batches, loss, **(self._options | options))

    def check(self, report: Report, name: str = "", fail_on: str | Sequence[str] | None = None) -> None:
        """Fail the test where the report is a regression against its baseline; `name` tells several checks apart."""
        from precaudit.model import Report

        if not isinstance(report, Report):
            pytest.fail(f"precaudit.check takes a report of precaudit.profile, not {report!r:.80}", pytrace=False)
        path = self.baseline(name)
        if path in self._checked:
            pytest.fail("precaudit.check was called twice: give each call a name of its own, check(report, name=...)")
        self._checked.add(path)
        if self._update:
            self._write(path, report)
        else:
            self._compare(path, report, self._fail_on if fail_on is None else fail_on)

    def baseline(self, name: str = "") -> Path:
        """`__precaudit__/<module>.<test>.json` beside the test's file."""
        classes = [node.name for node in self._node.listchain() if isinstance(node, pytest.Class)]
        parts = [self._node.path.stem, *classes, self._node.name, *([name] if name else [])]
        return Path(self._node.path.parent, FOLDER, f"{_file_name('.'.join(parts))}.json")

    def _write(self, path: Path, report: Report) -> None:
        from precaudit.reporting.serialize import write_json

        write_json(path, report)
        self._node.user_properties.append((WRITTEN, str(path)))

    def _compare(self, path: Path, report: Report, fail_on: str | Sequence[str]) -> None:
        from precaudit.comparison.terminal import render_terminal
        from precaudit.errors import PrecauditError

        if not path.exists():
            pytest.fail(f"no precision baseline at {path}: run pytest --precaudit-update and commit it", pytrace=False)
        try:
            comparison = _compared(path, report, [fail_on] if isinstance(fail_on, str) else fail_on)
        except PrecauditError as error:
            raise pytest.fail.Exception(f"precaudit: {error}", pytrace=False) from None
        if not comparison.clean:
            rendered = render_terminal(comparison, (str(path), "this run"))
            pytest.fail(
                f"{rendered}To keep the change: pytest --precaudit-update, and commit the baseline.", pytrace=False
            )


def _compared(path: Path, report: Report, fail_on: Sequence[str]) -> Comparison:
    from precaudit.comparison.compare import compare
    from precaudit.comparison.thresholds import asked_for, parse_thresholds
    from precaudit.reporting.serialize import load_report

    return compare(load_report(path), report, parse_thresholds(fail_on), asked_for(fail_on))


def _file_name(test: str) -> str:
    """A portable file name; names that had to change keep apart by a digest."""
    safe = re.sub(r"[^\w.\-\[\]]+", "_", test, flags=re.ASCII)[:120]
    return safe if safe == test else f"{safe}-{hashlib.sha256(test.encode()).hexdigest()[:8]}"
