"""The same random operations on dfvm's file systems and on a real directory of the host: the same
results, the same errors, the same tree at the end.

Three subjects: the overlay over a populated host directory (which must not change), tmpfs, and a
host directory written through (which must end up like the model)."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import stat
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vfs_util import Open, Sys, check, make_vfs, make_vm, unmount

from dfvm.kern.vfs.hostfs import HostMount, HostVnode
from dfvm.kern.vfs.overlay import OVERLAY_MAGIC, OvlMount, OvlVnode
from dfvm.kern.vfs.tmpfs import tmpfs
from dfvm.kern.vfs.vnode_param import S_IFMT, VDIR, VFIFO, VLNK, VREG, VTTODT, VTTOIF

libc = ctypes.CDLL(None, use_errno=True)
vm = make_vm(256)

DEPTH = 12  # directories above the one we work in, so that no chain of ".." leaves the model


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    if libc.renameat2(-100, old, -100, new, flags):
        raise OSError(ctypes.get_errno(), "renameat2")


class HostSys:
    """The model: Sys over the real thing."""

    def __init__(self, base: bytes) -> None:
        self.base = base

    def at(self, path: bytes) -> bytes:
        return self.base + b"/" + path if path else b""

    def open(self, path: bytes, flags: int, mode: int = 0o666) -> int:
        return os.open(self.at(path), flags | os.O_NONBLOCK, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, n: int, off: int) -> bytes:
        return os.pread(fd, n, off)

    def pwrite(self, fd: int, data: bytes, off: int) -> int:
        return os.pwrite(fd, data, off)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        renameat2(self.at(old), self.at(new), flags)


class World:
    """Model and subject side by side."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.top = os.fsencode(tempfile.mkdtemp(prefix="dfvm-model-"))
        self.umask = os.umask(0)
        sub = b"/".join([b"up"] * DEPTH)
        model, other = self.top + b"/model", self.top + b"/other"
        for tree in (model, other):
            os.makedirs(tree + b"/" + sub)
        self.model = HostSys(model + b"/" + sub)
        self.files: list[tuple[int, Open]] = []
        populate(self.model.base)
        if kind == "tmpfs":
            self.vfs = make_vfs(vm, tmpfs)
            self.guest = Sys(self.vfs)
            for i in range(1, DEPTH + 1):
                self.guest.mkdir(b"/".join([b"up"] * i), 0o777)
            self.guest = Sys(self.vfs, b"/" + sub)
            copy_in(self.model.base, self.guest)
        else:
            populate(other + b"/" + sub)
            if kind == "overlay":
                self.vfs = make_vfs(
                    vm,
                    lambda vfs: OvlMount(vfs, "overlay", OVERLAY_MAGIC, other, 1 << 30),
                )
            else:
                self.vfs = make_vfs(vm, lambda vfs: HostMount(vfs, other))
            self.guest = Sys(self.vfs, b"/" + sub)
        self.other = other + b"/" + sub
        self.before = tree_of_host(self.other)

    def close(self) -> None:
        os.umask(self.umask)
        for fd, f in self.files:
            os.close(fd)
            self.guest.close(f)
        check(self.vfs)
        if self.kind == "rw":
            self.vfs.sync()
        unmount(self.vfs)
        shutil.rmtree(self.top)


def populate(base: bytes) -> None:
    for d in (b"d1", b"d1/e", b"d2", b"empty"):
        os.mkdir(base + b"/" + d, 0o755)
    for name, size in ((b"a", 5), (b"b", 5000), (b"d1/a", 0), (b"d1/c", 9000), (b"d1/e/x", 3)):
        with open(base + b"/" + name, "wb") as f:
            f.write(bytes((i * 7 + size) & 0xFF for i in range(size)))
    os.link(base + b"/b", base + b"/d2/hard")
    for name, target in ((b"s", b"a"), (b"d2/up", b"../d1"), (b"loop", b"loop"), (b"gone", b"no")):
        os.symlink(target, base + b"/" + name)
    for name in (b"a", b"b", b"d1/a", b"d1/c", b"d1/e/x"):
        os.chmod(base + b"/" + name, 0o644)


