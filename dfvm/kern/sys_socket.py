"""A socket as an open file.

Source: DragonFly sys/kern/sys_socket.c; behaviour of Linux net/socket.c.
"""

from __future__ import annotations

from struct import pack, unpack
from time import time_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.linux_struct import anon_attr
from dfvm.kern.kern_caps import CAP_FOWNER
from dfvm.kern.kern_descrip import FIONREAD, O_NONBLOCK, O_RDWR, File
from dfvm.kern.kern_errno import EACCES, ENOTTY, EPERM, err
from dfvm.kern.kern_fcntl import set_owner
from dfvm.kern.uipc_socket import MSG_DONTWAIT, Msg
from dfvm.kern.vfs.vfs_helper import may_chown
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE, VSOCK
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from dfvm.kern.kern_event import Kqinfo
    from dfvm.kern.proc import Lwp
    from dfvm.kern.uipc_socket import Socket
    from dfvm.kern.vfs.mount import Statfs
    from dfvm.kern.vfs.vnode_param import Cred, Vattr
    from dfvm.vm.copyio import Uio

SIOCOUTQ: Final = 0x5411
FIOSETOWN: Final = 0x8901
SIOCSPGRP: Final = 0x8902
FIOGETOWN: Final = 0x8903
SIOCGPGRP: Final = 0x8904

SOCKFS_MAGIC: Final = 0x534F434B


class SocketFile(File):
    """The open file of a socket. There is one for each, as nothing can open a socket again."""

    __slots__ = ("f_socket",)

    f_fasync = True
    f_splice = FREAD | FWRITE
    f_seekable = False

    f_socket: Socket

    def __init__(self, so: Socket, flag: int) -> None:
        super().__init__(so.so_table, O_RDWR | flag)
        self.f_socket = so
        so.so_file = self

    def flags(self, flags: int) -> int:
        """MSG_* of a call, to which O_NONBLOCK adds."""
        return flags | MSG_DONTWAIT if self.f_flag & O_NONBLOCK else flags

    def receive(self, uio: Uio, msg: Msg, flags: int) -> int:
        """Receive; returns what recv(2) does. The rights in `msg` are the caller's, whether it
        fails or not. May block."""
        self.fhold()
        try:
            return self.f_socket.pru_recv(uio, msg, self.flags(flags))
        finally:
            self.fdrop()

    def send(self, lwp: Lwp, uio: Uio, msg: Msg, flags: int) -> int:
        """Send; returns how much. What is left of the rights in `msg` is the caller's. May
        block."""
        self.fhold()
        try:
            return self.f_socket.pru_send(lwp, uio, msg, self.flags(flags))
        finally:
            self.fdrop()

    def fo_read(self, lwp: Lwp, uio: Uio) -> None:
        if uio.uio_resid:
            msg = Msg()
            try:
                self.receive(uio, msg, 0)
            finally:
                msg.drop_rights()

    def fo_write(self, lwp: Lwp, uio: Uio) -> None:
        self.send(lwp, uio, Msg(), 0)

    def fo_ioctl(self, lwp: Lwp, cmd: int, arg: int) -> int:
        so = self.f_socket
        space = lwp.lwp_proc.p_vmspace
        if cmd == FIONREAD:
            copyout(space, pack("<i", so.pru_inq()), arg)
        elif cmd == SIOCOUTQ:
            copyout(space, pack("<i", so.so_snd.sb_cc), arg)
        elif cmd in (FIOSETOWN, SIOCSPGRP):
            set_owner(lwp, self, unpack("<i", copyin(space, arg, 4))[0])
        elif cmd in (FIOGETOWN, SIOCGPGRP):
            copyout(space, pack("<i", self.f_owner), arg)
        else:
            raise err(ENOTTY)
        return 0

    def fo_poll(self) -> int:
        return self.f_socket.sopoll()

    def fo_kqinfo(self) -> Kqinfo:
        return self.f_socket.so_kq

    def fo_stat(self, lwp: Lwp) -> Vattr:
        so = self.f_socket
        va = anon_attr(VSOCK, so.so_serial)
        va.va_mode = so.so_mode
        va.va_uid = so.so_uid
        va.va_gid = so.so_gid
        va.va_atime, va.va_mtime, va.va_ctime = so.so_atime, so.so_mtime, so.so_ctime
        va.va_birthtime = None
        return va

    def fo_chmod(self, mode: int, cred: Cred) -> None:
        self._owned(cred, EPERM)
        self.f_socket.so_mode = mode
        self.f_socket.so_ctime = time_ns()

    def fo_chown(self, uid: int, gid: int, cred: Cred) -> None:
        so = self.f_socket
        may_chown(so.so_uid, so.so_gid, uid, gid, cred)
        so.so_uid = so.so_uid if uid == -1 else uid
        so.so_gid = so.so_gid if gid == -1 else gid
        so.so_ctime = time_ns()

    def fo_utimes(self, atime: int | None, mtime: int | None, cred: Cred, explicit: bool) -> None:
        self._owned(cred, EPERM if explicit else EACCES)
        so = self.f_socket
        so.so_atime = so.so_atime if atime is None else atime
        so.so_mtime = so.so_mtime if mtime is None else mtime
        so.so_ctime = time_ns()

    def _owned(self, cred: Cred, error: int) -> None:
        if cred.cr_fsuid != self.f_socket.so_uid and not cred.cr_cap_e & CAP_FOWNER:
            raise err(error)

    def fo_statfs(self) -> Statfs:
        from dfvm.kern.vfs.mount import Statfs

        return Statfs(SOCKFS_MAGIC, 0)

    def fo_close(self) -> None:
        so = self.f_socket
        so.so_file = None
        so.pru_detach()

    def fo_name(self) -> str:
        return f"socket:[{self.f_socket.so_serial}]"
