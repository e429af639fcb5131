"""Settings in /proc/sys that can be changed, and what of IPC is in /proc: its limits, and the lists
in /proc/sysvipc.

Source: Linux kernel/sysctl.c for how numbers are read, ipc/ipc_sysctl.c, ipc/mq_sysctl.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_caps import CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN
from dfvm.kern.kern_commit import OVERCOMMIT_NEVER
from dfvm.kern.kern_errno import EINVAL, EPERM, err
from dfvm.kern.sysv_ipc import IPCMNI, ipc_ns
from dfvm.kern.vfs.mqueuefs import HARD_MSGMAX, HARD_MSGSIZEMAX
from dfvm.kern.vfs.procfs import ProcFile, SysctlFile
from dfvm.vm.vm_meter import vmstats_set_thresholds
from dfvm.vm.vm_param import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.kernel import Kernel
    from dfvm.kern.vfs.procfs import ProcDir, ProcNode

INT_MAX: Final = (1 << 31) - 1
INT_MIN: Final = -INT_MAX - 1
LONG_MAX: Final = (1 << 63) - 1
ULONG_MAX: Final = (1 << 64) - 1

_MSGSIZE_MIN: Final = 128
_DIGITS: Final = {"0x": 16, "0X": 16}


class Sysctl:
    """One file of numbers."""

    __slots__ = ("cap", "get", "high", "low", "mode", "put")

    get: Callable[[Kernel], tuple[int, ...]]  # what the numbers are
    put: Callable[[Kernel, tuple[int, ...]], None]  # make them others
    low: int  # what each of them is at least
    high: tuple[int, ...]  # and at most
    mode: int  # of the file
    cap: int  # and who may write to it whatever that is

    def __init__(
        self,
        get: Callable[[Kernel], tuple[int, ...]],
        put: Callable[[Kernel, tuple[int, ...]], None],
        low: int,
        *high: int,
        mode: int = 0o644,
        cap: int = 0,
    ) -> None:
        self.get, self.put, self.low, self.high = get, put, low, high
        self.mode, self.cap = mode, cap

    def show(self, kernel: Kernel) -> bytes:
        """What the file says."""
        return "\t".join(str(n) for n in self.get(kernel)).encode() + b"\n"

    def store(self, kernel: Kernel, data: bytes) -> None:
        """Take what is written to it: as many numbers as there are, or fewer. Those before a bad
        one count.

        :raises OSError: EINVAL.
        """
        new = list(self.get(kernel))
        words = data.decode("latin-1").rstrip("\0").split()
        if not words:
            raise err(EINVAL)
        try:
            for i, (word, high) in enumerate(zip(words, self.high, strict=False)):
                n = _number(word)
                if not self.low <= n <= high:
                    raise err(EINVAL)
                new[i] = n
        finally:
            self.put(kernel, tuple(new))

    def node(self, dvp: ProcDir, ino: int) -> SysctlFile:
        """A vnode for it."""
        kernel = dvp.kernel
        return SysctlFile(
            dvp.v_mount,
            ino,
            lambda: self.show(kernel),
            lambda data: self.store(kernel, data),
            self.mode,
            self.cap,
        )


def _number(word: str) -> int:
    """A number as C writes it."""
    sign = -1 if word.startswith("-") else 1
    digits = word[1:] if sign < 0 else word
    base = _DIGITS.get(digits[:2], 8 if digits.startswith("0") and len(digits) > 1 else 10)
    digits = digits[2:] if base == 16 else digits
    if not digits.isascii() or not digits.isalnum():
        raise err(EINVAL)
    try:
        return sign * int(digits, base)
    except ValueError:
        raise err(EINVAL) from None


def _setting(name: str, low: int, high: int) -> Sysctl:
    """One limit of the machine's IPC."""
    return Sysctl(
        lambda kernel: (getattr(ipc_ns(kernel), name),),
        lambda kernel, new: setattr(ipc_ns(kernel), name, new[0]),
        low,
        high,
    )


def _next_id(kind: str) -> Sysctl:
    return Sysctl(
        lambda kernel: (getattr(ipc_ns(kernel), kind).next_id,),
        lambda kernel, new: setattr(getattr(ipc_ns(kernel), kind), "next_id", new[0]),
        0,
        INT_MAX,
        mode=0o444,
        cap=CAP_SYS_ADMIN | CAP_CHECKPOINT_RESTORE,
    )


