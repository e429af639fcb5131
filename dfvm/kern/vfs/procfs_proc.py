"""/proc/PID and /proc/PID/task/TID: what is known of a process, except for its memory
(procfs_maps.py).

Source: Linux fs/proc/{base,array,fd}.c; the columns of stat and the lines of status are explained
in Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.linux_struct import NS
from dfvm.kern.kern_caps import CAP_SYS_NICE, CAP_SYS_RESOURCE
from dfvm.kern.kern_descrip import FPATH
from dfvm.kern.kern_errno import EACCES, EINVAL, ENOENT, EPERM, ESRCH, err
from dfvm.kern.kern_sched import SCHED_RESET_ON_FORK
from dfvm.kern.kern_time import SIGEV_NONE, SIGEV_SIGNAL, SIGEV_THREAD, SIGEV_THREAD_ID, USER_HZ
from dfvm.kern.proc import P_CONTROLT, RLIMIT_SIGPENDING, SSTOP, SZOMB, calcru
from dfvm.kern.tty import HostTty
from dfvm.kern.vfs.procfs import (
    FdescVnode,
    ProcDir,
    ProcFile,
    ProcMagicLink,
    ProcNode,
    parse_int,
    parse_uint,
)
from dfvm.kern.vfs.procfs_maps import (
    ClearRefsFile,
    MapsFile,
    MemFile,
    PagemapFile,
    SpaceFile,
    maps,
    of_auxv,
    of_environ,
    of_maps,
    of_rollup,
    read_user,
    rss_split,
    smaps,
    space_of,
    vm_kinds,
)
from dfvm.kern.vfs.vfs_mount import mount_parent
from dfvm.kern.vfs.vnode import vn_fullpath
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE, VDIR, VTTODT, VUNLINKED, VWRITE
from dfvm.machine.reg import RIP, RSP
from dfvm.vm.vm_pageout import OOM_SCORE_ADJ_MIN, vm_oom_badness
from dfvm.vm.vm_param import PAGE_SIZE
from dfvm.vm.vm_proc import RLIM_INFINITY, RLIMIT_RSS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dfvm.kern.kern_descrip import File
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.kern.vfs.mount import Mount
    from dfvm.kern.vfs.procfs import PseudoMount, Show
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred
    from dfvm.vm.vmspace import Vmspace

_COREDUMP_BITS: Final = (1 << 9) - 1  # MMF_DUMP_FILTER_BITS

_TICK_NS: Final = NS // USER_HZ

_STATES: Final = {
    "R": "running",
    "S": "sleeping",
    "T": "stopped",
    "Z": "zombie",
}

# Name, unit, in the order of RLIMIT_*.
_LIMITS: Final = (
    ("Max cpu time", "seconds"),
    ("Max file size", "bytes"),
    ("Max data size", "bytes"),
    ("Max stack size", "bytes"),
    ("Max core file size", "bytes"),
    ("Max resident set", "bytes"),
    ("Max processes", "processes"),
    ("Max open files", "files"),
    ("Max locked memory", "bytes"),
    ("Max address space", "bytes"),
    ("Max file locks", "locks"),
    ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""),
    ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
)
_SIGEV: Final = {SIGEV_SIGNAL: "signal", SIGEV_NONE: "none", SIGEV_THREAD: "thread"}
_ID_MAP: Final = b"%10d %10d %10d\n" % (0, 0, (1 << 32) - 1)  # users are who they are


def proc_fileid(pid: int) -> int:
    """The inode number of /proc/PID."""
    return pid + 1 << 24


def _comm(p: Proc) -> bytes:
    return p.p_comm.encode("utf-8", "surrogateescape")


def _state(p: Proc, lp: Lwp | None) -> str:
    if p.p_stat == SZOMB:
        return "Z"
    if p.p_stat == SSTOP:
        return "T"
    if lp is None or lp.lwp_thread.td_wchan is not None:
        return "S"
    return "R"


def _lwp(p: Proc) -> Lwp | None:
    # The thread that speaks for the process.
    return next(iter(p.p_lwps.values()), None)


def _tty(p: Proc) -> tuple[int, int]:
    # Device number of the controlling terminal as stat has it, and its foreground group.
    tty = p.p_session.s_ttyp
    if tty is None or not p.p_flags & P_CONTROLT:
        return 0, -1
    rdev = 0
    if isinstance(tty, HostTty):
        vp = tty.t_vp
        rdev = os.fstat(tty.t_fd).st_rdev if vp is None else vp.getattr().va_rdev
    major, minor = os.major(rdev), os.minor(rdev)
    group = 0 if tty.t_pgrp is None else tty.t_pgrp.pg_id
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12, group


def stat(p: Proc, lp: Lwp | None, whole: bool) -> bytes:
    """`whole`: the process rather than the thread."""
    ru = calcru(p)
    tty, tpgid = _tty(p)
    space = space_of(p)
    size = rss = text = text_end = stack = data = data_end = 0
    if space is not None:
        size = space.vm_map.size
        rss = space.vm_pmap.pm_stats.resident_count
        text, text_end = space.vm_taddr, space.vm_taddr + space.vm_tsize
        data, data_end = space.vm_daddr, space.vm_daddr + space.vm_dsize
        stack = space.vm_minsaddr
    pending = p.p_sigqueue.pending | (lp.lwp_sigqueue.pending if lp else 0)
    acts = p.p_sigacts
    utime, stime = ru.ru_utime_ns, ru.ru_stime_ns
    if lp is not None and not whole:
        utime, stime = lp.lwp_thread.user_ns, lp.lwp_thread.sys_ns
    policy = lp.lwp_policy & ~SCHED_RESET_ON_FORK if lp else 0
    rtprio = lp.lwp_rtprio if lp else 0
    current = lp.lwp_thread.td_rtprio if lp else 0
    mask = (1 << 31) - 1  # the signal sets here are 32 bits, as they were in 1992
    limit = p.p_rlimit(RLIMIT_RSS)
    fields = (
        p.p_ppid(), p.p_pgrp.pg_id, p.p_session.s_sid, tty, tpgid,
        0, ru.ru_minflt, p.p_cru.ru_minflt, ru.ru_majflt, p.p_cru.ru_majflt,
        utime // _TICK_NS, stime // _TICK_NS,
        p.p_cru.ru_utime_ns // _TICK_NS, p.p_cru.ru_stime_ns // _TICK_NS,
        -1 - current if current else 20 + p.p_nice, p.p_nice, len(p.p_lwps) or 1, 0,
        p.p_start_ns // _TICK_NS,
        size, rss, limit, text, text_end, stack,
        0, 0,
        pending & mask, (lp.lwp_sigmask if lp else 0) & mask,
        acts.ignored_explicitly() & mask, acts.ps_sigcatch & mask,
        0, 0, 0, p.p_exitsig or 17, 0, rtprio, policy, 0, 0, 0,
        data, data_end, data, 0, 0, 0, 0, p.p_xstat if p.p_stat == SZOMB else 0,
    )  # fmt: skip
    pid = p.p_pid if whole or lp is None else lp.lwp_tid
    head = b"%d (%s) %s " % (pid, _comm(p), _state(p, lp).encode())
    return head + " ".join(map(str, fields)).encode() + b"\n"


def _cmdline(p: Proc) -> bytes:
    """The arguments as they are now. A program may write a title over them, and over the
    environment behind: its end is not where the last argument's was, then."""
    space = space_of(p)
    start, end = p.p_args
    if space is None or start == end:
        return b""
    if read_user(space, end - 1, end) in (b"", b"\0"):
        return read_user(space, start, end)
    title = read_user(space, start, start + PAGE_SIZE)
    return title[: title.find(b"\0") + 1 or None]


