"""Settings in /proc/sys that can be changed, and what of IPC is in /proc: its limits, and the lists
in /proc/sysvipc.

Source: Linux kernel/sysctl.c for how numbers are read, ipc/ipc_sysctl.c, ipc/mq_sysctl.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import EINVAL, err
from dfvm.kern.sysv_ipc import IPCMNI, ipc_ns
from dfvm.kern.vfs.mqueuefs import HARD_MSGMAX, HARD_MSGSIZEMAX
from dfvm.kern.vfs.procfs import ProcFile
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.kernel import Kernel
    from dfvm.kern.vfs.procfs import ProcDir, ProcNode

INT_MAX: Final = (1 << 31) - 1
ULONG_MAX: Final = (1 << 64) - 1

_MSGSIZE_MIN: Final = 128
_DIGITS: Final = {"0x": 16, "0X": 16}


class Sysctl:
    """One file of numbers."""

    __slots__ = ("get", "high", "low", "mode", "put")

    get: Callable[[Kernel], tuple[int, ...]]  # what the numbers are
    put: Callable[[Kernel, tuple[int, ...]], None]  # make them others
    low: int  # what each of them is at least
    high: tuple[int, ...]  # and at most
    mode: int  # of the file

    def __init__(
        self,
        get: Callable[[Kernel], tuple[int, ...]],
        put: Callable[[Kernel, tuple[int, ...]], None],
        low: int,
        *high: int,
        mode: int = 0o644,
    ) -> None:
        self.get, self.put, self.low, self.high, self.mode = get, put, low, high, mode

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

    def node(self, dvp: ProcDir, ino: int) -> ProcFile:
        """A vnode for it."""
        kernel = dvp.kernel
        return ProcFile(
            dvp.v_mount, ino, lambda: self.show(kernel), lambda data: self.store(kernel, data),
            mode=self.mode, splice=FREAD | FWRITE,
        )  # fmt: skip


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
    b"queues_max": _mq("m_queues_max", -INT_MAX - 1, INT_MAX),
}


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