def _sem(kernel: Kernel) -> tuple[int, ...]:
    ns = ipc_ns(kernel)
    return ns.sem_msl, ns.sem_mns, ns.sem_opm, ns.sem_mni


def _set_sem(kernel: Kernel, new: tuple[int, ...]) -> None:
    ns = ipc_ns(kernel)
    ns.sem_msl, ns.sem_mns, ns.sem_opm, ns.sem_mni = new


def _set_forced(kernel: Kernel, new: tuple[int, ...]) -> None:
    from dfvm.kern.sysv_shm import shm_force

    shm_force(ipc_ns(kernel), new[0])


# In /proc/sys/kernel.
IPC_SYSCTLS: Final[dict[bytes, Sysctl]] = {
    b"auto_msgmni": Sysctl(lambda kernel: (0,), lambda kernel, new: None, 0, 1),  # as in Linux
    b"msg_next_id": _next_id("msg_ids"),
    b"msgmax": _setting("msg_ctlmax", 0, INT_MAX),
    b"msgmnb": _setting("msg_ctlmnb", 0, INT_MAX),
    b"msgmni": _setting("msg_ctlmni", 0, IPCMNI),
    b"sem": Sysctl(_sem, _set_sem, 0, INT_MAX, INT_MAX, INT_MAX, IPCMNI),
    b"sem_next_id": _next_id("sem_ids"),
    b"shm_next_id": _next_id("shm_ids"),
    b"shm_rmid_forced": Sysctl(lambda kernel: (ipc_ns(kernel).shm_rmid_forced,), _set_forced, 0, 1),
    b"shmall": _setting("shm_ctlall", 0, ULONG_MAX),
    b"shmmax": _setting("shm_ctlmax", 0, ULONG_MAX),
    b"shmmni": _setting("shm_ctlmni", 0, IPCMNI),
}


def _mq(name: str, low: int, high: int) -> Sysctl:
    """One limit of POSIX message queues."""
    return Sysctl(
        lambda kernel: (getattr(kernel.mqueues, name),),
        lambda kernel, new: setattr(kernel.mqueues, name, new[0]),
        low,
        high,
    )


# In /proc/sys/fs/mqueue.
MQ_SYSCTLS: Final[dict[bytes, Sysctl]] = {
    b"msg_default": _mq("m_msg_default", 1, HARD_MSGMAX),
    b"msg_max": _mq("m_msg_max", 1, HARD_MSGMAX),
    b"msgsize_default": _mq("m_msgsize_default", _MSGSIZE_MIN, HARD_MSGSIZEMAX),
    b"msgsize_max": _mq("m_msgsize_max", _MSGSIZE_MIN, HARD_MSGSIZEMAX),
    b"queues_max": _mq("m_queues_max", INT_MIN, INT_MAX),
}


def _fs(name: str, low: int = 0, high: int = INT_MAX) -> Sysctl:
    """One setting of open files (FileSysctl)."""
    return Sysctl(
        lambda kernel: (getattr(kernel.files.sysctl, name),),
        lambda kernel, new: setattr(kernel.files.sysctl, name, new[0]),
        low,
        high,
    )


def _set_nr_open(kernel: Kernel, new: tuple[int, ...]) -> None:
    kernel.files.sysctl.nr_open = new[0] & -64


def _set_pipe_max_size(kernel: Kernel, new: tuple[int, ...]) -> None:
    pages = max(new[0] + PAGE_SIZE - 1 >> 12, 1)
    kernel.files.sysctl.pipe_max_size = PAGE_SIZE << (pages - 1).bit_length()


# In /proc/sys/fs.
FS_SYSCTLS: Final[dict[bytes, Sysctl]] = {
    b"dir-notify-enable": _fs("dir_notify_enable"),
    b"file-max": _fs("file_max", 0, LONG_MAX),
    b"lease-break-time": _fs("lease_break_time"),
    b"leases-enable": _fs("leases_enable"),
    b"nr_open": Sysctl(
        lambda k: (k.files.sysctl.nr_open,), _set_nr_open, 64, INT_MAX // 8 & -64
    ),
    b"pipe-max-size": Sysctl(
        lambda k: (k.files.sysctl.pipe_max_size,), _set_pipe_max_size, 1, 1 << 31
    ),
}  # fmt: skip

# In /proc/sys/fs/inotify.
INOTIFY_SYSCTLS: Final[dict[bytes, Sysctl]] = {
    b"max_queued_events": _fs("max_queued_events"),
    b"max_user_instances": _fs("max_user_instances"),
    b"max_user_watches": _fs("max_user_watches"),
}


