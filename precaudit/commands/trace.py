"""`precaudit trace`."""

from __future__ import annotations

import argparse

from precaudit.errors import PrecauditError


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("trace", help="trace")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    raise PrecauditError("trace is not built yet")
