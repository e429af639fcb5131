"""`dfvm trace`: run a program and show every page fault."""

from __future__ import annotations

import sys
from errno import EPIPE
from typing import TYPE_CHECKING, Final

from dfvm.tools.main import EXIT_SIGPIPE, EXIT_USAGE, complain, say, shown
from dfvm.tools.options import UsageError, open_output, parse_run, run_parser
from dfvm.tools.run import run_machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfvm.kern.machine import Machine
    from dfvm.trace.fault_trace import FaultTrace


_DESCRIPTION: Final = (
    "Run PROGRAM and show each page fault, then a summary: process, RIP, address, read, written or "
    "executed by user or kernel, how it was resolved and how many neighbours were mapped along, "
    "frame and PTE, minor or major, microseconds, and the map entry."
)


def trace_command(argv: Sequence[str]) -> int:
    """`dfvm trace [options] PROGRAM [ARG...]`. The trace goes to stderr, or to -o FILE."""
    parser = run_parser("dfvm trace", _DESCRIPTION)
    parser.add_argument("-o", dest="output", metavar="FILE", help="write the trace there")
    parser.add_argument(
        "--format",
        metavar="FORM",
        choices=("text", "jsonl"),
        default="text",
        help="text (default), or jsonl: a JSON object for each fault",
    )
    parser.add_argument(
        "-v", dest="verbose", action="store_true", help="show the faulting instruction too"
    )
    parser.add_argument(
        "--walk", action="store_true", help="show the page-table walk after each fault"
    )
    args = parse_run(parser, argv)
    out = sys.stderr
    if args.output is not None:
        try:
            out = open_output("-o", args.output)
        except UsageError as e:
            complain("dfvm trace", str(e))
            return EXIT_USAGE
    traces: list[FaultTrace] = []

    def prepare(machine: Machine) -> None:
        from dfvm.trace.fault_trace import FaultTrace

        trace = FaultTrace(machine, out, args.format, args.verbose, args.walk)
        trace.start()
        traces.append(trace)

    status = run_machine("dfvm trace", args, prepare)
    for trace in traces:
        trace.stop()
        if trace.error is not None:
            if trace.error.errno == EPIPE:
                return EXIT_SIGPIPE
            where = "standard error" if args.output is None else shown(args.output)
            complain("dfvm trace", f"{where}: {trace.error.strerror}")
            status = EXIT_USAGE
        say(trace.summary())
    return status
