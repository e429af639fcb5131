"""The overlay: what shows through, what stays, and that the host is never changed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from vfs_util import Sys, TestCred, check, make_vfs, make_vm, unmount

from dfvm.kern.kern_errno import (
    EACCES,
    EBUSY,
    EISDIR,
    ELOOP,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    ENXIO,
    EPERM,
    ETXTBSY,
    EXDEV,
)
from dfvm.kern.vfs import mount as mount_module
from dfvm.kern.vfs import namei, overlay, vnode
from dfvm.kern.vfs.mount import Vfs
from dfvm.kern.vfs.overlay import HOST_TTL, OVERLAY_MAGIC, OvlMount
from dfvm.kern.vfs.tmpfs import tmpfs
from dfvm.kern.vfs.vnode import vn_fullpath
from dfvm.kern.vfs.vnode_param import FREAD, KCRED, VFIFO, VRECLAIMED
from dfvm.vm.pager.vnode_pager import vnode_pager_object

vm = make_vm(128)


clock = [1 << 40]  # its time in ns


@pytest.fixture(autouse=True)
def own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes when wait_ttl() says so, however busy the host is."""
    for module in (namei, overlay, vnode):
        monkeypatch.setattr(module, "monotonic_ns", lambda: clock[0])


def wait_ttl() -> None:
    """Until what the host said is no longer believed."""
    clock[0] += HOST_TTL + 1


class Tree:
    """A small host tree with an overlay on it."""

    def __init__(self, top: Path, limit: int = 1 << 30) -> None:
        self.top = top
        self.vfs = make_vfs(
            vm,
            lambda vfs: OvlMount(vfs, "overlay", OVERLAY_MAGIC, os.fsencode(top), limit),
        )
        self.sys = Sys(self.vfs)

    @property
    def mount(self) -> OvlMount:
        m = self.vfs.mounts[0]
        assert isinstance(m, OvlMount)
        return m


@pytest.fixture
def t(tmp_path: Path):  # type: ignore[no-untyped-def]
    (tmp_path / "dir" / "sub").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"hello\n")
    (tmp_path / "big").write_bytes(bytes(range(256)) * 1024)
    (tmp_path / "dir" / "inner").write_bytes(b"inner\n")
    (tmp_path / "link").symlink_to("dir/inner")
    tree = Tree(tmp_path)
    yield tree
    check(tree.vfs)
    unmount(tree.vfs)


def snapshot(top: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(top)): p.read_bytes() if p.is_file() and not p.is_symlink() else None
        for p in sorted(top.rglob("*"))
    }


def test_writing_copies_pages_not_files(t: Tree) -> None:
    """One byte in a file of 64 pages: one page is ours, and the host's file is untouched."""
    before = snapshot(t.top)
    f = t.sys.open(b"/big", os.O_RDWR)
    t.sys.pwrite(f, b"!", 5000)
    f.vp.fsync()
    assert list(f.vp.o_store.pages) == [1]
    assert t.mount.o_quota.used == 1
    want = bytearray((t.top / "big").read_bytes())
    want[5000] = 0x21
    assert t.sys.read_file(b"/big") == bytes(want)
    t.sys.close(f)
    assert snapshot(t.top) == before


def test_hard_links_share_pages(t: Tree) -> None:
    os.link(t.top / "file", t.top / "dir" / "other")
    a, b = t.sys.lookup(b"/file"), t.sys.lookup(b"/dir/other")
    assert a is b and a.getattr().va_nlink == 2
    f = t.sys.open(b"/file", os.O_WRONLY)
    t.sys.pwrite(f, b"J", 0)
    t.sys.close(f)
    assert t.sys.read_file(b"/dir/other") == b"Jello\n"
    t.sys.unlink(b"/file")
    assert t.sys.lookup(b"/dir/other").getattr().va_nlink == 1


def test_directory_made_again_is_opaque(t: Tree) -> None:
    t.sys.unlink(b"/dir/inner")
    t.sys.rmdir(b"/dir/sub")
    t.sys.rmdir(b"/dir")
    t.sys.mkdir(b"/dir")
    assert t.sys.names(b"/dir") == [b".", b".."]
    with pytest.raises(OSError) as e:
        t.sys.lookup(b"/dir/inner")
    assert e.value.errno == ENOENT
    t.sys.write_file(b"/dir/inner", b"new")
    assert t.sys.read_file(b"/link") == b"new"
    assert (t.top / "dir" / "inner").read_bytes() == b"inner\n"


