"""The files of /proc that are about the machine: meminfo, cpuinfo, stat, uptime, …, and /proc/sys.

Source: Linux fs/proc/{meminfo,stat,uptime,loadavg,version}.c, arch/x86/kernel/cpu/proc.c,
mm/vmstat.c, kernel/sysctl.c.
"""

from __future__ import annotations

import os
import re
from time import time_ns
from typing import TYPE_CHECKING, Final, NamedTuple

from dfvm.kern.kern_commit import commit_limit, committed
from dfvm.kern.kern_errno import EINVAL, err
from dfvm.kern.kern_sig import NSIG
from dfvm.kern.kern_time import USER_HZ
from dfvm.kern.proc import SSTOP, SZOMB
from dfvm.kern.sys_misc import UTS_LEN, UTS_RELEASE, UTS_SYSNAME, UTS_VERSION
from dfvm.kern.vfs.procfs import SYSTEM_INO, ProcDir, ProcFile, ProcLink, SysctlFile, parse_int
from dfvm.kern.vfs.procfs_sysctl import (
    FS_SYSCTLS,
    INOTIFY_SYSCTLS,
    INT_MAX,
    INT_MIN,
    IPC_SYSCTLS,
    MQ_SYSCTLS,
    PROC_SYSCTLS,
    SYSVIPC,
    VM_SYSCTLS,
    Sysctl,
)
from dfvm.kern.vfs.vfs_mount import FSTYPES
from dfvm.kern.vfs.vnode_param import FREAD
from dfvm.lwkt.lwkt_thread import RR_SLICE_NS
from dfvm.vm.vm_meter import vm_page_rollup
from dfvm.vm.vm_object import OBJT_DEFAULT, OBJT_SWAP, OBJT_VNODE
from dfvm.vm.vm_pageout import vm_pageout_drop_clean

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.kern_descrip import File
    from dfvm.kern.kernel import Kernel
    from dfvm.kern.vfs.procfs import ProcNode, PseudoMount

_TICK_NS: Final = 1_000_000_000 // USER_HZ
_KIB_PAGE: Final = 4  # KiB in a page

# What the engine's CPU has, in the order of CPUID as Linux prints it.
_CPU_FLAGS: Final = (
    "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 "
    "syscall nx lm rep_good nopl cpuid pni pclmulqdq ssse3 cx16 sse4_1 sse4_2 popcnt aes rdrand "
    "hypervisor lahf_lm abm fsgsbase bmi1 bmi2"
)

_CPUINFO: Final = """processor\t: {0}
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 6
model name\t: Unicorn x86-64
stepping\t: 3
cpu MHz\t\t: 1000.000
cache size\t: 16384 KB
physical id\t: 0
siblings\t: {1}
core id\t\t: {0}
cpu cores\t: {1}
apicid\t\t: {0}
initial apicid\t: {0}
fpu\t\t: yes
fpu_exception\t: yes
cpuid level\t: 13
wp\t\t: yes
flags\t\t: {2}
bugs\t\t:
bogomips\t: 2000.00
clflush size\t: 64
cache_alignment\t: 64
address sizes\t: 40 bits physical, 48 bits virtual
power management:

"""


def _resident(kernel: Kernel) -> tuple[int, int, int]:
    # Pages in memory of files, of anonymous objects, and of files in memory and System V segments,
    # which Linux counts among the files, too.
    files = anon = shmem = 0
    for bucket in kernel.vm.object_hash:
        for obj in bucket:
            if obj.type == OBJT_VNODE:
                files += obj.resident_page_count
                vp = obj.handle
                if vp is not None and vp.v_mount.mnt_fstype == "tmpfs":  # type: ignore[attr-defined]
                    shmem += obj.resident_page_count
            elif obj.shm is not None:
                files += obj.resident_page_count
                shmem += obj.resident_page_count
            elif obj.type in (OBJT_DEFAULT, OBJT_SWAP):
                anon += obj.resident_page_count
    return files, anon, shmem


