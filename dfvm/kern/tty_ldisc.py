"""The terminal line discipline: what lies between the keys that are typed and what a program reads,
and between what it prints and what is shown.

    data in  → ISTRIP, CR/NL, ^S ^Q, signals, line editing and echo → lines or bytes to read
    data out → tabs, CR/NL, columns → bytes to show

Pure state: no sleeping, no processes. Its owner (tty_pty.py) hands it the bytes, sends the signals
it asks for, and wakes whoever waits.

Source: behaviour of Linux drivers/tty/n_tty.c.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_sig import SIGINT, SIGQUIT, SIGTSTP

if TYPE_CHECKING:
    from collections.abc import Callable

# c_iflag
ISTRIP: Final = 0o40
INLCR: Final = 0o100
IGNCR: Final = 0o200
ICRNL: Final = 0o400
IUCLC: Final = 0o1000
IXON: Final = 0o2000
IXANY: Final = 0o4000
IMAXBEL: Final = 0o20000
IUTF8: Final = 0o40000
# c_oflag
OPOST: Final = 0o1
OLCUC: Final = 0o2
ONLCR: Final = 0o4
OCRNL: Final = 0o10
ONOCR: Final = 0o20
ONLRET: Final = 0o40
XTABS: Final = 0o14000
# c_lflag
ISIG: Final = 0o1
ICANON: Final = 0o2
ECHO: Final = 0o10
ECHOE: Final = 0o20
ECHOK: Final = 0o40
ECHONL: Final = 0o100
NOFLSH: Final = 0o200
TOSTOP: Final = 0o400
ECHOCTL: Final = 0o1000
ECHOKE: Final = 0o4000
IEXTEN: Final = 0o100000
# c_cc
VINTR: Final = 0
VQUIT: Final = 1
VERASE: Final = 2
VKILL: Final = 3
VEOF: Final = 4
VTIME: Final = 5
VMIN: Final = 6
VSTART: Final = 8
VSTOP: Final = 9
VSUSP: Final = 10
VEOL: Final = 11
VREPRINT: Final = 12
VWERASE: Final = 14
VLNEXT: Final = 15
VEOL2: Final = 16

_TERMIOS: Final = Struct("<IIIIB19s")
_SPEEDS: Final = Struct("<II")
_CC_INIT: Final = b"\003\034\177\025\004\0\001\0\021\023\032\0\022\017\027\026\0\0\0"

INPUT_MAX: Final = 4096  # bytes of input kept; of a line one less
_BELL: Final = 7
_BS: Final = 8
_TAB: Final = 9
_NL: Final = 10
_CR: Final = 13
_DEL: Final = 127


class Termios:
    """struct termios, and termios2 with the speeds."""

    __slots__ = ("cc", "cflag", "iflag", "ispeed", "lflag", "line", "oflag", "ospeed")

    iflag: int
    oflag: int
    cflag: int
    lflag: int
    line: int  # the discipline; kept and told, there is one
    cc: bytes  # 19 control characters; 0 switches one off
    ispeed: int  # baud
    ospeed: int

    def __init__(self) -> None:
        self.iflag = ICRNL | IXON
        self.oflag = OPOST | ONLCR
        self.cflag = 0o277  # 38400 baud, 8 bits, receiver on
        self.lflag = ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN
        self.line = 0
        self.cc = _CC_INIT
        self.ispeed = self.ospeed = 38400

    def pack(self, speeds: bool) -> bytes:
        """As the user sees it; with `speeds` it is a termios2."""
        words = (self.iflag, self.oflag, self.cflag, self.lflag)
        packed = _TERMIOS.pack(*words, self.line, self.cc)
        return packed + _SPEEDS.pack(self.ispeed, self.ospeed) if speeds else packed

    def unpack(self, data: bytes) -> None:
        """Take over the user's, 36 or 44 bytes."""
        (self.iflag, self.oflag, self.cflag, self.lflag, self.line,
         self.cc) = _TERMIOS.unpack_from(data)  # fmt: skip
        if len(data) > _TERMIOS.size:
            self.ispeed, self.ospeed = _SPEEDS.unpack_from(data, _TERMIOS.size)