def copy_in(base: bytes, guest: Sys) -> None:
    inodes: dict[int, bytes] = {}
    for path, dirs, files in os.walk(base):
        rel = path[len(base) + 1 :]
        prefix = rel + b"/" if rel else b""
        for name in dirs + files:
            full, to = path + b"/" + name, prefix + name
            s = os.lstat(full)
            if stat.S_ISLNK(s.st_mode):
                guest.symlink(os.readlink(full), to)
            elif stat.S_ISDIR(s.st_mode):
                guest.mkdir(to, 0o755)
            elif s.st_ino in inodes:
                guest.link(inodes[s.st_ino], to)
            else:
                inodes[s.st_ino] = to
                with open(full, "rb") as f:
                    guest.write_file(to, f.read())
                guest.lookup(to).chmod(0o644, guest.cred)


def tree_of_host(base: bytes) -> dict[bytes, Any]:
    """Everything that can be seen of a tree; inodes by their first name."""
    tree: dict[bytes, Any] = {}
    inodes: dict[int, bytes] = {}

    def walk(rel: bytes) -> None:
        for e in sorted(os.scandir(base + b"/" + rel), key=lambda e: e.name):
            name = rel + b"/" + e.name
            s = os.lstat(base + b"/" + name)
            first = inodes.setdefault(s.st_ino, name)
            fmt = stat.S_IFMT(s.st_mode)
            content: Any = None
            if fmt == stat.S_IFLNK:
                content = os.readlink(base + b"/" + name)
            elif fmt == stat.S_IFREG:
                with open(base + b"/" + name, "rb") as f:
                    content = f.read()
            tree[name] = (s.st_mode, s.st_nlink, first, content)
            if fmt == stat.S_IFDIR:
                walk(name)

    walk(b"")
    return tree


def tree_of_guest(guest: Sys) -> dict[bytes, Any]:
    tree: dict[bytes, Any] = {}
    inodes: dict[tuple[int, int], bytes] = {}

    def walk(rel: bytes) -> None:
        entries = guest.lookup(b"." + rel).readdir()
        assert [e[0] for e in entries[:2]] == [b".", b".."]
        for name, ino, dtype in sorted(entries[2:]):
            path = rel + b"/" + name
            vp = guest.lookup(b"." + path, False)
            va = vp.getattr()
            assert va.va_fileid == ino and VTTODT[va.va_type] == dtype
            first = inodes.setdefault((va.va_fsid, va.va_fileid), path)
            content: Any = None
            if va.va_type == VLNK:
                content = vp.readlink()
                assert va.va_size == len(content)
            elif va.va_type == VREG:
                content = guest.read_file(b"." + path)
                assert va.va_size == len(content)
            tree[path] = (va.va_mode | VTTOIF[va.va_type], va.va_nlink, first, content)
            if va.va_type == VDIR:
                walk(path)

    walk(b"")
    return tree


NAMES = [b"a", b"b", b"c", b"d1", b"d2", b"e", b"x", b"s", b"up", b"hard", b"loop", b"gone",
         b"empty", b"new"]  # fmt: skip
component = st.sampled_from([*NAMES, b".", b".."])
wild = st.one_of(
    st.tuples(
        st.lists(component, min_size=1, max_size=4), st.sampled_from([b"", b"", b"", b"/"])
    ).map(lambda t: b"/".join(t[0]) + t[1]),
    st.just(b""),
    st.just(b"n" * 256),
)
# Most paths are of what is there, or new in a directory that is there; which, is decided when the
# operation is run (see `resolve`).
there = st.tuples(st.just("there"), st.integers(0, 99))
thedir = st.tuples(st.just("dir"), st.integers(0, 99))
new = st.tuples(st.just("new"), st.integers(0, 99), st.sampled_from(NAMES))
old = st.one_of(there, there, there, there, new, wild)
fresh = st.one_of(new, new, new, there, wild)
openflags = st.tuples(
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR]),
    st.sampled_from([0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL]),
    st.sampled_from([0, 0, 0, os.O_TRUNC]),
    st.sampled_from([0, 0, 0, 0, os.O_NOFOLLOW]),
    st.sampled_from([0, 0, 0, 0, os.O_DIRECTORY]),
).map(sum)
slot = st.integers(0, 7)
offset = st.one_of(st.integers(0, 100), st.integers(4000, 4200), st.integers(0, 20000))
length = st.one_of(st.integers(0, 20), st.integers(4000, 4200), st.integers(0, 13000))
mode = st.sampled_from([0o644, 0o755, 0o600, 0o777, 0o444, 0o1777, 0o4755])

