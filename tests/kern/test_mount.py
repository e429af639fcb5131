"""mount(2) and umount2(2): the same program on the host, in a mount namespace of its own, and in
the machine. Where the host can't have one, what the programs print is compared with what Linux 6.18
printed (its digest)."""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from dfvm import PIPE, STDOUT, Machine
from tests.kern.guest_util import _difference, build, by_guest, by_host

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="whoever we are, the programs are")

_BUSYBOX = "/usr/bin/busybox"

_BEGIN = r"""
#include <sys/mount.h>
#include <sys/statfs.h>
#include <sys/inotify.h>
#include <sys/xattr.h>
#include <dirent.h>
static const char *en(int e) { return e ? strerrorname_np(e) : "0"; }
#define T(call) do { \
    errno = 0; long r_ = (call); \
    printf("%s: %s\n", #call, en(r_ < 0 ? errno : 0)); } while (0)
static int opn(const char *p, int fl) { int fd = open(p, fl, 0644); return fd; }
    static int put(const char *p, const char *s) {
    int fd = open(p, O_CREAT|O_WRONLY|O_TRUNC, 0644); if (fd < 0) return -1;
    int n = write(fd, s, strlen(s)); close(fd); return n < 0 ? -1 : 0; }
    static int get(const char *p) { char b[100] = ""; int fd = open(p, O_RDONLY);
    if (fd < 0) return -1; int n = read(fd, b, 99); close(fd); printf("[%.*s] ", n, b);
    return 0; }
static int cmp(const void *a, const void *b) { return strcmp(*(char**)a, *(char**)b); }
    static int ls(const char *p) { DIR *d = opendir(p); if (!d) return -1; char *v[50];
    int n = 0; struct dirent *e; while ((e = readdir(d))) v[n++] = strdup(e->d_name);
    closedir(d); qsort(v, n, sizeof *v, cmp); printf("(");
    for (int i = 2; i < n; i++) printf("%s ", v[i]); printf(") "); return 0; }
    static int fst(const char *p) { struct statfs s; if (statfs(p, &s) < 0) return -1;
    printf("{%lx flags %lx blocks %ld files %ld} ", (long)s.f_type, (long)s.f_flags,
        (long)s.f_blocks, (long)s.f_files);
    return 0; }
static char base[100];
/* the line of mountinfo for what is mounted last at path, without numbers */
    static int info(const char *p) { char want[300], line[1000], last[1000] = "none\n";
    sprintf(want, " %s/%s ", base, p); FILE *f = fopen("/proc/self/mountinfo", "r");
    while (fgets(line, 999, f)) { char *at = strstr(line, want); if (at) { char *r = at;
    while (r[-1] != ' ') r--; sprintf(last, "%.*s @ %s", (int)(at - r), r, at + strlen(want));
    } } fclose(f); last[strlen(last)-1] = 0; char *i64 = strstr(last, ",inode64");
    if (i64) *i64 = 0; printf("<%s> ", last); return 0; }
    static int cwd(void) { char b[300]; if (!getcwd(b, 300)) return -1;
    printf("%s ", strncmp(b, base, strlen(base)) ? b : b + strlen(base)); return 0; }
int main(void)
{
    if (getenv("INNER")) { printf("%d %d\n", getuid(), geteuid()); return 0; }
    strcpy(base, "/tmp/mntXXXXXX");
    mkdtemp(base);
    chdir(base);
    mount("top", ".", "tmpfs", 0, "size=1m");
    chdir("/"); chdir(base);
    mkdir("a", 0755); mkdir("b", 0755); mkdir("c", 0755); put("file", "f");
    symlink("a", "link"); symlink("loop", "loop");
"""

_END = r"""
    chdir("/");
    umount2(base, MNT_DETACH);
    rmdir(base);
}
"""


@cache
def _host_mounts() -> bool:
    """May we mount on the host, where nobody else sees it? (Older ones say other things.)"""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12):
        return False
    try:
        return not subprocess.run(
            ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"],
            capture_output=True, timeout=20, check=False,
        ).returncode  # fmt: skip
    except OSError:
        return False


def _same(body: str, digest: str) -> None:
    program = build(_BEGIN + body + _END)
    ours = by_guest(program)
    assert ours[0] == 0
    if _host_mounts():
        expected = by_host("unshare", "-m", program)
        assert ours == expected, _difference(ours, expected)
    assert hashlib.sha256(ours[1]).hexdigest()[:16] == digest


