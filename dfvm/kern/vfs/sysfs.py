"""/sys: the few of Linux's files there that programs ask for the CPUs and the memory node, and the
directories that a machine without devices has.

Source: Linux Documentation/ABI/stable/sysfs-devices-*, drivers/base/{cpu,node,topology}.c.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import EACCES, err
from dfvm.kern.vfs.devfs import LOOP_MAJOR
from dfvm.kern.vfs.mount import ST_NODEV, ST_NOEXEC, ST_NOSUID
from dfvm.kern.vfs.procfs import ProcDir, ProcFile, ProcLink, PseudoMount
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE, Vattr

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.dev_loop import Loop
    from dfvm.kern.kernel import Kernel
    from dfvm.kern.vfs.mount import Vfs
    from dfvm.kern.vfs.procfs import ProcNode
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred

    Tree = dict[bytes, "Tree | bytes | Callable[[Kernel], str]"]

SYSFS_MAGIC: Final = 0x62656572

_ROOT_INO: Final = 1
_ATTRIBUTE_BYTES: Final = 4096  # what every file says it has


def _cpus(kernel: Kernel) -> str:
    return "0" if kernel.ncpu == 1 else f"0-{kernel.ncpu - 1}"


def _cpumask(kernel: Kernel) -> str:
    return f"{(1 << kernel.ncpu) - 1:x}"


def _none(kernel: Kernel) -> str:
    return ""


def _node0(kernel: Kernel) -> str:
    return "0"


def _meminfo(kernel: Kernel) -> str:
    from dfvm.kern.vfs.procfs_system import meminfo

    lines = dict(line.split(b":") for line in meminfo(kernel).splitlines())
    kb = {name: int(lines[name].split()[0]) for name in (b"MemTotal", b"MemFree")}
    kb[b"MemUsed"] = kb[b"MemTotal"] - kb[b"MemFree"]
    return "\n".join(f"Node 0 {name.decode() + ':':<15}{n:8} kB" for name, n in kb.items())


def _topology(cpu: int) -> Tree:
    return {
        b"core_cpus": lambda k: f"{1 << cpu:x}",
        b"core_cpus_list": lambda k: str(cpu),
        b"core_id": lambda k: str(cpu),
        b"core_siblings": _cpumask,
        b"core_siblings_list": _cpus,
        b"package_cpus": _cpumask,
        b"package_cpus_list": _cpus,
        b"physical_package_id": _node0,
        b"thread_siblings": lambda k: f"{1 << cpu:x}",
        b"thread_siblings_list": lambda k: str(cpu),
    }


def _blockdev(loop: Loop) -> Tree:
    tree: Tree = {
        b"dev": lambda k: f"{LOOP_MAJOR}:{loop.l_number}",
        b"queue": {
            b"hw_sector_size": lambda k: str(loop.l_block),
            b"logical_block_size": lambda k: str(loop.l_block),
            b"physical_block_size": lambda k: str(loop.l_block),
        },
        b"removable": lambda k: "0",
        b"ro": lambda k: str(int(loop.l_rdonly)),
        b"size": lambda k: str(loop.l_size // 512),
    }
    if loop.l_file is not None:

        def flag(bit: int) -> Callable[[Kernel], str]:
            return lambda k: str(int(bool(loop.l_flags & bit)))

        tree[b"loop"] = {
            b"autoclear": flag(4),
            b"backing_file": lambda k: os.fsdecode(loop.backing_name()),
            b"dio": flag(16),
            b"offset": lambda k: str(loop.l_offset),
            b"partscan": flag(8),
            b"sizelimit": lambda k: str(loop.l_sizelimit),
        }
    return tree


class BlockDir(ProcDir):
    """/sys/block: the loop devices that somebody has asked for; and, by number, /sys/dev/block."""

    __slots__ = ("s_links",)

    s_links: bool  # /sys/dev/block: links to what is in the other

    def __init__(self, mount: PseudoMount, fileid: int, links: bool) -> None:
        super().__init__(mount, fileid, {}, 0o755)
        self.s_links = links

    def vop_lookup(self, name: bytes) -> Vnode | None:
        self._fill()
        return super().vop_lookup(name)

    def _entries(self) -> list[tuple[bytes, int, int]]:
        self._fill()
        return super()._entries()

    def _fill(self) -> None:
        loops = self.kernel.vfs.loops
        if self.s_links:
            self.p_entries = {b"%d:%d" % (LOOP_MAJOR, n): _entry(b"../../block/loop%d" % n)
                              for n in loops}  # fmt: skip
        else:
            self.p_entries = {b"loop%d" % n: _entry(_blockdev(loop)) for n, loop in loops.items()}


def _block(dvp: ProcDir, ino: int) -> ProcNode:
    return BlockDir(dvp.v_mount, ino, False)


def _dev(dvp: ProcDir, ino: int) -> ProcNode:
    entries: dict[bytes, Callable[[ProcDir, int], ProcNode]] = {
        b"block": lambda dvp, ino: BlockDir(dvp.v_mount, ino, True),
        b"char": _entry({}),
    }
    return ProcDir(dvp.v_mount, ino, entries, 0o755)


def _tree(kernel: Kernel) -> Tree:
    cpus: Tree = {
        b"cpu%d" % n: {b"node0": b"../../node/node0", b"topology": _topology(n)}
        for n in range(kernel.ncpu)
    }
    nodes: Tree = {b"cpu%d" % n: b"../../cpu/cpu%d" % n for n in range(kernel.ncpu)}
    return {
        b"block": {},
        b"bus": {},
        b"class": {},
        b"dev": {},
        b"devices": {
            b"system": {
                b"cpu": {
                    **cpus,
                    b"isolated": _none,
                    b"kernel_max": lambda k: str(k.ncpu - 1),
                    b"offline": _none,
                    b"online": _cpus,
                    b"possible": _cpus,
                    b"present": _cpus,
                },
                b"node": {
                    b"has_cpu": _node0,
                    b"has_memory": _node0,
                    b"has_normal_memory": _node0,
                    b"node0": {
                        **nodes,
                        b"cpulist": _cpus,
                        b"cpumap": _cpumask,
                        b"distance": lambda k: "10",
                        b"meminfo": _meminfo,
                    },
                    b"online": _node0,
                    b"possible": _node0,
                },
            },
        },
        b"firmware": {},
        b"fs": {b"cgroup": {}},
        b"kernel": {b"mm": {}},
        b"module": {},
        b"power": {},
    }


class SysFile(ProcFile):
    """An attribute, which not even root opens to write to if nobody may (fs/kernfs/file.c)."""

    __slots__ = ()

    def vop_open(self, fflag: int, cred: Cred) -> object | None:
        if fflag & FWRITE and not self.v_mode & 0o222:
            raise err(EACCES)
        return super().vop_open(fflag, cred)

    def vop_getattr(self) -> Vattr:
        va = super().vop_getattr()
        va.va_size = va.va_blksize = _ATTRIBUTE_BYTES
        return va


def _entry(value: Tree | bytes | Callable[[Kernel], str]) -> Callable[[ProcDir, int], ProcNode]:
    """What makes the vnode for one entry of the tree."""
    if isinstance(value, bytes):
        return lambda dvp, ino: ProcLink(dvp.v_mount, ino, lambda: value)
    if isinstance(value, dict):
        entries = {name: _entry(v) for name, v in value.items()}
        return lambda dvp, ino: ProcDir(dvp.v_mount, ino, entries, 0o755)

    def make(dvp: ProcDir, ino: int) -> ProcNode:
        kernel = dvp.kernel
        return SysFile(dvp.v_mount, ino, lambda: value(kernel).encode() + b"\n", splice=FREAD)

    return make


class SysRoot(ProcDir):
    """/sys itself, whose tree is made when somebody looks."""

    __slots__ = ()

    def vop_lookup(self, name: bytes) -> Vnode | None:
        self._fill()
        return super().vop_lookup(name)

    def _entries(self) -> list[tuple[bytes, int, int]]:
        self._fill()
        return super()._entries()

    def _fill(self) -> None:
        if not self.p_entries:
            self.p_entries = {name: _entry(v) for name, v in _tree(self.kernel).items()}
            self.p_entries[b"block"] = _block
            self.p_entries[b"dev"] = _dev


class SysMount(PseudoMount):
    """The mounted /sys."""

    __slots__ = ()

    def __init__(self, vfs: Vfs, kernel: Kernel) -> None:
        super().__init__(vfs, kernel, "sysfs", SYSFS_MAGIC, ST_NOSUID | ST_NODEV | ST_NOEXEC)
        self.set_root(SysRoot(self, _ROOT_INO, {}))
