"""openat2(2)'s restrictions on where a path may lead.

`resolve_at` walks all of a path but the last component, and the symbolic links behind that, under
the restrictions; what it returns is opened like any other name in a directory. It is apart from
namei because nothing else restricts a path.

Source: behaviour of Linux fs/namei.c (LOOKUP_IS_SCOPED, LOOKUP_NO_…), openat2(2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_caps import CAP_SEARCH
from dfvm.kern.kern_errno import ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EXDEV, err
from dfvm.kern.vfs.mount import ST_NOSYMFOLLOW
from dfvm.kern.vfs.namei import PATH_MAX, SYMLINK_MAX
from dfvm.kern.vfs.vnode_param import VDIR, VEXEC, VLNK, VMAGIC

if TYPE_CHECKING:
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred

RESOLVE_NO_XDEV: Final = 0x01  # into no other file system
RESOLVE_NO_MAGICLINKS: Final = 0x02  # through no link like /proc/self/fd/N
RESOLVE_NO_SYMLINKS: Final = 0x04  # through no link at all
RESOLVE_BENEATH: Final = 0x08  # not out of the directory where it starts
RESOLVE_IN_ROOT: Final = 0x10  # that directory is the root
RESOLVE_CACHED: Final = 0x20  # without waiting: nothing here waits
RESOLVE_ALL: Final = 0x3F


class _Walk:
    """How far a path has been walked."""

    __slots__ = ("beneath", "cred", "resolve", "root", "todo", "vp")

    resolve: int  # RESOLVE_*
    cred: Cred
    root: Vnode  # where absolute paths begin
    beneath: Vnode | None  # the directory not to be left; None: there is none
    vp: Vnode  # where we are
    todo: list[bytes]  # components still to come, the next one last

    def __init__(self, root: Vnode, start: Vnode, path: bytes, cred: Cred, resolve: int) -> None:
        self.resolve = resolve
        self.cred = cred
        self.root = start if resolve & RESOLVE_IN_ROOT else root
        self.beneath = start if resolve & RESOLVE_BENEATH else None
        self.vp = self.root if path[:1] == b"/" else start
        self.todo = []
        self.begin(path)

    def begin(self, path: bytes) -> None:
        """Go on with the components of `path`: the user's, or a link's target."""
        if path[:1] == b"/":
            if self.beneath is not None:
                raise err(EXDEV)
            self.move(self.root)
        self.todo.extend(name for name in reversed(path.split(b"/")) if name not in (b"", b"."))

    def move(self, vp: Vnode) -> None:
        """Go to vp, which may lie in another file system."""
        if self.resolve & RESOLVE_NO_XDEV and vp.v_mount is not self.vp.v_mount:
            raise err(EXDEV)
        self.vp = vp

    def up(self) -> None:
        """Go to the parent."""
        vp = self.vp
        if vp is self.beneath:
            raise err(EXDEV)
        if vp is not self.root and vp.v_parent is not None:
            self.move(vp.v_parent)

    def may_follow(self, link: Vnode) -> None:
        """`link` is to be followed."""
        magic = bool(link.v_flag & VMAGIC)
        if link.v_mount.mnt_flags & ST_NOSYMFOLLOW:
            raise err(ELOOP)
        if self.resolve & RESOLVE_NO_SYMLINKS or (magic and self.resolve & RESOLVE_NO_MAGICLINKS):
            raise err(ELOOP)
        if magic and self.resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT):
            raise err(EXDEV)


def resolve_at(
    root: Vnode, start: Vnode, path: bytes, cred: Cred, resolve: int, follow: bool
) -> tuple[Vnode, bytes]:
    """Where `path` leads under the restrictions `resolve`: a directory and a name in it, or ".".
    With `follow` the name is no symbolic link's, except one that leads to no path (VMAGIC).

    :raises OSError: EXDEV, ELOOP, ENOENT, ENOTDIR, EACCES, ENAMETOOLONG, and what the host says.
    """
    if len(path) >= PATH_MAX:
        raise err(ENAMETOOLONG)
    if not path:
        raise err(ENOENT)
    slash = b"/" if path[-1:] == b"/" else b""
    walk = _Walk(root, start, path, cred, resolve)
    links = 0
    while walk.todo:
        dvp = walk.vp
        if dvp.v_type != VDIR:
            raise err(ENOTDIR)
        if not cred.cr_cap_e & CAP_SEARCH:
            dvp.access(VEXEC, cred)
        name = walk.todo.pop()
        if name == b"..":
            walk.up()
            continue
        vp = dvp.lookup(name)
        last = not walk.todo
        if vp is None:
            if last:
                return dvp, name + slash
            raise err(ENOENT)
        if vp.v_type == VLNK and (follow or slash or not last):
            walk.may_follow(vp)
            links += 1
            if links > SYMLINK_MAX:
                raise err(ELOOP)
            if not vp.v_flag & VMAGIC:
                walk.begin(vp.readlink())
                continue
            vp = vp.vop_magic(cred)
        walk.move(vp)
        if last:
            return dvp, name + slash
    return walk.vp, b"."
