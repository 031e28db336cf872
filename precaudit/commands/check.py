"""`precaudit check --plan PLAN SCRIPT [its arguments]`: the pre-deployment gate."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from precaudit.checking.records import FORMATS, CheckSettings
from precaudit.commands.options import (
    add_fail_on,
    add_output_options,
    add_run_options,
    chosen,
    deliver,
    refuse_outputs,
    require_fork_server,
)
from precaudit.errors import ExitCode, PrecauditError, import_torch
from precaudit.reporting.files import written_file

if TYPE_CHECKING:
    from precaudit.checking.records import CheckReport
    from precaudit.running.job import Job

DESCRIPTION = """\
Does this plan still hold? The script runs for a few steps in float32, traced,
and is asked: does the plan cover the model's modules, do the ranges of this
data fit the planned formats, does the target have them, do the outputs in eval
mode match float32's, are they finite on hard inputs. A model file needs no
training loop: build_model() and batches() suffice, and nothing is trained."""
EPILOG = """\
Exit codes: 0 the plan holds, 1 a finding of severity error (or --fail-on),
2 wrong usage or unreadable plan, 3 nothing to measure, 4 the script failed."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "check",
        help="does a plan still hold for this model, data and target: the pre-deployment gate",
        usage="precaudit check --plan PLAN [options] SCRIPT [its arguments]\n"
        "       precaudit check --plan PLAN [options] -m MODULE [its arguments]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a script's own --out is not --output
    )
    parser.add_argument("--plan", type=Path, required=True, metavar="PLAN", help="plan.json, or a report.json with it")
    add_run_options(parser, "the script or model file", "check in this format instead of the plan's, such as fp16")
    parser.add_argument(
        "--steps", type=int, default=8, metavar="N", help="steps, or batches of a model file (default 8)"
    )
    parser.add_argument("--target", metavar="GPU", help="the card to deploy on (default: the plan's)")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        metavar="ERROR",
        help="relative rms error that outputs may have, such as 0.01 or 1%% (default: the format's)",
    )
    add_fail_on(parser, "check", "PA742")
    parser.add_argument(
        "--format", choices=FORMATS, default="terminal", metavar="FORMAT", help=f"what to print: {', '.join(FORMATS)}"
    )
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    require_fork_server()
    from precaudit.checking.check import check_job
    from precaudit.commands.profiling import hinted
    from precaudit.commands.progress import RunProgress
    from precaudit.commands.signals import handle_signals
    from precaudit.comparison.limits import parse_rules
    from precaudit.reporting.serialize import load_plan
    from precaudit.running.children import ChildRunner
    from precaudit.running.sources import CALLABLE

    settings = _settings(arguments)
    parse_rules(arguments.fail_on)
    refuse_outputs(arguments, FORMATS)
    plan, job = load_plan(written_file(arguments.plan, "plan.json")), _job(arguments)
    with _scratch() as folder, RunProgress() as progress:
        runner = ChildRunner(folder / "script.log", progress)
        runner.start(job)
        handle_signals(runner)
        import_torch()  # while the fork server does the same
        try:
            report = check_job(job, plan, settings, runner)
        except PrecauditError as error:
            raise hinted(error, job, CALLABLE) from None
    return _finish(replace(report, job={**report.job, "plan": str(arguments.plan)}), arguments)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder for the log and for files that runs set aside; kept if one of these could not be restored."""
    from precaudit.running.file_guard import set_aside_folder

    folder = Path(tempfile.mkdtemp(prefix="precaudit-"))
    try:
        yield folder
    finally:
        if not set_aside_folder(folder / "script.log").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _settings(arguments: argparse.Namespace) -> CheckSettings:
    if not arguments.script and not arguments.module:
        raise PrecauditError("no script given; try: precaudit check --plan plan.json train.py")
    if arguments.steps < 1:
        raise PrecauditError(f"--steps {arguments.steps}: at least one step is needed to measure anything")
    return CheckSettings(**chosen(CheckSettings, arguments))


def _tolerance(text: str) -> float:
    from precaudit.comparison.limits import fraction

    value = fraction(text)
    if not 0 <= value < math.inf:
        raise PrecauditError(f"--tolerance {text!r}: want a relative error such as 0.01 or 1%")
    return value


def _job(arguments: argparse.Namespace) -> Job:
    """The job; a model file only runs inference, so that it needs no loss."""
    from precaudit.commands.profiling import job_of
    from precaudit.running.sources import CALLABLE, classify

    job = job_of(arguments)
    if job.kind != "module" and classify(Path(job.target), CALLABLE) == "model_file":
        return replace(job, kind="inference")
    return job


def _finish(report: CheckReport, arguments: argparse.Namespace) -> int:
    """Print and write the report; returns the exit code."""
    from precaudit.checking.rendering import matched, render
    from precaudit.checking.terminal import render_terminal
    from precaudit.reporting.terminal import use_color

    printed = render_terminal(report, use_color(sys.stdout)) if arguments.format == "terminal" else None
    wrote = deliver(arguments, FORMATS, partial(render, report), printed)
    broken = matched(report, arguments.fail_on)
    for sentence in broken:
        print(f"precaudit: {sentence}", file=sys.stderr)
    return int(wrote if report.passed and not broken else ExitCode.FINDING)
