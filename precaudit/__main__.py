"""`python -m precaudit` and the `precaudit` command."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from precaudit import __version__
from precaudit.commands import VERBS
from precaudit.commands.streams import robust_streams
from precaudit.errors import ExitCode, PrecauditError, cannot_import


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="precaudit",
        description="Audit a PyTorch training script's numerics, plan a precision per layer, and prove the plan.",
        epilog="Exit codes: 0 verified or clean, 1 not verified or finding, 2 wrong usage, "
        "3 nothing to measure, 4 the script failed. `profile --quick` and `--no-verify` "
        "end with 0 for a plan that is screened or proposed, and not verified.",
    )
    parser.add_argument("--version", action="version", version=f"precaudit {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    for command in verbs.choices.values():
        command.set_defaults(help_text=command.format_help)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Expected failures become one line on stderr, never a traceback."""
    with robust_streams():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments, unknown = build_parser().parse_known_args(argv)
        if unknown:
            raise _not_taken(arguments, unknown[0])
        return int(arguments.run(arguments))
    except PrecauditError as error:
        print(f"precaudit: {error}", file=sys.stderr)
        return int(error.exit_code)
    except ImportError as error:
        print(f"precaudit: {cannot_import(error)}", file=sys.stderr)
        return int(ExitCode.USAGE)
    except OSError as error:
        print(f"precaudit: {_unusable(error)}", file=sys.stderr)
        return int(ExitCode.USAGE)
    except KeyboardInterrupt:
        print("precaudit: interrupted", file=sys.stderr)
        return 130


def _not_taken(arguments: argparse.Namespace, argument: str) -> PrecauditError:
    """Of what the command doesn't know, most often an option of the script's own, given before the script."""
    command, name = f"precaudit {arguments.verb}", argument.partition("=")[0]
    hint = f"see {command} --help"
    if "script" in arguments:
        hint += f"; the script's own options come after it: {command} [options] SCRIPT {name}"
    alike = get_close_matches(name, re.findall(r"--[a-z-]+", arguments.help_text()), 1, cutoff=0.75)
    meant = f" (did you mean {alike[0]}?)" if alike else ""
    return PrecauditError(f"{arguments.verb} takes no {name}{meant}: {hint}")


def _unusable(error: OSError) -> str:
    """Of a path that can't even be looked at; only the current folder is looked up without a name."""
    unnamed = "the current folder" if isinstance(error, FileNotFoundError) else "the operating system"
    return f"{error.filename or unnamed}: {error.strerror or error}; check that place, or choose another one"


if __name__ == "__main__":
    sys.exit(main())
