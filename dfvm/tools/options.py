"""Options that `dfvm run` and its kin share, and how their values are read."""

from __future__ import annotations

import argparse
import os
from errno import EACCES, ENOMEM
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO

from dfvm.tools.main import EXIT_USAGE, complain, quoted, show, shown, suggestion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfvm.kern.machine import Machine


_EXIT_STATUS: Final = (
    "The exit status is the program's, 128 + n when signal n killed it; 127 or 126 when it is not "
    "there or can't be run, 2 for wrong options and files that can't be written, 70 for a bug of "
    "the kernel's."
)


class UsageError(Exception):
    """Something the user gave can't be used; the message is the whole line."""


class HelpFormatter(argparse.HelpFormatter):
    """Shows a value that has to be in one word with its option in one word with it."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return super()._format_action_invocation(action).replace(" [=", "[=")


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, as everywhere in dfvm."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        complain(self.prog, f"{message}; try {self.prog} --help")
        self.exit(EXIT_USAGE)

    def print_help(self, file: Any = None) -> None:
        status = show(self.format_help())
        if status:
            self.exit(status)

    def takes_value(self, word: str) -> bool:
        """Whether the word behind `word`, which is an option, is its value.

        :raises SystemExit: after a complaint, when there is no such option."""
        options = self._option_string_actions
        if word.startswith("--"):
            name, given, _ = word.partition("=")
            takes = self._option(name, options).nargs
            if given and takes == 0:
                self.error(f"{name} takes no value")
            return takes is None and not given
        # Letters, up to the first that takes a value: what follows it in the word is the value.
        for n, letter in enumerate(word[1:], 2):
            if self._option("-" + letter, options).nargs is None:
                return n == len(word)
        return False

    def _option(self, name: str, options: dict[str, argparse.Action]) -> argparse.Action:
        if name not in options:
            self.error(f"no option {shown(name)}{suggestion(name, options)}")
        return options[name]


def host_memory() -> int:
    """Bytes of memory the host has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def parse_mem(text: str) -> int:
    """The value of --mem in bytes.

    :raises UsageError: when it is no size, too little to start, or more than the host has.
    """
    from dfvm.kern.machine_args import SIZES, mem_wrong, parse_size

    try:
        size = parse_size(text)
    except ValueError:
        raise UsageError(f"--mem: {quoted(text)} is not a size ({SIZES})") from None
    wrong = mem_wrong(size)
    if wrong:
        raise UsageError(f"--mem: {text} is {wrong}")
    if size > host_memory():
        have = host_memory() >> 20
        raise UsageError(f"--mem: {text} is more than this host has ({have}M)")
    return size


def run_parser(prog: str, description: str) -> OneLineParser:
    """A parser with the options of `dfvm run`"""
    parser = OneLineParser(
        prog=prog, usage=f"{prog} [options] PROGRAM [ARG...]", description=description,
        epilog=_EXIT_STATUS, allow_abbrev=False, formatter_class=HelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--mem",
        metavar="SIZE",
        default="256M",
        help="RAM of the machine: at least 8M (default 256M); 64M, 64MiB and 1.5G are sizes",
    )
    parser.add_argument(
        "--root", metavar="DIR", help="directory the program sees as /; nothing outside is visible"
    )
    parser.add_argument(
        "--rw", metavar="DIR", action="append", default=[],
        help="write through to the host below DIR; elsewhere writes end with the machine",
    )  # fmt: skip
    parser.add_argument(
        "--env", metavar="K=V", action="append", default=[],
        help="set a variable of the program's environment, which else is dfvm's own",
    )  # fmt: skip
    parser.add_argument(
        "--stats", metavar="=FILE", nargs="?", const="-",
        help="print statistics at the end, or write them with --stats=FILE (JSON for *.json)",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true", help="verify the whole machine along the way and at the end"
    )
    return parser


def parse_run(parser: OneLineParser, argv: Sequence[str]) -> Any:
    """Parse argv into the options, `program` and `args`. The first word that is neither an option
    nor its value is the program; what follows is its business alone."""
    own: list[str] = []
    words = iter(argv)
    program = None
    for word in words:
        if word == "--":
            program = next(words, None)
            break
        if not word.startswith("-") or word == "-":
            program = word
            break
        if parser.takes_value(word):
            value = next(words, None)
            if value is None:
                parser.error(f"{word} needs a value")
            # In one word, for it may begin with "-"; behind a "=", for it may be empty.
            if not word.startswith("--") and len(word) > 2:
                own.append(word[:-1])
                word = f"-{word[-1]}"
            word += f"={value}"
        own.append(word)
    args = parser.parse_args(own)
    if program is None:
        parser.error("a program is needed")
    args.program, args.args = program, list(words)
    return args


def guest_environment(settings: list[str]) -> dict[str, str]:
    """The host's environment with the --env settings over it.

    :raises UsageError: for a setting without "=" or without a name.
    """
    env = dict(os.environ)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"--env: {quoted(setting)} is not K=V")
        env[name] = value
    return env


def check_directories(args: Any) -> None:
    """--root and --rw must be directories, and what is in the root can be found.

    :raises UsageError: when it is not so.
    """
    for option, path in [("--root", args.root), *(("--rw", path) for path in args.rw)]:
        if path is not None and not os.path.isdir(path):
            reason = "is not a directory" if os.path.exists(path) else "does not exist"
            raise UsageError(f"{option}: {shown(path)}: {reason}")
    if args.root is not None and not os.access(args.root, os.X_OK):
        raise UsageError(f"--root: {shown(args.root)}: {os.strerror(EACCES)}")


def make_machine(args: Any) -> Machine:
    """The machine that the options describe.

    :raises UsageError: when it can't be made.
    """
    mem = parse_mem(args.mem)
    check_directories(args)
    env = guest_environment(args.env)
    from dfvm.kern.machine import Machine

    try:
        return Machine(mem=mem, root=args.root, rw=args.rw, env=env, check=args.check)
    except OSError as e:
        if e.filename is not None:
            raise UsageError(f"{shown(os.fsdecode(e.filename))}: {e.strerror}") from None
        what = f"--mem: {args.mem}" if e.errno == ENOMEM else "no machine"
        raise UsageError(f"{what}: {e.strerror}") from None
    except ValueError as e:
        raise UsageError(f"--{e}") from None


def open_output(what: str, path: str) -> TextIO:
    """A file to write to, a whole line at a time: who looks meanwhile finds no half one.

    :raises UsageError: when it can't be written to.
    """
    from dfvm.kern.host_file import reserve_stdio

    reserve_stdio()
    try:
        return open(path, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    except OSError as e:
        raise UsageError(f"{what}: {shown(path)}: {e.strerror}") from None
