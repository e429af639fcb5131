"""What one process may ask of another, or about it.

process_vm_readv and process_vm_writev copy between one's own memory and another process's. What the
other process itself could read or write is copied, a page at a time: a page of its is held while it
is copied, and copying may fault pages of ours in.

process_madvise advises for it, and kcmp tells whether two processes share something.

Source: Linux mm/process_vm_access.c, mm/madvise.c and kernel/kcmp.c for arguments, errors, and
their order; DragonFly sys/kern/sys_process.c (procfs_domem) for the way in.
"""

from __future__ import annotations

from struct import Struct, unpack
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.kern_caps import CAP_SYS_NICE
from dfvm.kern.kern_errno import EACCES, EFAULT, EINVAL, ENOENT, EPERM, ESRCH, err
from dfvm.kern.kern_prot import may_trace
from dfvm.kern.proc import SZOMB
from dfvm.kern.sys_generic import IOV_MAX, user_iov
from dfvm.kern.vma import MARK_NOREAD
from dfvm.vm.copyio import UIO_READ, UIO_WRITE, Uio, copyin, uiomove_pa
from dfvm.vm.vm import VM_PROT_READ, VM_PROT_WRITE
from dfvm.vm.vm_fault import VM_FAULT_DIRTY, VM_FAULT_NORMAL, vm_fault_page
from dfvm.vm.vm_map import vm_map_lookup_entry
from dfvm.vm.vm_page import vm_page_unhold
from dfvm.vm.vm_param import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, VM_MAX_USER_ADDRESS
from dfvm.vm.vmspace import vmspace_drop, vmspace_hold

if TYPE_CHECKING:
    from dfvm.kern.kern_descrip import File
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.vm.vmspace import Vmspace


def sys_process_vm_readv(
    lp: Lwp, pid: int, liov: int, nliov: int, riov: int, nriov: int, flags: int
) -> int:
    """Read another process's memory into one's own."""
    return _process_vm(lp, pid, liov, nliov, riov, nriov, flags, False)


def sys_process_vm_writev(
    lp: Lwp, pid: int, liov: int, nliov: int, riov: int, nriov: int, flags: int
) -> int:
    """Write one's own memory into another process's."""
    return _process_vm(lp, pid, liov, nliov, riov, nriov, flags, True)


def _process_vm(
    lp: Lwp, pid: int, liov: int, nliov: int, riov: int, nriov: int, flags: int, write: bool
) -> int:
    if flags:
        raise err(EINVAL)
    uio = Uio(lp.lwp_proc.p_vmspace, user_iov(lp, liov, nliov), UIO_WRITE if write else UIO_READ)
    if not uio.uio_resid:
        return 0
    theirs = _remote_iov(lp, riov, nriov)
    if not any(length for _, length in theirs):
        return 0
    space = _space_of(lp, s32(pid))
    total = uio.uio_resid
    vmspace_hold(space)
    try:
        for base, length in theirs:
            _copy(space, base, min(length, uio.uio_resid), uio, write)
    except OSError:
        if uio.uio_resid == total:
            raise
    finally:
        vmspace_drop(space)
    return total - uio.uio_resid


def _remote_iov(lp: Lwp, riov: int, nriov: int) -> list[tuple[int, int]]:
    """Where in the other process; any address will do for now."""
    if nriov > IOV_MAX:
        raise err(EINVAL)
    raw = copyin(lp.lwp_proc.p_vmspace, riov, 16 * nriov) if nriov else b""
    words = unpack(f"<{2 * nriov}Q", raw)
    if any(length >> 63 for length in words[1::2]):
        raise err(EINVAL)
    return list(zip(words[::2], words[1::2], strict=True))


def _space_of(lp: Lwp, pid: int) -> Vmspace:
    """The memory of a process that one may do anything to.

    :raises OSError: ESRCH, also for one that has ended; EPERM.
    """
    p = lp.lwp_proc
    target = p.kernel.procs.get(pid)
    if target is None or target.p_stat == SZOMB or not target.p_lwps:
        raise err(ESRCH)
    if not may_trace(p, target):
        raise err(EPERM)
    return target.p_vmspace


def _copy(space: Vmspace, va: int, length: int, uio: Uio, write: bool) -> None:
    """Copy `length` bytes at `va` of the other space. May block.

    :raises OSError: EFAULT on either side; uio says how far it got.
    """
    vm = space.vm_map.vm
    prot = VM_PROT_WRITE if write else VM_PROT_READ
    end = va + length
    while va < end:
        if va >= VM_MAX_USER_ADDRESS:
            raise err(EFAULT)
        found, entry = vm_map_lookup_entry(space.vm_map, va)
        if found and entry is not None and entry.eflags & MARK_NOREAD and not write:
            raise err(EFAULT)
        m, _ = vm_fault_page(space.vm_map, va, prot, VM_FAULT_DIRTY if write else VM_FAULT_NORMAL)
        if m is None:
            raise err(EFAULT)
        try:
            n = min(PAGE_SIZE - (va & PAGE_MASK), end - va)
            va += uiomove_pa(vm, m.phys_addr + (va & PAGE_MASK), n, uio)
        finally:
            if write:  # at the end: it may have run what was there while this blocked
                vm.mmu.code_written(m.phys_addr >> PAGE_SHIFT)
            vm_page_unhold(vm, m)


