"""The host's terminal as the guest's: shells with job control, signals from the keyboard, and the
terminal as it was afterwards. Each session runs under a pseudo terminal of the host.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from typing import TYPE_CHECKING

import pytest
from guest_util import build

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSYBOX = "/usr/bin/busybox"
BASH = "/bin/bash-static"
DFVM = [sys.executable, "-m", "dfvm.tools.main", "run"]
ENV = {"PATH": "/usr/bin:/bin", "PS1": "$ ", "TERM": "dumb", "HOME": "/nonexistent", "LC_ALL": "C"}


class Session:
    """A program that leads a session on a pseudo terminal."""

    def __init__(self, *argv: str) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execve(argv[0], argv, ENV)
        self.seen = b""

    def expect(self, text: bytes, timeout: float = 600) -> bytes:
        """Wait until `text` has been printed; what came up to its end."""
        end = time.monotonic() + timeout
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0, f"no {text!r} in {self.seen!r}"
            if select.select([self.fd], [], [], left)[0]:
                try:
                    data = os.read(self.fd, 4096)
                except OSError:  # the other side is closed
                    data = b""
                assert data, f"the end, and no {text!r} in {self.seen!r}"
                self.seen += data
        at = self.seen.index(text) + len(text)
        head, self.seen = self.seen[:at], self.seen[at:]
        return head

    def send(self, text: bytes) -> None:
        os.write(self.fd, text)

    def run(self, command: bytes) -> bytes:
        """A command at a shell's prompt, its output, and the prompt again."""
        self.send(command + b"\n")
        self.expect(command.splitlines()[-1] + b"\r\n")
        return self.expect(b"$ ")[:-2]

    def status(self) -> int:
        """Wait for the end."""
        end = time.monotonic() + 600
        while time.monotonic() < end:
            if select.select([self.fd], [], [], 0.02)[0]:
                try:
                    self.seen += os.read(self.fd, 4096)
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"still running; last {self.seen!r}")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    one = Session(*request.param)
    yield one
    one.close()


def guest(*argv: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("session", [[*DFVM, *argv]], indirect=True, ids=["guest"])


def shells() -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "session",
        [[*DFVM, BUSYBOX, "sh", "-i"], [*DFVM, BASH, "--norc", "--noediting", "-i"]],
        indirect=True,
        ids=["busybox", "bash"],
    )


@shells()
def test_job_control(session: Session) -> None:
    session.expect(b"$ ")
    assert b"hello" in session.run(b"echo hel''lo")
    assert b"/dev/console" in session.run(b"busybox tty")
    start = b"busybox sh -c 'echo u\"\"p; exec busybox sleep 100'\n"
    session.send(start)
    session.expect(b"\r\nup\r\n")
    session.send(b"\x03")
    session.expect(b"$ ")
    assert b"rc 130" in session.run(b"echo rc $?")
    session.send(start)
    session.expect(b"\r\nup\r\n")
    session.send(b"\x1a")
    session.expect(b"Stopped")
    session.expect(b"$ ")
    assert b"Stopped" in session.run(b"jobs")
    session.run(b"bg")
    assert b"Running" in session.run(b"jobs")
    session.run(b"kill %1; wait %1")
    session.run(b"busybox cat &")
    while b"Stopped" not in session.run(b"jobs"):
        pass
    session.run(b"kill -9 %1")
    while b"Stopped" in session.run(b"jobs"):
        pass
    session.send(b"exit 7\n")
    assert session.status() == 7


@guest(BASH, "--norc", "-i")
def test_line_editing(session: Session) -> None:
    before = termios.tcgetattr(session.fd)
    session.expect(b"$ ")
    assert termios.tcgetattr(session.fd) != before  # readline has the terminal
    session.send(b"echo wrogn\x7f\x7fng\n")
    session.expect(b"\r\nwrong\r\n")
    session.send(b"exit 3\n")
    assert session.status() == 3
    assert termios.tcgetattr(session.fd) == before


@guest(BUSYBOX, "sh", "-c", "busybox stty raw -echo; kill -9 $$")
def test_terminal_is_restored_after_a_crash(session: Session) -> None:
    before = termios.tcgetattr(session.fd)
    assert session.status() == 137
    assert termios.tcgetattr(session.fd) == before


WINCH = "trap 'busybox stty size; exit 5' WINCH; echo go; while :; do busybox sleep 0.1; done"


@guest(BUSYBOX, "sh", "-c", WINCH)
def test_window_size(session: Session) -> None:
    session.expect(b"go")
    fcntl.ioctl(session.fd, termios.TIOCSWINSZ, struct.pack("4H", 33, 99, 0, 0))
    session.expect(b"33 99")
    assert session.status() == 5


@guest(BUSYBOX, "cat")
def test_end_of_file_and_signals_without_a_shell(session: Session) -> None:
    session.send(b"line\n")
    session.expect(b"line\r\nline\r\n")
    session.send(b"\x04")
    assert session.status() == 0


@guest(BUSYBOX, "cat")
def test_quit_key(session: Session) -> None:
    session.send(b"x\n")
    session.expect(b"x\r\nx\r\n")
    session.send(b"\x1c")
    assert session.status() == 128 + signal.SIGQUIT


