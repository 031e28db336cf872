"""`precaudit report`."""

from __future__ import annotations

import argparse

from precaudit.errors import PrecauditError


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("report", help="report")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    raise PrecauditError("report is not built yet")
