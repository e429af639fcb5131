"""Scripts: files that begin with "#!".

    #! /path/to/interpreter one optional argument

The interpreter is executed with the argument, if there is one, the script's name as it was given
to execve, and the rest of the script's own arguments. The interpreter may itself be a script.

Source: DragonFly sys/kern/imgact_shell.c; limits and errors as Linux fs/binfmt_script.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import EACCES, err

if TYPE_CHECKING:
    from dfvm.kern.kern_exec import ImageParams

MAXSHELLCMDLEN: Final = 256  # how much of the first line is looked at
_BLANK: Final = b" \t"


def shell_parse(image: ImageParams, head: bytes) -> tuple[bytes, bytes | None]:
    """The interpreter and the argument of a script that begins with `head`.

    :raises OSError: ENOEXEC when there is no interpreter, or its name may be cut off; EACCES when
        the name is empty, which is the working directory.
    """
    head = head[:MAXSHELLCMDLEN].ljust(MAXSHELLCMDLEN, b"\0")
    line, newline, _ = head.partition(b"\n")
    if newline:
        words = line[2:].strip(_BLANK)
    else:
        # A longer line: all right as long as the interpreter's name has certainly ended. The last
        # byte is Linux's for the NUL behind it.
        words = line[2 : MAXSHELLCMDLEN - 1].lstrip(_BLANK)
        if not any(c in words for c in _BLANK + b"\0"):
            raise image.malformed("the interpreter's name is too long")
        words = words.rstrip(_BLANK)
    if not words:
        raise image.malformed("no interpreter after #!")
    words = words.partition(b"\0")[0]
    if not words:
        raise err(EACCES)
    for at, c in enumerate(words):
        if c in _BLANK:
            return words[:at], words[at:].lstrip(_BLANK)
    return words, None