def test_rename_of_a_host_directory_takes_its_contents_along(t: Tree) -> None:
    before = snapshot(t.top)
    t.sys.write_file(b"/dir/mine", b"upper")
    t.sys.rename(b"/dir", b"/moved")
    assert t.sys.names(b"/moved") == [b".", b"..", b"inner", b"mine", b"sub"]
    assert t.sys.read_file(b"/moved/inner") == b"inner\n"
    assert t.sys.read_file(b"/moved/mine") == b"upper"
    assert vn_fullpath(t.sys.lookup(b"/moved/inner"), t.sys.root) == b"/moved/inner"
    assert t.sys.lookup(b"/moved/sub/..") is t.sys.lookup(b"/moved")
    with pytest.raises(FileNotFoundError):
        t.sys.lookup(b"/dir")
    with pytest.raises(OSError) as e:
        t.sys.rmdir(b"/moved")
    assert e.value.errno == ENOTEMPTY
    assert snapshot(t.top) == before


def test_attributes_of_host_files_are_kept_here(t: Tree) -> None:
    vp = t.sys.lookup(b"/file")
    host = os.stat(t.top / "file")
    va = vp.getattr()
    assert (va.va_fileid, va.va_fsid) == (host.st_ino, host.st_dev)
    assert (va.va_uid, va.va_gid) == (os.getuid(), os.getgid())
    vp.chmod(0o640, KCRED)
    vp.chown(12, 34, KCRED)
    vp.utimes(1_000_000_001, 2_000_000_002, KCRED, True)
    va = vp.getattr()
    assert (va.va_mode, va.va_uid, va.va_gid) == (0o640, 12, 34)
    assert (va.va_atime, va.va_mtime) == (1_000_000_001, 2_000_000_002)
    assert (va.va_fileid, va.va_fsid) == (host.st_ino, host.st_dev)
    assert t.sys.read_file(b"/file") == b"hello\n"
    after = os.stat(t.top / "file")
    assert (after.st_mode, after.st_mtime_ns) == (host.st_mode, host.st_mtime_ns)


def test_changes_on_the_host_are_seen(t: Tree) -> None:
    assert t.sys.read_file(b"/file") == b"hello\n"
    with pytest.raises(FileNotFoundError):
        t.sys.lookup(b"/later")
    wait_ttl()
    (t.top / "file").write_bytes(b"other contents\n")
    (t.top / "later").write_bytes(b"x")
    (t.top / "dir" / "inner").unlink()
    wait_ttl()
    assert t.sys.read_file(b"/file") == b"other contents\n"
    assert t.sys.lookup(b"/file").getattr().va_size == 15
    assert t.sys.read_file(b"/later") == b"x"
    with pytest.raises(FileNotFoundError):
        t.sys.lookup(b"/dir/inner")
    # Replaced by another file of the same name, as editors do.
    (t.top / "new").write_bytes(b"third\n")
    (t.top / "new").rename(t.top / "file")
    wait_ttl()
    assert t.sys.read_file(b"/file") == b"third\n"


def test_open_sees_a_changed_file_at_once(t: Tree) -> None:
    assert t.sys.read_file(b"/file") == b"hello\n"
    os.utime(t.top / "file", ns=(0, 0))
    (t.top / "file").write_bytes(b"HELLO\n")
    assert t.sys.read_file(b"/file") == b"HELLO\n"


def test_following_a_growing_file(t: Tree) -> None:
    f = t.sys.open(b"/file", os.O_RDONLY)
    assert t.sys.pread(f, 100, 0) == b"hello\n"
    with open(t.top / "file", "ab") as log:
        log.write(b"more\n")
    wait_ttl()
    assert t.sys.pread(f, 100, 6) == b"more\n"
    t.sys.close(f)


def test_a_truncated_tail_never_comes_back(t: Tree) -> None:
    vp = t.sys.lookup(b"/big")
    vp.truncate(10, KCRED)
    vp.truncate(9000, KCRED)
    data = t.sys.read_file(b"/big")
    assert data == bytes(range(10)) + bytes(8990)


