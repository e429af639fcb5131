"""Options that `dfvm run` and its kin share, and how their values are read."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfvm.kern.machine import Machine


class UsageError(Exception):
    """Something the user gave can't be used; the message is the whole line."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, as everywhere in dfvm."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; try {self.prog} --help\n")


def host_memory() -> int:
    """Bytes of memory the host has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def parse_mem(text: str) -> int:
    """The value of --mem in bytes.

    :raises UsageError: when it is no size, too little to start, or more than the host has.
    """
    from dfvm.kern.machine import MEM_MIN, parse_size

    try:
        size = parse_size(text)
    except ValueError:
        raise UsageError(f"--mem: {text!r} is not a size (for example 64M or 1G)") from None
    if size < MEM_MIN:
        raise UsageError(f"--mem: {text} is too little; the least is {MEM_MIN >> 20}M")
    if size > host_memory():
        have = host_memory() >> 20
        raise UsageError(f"--mem: {text} is more than this host has ({have}M)")
    return size


def run_parser(prog: str, description: str) -> OneLineParser:
    """A parser with the options of `dfvm run`"""
    parser = OneLineParser(
        prog=prog, usage=f"{prog} [options] PROGRAM [ARG...]", description=description,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "--mem", metavar="SIZE", default="256M", help="RAM of the machine (default 256M)"
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
        help="set a variable of the program's environment; K= unsets nothing, it sets it empty",
    )  # fmt: skip
    parser.add_argument(
        "--stats", metavar="FILE", nargs="?", const="-",
        help="print statistics at the end, or write them with --stats=FILE (JSON for *.json)",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true", help="verify the whole machine along the way"
    )
    return parser


def parse_run(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Any:
    """Parse argv into the options, `program` and `args`. The first word that is neither an option
    nor its value is the program; what follows is its business alone."""
    own: list[str] = []
    words = iter(argv)
    program = None
    for word in words:
        if word == "--":
            program = next(words, None)
            break
        if not word.startswith("-"):
            program = word
            break
        # A file is only taken from "--stats=FILE": otherwise it would swallow the program's name.
        own.append("--stats=-" if word == "--stats" else word)
        if word in _takes_value(parser):
            own.extend(value for value in [next(words, None)] if value is not None)
    args = parser.parse_args(own)
    if program is None:
        parser.error("a program is needed")
    args.program, args.args = program, list(words)
    return args


def _takes_value(parser: argparse.ArgumentParser) -> set[str]:
    """The options that are followed by a word of their own."""
    return {
        name for a in parser._actions if a.nargs is None and a.const is None
        for name in a.option_strings
    }  # fmt: skip


def guest_environment(settings: list[str]) -> dict[str, str]:
    """The host's environment with the --env settings over it.

    :raises UsageError: for a setting without "=" or without a name.
    """
    env = dict(os.environ)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"--env: {setting!r} is not K=V")
        env[name] = value
    return env


def check_directories(args: Any) -> None:
    """--root and --rw must be directories.

    :raises UsageError: when one is not.
    """
    for option, path in [("--root", args.root), *(("--rw", path) for path in args.rw)]:
        if path is not None and not os.path.isdir(path):
            reason = "is not a directory" if os.path.exists(path) else "does not exist"
            raise UsageError(f"{option}: {path}: {reason}")


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
    except ValueError as e:
        raise UsageError(str(e)) from None
    except OSError as e:
        raise UsageError(f"--mem: {args.mem}: {e.strerror}") from None


def complain(prog: str, message: str) -> None:
    """One line on stderr."""
    print(f"{prog}: {message}", file=sys.stderr)
