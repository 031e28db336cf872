"""`precaudit profile [options] SCRIPT [its arguments]`: audit, plan, verify, report."""

from __future__ import annotations

import argparse
from pathlib import Path

from precaudit.commands.options import add_fail_on, add_output_options, add_run_options, require_fork_server
from precaudit.errors import ExitCode, PrecauditError
from precaudit.profiling.settings import DEFAULT_SEEDS, DEFAULT_STEPS

EPILOG = """\
Exit codes: 0 a low-precision plan was verified (with --quick: screened, with
--no-verify: proposed, and not verified), 1 none was, or --fail-on matched,
2 wrong usage, 3 nothing to measure, 4 the script failed."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "profile",
        help="audit a training script, plan a precision per layer, prove the plan by training",
        usage="precaudit profile [options] SCRIPT [its arguments]\n"
        "       precaudit profile [options] -m MODULE [its arguments]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a script's own --seed is not --seeds
    )
    add_run_options(parser, "the training script or model file", "formats the plan may use, such as bf16,fp16,tf32,fp8")
    for option, default, what in (
        ("--steps", DEFAULT_STEPS, "optimizer steps of each run"),
        ("--seeds", DEFAULT_SEEDS, "seeds to train with at first, in float32 and with the plan"),
    ):
        parser.add_argument(option, type=int, default=default, metavar="N", help=f"{what} (default {default})")
    parser.add_argument("--target", metavar="GPU", help="the card to plan for (default: this machine's, else h100)")
    parser.add_argument("--quick", action="store_true", help="a single seed: the plan is screened, not verified")
    parser.add_argument("--no-verify", action="store_true", help="audit and plan only: nothing is verified")
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (default reports/<script stem>)")
    parser.add_argument("--price", type=float, metavar="USD_PER_HOUR", help="what an hour on the device costs")
    add_fail_on(parser, "profile", "PA101")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if not arguments.script and not arguments.module:
        raise PrecauditError("no script given; try: precaudit profile train.py", ExitCode.USAGE)
    require_fork_server()
    from precaudit.commands.profiling import run_profile

    return run_profile(arguments)