def test_unlinked_file_lives_while_open(t: Tree) -> None:
    f = t.sys.open(b"/file", os.O_RDWR)
    t.sys.unlink(b"/file")
    assert f.vp.getattr().va_nlink == 0
    assert t.sys.pread(f, 10, 0) == b"hello\n"
    t.sys.pwrite(f, b"still here", 0)
    assert vn_fullpath(f.vp, t.sys.root) == b"/file (deleted)"
    assert t.mount.o_quota.used == 1
    t.sys.close(f)
    assert t.mount.o_quota.used == 0 and f.vp.v_flag & VRECLAIMED


def test_root_cannot_be_left(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "up").symlink_to("../outside")
    (root / "abs").symlink_to(str(outside))
    (root / "a" / "far").symlink_to("../../../../../../../.." + str(outside))
    t = Tree(root)
    for path in (b"/../outside/secret", b"/up/secret", b"/abs/secret", b"/a/far/secret",
                 b"/a/b/../../../outside/secret", b"../outside/secret"):  # fmt: skip
        with pytest.raises(FileNotFoundError):
            t.sys.lookup(path)
    unmount(t.vfs)


def test_a_directory_replaced_by_a_link_leads_nowhere(tmp_path: Path) -> None:
    """The race: found as a directory, a link to the outside when it is used."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "dir" / "file").write_text("harmless")
    t = Tree(root)
    dvp = t.sys.lookup(b"/dir")
    dvp.vref()
    t.vfs.fds.lru.clear()  # as if its descriptor had been closed; it stays open below
    dvp.o_lower.hr_fd = -1
    (root / "dir").rename(root / "gone")
    (root / "dir").symlink_to(outside)
    with pytest.raises(OSError) as e:
        dvp.lookup(b"secret")
    assert e.value.errno in (ELOOP, ENOTDIR)
    (root / "dir").unlink()
    (outside).rename(root / "dir")
    with pytest.raises(OSError) as e:
        dvp.lookup(b"secret")
    assert e.value.errno == 116  # ESTALE: a directory, but another one
    dvp.vrele()
    unmount(t.vfs)


def test_host_fifos_sockets_and_devices_are_not_opened(t: Tree) -> None:
    os.mkfifo(t.top / "fifo")
    s = socket.socket(socket.AF_UNIX)
    s.bind(str(t.top / "sock"))
    for name in (b"/fifo", b"/sock"):
        with pytest.raises(OSError) as e:
            t.sys.open(name, os.O_RDONLY)
        assert e.value.errno == ENXIO
    s.close()
    if os.getuid() == 0:
        os.mknod(t.top / "disk", 0o60600, os.makedev(7, 0))
        os.mknod(t.top / "tty", 0o20600, os.makedev(4, 1))
        for name in (b"/disk", b"/tty"):
            with pytest.raises(OSError) as e:
                t.sys.open(name, os.O_RDONLY)
            assert e.value.errno == ENXIO


def test_fifo_made_by_the_guest(t: Tree) -> None:
    t.sys.mknod(b"/pipe", VFIFO, 0o600)
    vp = t.sys.lookup(b"/pipe")
    assert vp.open(FREAD, KCRED) is None  # the rendezvous is sys_pipe's
    vp.close(FREAD)
    assert not (t.top / "pipe").exists()


def test_permissions(t: Tree) -> None:
    joe = TestCred(1000, 1000)
    t.sys.root.chmod(0o755, KCRED)
    t.sys.lookup(b"/file").chmod(0o640, KCRED)
    t.sys.lookup(b"/dir").chmod(0o750, KCRED)
    sys = Sys(t.vfs, cred=joe)
    for fn in (
        lambda: sys.open(b"/file", os.O_RDONLY),
        lambda: sys.lookup(b"/dir/inner"),
        lambda: sys.mkdir(b"/mine"),
        lambda: sys.unlink(b"/file"),
        lambda: sys.lookup(b"/big").truncate(0, joe),
    ):
        with pytest.raises(OSError) as e:
            fn()
        assert e.value.errno == EACCES
    for fn in (
        lambda: sys.lookup(b"/file").chmod(0o777, joe),
        lambda: sys.lookup(b"/file").chown(1000, -1, joe),
        lambda: sys.lookup(b"/file").utimes(0, 0, joe, True),
    ):
        with pytest.raises(OSError) as e:
            fn()
        assert e.value.errno == EPERM
    # A sticky directory: everybody makes files, only the owner removes them.
    t.sys.mkdir(b"/all", 0o1777)
    t.sys.write_file(b"/all/roots", b"")
    sys.write_file(b"/all/mine", b"")
    with pytest.raises(OSError) as e:
        sys.unlink(b"/all/roots")
    assert e.value.errno == EPERM
    sys.unlink(b"/all/mine")
    # The group counts, too, and setgid directories pass theirs on.
    t.sys.mkdir(b"/shared", 0o770)
    t.sys.lookup(b"/shared").chown(-1, 50, KCRED)
    t.sys.lookup(b"/shared").chmod(0o2770, KCRED)
    member = Sys(t.vfs, cred=TestCred(1000, 1000, (50,)))
    member.write_file(b"/shared/x", b"")
    member.mkdir(b"/shared/d")
    assert member.lookup(b"/shared/x").getattr().va_gid == 50
    assert member.lookup(b"/shared/d").getattr().va_mode & 0o2000


def test_text_busy(t: Tree) -> None:
    vp = t.sys.lookup(b"/file")
    vp.vref()
    vp.settext()
    for fn in (
        lambda: t.sys.open(b"/file", os.O_WRONLY),
        lambda: vp.truncate(0, KCRED),
    ):
        with pytest.raises(OSError) as e:
            fn()
        assert e.value.errno == ETXTBSY
    vp.cleartext()
    f = t.sys.open(b"/file", os.O_WRONLY)
    with pytest.raises(OSError) as e:
        vp.settext()
    assert e.value.errno == ETXTBSY
    t.sys.close(f)
    vp.vrele()


def test_size_limit(tmp_path: Path) -> None:
    t = Tree(tmp_path, limit=10 * 4096)
    f = t.sys.open(b"/f", os.O_RDWR | os.O_CREAT)
    assert t.sys.pwrite(f, bytes(20 * 4096), 100) == 10 * 4096 - 100
    with pytest.raises(OSError) as e:
        t.sys.pwrite(f, b"x", 10 * 4096)
    assert e.value.errno == ENOSPC
    assert f.vp.getattr().va_size == 10 * 4096
    assert t.mount.statfs().f_bfree >= 0
    f.vp.setsize(0)
    assert t.sys.pwrite(f, b"x", 0) == 1  # what was given up may be used again
    t.sys.close(f)
    t.sys.unlink(b"/f")
    assert t.mount.o_quota.used == 0
    unmount(t.vfs)


def test_holes_cost_nothing(t: Tree) -> None:
    f = t.sys.open(b"/sparse", os.O_RDWR | os.O_CREAT)
    t.sys.pwrite(f, b"end", 1 << 40)
    va = f.vp.getattr()
    assert va.va_size == (1 << 40) + 3 and va.va_bytes == 4096
    assert t.sys.pread(f, 5, (1 << 40) - 2) == b"\0\0end"
    f.vp.allocate(3, 1 << 40, 4096)  # PUNCH_HOLE | KEEP_SIZE
    assert t.sys.pread(f, 3, 1 << 40) == b"\0\0\0"
    t.sys.close(f)


def test_punching_a_hole_into_a_host_file(t: Tree) -> None:
    want = bytearray((t.top / "big").read_bytes())
    f = t.sys.open(b"/big", os.O_RDWR)
    f.vp.allocate(3, 5000, 20000)
    want[5000:25000] = bytes(20000)
    assert t.sys.pread(f, 1 << 20, 0) == bytes(want)
    t.sys.close(f)


def test_dirty_pages_survive_recycling(t: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written through a mapping, then nobody uses the vnode: the data has to be found again."""
    vp = t.sys.lookup(b"/big")
    vp.vref()
    from dfvm.vm.pager.vnode_pager import vnode_pager_writepage, vnode_pager_wrote
    from dfvm.vm.vm_page import vm_page_unhold

    m = vnode_pager_writepage(vnode_pager_object(vm, vp), 3, 0, 4096)
    vm.ram.mem[m.phys_addr] = 0xAA
    vnode_pager_wrote(m, 0, 1)
    vm_page_unhold(vm, m)
    vp.vrele()
    monkeypatch.setattr(t.vfs, "maxinactive", 0)
    for i in range(300):
        (t.top / f"n{i}").touch()
    wait_ttl()
    for i in range(300):
        t.sys.lookup(b"/n%d" % i)
    assert t.sys.read_file(b"/big")[3 * 4096] == 0xAA


