"""The `dfvm` command: finds the subcommand and runs it.

Each subcommand lives in a module of its own, imported only when it is used: the whole run of a
small program takes a tenth of a second, and an unused import is a good part of that.
"""

from __future__ import annotations

import gc
import os
import sys
from errno import EBADF
from typing import TYPE_CHECKING, Final, NoReturn

import dfvm

if TYPE_CHECKING:
    from collections.abc import Iterable

USAGE: Final = """\
usage: dfvm COMMAND [options] ...

  run    run a program under the managed virtual memory
  trace  the same, showing every page fault

`dfvm COMMAND --help` tells the options of each, `dfvm --version` the version.
"""

COMMANDS: Final = ("run", "trace")

EXIT_USAGE: Final = 2  # wrong options, bad input; what was asked for can't be written
EXIT_PANIC: Final = 70  # a violated invariant
EXIT_SIGPIPE: Final = 141  # nobody reads what we write
# The program died of a ^C on our terminal: so do we, or a shell that runs us in a loop or a script
# would believe that the ^C had been dealt with, and go on. To it, the status is 130 all the same.
INTERRUPTED: Final = -2

# Container objects between two collections of the youngest, and how many of these to a collection
# of the next generation. The kernel makes structures by the thousand that live long (a page, a map
# entry) and hardly any cycles; Python's own 700 would have it look at all of them again and again.
GC_THRESHOLDS: Final = (50_000, 20, 20)


def main() -> NoReturn:
    """Run the command that the process was started with, and end with its exit status. What
    signals do until a program runs has been settled (dfvm/__main__.py)."""
    gc.set_threshold(*GC_THRESHOLDS)
    status = command(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # closed by whoever started us
                stream.flush()
        except OSError:
            pass  # whoever wrote it has noticed
    if status == INTERRUPTED:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    # Every file is closed; what Python has left to do is to free the objects of a machine one by
    # one, and that takes a sixth of the whole run of a small program.
    os._exit(status)


def command(args: list[str]) -> int:
    """Run one command; returns the exit status, or INTERRUPTED."""
    name = args[0] if args else ""
    if name == "help" and len(args) > 1:  # dfvm help run
        args = [args[1], "--help"]
        name = args[0]
    if name == "run":
        from dfvm.tools.run import run_command

        return run_command(args[1:])
    if name == "trace":
        from dfvm.tools.trace import trace_command

        return trace_command(args[1:])
    if name in ("-h", "--help", "help"):
        return show(USAGE)
    if name == "--version":
        from unicorn.unicorn_py3.unicorn import uc_version

        major, minor, rest = uc_version()  # the library's own word, not that of its Python part
        return show(f"dfvm {dfvm.__version__}, Unicorn {major}.{minor}.{rest >> 8 & 0xFF}\n")
    if name.startswith("-"):
        said = f"no option {shown(name)} before a command"
    elif name:
        meant = suggestion(name, COMMANDS) or f" (did you mean dfvm run {shown(name)}?)"
        said = f"no command {quoted(name)}{meant}"
    else:
        said = "a command is needed"
    complain("dfvm", f"{said}; try dfvm --help")
    return EXIT_USAGE


def show(text: str) -> int:
    """Print what was asked for; returns the exit status."""
    try:
        if sys.stdout is None:  # closed by whoever started us
            raise OSError(EBADF, os.strerror(EBADF))
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        return EXIT_SIGPIPE
    except OSError as e:
        complain("dfvm", f"standard output: {e.strerror}")
        return EXIT_USAGE
    return 0


def complain(prog: str, message: str) -> None:
    """One line on stderr."""
    say(f"{prog}: {message}\n")


def say(text: str) -> None:
    """Text on stderr, if anybody takes it there."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(text)
    except OSError:
        pass


def shown(text: str) -> str:
    """A file name, or what else somebody typed, for a message, which is one line and printable."""
    return text if text and text.isprintable() else quoted(text)


def quoted(text: str) -> str:
    """The same in quotes, with the bytes that are no text by their numbers."""
    return repr(os.fsencode(text))[1:] if not text.isprintable() else repr(text)


def suggestion(word: str, known: Iterable[str]) -> str:
    """ " (did you mean …?)" when `word` looks like one of the `known`, else nothing."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


if __name__ == "__main__":  # python -m dfvm.tools.main; python -m dfvm is the same
    from dfvm.__main__ import main as start

    start()
