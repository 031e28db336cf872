"""`precaudit devices`: what this machine's accelerators can do."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from precaudit.commands.streams import emit
from precaudit.errors import ExitCode, import_torch


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "devices",
        help="what this machine's accelerators can do",
        description="List this machine's GPUs with their number formats and peaks, and the CPU's low-precision units.",
        epilog="Exit code: 0, with or without a GPU.",
    )
    parser.add_argument("--format", choices=("terminal", "json"), default="terminal", help="what to print")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from precaudit.hardware.devices import inspect, read_cpuinfo, render
    from precaudit.hardware.nvml import library

    machine = inspect(library(), import_torch(), read_cpuinfo())
    emit(
        json.dumps(asdict(machine), indent=1) if arguments.format == "json" else render(machine).rstrip("\n"),
        sys.stdout,
    )
    return ExitCode.OK