def statm(p: Proc) -> bytes:
    space = space_of(p)
    if space is None:
        return b"0 0 0 0 0 0 0\n"
    _, files, shmem = rss_split(space)
    kinds = vm_kinds(space)
    numbers = (
        space.vm_map.size >> 12,
        space.vm_pmap.pm_stats.resident_count,
        files + shmem,
        (space.vm_tsize + 4095) >> 12,
        0,
        kinds.data + kinds.stack >> 12,
        0,
    )
    return (" ".join(map(str, numbers)) + "\n").encode()


def _ranges(mask: int) -> str:
    """The set of a mask's bits: "0-2,5"."""
    words = []
    bit = 0
    while mask >> bit:
        if mask >> bit & 1:
            last = bit
            while mask >> last + 1 & 1:
                last += 1
            words.append(str(bit) if bit == last else f"{bit}-{last}")
            bit = last
        bit += 1
    return ",".join(words)


def status(p: Proc, lp: Lwp | None, whole: bool) -> bytes:
    cred = p.p_ucred
    state = _state(p, lp)
    pid = p.p_pid
    tid = pid if whole or lp is None else lp.lwp_tid
    ids = (pid, p.p_pgrp.pg_id, p.p_session.s_sid)
    lines = [
        f"Umask:\t{p.p_fs.fs_cmask:04o}" if p.p_lwps else "",
        f"State:\t{state} ({_STATES[state]})",
        f"Tgid:\t{pid}",
        "Ngid:\t0",
        f"Pid:\t{tid}",
        f"PPid:\t{p.p_ppid()}",
        "TracerPid:\t0",
        f"Uid:\t{cred.cr_ruid}\t{cred.cr_uid}\t{cred.cr_svuid}\t{cred.cr_fsuid}",
        f"Gid:\t{cred.cr_rgid}\t{cred.cr_gid}\t{cred.cr_svgid}\t{cred.cr_fsgid}",
        f"FDSize:\t{p.p_fd.fd_size if p.p_lwps else 0}",
        "Groups:\t" + "".join(f"{g} " for g in cred.cr_groups) + ("" if cred.cr_groups else " "),
        f"NStgid:\t{ids[0]}",
        f"NSpid:\t{tid}",
        f"NSpgid:\t{ids[1]}",
        f"NSsid:\t{ids[2]}",
        "Kthread:\t0",
    ]
    space = space_of(p)
    if space is not None:
        lines += _status_memory(p)
    acts = p.p_sigacts
    queued = sum(len(q) for q in p.p_sigqueue.infos.values())
    cpus = lp.lwp_cpumask if lp else (1 << p.kernel.ncpu) - 1
    lines += [
        "CoreDumping:\t0",
        "THP_enabled:\t0",
        f"Threads:\t{len(p.p_lwps) or 1}",
        f"SigQ:\t{queued}/{p.p_rlimit(RLIMIT_SIGPENDING)}",
        f"SigPnd:\t{lp.lwp_sigqueue.pending if lp else 0:016x}",
        f"ShdPnd:\t{p.p_sigqueue.pending:016x}",
        f"SigBlk:\t{lp.lwp_sigmask if lp else 0:016x}",
        f"SigIgn:\t{acts.ignored_explicitly():016x}",
        f"SigCgt:\t{acts.ps_sigcatch:016x}",
        f"CapInh:\t{cred.cr_cap_i:016x}",
        f"CapPrm:\t{cred.cr_cap_p:016x}",
        f"CapEff:\t{cred.cr_cap_e:016x}",
        f"CapBnd:\t{cred.cr_cap_b:016x}",
        f"CapAmb:\t{cred.cr_cap_a:016x}",
        f"NoNewPrivs:\t{int(p.p_nonewprivs)}",
        "Seccomp:\t0",
        "Seccomp_filters:\t0",
        f"Cpus_allowed:\t{cpus:x}",
        f"Cpus_allowed_list:\t{_ranges(cpus)}",
        "Mems_allowed:\t1",
        "Mems_allowed_list:\t0",
    ]
    ru = calcru(p)
    nv = ru.ru_nvcsw if whole or lp is None else lp.lwp_nvcsw
    niv = ru.ru_nivcsw if whole or lp is None else lp.lwp_nivcsw
    lines += [f"voluntary_ctxt_switches:\t{nv}", f"nonvoluntary_ctxt_switches:\t{niv}"]
    text = "\n".join(line for line in lines if line) + "\n"
    return b"Name:\t%s\n" % _comm(p) + text.encode()


