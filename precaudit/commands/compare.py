"""`precaudit compare`: what changed between two reports, and whether that is a regression."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from precaudit.commands.options import add_output_options, deliver, refuse_outputs
from precaudit.comparison.thresholds import asked_for, parse_thresholds, thresholds_help
from precaudit.errors import ExitCode, PrecauditError
from precaudit.reporting.files import written_file

FORMATS = ("terminal", "markdown", "json", "github", "sarif", "gitlab")
TREND_FORMATS = ("terminal", "markdown", "json", "csv", "svg")
DESCRIPTION = """\
Compare two reports. What another seed or another day changes is no change;
the rest is ranked, likeliest cause first, and fails where a metric reaches its
threshold. BASE and HEAD are report.json files or folders that hold one. With
--trend, BASE is a folder of many reports: they are followed over time, script
by script. The last one is judged against the one before it and, as a slow
drift never shows there, against the one where something last changed."""
EPILOG = """

--fail-on amax:6 sets one threshold, amax:off silences one metric, all:off
silences all named before it.

Exit codes: 0 no regression, 1 regression, 2 wrong usage, unreadable report,
3 nothing to compare."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "compare",
        help="regression between two reports, or the trend of many",
        description=DESCRIPTION,
        epilog=thresholds_help() + EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", type=Path, metavar="BASE", help="the report to compare with")
    parser.add_argument("head", type=Path, metavar="HEAD", nargs="?", help="the report to judge")
    parser.add_argument("--trend", action="store_true", help="follow the reports below the folder BASE over time")
    parser.add_argument(
        "--fail-on", action="append", default=[], metavar="METRIC:THRESHOLD", help="fail from here on (repeatable)"
    )
    parser.add_argument(
        "--format",
        choices=dict.fromkeys((*FORMATS, *TREND_FORMATS)),
        default="terminal",
        metavar="FORMAT",
        help=f"what to print: {', '.join(FORMATS)}; for a trend {', '.join(TREND_FORMATS)}",
    )
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.trend and arguments.head:
        raise PrecauditError("--trend takes one folder of reports: leave HEAD out, or --trend")
    if not arguments.trend and not arguments.head:
        raise PrecauditError("HEAD is missing: precaudit compare BASE HEAD, or precaudit compare FOLDER --trend")
    return _trend(arguments) if arguments.trend else _compare(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    from precaudit.comparison import outputs
    from precaudit.comparison.compare import compare
    from precaudit.reporting.serialize import load_report
    from precaudit.reporting.terminal import use_color

    thresholds = parse_thresholds(arguments.fail_on)
    _refuse(arguments, FORMATS)
    base, head = load_report(_report_path(arguments.base)), load_report(_report_path(arguments.head))
    names = str(arguments.base), str(arguments.head)
    if not base.layers:
        raise PrecauditError(
            f"nothing to compare with: no layer was measured in {names[0]}; see there why, and profile again",
            ExitCode.NOTHING_TO_MEASURE,
        )
    comparison = compare(base, head, thresholds, asked_for(arguments.fail_on))
    printed = outputs.render(comparison, arguments.format, names, head, use_color(sys.stdout))
    wrote = deliver(arguments, FORMATS, lambda each: outputs.render(comparison, each, names, head), printed)
    return wrote if comparison.clean else ExitCode.FINDING


def _trend(arguments: argparse.Namespace) -> int:
    from precaudit.comparison import outputs
    from precaudit.comparison.trend import load_folder, newest, trend

    thresholds = parse_thresholds(arguments.fail_on)
    _refuse(arguments, TREND_FORMATS)
    entries, skipped = load_folder(arguments.base)
    frame = trend(entries, thresholds, asked_for(arguments.fail_on))
    for reason in skipped:
        print(f"precaudit: left out: {reason}", file=sys.stderr)
    judged = newest(frame)
    unsaid = arguments.format not in ("terminal", "markdown")  # which say it themselves
    for name in judged["report"][judged["regressions"].isna()] if unsaid else ():
        print(f"precaudit: {name} is the first report of its script: there is none to compare it with", file=sys.stderr)
    wrote = deliver(arguments, TREND_FORMATS, partial(outputs.render_trend, frame))
    if (judged["regressions"] > 0).any():
        return ExitCode.FINDING
    return ExitCode.USAGE if skipped else wrote  # one of these may be the report to judge


def _report_path(path: Path) -> Path:
    return written_file(path, hint="; to follow many reports, add --trend")


def _refuse(arguments: argparse.Namespace, formats: tuple[str, ...]) -> None:
    """Raise PrecauditError for formats and files that can't be written, before any work is done."""
    if arguments.format not in formats:
        raise PrecauditError(f"--format {arguments.format}: can't be printed here; what can be is {', '.join(formats)}")
    refuse_outputs(arguments, formats)