def test_tmpfs() -> None:
    """Options, limits and their effect, remounting, read-only."""
    _same(
        r"""
    T(mount("s", "a", "tmpfs", 0, "size=64k,nr_inodes=5,mode=0751,uid=7,gid=8"));
    T(info("a")); T(fst("a"));
    struct stat st; stat("a", &st); printf("%o %d %d\n", st.st_mode, st.st_uid, st.st_gid);
    T(put("a/1", "x")); T(put("a/2", "x")); T(link("a/1", "a/3")); T(mkdir("a/4", 0755));
    T(put("a/5", "x")); T(symlink("x", "a/6"));
    T(unlink("a/3")); T(mkdir("a/7", 0755)); T(rmdir("a/7")); T(rmdir("a/4"));
    char big[70000] = {0}; int fd = open("a/1", O_RDWR);
    T(write(fd, big, 70000)); T(write(fd, big, 70000)); T(ftruncate(fd, 0));
    T(write(fd, big, 30000));
    T(mount("s", "a", 0, MS_REMOUNT, "size=4k"));
    T(mount("s", "a", 0, MS_REMOUNT, "size=40k")); T(info("a"));
    T(mount("s", "a", 0, MS_REMOUNT, "nr_inodes=1"));
    T(mount("s", "a", 0, MS_REMOUNT, "nr_inodes=0"));
    T(mount("s", "a", 0, MS_REMOUNT, "nr_inodes=9")); T(info("a"));
    T(mount("s", "a", 0, MS_REMOUNT, "bad")); T(mount("s", "a", 0, MS_REMOUNT, "size=x"));
    T(mount("s", "a", 0, MS_REMOUNT | MS_RDONLY, 0));
    T(umount("a")); close(fd);
    T(mount("s", "a", 0, MS_REMOUNT | MS_RDONLY, 0)); T(info("a")); T(fst("a"));
    T(put("a/1", "x")); T(unlink("a/1")); T(get("a/2")); T(chmod("a/2", 0));
    T(mkdir("a/9", 0)); T(access("a/2", W_OK)); T(setxattr("a/2", "user.x", "1", 1, 0));
    T(rename("a/1", "a/8")); T(link("a/1", "a/8")); T(utimes("a/1", 0));
    T(truncate("a/1", 0)); T(mknod("a/9", 010644, 0)); T(symlink("1", "a/9"));
    T(mount("s", "a", 0, MS_REMOUNT, 0)); T(put("a/1", "x"));
    T(umount("a")); T(umount("a")); T(ls("a"));
    T(mount("s", "a", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME |
         MS_SYNCHRONOUS, "size=1m,nr_inodes=9"));
    T(fst("a")); T(info("a")); T(put("a/x", "")); T(umount("a"));
    T(mount("s", "a", "tmpfs", MS_STRICTATIME | MS_NODIRATIME | 256, 0)); T(info("a"));
    T(umount("a"));
    T(mount("s", "a", "tmpfs", 0, "size=0,nr_inodes=0")); T(fst("a")); T(info("a"));
    T(umount("a"));
    T(mount("s", "a", "tmpfs", 0, "size=3000,nr_inodes=9")); T(fst("a")); T(umount("a"));
    T(mount("s", "a", "tmpfs", 0, "size=10k,mode=9"));
    T(mount("s", "a", "tmpfs", 0, "nonsense=1")); T(mount("s", "a", "tmpfs", 0, "uid=-1"));
    T(mount("s", "a", "tmpfs", 0, "uid=root")); T(mount("s", "a", "tmpfs", 0, "size"));
    T(mount("s", "a", "tmpfs", 0, "nr_blocks=3,,mode=1700,nr_inodes=9")); T(fst("a"));
    T(info("a")); T(umount("a"));
    T(mount(0, "a", "tmpfs", 0, 0)); T(info("a")); T(umount("a"));
""",
        "44088421f81ea8f1",
    )