def _status_memory(p: Proc) -> list[str]:
    space = p.p_vmspace
    anon, files, shmem = rss_split(space)
    rss = space.vm_pmap.pm_stats.resident_count * 4
    kinds = vm_kinds(space)
    size = space.vm_map.size >> 10
    high = max(rss, p.p_ru.ru_maxrss)
    start = space.vm_taddr & -4096
    text = ((space.vm_taddr + space.vm_tsize + 4095) & -4096) - start >> 10
    numbers = (
        ("VmPeak", size),
        ("VmSize", size),
        ("VmLck", kinds.locked >> 10),
        ("VmPin", 0),
        ("VmHWM", high),
        ("VmRSS", rss),
        ("RssAnon", anon * 4),
        ("RssFile", files * 4),
        ("RssShmem", shmem * 4),
        ("VmData", kinds.data >> 10),
        ("VmStk", kinds.stack >> 10),
        ("VmExe", text),
        ("VmLib", max((kinds.code >> 10) - text, 0)),
        ("VmPTE", (len(space.vm_pmap.pm_pt) + 3) * 4),
        ("VmSwap", 0),
    )
    return [f"{name}:\t{n:8} kB" for name, n in numbers] + ["HugetlbPages:\t       0 kB"]


def limits(p: Proc) -> bytes:
    lines = [f"{'Limit':<25} {'Soft Limit':<20} {'Hard Limit':<20} {'Units':<10}\n"]
    for (name, unit), pair in zip(_LIMITS, p.p_limit, strict=True):
        soft, hard = ("unlimited" if n == RLIM_INFINITY else str(n) for n in pair)
        lines.append(f"{name:<25} {soft:<20} {hard:<20} {unit and f'{unit:<10}'}\n")
    return "".join(lines).encode()


