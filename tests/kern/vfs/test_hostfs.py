"""--rw: what is written through, when, and what never is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from vfs_util import Sys, TestCred, make_vfs, make_vm, unmount

from dfvm.kern.kern_errno import EFBIG, ENXIO, EPERM, EXDEV
from dfvm.kern.vfs import hostfs, namei, overlay, vnode
from dfvm.kern.vfs.hostfs import HostMount
from dfvm.kern.vfs.overlay import HOST_TTL, OVERLAY_MAGIC, OvlMount
from dfvm.kern.vfs.vnode_param import FREAD, KCRED, VCHR, VFIFO, VRECLAIMED

vm = make_vm(64)


class Rw:
    """An overlay with one directory of it written through."""

    def __init__(self, top: Path) -> None:
        self.host = top / "rw"
        self.host.mkdir()
        (self.host / "old").write_text("old\n")
        self.vfs = make_vfs(
            vm,
            lambda vfs: OvlMount(vfs, "overlay", OVERLAY_MAGIC, os.fsencode(top), 1 << 30),
        )
        self.mount = HostMount(self.vfs, os.fsencode(self.host))
        self.vfs.mount(b"/rw", self.mount)
        self.sys = Sys(self.vfs, b"/rw")


@pytest.fixture
def rw(tmp_path: Path):  # type: ignore[no-untyped-def]
    r = Rw(tmp_path)
    yield r
    unmount(r.vfs)


clock = [1 << 40]  # its time in ns


@pytest.fixture(autouse=True)
def own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes when ttl() says so, however busy the host is."""
    for module in (hostfs, namei, overlay, vnode):
        monkeypatch.setattr(module, "monotonic_ns", lambda: clock[0])


def ttl() -> None:
    """Until what the host said is no longer believed."""
    clock[0] += HOST_TTL + 1


def test_data_reaches_the_host_at_close_and_fsync(rw: Rw) -> None:
    f = rw.sys.open(b"new", os.O_RDWR | os.O_CREAT, 0o640)
    assert (rw.host / "new").exists()
    rw.sys.pwrite(f, b"x" * 10_000, 0)
    assert f.vp.getattr().va_size == 10_000
    f.vp.fsync()
    assert (rw.host / "new").read_bytes() == b"x" * 10_000
    rw.sys.pwrite(f, b"yyy", 9_999)
    assert rw.sys.pread(f, 100, 9_990) == b"x" * 9 + b"yyy"
    rw.sys.close(f)
    assert (rw.host / "new").read_bytes() == b"x" * 9_999 + b"yyy"
    assert stat.S_IMODE((rw.host / "new").stat().st_mode) == 0o640


def test_times_set_before_close_stay(rw: Rw) -> None:
    """What tar and cp -p do: write, set the times by descriptor, close."""
    f = rw.sys.open(b"new", os.O_RDWR | os.O_CREAT)
    rw.sys.pwrite(f, b"data", 0)
    f.vp.utimes(10**18, 10**18 + 7, KCRED, True)
    rw.sys.close(f)
    st = os.stat(rw.host / "new")
    assert (st.st_atime_ns, st.st_mtime_ns, st.st_size) == (10**18, 10**18 + 7, 4)
    ttl()
    assert rw.sys.read_file(b"new") == b"data"
    assert rw.sys.lookup(b"new").getattr().va_mtime == 10**18 + 7


def test_truncation_and_holes(rw: Rw) -> None:
    f = rw.sys.open(b"old", os.O_RDWR)
    f.vp.setsize(2)
    assert os.stat(rw.host / "old").st_size == 2
    f.vp.setsize(8192)
    rw.sys.pwrite(f, b"end", 8189)
    rw.sys.close(f)
    assert (rw.host / "old").read_bytes() == b"ol" + bytes(8187) + b"end"


def test_host_and_guest_write_in_turns(rw: Rw) -> None:
    assert rw.sys.read_file(b"old") == b"old\n"
    (rw.host / "old").write_text("from the host\n")
    assert rw.sys.read_file(b"old") == b"from the host\n"
    rw.sys.write_file(b"old", b"from the guest\n")
    assert (rw.host / "old").read_text() == "from the guest\n"
    ttl()
    (rw.host / "appeared").touch()
    ttl()
    assert b"appeared" in rw.sys.names()
    rw.sys.lookup(b"appeared")


def test_unlinked_while_open(rw: Rw) -> None:
    f = rw.sys.open(b"old", os.O_RDWR)
    rw.sys.unlink(b"old")
    assert not (rw.host / "old").exists()
    assert rw.sys.pread(f, 10, 0) == b"old\n"
    rw.sys.pwrite(f, b"still", 0)
    f.vp.fsync()
    assert f.vp.getattr().va_nlink == 0
    rw.sys.close(f)
    assert f.vp.v_flag & VRECLAIMED and not rw.vfs.fds.kept.keys() - {
        rw.mount.mnt_root.h_ref,
        rw.vfs.mounts[0].o_top,  # type: ignore[attr-defined]
    }


