"""Options that several commands share, and what implements them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from precaudit.commands.streams import emit
from precaudit.errors import ExitCode, PrecauditError, require
from precaudit.formats import parse_formats
from precaudit.model import EXECUTIONS


def add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        action="append",
        type=Path,
        default=[],
        metavar="PATH",
        help="also write this file; the extension picks the format (repeatable)",
    )
    parser.add_argument("-f", "--force", action="store_true", help="overwrite existing files")


def add_run_options(parser: argparse.ArgumentParser, script: str, formats: str) -> None:
    """Options for what to run and how to execute low precision, in which formats; `script` and `formats` are for the
    help text."""
    parser.add_argument(
        "-m",
        dest="module",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="MODULE [its arguments]",
        help="run a module, as python -m does: all that follows is the module's",
    )
    parser.add_argument(
        "--execution",
        choices=EXECUTIONS,
        default="auto",
        help="how low precision runs: on the hardware, or with its rounding emulated",
    )
    parser.add_argument("--formats", type=parse_formats, default=(), metavar="LIST", help=formats)
    parser.add_argument("--device", metavar="DEVICE", help="device for a model file (default: cuda if there is one)")
    parser.add_argument(
        "script", nargs=argparse.REMAINDER, metavar="SCRIPT [its arguments]", help=f"{script}, and its own arguments"
    )


def require_fork_server() -> None:
    from multiprocessing import get_all_start_methods

    require(
        "forkserver" in get_all_start_methods(),
        "profile and check run scripts in processes forked from a server, which this system doesn't have; use Linux "
        "(on Windows: WSL), or call precaudit.profile(build_model, batches, loss) from Python",
    )


def add_fail_on(parser: argparse.ArgumentParser, verb: str, example: str) -> None:
    parser.add_argument(
        "--fail-on",
        action=_FailOn,
        default=[],
        const=verb,
        metavar="RULE",
        help=f"also fail on a finding ({example}), a severity (warning) or METRIC:THRESHOLD (repeatable); "
        "list shows them all",
    )


class _FailOn(argparse.Action):
    """Collects rules; `list` prints all rules and exits, like --help."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values == "list":
            from precaudit.comparison.limits import rules_table

            emit(rules_table(str(self.const)), sys.stdout)
            parser.exit()
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])


def chosen(settings: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a settings class that the command line has."""
    return {each.name: getattr(arguments, each.name) for each in fields(settings) if hasattr(arguments, each.name)}


def deliver(
    arguments: argparse.Namespace, formats: Collection[str], render: Callable[[str], str], printed: str | None = None
) -> ExitCode:
    """Print what `render` makes of the format asked for (or `printed`, in colour), write each file of `-o`, and append
    Markdown to the step summary where GitHub reads what is printed."""
    from precaudit.reporting import format_among
    from precaudit.reporting.files import write_text

    emit((printed or render(arguments.format)).rstrip("\n"), sys.stdout)
    if arguments.format == "github":
        summarize(render("markdown"))
    return write_outputs(arguments.output, lambda path: write_text(path, render(format_among(formats, path))))


def write_outputs(paths: Sequence[Path], write: Callable[[Path], None]) -> ExitCode:
    """Write each file of `-o`; print which were written, and why others were not."""
    from precaudit.reporting.files import write_each

    written, problems = write_each(paths, write)
    if written:
        print(f"Written: {', '.join(map(str, written))}", file=sys.stderr)
    for problem in problems:
        print(f"precaudit: {problem}", file=sys.stderr)
    return ExitCode.USAGE if problems else ExitCode.OK


def summarize(markdown: str) -> None:
    """Append to GitHub's step summary. An error is printed, but does not change the exit code."""
    from precaudit.reporting.github import write_step_summary

    try:
        write_step_summary(markdown)
    except PrecauditError as error:
        print(f"precaudit: {error}", file=sys.stderr)


def refuse_outputs(arguments: argparse.Namespace, formats: Collection[str]) -> None:
    """Raise PrecauditError for files of `-o` that can't be written, before any work is done."""
    from precaudit.reporting import format_among

    for path in arguments.output:
        format_among(formats, path)
    refuse_overwrite(arguments.output, arguments.force)


def refuse_overwrite(paths: list[Path], force: bool, instead: str = "") -> None:
    """Raise PrecauditError if a file to be written exists, before any work is done; `instead` ends the advice."""
    folders = [str(path) for path in paths if path.is_dir()]
    require(not folders, f"{', '.join(folders)}: a folder, which no file can replace; choose another place")
    existing = [str(path) for path in paths if path.exists()]
    if existing and not force:
        exist = "exists" if len(existing) == 1 else "exist"
        raise PrecauditError(f"{', '.join(existing)} already {exist}; pass --force to overwrite{instead}")