@pytest.mark.parametrize(
    "session", [[BASH, "--norc", "--noediting", "-i"]], indirect=True, ids=["from-bash"]
)
def test_stop_of_the_whole_machine(session: Session) -> None:
    session.expect(b"$ ")
    command = " ".join(DFVM).encode() + b" " + BUSYBOX.encode()
    script = b" sh -c 'busybox stty -icanon; echo up; read x; echo got $x'"
    session.send(command + script + b"\n")
    session.expect(b"\r\nup\r\n")
    session.send(b"\x1a")
    session.expect(b"Stopped")
    session.expect(b"$ ")
    assert b"rc 148" in session.run(b"echo rc $?")
    assert b" icanon" in session.run(BUSYBOX.encode() + b" stty -a")
    session.send(b"fg\n")
    session.expect(b"read x")
    while termios.tcgetattr(session.fd)[3] & termios.ICANON:
        time.sleep(0.01)
    session.send(b"go\n")
    session.expect(b"got go\r\n")
    session.expect(b"$ ")
    assert b" icanon" in session.run(BUSYBOX.encode() + b" stty -a")


PROGRAM = r"""
#include <sys/ioctl.h>
#include <termios.h>
#define T(e) do { errno = 0; long r_ = (long)(e); \
    printf("%s = %ld %d\n", #e, r_ < 0 ? -1L : r_, r_ < 0 ? errno : 0); fflush(stdout); } while (0)
static void h(int s) { printf("signal %d\n", s); fflush(stdout); }
int main() {
    int pg = 0, st; struct termios t; struct winsize w; char c;
    T(isatty(0)); T(tcgetpgrp(0) == getpgrp()); T(tcgetsid(0) == getsid(0)); T(tcgetattr(0, &t));
    T(ioctl(0, TIOCGWINSZ, &w)); T(tcsetpgrp(0, 999999)); T(tcsetpgrp(0, -1)); T(tcsetpgrp(0, 1));
    T(ioctl(0, TIOCGPGRP, 8)); T(ioctl(0, 0x5499, 0));
    T(tcflush(0, TCIFLUSH));
    int tty = open("/dev/tty", O_RDWR); T(tty); T(tcgetpgrp(tty) == getpgrp());
    int pid = fork();
    if (!pid) {
        setpgid(0, 0); signal(SIGTTIN, SIG_IGN); T(read(0, &c, 1)); signal(SIGTTOU, SIG_IGN);
        T(tcsetattr(0, TCSANOW, &t)); T(tcsetpgrp(0, getpgrp())); T(tcgetpgrp(0) == getpgrp());
        T(tcsetpgrp(0, getpgid(getppid()))); signal(SIGTTOU, SIG_DFL);
        T(tcsetattr(0, TCSANOW, &t)); T(write(1, "out\n", 4));
        t.c_lflag |= TOSTOP; signal(SIGTTOU, SIG_IGN); tcsetattr(0, TCSANOW, &t);
        T(write(1, "out\n", 4)); signal(SIGTTOU, h); T(write(1, "after\n", 6)); _exit(0);
    }
    for (;;) {
        if (waitpid(pid, &st, WUNTRACED) < 0) break;
        if (!WIFSTOPPED(st)) { printf("exit %x\n", st); break; }
        printf("stopped %d\n", WSTOPSIG(st)); fflush(stdout);
        tcsetpgrp(0, pid); kill(-pid, SIGCONT);
    }
    tcsetpgrp(0, getpgrp()); t.c_lflag &= ~TOSTOP; tcsetattr(0, TCSANOW, &t);
    if (!(pid = fork())) {
        setsid(); T(tcgetpgrp(0)); T(open("/dev/tty", O_RDWR)); T(ioctl(0, TIOCSCTTY, 0));
        T(tcgetsid(0)); _exit(0);
    }
    waitpid(pid, 0, 0);
    signal(SIGHUP, h); signal(SIGCONT, h); T(ioctl(0, TIOCNOTTY, 0)); T(tcgetpgrp(0));
    T(open("/dev/tty", O_RDWR));
    return 0;
}
"""


def _collect(*argv: str) -> bytes:
    one = Session(*argv)
    try:
        assert one.status() == 0, one.seen
        return one.seen
    finally:
        one.close()


def test_job_control_calls_as_on_the_host() -> None:
    program = str(build(PROGRAM))
    ours = _collect(*DFVM, program)
    # The program lets go of its terminal at the end, and the host's pty then sometimes loses what
    # was written last.
    assert any(_collect(program) == ours for _ in range(4))


@pytest.mark.parametrize("session", [["/bin/sh"]], indirect=True, ids=["host"])
def test_interrupt_ends_a_loop_of_runs(session: Session) -> None:
    """A shell goes on when what it ran exits by itself after ^C, so dfvm must not."""
    session.expect(b"$ ")
    dfvm = " ".join(DFVM)
    session.send(f"for i in 1 2; do {dfvm} {BUSYBOX} cat; echo e''nded; done\n".encode())
    session.expect(b"done\r\n")
    session.send(b"one\n")
    session.expect(b"one\r\none\r\n")
    session.send(b"\x03")
    assert b"ended" not in session.expect(b"$ ")
    assert b"rc 130" in session.run(b"echo rc $?")
