"""`dfvm run`: run a program, and be as invisible as `env` while doing so.

The program's standard streams are the host's, its exit status is ours, and one killed by signal n
exits 128 + n. What dfvm itself has to say goes to stderr.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from dfvm.lwkt.lwkt_thread import Deadlock
from dfvm.lwkt.panic import Panic
from dfvm.tools.main import EXIT_PANIC, EXIT_USAGE
from dfvm.tools.options import UsageError, complain, make_machine, parse_run, run_parser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dfvm.kern.machine import Machine

EXIT_CANNOT_RUN = 126  # as a shell: found, but it can't be run
EXIT_NOT_FOUND = 127
EXIT_INTERRUPTED = 130

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
                return run_program(prog, args, machine)
            except Deadlock as e:
                complain(prog, f"deadlock: nothing can run, and nothing can change that\n{e}")
                return EXIT_PANIC
            except Panic as e:
                complain(prog, f"panic: {e}\n{machine.kernel.sched.deadlock_report()}")
                return EXIT_PANIC
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as e:
        # A bug of the kernel's. Whoever runs a program is told where; who hunts it runs the same
        # under `python -X dev`, which shows the whole way there.
        if sys.flags.dev_mode:
            raise
        complain(prog, f"panic: {type(e).__name__} in {_where(e)}: {e}")
        return EXIT_PANIC


def run_program(prog: str, args: Any, machine: Machine) -> int:
    """Spawn and run the program; returns its exit status."""
    try:
        process = machine.spawn([args.program, *args.args])
    except OSError as e:
        complain(prog, f"{args.program}: {e.strerror}")
        return EXIT_NOT_FOUND if e.errno in (ENOENT, ENOTDIR) else EXIT_CANNOT_RUN
    machine.run(until=process)
    if args.stats:
        from dfvm.tools.stats import write_stats

        try:
            write_stats(machine, args.stats)
        except OSError as e:
            complain(prog, f"--stats: {args.stats}: {e.strerror}")
            return EXIT_USAGE
    status = process.exit_status
    assert status is not None, "the machine has stopped, so its program has ended"
    return status


def _where(e: BaseException) -> str:
    """Module and line in which an exception was raised."""
    tb = e.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    if tb is None:
        return "?"
    return f"{tb.tb_frame.f_globals.get('__name__', '?')}:{tb.tb_lineno}"
