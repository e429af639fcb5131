"""System calls that belong to no other part: what the system is, random bytes, and what a thread
may set about itself.

Source: Linux kernel/sys.c, arch/x86/kernel/process_64.c for arguments and errors.
"""

from __future__ import annotations

from os import urandom
from struct import Struct
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.abi.linux.linux_struct import NS
from dfvm.kern.kern_caps import CAP_SYS_ADMIN
from dfvm.kern.kern_errno import EINVAL, ENODEV, ENOSYS, EPERM, err
from dfvm.kern.sys_generic import MAX_RW_COUNT, user_range
from dfvm.vm.copyio import UIO_READ, Uio, copyin, copyout, suword32, uiomove
from dfvm.vm.vm_meter import vm_page_rollup
from dfvm.vm.vm_param import PAGE_SHIFT, VM_MAX_USER_ADDRESS

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp

_U32: Final = (1 << 32) - 1


# ---- what the system is --------------------------------------------------------------------------

UTS_LEN: Final = 64  # longest of the strings of uname, without its NUL
UTS_SYSNAME: Final = b"Linux"
UTS_RELEASE: Final = b"6.1.0-dfvm"
UTS_VERSION: Final = b"#1 DragonFly VM"
UTS_MACHINE: Final = b"x86_64"

# uptime, 3 load averages, 6 memory sizes, processes, 2 sizes of high memory, unit.
_LOAD_SCALE: Final = 1 << 16  # what 1 is among the loads of sysinfo
_SYSINFO: Final = Struct("<q3Q6QHxxxxxx2QI4x")


def sys_uname(lp: Lwp, buf: int) -> int:
    """Names of the system."""
    kernel = lp.lwp_proc.kernel
    names = (UTS_SYSNAME, kernel.hostname, UTS_RELEASE, UTS_VERSION, UTS_MACHINE,
             kernel.domainname)  # fmt: skip
    data = b"".join(name[:UTS_LEN].ljust(UTS_LEN + 1, b"\0") for name in names)
    copyout(lp.lwp_proc.p_vmspace, data, buf)
    return 0


def _copyin_name(lp: Lwp, name: int, length: int) -> bytes:
    if not lp.lwp_proc.p_ucred.cr_cap_e & CAP_SYS_ADMIN:
        raise err(EPERM)
    length = s32(length)
    if not 0 <= length <= UTS_LEN:
        raise err(EINVAL)
    return copyin(lp.lwp_proc.p_vmspace, name, length).split(b"\0")[0]


def sys_sethostname(lp: Lwp, name: int, length: int) -> int:
    """Name the machine."""
    lp.lwp_proc.kernel.hostname = _copyin_name(lp, name, length)
    return 0


def sys_setdomainname(lp: Lwp, name: int, length: int) -> int:
    """Name its NIS domain."""
    lp.lwp_proc.kernel.domainname = _copyin_name(lp, name, length)
    return 0


def sys_sysinfo(lp: Lwp, info: int) -> int:
    """Memory, processes, uptime, load averages."""
    kernel = lp.lwp_proc.kernel
    vm = kernel.vm
    vm_page_rollup(vm)
    stats = vm.vmstats
    total, free = stats.v_page_count << PAGE_SHIFT, stats.v_free_count << PAGE_SHIFT
    data = _SYSINFO.pack(
        kernel.sched.uptime_ns // NS, *(int(n * _LOAD_SCALE) for n in kernel.sched.loadavg()),
        total, free, 0, 0, 0, 0, min(len(kernel.procs), 0xFFFF), 0, 0, 1,
    )  # fmt: skip
    copyout(lp.lwp_proc.p_vmspace, data, info)
    return 0


def sys_getcpu(lp: Lwp, cpu: int, node: int, cache: int) -> int:
    """Which CPU this is: the only one."""
    for addr in (cpu, node):
        if addr:
            suword32(lp.lwp_proc.p_vmspace, addr, 0)
    return 0


MEMBARRIER_GLOBAL: Final = 1 << 0
MEMBARRIER_GLOBAL_EXPEDITED: Final = 1 << 1
MEMBARRIER_REGISTER_GLOBAL_EXPEDITED: Final = 1 << 2
MEMBARRIER_PRIVATE_EXPEDITED: Final = 1 << 3
MEMBARRIER_REGISTER_PRIVATE_EXPEDITED: Final = 1 << 4
MEMBARRIER_PRIVATE_EXPEDITED_SYNC_CORE: Final = 1 << 5
MEMBARRIER_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE: Final = 1 << 6
MEMBARRIER_GET_REGISTRATIONS: Final = 1 << 9
_MEMBARRIER_REGISTER: Final = (
    MEMBARRIER_REGISTER_GLOBAL_EXPEDITED
    | MEMBARRIER_REGISTER_PRIVATE_EXPEDITED
    | MEMBARRIER_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE
)
# What must have been registered before.
_MEMBARRIER_NEEDS: Final = {
    MEMBARRIER_PRIVATE_EXPEDITED: MEMBARRIER_REGISTER_PRIVATE_EXPEDITED,
    MEMBARRIER_PRIVATE_EXPEDITED_SYNC_CORE: MEMBARRIER_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE,
}
_MEMBARRIER_ALL: Final = (
    MEMBARRIER_GLOBAL
    | MEMBARRIER_GLOBAL_EXPEDITED
    | MEMBARRIER_PRIVATE_EXPEDITED
    | MEMBARRIER_PRIVATE_EXPEDITED_SYNC_CORE
    | MEMBARRIER_GET_REGISTRATIONS
    | _MEMBARRIER_REGISTER
)


