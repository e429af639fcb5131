"""A machine's file systems without processes, and system calls in small on top of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dfvm.kern.kern_caps import CAP_FULL
from dfvm.kern.kern_errno import ENOENT, err
from dfvm.kern.vfs.mount import Mount, Vfs
from dfvm.kern.vfs.namei import NAMEI_FOLLOW, may_rename, namei, nameiat
from dfvm.kern.vfs.vfs_rename import vn_rename
from dfvm.kern.vfs.vfs_vnops import vn_open
from dfvm.kern.vfs.vnode import Vnode
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE, IO_APPEND, KCRED, VRECLAIMED, VREG, Cred
from dfvm.lwkt.lwkt_thread import Scheduler
from dfvm.machine.mmu import Mmu
from dfvm.machine.ram import Ram
from dfvm.vm.copyio import UIO_READ, UIO_WRITE, Uio
from dfvm.vm.pager.vnode_pager import vnode_pager_setsize
from dfvm.vm.vm_init import VmSystem

if TYPE_CHECKING:
    from collections.abc import Callable


class TestCred:
    __test__ = False

    def __init__(self, uid: int, gid: int, groups: tuple[int, ...] = ()) -> None:
        self.cr_fsuid = uid
        self.cr_fsgid = gid
        self.cr_cap_e = 0 if uid else CAP_FULL
        self.groups = groups

    def groupmember(self, gid: int) -> bool:
        return gid == self.cr_fsgid or gid in self.groups


def make_vm(mib: int = 64) -> VmSystem:
    return VmSystem(Ram(mib << 20), Scheduler(), Mmu())


def make_vfs(vm: VmSystem, root: Callable[[Vfs], Mount]) -> Vfs:
    vfs = Vfs(vm)
    vfs.mountroot(root(vfs))
    return vfs


class Open:
    """An open file."""

    def __init__(self, vp: Vnode, acc: int) -> None:
        self.vp = vp
        self.fflag = (FREAD, FWRITE, FREAD | FWRITE)[acc]


class Sys:
    """System calls of one process, by path relative to `cwd`."""

    def __init__(self, vfs: Vfs, cwd: bytes = b"/", cred: Cred = KCRED) -> None:
        self.vfs = vfs
        self.root = vfs.rootvnode
        self.cred = cred
        self.cwd = namei(self.root, self.root, cwd, cred)
        self.cwd.vref()

    def lookup(self, path: bytes, follow: bool = True) -> Vnode:
        return namei(self.root, self.cwd, path, self.cred, NAMEI_FOLLOW if follow else 0)

    def open(self, path: bytes, flags: int, mode: int = 0o666) -> Open:
        vp, other = vn_open(self.root, self.cwd, path, flags, mode, self.cred)
        assert other is None
        return Open(vp, flags & 3)

    def close(self, f: Open) -> None:
        f.vp.close(f.fflag)

    def pread(self, f: Open, n: int, off: int) -> bytes:
        buf = bytearray(n)
        uio = Uio(None, [memoryview(buf)], UIO_READ)
        f.vp.read(uio, off, 0)
        return bytes(buf[: n - uio.uio_resid])

    def pwrite(self, f: Open, data: bytes, off: int, append: bool = False) -> int:
        uio = Uio(None, [memoryview(bytearray(data))], UIO_WRITE)
        f.vp.write(uio, off, IO_APPEND if append else 0)
        return len(data) - uio.uio_resid

    def mkdir(self, path: bytes, mode: int = 0o777) -> None:
        nd = nameiat(self.root, self.cwd, path, self.cred)
        nd.may_create(True)
        nd.ni_dvp.mkdir(nd.ni_name, mode, self.cred)

    def mknod(self, path: bytes, vtype: int, mode: int, rdev: int = 0) -> None:
        nd = nameiat(self.root, self.cwd, path, self.cred)
        nd.may_create(False)
        nd.ni_dvp.mknod(nd.ni_name, vtype, mode, rdev, self.cred)

    def symlink(self, target: bytes, path: bytes) -> None:
        if not target:
            raise err(ENOENT)
        nd = nameiat(self.root, self.cwd, path, self.cred)
        nd.may_create(False)
        nd.ni_dvp.symlink(nd.ni_name, target, self.cred)

    def link(self, old: bytes, new: bytes) -> None:
        vp = self.lookup(old, False)
        nd = nameiat(self.root, self.cwd, new, self.cred)
        nd.may_create(False)
        nd.ni_dvp.link(nd.ni_name, vp, self.cred)

    def unlink(self, path: bytes) -> None:
        nd = nameiat(self.root, self.cwd, path, self.cred)
        nd.may_unlink()
        nd.ni_dvp.unlink(nd.ni_name, self.cred)

    def rmdir(self, path: bytes) -> None:
        nd = nameiat(self.root, self.cwd, path, self.cred)
        nd.may_rmdir()
        nd.ni_dvp.rmdir(nd.ni_name, self.cred)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        a = nameiat(self.root, self.cwd, old, self.cred)
        b = nameiat(self.root, self.cwd, new, self.cred)
        may_rename(a, b, flags)
        vn_rename(a.ni_dvp, a.ni_name, b.ni_dvp, b.ni_name, flags, self.cred)

    def read_file(self, path: bytes) -> bytes:
        f = self.open(path, os.O_RDONLY)
        try:
            return self.pread(f, 1 << 20, 0)
        finally:
            self.close(f)

    def write_file(self, path: bytes, data: bytes) -> None:
        f = self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            assert self.pwrite(f, data, 0) == len(data)
        finally:
            self.close(f)

    def names(self, path: bytes = b".") -> list[bytes]:
        return sorted(e[0] for e in self.lookup(path).readdir())


def check(vfs: Vfs) -> None:
    bad: list[str] = []
    for mount in vfs.mounts:
        mount.check(bad)
    assert not bad, bad


def unmount(vfs: Vfs) -> None:
    """Give the pages of all files back to a VM that outlives the test's file systems."""
    for mount in vfs.mounts:
        for vp in mount.vnodes():
            if vp.v_type == VREG and not vp.v_flag & VRECLAIMED:
                vnode_pager_setsize(vp, 0)
                vfs.reclaim(vp)
    vfs.fds.close()