def test_errors_and_unmounting() -> None:
    """What is refused and how, what is in use, MNT_DETACH, MNT_EXPIRE, mounts over mounts."""
    _same(
        r"""
    T(mount("s", "none", "tmpfs", 0, 0)); T(mount("s", "file", "tmpfs", 0, 0));
    T(mount("s", "file/x", "tmpfs", 0, 0)); T(mount("s", "loop", "tmpfs", 0, 0));
    T(mount("s", "", "tmpfs", 0, 0));
    T(mount("s", (void *)1, "tmpfs", 0, 0)); T(mount((void *)1, "a", "tmpfs", 0, 0));
    T(mount("s", "a", (void *)1, 0, 0)); T(mount("s", "a", "tmpfs", 0, (void *)1));
    T(mount("s", "a", 0, 0, 0)); T(mount("s", "a", "nofs", 0, 0));
    T(mount("s", "a", "", 0, 0)); T(mount("s", "a", "tmpfs", 1u << 31, 0));
    T(mount(0, "a", 0, MS_BIND, 0)); T(mount("", "a", 0, MS_BIND, 0));
    T(mount("none", "a", 0, MS_BIND, 0)); T(mount("file", "a", 0, MS_BIND, 0));
    T(mount("a", "file", 0, MS_BIND, 0));
    T(mount("s", "a", 0, MS_REMOUNT, 0)); T(mount("s", "a", 0, MS_REMOUNT | MS_BIND, 0));
    T(mount("a", "b", 0, MS_MOVE, 0)); T(mount(0, "b", 0, MS_MOVE, 0));
    T(mount(0, "a", 0, MS_PRIVATE, 0)); T(mount(0, ".", 0, MS_PRIVATE, 0));
    T(mount(0, ".", 0, MS_PRIVATE | MS_REC, 0)); T(mount(0, ".", 0, MS_SLAVE, 0));
    T(mount(0, ".", 0, MS_PRIVATE | MS_SLAVE, 0));
    T(mount(0, ".", 0, MS_PRIVATE | MS_NOSUID, 0));
    T(umount("a")); T(umount("none")); T(umount("")); T(umount("file")); T(umount((void *)1));
    T(umount2("a", 16)); T(umount2("a", MNT_EXPIRE | MNT_DETACH)); T(umount("loop"));
    T(mount("s", "a", "tmpfs", 0, 0)); T(umount2("a", MNT_EXPIRE | MNT_DETACH));
    T(umount2("a", MNT_EXPIRE | MNT_FORCE)); T(umount2("link", UMOUNT_NOFOLLOW));
    T(umount("link"));
    T(mount("s", "link", "tmpfs", 0, 0)); T(info("a")); T(umount2("a/", UMOUNT_NOFOLLOW));
    T(mount("s", "a", "tmpfs", 0, 0)); T(umount2("a", MNT_EXPIRE)); T(access("a", F_OK));
    T(umount2("a", MNT_EXPIRE)); T(umount2("a", MNT_EXPIRE)); T(info("a"));
    T(mount("s", "a", "tmpfs", 0, 0)); T(umount2("a", MNT_FORCE));
    /* in use */
    T(mount("s", "a", "tmpfs", 0, 0)); int fd = opn("a/x", O_CREAT | O_RDWR); T(umount("a"));
    T(umount2("a", MNT_EXPIRE)); ftruncate(fd, 4096);
    char *m = mmap(0, 4096, 3, MAP_SHARED, fd, 0); close(fd); T(umount("a")); munmap(m, 4096);
    T(umount("a"));
    T(mount("s", "a", "tmpfs", 0, 0)); chdir("a"); T(umount("../a")); T(umount("."));
    chdir(".."); fd = open("a", O_PATH); T(umount("a")); close(fd); T(umount("a"));
    T(mount("s", "a", "tmpfs", 0, 0)); fd = opn("a/x", O_CREAT | O_RDWR); unlink("a/x");
    T(umount("a")); T(mount("s", "a", 0, MS_REMOUNT | MS_RDONLY, 0)); close(fd);
    T(mount("s", "a", 0, MS_REMOUNT | MS_RDONLY, 0)); T(umount("a"));
    T(mount("s", "a", "tmpfs", 0, 0)); fd = opn("a/x", O_CREAT | O_RDWR); ftruncate(fd, 4096);
    m = mmap(0, 4096, 3, MAP_SHARED, fd, 0); close(fd);
    T(mount("s", "a", 0, MS_REMOUNT | MS_RDONLY, 0)); munmap(m, 4096);
    T(mount("s", "a", 0, MS_REMOUNT | MS_RDONLY, 0)); T(umount("a"));
    /* lazily */
    T(mount("s", "a", "tmpfs", 0, 0)); mkdir("a/d", 0755); mount("t", "a/d", "tmpfs", 0, 0);
    put("a/d/y", "y"); put("a/x", "x"); fd = opn("a/x", O_RDWR);
    int dfd = open("a", O_RDONLY); T(umount("a")); T(umount2("a", MNT_DETACH)); T(ls("a"));
    T(info("a")); T(info("a/d"));
    char b[5] = ""; T(pread(fd, b, 5, 0)); puts(b);
    T(openat(dfd, "new", O_CREAT | O_RDWR, 0644)); T(faccessat(dfd, "d/y", F_OK, 0));
    T(faccessat(dfd, "../file", F_OK, 0)); fchdir(dfd); T(cwd()); T(access("..", F_OK));
    T(access("../x", F_OK)); chdir(base); close(fd); close(dfd);
    /* twice over */
    T(mount("1", "a", "tmpfs", 0, 0)); put("a/1", ""); T(mount("2", "a", "tmpfs", 0, 0));
    put("a/2", ""); T(ls("a")); T(umount("a")); T(ls("a")); T(umount("a")); T(ls("a"));
    T(mount("p", "a", "proc", 0, 0)); T(fst("a")); T(mount("p", "a", "proc", 0, 0));
    T(umount("a")); T(mount("p", "b", "proc", MS_NOEXEC, "bad"));
    T(access("a/self/exe", R_OK)); T(umount("a"));
    T(mount("p", "a", "sysfs", MS_RDONLY, 0)); T(access("a/devices/system/cpu/online", R_OK));
    T(access("a/devices/system/cpu/online", W_OK)); T(umount("a"));
    fflush(stdout); if (!fork()) { setuid(1000); T(mount("s", "a", "tmpfs", 0, 0));
    T(umount("a")); T(umount("none")); T(mount("s", "none", "tmpfs", 0, 0));
    T(mount("s", "a", "nofs", 0, 0)); fflush(stdout); _exit(0); } wait(0);
""",
        "22084a410de65ae5",
    )


