"""POSIX message queues: a directory of them, at /dev/mqueue. A queue is a file; what it holds,
who waits at it, and whom it tells of a first message is here. The system calls are in sys_mqueue.

A message goes straight to a waiting receiver: the one that the scheduler prefers, and of several
the one that has waited longest. Only if there is none is it entered in the queue, from where the
messages of the highest priority are taken first. The message of a sender that waits for room is
entered by whoever makes room.

Source: Linux ipc/mqueue.c.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_caps import CAP_SYS_RESOURCE
from dfvm.kern.kern_errno import EINVAL, EMFILE, ENODEV, ENOSPC, EOPNOTSUPP, EOVERFLOW, EPERM, err
from dfvm.kern.kern_event import POLL_READABLE, POLL_WRITABLE, Kqinfo
from dfvm.kern.proc import RLIMIT_MSGQUEUE
from dfvm.kern.vfs.mount import ST_NODEV, ST_NOEXEC, ST_NOSUID, Mount
from dfvm.kern.vfs.vfs_helper import may_add, new_ids, new_mode
from dfvm.kern.vfs.vnode import Vnode
from dfvm.kern.vfs.vnode_param import OFF_MAX, VDIR, VKEEP, VREG, VROOT, Vattr, vfs_timestamp

if TYPE_CHECKING:
    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Proc
    from dfvm.kern.sys_mqueue import MqNotify
    from dfvm.kern.vfs.mount import Vfs
    from dfvm.kern.vnode_file import VnodeFile
    from dfvm.vm.copyio import Uio

MQUEUE_MAGIC: Final = 0x19800202

HARD_MSGMAX: Final = 65536  # messages of one queue, whatever the settings say
HARD_MSGSIZEMAX: Final = 16 << 20  # bytes of one message
MQ_PRIO_MAX: Final = 32768

_DIRENT_SIZE: Final = 20  # what a name adds to the directory's size
_FILENT_SIZE: Final = 80  # the size of a queue, as a file
_MSG_BYTES: Final = 48  # what a message is charged as, beside its text
_NODE_BYTES: Final = 48  # … and a priority
_ULONG_MAX: Final = (1 << 64) - 1


class MqWaiter:
    """Somebody who waits at a queue: for a message, or with one for room."""

    __slots__ = ("done", "msg", "prio", "rank")

    rank: int  # who goes first: the lower, the sooner
    prio: int  # the message's priority
    msg: bytes  # the message; a receiver's once it is done
    done: bool

    def __init__(self, rank: int, prio: int = 0, msg: bytes = b"") -> None:
        self.rank, self.prio, self.msg = rank, prio, msg
        self.done = False


class MqVnode(Vnode):
    """A queue."""

    __slots__ = ("m_atime", "m_charge", "m_ctime", "m_curmsgs", "m_fileid", "m_kq", "m_maxmsg",
                 "m_msgs", "m_msgsize", "m_mtime", "m_named", "m_notify", "m_prios", "m_qsize",
                 "m_receivers", "m_senders", "m_user")  # fmt: skip

    v_mount: MqMount
    m_fileid: int  # inode number; never changes
    m_named: bool  # it still has its name
    m_maxmsg: int  # messages that it holds; never changes
    m_msgsize: int  # bytes of one message at most; never changes
    m_curmsgs: int  # messages in it
    m_qsize: int  # bytes of them
    m_prios: list[int]  # their priorities, ascending
    m_msgs: dict[int, deque[bytes]]  # by priority, oldest first; none is empty
    m_receivers: list[MqWaiter]  # who waits for messages; if there is anybody there is none
    m_senders: list[MqWaiter]  # who waits for room; if there is anybody there is none
    m_notify: MqNotify | None  # who is told of a message that comes when there is none
    m_kq: Kqinfo
    m_user: int  # on whose account it is (RLIMIT_MSGQUEUE); never changes
    m_charge: int  # … and with how many bytes
    m_atime: int  # ns, as the following
    m_mtime: int
    m_ctime: int

    def __init__(self, mount: MqMount, mode: int, uid: int, gid: int, maxmsg: int,
                 msgsize: int) -> None:  # fmt: skip
        super().__init__(mount, VREG)
        self.v_flag = VKEEP
        self.v_mode, self.v_uid, self.v_gid = mode, uid, gid
        self.v_filesize = _FILENT_SIZE
        mount.m_lastino += 1
        self.m_fileid = mount.m_lastino
        self.m_named = True
        self.m_maxmsg, self.m_msgsize = maxmsg, msgsize
        self.m_curmsgs = self.m_qsize = 0
        self.m_prios, self.m_msgs = [], {}
        self.m_receivers, self.m_senders = [], []
        self.m_notify = None
        self.m_kq = Kqinfo()
        self.m_user = -1
        self.m_charge = 0
        self.m_atime = self.m_mtime = self.m_ctime = vfs_timestamp()

    # -- messages -------------------------------------------------------------------------------

    def insert(self, prio: int, msg: bytes) -> None:
        """Enter a message, for which there is room."""
        queue = self.m_msgs.get(prio)
        if queue is None:
            queue = self.m_msgs[prio] = deque()
            insort(self.m_prios, prio)
        queue.append(msg)
        self.m_curmsgs += 1
        self._count(len(msg), 1)

    def take(self) -> tuple[int, bytes]:
        """Take out the oldest of the highest priority. There is one."""
        prio = self.m_prios[-1]
        queue = self.m_msgs[prio]
        msg = queue.popleft()
        if not queue:
            del self.m_msgs[prio]
            self.m_prios.pop()
        self.m_curmsgs -= 1
        self._count(-len(msg), -1)
        return prio, msg

    def _count(self, size: int, n: int) -> None:
        self.m_qsize += size
        self.v_mount.m_bytes += size + n * _MSG_BYTES

    def poll_events(self) -> int:
        """Which POLL* events are true now."""
        events = POLL_READABLE if self.m_curmsgs else 0
        return events | POLL_WRITABLE if self.m_curmsgs < self.m_maxmsg else events

    def status(self) -> bytes:
        """What read(2) of it says."""
        notify = self.m_notify
        kind, signo, pid = (0, 0, 0) if notify is None else notify.status()
        return (
            f"QSIZE:{self.m_qsize:<10} NOTIFY:{kind:<5} SIGNO:{signo:<5} NOTIFY_PID:{pid:<6}\n"
        ).encode()

    # -- as a file ------------------------------------------------------------------------------

    def vop_fileclass(self) -> type[VnodeFile]:
        from dfvm.kern.sys_mqueue import MqFile

        return MqFile

    def read(self, uio: Uio, off: int, ioflag: int) -> None:
        from dfvm.vm.copyio import uiogive

        text = self.status()
        if 0 <= off < len(text):
            uiogive(text[off : off + uio.uio_resid], uio)
        self.m_atime = self.m_ctime = vfs_timestamp()

    def write(self, uio: Uio, off: int, ioflag: int, limit: int = OFF_MAX) -> int:
        raise err(EINVAL)

    def setsize(self, length: int) -> None:
        """O_TRUNC: messages are not what would be cut."""

    def allocate(self, mode: int, off: int, length: int) -> None:
        raise err(EOPNOTSUPP)

    def splices(self) -> int:
        return 0

    def mmap(self) -> int:
        raise err(ENODEV)

    def fsync(self) -> None:
        raise err(EINVAL)

    def vop_fileid(self) -> int:
        return self.m_fileid

    def vop_getattr(self) -> Vattr:
        va = self.v_mount.attr(self)
        va.va_nlink = int(self.m_named)
        va.va_size = _FILENT_SIZE
        va.va_atime, va.va_mtime, va.va_ctime = self.m_atime, self.m_mtime, self.m_ctime
        va.va_birthtime = 0
        return va

    def vop_setattr(self, mode: int, uid: int, gid: int, atime: int | None,
                    mtime: int | None) -> None:  # fmt: skip
        if mode != -1:
            self.v_mode = mode
        if uid != -1:
            self.v_uid = uid
        if gid != -1:
            self.v_gid = gid
        if atime is not None:
            self.m_atime = atime
        if mtime is not None:
            self.m_mtime = mtime
        self.m_ctime = vfs_timestamp()

    def vop_inactive(self) -> None:
        if not self.m_named:
            self.v_mount.destroy(self)


class MqRoot(Vnode):
    """The directory."""

    __slots__ = ("m_queues", "m_time")

    v_mount: MqMount
    m_queues: dict[bytes, MqVnode]
    m_time: int  # ns: when names last changed

    def __init__(self, mount: MqMount) -> None:
        super().__init__(mount, VDIR)
        self.v_mode = 0o1777
        self.m_queues = {}
        self.m_time = vfs_timestamp()

    def mq_create(self, name: bytes, mode: int, p: Proc, attr: tuple[int, int] | None) -> MqVnode:
        """Make a queue for `attr` (how many messages, of how many bytes), or as the settings say.

        :raises OSError: ENOSPC, EINVAL, EOVERFLOW, EMFILE beyond RLIMIT_MSGQUEUE; what create
            raises.
        """
        cred = p.p_ucred
        may_add(self, name, cred)
        uid, gid = new_ids(self, cred)
        vp = self._new(name, new_mode(self, mode, cred), uid, gid, p, attr)
        self.cache_enter(name, vp)
        self._made_name(name, vp)
        return vp

    def _new(
        self, name: bytes, mode: int, uid: int, gid: int, p: Proc, attr: tuple[int, int] | None
    ) -> MqVnode:
        mount = self.v_mount
        privileged = bool(p.p_ucred.cr_cap_e & CAP_SYS_RESOURCE)
        if mount.m_nqueues >= mount.m_queues_max and not privileged:
            raise err(ENOSPC)
        maxmsg, msgsize = attr or mount.default_attr()
        mount.check_attr(maxmsg, msgsize, privileged)
        size = maxmsg * (msgsize + _MSG_BYTES) + min(maxmsg, MQ_PRIO_MAX) * _NODE_BYTES
        if size > _ULONG_MAX:
            raise err(EOVERFLOW)
        used = mount.m_users.get(p.p_ucred.cr_ruid, 0)
        if used + size > p.p_rlimit(RLIMIT_MSGQUEUE):
            raise err(EMFILE)
        vp = MqVnode(mount, mode, uid, gid, maxmsg, msgsize)
        vp.m_user, vp.m_charge = p.p_ucred.cr_ruid, size
        mount.m_users[vp.m_user] = used + size
        mount.m_nqueues += 1
        self.m_queues[name] = vp
        self.m_time = vfs_timestamp()
        return vp

    def vop_create(self, name: bytes, vtype: int, mode: int, uid: int, gid: int,
                   rdev: int) -> Vnode:  # fmt: skip
        p = self.v_mount.m_kernel.sched.curthread.td_proc
        if vtype != VREG or p is None:
            raise err(EPERM)
        return self._new(name, mode, uid, gid, p, None)

    def vop_lookup(self, name: bytes) -> Vnode | None:
        return self.m_queues.get(name)

    def vop_readdir(self) -> list[tuple[bytes, int, int]]:
        return [(name, vp.m_fileid, 8) for name, vp in self.m_queues.items()]

    def vop_unlink(self, name: bytes, vp: Vnode) -> None:
        assert isinstance(vp, MqVnode)
        del self.m_queues[name]
        vp.m_named = False
        self.m_time = vp.m_ctime = vfs_timestamp()

    def vop_fileid(self) -> int:
        return 1

    def vop_getattr(self) -> Vattr:
        va = self.v_mount.attr(self)
        va.va_nlink = 2
        va.va_size = (2 + len(self.m_queues)) * _DIRENT_SIZE
        va.va_atime = va.va_mtime = va.va_ctime = va.va_birthtime = self.m_time
        return va

    def vop_setattr(self, mode: int, uid: int, gid: int, atime: int | None,
                    mtime: int | None) -> None:  # fmt: skip
        if mode != -1:
            self.v_mode = mode
        if uid != -1:
            self.v_uid = uid
        if gid != -1:
            self.v_gid = gid
        self.m_time = vfs_timestamp()


class MqMount(Mount):
    """All queues of a machine, and their limits, which are in /proc/sys/fs/mqueue."""

    __slots__ = ("m_bytes", "m_dev", "m_kernel", "m_lastino", "m_msg_default", "m_msg_max",
                 "m_msgsize_default", "m_msgsize_max", "m_nqueues", "m_queues_max", "m_root",
                 "m_users")  # fmt: skip

    m_kernel: Kernel
    m_root: MqRoot
    m_dev: int  # st_dev
    m_lastino: int
    m_nqueues: int  # queues there are, those without a name included
    m_bytes: int  # what the messages in all of them are charged as
    m_users: dict[int, int]  # bytes that each user's queues may come to hold
    m_queues_max: int  # how many queues
    m_msg_max: int  # how many messages a queue may be for
    m_msg_default: int  # … and is for, if nobody says
    m_msgsize_max: int  # how large a message of a queue may be
    m_msgsize_default: int

    def __init__(self, vfs: Vfs, kernel: Kernel) -> None:
        flags = ST_NOSUID | ST_NODEV | ST_NOEXEC
        super().__init__(vfs, "mqueue", "mqueue", MQUEUE_MAGIC, flags)
        self.mnt_private = True
        self.m_kernel = kernel
        self.m_dev = vfs.anon_dev()
        self.m_lastino = 1
        self.m_nqueues = self.m_bytes = 0
        self.m_users = {}
        self.m_queues_max = 256
        self.m_msg_max = self.m_msg_default = 10
        self.m_msgsize_max = self.m_msgsize_default = 8192
        self.m_root = MqRoot(self)
        self.set_root(self.m_root)

    def default_attr(self) -> tuple[int, int]:
        """How many messages a queue is for, and of how many bytes, if nobody says."""
        return min(self.m_msg_max, self.m_msg_default), min(
            self.m_msgsize_max, self.m_msgsize_default
        )

    def check_attr(self, maxmsg: int, msgsize: int, privileged: bool) -> None:
        """Check that a queue may be for so many messages of so many bytes.

        :raises OSError: EINVAL.
        """
        most = HARD_MSGMAX if privileged else self.m_msg_max
        largest = HARD_MSGSIZEMAX if privileged else self.m_msgsize_max
        if not (0 < maxmsg <= most and 0 < msgsize <= largest):
            raise err(EINVAL)

    def attr(self, vp: Vnode) -> Vattr:
        """The attributes that all files here have."""
        va = Vattr()
        va.va_type, va.va_mode, va.va_uid, va.va_gid = vp.v_type, vp.v_mode, vp.v_uid, vp.v_gid
        va.va_fsid, va.va_fileid = self.m_dev, vp.vop_fileid()
        va.va_rdev = va.va_bytes = 0
        va.va_blksize = 4096
        return va

    def destroy(self, vp: MqVnode) -> None:
        """A queue has no name, and nobody uses it."""
        if vp.m_notify is not None:  # of one who had its descriptors with others, and left them
            vp.m_notify = None
            self.m_kernel.files.nmqnotify -= 1
        while vp.m_curmsgs:
            vp.take()
        self.m_nqueues -= 1
        self.m_users[vp.m_user] -= vp.m_charge
        if not self.m_users[vp.m_user]:
            del self.m_users[vp.m_user]
        self.mnt_vfs.reclaim(vp)

    def vnodes(self) -> list[Vnode]:
        return [self.m_root, *self.m_root.m_queues.values()]

    def check(self, bad: list[str]) -> None:
        """The counts of each queue are right, and nobody waits for what is there."""
        for name, vp in self.m_root.m_queues.items():
            msgs = [msg for queue in vp.m_msgs.values() for msg in queue]
            if len(msgs) != vp.m_curmsgs or sum(map(len, msgs)) != vp.m_qsize:
                bad.append(f"queue {name!r}: {len(msgs)} messages, {vp.m_curmsgs} counted")
            if vp.m_prios != sorted(vp.m_msgs) or not all(vp.m_msgs.values()):
                bad.append(f"queue {name!r}: its priorities are {vp.m_prios}")
            if vp.m_senders and vp.m_curmsgs < vp.m_maxmsg:
                bad.append(f"queue {name!r}: somebody waits for room that there is")
            if vp.m_receivers and vp.m_curmsgs:
                bad.append(f"queue {name!r}: somebody waits for a message that is there")
            if not vp.m_named or vp.v_flag & VROOT:
                bad.append(f"queue {name!r} has no name")
        if len(self.m_root.m_queues) > self.m_nqueues:
            bad.append(f"{len(self.m_root.m_queues)} queues, {self.m_nqueues} counted")
