"""`precaudit report`: render a report again."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from precaudit.commands.options import add_output_options, refuse_overwrite, write_outputs
from precaudit.commands.streams import emit
from precaudit.model import Report
from precaudit.reporting import DEFAULT_PLAN, FORMATS, files_of, render, write
from precaudit.reporting.files import written_file


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "report",
        help="render a report again: HTML, Markdown, SARIF, JUnit, ...",
        description="Render report.json again. Without -o and --format the report is printed for the terminal.",
        epilog="Exit codes: 0 done, 2 wrong usage, unreadable report or a file that can't be written.",
    )
    parser.add_argument("report", type=Path, metavar="REPORT.json", help="a report that precaudit wrote, or its folder")
    parser.add_argument(
        "--format", choices=FORMATS, metavar="FORMAT", help=f"print in this format: {', '.join(FORMATS)}"
    )
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from precaudit.reporting.serialize import load_report

    paths: list[Path] = arguments.output
    refuse_overwrite([file for path in paths for file in files_of(path)], arguments.force)
    source = written_file(arguments.report)
    report = load_report(source)
    plan = source.with_name(DEFAULT_PLAN.name)
    plan = plan if plan.is_file() else source  # one saved from Python has the plan inside
    if arguments.format and arguments.format != "terminal":
        emit(render(report, arguments.format, plan).rstrip("\n"), sys.stdout)
    elif arguments.format or not paths:
        emit(_for_terminal(report, plan), sys.stdout)
    return write_outputs(paths, partial(write, report, plan=plan))


def _for_terminal(report: Report, plan: Path) -> str:
    from precaudit.reporting.terminal import render_terminal, use_color

    return render_terminal(report, use_color(sys.stdout), plan=plan).rstrip("\n")