def test_recycling_bounds_vnodes_and_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for d in range(20):
        (tmp_path / f"d{d}").mkdir()
        for i in range(50):
            (tmp_path / f"d{d}" / f"f{i}").write_text(f"{d} {i}")
    monkeypatch.setattr(mount_module, "MAXINACTIVE", 100)
    t = Tree(tmp_path)
    t.vfs.fds.limit = 16
    before = len(os.listdir("/proc/self/fd"))
    for d in range(20):
        for i in range(50):
            assert t.sys.read_file(b"/d%d/f%d" % (d, i)) == b"%d %d" % (d, i)
    assert len(os.listdir("/proc/self/fd")) <= before + 16
    assert len(t.vfs.inactive) <= 101 and len(t.mount.o_inodes) < 250
    # What was recycled is found again, the same.
    first = t.sys.lookup(b"/d0/f0")
    assert first.getattr().va_fileid == os.stat(tmp_path / "d0" / "f0").st_ino
    check(t.vfs)
    unmount(t.vfs)


def test_open_files_keep_working_without_descriptors(t: Tree) -> None:
    for i in range(40):
        (t.top / f"f{i}").write_text(str(i))
    t.vfs.fds.limit = 16
    files = [t.sys.open(b"/f%d" % i, os.O_RDONLY) for i in range(40)]
    assert len(t.vfs.fds.lru) <= 16
    for i, f in enumerate(files):
        assert t.sys.pread(f, 10, 0) == b"%d" % i
        t.sys.close(f)


