"""Extended attributes: on the host's directory for temporary files, which may have none, and in
the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from file_util import T
from guest_util import build, by_guest, by_host

from dfvm import Machine

SOURCE = (
    T
    + r"""
#include <sys/xattr.h>
#define BAD ((void *)-1)
static void all(const char *n) {
    T(setxattr("f", n, "val", 3, 0)); T(getxattr("f", n, buf, 100));
    T(setxattr("f", n, "val2", 4, XATTR_CREATE)); T(setxattr("f", n, "val22", 5, XATTR_REPLACE));
    T(getxattr("f", n, 0, 0)); T(getxattr("f", n, buf, 2)); T(getxattr("f", n, BAD, 10));
    T(setxattr("d", n, "dv", 2, 0)); T(setxattr("p", n, "pv", 2, 0)); T(getxattr("p", n, buf, 9));
    T(lsetxattr("l", n, "x", 1, 0)); T(setxattr("l", n, "through", 7, 0));
    T(lgetxattr("l", n, buf, 9));
}
int main() {
    put_("f", "x"); mkdir("d", 0755); symlink("f", "l"); mkfifo("p", 0666); int pp[2]; pipe(pp);
    int fd = open("f", O_RDWR), path = open("f", O_PATH); char n[400];
    all("user.a"); all("user."); all("user"); all("foo.bar"); all(""); memset(n, 'n', 300);
    memcpy(n, "user.", 5); n[255] = 0; T(setxattr("f", n, "x", 1, 0)); T(removexattr("f", n));
    n[255] = 'n'; n[256] = 0; T(setxattr("f", n, "x", 1, 0)); T(getxattr("f", n, buf, 1));
    T(setxattr("f", "user.a", 0, 0, 0)); T(getxattr("f", "user.a", buf, 10));
    T(setxattr("f", "user.z", "x", 1, 3)); T(setxattr("f", "user.z", "x", 1, 4));
    T(setxattr("f", "user.z", buf, 65537, 0)); T(setxattr("f", "user.z", BAD, 10, 0));
    T(setxattr("none", "user.a", "x", 1, 0)); T(fsetxattr(path, "user.a", "x", 1, 0));
    T(fsetxattr(fd, "user.fd", "x", 1, 0)); T(fgetxattr(fd, "user.fd", buf, 1));
    T(listxattr("f", 0, 0)); T(listxattr("f", buf, 5)); T(listxattr("f", buf, 100)); puts(buf);
    T(fremovexattr(fd, "user.fd")); T(fremovexattr(fd, "user.fd")); T(flistxattr(path, buf, 9));
    T(flistxattr(pp[0], buf, 9)); T(fsetxattr(pp[0], "user.a", "x", 1, 0)); link("f", "f2");
    T(setxattr("f2", "user.r", "yy", 2, 0)); rename("f", "g"); T(getxattr("g", "user.r", buf, 9));
    unlink("g"); unlink("f2"); T(fgetxattr(fd, "user.r", buf, 9));
    T(getxattr("/proc/self/stat", "user.a", buf, 9)); T(getxattr("/dev/null", "user.a", buf, 9));
    if (geteuid()) return 0;
    put_("r", ""); chmod("r", 0600); chmod(".", 0755); setxattr("r", "user.a", "1", 1, 0);
    chmod("d", 01777); setresuid(77, 77, 77); T(getxattr("r", "user.a", buf, 9));
    T(setxattr("r", "user.a", "2", 1, 0)); T(setxattr("d", "user.a", "2", 1, 0));
    T(getxattr("r", "trusted.a", buf, 9)); T(setxattr("r", "trusted.a", "2", 1, 0));
    return 0;
}"""
)


def host_has_xattrs(path: Path) -> bool:
    """Whether files there may have users' attributes."""
    try:
        os.setxattr(path, "user.dfvm", b"1")
    except OSError:
        return False
    os.removexattr(path, "user.dfvm")
    return True


def test_attributes(tmp_path: Path) -> None:
    if not host_has_xattrs(Path("/tmp")):
        pytest.skip("the host's /tmp has no extended attributes")
    program = build(SOURCE)
    assert by_guest(program) == by_host(program)


def test_the_hosts_own_show_and_stay(tmp_path: Path) -> None:
    if not host_has_xattrs(tmp_path):
        pytest.skip("the host has no extended attributes")
    (tmp_path / "f").write_text("x")
    os.setxattr(tmp_path / "f", "user.a", b"host")
    program = build(T + r"""
#include <sys/xattr.h>
int main(int c, char **v) {
    T(getxattr(v[1], "user.a", buf, 9)); buf[4] = 0; puts(buf);
    T(setxattr(v[1], "user.a", "g", 1, 0));
    T(setxattr(v[1], "user.b", "new", 3, 0)); T(getxattr(v[1], "user.a", buf, 9));
    return 0;
}""")  # fmt: skip
    name = str(tmp_path / "f")
    assert by_guest(program, name)[0] == 0
    assert os.listxattr(name) == ["user.a"] and os.getxattr(name, "user.a") == b"host"
    with Machine(rw=[str(tmp_path)], check=True) as m:
        m.spawn([str(program), name])
        m.run(timeout=600)
    assert os.getxattr(name, "user.a") == b"g" and os.getxattr(name, "user.b") == b"new"


def test_attributes_take_room() -> None:
    """/dev has 1 MiB: 256 pages, of which a value of 64 KiB and its name take 17."""
    program = build(T + r"""
#include <sys/xattr.h>
#include <sys/statvfs.h>
static long room(void) { struct statvfs s; statvfs("/dev", &s); return s.f_bfree; }
int main() {
    char n[20]; long all = room();
    for (int i = 0; i < 16; i++) {
        sprintf(n, "/dev/f%d", i); put_(n, ""); errno = 0;
        if (setxattr(n, "user.a", buf, 65536, 0) != (i < 15 ? 0 : -1)) return 1;
    }
    if (errno != ENOSPC || room() != all - 255) return 2;
    if (setxattr(n, "user.a", buf, 5000, 0) != -1 || setxattr(n, "user.a", buf, 1, 0)) return 3;
    if (setxattr(n, "user.a", buf, 2, 0) || room() != all - 256) return 4;
    if (removexattr("/dev/f0", "user.a") || room() != all - 239) return 5;
    if (setxattr("/dev/f0", "user.b", buf, 5000, 0) || room() != all - 241) return 6;
    for (int i = 0; i < 16; i++) { sprintf(n, "/dev/f%d", i); unlink(n); }
    return room() != all;
}""")  # fmt: skip
    assert by_guest(program)[0] == 0
