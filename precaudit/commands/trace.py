"""`precaudit trace`: Tensor Core usage from a torch.profiler trace, without a GPU and without torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from precaudit.commands.options import add_output_options, deliver, refuse_outputs

FORMATS = ("terminal", "markdown", "html", "json")


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "trace",
        help="Tensor Core usage from a torch.profiler trace",
        description="Classify every GPU kernel of a torch.profiler trace (.json or .json.gz) by its use of Tensor "
        "Cores, natively or by a legacy path, and give its time to layers. Needs no GPU.",
        epilog="Exit codes: 0 done, 2 the file can't be read as a trace, 3 it has no GPU kernels.",
    )
    parser.add_argument("trace", type=Path, metavar="TRACE", help="a file that prof.export_chrome_trace() wrote")
    parser.add_argument("--target", metavar="GPU", help="the GPU it was taken on, where the trace does not say")
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="what to print")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from precaudit.hardware.peaks import get_gpu
    from precaudit.tensorcores.traces.analysis import analyse
    from precaudit.tensorcores.traces.rendering import RENDERERS
    from precaudit.tensorcores.traces.trace import read_trace

    refuse_outputs(arguments, FORMATS)
    if arguments.target:
        get_gpu(arguments.target)
    analysis = analyse(read_trace(arguments.trace), arguments.target)
    return deliver(arguments, FORMATS, lambda each: RENDERERS[each](analysis))
