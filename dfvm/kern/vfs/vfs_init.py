"""What is mounted on a new machine.

    /           the host's tree (or --root), read-only, changes kept in memory
    /dev        our devices;  /dev/shm  memory;  /dev/mqueue  message queues
    /proc       our processes;  /sys  our CPUs
    /tmp        memory, over the host's /tmp
    --rw DIR    the host's, written through

Source: DragonFly sys/kern/vfs_init.c, and what init(8) mounts.
"""

from __future__ import annotations

import os
from errno import ENOENT, ENOTDIR
from typing import TYPE_CHECKING

from dfvm.kern.tty import tty_attach
from dfvm.kern.vfs.devfs import DevMount
from dfvm.kern.vfs.mount import ST_NODEV, ST_NOEXEC, ST_NOSUID, Mount, Vfs
from dfvm.kern.vfs.mqueuefs import MqMount
from dfvm.kern.vfs.overlay import OVERLAY_MAGIC, OvlMount
from dfvm.kern.vfs.procfs import ProcMount
from dfvm.kern.vfs.sysfs import SysMount
from dfvm.kern.vfs.tmpfs import host_half, tmpfs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfvm.kern.kernel import Kernel


def guest_path(root: bytes, path: bytes) -> bytes:
    """Where the host's directory `path` is in the guest, whose root is the host's `root`.

    :raises ValueError: it lies outside, or in what shows the machine.
    :raises OSError: ENOTDIR, ENOENT: it is no directory, or not there.
    """
    real, top = os.path.realpath(path), os.path.realpath(root)
    if not os.path.isdir(real):
        errno = ENOTDIR if os.path.exists(real) else ENOENT
        raise OSError(errno, os.strerror(errno), os.fsdecode(path))
    if real == top:
        return b"/"
    prefix = top if top.endswith(b"/") else top + b"/"
    if not real.startswith(prefix):
        raise ValueError(f"rw: {os.fsdecode(path)!r} is not below the root directory")
    at = b"/" + real[len(prefix) :]
    if at.split(b"/")[1] in (b"dev", b"proc", b"sys"):
        raise ValueError(f"rw: {os.fsdecode(path)!r} is the machine's own, not the host's")
    return at


def _tmp(vfs: Vfs, top: bytes) -> OvlMount:
    # A mount of its own, whatever it is on the host, with the restrictions that hold there.
    flags = os.statvfs(top).f_flag & (ST_NOSUID | ST_NODEV | ST_NOEXEC)
    return OvlMount(vfs, "overlay", OVERLAY_MAGIC, top, host_half(), flags, vfs.anon_dev())


def vfs_mountall(kernel: Kernel, root: bytes, rw: Sequence[bytes]) -> Vfs:
    """The file systems of a machine: `root` is a host directory, `rw` are those that are written
    through. kernel.vm, kernel.files and kernel.procs are there.

    :raises ValueError: one of `rw` is not below the root, or shows the machine.
    :raises OSError: a directory is not there.
    """
    through = {guest_path(root, path): path for path in rw}
    vfs = Vfs(kernel.vm)
    top: Mount
    if b"/" in through:
        from dfvm.kern.vfs.hostfs import HostMount

        top = HostMount(vfs, root)
    else:
        top = OvlMount(vfs, "overlay", OVERLAY_MAGIC, root, host_half())
    vfs.mountroot(top)
    dev = DevMount(vfs)
    tty_attach(dev, kernel.files)
    vfs.mount(b"/dev", dev)
    vfs.mount(b"/dev/shm", tmpfs(vfs))
    kernel.mqueues = MqMount(vfs, kernel)
    vfs.mount(b"/dev/mqueue", kernel.mqueues)
    vfs.mount(b"/proc", ProcMount(vfs, kernel))
    vfs.mount(b"/sys", SysMount(vfs, kernel))
    tmp = os.path.join(root, b"tmp")
    if not through.keys() & {b"/", b"/tmp"} or not os.path.isdir(tmp):
        vfs.mount(b"/tmp", _tmp(vfs, tmp) if os.path.isdir(tmp) else tmpfs(vfs))
    if through:
        from dfvm.kern.vfs.hostfs import HostMount

        # The upper ones first, so that one inside another is mounted on it.
        for at in sorted(through):
            if at != b"/":
                vfs.mount(at, HostMount(vfs, through[at]))
    for fs in vfs.filesystems:
        # There is one, and it may be mounted again; all others are what is mounted.
        fs.mnt_permanent = fs is top or fs.mnt_fstype in ("devtmpfs", "mqueue", "proc", "sysfs")
    return vfs
