"""`dfvm run`: run a program, and be as invisible as `env` while doing so.

The program's standard streams are the host's, its exit status is ours, and one killed by signal n
exits 128 + n. What dfvm itself has to say goes to stderr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfvm.lwkt.panic import Panic
from dfvm.tools.main import EXIT_PANIC, EXIT_USAGE
from dfvm.tools.options import UsageError, complain, make_machine, parse_run, run_parser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dfvm.kern.machine import Machine

    from dfvm.kern.proc import Proc

EXIT_CANNOT_RUN = 126  # as a shell: found, but it can't be run
EXIT_NOT_FOUND = 127

ENOENT = 2
ENOTDIR = 20


def run_command(argv: Sequence[str]) -> int:
    """`dfvm run [options] PROGRAM [ARG...]`."""
    parser = run_parser("dfvm run", "Run PROGRAM under DragonFly's virtual memory system.")
    return run_machine("dfvm run", parse_run(parser, argv), lambda machine: None)


def run_machine(prog: str, args: Any, prepare: Callable[[Machine], None]) -> int:
    """Make the machine that `args` describe, run its program to the end, and print what was asked
    for. `prepare` is called before the first instruction; returns the exit status."""
    try:
        machine = make_machine(args)
    except UsageError as e:
        complain(prog, str(e))
        return EXIT_USAGE
    try:
        with machine:
            prepare(machine)
            try:
                process = machine.spawn([args.program, *args.args])
            except OSError as e:
                complain(prog, f"{args.program}: {e.strerror}")
                return EXIT_NOT_FOUND if e.errno in (ENOENT, ENOTDIR) else EXIT_CANNOT_RUN
            machine.run()
            return finish(prog, args, machine, process)
    except Panic as e:
        complain(prog, f"panic: {e}")
        return EXIT_PANIC


def finish(prog: str, args: Any, machine: Machine, process: Proc) -> int:
    """The end of a run: the statistics that were asked for."""
    status: int = process.exit_status
    if args.stats:
        from dfvm.tools.stats import write_stats

        try:
            write_stats(machine, args.stats)
        except OSError as e:
            complain(prog, f"--stats: {args.stats}: {e.strerror}")
            return EXIT_USAGE
    return status