operation = st.one_of(
    st.tuples(st.just("open"), old, openflags, mode),
    st.tuples(st.just("open"), fresh, openflags.map(lambda f: f | os.O_CREAT), mode),
    st.tuples(st.just("write"), slot, offset, length),
    st.tuples(st.just("write"), slot, offset, length),
    st.tuples(st.just("read"), slot, offset, length),
    st.tuples(st.just("close"), slot),
    st.tuples(st.just("ftruncate"), slot, offset),
    st.tuples(st.just("truncate"), old, offset),
    st.tuples(st.just("mkdir"), fresh, mode),
    st.tuples(st.just("rmdir"), st.one_of(thedir, thedir, old)),
    st.tuples(st.just("unlink"), old),
    st.tuples(st.just("rename"), old, fresh, st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("rename"), old, old, st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("rename"), thedir, fresh, st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("rename"), thedir, thedir, st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("link"), old, fresh),
    st.tuples(st.just("symlink"), wild, fresh),
    st.tuples(st.just("mkfifo"), fresh, mode),
    st.tuples(st.just("chmod"), old, mode),
    st.tuples(st.just("stat"), old, st.booleans()),
    st.tuples(st.just("readlink"), old),
    st.tuples(st.just("list"), st.one_of(thedir, old)),
    st.just(("expire",)),
    st.just(("recycle",)),
)


def resolve(w: World, op: tuple[Any, ...]) -> tuple[Any, ...]:
    """The operation with paths in place of what stands for them."""
    if not any(isinstance(arg, tuple) for arg in op):
        return op
    base = w.model.base
    dirs, everything = [b"."], []
    for path, subdirs, files in os.walk(base):
        rel = path[len(base) + 1 :]
        for name in subdirs + files:
            everything.append(os.path.join(rel, name))
            if name in subdirs and not os.path.islink(os.path.join(path, name)):
                dirs.append(os.path.join(rel, name))
    dirs.sort()
    everything.sort()

    def path_of(arg: Any) -> Any:
        match arg:
            case "there", i:
                return everything[i % len(everything)] if everything else b"."
            case "dir", i:
                return dirs[i % len(dirs)]
            case "new", i, name:
                return os.path.join(dirs[i % len(dirs)], name)
        return arg

    return tuple(path_of(arg) for arg in op)


def run_model(w: World, op: tuple[Any, ...]) -> Any:
    m = w.model
    match op:
        case "open", p, flags, mode:
            return m.open(p, flags, mode)
        case "write", i, off, n:
            return m.pwrite(w.files[i % len(w.files)][0], pattern(off, n), off)
        case "read", i, off, n:
            return m.pread(w.files[i % len(w.files)][0], n, off)
        case "ftruncate", i, n:
            return os.ftruncate(w.files[i % len(w.files)][0], n)
        case "truncate", p, n:
            return os.truncate(m.at(p), n)
        case "mkdir", p, mode:
            return os.mkdir(m.at(p), mode)
        case "rmdir", p:
            return os.rmdir(m.at(p))
        case "unlink", p:
            return os.unlink(m.at(p))
        case "rename", a, b, flags:
            return m.rename(a, b, flags)
        case "link", a, b:
            return os.link(m.at(a), m.at(b), follow_symlinks=False)
        case "symlink", target, p:
            return os.symlink(target, m.at(p))
        case "mkfifo", p, mode:
            return os.mkfifo(m.at(p), mode)
        case "chmod", p, mode:
            return os.chmod(m.at(p), mode)
        case "stat", p, follow:
            s = os.stat(m.at(p), follow_symlinks=follow)
            size = s.st_size if not stat.S_ISDIR(s.st_mode) else 0
            return stat.S_IFMT(s.st_mode), s.st_mode & 0o7777, s.st_nlink, size
        case "readlink", p:
            return os.readlink(m.at(p))
        case "list", p:
            return sorted(os.listdir(m.at(p)) if p else os.listdir(b""))
    raise AssertionError(op)