def sys_membarrier(lp: Lwp, cmd: int, flags: int, cpu: int) -> int:
    """membarrier(2). On the one CPU nobody else runs meanwhile: whoever ran before has done all
    that it had begun, and whoever runs next sees it. The engine itself notices changed code. There
    are no restartable sequences to be restarted, so that command is not offered."""
    cmd = s32(cmd)
    if u32(flags):
        raise err(EINVAL)
    if not cmd:
        return _MEMBARRIER_ALL
    if cmd & cmd - 1 or not cmd & _MEMBARRIER_ALL:
        raise err(EINVAL)
    p = lp.lwp_proc
    if cmd & _MEMBARRIER_REGISTER:
        p.p_membarrier |= cmd
    elif cmd == MEMBARRIER_GET_REGISTRATIONS:
        return p.p_membarrier
    elif cmd in _MEMBARRIER_NEEDS and not p.p_membarrier & _MEMBARRIER_NEEDS[cmd]:
        raise err(EPERM)
    return 0


def sys_rseq(lp: Lwp, rseq: int, length: int, flags: int, sig: int) -> int:
    """Not here; its users fall back to something else."""
    raise err(ENOSYS)


# ---- random bytes --------------------------------------------------------------------------------

GRND_NONBLOCK: Final = 1
GRND_RANDOM: Final = 2
GRND_INSECURE: Final = 4

_RANDOM_CHUNK: Final = 1 << 16  # bytes made at once


def sys_getrandom(lp: Lwp, buf: int, count: int, flags: int) -> int:
    """Random bytes; never blocks, the host has plenty."""
    flags = u32(flags)
    if flags & ~(GRND_NONBLOCK | GRND_RANDOM | GRND_INSECURE):
        raise err(EINVAL)
    if flags & GRND_INSECURE and flags & GRND_RANDOM:
        raise err(EINVAL)
    count = user_range(buf, min(count, MAX_RW_COUNT))
    uio = Uio(lp.lwp_proc.p_vmspace, [(buf, count)], UIO_READ)
    while uio.uio_resid:
        try:
            uiomove(urandom(min(uio.uio_resid, _RANDOM_CHUNK)), uio)
        except OSError:
            if uio.uio_resid == count:
                raise
            break
    return count - uio.uio_resid


# ---- about the thread ----------------------------------------------------------------------------

ARCH_SET_GS: Final = 0x1001
ARCH_SET_FS: Final = 0x1002
ARCH_GET_FS: Final = 0x1003
ARCH_GET_GS: Final = 0x1004
ARCH_GET_CPUID: Final = 0x1011
ARCH_SET_CPUID: Final = 0x1012


def sys_arch_prctl(lp: Lwp, code: int, addr: int) -> int:
    """The segment bases, through which a program finds its thread-local storage."""
    code = s32(code)
    ctx = lp.ctx
    if code in (ARCH_SET_FS, ARCH_SET_GS):
        if addr >= VM_MAX_USER_ADDRESS:
            raise err(EPERM)
        if code == ARCH_SET_FS:
            ctx.fs_base = addr
        else:
            ctx.gs_base = addr
    elif code in (ARCH_GET_FS, ARCH_GET_GS):
        base = ctx.fs_base if code == ARCH_GET_FS else ctx.gs_base
        copyout(lp.lwp_proc.p_vmspace, base.to_bytes(8, "little"), addr)
    elif code == ARCH_GET_CPUID:
        return 1  # the instruction may be used
    elif code == ARCH_SET_CPUID:
        raise err(ENODEV)
    else:
        raise err(EINVAL)
    return 0


def sys_set_tid_address(lp: Lwp, tidptr: int) -> int:
    """The word to zero and wake when the thread ends."""
    lp.lwp_clear_tid = tidptr
    return lp.lwp_tid


def sys_personality(lp: Lwp, persona: int) -> int:
    """Set and tell the execution domain."""
    persona = u32(persona)
    p = lp.lwp_proc
    old = p.p_personality
    if persona != _U32:
        p.p_personality = persona
    return old
