"""The `dfvm` command: finds the subcommand and runs it.

Each subcommand lives in a module of its own, imported only when it is used: the whole run of a
small program takes a tenth of a second, and an unused import is a good part of that.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Final

USAGE: Final = """\
usage: dfvm COMMAND [options] ...

  run    run a program under the managed virtual memory
  trace  the same, showing every page fault

`dfvm COMMAND --help` tells the options of each.
"""

EXIT_USAGE: Final = 2  # wrong options, bad input
EXIT_PANIC: Final = 70  # a violated invariant

# Container objects between two collections of the youngest, and how many of these to a collection
# of the next generation. The kernel makes structures by the thousand that live long (a page, a map
# entry) and hardly any cycles; Python's own 700 would have it look at all of them again and again.
GC_THRESHOLDS: Final = (50_000, 20, 20)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status of the process. Without `argv` the process is ours:
    its arguments are taken, and if all went well it ends here."""
    if argv is not None:
        return command(argv)
    gc.set_threshold(*GC_THRESHOLDS)
    status = command(sys.argv[1:])
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed by whoever started us
                stream.flush()
    except OSError:
        return status  # Python's own exit reports it
    # Every file is closed; what Python has left to do is to free the objects of a machine one by
    # one, and that takes a sixth of the whole run of a small program.
    os._exit(status)


def command(args: list[str]) -> int:
    """Run one command; returns the exit status."""
    name = args[0] if args else ""
    if name == "run":
        from dfvm.tools.run import run_command

        return run_command(args[1:])
    if name == "trace":
        from dfvm.tools.trace import trace_command

        return trace_command(args[1:])
    if name in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if name == "--version":
        from importlib.metadata import version

        print(f"dfvm {version('dfvm')}")
        return 0
    said = f"no command {name!r}" if name else "a command is needed"
    print(f"dfvm: {said}; try dfvm --help", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
