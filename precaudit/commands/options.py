"""Options that every writing command shares."""

from __future__ import annotations

import argparse
from pathlib import Path

from precaudit.errors import PrecauditError


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


def refuse_overwrite(paths: list[Path], force: bool) -> None:
    """Raise when a file to be written exists already, before any work is done for it."""
    existing = [str(path) for path in paths if path.exists()]
    if existing and not force:
        raise PrecauditError(f"{', '.join(existing)} already exists; pass --force to overwrite")


def written_file(path: Path, name: str = "report.json", hint: str = "") -> Path:
    """The file itself, or the one of that name in a folder that `profile` wrote."""
    if not path.is_dir():
        return path
    if not (path / name).is_file():
        raise PrecauditError(f"{path}: a folder without {name}{hint}")
    return path / name
