"""The `dfvm` command: finds the subcommand and runs it.

Each subcommand lives in a module of its own, imported only when it is used: the whole run of a
small program takes a tenth of a second, and an unused import is a good part of that.
"""

from __future__ import annotations

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


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status of the process."""
    args = sys.argv[1:] if argv is None else argv
    command = args[0] if args else ""
    if command == "run":
        from dfvm.tools.run import run_command

        return run_command(args[1:])
    if command == "trace":
        from dfvm.tools.trace import trace_command

        return trace_command(args[1:])
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        from importlib.metadata import version

        print(f"dfvm {version('dfvm')}")
        return 0
    said = f"no command {command!r}" if command else "a command is needed"
    print(f"dfvm: {said}; try dfvm --help", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