# ---- advice --------------------------------------------------------------------------------------


def sys_process_madvise(lp: Lwp, pidfd: int, uiov: int, vlen: int, advice: int, flags: int) -> int:
    """process_madvise(2): returns how many bytes were advised, up to the first range that can't
    be."""
    from dfvm.kern.abi.linux.linux_madvise import REMOTE_ADVICE, madvise
    from dfvm.kern.sys_pidfd import pidfd_get

    if u32(flags):
        raise err(EINVAL)
    advice = s32(advice)
    p = lp.lwp_proc
    iov = user_iov(lp, uiov, vlen)
    target = pidfd_get(lp, pidfd).proc()
    if target.p_stat == SZOMB or not target.p_lwps:
        raise err(ESRCH)
    if not may_trace(p, target):
        raise err(EACCES)
    space = target.p_vmspace
    if space is not p.p_vmspace:
        if advice not in REMOTE_ADVICE:
            raise err(EINVAL)
        if not p.p_ucred.cr_cap_e & CAP_SYS_NICE:
            raise err(EPERM)
    done = 0
    vmspace_hold(space)
    try:
        for base, length in iov:
            madvise(lp, space.vm_map, base, length, advice)
            done += length
    except OSError:
        if not done:
            raise
    finally:
        vmspace_drop(space)
    return done


# ---- comparing -----------------------------------------------------------------------------------

KCMP_FILE: Final = 0
KCMP_VM: Final = 1
KCMP_FILES: Final = 2
KCMP_FS: Final = 3
KCMP_SIGHAND: Final = 4
KCMP_IO: Final = 5
KCMP_SYSVSEM: Final = 6
KCMP_EPOLL_TFD: Final = 7

_EPOLL_SLOT: Final = Struct("<III")  # struct kcmp_epoll_slot: epoll, descriptor, which of them


def sys_kcmp(lp: Lwp, pid1: int, pid2: int, kind: int, idx1: int, idx2: int) -> int:
    """kcmp(2): 0 when both processes have the same, else 1 or 2, by an order that is as good as any
    other."""
    kernel = lp.lwp_proc.kernel
    one, two = kernel.find_lwp(s32(pid1)), kernel.find_lwp(s32(pid2))
    if one is None or two is None:
        raise err(ESRCH)
    p, q = one.lwp_proc, two.lwp_proc
    if not may_trace(lp.lwp_proc, p) or not may_trace(lp.lwp_proc, q):
        raise err(EPERM)
    kind = s32(kind)
    if kind == KCMP_FILE:
        return _order(p.p_fd.fget_path(idx1), q.p_fd.fget_path(idx2))
    if kind == KCMP_EPOLL_TFD:
        return _order(p.p_fd.fget_path(idx1), _epoll_target(lp, q, idx2))
    if kind == KCMP_VM:
        return _order(p.p_vmspace, q.p_vmspace)
    if kind == KCMP_FILES:
        return _order(p.p_fd, q.p_fd)
    if kind == KCMP_FS:
        return _order(p.p_fs, q.p_fs)
    if kind == KCMP_SIGHAND:
        return _order(p.p_sigacts, q.p_sigacts)
    if kind == KCMP_SYSVSEM:
        return _order(p.p_semundo, q.p_semundo)
    if kind == KCMP_IO:
        return 0  # no block device, so nobody has an I/O context
    raise err(EINVAL)


def _order(one: object, two: object) -> int:
    return 0 if one is two else 1 if id(one) < id(two) else 2


def _epoll_target(lp: Lwp, q: Proc, uslot: int) -> File:
    """The file that an epoll of `q`'s watches, as the slot at `uslot` names it."""
    from dfvm.kern.sys_epoll import EpollFile

    efd, tfd, skip = _EPOLL_SLOT.unpack(copyin(lp.lwp_proc.p_vmspace, uslot, _EPOLL_SLOT.size))
    ep = q.p_fd.fget_path(efd)
    if not isinstance(ep, EpollFile):
        raise err(EINVAL)
    watched = [fp for fd, fp in ep.ep_items if fd == tfd]
    if skip >= len(watched):
        raise err(ENOENT)
    target: File = watched[skip]
    return target
