"""`dfvm run`: run a program, and be as invisible as `env` while doing so.

The program's standard streams are the host's, its exit status is ours, and one killed by signal n
exits 128 + n. What dfvm itself has to say goes to stderr.
"""

from __future__ import annotations

import os
import sys
from errno import EACCES, EISDIR, ENOENT, ENOTDIR
from typing import TYPE_CHECKING, Any, TextIO

from dfvm.lwkt.lwkt_thread import Deadlock
from dfvm.lwkt.panic import Panic
from dfvm.tools.main import EXIT_PANIC, EXIT_USAGE, INTERRUPTED, complain, say, shown
from dfvm.tools.options import (
    UsageError,
    make_machine,
    open_output,
    parse_run,
    run_parser,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dfvm.kern.machine import Machine

EXIT_CANNOT_RUN = 126  # as a shell: found, but it can't be run
EXIT_NOT_FOUND = 127
EXIT_INTERRUPTED = 130

SIGINT = 2


def run_command(argv: Sequence[str]) -> int:
    """`dfvm run [options] PROGRAM [ARG...]`."""
    parser = run_parser("dfvm run", "Run PROGRAM under DragonFly's virtual memory system.")
    return run_machine("dfvm run", parse_run(parser, argv), lambda machine: None)


def run_machine(prog: str, args: Any, prepare: Callable[[Machine], None]) -> int:
    """Make the machine that `args` describe, run its program to the end, and print what was asked
    for. `prepare` is called before the first instruction; returns the exit status, or INTERRUPTED.
    """
    try:
        to_file = args.stats not in (None, "-")
        stats = open_output("--stats", args.stats) if to_file else None
        machine = make_machine(args)
    except UsageError as e:
        complain(prog, str(e))
        return EXIT_USAGE
    try:
        with machine:
            prepare(machine)
            try:
                status = run_program(prog, args, machine)
                if args.stats is not None:
                    status = write_stats(prog, args, machine, stats) or status
                return status
            except Deadlock as e:
                complain(prog, f"deadlock: nothing can run, and nothing can change that\n{e}")
                return EXIT_PANIC
            except Panic as e:
                complain(prog, f"panic: {e}\n{machine.kernel.sched.deadlock_report()}")
                return EXIT_PANIC
    except KeyboardInterrupt:  # of prepare's (interrupt_run), which knows why; none is the user's
        return EXIT_INTERRUPTED
    except Exception as e:
        # A bug of the kernel's. Whoever runs a program is told where; who hunts it runs the same
        # under `python -X dev`, which shows the whole way there.
        if sys.flags.dev_mode:
            raise
        complain(prog, f"panic: {type(e).__name__} in {_where(e)}: {e}")
        return EXIT_PANIC


def run_program(prog: str, args: Any, machine: Machine) -> int:
    """Spawn and run the program; returns its exit status, or INTERRUPTED."""
    try:
        process = machine.spawn([args.program, *args.args])
    except OSError as e:
        complain(prog, f"{shown(args.program)}: {_reason(args, e)}")
        return EXIT_NOT_FOUND if e.errno in (ENOENT, ENOTDIR) else EXIT_CANNOT_RUN
    machine.run_last(process)
    if process.proc.p_xstat & 0x7F == SIGINT and machine.kernel.files.host_ttys:
        return INTERRUPTED
    status = process.exit_status
    assert status is not None, "the machine has stopped, so its program has ended"
    return status


def _reason(args: Any, e: OSError) -> str:
    """Why the program can't be run, and what was meant if that is plain."""
    there = args.root is None and os.path.exists(args.program)
    if e.errno == ENOENT and args.stats == "-":
        return f"{e.strerror} (or --stats=FILE?)"  # which takes its file as no other option does
    if e.errno == ENOENT and "/" not in args.program and there:
        return f"{e.strerror} in PATH (did you mean ./{shown(args.program)}?)"
    if e.errno == EACCES and there and os.path.isdir(args.program):
        return os.strerror(EISDIR)
    return e.strerror or str(e)


def write_stats(prog: str, args: Any, machine: Machine, file: TextIO | None) -> int:
    """Print the statistics, or write them to the file: JSON when its name ends in .json, the same
    table otherwise. Returns EXIT_USAGE when that fails, else 0."""
    from dfvm.tools.stats import as_json, as_table, gather

    figures = gather(machine)
    if file is None:
        say(as_table(figures))
        return 0
    try:
        with file:
            file.write(as_json(figures) if args.stats.endswith(".json") else as_table(figures))
    except OSError as e:
        complain(prog, f"--stats: {shown(args.stats)}: {e.strerror}")
        return EXIT_USAGE
    return 0


def _where(e: BaseException) -> str:
    """Module and line in which an exception was raised."""
    tb = e.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    if tb is None:
        return "?"
    return f"{tb.tb_frame.f_globals.get('__name__', '?')}:{tb.tb_lineno}"