def meminfo(kernel: Kernel) -> bytes:
    vm = kernel.vm
    vm_page_rollup(vm)
    s = vm.vmstats
    files, anon, shmem = _resident(kernel)
    available = s.v_free_count + s.v_cache_count + s.v_inactive_count - s.v_free_reserved
    pages = (
        ("MemTotal", s.v_page_count),
        ("MemFree", s.v_free_count),
        ("MemAvailable", max(available, 0)),
        ("Buffers", 0),
        ("Cached", files),
        ("SwapCached", 0),
        ("Active", s.v_active_count),
        ("Inactive", s.v_inactive_count),
        ("Unevictable", 0),
        ("Mlocked", sum(_locked(kernel))),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", anon),
        ("Mapped", files),
        ("Shmem", shmem),
        ("Slab", 0),
        ("KernelStack", 4 * len(kernel.procs)),
        ("PageTables", _tables(kernel)),
        ("CommitLimit", commit_limit(kernel)),
        ("Committed_AS", committed(kernel)),
    )
    lines = [f"{name + ':':<16}{n * _KIB_PAGE:8} kB\n" for name, n in pages]
    lines.append(f"{'VmallocTotal:':<15}{1 << 21:9} kB\n")
    lines.append(f"{'VmallocUsed:':<16}{kernel.vm.kernel_map.size >> 10:8} kB\n")
    lines.append("HugePages_Total:       0\nHugePages_Free:        0\n")
    lines.append("Hugepagesize:       2048 kB\n")
    return "".join(lines).encode()


def _locked(kernel: Kernel) -> list[int]:
    return [p.p_vmspace.vm_pmap.pm_stats.wired_count for p in kernel.procs.values() if p.p_lwps]


def _tables(kernel: Kernel) -> int:
    return sum(len(p.p_vmspace.vm_pmap.pm_pt) for p in kernel.procs.values() if p.p_lwps)


def cpuinfo(kernel: Kernel) -> bytes:
    return "".join(_CPUINFO.format(n, kernel.ncpu, _CPU_FLAGS) for n in range(kernel.ncpu)).encode()


def cpu_ticks(kernel: Kernel) -> tuple[int, int, int]:
    """User, system and idle time of all CPUs since boot, in clock ticks."""
    user = system = 0
    for td in kernel.sched.threads():
        user += td.user_ns
        system += td.sys_ns
    for p in kernel.procs.values():
        for ru in (p.p_ru, p.p_cru):
            user += ru.ru_utime_ns
            system += ru.ru_stime_ns
    idle = max(kernel.sched.uptime_ns * kernel.ncpu - user - system, 0)
    return user // _TICK_NS, system // _TICK_NS, idle // _TICK_NS


def _running(kernel: Kernel) -> int:
    return sum(
        1
        for p in kernel.procs.values()
        if p.p_stat not in (SZOMB, SSTOP)
        for lp in p.p_lwps.values()
        if lp.lwp_thread.td_wchan is None
    )


def stat(kernel: Kernel) -> bytes:
    vm_page_rollup(kernel.vm)
    m = kernel.vm.vmmeter
    user, system, idle = cpu_ticks(kernel)
    rest = "0 0 0 0 0 0"
    lines = [f"cpu  {user} 0 {system} {idle} {rest}"]
    for n in range(kernel.ncpu):
        share = (user, 0, system) if n == 0 else (0, 0, 0)
        idle_n = idle // kernel.ncpu
        lines.append(f"cpu{n} {share[0]} {share[1]} {share[2]} {idle_n} {rest}")
    boot = (time_ns() - kernel.sched.uptime_ns) // 1_000_000_000
    lines += [
        f"intr {m.v_trap}",
        f"ctxt {m.v_swtch}",
        f"btime {boot}",
        f"processes {kernel.lastpid}",
        f"procs_running {max(_running(kernel), 1)}",
        "procs_blocked 0",
        "softirq 0 0 0 0 0 0 0 0 0 0 0",
    ]
    return ("\n".join(lines) + "\n").encode()


