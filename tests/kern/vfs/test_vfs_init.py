"""What is mounted where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from vfs_util import Sys

from dfvm.kern.machine import Machine
from dfvm.kern.vfs.mount import Vfs
from dfvm.kern.vfs.vfs_init import vfs_mountall
from dfvm.kern.vfs.vnode import vn_fullpath
from dfvm.kern.vfs.vnode_param import VDIR, VTTODT


@pytest.fixture
def mounted():  # type: ignore[no-untyped-def]
    made: list[Vfs] = []
    with Machine(mem="32M") as m:

        def mount(root: Path | str, *rw: Path) -> Vfs:
            vfs = vfs_mountall(m.kernel, os.fsencode(root), [os.fsencode(p) for p in rw])
            made.append(vfs)
            return vfs

        yield mount
        for vfs in made:
            vfs.shutdown()


def paths(vfs: Vfs) -> dict[bytes, str]:
    return {vn_fullpath(m.mnt_root, vfs.rootvnode): m.mnt_fstype for m in vfs.mounts}


def test_the_usual_mounts(mounted) -> None:  # type: ignore[no-untyped-def]
    vfs = mounted("/")
    assert paths(vfs) == {
        b"/": "overlay",
        b"/dev": "devtmpfs",
        b"/dev/mqueue": "mqueue",
        b"/dev/shm": "tmpfs",
        b"/proc": "proc",
        b"/sys": "sysfs",
        b"/tmp": "overlay",
    }
    sys = Sys(vfs)
    sys.write_file(b"/dev/shm/x", b"shared")
    assert not os.path.exists("/dev/shm/x")
    dev = sys.lookup(b"/dev")
    subdirectories = [e for e in dev.readdir()[2:] if e[2] == VTTODT[VDIR]]
    assert (b"shm" in [e[0] for e in subdirectories]) and (
        dev.getattr().va_nlink == 2 + len(subdirectories)
    )


def test_an_empty_root_gets_mount_points_in_memory(mounted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    vfs = mounted(tmp_path)
    assert Sys(vfs).names(b"/") == [b".", b"..", b"dev", b"proc", b"sys", b"tmp"]
    assert list(tmp_path.iterdir()) == []
    assert vfs.rootvnode.getattr().va_nlink == 6


def test_rw_directories(mounted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a" / "b").mkdir(parents=True)
    vfs = mounted("/", tmp_path / "a" / "b", tmp_path / "a")
    sys = Sys(vfs, os.fsencode(tmp_path))
    sys.write_file(b"kept", b"")
    sys.write_file(b"a/one", b"1")
    sys.write_file(b"a/b/two", b"2")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "one", "two"]
    inside = mounted(tmp_path, tmp_path / "a")
    assert paths(inside)[b"/a"] == "hostfs"


def test_the_whole_root_written_through(mounted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "tmp").mkdir()
    vfs = mounted(tmp_path, tmp_path, tmp_path / "tmp")
    sys = Sys(vfs)
    sys.write_file(b"/x", b"")
    sys.write_file(b"/tmp/y", b"")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["tmp", "x", "y"]
    assert sys.names(b"/") == [b".", b"..", b"dev", b"proc", b"sys", b"tmp", b"x"]


def test_the_whole_root_is_written_through_below_tmp_too(mounted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    vfs = mounted(tmp_path, tmp_path)  # it has none, so that one is made in memory
    Sys(vfs).write_file(b"/tmp/x", b"")
    assert not (tmp_path / "tmp").exists()
    (tmp_path / "tmp").mkdir()
    vfs = mounted(tmp_path, tmp_path)
    Sys(vfs).write_file(b"/tmp/x", b"")
    assert (tmp_path / "tmp" / "x").exists()


def test_what_cannot_be_written_through(mounted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "root").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="not below the root"):
        mounted(tmp_path / "root", tmp_path)
    for own in ("/dev", "/dev/shm", "/proc", "/sys/kernel"):
        with pytest.raises(ValueError, match="is the machine's own"):
            mounted("/", own)
    with pytest.raises(NotADirectoryError):
        mounted("/", tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        mounted("/", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        mounted(tmp_path / "nothing")
