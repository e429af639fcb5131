"""A process's idea of the file system: where its paths start, and what it keeps from new files.

Apart from the descriptors (kern_descrip), because clone(CLONE_FS) shares the one and
clone(CLONE_FILES) the other. Nothing here blocks, but for the last use of a directory.

Source: DragonFly sys/sys/filedesc.h (fd_cdir, fd_rdir, fd_cmask); sharing as Linux's fs_struct.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfvm.kern.vfs.vnode import Vnode


class FsInfo:
    """The directories and the umask of a process, or of several that share them."""

    __slots__ = ("fs_cdir", "fs_cmask", "fs_rdir", "fs_refcnt")

    fs_refcnt: int  # processes that use it
    fs_cdir: Vnode  # current directory, referenced while fs_refcnt is not 0
    fs_rdir: Vnode  # root directory, likewise
    fs_cmask: int  # umask

    def __init__(self, rdir: Vnode, cdir: Vnode, cmask: int = 0o022) -> None:
        """Takes references of its own on both directories."""
        self.fs_refcnt = 1
        self.fs_rdir = rdir
        self.fs_cdir = cdir
        self.fs_cmask = cmask
        rdir.vref()
        cdir.vref()

    def fsshare(self) -> FsInfo:
        """One more process uses it."""
        self.fs_refcnt += 1
        return self

    def fscopy(self) -> FsInfo:
        """A copy for a child."""
        return FsInfo(self.fs_rdir, self.fs_cdir, self.fs_cmask)

    def fsunshare(self) -> FsInfo:
        """What the process is to use so as to share nothing: a copy if others use this one."""
        if self.fs_refcnt == 1:
            return self
        self.fs_refcnt -= 1
        return self.fscopy()

    def fsfree(self) -> None:
        """A process leaves; the last one lets go of the directories. May block."""
        self.fs_refcnt -= 1
        if not self.fs_refcnt:
            self.fs_cdir.vrele()
            self.fs_rdir.vrele()

    def set_cdir(self, vp: Vnode) -> None:
        """Make `vp` the current directory; takes a reference of its own. May block."""
        vp.vref()
        old, self.fs_cdir = self.fs_cdir, vp
        old.vrele()

    def set_rdir(self, vp: Vnode) -> None:
        """Make `vp` the root directory; takes a reference of its own. May block."""
        vp.vref()
        old, self.fs_rdir = self.fs_rdir, vp
        old.vrele()
