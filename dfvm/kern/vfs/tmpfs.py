"""tmpfs: files in memory, with a size limit. The overlay without a host directory below; /tmp may
have the host's /tmp below it, so that programs and data that lie there can be used.

Source of the name and of what statfs says: Linux mm/shmem.c.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from dfvm.kern.vfs.mount import ST_NODEV, ST_NOSUID
from dfvm.kern.vfs.overlay import OvlMount

if TYPE_CHECKING:
    from dfvm.kern.vfs.mount import Vfs

TMPFS_MAGIC: Final = 0x01021994


def host_half() -> int:
    """Half of the host's memory, bytes: what files in memory may take if nobody says otherwise."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def tmpfs(vfs: Vfs, size: int = 0, top: bytes | None = None) -> OvlMount:
    """A tmpfs of `size` bytes (0: half of the host's memory), over the host directory `top` if
    that is given."""
    return OvlMount(vfs, "tmpfs", TMPFS_MAGIC, top, size or host_half(), ST_NOSUID | ST_NODEV)