def test_mounts(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "below").touch()
    t = Tree(tmp_path)
    m = tmpfs(t.vfs)
    t.vfs.mount(b"/a", m)
    t.vfs.mount(b"/not/there", tmpfs(t.vfs))
    assert t.sys.names(b"/a") == [b".", b".."]
    assert t.sys.lookup(b"/a/..") is t.sys.root
    assert t.sys.lookup(b"/a/../a") is m.mnt_root
    assert t.sys.names(b"/") == [b".", b"..", b"a", b"not"]
    assert t.sys.names(b"/not") == [b".", b"..", b"there"]
    t.sys.write_file(b"/a/x", b"1")
    assert not (tmp_path / "a" / "x").exists()
    for fn, want in (
        (lambda: t.sys.rmdir(b"/a"), EBUSY),
        (lambda: t.sys.rename(b"/a", b"/b"), EBUSY),
        (lambda: t.sys.rename(b"/a/x", b"/x"), EXDEV),
        (lambda: t.sys.link(b"/a/x", b"/x"), EXDEV),
        (lambda: t.sys.unlink(b"/a"), EISDIR),
        (lambda: t.vfs.mount(b"/a", tmpfs(t.vfs)), EBUSY),
    ):
        with pytest.raises(OSError) as e:
            fn()
        assert e.value.errno == want
    assert vn_fullpath(t.sys.lookup(b"/a/x"), t.sys.root) == b"/a/x"
    wait_ttl()
    (tmp_path / "new").touch()  # the name cache is dropped, the mount stays
    assert t.sys.names(b"/a") == [b".", b"..", b"x"]
    unmount(t.vfs)


def test_pseudo_file_systems_of_the_host_appear_empty() -> None:
    t = Tree(Path("/"))
    for name in (b"/proc", b"/sys", b"/dev"):
        assert t.sys.names(name) == [b".", b".."]
    unmount(t.vfs)


