"""Path names to vnodes.

Symbolic links are followed here, in the guest's own tree, and ".." is the vnode's own idea of its
parent; the host is only ever asked for single names in a directory it has open. So neither links
nor ".." nor a directory that moves meanwhile lead out of the root.

    vp = namei(root, start, path, cred)                  follow a link at the end
    vp = namei(root, start, path, cred, 0)               do not (lstat, O_NOFOLLOW)
    nd = nameiat(root, start, path, cred)                the parent, for what makes or removes names
         nd.ni_dvp, nd.ni_name, nd.ni_vp (None: not there), nd.ni_slash (a "/" followed)

`start` is where a relative path begins: the working directory, or a directory descriptor's vnode.
`path` is the bytes from the program, without the NUL. An empty path is ENOENT (AT_EMPTY_PATH is the
caller's). The vnodes come without a reference, see vnode.py. Nothing here blocks, except that a
host directory is read.

Source: DragonFly sys/kern/vfs_nlookup.c; errors as Linux's fs/namei.c gives them.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from dfvm.kern.kern_caps import CAP_SEARCH
from dfvm.kern.kern_errno import (
    EBUSY,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    EROFS,
    EXDEV,
    err,
)
from dfvm.kern.vfs.mount import ST_NOSYMFOLLOW
from dfvm.kern.vfs.vnode_param import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    VDIR,
    VEXEC,
    VLNK,
    VMAGIC,
    VREFD,
    VSTALE,
)

if TYPE_CHECKING:
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred

PATH_MAX: Final = 4096
SYMLINK_MAX: Final = 40

# Flags of namei.
NAMEI_FOLLOW: Final = 1  # a symbolic link at the end is followed
NAMEI_DIRECTORY: Final = 2  # the result must be a directory

_MISSING: Final[Any] = object()


class Nameidata:
    """A name and the directory it is in."""

    __slots__ = ("_vp", "ni_dvp", "ni_name", "ni_slash")

    ni_dvp: Vnode  # the directory
    ni_name: bytes  # the last component; ".", ".." or "" (for "/") when the path ends so
    ni_slash: bool  # the path had a "/" at its end: only a directory will do
    _vp: Any  # what the name stands for; _MISSING: not looked up yet

    def __init__(self, dvp: Vnode, name: bytes, vp: Any, slash: bool) -> None:
        self.ni_dvp = dvp
        self.ni_name = name
        self.ni_slash = slash
        self._vp = vp

    @property
    def ni_vp(self) -> Vnode | None:
        """What the name stands for; None when there is nothing. Looked up at the first use, so
        that of two paths both directories are found before either name is, as errors go on Linux.

        :raises OSError: ENAMETOOLONG, and what the host says.
        """
        vp: Vnode | None = self._vp
        if vp is _MISSING:
            vp = self._vp = self.ni_dvp.lookup(self.ni_name)
        return vp

    def may_create(self, isdir: bool) -> None:
        """The name is to be made, of a directory or something else.

        :raises OSError: EEXIST; ENOENT for a name with a slash that would be no directory's.
        """
        if self.ni_vp is not None:
            raise err(EEXIST)
        if self.ni_slash and not isdir:
            raise err(ENOENT)

    def may_unlink(self) -> None:
        """The name is to be unlinked."""
        if self.ni_name in (b"", b".", b".."):
            raise err(EISDIR)
        if self.ni_dvp.v_mount.mnt_rdonly:  # said before anybody looks
            raise err(EROFS)
        if self.ni_vp is None:
            raise err(ENOENT)
        if self.ni_slash:
            raise err(EISDIR if self.ni_vp.v_type == VDIR else ENOTDIR)

    def may_rmdir(self) -> None:
        """The directory is to be removed."""
        if self.ni_name == b".":
            raise err(EINVAL)
        if self.ni_name == b"..":
            raise err(ENOTEMPTY)
        if self.ni_name == b"":
            raise err(EBUSY)
        if self.ni_dvp.v_mount.mnt_rdonly:
            raise err(EROFS)
        if self.ni_vp is None:
            raise err(ENOENT)
        if self.ni_vp.v_type != VDIR:
            raise err(ENOTDIR)


def may_rename(old: Nameidata, new: Nameidata, flags: int = 0) -> None:
    """`old` is to be renamed to `new`: what can be said of the names alone. `flags`: RENAME_*.

    :raises OSError: EXDEV, EBUSY, EEXIST, EROFS, ENOENT, ENOTDIR.
    """
    if old.ni_dvp.v_mount is not new.ni_dvp.v_mount:
        raise err(EXDEV)
    dots = (b"", b".", b"..")
    if old.ni_name in dots:
        raise err(EBUSY)
    if new.ni_name in dots:
        raise err(EEXIST if flags & RENAME_NOREPLACE else EBUSY)
    if old.ni_dvp.v_mount.mnt_rdonly:
        raise err(EROFS)
    vp = old.ni_vp
    if vp is None:
        raise err(ENOENT)
    if new.ni_vp is not None and flags & RENAME_NOREPLACE:
        raise err(EEXIST)
    if flags & RENAME_EXCHANGE:
        if new.ni_vp is None:
            raise err(ENOENT)
        if new.ni_slash and new.ni_vp.v_type != VDIR:
            raise err(ENOTDIR)
    if vp.v_type != VDIR and (old.ni_slash or (new.ni_slash and not flags & RENAME_EXCHANGE)):
        raise err(ENOTDIR)


def namei(root: Vnode, start: Vnode, path: bytes, cred: Cred, flags: int = NAMEI_FOLLOW) -> Vnode:
    """The vnode `path` names.

    :raises OSError: ENOENT, ENOTDIR, EACCES, ELOOP, ENAMETOOLONG, and what the host says.
    """
    if len(path) >= PATH_MAX:
        raise err(ENAMETOOLONG)
    if not path:
        raise err(ENOENT)
    vp = root if path[0] == 0x2F else start
    search = not cred.cr_cap_e & CAP_SEARCH
    now = monotonic_ns()
    todo = path.split(b"/")
    if todo[-1] == b"":
        flags |= NAMEI_FOLLOW | NAMEI_DIRECTORY
    todo.reverse()
    links = 0
    while todo:
        name = todo.pop()
        if not name:
            continue
        if vp.v_type != VDIR:
            raise err(ENOTDIR)
        if search:
            vp.access(VEXEC, cred)
        # The same as vp.lookup(name), written out: this is where stat spends its time.
        if vp.v_names_until < now:
            vp.vop_revalidate()
        nvp: Vnode | None = vp.v_names.get(name, _MISSING)
        if nvp is _MISSING or (nvp is not None and nvp.v_flag & VSTALE):
            if name == b".":
                continue
            if name == b"..":
                if vp is not root and vp.v_parent is not None:
                    vp = vp.v_parent
                continue
            nvp = vp._lookup_slow(name)
        if nvp is None:
            raise err(ENOENT)
        if nvp.v_type == VLNK and (flags & NAMEI_FOLLOW or _more(todo)):
            links += 1
            if links > SYMLINK_MAX:
                raise err(ELOOP)
            if nvp.v_mount.mnt_flags & ST_NOSYMFOLLOW:
                raise err(ELOOP)
            if nvp.v_flag & VMAGIC:
                vp = nvp.vop_magic(cred)
                continue
            target = nvp.readlink()
            if not target:
                raise err(ENOENT)
            if target[0] == 0x2F:
                vp = root
            if target[-1] == 0x2F and not _more(todo):
                flags |= NAMEI_DIRECTORY
            todo.extend(reversed(target.split(b"/")))
            continue
        vp = nvp
    if flags & NAMEI_DIRECTORY and vp.v_type != VDIR:
        raise err(ENOTDIR)
    vp.v_flag |= VREFD
    return vp


def _more(todo: list[bytes]) -> bool:
    # Are there components left? Empty ones come from doubled slashes and one at the end, which was
    # noted in the flags.
    return any(todo)


def nameiat(root: Vnode, start: Vnode, path: bytes, cred: Cred, follow: bool = False) -> Nameidata:
    """The directory that holds the last component of `path`, and what that stands for.

    `follow` (open with O_CREAT): while the last component is a symbolic link, go on at its target,
    so that the result is where a file would be made; not behind a slash, where none can be made.

    :raises OSError: as namei, for everything before the last component.
    """
    links = 0
    while True:
        if len(path) >= PATH_MAX:
            raise err(ENAMETOOLONG)
        if not path:
            raise err(ENOENT)
        head, _, name = path.rstrip(b"/").rpartition(b"/")
        slash = path[-1] == 0x2F
        if not name:  # "/" and its like
            return Nameidata(root, b"", root, slash)
        if head or path[0] == 0x2F:
            dvp = namei(root, start, head or b"/", cred, NAMEI_FOLLOW | NAMEI_DIRECTORY)
        else:
            dvp = start
            if dvp.v_type != VDIR:
                raise err(ENOTDIR)
        if not cred.cr_cap_e & CAP_SEARCH:
            dvp.access(VEXEC, cred)
        if name == b".":
            return Nameidata(dvp, name, dvp, slash)
        if name == b"..":
            up = dvp if dvp is root or dvp.v_parent is None else dvp.v_parent
            return Nameidata(dvp, name, up, slash)
        if not follow or slash:
            return Nameidata(dvp, name, _MISSING, slash)
        vp = dvp.lookup(name)
        if vp is None or vp.v_type != VLNK:
            return Nameidata(dvp, name, vp, slash)
        links += 1
        if links > SYMLINK_MAX:
            raise err(ELOOP)
        if vp.v_mount.mnt_flags & ST_NOSYMFOLLOW:
            raise err(ELOOP)
        if vp.v_flag & VMAGIC:
            return Nameidata(dvp, name, vp.vop_magic(cred), slash)
        start = dvp
        path = vp.readlink()