def run_guest(w: World, op: tuple[Any, ...]) -> Any:
    g = w.guest
    match op:
        case "open", p, flags, mode:
            return g.open(p, flags, mode)
        case "write", i, off, n:
            f = w.files[i % len(w.files)][1]
            if not f.fflag & 2:
                raise OSError(9, "EBADF")
            return g.pwrite(f, pattern(off, n), off)
        case "read", i, off, n:
            f = w.files[i % len(w.files)][1]
            if not f.fflag & 1:
                raise OSError(9, "EBADF")
            return g.pread(f, n, off)
        case "ftruncate", i, n:
            f = w.files[i % len(w.files)][1]
            if not f.fflag & 2:
                raise OSError(22, "EINVAL")
            return f.vp.setsize(n)
        case "truncate", p, n:
            return g.lookup(p).truncate(n, g.cred)
        case "mkdir", p, mode:
            return g.mkdir(p, mode)
        case "rmdir", p:
            return g.rmdir(p)
        case "unlink", p:
            return g.unlink(p)
        case "rename", a, b, flags:
            return g.rename(a, b, flags)
        case "link", a, b:
            return g.link(a, b)
        case "symlink", target, p:
            return g.symlink(target, p)
        case "mkfifo", p, mode:
            return g.mknod(p, VFIFO, mode)
        case "chmod", p, mode:
            return g.lookup(p).chmod(mode, g.cred)
        case "stat", p, follow:
            va = g.lookup(p, follow).getattr()
            size = va.va_size if va.va_type != VDIR else 0
            return VTTOIF[va.va_type] & S_IFMT, va.va_mode, va.va_nlink, size
        case "readlink", p:
            return g.lookup(p, False).readlink()
        case "list", p:
            return [n for n in g.names(p) if n not in (b".", b"..")]
    raise AssertionError(op)


def pattern(off: int, n: int) -> bytes:
    return bytes((off + i * 13) & 0xFF for i in range(n))


def outcome(fn: Any, w: World, op: tuple[Any, ...]) -> tuple[int, Any]:
    try:
        return 0, fn(w, op)
    except OSError as e:
        assert e.errno
        return e.errno, None


def step(w: World, op: tuple[Any, ...]) -> None:
    op = resolve(w, op)
    if op[0] in ("write", "read", "ftruncate", "close") and not w.files:
        return
    if op[0] == "close":
        fd, f = w.files.pop(op[1] % len(w.files))
        os.close(fd)
        w.guest.close(f)
        return
    if op[0] == "expire":
        # As if all that was learnt from the host had been learnt long ago.
        for mount in w.vfs.mounts:
            for vp in mount.vnodes():
                if isinstance(vp, HostVnode):
                    vp.h_until = 0
                elif isinstance(vp, OvlVnode) and vp.o_lower is not None:
                    vp.o_until = min(vp.o_until, 0)
                if vp.v_type == VDIR:
                    vp.v_names_until = min(vp.v_names_until, 0)
        return
    if op[0] == "recycle":
        # As if many other files had been looked at since.
        for _ in range(2):
            w.vfs.recycle(len(w.vfs.inactive))
        return
    if op[0] == "rename" and w.kind == "rw" and op[3] == 2:
        return  # the one thing it can't do
    if op[0] == "open":
        # Fifos would make two processes of us; that is tested elsewhere.
        try:
            if w.guest.lookup(op[1]).v_type == VFIFO:
                return
        except OSError:
            pass
    (want_err, want), (got_err, got) = outcome(run_model, w, op), outcome(run_guest, w, op)
    if op[0] == "open" and not want_err and not got_err:
        if stat.S_ISREG(os.fstat(want).st_mode):
            w.files.append((want, got))
        else:
            os.close(want)
            w.guest.close(got)
        return
    if op[0] == "open" and not want_err:
        os.close(want)
    assert (got_err, got) == (want_err, want), (op, (got_err, got), (want_err, want))