def test_replaced_while_open(rw: Rw) -> None:
    f = rw.sys.open(b"old", os.O_RDONLY)
    rw.sys.write_file(b"tmp", b"new\n")
    rw.sys.rename(b"tmp", b"old")
    assert rw.sys.pread(f, 10, 0) == b"old\n"
    assert rw.sys.read_file(b"old") == b"new\n" == (rw.host / "old").read_bytes()
    rw.sys.close(f)


def test_tmpfile_gets_a_name(rw: Rw) -> None:
    try:
        vp = rw.sys.cwd.tmpfile(0o600, KCRED)
    except OSError:
        pytest.skip("no O_TMPFILE on this host file system")
    vp.open(3, KCRED)
    rw.sys.cwd.link(b"named", vp, KCRED)
    assert (rw.host / "named").stat().st_nlink == 1
    vp.close(3)


def test_moving_between_the_two_is_exdev(rw: Rw) -> None:
    rw.sys.write_file(b"/outside", b"")
    for a, b in ((b"/outside", b"x"), (b"old", b"/x")):
        for fn in (rw.sys.rename, rw.sys.link):
            with pytest.raises(OSError) as e:
                fn(a, b)
            assert e.value.errno == EXDEV
    assert not (rw.host.parent / "outside").exists()


def test_no_devices_and_no_host_fifos(rw: Rw) -> None:
    with pytest.raises(OSError) as e:
        rw.sys.mknod(b"null", VCHR, 0o666, os.makedev(1, 3))
    assert e.value.errno == EPERM
    rw.sys.mknod(b"fifo", VFIFO, 0o622)
    assert stat.S_ISFIFO(os.stat(rw.host / "fifo").st_mode)
    assert stat.S_IMODE(os.stat(rw.host / "fifo").st_mode) == 0o622
    vp = rw.sys.lookup(b"fifo")
    assert vp.open(FREAD, KCRED) is None  # the guest's own: sys_pipe makes the ends meet
    vp.close(FREAD)
    os.mkfifo(rw.host / "theirs")
    with pytest.raises(OSError) as e:
        rw.sys.open(b"theirs", os.O_RDONLY)
    assert e.value.errno == ENXIO


def test_exchange(rw: Rw) -> None:
    rw.sys.write_file(b"b", b"b\n")
    f = rw.sys.open(b"b", os.O_RDWR)
    rw.sys.rename(b"old", b"b", 2)
    rw.sys.pwrite(f, b"B", 0)  # the file, whatever its name is now
    rw.sys.close(f)
    assert (rw.host / "old").read_text() == "B\n"
    assert (rw.host / "b").read_text() == "old\n"


def test_a_removed_directory_lives_while_used(rw: Rw) -> None:
    rw.sys.mkdir(b"d", 0o755)
    vp = rw.sys.lookup(b"d")
    vp.vref()
    rw.sys.rmdir(b"d")
    vp.chmod(0o700, KCRED)
    va = vp.getattr()
    assert (va.va_nlink, va.va_mode) == (0, 0o700)
    vp.vrele()
    assert vp.v_flag & VRECLAIMED


def test_a_hole_is_made_on_the_host(rw: Rw) -> None:
    f = rw.sys.open(b"h", os.O_RDWR | os.O_CREAT, 0o600)
    rw.sys.pwrite(f, b"x" * 40_960, 0)
    f.vp.allocate(3, 4096, 20_480)
    assert rw.sys.pread(f, 10, 8192) == bytes(10)
    f.vp.fsync()
    assert (rw.host / "h").read_bytes() == b"x" * 4096 + bytes(20_480) + b"x" * 16_384
    rw.sys.close(f)


def test_a_size_the_host_refuses_changes_nothing(rw: Rw) -> None:
    f = rw.sys.open(b"big", os.O_RDWR | os.O_CREAT, 0o600)
    rw.sys.pwrite(f, b"abc", 0)
    try:
        os.truncate(rw.host / "old", (1 << 63) - 4096)
    except OSError:
        with pytest.raises(OSError) as e:
            f.vp.setsize((1 << 63) - 4096)
        assert e.value.errno == EFBIG
        assert f.vp.getattr().va_size == 3
    rw.sys.close(f)
    assert rw.vfs.sync() == []
    assert (rw.host / "big").stat().st_size in (3, (1 << 63) - 4096)


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    """A link out of the written directory ends where the guest's tree has it: in the overlay."""
    (tmp_path / "target").write_text("untouched")
    r = Rw(tmp_path)
    (r.host / "out").symlink_to("../target")
    r.sys.write_file(b"out", b"changed")
    assert (tmp_path / "target").read_text() == "untouched"
    assert r.sys.read_file(b"/target") == b"changed"
    unmount(r.vfs)


def test_permissions_are_the_guests(rw: Rw) -> None:
    os.chmod(rw.host / "old", 0o600)
    os.chmod(rw.host, 0o755)
    rw.vfs.rootvnode.chmod(0o755, KCRED)
    ttl()
    rw.sys.cwd.getattr()
    rw.sys.lookup(b"old").getattr()
    joe = Sys(rw.vfs, b"/rw", TestCred(54321, 54321))
    with pytest.raises(PermissionError):
        joe.open(b"old", os.O_RDONLY)
    with pytest.raises(PermissionError):
        joe.write_file(b"mine", b"")