def _escape(path: bytes) -> bytes:
    # What would end a field in the mount tables.
    for c in b"\\ \t\n":
        path = path.replace(bytes((c,)), b"\\%03o" % c)
    return path


def _mounts(p: Proc) -> Iterator[tuple[Mount, bytes, bytes]]:
    # What is mounted below its root: the mount, from where, and the path.
    root = p.p_fs.fs_rdir
    for m in p.kernel.vfs.mounts:
        at = vn_fullpath(m.mnt_root, root)
        if m.mnt_root.v_flag & VUNLINKED:  # in the file system, not where it is mounted
            at = at.removesuffix(b" (deleted)")
        if at.startswith(b"/"):
            yield m, os.fsencode(m.mnt_from), at


def mounts(p: Proc) -> bytes:
    lines = []
    for m, source, at in _mounts(p):
        words = (source, at, m.mnt_fstype.encode(), os.fsencode(m.options()))
        lines.append(b" ".join(map(_escape, words)) + b" 0 0\n")
    return b"".join(lines)


def mountinfo(p: Proc) -> bytes:
    lines = []
    for m, source, at in _mounts(p):
        up = mount_parent(m)
        dev = m.mnt_root.getattr().va_fsid
        part = vn_fullpath(m.mnt_root.vop_data(), m.mnt_fs.mnt_root)
        if part.endswith(b" (deleted)"):
            part = part.removesuffix(b" (deleted)") + b"//deleted"
        lines.append(
            b"%d %d %d:%d %s %s %s%s - %s %s %s\n" % (
                m.mnt_id, 0 if up is None else up.mnt_id, os.major(dev), os.minor(dev),
                _escape(part), _escape(at), m.mount_options().encode(),
                b" unbindable" if m.mnt_unbindable else b"", m.mnt_fstype.encode(),
                _escape(source), os.fsencode(m.fs_options()),
            )
        )  # fmt: skip
    return b"".join(lines)


def _set_comm(p: Proc, data: bytes) -> None:
    p.p_comm = data.rstrip(b"\n")[:15].decode("utf-8", "surrogateescape")


def _set_oom(p: Proc, data: bytes) -> None:
    n = parse_int(data)
    if not OOM_SCORE_ADJ_MIN <= n <= -OOM_SCORE_ADJ_MIN:
        raise err(EINVAL)
    me: Proc | None = p.kernel.sched.curthread.td_proc
    privileged = me is None or bool(me.p_ucred.cr_cap_e & CAP_SYS_RESOURCE)
    if n < p.p_oom_score_min and not privileged:
        raise err(EACCES)
    p.p_oom_score_adj = n
    if privileged:
        p.p_oom_score_min = n


def _coredump_filter(p: Proc) -> bytes:
    return b"%08x\n" % p.p_coredump_filter if space_of(p) is not None else b""


