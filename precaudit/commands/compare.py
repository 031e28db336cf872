"""`precaudit compare`."""

from __future__ import annotations

import argparse

from precaudit.errors import PrecauditError


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("compare", help="compare")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    raise PrecauditError("compare is not built yet")