def test_views_and_moves() -> None:
    """Bind mounts of directories and files, their own flags, what crosses them; moves."""
    _same(
        r"""
    mkdir("a/d", 0755); mkdir("a/d/e", 0755); put("a/d/f", "one"); put("a/g", "g");
    symlink("g", "a/l"); mkdir("a/m", 0755); mount("in", "a/m", "tmpfs", 0, "size=4k");
    put("a/m/in", "in");
    T(mount("a", "b", 0, MS_BIND, 0)); T(info("b")); T(ls("b")); T(ls("b/m")); T(ls("a/m"));
    T(get("b/d/f"));
    T(put("b/d/f", "two")); T(get("a/d/f")); T(put("a/new", "n")); T(get("b/new"));
    T(unlink("b/new")); T(get("a/new"));
    struct stat s, t; stat("a/d/f", &s); stat("b/d/f", &t);
    printf("same %d %d\n", s.st_ino == t.st_ino, s.st_dev == t.st_dev);
    T(rename("b/g", "a/g2")); T(link("b/g", "a/g2")); T(rename("b/g", "b/g2"));
    T(get("a/g2")); T(rename("b/g2", "b/g")); T(link("b/g", "b/d/h")); T(unlink("a/d/h"));
    T(get("b/l"));
    T(rename("a/m", "a/n")); T(rename("b/m", "b/n")); T(rmdir("a/m")); T(rmdir("b/m"));
    T(rmdir("b")); T(unlink("b")); T(rename("b", "q")); T(rename("a/d", "b"));
    T(rmdir("b/d"));
    chdir("b/d/e"); T(cwd()); T(chdir("../..")); T(cwd()); T(chdir("..")); T(cwd());
    chdir(base);
    mkdir("b/d/mp", 0755); T(mount("x", "b/d/mp", "tmpfs", 0, 0)); put("b/d/mp/x", "");
    T(ls("a/d/mp")); T(ls("b/d/mp")); T(rmdir("a/d/mp")); T(rename("a/d/mp", "a/d/mq"));
    T(umount("b")); T(umount("b/d/mp")); T(rmdir("a/d/mp"));
    T(umount("b")); T(ls("b"));
    /* a part, a file, a file over a file */
    T(mount("a/d", "b", 0, MS_BIND, 0)); T(info("b")); T(ls("b")); T(access("b/../a", F_OK));
    T(access("b/../d", F_OK)); T(umount("b"));
    T(mount("a/d/f", "file", 0, MS_BIND, 0)); T(get("file")); T(info("file"));
    T(put("file", "three")); T(get("a/d/f")); T(unlink("file")); T(rename("file", "file2"));
    T(rename("a/g", "file")); T(mount("s", "file", "tmpfs", 0, 0)); T(unlink("a/d/f"));
    T(info("file")); T(get("file")); T(umount("file")); T(get("file")); put("a/d/f", "one");
    /* its own flags */
    T(mount("a", "b", 0, MS_BIND | MS_RDONLY, 0)); T(put("b/x", "")); T(unlink("b/x"));
    int fd = opn("b/g", O_RDWR); T(mount(0, "b", 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0));
    close(fd); fd = opn("a/g", O_RDWR);
    T(mount(0, "b", 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0)); T(info("b")); T(info("a"));
    T(fst("b"));
    T(write(fd, "G", 1)); close(fd); T(get("b/g")); T(put("b/x", "")); T(put("b/g", ""));
    T(chmod("b/g", 0600)); T(mkdir("b/x", 0)); T(truncate("b/g", 0));
    T(setxattr("b/g", "user.x", "1", 1, 0)); T(put("a/x", "x"));
    fd = opn("b/g", O_RDONLY); T(fchmod(fd, 0600)); T(fchown(fd, 0, 0)); T(futimens(fd, 0));
    char p[50]; sprintf(p, "/proc/self/fd/%d", fd); T(opn(p, O_RDWR)); char w[200] = "";
    readlink(p, w, 199); puts(w + strlen(base)); close(fd);
    fd = open("b", O_RDONLY); T(openat(fd, "g", O_WRONLY)); T(openat(fd, "m/in", O_RDONLY));
    T(openat(fd, "../file", O_RDONLY)); close(fd);
    T(mount(0, "a", 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0)); T(umount("b"));
    T(mount(".", "b", 0, MS_BIND, 0));
    T(mount(0, ".", 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0)); T(put("x", ""));
    T(put("b/x", "")); T(get("x")); T(mount(0, ".", 0, MS_REMOUNT | MS_BIND, 0));
    T(put("x", "")); T(mount(0, ".", 0, MS_REMOUNT | MS_RDONLY, 0)); T(info("b"));
    T(put("b/x", "")); T(mount(0, "b", 0, MS_REMOUNT, 0)); T(put("b/x", "")); T(put("x", ""));
    T(mount(0, ".", 0, MS_REMOUNT, 0)); T(put("x", "")); T(umount("b"));
    /* a cycle, and everything below */
    T(mount(".", "c", 0, MS_BIND | MS_REC, 0)); T(ls("c")); T(ls("c/a/m")); T(info("c"));
    T(info("c/a/m")); T(ls("c/c")); T(umount("c")); T(umount("c/a/m")); T(umount("c"));
    T(mount("a", "b", 0, MS_BIND | MS_REC, 0)); T(ls("b/m")); T(umount("a/m")); T(ls("a/m"));
    T(ls("b/m")); T(umount2("b", MNT_DETACH)); T(ls("b"));
    T(mount("a", "a", 0, MS_BIND, 0)); T(mount(0, "a", 0, MS_UNBINDABLE, 0)); T(info("a"));
    T(mount("a", "b", 0, MS_BIND, 0)); T(mount("a/d", "b", 0, MS_BIND, 0));
    T(mount(0, "a", 0, MS_PRIVATE, 0)); T(mount("a", "b", 0, MS_BIND, 0)); T(umount("b"));
    T(umount("a"));
    /* moves */
    T(mount("1", "a", "tmpfs", 0, 0)); mkdir("a/in", 0755); put("a/f", "f");
    mount("2", "a/in", "tmpfs", 0, 0); put("a/in/f", "g");
    T(mount("a", "b", 0, MS_MOVE, 0)); T(info("a")); T(info("b")); T(info("b/in"));
    T(get("b/in/f")); T(ls("a")); T(mount("b", "b/in", 0, MS_MOVE, 0));
    T(mount("b/in", "c", 0, MS_MOVE, 0)); T(ls("b/in")); T(get("c/f"));
    T(mount("b", "file", 0, MS_MOVE, 0)); T(mount("b/f", "c", 0, MS_MOVE, 0));
    fd = opn("b/f", O_RDONLY); T(mount("b", "a", 0, MS_MOVE, 0));
    sprintf(p, "/proc/self/fd/%d", fd); memset(w, 0, 200); readlink(p, w, 199);
    puts(w + strlen(base)); close(fd); T(umount("c")); T(umount("a"));
    /* the original goes, the view stays */
    T(mount("1", "a", "tmpfs", 0, 0)); put("a/f", "f"); T(mount("a", "b", 0, MS_BIND, 0));
    fd = opn("b/f", O_RDWR); T(umount("a")); T(get("b/f")); T(write(fd, "F", 1));
    T(mount("b", "a", 0, MS_BIND, 0)); T(get("a/f")); T(umount("b")); close(fd);
    T(umount("b")); T(umount("a"));
    /* out of a view */
    mkdir("a/v", 0755); mkdir("a/v/w", 0755); T(mount("a/v", "b", 0, MS_BIND, 0));
    chdir("b/w"); rename("../../a/v/w", "../../a/w") ; T(rename("/proc/self/cwd", "x"));
    char o[300], n[300]; sprintf(o, "%s/a/v/w", base); sprintf(n, "%s/a/w", base);
    T(rename(o + 0, n) < 0 && errno != EXDEV ? 0 : 0); T(access("../..", F_OK) < 0 ? 0 : 0);
    chdir(base); T(umount("b"));
""",
        "69285196450423a1",
    )


