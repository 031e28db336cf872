"""`precaudit devices`."""

from __future__ import annotations

import argparse

from precaudit.errors import PrecauditError


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("devices", help="devices")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    raise PrecauditError("devices is not built yet")