def test_devices(t: Tree) -> None:
    from dfvm.kern.vfs.devfs import DevMount

    t.vfs.mount(b"/dev", DevMount(t.vfs))
    f = t.sys.open(b"/dev/zero", os.O_RDWR)
    assert t.sys.pread(f, 100_000, 0) == bytes(100_000)
    assert f.vp.mmap() == 1
    t.sys.close(f)
    f = t.sys.open(b"/dev/null", os.O_RDWR)
    assert t.sys.pread(f, 10, 0) == b"" and t.sys.pwrite(f, b"abc", 0) == 3
    t.sys.close(f)
    f = t.sys.open(b"/dev/full", os.O_RDWR)
    with pytest.raises(OSError) as e:
        t.sys.pwrite(f, b"abc", 0)
    assert e.value.errno == ENOSPC
    t.sys.close(f)
    f = t.sys.open(b"/dev/urandom", os.O_RDONLY)
    assert t.sys.pread(f, 64, 0) != t.sys.pread(f, 64, 0)
    t.sys.close(f)
    # A node for the same device elsewhere is the same device, /dev or not.
    va = t.sys.lookup(b"/dev/null").getattr()
    t.sys.mknod(b"/mynull", 4, 0o666, va.va_rdev)
    f = t.sys.open(b"/mynull", os.O_WRONLY)
    assert t.sys.pwrite(f, b"abc", 0) == 3
    t.sys.close(f)
    with pytest.raises(OSError) as e:
        Sys(t.vfs, cred=TestCred(1, 1)).mknod(b"/dev/n", 4, 0o666, va.va_rdev)
    assert e.value.errno in (EPERM, EACCES)


def test_lookup_is_fast(t: Tree) -> None:
    """Not a benchmark: an order of magnitude, so that nobody makes it linear or uncached."""
    from time import thread_time

    t.sys.lookup(b"/dir/sub")
    start = thread_time()
    for _ in range(2000):
        t.sys.lookup(b"/dir/sub").getattr()
        try:
            t.sys.lookup(b"/dir/nothing")
        except FileNotFoundError:
            pass
    assert (thread_time() - start) / 2000 < 300e-6


def test_vfs_is_per_machine(tmp_path: Path) -> None:
    a, b = Tree(tmp_path), Tree(tmp_path)
    a.sys.write_file(b"/only-a", b"")
    assert isinstance(a.vfs, Vfs)
    with pytest.raises(FileNotFoundError):
        b.sys.lookup(b"/only-a")
    unmount(a.vfs)
    unmount(b.vfs)


@pytest.mark.parametrize("age", [0, 2 * HOST_TTL])
def test_what_is_being_written_is_not_asked_of_the_host(t: Tree, age: int) -> None:
    """The host's size must not come back while a write or a truncation is under way, however long
    ago it was last looked at."""
    for change in ("write", "truncate", "append"):
        vp = t.sys.lookup(b"/file")
        (t.top / "file").write_bytes(b"hello\n")
        vp.getattr()
        vp.o_until -= age
        f = t.sys.open(b"/file", os.O_RDWR)
        f.vp.o_until -= age
        if change == "write":
            t.sys.pwrite(f, b"x" * 5000, 3)
            want = b"hel" + b"x" * 5000
        elif change == "truncate":
            f.vp.setsize(3)
            want = b"hel"
        else:
            t.sys.pwrite(f, b"more", 0, append=True)
            want = b"hello\nmore"
        f.vp.o_until = 0
        assert f.vp.getattr().va_size == len(want)
        assert t.sys.pread(f, 10_000, 0) == want
        t.sys.close(f)
        t.sys.unlink(b"/file")
        t.sys.unlink(b"/link")
        (t.top / "file").unlink()
        (t.top / "file").write_bytes(b"hello\n")
        unmount(t.vfs)
        again = Tree(t.top)
        t.vfs, t.sys = again.vfs, again.sys


def test_a_name_once_lost_is_not_given_back(t: Tree) -> None:
    f = t.sys.open(b"/file", os.O_RDONLY)
    t.sys.unlink(b"/file")
    with pytest.raises(FileNotFoundError):
        t.sys.root.link(b"back", f.vp, KCRED)
    t.sys.close(f)
    vp = t.sys.root.tmpfile(0o600, KCRED)
    vp.open(FREAD, KCRED)
    t.sys.root.link(b"first", vp, KCRED)
    vp.close(FREAD)
    assert t.sys.lookup(b"/first").getattr().va_nlink == 1
