"""System V message queues.

A message goes straight to whoever has waited longest for one of its type; only if there is nobody
is it entered in the queue. Those who wait for room are woken in the order in which they came, as
far as what they have fits.

Source: Linux ipc/msg.c for the behaviour, DragonFly sys/kern/sysv_msg.c for the names.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, s64, u32
from dfvm.kern.kern_caps import CAP_SYS_RESOURCE
from dfvm.kern.kern_errno import E2BIG, EAGAIN, EIDRM, EINVAL, ENOMSG, EPERM, err
from dfvm.kern.kern_sig import ERESTARTNOHAND
from dfvm.kern.sysv_ipc import (
    IPC_INFO,
    IPC_NOWAIT,
    IPC_RMID,
    IPC_SET,
    IPC_STAT,
    PERM_SIZE,
    S_IRUGO,
    S_IWUGO,
    IpcPerm,
    ipc_now,
    ipc_ns,
    ipc_own,
    ipcget,
    ipcperms,
)
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.kern.sysv_ipc import IpcNs

# Flags of msgrcv, beside IPC_NOWAIT.
MSG_NOERROR: Final = 0o10000  # cut what is too long
MSG_EXCEPT: Final = 0o20000  # any type but that
MSG_COPY: Final = 0o40000  # look at the message in that place, and leave it

# msgctl's own commands.
MSG_STAT: Final = 11
MSG_INFO: Final = 12
MSG_STAT_ANY: Final = 13

# What msgrcv looks for.
_ANY: Final = 0
_EQUAL: Final = 1
_NOTEQUAL: Final = 2
_LESSEQUAL: Final = 3
_NUMBER: Final = 4

_LONG_MAX: Final = (1 << 63) - 1
_INT_MAX: Final = (1 << 31) - 1

_MSG_BYTES: Final = 48  # what a message is charged as, beside its text
_QUEUE_BYTES: Final = 256

# What MSGPOOL and its kin say of the kernels that had them.
_MSGMNB: Final = 16384
_MSGPOOL: Final = 32000 * _MSGMNB // 1024
_MSGSSZ: Final = 16
_MSGSEG: Final = 0xFFFF

# struct msqid64_ds, behind its perm: stime rtime ctime cbytes qnum qbytes lspid lrpid, and room
_MSQID_DS: Final = Struct("<qqqQQQii16x")
# struct msginfo: pool map max mnb mni ssz tql seg
_MSGINFO: Final = Struct("<7iH2x")

_Msg = tuple[int, bytes]  # type and text


class MsgReceiver:
    """Somebody who waits for a message: struct msg_receiver."""

    __slots__ = ("error", "mode", "msg", "pid", "room", "type")

    mode: int  # _ANY … _LESSEQUAL
    type: int
    room: int  # bytes that are taken at most
    pid: int
    msg: _Msg | None  # what has come
    error: int  # or why nothing has; EAGAIN while it waits, or is to look again

    def __init__(self, mode: int, type: int, room: int, pid: int) -> None:
        self.mode, self.type, self.room, self.pid = mode, type, room, pid
        self.msg = None
        self.error = EAGAIN

    def wants(self, type: int) -> bool:
        """Whether a message of that type will do."""
        mode = self.mode
        if mode == _EQUAL:
            return type == self.type
        if mode == _LESSEQUAL:
            return type <= self.type
        return mode == _ANY or type != self.type


class MsgSender:
    """Somebody who waits for room: struct msg_sender."""

    __slots__ = ("size",)

    size: int  # bytes of the message

    def __init__(self, size: int) -> None:
        self.size = size


class MsgQueue:
    """A queue: struct msg_queue."""

    __slots__ = ("ns", "perm", "q_cbytes", "q_ctime", "q_lrpid", "q_lspid", "q_messages",
                 "q_qbytes", "q_receivers", "q_rtime", "q_senders", "q_stime")  # fmt: skip

    ns: IpcNs
    perm: IpcPerm
    q_stime: int  # seconds: the last message was sent; 0 none
    q_rtime: int  # … received
    q_ctime: int  # … it was made or changed
    q_cbytes: int  # bytes of the messages in it
    q_qbytes: int  # and how many there may be; nor may there be more messages
    q_lspid: int  # who sent last
    q_lrpid: int  # who received last
    q_messages: list[_Msg]  # oldest first
    q_receivers: dict[MsgReceiver, None]  # who waits, first come first
    q_senders: dict[MsgSender, None]

    def __init__(self, ns: IpcNs, perm: IpcPerm) -> None:
        self.ns = ns
        self.perm = perm
        self.q_stime = self.q_rtime = self.q_cbytes = self.q_lspid = self.q_lrpid = 0
        self.q_ctime = ipc_now()
        self.q_qbytes = ns.msg_ctlmnb
        self.q_messages = []
        self.q_receivers = {}
        self.q_senders = {}

    @property
    def charge(self) -> int:
        """Bytes that it is charged as, with its messages."""
        return _QUEUE_BYTES + self.q_cbytes + _MSG_BYTES * len(self.q_messages)

    def fits(self, size: int) -> bool:
        """Whether there is room for `size` bytes."""
        return self.q_cbytes + size <= self.q_qbytes and len(self.q_messages) < self.q_qbytes

    def find(self, want: MsgReceiver) -> int:
        """Where the message for somebody is; -1 when there is none."""
        if want.mode == _NUMBER:
            return want.type if 0 <= want.type < len(self.q_messages) else -1
        if want.mode == _LESSEQUAL:  # the lowest type, of these the oldest
            types = [t for t, _ in self.q_messages if t <= want.type]
            if not types:
                return -1
            want = MsgReceiver(_EQUAL, min(types), 0, 0)
        for i, (type, _) in enumerate(self.q_messages):
            if want.wants(type):
                return i
        return -1

    def hand_over(self, msg: _Msg) -> bool:
        """Give `msg` to somebody who waits for it. Those for whom it is too long are told."""
        for receiver in list(self.q_receivers):
            if not receiver.wants(msg[0]):
                continue
            if receiver.room < len(msg[1]):
                self._finish(receiver, E2BIG)
                continue
            receiver.msg = msg
            self.q_lrpid = receiver.pid
            self.q_rtime = ipc_now()
            self._finish(receiver, 0)
            return True
        return False

    def _finish(self, receiver: MsgReceiver, error: int) -> None:
        del self.q_receivers[receiver]
        receiver.error = error
        self.ns.kernel.sched.wakeup(receiver)

    def expunge(self, error: int) -> None:
        """Nobody is to wait any more for messages: they return `error`, with EAGAIN look again."""
        for receiver in list(self.q_receivers):
            self._finish(receiver, error)

    def wake_senders(self, removed: bool = False) -> None:
        """There is room, or never will be: wake those whose messages fit, or everybody. The others
        go on waiting behind those who come later, as in Linux."""
        stay: dict[MsgSender, None] = {}
        wake: dict[MsgSender, None] = {}
        for sender in self.q_senders:
            (wake if removed or self.fits(sender.size) else stay)[sender] = None
        self.q_senders = stay
        for sender in wake:
            self.ns.kernel.sched.wakeup(sender)

    def put(self, msg: _Msg) -> None:
        """Enter a message.

        :raises OSError: ENOMEM.
        """
        self.ns.charge(len(msg[1]) + _MSG_BYTES)
        self.q_messages.append(msg)
        self._count(len(msg[1]), 1)

    def take(self, i: int) -> _Msg:
        """Take one out."""
        msg = self.q_messages.pop(i)
        self.ns.uncharge(len(msg[1]) + _MSG_BYTES)
        self._count(-len(msg[1]), -1)
        return msg

    def _count(self, size: int, n: int) -> None:
        ns = self.ns
        self.q_cbytes += size
        ns.msg_bytes += size
        ns.msg_hdrs += n

    def pack(self) -> bytes:
        """struct msqid64_ds."""
        return self.perm.pack() + _MSQID_DS.pack(
            self.q_stime, self.q_rtime, self.q_ctime, self.q_cbytes, len(self.q_messages),
            self.q_qbytes, self.q_lspid, self.q_lrpid,
        )  # fmt: skip


def sys_msgget(lp: Lwp, key: int, flags: int) -> int:
    """The number of the queue with a key, or of a new one."""
    p = lp.lwp_proc
    ns = ipc_ns(p.kernel)

    def new(key: int, flags: int) -> MsgQueue:
        ns.charge(_QUEUE_BYTES)
        msq = MsgQueue(ns, IpcPerm(key, flags, p.p_ucred))
        try:
            ns.msg_ids.add(msq, ns.msg_ctlmni)
        except OSError:
            ns.uncharge(_QUEUE_BYTES)
            raise
        return msq

    return ipcget(p.p_ucred, ns.msg_ids, key, flags, new)


def _freeque(ns: IpcNs, msq: MsgQueue) -> None:
    ns.msg_ids.remove(msq)
    msq.expunge(EIDRM)
    msq.wake_senders(removed=True)
    while msq.q_messages:
        msq.take(-1)
    ns.uncharge(_QUEUE_BYTES)


# ---- msgsnd and msgrcv ---------------------------------------------------------------------------


def sys_msgsnd(lp: Lwp, msqid: int, umsg: int, size: int, flags: int) -> int:
    """Send a message; sleep until there is room for it."""
    msqid, flags = s32(msqid), u32(flags)
    p = lp.lwp_proc
    ns = ipc_ns(p.kernel)
    mtype = s64(int.from_bytes(copyin(p.p_vmspace, umsg, 8), "little"))
    if size > ns.msg_ctlmax or msqid < 0 or mtype < 1:
        raise err(EINVAL)
    ns.check_room(size)  # before it is gathered
    msg = (mtype, copyin(p.p_vmspace, umsg + 8, size) if size else b"")
    msq = ns.msg_ids.get(msqid)
    while True:
        ipcperms(p.p_ucred, msq.perm, S_IWUGO)
        if msq.fits(size):
            break
        if flags & IPC_NOWAIT:
            raise err(EAGAIN)
        sender = MsgSender(size)
        msq.q_senders[sender] = None
        error = ns.kernel.sched.tsleep(sender, PCATCH, "msgsnd")
        if msq.perm.deleted:
            raise err(EIDRM)
        if sender in msq.q_senders:
            del msq.q_senders[sender]
            if error:
                raise err(ERESTARTNOHAND)
    if not msq.hand_over(msg):
        msq.put(msg)
    msq.q_lspid = p.p_pid
    msq.q_stime = ipc_now()
    return 0


def sys_msgrcv(lp: Lwp, msqid: int, umsg: int, size: int, mtype: int, flags: int) -> int:
    """Receive a message; sleep until there is one. What does not fit stays, unless it may be
    cut."""
    msqid, mtype, flags = s32(msqid), s64(mtype), u32(flags)
    p = lp.lwp_proc
    ns = ipc_ns(p.kernel)
    if msqid < 0 or s64(size) < 0:
        raise err(EINVAL)
    if flags & MSG_COPY:
        if flags & MSG_EXCEPT or not flags & IPC_NOWAIT:
            raise err(EINVAL)
        length = min(size, ns.msg_ctlmax)
        ns.check_room(length)
        copyin(p.p_vmspace, umsg, length)  # as Linux, which does not look at it
    room = _INT_MAX if flags & MSG_NOERROR else size
    want = MsgReceiver(*_convert_mode(mtype, flags), room, p.p_pid)
    msg = _receive(ns, p, msqid, want, size, flags)
    text = msg[1][:size]
    copyout(p.p_vmspace, msg[0].to_bytes(8, "little"), umsg)
    if text:
        copyout(p.p_vmspace, text, umsg + 8)
    return len(text)


def _convert_mode(mtype: int, flags: int) -> tuple[int, int]:
    """What is looked for, and the type that goes with it."""
    if flags & MSG_COPY:
        return _NUMBER, mtype
    if not mtype:
        return _ANY, 0
    if mtype < 0:
        return _LESSEQUAL, min(-mtype, _LONG_MAX)
    return (_NOTEQUAL if flags & MSG_EXCEPT else _EQUAL), mtype


def _receive(ns: IpcNs, p: Proc, msqid: int, want: MsgReceiver, size: int, flags: int) -> _Msg:
    """The message, taken out of its queue but for MSG_COPY.

    :raises OSError: EINVAL, EACCES, EIDRM, E2BIG, ENOMSG, ERESTARTNOHAND.
    """
    msq = ns.msg_ids.get(msqid)
    while True:
        ipcperms(p.p_ucred, msq.perm, S_IRUGO)
        i = msq.find(want)
        if i >= 0:
            length = len(msq.q_messages[i][1])
            if length > want.room:
                raise err(E2BIG)
            if flags & MSG_COPY:
                if length > min(size, ns.msg_ctlmax):
                    raise err(EINVAL)
                return msq.q_messages[i]
            msg = msq.take(i)
            msq.q_rtime = ipc_now()
            msq.q_lrpid = p.p_pid
            msq.wake_senders()
            return msg
        if flags & IPC_NOWAIT:
            raise err(ENOMSG)
        want.error = EAGAIN
        msq.q_receivers[want] = None
        error = ns.kernel.sched.tsleep(want, PCATCH, "msgrcv")
        if want.msg is not None:
            return want.msg
        if want.error != EAGAIN:
            raise err(want.error)
        if msq.perm.deleted:
            raise err(EIDRM)
        if want in msq.q_receivers:
            del msq.q_receivers[want]
            if error:
                raise err(ERESTARTNOHAND)


# ---- msgctl --------------------------------------------------------------------------------------


def sys_msgctl(lp: Lwp, msqid: int, cmd: int, buf: int) -> int:
    """Look at a queue, change or remove it."""
    msqid, cmd = s32(msqid), s32(cmd)
    if msqid < 0 or cmd < 0:
        raise err(EINVAL)
    p = lp.lwp_proc
    ns = ipc_ns(p.kernel)
    if cmd in (IPC_INFO, MSG_INFO):
        copyout(p.p_vmspace, _info(ns, cmd), buf)
        return ns.msg_ids.max_idx
    if cmd in (IPC_STAT, MSG_STAT, MSG_STAT_ANY):
        msq = ns.msg_ids.get(msqid) if cmd == IPC_STAT else ns.msg_ids.at(msqid)
        if cmd != MSG_STAT_ANY:
            ipcperms(p.p_ucred, msq.perm, S_IRUGO)
        copyout(p.p_vmspace, msq.pack(), buf)
        return 0 if cmd == IPC_STAT else msq.perm.id
    if cmd == IPC_SET:
        raw = copyin(p.p_vmspace, buf, PERM_SIZE + _MSQID_DS.size)
        _set(ns, p, ns.msg_ids.get(msqid), raw)
        return 0
    if cmd == IPC_RMID:
        msq = ns.msg_ids.get(msqid)
        ipc_own(p.p_ucred, msq.perm)
        _freeque(ns, msq)
        return 0
    raise err(EINVAL)


def _set(ns: IpcNs, p: Proc, msq: MsgQueue, raw: bytes) -> None:
    ipc_own(p.p_ucred, msq.perm)
    qbytes = _MSQID_DS.unpack_from(raw, PERM_SIZE)[5]
    if qbytes > ns.msg_ctlmnb and not p.p_ucred.cr_cap_e & CAP_SYS_RESOURCE:
        raise err(EPERM)
    msq.perm.update(raw)
    msq.q_qbytes = qbytes
    msq.q_ctime = ipc_now()
    msq.expunge(EAGAIN)  # those who wait may not be allowed to any more
    msq.wake_senders()


def _info(ns: IpcNs, cmd: int) -> bytes:
    pool, hdrs, size = _MSGPOOL, _MSGMNB, _MSGMNB
    if cmd == MSG_INFO:
        pool, hdrs, size = len(ns.msg_ids.ipcs), ns.msg_hdrs, ns.msg_bytes
    return _MSGINFO.pack(
        pool, hdrs, ns.msg_ctlmax, ns.msg_ctlmnb, ns.msg_ctlmni, _MSGSSZ, size, _MSGSEG
    )


# ---- for others ----------------------------------------------------------------------------------


def msg_lines(kernel: Kernel) -> bytes:
    """/proc/sysvipc/msg."""
    lines = [
        "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid"
        "      stime      rtime      ctime\n"
    ]
    for q in ipc_ns(kernel).msg_ids:
        perm = q.perm
        lines.append(
            f"{perm.key:10} {perm.id:10}  {perm.mode:4o}  {q.q_cbytes:10} "
            f"{len(q.q_messages):10} {q.q_lspid:5} {q.q_lrpid:5} {perm.uid:5} {perm.gid:5} "
            f"{perm.cuid:5} {perm.cgid:5} {q.q_stime:10} {q.q_rtime:10} {q.q_ctime:10}\n"
        )
    return "".join(lines).encode()


def msg_check(ns: IpcNs) -> Iterator[str]:
    """What is wrong with the queues: Machine.check()."""
    size = count = 0
    for msq in ns.msg_ids:
        name = f"message queue {msq.perm.id}"
        held = sum(len(text) for _, text in msq.q_messages)
        size += held
        count += len(msq.q_messages)
        if held != msq.q_cbytes:
            yield f"{name}: {held} bytes, not {msq.q_cbytes}"
        for receiver in msq.q_receivers:
            if msq.find(receiver) >= 0:
                yield f"{name}: pid {receiver.pid} sleeps, but its message is there"
        if any(msq.fits(sender.size) for sender in msq.q_senders):
            yield f"{name}: somebody waits for room that there is"
    if (size, count) != (ns.msg_bytes, ns.msg_hdrs):
        yield f"{count} messages of {size} bytes, not {ns.msg_hdrs} of {ns.msg_bytes}"