def uptime(kernel: Kernel) -> bytes:
    up = kernel.sched.uptime_ns // 10_000_000
    idle = cpu_ticks(kernel)[2]
    return f"{up // 100}.{up % 100:02} {idle // 100}.{idle % 100:02}\n".encode()


def loadavg(kernel: Kernel) -> bytes:
    threads = sum(len(p.p_lwps) for p in kernel.procs.values())
    averages = " ".join(f"{n:.2f}" for n in kernel.sched.loadavg())
    return f"{averages} {max(_running(kernel), 1)}/{threads} {kernel.lastpid}\n".encode()


def version(kernel: Kernel) -> bytes:
    return b"%s version %s (dfvm) (Python) %s\n" % (UTS_SYSNAME, UTS_RELEASE, UTS_VERSION)


def vmstat(kernel: Kernel) -> bytes:
    vm_page_rollup(kernel.vm)
    s, m = kernel.vm.vmstats, kernel.vm.vmmeter
    files, anon, shmem = _resident(kernel)
    rows = (
        ("nr_free_pages", s.v_free_count),
        ("nr_inactive_file", s.v_inactive_count),
        ("nr_active_file", s.v_active_count),
        ("nr_mlock", sum(_locked(kernel))),
        ("nr_anon_pages", anon),
        ("nr_mapped", files),
        ("nr_file_pages", files),
        ("nr_dirty", 0),
        ("nr_writeback", 0),
        ("nr_shmem", shmem),
        ("nr_page_table_pages", _tables(kernel)),
        ("pgpgin", m.v_vnodepgsin * _KIB_PAGE),
        ("pgpgout", m.v_vnodepgsout * _KIB_PAGE),
        ("pswpin", 0),
        ("pswpout", 0),
        ("pgfree", m.v_tfree),
        ("pgfault", m.v_vm_faults),
        ("pgmajfault", m.v_vnodein),
        ("pgreuse", m.v_reactivated),
    )
    return "".join(f"{name} {n}\n" for name, n in rows).encode()


def filesystems(kernel: Kernel) -> bytes:
    # Those that can be mounted; and what is mounted without being of a kind that can.
    kinds = dict.fromkeys([*FSTYPES, *(fs.mnt_fstype for fs in kernel.vfs.filesystems)])
    return "".join(f"nodev\t{kind}\n" for kind in kinds).encode()


def devices(kernel: Kernel) -> bytes:
    majors = (
        (1, "mem"),
        (5, "/dev/tty"),
        (5, "/dev/console"),
        (5, "/dev/ptmx"),
        (10, "misc"),
        (136, "pts"),
    )
    lines = [f"{n:3} {name}" for n, name in majors]
    return ("Character devices:\n" + "\n".join(lines) + "\n\nBlock devices:\n  7 loop\n").encode()


def swaps(kernel: Kernel) -> bytes:
    return b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def locks(kernel: Kernel) -> bytes:
    from dfvm.kern.kern_lockf import lf_show

    if not kernel.files.nlockf:
        return b""
    files = {id(fp): fp for p in kernel.procs.values() if p.p_lwps
             for fp in p.p_fd.fd_files.values()}  # fmt: skip
    lwp = kernel.sched.curthread.td_lwp

    def inode(fp: File) -> str:
        va = fp.fo_stat(lwp)
        return f"{os.major(va.va_fsid):02x}:{os.minor(va.va_fsid):02x}:{va.va_fileid}"

    return lf_show(files.values(), inode).encode()


def partitions(kernel: Kernel) -> bytes:
    return b"major minor  #blocks  name\n\n"


def nothing(kernel: Kernel) -> bytes:
    """There is none of it: disks, modules."""
    return b""


