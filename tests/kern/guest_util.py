"""Small C programs beside the tests that run them, on the host and in the machine."""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from dfvm import PIPE, Machine

_DIR = Path(tempfile.gettempdir()) / f"dfvm-tests-{os.getuid()}"

PRELUDE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include <linux/prctl.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
"""

# Run a function in a child and wait for it; its status.
CHILD = r"""
static int child(void (*fn)(void))
{
    int st;
    fflush(stdout);
    if (!fork()) { fn(); fflush(stdout); _exit(0); }
    wait(&st);
    return st;
}
"""

# For tests in which one is to act when another one waits, however long that takes. A process that
# a signal wakes does not count as asleep from the moment of kill() on.
SLEEPS = r"""
#ifndef HAS_SLEEPS  // what several parts of a program bring along is there once
#define HAS_SLEEPS
/* Wait until process `pid` is in one of these states. */
static void comes_to(int pid, const char *states)
{
    char path[40], text[200];
    sprintf(path, "/proc/%d/stat", pid);
    for (;;) {
        int fd = open(path, O_RDONLY), n = read(fd, text, sizeof text - 1);
        close(fd);
        if (n <= 0) return; /* it is gone */
        text[n] = 0;
        if (strchr(states, strrchr(text, ')')[2])) return;
        sched_yield();
    }
}
static void sleeps(int pid) { comes_to(pid, "S"); }
/* Have `sig` sent to the caller once it sleeps, by a child that wait() does not know of. */
static void when_asleep(int sig)
{
    int me = getpid();
    fflush(stdout);
    if (!syscall(SYS_clone, 0, 0, 0, 0, 0)) { sleeps(me); kill(me, sig); _exit(0); }
}
#endif
"""


def build(source: str, *flags: str, link: tuple[str, ...] = ("-static",)) -> Path:
    """The program that `source` compiles to, a static one unless `link` says otherwise."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    text = PRELUDE + source
    flags = (*link, *flags)
    key = hashlib.sha256(repr((text, flags)).encode()).hexdigest()[:20]
    program = _DIR / key
    if not program.exists():
        _DIR.mkdir(exist_ok=True)
        partial = _DIR / f"{key}.{os.getpid()}"
        subprocess.run(
            ["cc", "-O1", "-w", "-x", "c", "-", *flags, "-o", partial],
            input=text.encode(), check=True,
        )  # fmt: skip
        partial.rename(program)
    return program


def by_host(*argv: str | Path, stdin: bytes = b"") -> tuple[int, bytes]:
    """Exit status as a shell shows it, and standard output."""
    # In a process group of its own, whose parent is in another one of the session: not orphaned,
    # whoever started us, so that SIGTSTP and its kin stop it.
    done = subprocess.run([str(a) for a in argv], input=stdin, capture_output=True, timeout=600,
                          process_group=0,
                          check=False)  # fmt: skip
    status = done.returncode if done.returncode >= 0 else 128 - done.returncode
    return status, done.stdout


def by_guest(*argv: str | Path, stdin: bytes = b"", mem: str = "64M") -> tuple[int, bytes]:
    """The same by a machine that checks itself."""
    with Machine(mem=mem, check=True) as m:
        p = m.spawn([str(a) for a in argv], stdin=stdin, stdout=PIPE, stderr=PIPE)
        m.run(timeout=600)
        m.check()
        assert p.exit_status is not None
        assert p.stdout is not None
        return p.exit_status, p.stdout


def same(
    source: str,
    *args: str,
    link: tuple[str, ...] = ("-static",),
    flags: tuple[str, ...] = (),
    stdin: bytes = b"",
) -> bytes:
    """Run a program both ways; what it printed, when both agree."""
    program = build(source, *flags, link=link)
    expected = by_host(program, *args, stdin=stdin)
    ours = by_guest(program, *args, stdin=stdin)
    assert ours == expected, _difference(ours, expected)
    return expected[1]


def _difference(ours: tuple[int, bytes], expected: tuple[int, bytes]) -> str:
    lines = difflib.unified_diff(
        [*expected[1].decode("latin1").splitlines(), f"status {expected[0]}"],
        [*ours[1].decode("latin1").splitlines(), f"status {ours[0]}"], "host", "guest", n=1,
        lineterm="",
    )  # fmt: skip
    return "\n".join(lines)