class LineDiscipline:
    """One terminal's."""

    __slots__ = ("column", "echoed", "edit", "flushed", "line_column", "lines", "literal", "raw",
                 "signal", "stopped", "termios")  # fmt: skip

    termios: Termios  # change it with set_termios only
    lines: deque[bytes]  # canonical: complete lines; b"" is an end of file
    edit: bytearray  # canonical: the line being typed; at most INPUT_MAX - 1 bytes
    raw: bytearray  # not canonical: what was typed; at most INPUT_MAX bytes
    literal: bool  # the next character has no meaning (^V)
    stopped: bool  # ^S: output waits
    column: int  # where the cursor is
    line_column: int  # where it was when the line being typed began
    echoed: bytearray  # to be shown, before anything else
    flushed: bool  # a key discarded the output under way too; the owner clears it
    signal: Callable[[int], None]  # send a signal to the foreground group

    def __init__(self, signal: Callable[[int], None]) -> None:
        self.termios = Termios()
        self.lines = deque()
        self.edit = bytearray()
        self.raw = bytearray()
        self.literal = False
        self.stopped = False
        self.column = self.line_column = 0
        self.echoed = bytearray()
        self.flushed = False
        self.signal = signal

    # -- the program's side ---------------------------------------------------------------------

    def set_termios(self, data: bytes) -> None:
        """Change the settings. What was typed can still be read after a change of mode."""
        t = self.termios
        before = t.lflag
        t.unpack(data)
        if before & ICANON and not t.lflag & ICANON:
            self.raw += b"".join(self.lines) + self.edit
            self.lines.clear()
            self.edit.clear()
        elif not before & ICANON and t.lflag & ICANON and self.raw:
            self.lines.append(bytes(self.raw))
            self.raw.clear()
        if not t.iflag & IXON:
            self.stopped = False

    def readable(self) -> int:
        """Bytes a read could get now (canonical: of the first line, an end of file counts 1)."""
        if self.termios.lflag & ICANON:
            return max(len(self.lines[0]), 1) if self.lines else 0
        return len(self.raw)

    def pending(self) -> int:
        """Bytes waiting to be read: FIONREAD."""
        return sum(map(len, self.lines)) + len(self.raw)

    def take(self, n: int) -> bytes:
        """Up to `n` bytes of what is readable; b"" is an end of file."""
        if self.termios.lflag & ICANON:
            line = self.lines.popleft()
            if len(line) > n:
                self.lines.appendleft(line[n:])
            return line[:n]
        data = bytes(self.raw[:n])
        del self.raw[:n]
        return data

    def flush_input(self) -> None:
        """Forget what was typed and not read."""
        self.lines.clear()
        self.edit.clear()
        self.raw.clear()

    def room(self) -> int:
        """How much input is accepted. A line that is not complete has always room, or it could
        never be finished: what is too much of it is dropped."""
        if self.termios.lflag & ICANON:
            return INPUT_MAX if not self.lines else max(INPUT_MAX - self.pending(), 0)
        return INPUT_MAX - len(self.raw)

    def output(self, data: bytes) -> bytes:
        """What is shown when a program prints `data`."""
        t = self.termios
        if not t.oflag & OPOST:
            return data
        out = bytearray()
        for c in data:
            self._post(c, out)
        return bytes(out)

    def _post(self, c: int, out: bytearray) -> None:
        oflag = self.termios.oflag
        if c == _NL:
            if oflag & ONLRET:
                self.column = 0
            if oflag & ONLCR:
                self.column = 0
                out.append(_CR)
        elif c == _CR:
            if oflag & ONOCR and self.column == 0:
                return
            if oflag & OCRNL:
                c = _NL
                if oflag & ONLRET:
                    self.column = 0
            else:
                self.column = 0
        elif c == _TAB:
            spaces = 8 - self.column % 8
            self.column += spaces
            if oflag & XTABS == XTABS:
                out += b" " * spaces
                return
        elif c == _BS:
            self.column = max(self.column - 1, 0)
        elif c >= 32 and c != _DEL:
            if oflag & OLCUC and 97 <= c <= 122:
                c -= 32
            if not (self.termios.iflag & IUTF8 and c & 0xC0 == 0x80):
                self.column += 1
        out.append(c)

    # -- the keyboard's side --------------------------------------------------------------------

    def input(self, data: bytes) -> None:
        """Something was typed. What it echoes is put in `echoed`."""
        t = self.termios
        if not t.lflag & (ICANON | ISIG | ECHO | IEXTEN) and not t.iflag & ~(IUTF8 | IMAXBEL):
            self.raw += data[: INPUT_MAX - len(self.raw)]
            return
        for c in data:
            self._typed(c)

    def _typed(self, c: int) -> None:
        t = self.termios
        iflag, lflag, cc = t.iflag, t.lflag, t.cc
        if self.literal:
            self.literal = False
            self._add(c, True)
            return
        if iflag & ISTRIP:
            c &= 0x7F
        if iflag & IUCLC and lflag & IEXTEN and 65 <= c <= 90:
            c += 32
        if self.stopped and iflag & IXON and iflag & IXANY and c not in (cc[VSTART], cc[VSTOP]):
            self.stopped = False
        if c:
            if iflag & IXON and c in (cc[VSTART], cc[VSTOP]):
                self.stopped = c == cc[VSTOP]
                return
            if lflag & ISIG and c in (cc[VINTR], cc[VQUIT], cc[VSUSP]):
                self._signal(c)
                return
        if c == _CR:
            if iflag & IGNCR:
                return
            if iflag & ICRNL:
                c = _NL
        elif c == _NL and iflag & INLCR:
            c = _CR
        if lflag & ICANON and self._edit(c):
            return
        self._add(c, False)

    def _signal(self, c: int) -> None:
        t = self.termios
        if not t.lflag & NOFLSH:
            self.flush_input()
            self.echoed.clear()
            self.flushed = True
        self._echo(c, True)
        if c == t.cc[VINTR]:
            self.signal(SIGINT)
        elif c == t.cc[VQUIT]:
            self.signal(SIGQUIT)
        else:
            self.signal(SIGTSTP)

    def _edit(self, c: int) -> bool:
        """Canonical mode's own characters: True if `c` was one."""
        lflag, cc = self.termios.lflag, self.termios.cc
        if c == _NL:
            if lflag & (ECHO | ECHONL):
                self.echoed += self.output(b"\n")
            self._end_line(c)
        elif not c:
            return False
        elif c == cc[VERASE]:
            self._erase()
        elif c == cc[VWERASE] and lflag & IEXTEN:
            self._erase_word()
        elif c == cc[VKILL]:
            self._kill()
        elif c == cc[VLNEXT] and lflag & IEXTEN:
            self.literal = True
            if lflag & ECHO and lflag & ECHOCTL:
                self.echoed += b"^\b"
        elif c == cc[VREPRINT] and lflag & ECHO and lflag & IEXTEN:
            line = bytes(self.edit)
            self._echo(c, True)
            self._post(_NL, self.echoed)
            for k in line:
                self._echo(k, False)
        elif c == cc[VEOF]:
            self.lines.append(bytes(self.edit))
            self.edit.clear()
        elif c in (cc[VEOL], cc[VEOL2]):
            self._echo(c, False)
            self._end_line(c)
        else:
            return False
        return True

    def _end_line(self, c: int) -> None:
        self.edit.append(c)
        self.lines.append(bytes(self.edit))
        self.edit.clear()

    def _add(self, c: int, literal: bool) -> None:
        """An ordinary character."""
        if self.termios.lflag & ICANON:
            if len(self.edit) >= INPUT_MAX - 1:
                if self.termios.iflag & IMAXBEL:
                    self.echoed.append(_BELL)
                return
            if not self.edit:
                self.line_column = self.column
            self.edit.append(c)
        elif len(self.raw) < INPUT_MAX:
            self.raw.append(c)
        else:
            return
        self._echo(c, literal)

    def _echo(self, c: int, control: bool) -> None:
        """Show `c`; a control character as ^C unless it moves the cursor and means to."""
        lflag = self.termios.lflag
        if not lflag & ECHO:
            return
        if lflag & ECHOCTL and (c < 32 or c == _DEL) and (control or c not in (_TAB, _NL)):
            self.echoed += bytes((0x5E, c ^ 0x40))
            self.column += 2
        elif self.termios.oflag & OPOST:
            self._post(c, self.echoed)
        else:
            self.echoed.append(c)

    def _width(self, c: int) -> int:
        if c < 32 or c == _DEL:
            return 2 if self.termios.lflag & ECHOCTL else 0
        return 1

    def _last(self) -> int:
        """Length of the last character of the line in bytes."""
        n = 1
        if self.termios.iflag & IUTF8:
            while n < len(self.edit) and self.edit[-n] & 0xC0 == 0x80:
                n += 1
        return n

    def _erase(self) -> None:
        """Take back the last character, on the screen too."""
        edit = self.edit
        if not edit:
            return
        n = self._last()
        c = edit[-n]
        del edit[-n:]
        lflag = self.termios.lflag
        if not lflag & ECHO:
            return
        if not lflag & ECHOE:
            self._echo(self.termios.cc[VERASE], True)
        elif c == _TAB:
            self._back(self.column - self._column())
        else:
            self._rub(self._width(c))

    def _column(self) -> int:
        """Where the cursor belongs after the line that is left."""
        column = self.line_column
        for c in self.edit:
            if c == _TAB:
                column += 8 - column % 8
            elif not (self.termios.iflag & IUTF8 and c & 0xC0 == 0x80):
                column += self._width(c)
        return column

    def _back(self, n: int) -> None:
        self.echoed += b"\b" * max(n, 0)
        self.column -= max(n, 0)

    def _rub(self, n: int) -> None:
        self.echoed += b"\b \b" * n
        self.column = max(self.column - n, 0)

    def _erase_word(self) -> None:
        """Blanks, then a word of letters, digits and underlines (or one other run of them)."""
        edit = self.edit
        seen = False
        while edit:
            c = edit[-1]
            word = chr(c).isalnum() or c == 0x5F or c >= 0x80
            if word:
                seen = True
            elif seen:
                return
            self._erase()

    def _kill(self) -> None:
        """Take back the line."""
        lflag = self.termios.lflag
        if lflag & ECHO and lflag & ECHOK and lflag & ECHOKE and lflag & ECHOE:
            while self.edit:
                self._erase()
            return
        self.edit.clear()
        if lflag & ECHO:
            self._echo(self.termios.cc[VKILL], True)
            if lflag & ECHOK:
                self._post(_NL, self.echoed)