def execdomains(kernel: Kernel) -> bytes:
    return b"0-0\tLinux           \t[kernel]\n"


def cmdline(kernel: Kernel) -> bytes:
    return b"BOOT_IMAGE=dfvm mem=%dK\n" % (kernel.vm.ram.size >> 10)


class Setting(NamedTuple):
    """A file of /proc/sys that can be written and is no number."""

    show: Callable[[Kernel], str] | None  # None: it can't be read
    store: Callable[[Kernel, bytes], None]


# Files and subdirectories of /proc/sys: text as it stands, what makes it, or a setting.
_Tree = dict[bytes, "_Tree | str | Callable[[Kernel], str] | Sysctl | Setting"]


def _name(data: bytes) -> bytes:
    """A name that is written: its first line, as far as it fits."""
    return re.split(rb"[\n\0]", data)[0][:UTS_LEN]


def _set_hostname(kernel: Kernel, data: bytes) -> None:
    kernel.hostname = _name(data)


def _set_domainname(kernel: Kernel, data: bytes) -> None:
    kernel.domainname = _name(data)


def _set_core_pattern(kernel: Kernel, data: bytes) -> None:
    from dfvm.kern.kern_core import set_core_pattern

    kernel.core_pattern = set_core_pattern(data)


def _set_core_uses_pid(kernel: Kernel, new: tuple[int, ...]) -> None:
    kernel.core_uses_pid = new[0]


def _drop_caches(kernel: Kernel, data: bytes) -> None:
    """1: clean pages of files that are not mapped; 2: vnodes that nobody uses."""
    n = parse_int(data)
    if not 1 <= n <= 4:
        raise err(EINVAL)
    if n & 2:
        kernel.vfs.recycle(len(kernel.vfs.inactive))
    if n & 1:
        vm_pageout_drop_clean(kernel.vm)


def _uuid() -> str:
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    h = raw.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def _boot_id(kernel: Kernel) -> str:
    # The same for a machine's whole life; nothing else has to know it.
    n = id(kernel) * 0x9E3779B97F4A7C15 & (1 << 128) - 1
    h = f"{n:032x}"
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-8{h[17:20]}-{h[20:]}"


