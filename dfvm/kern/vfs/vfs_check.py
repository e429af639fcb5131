"""The checker's part of the file systems, for Machine.check().

Who may hold a vnode: an open file (one reference, whether it was opened or only named with O_PATH),
a socket that is bound to it, a process (working directory, root, text), a mount (its root, and the
directory it is mounted in), a view's vnode that is held itself (one on the vnode below), and a VM
object for each reference of its own. System calls hold more while they sleep, so counts are
compared exactly only when no program is left; before that they must not be too low.

The machine is at rest. Only reads; cost is in proportion to vnodes and open files.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dfvm.kern.proc import SZOMB
from dfvm.kern.vfs.devfs import DevMount
from dfvm.kern.vfs.mount import ST_RDONLY
from dfvm.kern.vfs.vnode_param import FWRITE, VDIR, VKEEP, VNOCACHE, VRECLAIMED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.kern.fsinfo import FsInfo
    from dfvm.kern.kern_descrip import File, FileDesc
    from dfvm.kern.kernel import Kernel
    from dfvm.kern.vfs.mount import Mount, Vfs
    from dfvm.kern.vfs.vnode import Vnode


def vfs_check(kernel: Kernel) -> list[str]:
    """What is wrong with the machine's file systems; empty when nothing is."""
    vfs = kernel.vfs
    bad: list[str] = []
    for fs in vfs.filesystems:
        fs.check(bad)
    holders: Counter[Vnode] = Counter({vfs.rootvnode: 1})
    for mount in {*vfs.mounts, *vfs.filesystems}:
        if not mount.mnt_dead:
            holders[mount.mnt_root] += 1
        if mount.mnt_dvp is not None:
            holders[mount.mnt_dvp] += 1
    writers: Counter[Vnode] = Counter()
    texts: Counter[Vnode] = Counter()
    programs = _holders(kernel, holders, writers, texts)
    for vp in [vp for vp in holders if vp.vop_data() is not vp]:
        holders[vp.vop_data()] += 1  # what a view's vnode holds
    known = dict.fromkeys([*holders, *(vp for fs in vfs.filesystems for vp in fs.vnodes())])
    for vp in known:
        count = holders[vp]
        if vp.v_object is not None and vp.vop_data() is vp:
            count += vp.v_object.ref_count
        # Devices keep references on nodes of their own.
        exact = not programs and not isinstance(vp.v_mount, DevMount)
        bad += [f"{vp!r}: {text}" for text in _check_vnode(vp, count, exact)]
        for what, have, want in (
            ("writers", vp.v_writecount, writers[vp.vop_data()]),
            ("processes that execute it", vp.v_textcount, texts[vp.vop_data()]),
        ):
            if have < want or (exact and have != want):
                bad.append(f"{vp!r}: {want} {what}, but {have} counted")
    bad += _check_vfs(vfs)
    return bad


def _holders(
    kernel: Kernel, holders: Counter[Vnode], writers: Counter[Vnode], texts: Counter[Vnode]
) -> bool:
    # Count what processes hold. True if there is a process with a thread.
    programs = False
    tables: dict[FileDesc, None] = {}
    places: dict[FsInfo, None] = {}
    for p in kernel.procs.values():
        if p.p_textvp is not None:
            holders[p.p_textvp] += 1
            texts[p.p_textvp.vop_data()] += 1
        if p.p_stat != SZOMB:
            programs |= bool(p.p_lwps)
            tables[p.p_fd] = None
            places[p.p_fs] = None
    files: dict[File, None] = {}
    for fs in places:
        if fs.fs_refcnt:  # else its process is just exiting
            holders[fs.fs_cdir] += 1
            holders[fs.fs_rdir] += 1
    for fdp in tables:
        files.update(dict.fromkeys(fdp.fd_files.values()))
    if kernel.files.unix is not None:
        from dfvm.kern.uipc_check import unp_files

        files.update(dict.fromkeys(unp_files(kernel.files)))
        bound = (so.unp_vnode for so in kernel.files.unix.un_sockets)
        holders.update(vp for vp in bound if vp is not None)
    for loop in kernel.vfs.loops.values():
        if loop.l_file is not None:
            files[loop.l_file] = None
    for fp in files:
        vp = fp.f_vnode
        if vp is not None:
            holders[vp] += 1
            if fp.f_mode & FWRITE:
                writers[vp.vop_data()] += 1
    return programs


def _check_vnode(vp: Vnode, count: int, exact: bool) -> Iterator[str]:
    if vp.v_usecount < count:
        yield f"{count} references are held"
    elif exact and vp.v_usecount != count:
        yield f"only {count} of its references are explained"
    if vp.v_flag & VRECLAIMED and count:
        yield "recycled, but in use"
    object = vp.v_object
    if object is not None and object.handle is not vp.vop_data():
        yield f"its object {object!r} belongs to {object.handle!r}"
    if vp.v_nchild < 0:
        yield f"{vp.v_nchild} children"
    parent = vp.v_parent
    if parent is not None and not (parent.v_nchild or parent.v_flag & VNOCACHE):
        yield f"its parent {parent!r} does not count it"
    if vp.v_type == VDIR:
        for name, mount in (vp.v_mounts or {}).items():
            at: Mount | None = mount
            while at is not None:
                if at.mnt_dvp is not vp or at.mnt_name != name:
                    yield f"{name!r} is covered by a mount that knows nothing of it"
                at = at.mnt_under


def _check_vfs(vfs: Vfs) -> Iterator[str]:
    for mount in (*vfs.filesystems, *(m for m in vfs.mounts if m.mnt_fs is not m)):
        # Those without a name that somebody has open are in nobody's list.
        known = sum(1 for vp in mount.vnodes() if vp.v_usecount)
        if mount.mnt_inuse < known:
            yield f"{mount.mnt_fstype}: {known} vnodes in use, {mount.mnt_inuse} counted"
        if mount.mnt_fs not in vfs.filesystems:
            yield f"{mount.mnt_fstype}: a view of a file system that is gone"
        fs = mount.mnt_fs
        if mount.mnt_rdonly != bool((mount.mnt_flags | fs.mnt_fsflags) & ST_RDONLY):
            yield f"{mount.mnt_fstype}: read-only or not, its flags say otherwise"
    for vp in vfs.inactive:
        if vp.v_usecount or vp.v_flag & (VKEEP | VRECLAIMED):
            yield f"{vp!r} is in the queue for recycling"
    fds = vfs.fds
    if len(fds.lru) > fds.limit:
        yield f"{len(fds.lru)} host descriptors, {fds.limit} allowed"
    for ref in (*fds.lru, *fds.kept):
        if ref.hr_fd < 0:
            yield f"host file {ref.hr_name!r} counts as open and is not"
