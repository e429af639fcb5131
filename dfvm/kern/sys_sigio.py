"""O_ASYNC: a signal when a file becomes readable or writable.

Source: behaviour of Linux fs/fcntl.c (send_sigio).
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_caps import CAP_KILL
from dfvm.kern.kern_descrip import FASYNC
from dfvm.kern.kern_event import POLL_READABLE, POLL_WRITABLE, POLLIN, POLLOUT, Knote
from dfvm.kern.kern_sig import SIGIO, Siginfo, ksignal
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE

if TYPE_CHECKING:
    from dfvm.kern.kern_descrip import File
    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Lwp

# si_code of a signal chosen with F_SETSIG.
_POLL_IN: Final = 1
_POLL_OUT: Final = 2
POLL_MSG: Final = 3
POLLMSG: Final = 0x400  # of si_band, with POLL_MSG


class AsyncNote(Knote):
    """Listens to one file with O_ASYNC, and sends the signals."""

    __slots__ = ("an_fd", "an_file", "an_kernel")

    an_file: File
    an_fd: int  # the number by which O_ASYNC was set: si_fd
    an_kernel: Kernel

    def __init__(self, lwp: Lwp, fp: File, fd: int) -> None:
        self.an_file = fp
        self.an_fd = fd
        self.an_kernel = lwp.lwp_proc.kernel

    def kn_event(self, hint: int) -> bool:
        fp = self.an_file
        if hint & POLLIN and fp.f_mode & FREAD:
            self._send(_POLL_IN, POLL_READABLE)
        if hint & POLLOUT and fp.f_mode & FWRITE:
            self._send(_POLL_OUT, POLL_WRITABLE)
        return False

    def _send(self, code: int, band: int) -> None:
        send_sigio(self.an_kernel, self.an_file, self.an_fd, code, band)


def send_sigio(kernel: Kernel, fp: File, fd: int, code: int, band: int) -> None:
    """Send SIGIO, or what F_SETSIG has said with this si_code, si_band and si_fd, to the owner of
    `fp`. Does not block."""
    owner = fp.f_owner
    if owner < 0:
        pgrp = kernel.pgrps.get(-owner)
        procs = [] if pgrp is None else list(pgrp.pg_members.values())
    else:
        p = kernel.procs.get(owner)
        procs = [] if p is None else [p]
    mine = fp.f_ownercred
    if mine is None:
        return
    for p in procs:
        theirs = p.p_ucred
        ids = (theirs.cr_svuid, theirs.cr_ruid)
        if not mine.cr_cap_e & CAP_KILL and mine.cr_uid not in ids and mine.cr_ruid not in ids:
            continue
        if not fp.f_sig:
            ksignal(p, SIGIO)
            continue
        info = Siginfo(fp.f_sig, code)
        info.si_raw = pack("<qi100x", band, fd)
        ksignal(p, fp.f_sig, info)


def set_async(lwp: Lwp, fp: File, fd: int, on: bool) -> None:
    """Set or clear O_ASYNC of a file that has it (f_fasync)."""
    note = fp.f_async
    if on == (note is not None):
        return
    info = fp.fo_kqinfo()
    assert info is not None
    if note is None:
        note = fp.f_async = AsyncNote(lwp, fp, fd)
        info.attach(note)
        fp.f_flag |= FASYNC
    else:
        clear_async(fp)


def clear_async(fp: File) -> None:
    """Stop to listen: O_ASYNC is cleared, or the file is being closed."""
    info, note = fp.fo_kqinfo(), fp.f_async
    assert info is not None and note is not None
    info.detach(note)
    fp.f_async = None
    fp.f_flag &= ~FASYNC