_SYS: Final[_Tree] = {
    b"fs": {
        **FS_SYSCTLS,
        b"file-nr": lambda k: f"{k.files.nfiles}\t0\t{k.files.sysctl.file_max}",
        b"inotify": {**INOTIFY_SYSCTLS},
        b"inode-nr": lambda k: f"{len(k.vfs.inactive)}\t0",
        b"mqueue": {**MQ_SYSCTLS},
        b"pipe-user-pages-hard": "0",
        b"pipe-user-pages-soft": "16384",
        b"overflowgid": "65534",
        b"overflowuid": "65534",
        b"protected_fifos": "0",
        b"protected_hardlinks": "1",
        b"protected_regular": "0",
        b"protected_symlinks": "0",
        b"suid_dumpable": "0",
    },
    b"kernel": {
        b"arch": "x86_64",
        b"cap_last_cap": "40",
        b"core_pattern": Setting(
            lambda k: k.core_pattern.decode("utf-8", "replace"), _set_core_pattern
        ),
        b"core_pipe_limit": "0",
        b"core_uses_pid": Sysctl(
            lambda k: (k.core_uses_pid,), _set_core_uses_pid, INT_MIN, INT_MAX
        ),
        b"domainname": Setting(lambda k: k.domainname.decode("utf-8", "replace"), _set_domainname),
        b"hostname": Setting(lambda k: k.hostname.decode("utf-8", "replace"), _set_hostname),
        b"io_uring_disabled": "2",
        b"ngroups_max": "65536",
        b"osrelease": UTS_RELEASE.decode(),
        b"ostype": UTS_SYSNAME.decode(),
        b"overflowgid": "65534",
        b"overflowuid": "65534",
        b"panic": "0",
        b"printk": "4\t4\t1\t7",
        b"random": {
            b"boot_id": _boot_id,
            b"entropy_avail": "256",
            b"poolsize": "256",
            b"uuid": lambda k: _uuid(),
        },
        b"randomize_va_space": "0",
        b"rtsig-max": str(NSIG),
        b"sched_rr_timeslice_ms": str(RR_SLICE_NS // 1_000_000),
        b"sched_rt_period_us": "1000000",
        b"sched_rt_runtime_us": "-1",
        **IPC_SYSCTLS,
        **PROC_SYSCTLS,
        b"tainted": "0",
        b"version": UTS_VERSION.decode(),
    },
    b"vm": {
        **VM_SYSCTLS,
        b"drop_caches": Setting(None, _drop_caches),
        b"legacy_va_layout": "0",
        b"nr_hugepages": "0",
        b"oom_kill_allocating_task": "0",
        b"page-cluster": "3",
        b"panic_on_oom": "0",
        b"swappiness": "60",
    },
}  # fmt: skip


def _sys_entry(
    value: _Tree | str | Callable[[Kernel], str] | Sysctl | Setting,
) -> Callable[[ProcDir, int], ProcNode]:
    # What makes the vnode for one entry of _SYS.
    if isinstance(value, dict):
        entries = {name: _sys_entry(v) for name, v in value.items()}
        return lambda dvp, ino: ProcDir(dvp.v_mount, ino, entries)
    if isinstance(value, Sysctl):
        return value.node
    if isinstance(value, Setting):
        return lambda dvp, ino: _setting(dvp, ino, value)
    text = value

    def make(dvp: ProcDir, ino: int) -> ProcNode:
        kernel = dvp.kernel

        def show() -> bytes:
            return ((text if isinstance(text, str) else text(kernel)) + "\n").encode()

        return SysctlFile(dvp.v_mount, ino, show)

    return make


def _setting(dvp: ProcDir, ino: int, ctl: Setting) -> ProcNode:
    kernel, text = dvp.kernel, ctl.show

    def store(data: bytes) -> None:
        ctl.store(kernel, data)

    if text is None:
        return SysctlFile(dvp.v_mount, ino, None, store, 0o200)

    def show() -> bytes:
        return (text(kernel) + "\n").encode()

    return SysctlFile(dvp.v_mount, ino, show, store, 0o644)


_FILES: Final[dict[bytes, Callable[[Kernel], bytes]]] = {
    b"cmdline": cmdline,
    b"cpuinfo": cpuinfo,
    b"devices": devices,
    b"diskstats": nothing,
    b"execdomains": execdomains,
    b"filesystems": filesystems,
    b"loadavg": loadavg,
    b"locks": locks,
    b"meminfo": meminfo,
    b"modules": nothing,
    b"partitions": partitions,
    b"stat": stat,
    b"swaps": swaps,
    b"uptime": uptime,
    b"version": version,
    b"vmstat": vmstat,
}

# Everything in /proc but self, thread-self and the processes, in order.
SYSTEM: Final = (*_FILES, b"mounts", b"net", b"sys", b"sysvipc")


def system_node(mount: PseudoMount, name: bytes) -> ProcNode:
    """The vnode for one of SYSTEM."""
    ino = SYSTEM_INO + 2 + SYSTEM.index(name)
    if name == b"mounts":
        return ProcLink(mount, ino, lambda: b"self/mounts")
    if name == b"net":
        return ProcLink(mount, ino, lambda: b"self/net")
    if name == b"sys":
        return ProcDir(mount, ino, {n: _sys_entry(v) for n, v in _SYS.items()})
    if name == b"sysvipc":
        return ProcDir(mount, ino, SYSVIPC)
    kernel, show = mount.p_kernel, _FILES[name]
    return ProcFile(mount, ino, lambda: show(kernel), splice=0 if name == b"swaps" else FREAD)