def test_what_the_flags_do() -> None:
    """nodev, noexec, nosuid, nosymfollow, times; watchers, locks, leases and fifos across views."""
    _same(
        r"""
    T(mount("s", "a", "tmpfs", MS_NODEV, 0)); mknod("a/null", S_IFCHR | 0666, 0x103);
    mknod("a/fifo", S_IFIFO | 0666, 0); T(opn("a/null", O_RDWR)); T(opn("a/fifo", O_RDWR));
    T(access("a/null", R_OK)); T(mount("a", "b", 0, MS_BIND, 0)); T(opn("b/null", O_RDWR));
    T(mount(0, "b", 0, MS_REMOUNT | MS_BIND, 0)); T(opn("b/null", O_RDWR));
    T(opn("a/null", O_RDWR)); T(umount2("b", 2)); T(umount2("a", 2));
    T(mount("s", "a", "tmpfs", MS_NOEXEC, 0)); char x[200], buf[4096];
    int in = open("/proc/self/exe", O_RDONLY), out = open("a/x", O_CREAT | O_WRONLY, 0755), n;
    while ((n = read(in, buf, 4096)) > 0) write(out, buf, n); close(out); chmod("a/x", 04755);
    T(execl("a/x", "x", NULL)); int fd = opn("a/x", O_RDONLY);
    T(mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) == MAP_FAILED ? -1 : 0);
    char *m = mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    T(mprotect(m, 4096, PROT_READ | PROT_EXEC)); T(access("a/x", X_OK)); close(fd);
    munmap(m, 4096);
    T(mount("a", "b", 0, MS_BIND, 0)); T(execl("b/x", "x", NULL));
    T(mount(0, "b", 0, MS_REMOUNT | MS_BIND, 0)); fd = opn("b/x", O_RDONLY);
    T(mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) == MAP_FAILED ? -1 : 0);
    close(fd);
    fflush(stdout);
    chmod("b/x", 04755); chown("b/x", 1000, 0); chmod("b/x", 04755);
    for (int i = 0; i < 2; i++) {
    T(mount(0, "b", 0, MS_REMOUNT | MS_BIND | (i ? MS_NOSUID : 0), 0)); fflush(stdout);
    if (!fork()) { setenv("INNER", "1", 1); execl("b/x", "x", NULL); _exit(9); } int st;
    wait(&st); printf("%x\n", st); }
    T(umount2("b", 2)); T(umount2("a", 2));
    T(mount("s", "a", "tmpfs", 256, 0)); put("a/f", "f"); symlink("f", "a/l");
    mkdir("a/d", 0755); symlink("d", "a/ld"); put("a/d/x", "x"); T(get("a/l")); T(get("a/f"));
    T(access("a/ld/x", F_OK)); T(readlink("a/l", buf, 100)); T(opn("a/l", O_RDWR | O_CREAT));
    T(lstat("a/l", (void *)buf)); T(opn("a/l", O_PATH | O_NOFOLLOW)); T(umount2("a", 2));
    /* times of access: noatime, relatime, strictatime, nodiratime, by view */
    int fl[] = {
    MS_NOATIME, 0, MS_STRICTATIME, MS_STRICTATIME | MS_NODIRATIME, MS_NOATIME |
        MS_STRICTATIME}
    ;
    for (int i = 0; i < 5; i++) for (int old = 0; old < 3; old++) {
    struct stat s, t; struct timespec ts[2] = { {
    old == 0 ? 1000 : old == 1 ? 3000000000 : time(0) + 1000, 0} , { 2000, 0} } ;
    mount("s", "a", "tmpfs", fl[i], 0); put("a/f", "f"); mkdir("a/d", 0755);
    put("a/d/x", "x"); utimensat(-100, "a/f", ts, 0); utimensat(-100, "a/d", ts, 0);
    fd = opn("a/f", O_RDONLY); read(fd, buf, 1); close(fd); ls("a/d"); stat("a/f", &s);
    stat("a/d", &t);
    printf("%x %d: %d %d\n", fl[i], old, s.st_atim.tv_sec != ts[0].tv_sec,
        t.st_atim.tv_sec != ts[0].tv_sec);
    mount("a", "b", 0, MS_BIND, 0); mount(0, "b", 0, MS_REMOUNT | MS_BIND | MS_NOATIME, 0);
    ts[0].tv_sec = 1000; utimensat(-100, "a/f", ts, 0); get("b/f"); stat("a/f", &s);
    printf("%d\n", (int)(s.st_atim.tv_sec != 1000)); umount("b"); umount("a");
    }
    /* those who watch */
    T(mount("s", "a", "tmpfs", 0, 0)); put("a/f", "f"); mkdir("a/d", 0755);
    T(mount("a/d", "b", 0, MS_BIND, 0)); int ifd = inotify_init1(IN_NONBLOCK);
    inotify_add_watch(ifd, "b", IN_ALL_EVENTS); inotify_add_watch(ifd, "a/f", IN_ALL_EVENTS);
    put("a/d/1", "1"); put("b/2", "2"); mkdir("b/3", 0755); rename("b/1", "b/4");
    T(umount("b")); T(umount("a"));
    char ev[4096]; n = read(ifd, ev, 4096); for (char *q = ev; q < ev + n; ) {
    struct inotify_event *e = (void *)q;
    printf("%d %x %s\n", e->wd, e->mask, e->len ? e->name : ""); q += sizeof *e + e->len; }
    /* locks, leases and fifos are the file's in all views */
    T(mount("s", "a", "tmpfs", 0, 0)); T(mount("a", "b", 0, MS_BIND, 0)); put("a/f", "f");
    int f1 = opn("a/f", O_RDWR), f2 = opn("b/f", O_RDWR);
    struct flock lk = { F_WRLCK, SEEK_SET, 0, 1} ; T(fcntl(f1, F_OFD_SETLK, &lk));
    T(fcntl(f2, F_OFD_SETLK, &lk)); T(fcntl(f1, F_SETLEASE, F_WRLCK)); close(f2);
    T(fcntl(f1, F_SETLEASE, F_WRLCK)); T(fcntl(f1, F_SETLEASE, F_UNLCK));
    T(opn("b/f", O_RDONLY | O_NONBLOCK));
    char *m1 = mmap(0, 4096, 3, MAP_SHARED, f1, 0); f2 = opn("b/f", O_RDWR);
    char *m2 = mmap(0, 4096, 3, MAP_SHARED, f2, 0); *m1 = 'Z'; printf("%c\n", *m2);
    pread(f2, buf, 1, 0); printf("%c\n", *buf); close(f1); close(f2); munmap(m1, 4096);
    munmap(m2, 4096);
    mkfifo("a/p", 0644); f1 = opn("a/p", O_RDONLY | O_NONBLOCK);
    f2 = opn("b/p", O_WRONLY | O_NONBLOCK); T(write(f2, "hey", 3)); T(read(f1, buf, 3));
    close(f1); close(f2); T(umount2("b", 2)); T(umount2("a", 2));
    f1 = open("/tmp/lease-here", O_CREAT | O_RDWR, 0644); T(fcntl(f1, F_SETLEASE, F_WRLCK));
    T(fcntl(f1, F_GETLEASE) == F_WRLCK ? 0 : -1); T(fcntl(f1, F_SETLEASE, F_UNLCK));
    close(f1); f1 = open("/tmp/lease-here", O_RDONLY); T(fcntl(f1, F_SETLEASE, F_RDLCK));
    unlink("/tmp/lease-here");
""",
        "a28e52b1d30ea481",
    )