def _set_last_pid(kernel: Kernel, new: tuple[int, ...]) -> None:
    if not kernel.files.capable(CAP_SYS_ADMIN | CAP_CHECKPOINT_RESTORE):
        raise err(EPERM)
    if new[0] >= kernel.pid_max:
        raise err(EINVAL)
    kernel.lastpid = new[0]


def _set_pid_max(kernel: Kernel, new: tuple[int, ...]) -> None:
    kernel.pid_max = new[0]


def _set_threads_max(kernel: Kernel, new: tuple[int, ...]) -> None:
    kernel.threads_max = new[0]


# In /proc/sys/kernel. (Their limits: RESERVED_PIDS + 1, PID_MAX_LIMIT, MIN_THREADS, MAX_THREADS.)
PROC_SYSCTLS: Final[dict[bytes, Sysctl]] = {
    b"ns_last_pid": Sysctl(lambda k: (k.lastpid,), _set_last_pid, 0, INT_MAX, mode=0o666),
    b"pid_max": Sysctl(lambda k: (k.pid_max,), _set_pid_max, 301, 4 << 20),
    b"threads-max": Sysctl(lambda k: (k.threads_max,), _set_threads_max, 20, 1 << 30),
}


def _commit(name: str, high: int = ULONG_MAX, other: str | None = None) -> Sysctl:
    """One setting of what memory may be promised (Overcommit). To set it ends what `other` said of
    the same thing."""

    def put(kernel: Kernel, new: tuple[int, ...]) -> None:
        setattr(kernel.overcommit, name, new[0])
        if other is not None:
            setattr(kernel.overcommit, other, 0)

    return Sysctl(lambda kernel: (getattr(kernel.overcommit, name),), put, 0, high)


def _set_max_map_count(kernel: Kernel, new: tuple[int, ...]) -> None:
    kernel.vm.sysctl.max_proc_mmap = new[0]


def _set_min_free_kbytes(kernel: Kernel, new: tuple[int, ...]) -> None:
    kernel.vm.sysctl.min_free_kbytes = new[0]
    vmstats_set_thresholds(kernel.vm)


def _set_mmap_min_addr(kernel: Kernel, new: tuple[int, ...]) -> None:
    kernel.mmap_min_addr = new[0]


# In /proc/sys/vm.
VM_SYSCTLS: Final[dict[bytes, Sysctl]] = {
    b"admin_reserve_kbytes": _commit("admin_reserve_kbytes"),
    b"max_map_count": Sysctl(
        lambda k: (k.vm.sysctl.max_proc_mmap,), _set_max_map_count, 0, INT_MAX
    ),
    b"min_free_kbytes": Sysctl(
        lambda k: (k.vm.sysctl.min_free_kbytes,), _set_min_free_kbytes, 0, INT_MAX
    ),
    b"mmap_min_addr": Sysctl(lambda k: (k.mmap_min_addr,), _set_mmap_min_addr, 0, ULONG_MAX),
    b"overcommit_kbytes": _commit("overcommit_kbytes", ULONG_MAX, "overcommit_ratio"),
    b"overcommit_memory": _commit("overcommit_memory", OVERCOMMIT_NEVER),
    b"overcommit_ratio": _commit("overcommit_ratio", INT_MAX, "overcommit_kbytes"),
    b"user_reserve_kbytes": _commit("user_reserve_kbytes"),
}  # fmt: skip


def _msg_lines(kernel: Kernel) -> bytes:
    from dfvm.kern.sysv_msg import msg_lines

    return msg_lines(kernel)


def _sem_lines(kernel: Kernel) -> bytes:
    from dfvm.kern.sysv_sem import sem_lines

    return sem_lines(kernel)


def _shm_lines(kernel: Kernel) -> bytes:
    from dfvm.kern.sysv_shm import shm_lines

    return shm_lines(kernel)


def _sysvipc(lines: Callable[[Kernel], bytes]) -> Callable[[ProcDir, int], ProcNode]:
    def make(dvp: ProcDir, ino: int) -> ProcNode:
        kernel = dvp.kernel
        return ProcFile(dvp.v_mount, ino, lambda: lines(kernel))

    return make


# In /proc/sysvipc.
SYSVIPC: Final = {
    b"msg": _sysvipc(_msg_lines),
    b"sem": _sysvipc(_sem_lines),
    b"shm": _sysvipc(_shm_lines),
}
