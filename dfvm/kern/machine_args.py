"""What Machine's methods are given, checked before anything is done: an argument that makes no
sense is a TypeError or a ValueError of one line that begins with its name. The command line reads
sizes with the same functions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from math import ceil, inf, isnan
from operator import index
from typing import TYPE_CHECKING, Any, Final

from dfvm.kern.kern_sig import NSIG
from dfvm.lwkt.kern_clock import NEVER

if TYPE_CHECKING:
    from os import PathLike
    from typing import IO

PIPE: Final = -1  # collect the output
INHERIT: Final = None  # the host's own descriptor
STDOUT: Final = -2  # standard error goes where standard output goes

MEM_MIN: Final = 8 << 20
# The engine's physical addresses have 40 bits; a large page behind RAM is where it is tried out.
MEM_MAX: Final = (1 << 40) - (2 << 20)
NCPU_MAX: Final = 1024

SIZES: Final = "for example 64M, 64MiB or 1.5G"
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DIGITS_MAX: Final = 24


def parse_size(text: str | int) -> int:
    """Bytes from a number of bytes, or from a number with K, M, G or T behind it, which are powers
    of 1024: "64M", "64m" and "64MiB" are the same, "1.5G" is 1536M. "64MB" is none: some mean 1000
    by it, and some 1024.

    :raises ValueError: when it is neither.
    :raises TypeError: likewise.
    """
    if not isinstance(text, str):
        if isinstance(text, bool) or not hasattr(text, "__index__"):
            raise TypeError(f"a size is a number of bytes or a string like '64M', not {text!r}")
        return index(text)
    upper = text.upper() if text.isascii() else ""
    number = upper.removesuffix("IB")
    unit = _UNITS.get(number[-1:], 1)
    if unit > 1:
        number = number[:-1]
    whole, dot, fraction = number.partition(".")
    if (
        not whole.isdecimal()
        or (dot and (unit == 1 or not fraction.isdecimal()))
        or (unit == 1 and number != upper)
        or len(number) > _DIGITS_MAX
    ):
        raise ValueError(f"{text!r} is not a size ({SIZES})")
    parts: int = 10 ** len(fraction)
    return -(-int(whole + fraction) * unit // parts)  # rounded up


def mem_arg(mem: str | int) -> int:
    """The size of RAM in bytes."""
    try:
        size = parse_size(mem)
    except (TypeError, ValueError) as e:
        raise type(e)(f"mem: {e}") from None
    wrong = mem_wrong(size)
    if wrong:
        raise ValueError(f"mem: {mem} is {wrong}")
    return size


def mem_wrong(size: int) -> str:
    """Why no machine has `size` bytes of RAM; nothing when one has."""
    if size < MEM_MIN:
        return f"too little; the least is {MEM_MIN >> 20}M"
    if size > MEM_MAX:
        return f"too much; physical addresses have 40 bits, the most is {MEM_MAX >> 20}M"
    return ""


def ncpu_arg(ncpu: int) -> int:
    """A number of CPUs."""
    n = _int("ncpu", ncpu)
    if not 1 <= n <= NCPU_MAX:
        raise ValueError(f"ncpu: a machine has 1 to {NCPU_MAX} CPUs, not {n}")
    return n


def bool_arg(name: str, value: bool) -> bool:
    """True or False: "no" would be true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: True or False, not {value!r}")
    return value


def path_arg(name: str, path: str | bytes | PathLike[str]) -> bytes:
    """A file name."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"{name}: a path, not {path!r}")
    return _string(name, path)


def paths_arg(name: str, paths: Iterable[str | PathLike[str]]) -> list[bytes]:
    """Several."""
    return [path_arg(f"{name}[{n}]", path) for n, path in _items(name, "paths", paths)]


def argv_arg(argv: Iterable[str | bytes | PathLike[str]]) -> list[bytes]:
    """A program and its arguments."""
    args = []
    for n, arg in _items("argv", "words", argv):
        if not isinstance(arg, (str, bytes, os.PathLike)):
            raise TypeError(f"argv[{n}]: a string or a path, not {arg!r}")
        args.append(_string(f"argv[{n}]", arg))
    if not args:
        raise ValueError("argv: no program to run")
    return args


def env_arg(env: Mapping[str, str]) -> list[bytes]:
    """The strings of an environment."""
    if not isinstance(env, Mapping):
        raise TypeError(f"env: a mapping of names to values, not {env!r}")
    strings = []
    for name, value in env.items():
        if not isinstance(name, (str, bytes)) or not isinstance(value, (str, bytes, os.PathLike)):
            raise TypeError(f"env: names and values are strings, not {name!r}: {value!r}")
        pair = _string("env", name), _string("env", value)
        if not pair[0] or b"=" in pair[0]:
            raise ValueError(f"env: {name!r} can't be the name of a variable")
        strings.append(b"=".join(pair))
    return strings


def stream_arg(name: str, what: bytes | int | IO[Any] | None) -> bytes | int | None:
    """What was given for a standard stream: data, a descriptor, or PIPE, STDOUT or INHERIT."""
    if name == "stdin" and isinstance(what, (bytes, bytearray, memoryview)):
        return bytes(what)
    if what is None:
        return what
    if hasattr(what, "fileno"):
        try:
            return _int(name, what.fileno())
        except (OSError, ValueError) as e:
            raise ValueError(f"{name}: {what!r} has no descriptor: {e}") from None
    if isinstance(what, bool) or not hasattr(what, "__index__"):
        data = "bytes, " if name == "stdin" else ""
        raise TypeError(f"{name}: {data}a descriptor or a file, not {what!r}")
    fd = _int(name, what)
    special = {"stdin": (), "stdout": (PIPE,), "stderr": (PIPE, STDOUT)}[name]
    if not 0 <= fd < 1 << 31 and fd not in special:
        given = {PIPE: "PIPE", STDOUT: "STDOUT"}.get(fd, fd)
        raise ValueError(f"{name}: it can't be {given}")
    return fd


def timeout_arg(timeout: float | None) -> int | None:
    """Nanoseconds from seconds; None for ever."""
    if timeout is None:
        return None
    if isinstance(timeout, (str, bytes, bool)) or not hasattr(timeout, "__float__"):
        raise TypeError(f"timeout: a number of seconds or None, not {timeout!r}")
    try:
        seconds = float(timeout)
    except OverflowError:
        seconds = inf if timeout > 0 else 0
    if isnan(seconds):
        raise ValueError("timeout: nan is no number of seconds")
    return ceil(max(seconds, 0) * 1e9) if seconds < NEVER / 1e9 else None


def sig_arg(sig: int) -> int:
    """The number of a signal, or 0."""
    n = _int("sig", sig)
    if not 0 <= n <= NSIG:
        raise ValueError(f"sig: there is no signal {n}")
    return n


def _int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: a whole number, not {value!r}")
    return index(value)


def _items(name: str, what: str, values: Iterable[Any]) -> Iterable[tuple[int, Any]]:
    if isinstance(values, (str, bytes, os.PathLike, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: a list of {what}, not {values!r}")
    return enumerate(values)


def _string(name: str, text: str | bytes | PathLike[str]) -> bytes:
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"{name}: {text!r} has no form in bytes") from None
    if b"\0" in data:
        raise ValueError(f"{name}: a zero byte in {text!r}")
    return data