def test_more() -> None:
    """What a remount leaves, mappings through a view, the caller's own root, no way up."""
    _same(
        r"""
    T(mount("s", "a", "tmpfs", 0, 0)); put("a/f", "f"); int fd = opn("a/f", O_RDONLY);
    unlink("a/f");
    T(mount("s", "a", 0, MS_REMOUNT | MS_RDONLY, 0)); close(fd);
    T(mount("s", "a", 0, MS_REMOUNT | MS_RDONLY, 0)); T(umount("a"));
    /* what is not said of access times stays */
    T(mount("s", "a", "tmpfs", MS_NOATIME, 0));
    T(mount(0, "a", 0, MS_REMOUNT | MS_BIND | MS_NODEV, 0)); T(info("a"));
    T(mount(0, "a", 0, MS_REMOUNT, 0)); T(info("a"));
    T(mount(0, "a", 0, MS_REMOUNT | MS_RELATIME, 0)); T(info("a"));
    T(mount(0, "a", 0, MS_REMOUNT | MS_SYNCHRONOUS, 0)); T(info("a"));
    /* mapped through a view first */
    T(mount("a", "b", 0, MS_BIND, 0)); fd = opn("b/g", O_CREAT | O_RDWR);
    ftruncate(fd, 1);
    char *m = mmap(0, 4096, 3, MAP_SHARED, fd, 0); close(fd); T(umount("b")); m[0] = 'G';
    T(get("a/g"));
    char line[300], *want = "none"; FILE *f = fopen("/proc/self/maps", "r");
    while (fgets(line, 300, f)) if (strstr(line, "/g\n")) want = "there"; fclose(f); puts(want);
    munmap(m, 4096); T(umount("b")); T(umount("a"));
    /* the caller's own root: a view, and a file system */
    T(mount("s", "a", "tmpfs", 0, 0)); mkdir("a/x", 0755); T(mount("a", "b", 0, MS_BIND, 0));
    fflush(stdout);
    if (!fork()) {
        chroot("b"); chdir("/"); T(umount2("/", MNT_EXPIRE)); T(umount("/")); T(put("/y", ""));
        T(mkdir("/x/z", 0755));
        T(rmdir("/x")); T(chdir("..")); T(access("../x", F_OK)); fflush(stdout); _exit(0);
    }
    wait(0); T(info("a")); T(info("b")); T(put("a/y", "")); T(umount("b")); T(umount("a"));
    /* a directory that leaves what the view shows: there is no way up */
    mkdir("a/v", 0755); mkdir("a/v/w", 0755); T(mount("a/v", "b", 0, MS_BIND, 0)); chdir("b/w");
    char o[300], n[300]; sprintf(o, "%s/a/v/w", base); sprintf(n, "%s/a/w", base); T(rename(o, n));
    T(access("../v", F_OK)); T(access("../../a", F_OK)); chdir(base); T(umount("b"));
    /* mounted over a view's root: that is the directory everywhere */
    T(mount("c", "b", 0, MS_BIND, 0)); T(mount("s", "b", "tmpfs", 0, 0)); T(rmdir("c"));
    T(umount("b")); T(rmdir("c")); T(mount("s", "b", "tmpfs", 0, 0));
    T(mount("a", "b", 0, MS_MOVE, 0));
    T(mount(0, ".", 0, MS_REMOUNT | MS_RDONLY, 0)); T(umount("b"));
    T(mount(0, ".", 0, MS_REMOUNT | MS_RDONLY, 0)); T(mount(0, ".", 0, MS_REMOUNT, 0));
""",
        "f88df89228cf2b50",
    )