def _set_coredump_filter(p: Proc, data: bytes) -> None:
    n = parse_uint(data)
    if space_of(p) is None:
        raise err(ESRCH)
    p.p_coredump_filter = n & _COREDUMP_BITS


def _oom_score(p: Proc) -> bytes:
    # In thousandths of memory, moved and scaled so that it is never negative.
    score = 0
    if p.p_lwps and p.p_oom_score_adj != OOM_SCORE_ADJ_MIN:
        vm = p.kernel.vm
        total = vm.gd.gd_vmstats.v_page_count
        score = max((1000 + vm_oom_badness(vm, p) * 1000 // total) * 2 // 3, 0)
    return b"%d\n" % score


def mountstats(p: Proc) -> bytes:
    line = b"device %s mounted on %s with fstype %s\n"
    return b"".join(
        line % (_escape(source), _escape(at), m.mnt_fstype.encode()) for m, source, at in _mounts(p)
    )


def _timers(p: Proc) -> bytes:
    lines = []
    timers = p.p_timers
    for timer in reversed(timers.posix.values()) if timers is not None else ():
        kind = _SIGEV[timer.notify & ~SIGEV_THREAD_ID]
        whom = f"pid.{p.p_pid}" if timer.target is None else f"tid.{timer.target.lwp_tid}"
        lines.append(
            f"ID: {timer.timerid}\nsignal: {timer.signo}/{timer.value:016x}\n"
            f"notify: {kind}/{whom}\nClockID: {timer.clock}\n"
        )
    return "".join(lines).encode()


def _set_timerslack(p: Proc, data: bytes) -> None:
    n = parse_int(data)
    if not 0 <= n < 1 << 64:
        raise err(EINVAL)
    me: Proc | None = p.kernel.sched.curthread.td_proc
    if me is not None and me is not p and not me.p_ucred.cr_cap_e & CAP_SYS_NICE:
        raise err(EPERM)
    p.p_timerslack = n or p.p_timerslack0


def _wchan(lp: Lwp | None) -> bytes:
    if lp is None or lp.lwp_thread.td_wchan is None:
        return b"0"
    return lp.lwp_thread.td_wmesg.encode()


def _syscall(p: Proc, lp: Lwp | None) -> bytes:
    # The call that the thread is in, with its arguments; who asks about itself is reading.
    if lp is None or p.p_stat == SZOMB:
        return b"-1 0x0 0x0\n"
    td = lp.lwp_thread
    if td.td_wchan is None and td is not p.kernel.sched.curthread:
        return b"running\n"
    q = lp.ctx.q
    if lp.lwp_syscall < 0:
        return b"-1 0x%x 0x%x\n" % (q[RSP], q[RIP])
    return b"%d 0x%x 0x%x 0x%x 0x%x 0x%x 0x%x 0x%x 0x%x\n" % (
        lp.lwp_syscall, q[7], q[6], q[2], q[10], q[8], q[9], q[RSP], q[RIP],
    )  # fmt: skip


# ---- descriptors ---------------------------------------------------------------------------------


class FdDir(ProcNode):
    """/proc/PID/fd, or fdinfo."""

    __slots__ = ("p_info",)

    p_info: bool  # fdinfo: files instead of links

    def __init__(self, mount: PseudoMount, fileid: int, proc: Proc, info: bool) -> None:
        super().__init__(mount, VDIR, 0o555 if info else 0o500, fileid, proc)
        self.p_info = info

    def access(self, want: int, cred: Cred) -> None:
        # A process may look at itself, whatever it has become.
        if want & VWRITE or self.kernel.sched.curthread.td_proc is not self.p_proc:
            super().access(want, cred)

    def _ino(self, fd: int) -> int:
        return (self.p_fileid << 21) + fd + 1 & (1 << 63) - 1

    def vop_lookup(self, name: bytes) -> Vnode | None:
        p = self.alive()
        if not name.isdigit() or (name[0] == 0x30 and name != b"0") or len(name) > 9:
            return None
        fd = int(name)
        files = p.p_fd.fd_files if p.p_lwps else {}
        fp = files.get(fd)
        if fp is None:
            return None
        if self.p_info:
            return ProcFile(
                self.v_mount, self._ino(fd), lambda: self._show(p, fd), None, 0o400, p, True
            )
        mode = 0o100 * (1 + 4 * bool(fp.f_mode & FREAD) + 2 * bool(fp.f_mode & FWRITE))
        if fp.f_mode & FPATH:
            mode = 0
        return ProcMagicLink(
            self.v_mount,
            self._ino(fd),
            p,
            lambda: self._text(p, fd),
            lambda: self._follow(p, fd),
            mode,
        )

    @staticmethod
    def _file(p: Proc, fd: int) -> File:
        fp = p.p_fd.fd_files.get(fd) if p.p_lwps else None
        if fp is None:
            raise err(ENOENT)
        return fp

    def _text(self, p: Proc, fd: int) -> bytes:
        fp = self._file(p, fd)
        if fp.f_vnode is None:
            return os.fsencode(fp.fo_name())
        return vn_fullpath(fp.f_vnode, _reader_root(self))

    def _follow(self, p: Proc, fd: int) -> Vnode:
        fp = self._file(p, fd)
        if fp.f_vnode is not None:
            return fp.f_vnode
        lwp = self.kernel.sched.curthread.td_lwp
        return FdescVnode(self.v_mount, fp, fp.fo_stat(lwp))

    def _show(self, p: Proc, fd: int) -> bytes:
        fp = self._file(p, fd)
        flag = fp.f_flag | (0o2000000 if fd in p.p_fd.fd_cloexec else 0)
        va = fp.fo_stat(self.kernel.sched.curthread.td_lwp)
        vp = fp.f_vnode  # what has none is in no mount that is shown
        mnt = p.kernel.vfs.last_mntid + 1 if vp is None else vp.v_mount.mnt_id
        text = f"pos:\t{fp.f_offset}\nflags:\t0{flag:o}\nmnt_id:\t{mnt}\nino:\t{va.va_fileid}\n"
        return (text + fp.fo_show()).encode()

    def vop_readdir(self) -> list[tuple[bytes, int, int]]:
        p = self.alive()
        files = sorted(p.p_fd.fd_files) if p.p_lwps else []
        dtype = 8 if self.p_info else 10
        return [(b"%d" % fd, self._ino(fd), dtype) for fd in files]


def _reader_root(vp: ProcNode) -> Vnode:
    # Paths are shown as the process that looks sees them.
    proc: Proc | None = vp.kernel.sched.curthread.td_proc
    if proc is None or not proc.p_lwps:
        return vp.kernel.vfs.rootvnode
    return proc.p_fs.fs_rdir


# ---- directories ---------------------------------------------------------------------------------


def _file(
    show: Callable[[Proc, Lwp | None, bool], bytes] | None,
    mode: int = 0o444,
    private: bool = False,
    store: Callable[[Proc, bytes], None] | None = None,
    splice: int = 0,
) -> Callable[[ProcDir, int], ProcNode]:
    """A file of a process's directory, or of a thread's."""

    def make(dvp: ProcDir, ino: int) -> ProcNode:
        p = dvp.p_proc
        assert p is not None and isinstance(dvp, ThreadDir)
        get = None if show is None else lambda: show(p, dvp.lwp(), dvp.p_whole)
        put = None if store is None else lambda data: store(p, data)
        return ProcFile(dvp.v_mount, ino, get, put, mode, p, private, splice)

    return make


def _link(what: Callable[[Proc], Vnode | None]) -> Callable[[ProcDir, int], ProcNode]:
    """A link to a vnode the process has."""

    def make(dvp: ProcDir, ino: int) -> ProcNode:
        p = dvp.p_proc
        assert p is not None

        def follow() -> Vnode:
            vp = what(p) if p.p_lwps else None
            if vp is None:
                raise err(ENOENT)
            return vp

        return ProcMagicLink(
            dvp.v_mount, ino, p, lambda: vn_fullpath(follow(), _reader_root(dvp)), follow
        )

    return make


def _fd_dir(info: bool) -> Callable[[ProcDir, int], ProcNode]:
    def make(dvp: ProcDir, ino: int) -> ProcNode:
        assert dvp.p_proc is not None
        return FdDir(dvp.v_mount, ino, dvp.p_proc, info)

    return make


def _memory_file(
    kind: type[MemFile] | type[PagemapFile] | type[ClearRefsFile],
) -> Callable[[ProcDir, int], ProcNode]:
    def make(dvp: ProcDir, ino: int) -> ProcNode:
        assert dvp.p_proc is not None
        return kind(dvp.v_mount, ino, dvp.p_proc)

    return make


def _space_file(
    show: Callable[[Proc, Vmspace | None], Show],
    mode: int = 0o444,
    kind: type[SpaceFile] = SpaceFile,
) -> Callable[[ProcDir, int], ProcNode]:
    def make(dvp: ProcDir, ino: int) -> ProcNode:
        assert dvp.p_proc is not None
        return kind(dvp.v_mount, ino, dvp.p_proc, mode, show)

    return make


# ---- namespaces ----------------------------------------------------------------------------------
# There is one of each kind, in which everybody is: the first one, whose inode numbers are Linux's.

_NAMESPACES: Final = {
    b"net": (b"net", 0xEFFF_FFF9),
    b"uts": (b"uts", 0xEFFF_FFFE),
    b"ipc": (b"ipc", 0xEFFF_FFFF),
    b"pid": (b"pid", 0xEFFF_FFFC),
    b"pid_for_children": (b"pid", 0xEFFF_FFFC),
    b"user": (b"user", 0xEFFF_FFFD),
    b"mnt": (b"mnt", 0xEFFF_FFF8),
    b"cgroup": (b"cgroup", 0xEFFF_FFFB),
    b"time": (b"time", 0xEFFF_FFFA),
    b"time_for_children": (b"time", 0xEFFF_FFFA),
}


class _Namespace(ProcFile):
    """What the links lead to: something to be compared with others of its kind."""

    __slots__ = ()

    def vop_open(self, fflag: int, cred: Cred) -> object | None:
        if fflag & FWRITE:
            raise err(EPERM)
        return None


def _namespace(kind: bytes, number: int) -> Callable[[ProcDir, int], ProcNode]:
    def make(dvp: ProcDir, ino: int) -> ProcNode:
        assert dvp.p_proc is not None
        return ProcMagicLink(
            dvp.v_mount,
            ino,
            dvp.p_proc,
            lambda: b"%s:[%d]" % (kind, number),
            lambda: _Namespace(dvp.v_mount, number, None),
        )

    return make


def _net_unix(dvp: ProcDir, ino: int) -> ProcNode:
    from dfvm.kern.uipc_check import unp_lines

    table = dvp.kernel.files
    return ProcFile(dvp.v_mount, ino, lambda: unp_lines(table), splice=FREAD)


def _net_dir(dvp: ProcDir, ino: int) -> ProcNode:
    return ProcDir(dvp.v_mount, ino, {b"unix": _net_unix}, 0o555, dvp.p_proc)


def _ns_dir(dvp: ProcDir, ino: int) -> ProcNode:
    entries = {name: _namespace(*which) for name, which in _NAMESPACES.items()}
    return ProcDir(dvp.v_mount, ino, entries, 0o511, dvp.p_proc)


class ThreadDir(ProcDir):
    """/proc/PID, or /proc/PID/task/TID."""

    __slots__ = ("p_tid", "p_whole")

    p_whole: bool  # the process rather than a thread
    p_tid: int  # which thread

    def __init__(self, mount: PseudoMount, fileid: int, p: Proc, tid: int, whole: bool) -> None:
        super().__init__(mount, fileid, _PROCESS if whole else _THREAD, 0o555, p)
        self.p_whole = whole
        self.p_tid = tid

    def lwp(self) -> Lwp | None:
        """The thread; None when it has exited."""
        assert self.p_proc is not None
        return _lwp(self.p_proc) if self.p_whole else self.p_proc.p_lwps.get(self.p_tid)


class TaskDir(ProcNode):
    """/proc/PID/task."""

    __slots__ = ()

    def vop_lookup(self, name: bytes) -> Vnode | None:
        p = self.alive()
        if not name.isdigit() or len(name) > 9:
            return None
        tid = int(name)
        if tid not in self._tids(p) or b"%d" % tid != name:
            return None
        return ThreadDir(self.v_mount, self._ino(tid), p, tid, False)

    def _ino(self, tid: int) -> int:
        return proc_fileid(tid) | 1 << 23

    @staticmethod
    def _tids(p: Proc) -> list[int]:
        return list(p.p_lwps) or [p.p_pid]

    def vop_readdir(self) -> list[tuple[bytes, int, int]]:
        p = self.alive()
        return [(b"%d" % tid, self._ino(tid), VTTODT[VDIR]) for tid in self._tids(p)]


def _task_dir(dvp: ProcDir, ino: int) -> ProcNode:
    return TaskDir(dvp.v_mount, VDIR, 0o555, ino, dvp.p_proc)


def _children(p: Proc) -> bytes:
    return b"".join(b"%d " % pid for pid in p.p_children)


def _text_vnode(p: Proc) -> Vnode | None:
    return p.p_textvp


# In Linux's order, which is that of readdir.
_COMMON: Final[dict[bytes, Callable[[ProcDir, int], ProcNode]]] = {
    b"fd": _fd_dir(False),
    b"fdinfo": _fd_dir(True),
    b"ns": _ns_dir,
    b"net": _net_dir,
    b"environ": _space_file(of_environ, 0o400),
    b"auxv": _space_file(of_auxv, 0o400),
    b"status": _file(status),
    b"personality": _file(lambda p, lp, whole: b"%08x\n" % p.p_personality, 0o400, True),
    b"limits": _file(lambda p, lp, whole: limits(p)),
    b"comm": _file(lambda p, lp, whole: _comm(p) + b"\n", 0o644, False, _set_comm),
    b"syscall": _file(lambda p, lp, whole: _syscall(p, lp), 0o400, True),
    b"cmdline": _file(lambda p, lp, whole: _cmdline(p)),
    b"stat": _file(stat),
    b"statm": _file(lambda p, lp, whole: statm(p)),
    b"maps": _space_file(of_maps(maps), kind=MapsFile),
    b"mem": _memory_file(MemFile),
    b"cwd": _link(lambda p: p.p_fs.fs_cdir),
    b"root": _link(lambda p: p.p_fs.fs_rdir),
    b"exe": _link(_text_vnode),
    b"mounts": _file(lambda p, lp, whole: mounts(p) if p.p_lwps else b"", splice=FREAD),
    b"mountinfo": _file(lambda p, lp, whole: mountinfo(p) if p.p_lwps else b"", splice=FREAD),
    b"clear_refs": _memory_file(ClearRefsFile),
    b"smaps": _space_file(of_maps(smaps)),
    b"smaps_rollup": _space_file(of_rollup),
    b"mountstats": _file(lambda p, lp, whole: mountstats(p) if p.p_lwps else b"", 0o400),
    b"pagemap": _memory_file(PagemapFile),
    b"wchan": _file(lambda p, lp, whole: _wchan(lp)),
    b"cgroup": _file(lambda p, lp, whole: b"0::/\n"),
    b"oom_score": _file(lambda p, lp, whole: _oom_score(p)),
    b"oom_score_adj": _file(
        lambda p, lp, whole: b"%d\n" % p.p_oom_score_adj, 0o644, False, _set_oom
    ),
    b"loginuid": _file(lambda p, lp, whole: b"4294967295"),
    b"sessionid": _file(lambda p, lp, whole: b"4294967295"),
    b"uid_map": _file(lambda p, lp, whole: _ID_MAP),
    b"gid_map": _file(lambda p, lp, whole: _ID_MAP),
    b"projid_map": _file(lambda p, lp, whole: _ID_MAP),
    b"setgroups": _file(lambda p, lp, whole: b"allow\n"),
}  # fmt: skip

_PROCESS: Final = {
    b"task": _task_dir,
    **_COMMON,
    b"coredump_filter": _file(
        lambda p, lp, whole: _coredump_filter(p), 0o644, False, _set_coredump_filter
    ),
    b"timers": _file(lambda p, lp, whole: _timers(p)),
    b"timerslack_ns": _file(
        lambda p, lp, whole: b"%d\n" % p.p_timerslack, 0o666, False, _set_timerslack
    ),
}
_THREAD: Final = {**_COMMON, b"children": _file(lambda p, lp, whole: _children(p))}


def proc_dir(mount: PseudoMount, p: Proc) -> ProcNode:
    """/proc/PID."""
    return ThreadDir(mount, proc_fileid(p.p_pid), p, p.p_pid, True)
