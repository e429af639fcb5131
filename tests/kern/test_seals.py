"""Seals of files made by memfd_create."""

from __future__ import annotations

from file_util import T
from guest_util import build, by_guest, same

MK = r"""
#define S(fd) T(fcntl(fd, F_GET_SEALS))
#define ADD(fd, s) T(fcntl(fd, F_ADD_SEALS, s))
static int mk(int flags) { int fd = memfd_create("s", flags); write(fd, buf, 10000); return fd; }
"""


def test_sizes_and_writes() -> None:
    same(T + MK + r"""
int main() {
    int a = mk(0), b = mk(2); struct stat st; S(a); ADD(a, F_SEAL_GROW); S(b); ADD(b, 0x100);
    ADD(b, F_SEAL_SHRINK); S(b); T(ftruncate(b, 9999)); T(ftruncate(b, 10000));
    T(ftruncate(b, 10001)); T(pwrite(b, "x", 1, 20000)); fstat(b, &st); T(st.st_size);
    b = mk(2); ADD(b, F_SEAL_GROW); T(ftruncate(b, 10001)); T(ftruncate(b, 9000));
    T(pwrite(b, buf, 10, 8990)); T(pwrite(b, buf, 11, 8990)); T(pwrite(b, buf, 5000, 4000));
    T(pwrite(b, buf, 9000, 4000)); T(pwrite(b, buf, 1, 9000)); T(pwrite(b, buf, 1, 20000));
    T(fallocate(b, 0, 0, 9001)); T(fallocate(b, 0, 0, 9000)); T(fallocate(b, 1, 0, 90000));
    T(fallocate(b, 3, 0, 4096)); fstat(b, &st); T(st.st_size); lseek(b, 0, SEEK_END);
    T(write(b, "x", 1)); b = mk(2); ADD(b, F_SEAL_WRITE); T(pwrite(b, "x", 1, 0));
    T(ftruncate(b, 5)); T(ftruncate(b, 50000)); T(fallocate(b, 3, 0, 4096));
    T(fallocate(b, 0, 0, 100000)); T(sendfile(b, a, &(off_t){0}, 10)); char n[50];
    sprintf(n, "/proc/self/fd/%d", b); int rw = open(n, O_RDWR); T(pwrite(rw, "x", 1, 0));
    ADD(b, F_SEAL_SEAL); ADD(b, F_SEAL_SEAL); ADD(b, F_SEAL_GROW); S(b); b = mk(2);
    sprintf(n, "/proc/self/fd/%d", b); int ro = open(n, 0); S(ro); ADD(ro, F_SEAL_GROW);
    int p[2]; pipe(p); S(p[0]); S(open("/dev/null", 2)); S(open("/proc/self/stat", 0));
    T(memfd_create("x", 0x80)); return 0;
}""")  # fmt: skip


def test_mappings() -> None:
    same(T + MK + r"""
int main() {
    int b = mk(2); char *m = mmap(0, 4096, 3, MAP_SHARED, b, 0); ADD(b, F_SEAL_WRITE); S(b);
    ADD(b, 0x10 /* F_SEAL_FUTURE_WRITE */); m[0] = 1; T(pwrite(b, "x", 1, 0)); munmap(m, 4096);
    ADD(b, F_SEAL_WRITE); S(b); b = mk(2); m = mmap(0, 4096, 3, MAP_PRIVATE, b, 0); m[0] = 5;
    ADD(b, F_SEAL_WRITE); m[1] = 6; T(mmap(0, 4096, 3, MAP_SHARED, b, 0) != MAP_FAILED);
    m = mmap(0, 4096, 1, MAP_SHARED, b, 0); T(m != MAP_FAILED); T(mprotect(m, 4096, 3));
    T(mmap(0, 4096, 3, MAP_PRIVATE, b, 0) != MAP_FAILED); b = mk(2); int go[2]; pipe(go);
    m = mmap(0, 4096, 3, MAP_SHARED, b, 0);
    if (!fork()) { close(go[1]); read(go[0], buf, 1); _exit(0); }
    munmap(m, 4096); ADD(b, F_SEAL_WRITE); close(go[1]); wait(0); ADD(b, F_SEAL_WRITE);
    return 0;
}""")  # fmt: skip


def test_execution() -> None:
    """MFD_NOEXEC_SEAL, which older hosts don't have."""
    program = build(T + MK + r"""
int main() {
    struct stat st; int e = mk(8); S(e); fstat(e, &st); T(st.st_mode & 07777);
    T(fchmod(e, 0755)); T(fchmod(e, 0600)); ADD(e, F_SEAL_GROW); S(e); T(memfd_create("x", 0x18));
    e = mk(0x12); fstat(e, &st); T(st.st_mode & 07777); ADD(e, 0x20); S(e); T(fchmod(e, 0));
    return 0;
}""")  # fmt: skip
    status, out = by_guest(program)
    numbers = [line.split(b" = ")[1] for line in out.splitlines()]
    assert status == 0
    assert numbers == [b"32 0", b"438 0", b"-1 1", b"0 0", b"0 0", b"36 0", b"-1 22", b"511 0",
                       b"0 0", b"62 0", b"-1 1"]  # fmt: skip