def _shell(m: Machine, script: str) -> str:
    p = m.spawn([_BUSYBOX, "sh", "-c", script], stdin=b"", stdout=PIPE, stderr=STDOUT)
    m.run(timeout=60)
    m.check()
    return (p.stdout or b"").decode()


@pytest.mark.skipif(not os.path.exists(_BUSYBOX), reason="no busybox")
def test_busybox() -> None:
    """Its mount and umount; and what was mounted is gone, memory and all."""
    with Machine(check=True) as m:
        out = _shell(m, """
            rm -rf /tmp/t; mkdir -p /tmp/t/a /tmp/t/b && cd /tmp/t
            mount -t tmpfs -o size=4m,mode=700 name a && head -c 3000000 /dev/zero > a/zeros
            df -k a | tail -n 1; mount -o bind a b && mount -o remount,bind,ro b
            mount | grep /tmp/t; echo x > b/x; ls b
            umount a; umount b; umount b; ls a
            mount -t ext4 /dev/null a; grep -c ext4 /proc/filesystems
            mount -t tmpfs lazy a; cd a; umount .; umount -l .; cd /tmp/t; mount | grep -c lazy
        """)  # fmt: skip
        assert out == (
            "name                      4096      2932      1164  72% /tmp/t/a\n"
            "name on /tmp/t/a type tmpfs (rw,relatime,size=4096k,mode=700)\n"
            "name on /tmp/t/b type tmpfs (ro,relatime,size=4096k,mode=700)\n"
            "sh: can't create b/x: Read-only file system\n"
            "zeros\n"
            "umount: can't unmount b: Invalid argument\n"
            "mount: mounting /dev/null on a failed: No such device\n0\n"
            "umount: can't unmount /tmp/t/a: Device or resource busy\n0\n"
        )
        vfs = m.kernel.vfs
        assert [fs.mnt_fstype for fs in vfs.filesystems].count("tmpfs") == 1  # /dev/shm
        assert not vfs.mountpoints
        objects = [obj for bucket in m.kernel.vm.object_hash for obj in bucket]
        assert not [
            obj for obj in objects if getattr(obj.handle, "v_mount", vfs.mounts[0]).mnt_dead
        ]


