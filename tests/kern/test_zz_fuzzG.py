"""File system calls with arguments nobody would give: each one returns or fails with an errno, and
what it leaves behind is consistent and can be taken apart."""

from __future__ import annotations

import inspect
import random
from typing import TYPE_CHECKING

import pytest
from user_util import PAGE, SCRATCH, User

from dfvm.kern import (
    kern_descrip,
    kern_lockf,
    sys_epoll,
    sys_eventfd,
    sys_generic,
    sys_pipe,
    uipc_syscalls,
    vfs_syscalls,
)
from dfvm.kern.kern_sig import SIGUSR1, ksignal

if TYPE_CHECKING:
    from dfvm.kern.kernel import Kernel

MODULES = (kern_descrip, kern_lockf, sys_epoll, sys_eventfd, sys_generic, sys_pipe, uipc_syscalls,
           vfs_syscalls)  # fmt: skip
CALLS = [
    (name, function, list(inspect.signature(function).parameters)[1:])
    for module in MODULES
    for name, function in vars(module).items()
    if name.startswith("sys_") and inspect.isfunction(function)
    and function.__module__ == module.__name__
]  # fmt: skip
PATHS = (b"/tmp/fuzz", b"/tmp/fuzz/d", b"f", b"d/g", b".", b"..", b"", b"/", b"/dev/null",
         b"/dev/tty", b"/dev/ptmx", b"/dev/zero", b"/dev/full", b"fifo", b"link", b"loop",
         b"x" * 300, b"d/../f/", b"/dev/fd/4", b"/dev/pts/0")  # fmt: skip
AREA = SCRATCH + 2 * PAGE  # paths, one every 512 bytes; then structures full of noise
NOISE = SCRATCH + 6 * PAGE


def path_at(name: bytes) -> int:
    return AREA + 512 * PATHS.index(name)


def argument(rng: random.Random, name: str) -> int:
    """Mostly something of the kind the parameter's name speaks of."""
    if rng.random() < 0.2:
        return rng.choice((
            0, -1, -100, 1 << 31, 1 << 63, 0xFFFF_FFFF, 0x7FFF_FFFF_F000, 4096,
            SCRATCH + 16 * PAGE - rng.randrange(64),  # runs off the end
            rng.getrandbits(rng.choice((4, 12, 20, 32, 64))),
        ))  # fmt: skip
    if name in ("upath", "uold", "unew", "utarget", "uname"):
        return AREA + 512 * rng.randrange(len(PATHS))
    if "fd" in name:
        return rng.choice((-100, rng.randrange(14))) if "dir" in name else rng.randrange(14)
    if name[0] == "u" or name in ("buf", "vec", "fdpair"):
        return NOISE + 8 * rng.randrange(PAGE // 8)
    if name in ("flags", "mode", "op", "cmd", "whence", "kind"):
        return rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 0o100, 0o102, 0o2000, 0o4000, 0o644, 0o755))
    return rng.choice((0, 1, 5, 16, 100, 1024, 5000, rng.randrange(20)))


@pytest.mark.parametrize("seed", range(4, 80))
def test_noise(kernel: Kernel, seed: int) -> None:
    rng = random.Random(seed)
    user = User(kernel)
    ksignal(user.p, SIGUSR1)  # every sleep that a signal may end does so at once
    for i, path in enumerate(PATHS):
        user.write(AREA + 512 * i, path + b"\0")

    user.call(vfs_syscalls.sys_mkdir, path_at(b"/tmp/fuzz"), 0o777)
    user.call(vfs_syscalls.sys_chdir, path_at(b"/tmp/fuzz"))
    user.call(vfs_syscalls.sys_mkdir, user.put(b"d\0"), 0o777)
    user.call(vfs_syscalls.sys_mknod, path_at(b"fifo"), 0o010666, 0)
    user.call(vfs_syscalls.sys_symlink, path_at(b"f"), path_at(b"link"))
    user.call(vfs_syscalls.sys_symlink, path_at(b"loop"), path_at(b"loop"))
    done = 0
    for _ in range(8000):
        if rng.random() < 0.2:
            user.write(NOISE, rng.randbytes(256) if rng.random() < 0.5 else bytes(256))
        name, function, names = rng.choice(CALLS)
        if name in ("sys_close_range", "sys_chroot", "sys_sync"):
            continue  # leave something to work on
        result = user.call(function, *[argument(rng, each) for each in names])
        assert -4096 < result < 1 << 63, name
        done += result >= 0
    assert done > 800
    user.p.p_fd.fdfree()
    user.p.p_fd = kernel.initproc.p_fd.fdcopy()
    assert kernel.files.nlockf == 0
    assert not kernel.files.lockf_blocked