def random_op(r: random.Random) -> tuple[Any, ...]:
    """Like `operation`, but most of it succeeds, so that long histories come about."""

    def there() -> Any:
        return ("there", r.randrange(100)) if r.random() < 0.97 else r.choice(NAMES) + b"/."

    def adir() -> Any:
        return ("dir", r.randrange(100))

    def new() -> Any:
        name = r.choice(NAMES) if r.random() < 0.5 else b"n%d" % r.randrange(30)
        return ("new", r.randrange(100), name)

    off = r.choice((0, 1, 100, 4095, 4096, 5000, r.randrange(20000)))
    size = r.choice((0, 1, 17, 4096, 4097, r.randrange(13000)))
    acc = r.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR))
    flags = r.choice((0, 0, 0, 1, 2))
    return r.choice((
        ("open", there(), acc, 0o644),
        ("open", there(), acc | r.choice((0, 0, os.O_TRUNC)), 0o644),
        ("open", new(), acc | os.O_CREAT | r.choice((0, os.O_EXCL, os.O_TRUNC)), 0o644),
        ("write", r.randrange(8), off, size),
        ("write", r.randrange(8), off, size),
        ("read", r.randrange(8), off, size),
        ("close", r.randrange(8)),
        ("ftruncate", r.randrange(8), off),
        ("truncate", there(), off),
        ("mkdir", new(), 0o755),
        ("rmdir", adir()),
        ("unlink", there()),
        ("unlink", there()),
        ("rename", there(), new(), flags),
        ("rename", there(), there(), flags),
        ("rename", adir(), new(), flags),
        ("rename", adir(), adir(), flags),
        ("link", there(), new()),
        ("link", there(), new()),
        ("symlink", r.choice((b"a", b"../d1", b"d2/hard", b".", b"..")), new()),
        ("mkfifo", new(), 0o600),
        ("chmod", there(), r.choice((0o600, 0o755, 0o444))),
        ("stat", there(), r.random() < 0.5),
        ("list", adir()),
        ("expire",),
        ("recycle",),
    ))  # fmt: skip


def compare(w: World) -> None:
    """Everything there is, on both sides."""
    want = tree_of_host(w.model.base)
    assert tree_of_guest(w.guest) == want
    if w.kind == "overlay":
        assert tree_of_host(w.other) == w.before
    elif w.kind == "rw":
        for fd, f in w.files:
            os.close(fd)
            w.guest.close(f)
        w.files = []
        w.vfs.sync()
        assert tree_of_host(w.other) == want


@pytest.mark.parametrize("kind", ["overlay", "tmpfs", "rw"])
@pytest.mark.parametrize("seed", range(int(os.environ.get("DFVM_SEEDS", "4"))))
def test_long_histories(kind: str, seed: int) -> None:
    r = random.Random(seed)
    w = World(kind)
    try:
        for i in range(400):
            step(w, random_op(r))
            if i % 100 == 99:
                compare(w)
    finally:
        w.close()


@pytest.mark.parametrize("kind", ["overlay", "tmpfs", "rw"])
@settings(
    max_examples=int(os.environ.get("DFVM_MODEL", "80")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(ops=st.lists(operation, min_size=5, max_size=60))
def test_same_as_the_host(kind: str, ops: list[tuple[Any, ...]]) -> None:
    w = World(kind)
    try:
        for op in ops:
            step(w, op)
        compare(w)
    finally:
        w.close()