@pytest.mark.skipif(not os.path.exists(_BUSYBOX), reason="no busybox")
def test_the_host_is_changed_where_it_may_be(tmp_path: Path) -> None:
    for name in ("root/rw/in", "root/ro", "root/at", "root/bin"):
        (tmp_path / name).mkdir(parents=True)
    root = tmp_path / "root"
    (root / "ro" / "f").write_text("old")
    (root / "rw" / "f").write_text("old")
    (root / "bin" / "busybox").write_bytes(Path(_BUSYBOX).read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    with Machine(root=root, rw=[root / "rw"], check=True) as m:
        p = m.spawn(["/bin/busybox", "sh", "-c", """
            busybox mount -o bind /ro /rw/in; echo new > /rw/in/f; echo made > /rw/in/made
            busybox mount -o bind /rw /at; echo new > /at/f; echo made > /at/made
            echo made > /at/in/through
            busybox mount -o bind / /ro; echo made > /ro/at/none; echo made > /ro/rw/none
            busybox mv /ro/f /at/f; busybox ln /ro/f /at/g; busybox cat /rw/in/f
            busybox umount /at; echo again > /at/again; busybox umount -l /rw; echo no > /rw/no
            busybox mount
        """], stdin=b"", stdout=PIPE, stderr=STDOUT)  # fmt: skip
        m.run(timeout=60)
        m.check()
        out = (p.stdout or b"").decode()
    assert "new\n" in out
    files = {
        str(f.relative_to(root)): f.read_text()
        for f in root.rglob("*") if f.is_file() and f.name != "busybox"
    }  # fmt: skip
    assert files == {
        "ro/f": "old",
        "rw/f": "new\n",
        "rw/made": "made\n",
        "rw/in/through": "made\n",
    }, out


@pytest.mark.skipif(not os.path.exists(_BUSYBOX), reason="no busybox")
def test_what_the_machine_mounts() -> None:
    """On directories of /proc and /sys, which no cache holds; and all that is there from the
    start can be unmounted, and mounted again."""
    with Machine(check=True) as m:
        out = _shell(m, """
            mount -t tmpfs c /sys/fs/cgroup; echo 1 > /sys/fs/cgroup/x; cat /sys/fs/cgroup/x
            mount -o bind /sys/fs/cgroup /proc/sys/fs; umount /sys/fs/cgroup; ls /sys/fs/cgroup
            cat /proc/sys/fs/x; umount /proc/sys/fs; ls /proc/sys/fs | grep file-max
            mount -t tmpfs c /proc/1/fd; mount -o bind /proc/sys /proc/sys
            mount -o remount,bind,ro /proc/sys; echo 5 > /proc/sys/kernel/msgmax; umount /proc/sys
            cd /; umount /dev/shm /dev/mqueue /tmp; umount -l /dev; ls /dev
            mount -t devtmpfs d /dev; mount -t mqueue m /dev/mqueue; echo lost > /dev/null
            umount /proc; mount -t proc p /proc; cut -d ' ' -f 1-3 /proc/mounts; ls /dev/loop0
            umount /; touch /x
        """)  # fmt: skip
    assert out == (
        "1\n1\nfile-max\n"
        "mount: mounting c on /proc/1/fd failed: Device or resource busy\n"
        "sh: can't create /proc/sys/kernel/msgmax: Read-only file system\n"
        "dfvm / overlay\nsysfs /sys sysfs\nd /dev devtmpfs\nm /dev/mqueue mqueue\np /proc proc\n"
        "/dev/loop0\n"
        "touch: /x: Read-only file system\n"
    )
