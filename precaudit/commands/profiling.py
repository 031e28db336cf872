"""Implementation of `precaudit profile`: from parsed arguments to files and an exit code."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from precaudit.commands.options import chosen, refuse_overwrite
from precaudit.commands.progress import Forecast, RunProgress
from precaudit.commands.signals import handle_signals
from precaudit.commands.streams import emit
from precaudit.comparison.limits import matches_fail_on, parse_rules
from precaudit.errors import ExitCode, PrecauditError, import_torch
from precaudit.hardware.nvml import equal_gpus, library
from precaudit.profiling.settings import Settings
from precaudit.reporting import DEFAULT_PLAN, FOLDER_FILES, files_of, write
from precaudit.reporting.files import write_each
from precaudit.running.children import ChildRunner, side_by_side
from precaudit.running.file_guard import locked
from precaudit.running.job import Job
from precaudit.running.sources import TRAINABLE, classify, is_binary, is_bundle, lacking
from precaudit.words import UNDER_TORCHRUN

if TYPE_CHECKING:
    from precaudit.model import Report
    from precaudit.profiling.engine import Outcome


def job_of(arguments: argparse.Namespace) -> Job:
    if arguments.module:
        module, *argv = arguments.module
        argv += arguments.script
        return Job("module", module, tuple(argv), os.getcwd(), arguments.steps, arguments.device)
    script, *argv = arguments.script
    if script == "--":
        script, *argv = argv or [""]
    if not script:
        raise PrecauditError("no script given; give the path of a Python file, or -m MODULE")
    path = Path(script)
    if is_bundle(path):
        return Job("script", script, tuple(argv), os.getcwd(), arguments.steps, arguments.device)
    if path.is_dir():
        raise PrecauditError(f"{script} is a folder without __main__.py; name the Python file in it, or -m MODULE")
    if not path.is_file():
        raise PrecauditError(f"there is no script {script!r}; give the path of a Python file, or -m MODULE")
    if path.suffix == ".ipynb":
        raise PrecauditError(
            f"{script} is a notebook, not a Python file; make one of it with jupyter nbconvert --to script, or call "
            "precaudit.profile or precaudit.audit in the notebook itself"
        )
    if is_binary(path):
        raise PrecauditError(
            f"{script} is no Python file; weights are measured in a script that trains with them, or in a model file "
            "whose build_model() loads them"
        )
    kind = classify(path)
    if late := _late_options(vars(arguments), path, argv):
        print(
            f"precaudit: {', '.join(late)} after {script} went to the script, which names no such option; options of "
            "precaudit come before the script",
            file=sys.stderr,
        )
    return Job(kind, script, tuple(argv), os.getcwd(), arguments.steps, arguments.device)


def _late_options(own: Iterable[str], script: Path, argv: Sequence[str]) -> list[str]:
    """Options of precaudit among the script's arguments that the script itself defines neither as a string nor as a
    dataclass field nor, where it sets its own variables from its arguments, as a variable."""
    options = {f"--{name.replace('_', '-')}": name.replace("_", "[-_]") for name in own}
    given = options.keys() & {word.partition("=")[0] for word in argv}
    text = _sources(script) if given else ""
    known = r"""(["'])(--)?{0}\1|^\s+{0}\s*:"""
    if re.search(r"\bexec\(|\bargv\b", text):
        known += r"|^{0}\s*=(?!=)"
    return [
        option
        for option, name in options.items()
        if option in given and not re.search(known.format(name), text, re.MULTILINE)
    ]


def _sources(script: Path) -> str:
    """The script's text and that of the files beside it that it names: its options may be defined there."""
    text = script.read_text(errors="replace")
    beside = (path for path in sorted(script.parent.glob("*.py")) if path != script)
    named = [path for path in beside if re.search(rf"\b{re.escape(path.stem)}\b", text)]
    return "\n".join([text, *(path.read_text(errors="replace") for path in named)])


def _stem(job: Job) -> str:
    return job.target.rpartition(".")[2] if job.kind == "module" else Path(os.path.abspath(job.target)).stem


def refuse_many_processes() -> None:
    """Raise PrecauditError under a launcher with several processes: each would run the script by itself."""
    count = os.environ.get("WORLD_SIZE", "")
    if "RANK" in os.environ and count.isdigit() and int(count) > 1:
        raise PrecauditError(
            f"profile runs the script many times in one process, but was started in {count}; start one: "
            f"{UNDER_TORCHRUN}. In a loop of your own, precaudit.audit sees all processes",
            ExitCode.USAGE,
        )


def run_profile(arguments: argparse.Namespace) -> int:
    began = time.perf_counter()
    refuse_many_processes()
    settings = Settings(**chosen(Settings, arguments), verify=not arguments.no_verify)
    job = job_of(arguments)
    parse_rules(arguments.fail_on)
    folder: Path = arguments.out or Path("reports") / _stem(job)
    outputs = [folder / name for name in FOLDER_FILES]
    files = [file for path in (*outputs, *arguments.output) for file in files_of(path)]
    shared = "" if arguments.out else ", or choose another --out where another script of this name wrote them"
    refuse_overwrite(files, arguments.force, shared)
    _make(folder)
    log = folder / "script.log"
    # A second profile there would restore the script's files during runs of this one.
    taken = f"another profile is running into {folder}; wait for its end or choose another --out"
    gpus = () if job.device else equal_gpus(library())
    with locked(folder, taken), RunProgress(Forecast(settings, side_by_side(gpus))) as progress:
        runner = ChildRunner(log, progress, gpus=gpus)
        handle_signals(runner)  # before the imports: a library that is interrupted in its own is left in pieces
        log.write_bytes(b"")
        runner.start(job)
        import_torch()  # while the fork server does the same
        from precaudit.profiling.engine import profile_job

        try:
            outcome = profile_job(job, settings, runner, began)
            _require_measurements(outcome, log)
        except PrecauditError as error:
            raise _with_older(hinted(error, job), outputs) from None
    return finish(outcome, arguments, folder)


def _require_measurements(outcome: Outcome, log: Path) -> None:
    """Raise PrecauditError where an interrupt left nothing to report, for which no earlier report is given up."""
    if not outcome.report.layers and outcome.report.job.get("stopped") == "interrupted":
        raise PrecauditError(f"{outcome.error}; what the script said is in {log}", outcome.exit_code)


def hinted(error: PrecauditError, job: Job, names: frozenset[str] = TRAINABLE) -> PrecauditError:
    """The error with a hint, where nothing was measured in what may be a model file that lacks one function."""
    if job.kind != "script" or error.exit_code != ExitCode.NOTHING_TO_MEASURE:
        return error
    missing = lacking(Path(job.target), names)
    hint = f"{job.target} looks like a model file that lacks `{missing}`; " if missing else ""
    return PrecauditError(f"{hint}{error}", error.exit_code)


def _with_older(error: PrecauditError, outputs: Iterable[Path]) -> PrecauditError:
    """The error with a warning of an earlier profile's files, which are left alone where there is no new report."""
    older = [str(path) for path in outputs if path.exists()]
    return PrecauditError(f"{error}; {older[0]} is an earlier profile's", error.exit_code) if older else error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrecauditError(
            f"cannot make the output folder {folder}: {error.strerror}; choose another --out"
        ) from error


def _kept_elsewhere(report: Report, folder: Path) -> str:
    """Where `report.json` is instead, of which all other files can be made: hours of runs may be in it."""
    for place in (tempfile.gettempdir, Path.home):
        with suppress(OSError, RuntimeError, PrecauditError):
            kept = Path(tempfile.mkdtemp(prefix="precaudit-", dir=place())) / FOLDER_FILES[0]
            write(report, kept)
            return f"the report is kept in {kept}; for the others: precaudit report {kept} -o {folder / 'report.html'}"
    return "the report could be kept nowhere else either: what is printed is all there is of it"


def finish(outcome: Outcome, arguments: argparse.Namespace, folder: Path) -> int:
    """Write and print the report; returns the exit code. An error in one file does not prevent the others."""
    from precaudit.reporting.terminal import render_terminal, use_color

    report, plan = outcome.report, folder / DEFAULT_PLAN
    matched = matches_fail_on(report, arguments.fail_on)
    paths = [*(folder / name for name in FOLDER_FILES), *arguments.output]
    written, problems = write_each(paths, partial(write, report, plan=plan))
    if paths[0] not in written:
        problems.append(_kept_elsewhere(report, folder))
    emit(render_terminal(report, color=use_color(sys.stdout), written=written, plan=plan), sys.stdout)
    for sentence in (*matched, *problems):
        print(f"precaudit: {sentence}", file=sys.stderr)
    if outcome.error:
        said = f"nothing was measured; what the script said is in {folder / 'script.log'}"
        left = f"what was measured is in {folder}" if report.layers else said
        for sentence in (outcome.error, *([left] if paths[0] in written else [])):
            print(f"precaudit: {sentence}", file=sys.stderr)
        return int(outcome.exit_code)
    if problems:
        return int(ExitCode.USAGE)
    if report.verification.cause == "interrupted":
        print(f"precaudit: {report.verification.reason}; what was measured is in {folder}", file=sys.stderr)
    return int(ExitCode.FINDING if matched else outcome.exit_code)
