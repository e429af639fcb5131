"""Loop devices. The program has printed the same on Linux 6.18; it is not run on the host here,
whose devices are everybody's."""

from __future__ import annotations

import os
import shutil

import pytest

from dfvm import PIPE, STDOUT, Machine
from tests.kern.guest_util import build, by_guest

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="whoever we are, the programs are")

_PROGRAM = r"""
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <linux/loop.h>
#include <linux/fs.h>
#include <sys/sysmacros.h>
static const char *en(int e) { return e ? strerrorname_np(e) : "0"; }
#define T(call) do { \
    errno = 0; long r_ = (call); printf("%s: %s", #call, en(r_ < 0 ? errno : 0)); \
    if (r_ > 0) printf(" %ld", r_); puts(""); } while (0)
static int n, ctl, fd; static char dev[50];
    static int show(int fd) { struct loop_info64 i = { 0} ;
    int r = ioctl(fd, LOOP_GET_STATUS64, &i); if (r < 0) return r;
    printf("off %ld lim %ld num %d flags %x name %s ", (long)i.lo_offset,
        (long)i.lo_sizelimit, i.lo_number == n, i.lo_flags, i.lo_file_name);
    return 0; }
    static int num(int fd, unsigned long cmd, int bytes) { unsigned long v = 0;
    int r = ioctl(fd, cmd, &v); if (r < 0) return r;
    printf("%ld ", bytes == 2 ? (long)(unsigned short)v : bytes == 4 ? (long)(int)v :
        (long)v);
    return 0; }
    static int sys(const char *f) { char p[100], b[200];
    sprintf(p, "/sys/block/loop%d/%s", n, f); int fd = open(p, O_RDONLY);
    if (fd < 0) return -1; int k = read(fd, b, 199); close(fd); printf("%.*s ", k - 1, b);
    return 0; }
int main(void)
{
    char dir[] = "/tmp/loopXXXXXX"; mkdtemp(dir); chdir(dir);
    ctl = open("/dev/loop-control", O_RDWR);
    n = ioctl(ctl, LOOP_CTL_GET_FREE); sprintf(dev, "/dev/loop%d", n);
    fd = open(dev, O_RDWR);
    struct stat st; fstat(fd, &st);
    printf("%o %d\n", st.st_mode & S_IFMT, (int)(st.st_rdev >> 8));
    char buf[4096], b[600] = "";
    T(read(fd, buf, 512)); T(write(fd, buf, 512)); T(show(fd)); T(ioctl(fd, LOOP_CLR_FD));
    T(num(fd, BLKGETSIZE64, 8)); T(num(fd, BLKSSZGET, 4)); T(ioctl(fd, LOOP_SET_CAPACITY));
    T(ioctl(fd, LOOP_SET_BLOCK_SIZE, 512)); T(ioctl(fd, LOOP_SET_DIRECT_IO, 1));
    T(ioctl(fd, LOOP_CHANGE_FD, 0)); T(sys("loop/offset")); T(sys("size"));
    int f = open("img", O_CREAT | O_RDWR, 0644); ftruncate(f, 1 << 20);
    pwrite(f, "HELLO", 5, 1000); int p[2]; pipe(p);
    T(ioctl(fd, LOOP_SET_FD, 999)); T(ioctl(fd, LOOP_SET_FD, p[0]));
    T(ioctl(fd, LOOP_SET_FD, ctl)); T(ioctl(fd, LOOP_SET_FD, f));
    T(ioctl(fd, LOOP_SET_FD, f)); T(show(fd)); T(sys("loop/offset"));
    T(sys("loop/sizelimit")); T(sys("loop/autoclear")); T(sys("loop/partscan"));
    T(sys("loop/dio")); T(sys("ro")); T(sys("size")); T(sys("queue/logical_block_size"));
    char back[200] = "", sp[60]; sprintf(sp, "/sys/block/loop%d/loop/backing_file", n);
    int bf = open(sp, O_RDONLY); read(bf, back, 199); close(bf);
    printf("%s", strrchr(back, '/'));
    T(num(fd, BLKGETSIZE64, 8)); T(num(fd, BLKGETSIZE, 8)); T(num(fd, BLKSSZGET, 4));
    T(num(fd, BLKPBSZGET, 4)); T(num(fd, BLKBSZGET, 4)); T(num(fd, BLKIOMIN, 4));
    T(num(fd, BLKIOOPT, 4)); T(num(fd, BLKALIGNOFF, 4)); T(num(fd, BLKROGET, 4));
    T(num(fd, BLKSECTGET, 2)); T(num(fd, BLKDISCARDZEROES, 4)); T(ioctl(fd, BLKRRPART));
    T(ioctl(fd, BLKFLSBUF, 0)); T(ioctl(fd, 0x5401, buf)); T(ioctl(fd, 0x301, buf));
    int bs = 1000; T(ioctl(fd, BLKBSZSET, &bs)); bs = 512; T(ioctl(fd, BLKBSZSET, &bs));
    T(num(fd, BLKBSZGET, 4)); bs = 4096; ioctl(fd, BLKBSZSET, &bs);
    T(pread(fd, b, 5, 1000)); puts(b); T(pwrite(fd, "world", 5, 5000)); T(fsync(fd));
    T(pread(f, b, 5, 5000)); puts(b); T(lseek(fd, 0, SEEK_END)); T(write(fd, "x", 1));
    T(read(fd, buf, 1)); T(pwrite(fd, buf, 4096, (1 << 20) - 100));
    T(pread(fd, buf, 4096, (1 << 20) - 100)); T(lseek(fd, -5, SEEK_SET));
    T(pread(fd, buf, 10, 1 << 21)); T(lseek(fd, 2 << 20, SEEK_SET));
    struct loop_info64 i; ioctl(fd, LOOP_GET_STATUS64, &i); fstat(f, &st);
    printf("%d %d\n", i.lo_inode == st.st_ino, i.lo_device == st.st_dev);
    i.lo_offset = 1000; i.lo_sizelimit = 4096; strcpy((char *)i.lo_file_name, "nice");
    i.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_READ_ONLY; T(ioctl(fd, LOOP_SET_STATUS64, &i));
    T(show(fd)); T(num(fd, BLKGETSIZE64, 8)); T(pread(fd, b, 5, 0)); puts(b);
    T(pread(fd, buf, 4096, 4000)); T(sys("loop/offset")); T(sys("loop/sizelimit"));
    T(sys("loop/autoclear")); T(sys("size"));
    i.lo_sizelimit = 700; i.lo_offset = 0; T(ioctl(fd, LOOP_SET_STATUS64, &i));
    T(num(fd, BLKGETSIZE64, 8)); i.lo_offset = 2 << 20; T(ioctl(fd, LOOP_SET_STATUS64, &i));
    T(num(fd, BLKGETSIZE64, 8)); i.lo_offset = -1; T(ioctl(fd, LOOP_SET_STATUS64, &i));
    i.lo_offset = 0; i.lo_sizelimit = 0; i.lo_encrypt_type = 1;
    T(ioctl(fd, LOOP_SET_STATUS64, &i)); i.lo_encrypt_type = 0; i.lo_flags = 0;
    T(ioctl(fd, LOOP_SET_STATUS64, &i)); T(show(fd));
    struct loop_info o; memset(&o, 0, sizeof o); T(ioctl(fd, LOOP_GET_STATUS, &o));
    printf("%d %s %d\n", o.lo_number == n, o.lo_name, o.lo_flags); o.lo_offset = 512;
    T(ioctl(fd, LOOP_SET_STATUS, &o)); T(show(fd)); i.lo_offset = 0;
    ioctl(fd, LOOP_SET_STATUS64, &i);
    ftruncate(f, 2 << 20); T(num(fd, BLKGETSIZE64, 8)); T(ioctl(fd, LOOP_SET_CAPACITY));
    T(num(fd, BLKGETSIZE64, 8));
    T(ioctl(fd, LOOP_SET_BLOCK_SIZE, 256)); T(ioctl(fd, LOOP_SET_BLOCK_SIZE, 1000));
    T(ioctl(fd, LOOP_SET_BLOCK_SIZE, 8192)); T(ioctl(fd, LOOP_SET_BLOCK_SIZE, 4096));
    T(num(fd, BLKSSZGET, 4)); T(sys("queue/logical_block_size"));
    T(ioctl(fd, LOOP_SET_BLOCK_SIZE, 512));
    int f2 = open("img2", O_CREAT | O_RDWR, 0644); ftruncate(f2, 2 << 20);
    T(ioctl(fd, LOOP_CHANGE_FD, f2));
    unsigned long r[2] = { 0, 4096} ; pwrite(fd, "data", 4, 0); pwrite(fd, "data", 4, 8192);
    fsync(fd); T(ioctl(fd, BLKDISCARD, r)); T(pread(f, b, 4, 0)); printf("%d\n", b[0]);
    r[0] = 8192; T(ioctl(fd, BLKZEROOUT, r)); T(pread(fd, b, 4, 8192)); printf("%d\n", b[0]);
    r[0] = 100; T(ioctl(fd, BLKDISCARD, r)); T(ioctl(fd, BLKZEROOUT, r)); r[0] = 8 << 20;
    T(ioctl(fd, BLKDISCARD, r)); r[0] = 0; r[1] = 0; T(ioctl(fd, BLKDISCARD, r));
    int ro = 1; T(ioctl(fd, BLKROSET, &ro)); T(num(fd, BLKROGET, 4));
    T(pwrite(fd, "x", 1, 0)); T(sys("ro")); int w = open(dev, O_RDWR); T(w < 0 ? -1 : 0);
    close(w); ro = 0; T(ioctl(fd, BLKROSET, &ro)); T(pwrite(fd, "x", 1, 0)); fsync(fd);
    T(ioctl(ctl, LOOP_CTL_REMOVE, n)); T(ioctl(ctl, LOOP_CTL_ADD, n));
    T(ioctl(ctl, LOOP_CTL_REMOVE, 5000)); T(ioctl(ctl, LOOP_CTL_REMOVE, -1));
    T(ioctl(ctl, 0x4c99, 0)); T(read(ctl, buf, 1));
    T(mount(dev, "/mnt", "ext9", 0, 0)); T(mount("/dev/nonesuch", "/mnt", "ext9", 0, 0));
    /* others have it open */
    int again = open(dev, O_RDONLY); T(ioctl(fd, LOOP_CLR_FD)); T(show(fd)); close(again);
    close(fd); fd = open(dev, O_RDWR); T(show(fd));
    /* read-only file, configure, autoclear */
    close(f); f = open("img", O_RDONLY); T(ioctl(fd, LOOP_SET_FD, f)); T(show(fd));
    T(num(fd, BLKROGET, 4)); T(pwrite(fd, "x", 1, 0)); ftruncate(f2, 4 << 20);
    T(ioctl(fd, LOOP_CHANGE_FD, f2)); ftruncate(f2, 2 << 20);
    T(ioctl(fd, LOOP_CHANGE_FD, f2)); T(ioctl(fd, LOOP_CLR_FD)); close(fd);
    fd = open(dev, O_RDWR); T(show(fd));
    struct loop_config c; memset(&c, 0, sizeof c); c.fd = f2; c.block_size = 1024;
    c.info.lo_offset = 1024; c.info.lo_sizelimit = 10240;
    c.info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_READ_ONLY;
    strcpy((char *)c.info.lo_file_name, "cfg");
    c.__reserved[0] = 1; T(ioctl(fd, LOOP_CONFIGURE, &c)); c.__reserved[0] = 0;
    c.block_size = 1000; T(ioctl(fd, LOOP_CONFIGURE, &c)); c.block_size = 1024;
    c.info.lo_flags = 0x40; T(ioctl(fd, LOOP_CONFIGURE, &c));
    c.info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_READ_ONLY;
    T(ioctl(fd, LOOP_CONFIGURE, &c)); T(show(fd)); T(num(fd, BLKGETSIZE64, 8));
    T(num(fd, BLKSSZGET, 4)); T(pwrite(fd, "x", 1, 0)); T(ioctl(fd, LOOP_CONFIGURE, &c));
    close(fd); fd = open(dev, O_RDWR); T(show(fd)); T(num(fd, BLKGETSIZE64, 8));
    T(num(fd, BLKROGET, 4));
    T(mknod("node", S_IFBLK | 0600, makedev(7, n))); int fd2 = open("node", O_RDWR);
    T(num(fd2, BLKGETSIZE64, 8)); close(fd2);
    close(fd);
    unlink("img"); unlink("img2"); unlink("node"); unlink("none"); chdir("/"); rmdir(dir);
}
"""

_PRINTS = r"""
60000 7
read(fd, buf, 512): 0
write(fd, buf, 512): ENOSPC
show(fd): ENXIO
ioctl(fd, LOOP_CLR_FD): ENXIO
0 num(fd, BLKGETSIZE64, 8): 0
512 num(fd, BLKSSZGET, 4): 0
ioctl(fd, LOOP_SET_CAPACITY): ENXIO
ioctl(fd, LOOP_SET_BLOCK_SIZE, 512): ENXIO
ioctl(fd, LOOP_SET_DIRECT_IO, 1): ENXIO
ioctl(fd, LOOP_CHANGE_FD, 0): ENXIO
sys("loop/offset"): ENOENT
0 sys("size"): 0
ioctl(fd, LOOP_SET_FD, 999): EBADF
ioctl(fd, LOOP_SET_FD, p[0]): EINVAL
ioctl(fd, LOOP_SET_FD, ctl): EINVAL
ioctl(fd, LOOP_SET_FD, f): 0
ioctl(fd, LOOP_SET_FD, f): EBUSY
off 0 lim 0 num 1 flags 0 name  show(fd): 0
0 sys("loop/offset"): 0
0 sys("loop/sizelimit"): 0
0 sys("loop/autoclear"): 0
0 sys("loop/partscan"): 0
0 sys("loop/dio"): 0
0 sys("ro"): 0
2048 sys("size"): 0
512 sys("queue/logical_block_size"): 0
/img
1048576 num(fd, BLKGETSIZE64, 8): 0
2048 num(fd, BLKGETSIZE, 8): 0
512 num(fd, BLKSSZGET, 4): 0
512 num(fd, BLKPBSZGET, 4): 0
4096 num(fd, BLKBSZGET, 4): 0
512 num(fd, BLKIOMIN, 4): 0
0 num(fd, BLKIOOPT, 4): 0
0 num(fd, BLKALIGNOFF, 4): 0
0 num(fd, BLKROGET, 4): 0
2560 num(fd, BLKSECTGET, 2): 0
0 num(fd, BLKDISCARDZEROES, 4): 0
ioctl(fd, BLKRRPART): EINVAL
ioctl(fd, BLKFLSBUF, 0): 0
ioctl(fd, 0x5401, buf): EINVAL
ioctl(fd, 0x301, buf): ENOTTY
ioctl(fd, BLKBSZSET, &bs): EINVAL
ioctl(fd, BLKBSZSET, &bs): 0
512 num(fd, BLKBSZGET, 4): 0
pread(fd, b, 5, 1000): 0 5
HELLO
pwrite(fd, "world", 5, 5000): 0 5
fsync(fd): 0
pread(f, b, 5, 5000): 0 5
world
lseek(fd, 0, SEEK_END): 0 1048576
write(fd, "x", 1): ENOSPC
read(fd, buf, 1): 0
pwrite(fd, buf, 4096, (1 << 20) - 100): 0 100
pread(fd, buf, 4096, (1 << 20) - 100): 0 100
lseek(fd, -5, SEEK_SET): EINVAL
pread(fd, buf, 10, 1 << 21): 0
lseek(fd, 2 << 20, SEEK_SET): EINVAL
1 1
ioctl(fd, LOOP_SET_STATUS64, &i): 0
off 1000 lim 4096 num 1 flags 4 name nice show(fd): 0
4096 num(fd, BLKGETSIZE64, 8): 0
pread(fd, b, 5, 0): 0 5
HELLO
pread(fd, buf, 4096, 4000): 0 96
1000 sys("loop/offset"): 0
4096 sys("loop/sizelimit"): 0
1 sys("loop/autoclear"): 0
8 sys("size"): 0
ioctl(fd, LOOP_SET_STATUS64, &i): 0
512 num(fd, BLKGETSIZE64, 8): 0
ioctl(fd, LOOP_SET_STATUS64, &i): 0
0 num(fd, BLKGETSIZE64, 8): 0
ioctl(fd, LOOP_SET_STATUS64, &i): EOVERFLOW
ioctl(fd, LOOP_SET_STATUS64, &i): EINVAL
ioctl(fd, LOOP_SET_STATUS64, &i): 0
off 0 lim 0 num 1 flags 0 name nice show(fd): 0
ioctl(fd, LOOP_GET_STATUS, &o): 0
1 nice 0
ioctl(fd, LOOP_SET_STATUS, &o): 0
off 512 lim 0 num 1 flags 0 name nice show(fd): 0
1048576 num(fd, BLKGETSIZE64, 8): 0
ioctl(fd, LOOP_SET_CAPACITY): 0
2097152 num(fd, BLKGETSIZE64, 8): 0
ioctl(fd, LOOP_SET_BLOCK_SIZE, 256): EINVAL
ioctl(fd, LOOP_SET_BLOCK_SIZE, 1000): EINVAL
ioctl(fd, LOOP_SET_BLOCK_SIZE, 8192): 0
ioctl(fd, LOOP_SET_BLOCK_SIZE, 4096): 0
4096 num(fd, BLKSSZGET, 4): 0
4096 sys("queue/logical_block_size"): 0
ioctl(fd, LOOP_SET_BLOCK_SIZE, 512): 0
ioctl(fd, LOOP_CHANGE_FD, f2): EINVAL
ioctl(fd, BLKDISCARD, r): 0
pread(f, b, 4, 0): 0 4
0
ioctl(fd, BLKZEROOUT, r): 0
pread(fd, b, 4, 8192): 0 4
0
ioctl(fd, BLKDISCARD, r): EINVAL
ioctl(fd, BLKZEROOUT, r): EINVAL
ioctl(fd, BLKDISCARD, r): EINVAL
ioctl(fd, BLKDISCARD, r): EINVAL
ioctl(fd, BLKROSET, &ro): 0
1 num(fd, BLKROGET, 4): 0
pwrite(fd, "x", 1, 0): EPERM
1 sys("ro"): 0
w < 0 ? -1 : 0: 0
ioctl(fd, BLKROSET, &ro): 0
pwrite(fd, "x", 1, 0): 0 1
ioctl(ctl, LOOP_CTL_REMOVE, n): EBUSY
ioctl(ctl, LOOP_CTL_ADD, n): EEXIST
ioctl(ctl, LOOP_CTL_REMOVE, 5000): ENODEV
ioctl(ctl, LOOP_CTL_REMOVE, -1): EINVAL
ioctl(ctl, 0x4c99, 0): ENOSYS
read(ctl, buf, 1): EINVAL
mount(dev, "/mnt", "ext9", 0, 0): ENODEV
mount("/dev/nonesuch", "/mnt", "ext9", 0, 0): ENODEV
ioctl(fd, LOOP_CLR_FD): 0
off 0 lim 0 num 1 flags 4 name nice show(fd): 0
show(fd): ENXIO
ioctl(fd, LOOP_SET_FD, f): 0
off 0 lim 0 num 1 flags 1 name  show(fd): 0
1 num(fd, BLKROGET, 4): 0
pwrite(fd, "x", 1, 0): EPERM
ioctl(fd, LOOP_CHANGE_FD, f2): EINVAL
ioctl(fd, LOOP_CHANGE_FD, f2): 0
ioctl(fd, LOOP_CLR_FD): 0
show(fd): ENXIO
ioctl(fd, LOOP_CONFIGURE, &c): 0
ioctl(fd, LOOP_CONFIGURE, &c): EBUSY
ioctl(fd, LOOP_CONFIGURE, &c): EBUSY
ioctl(fd, LOOP_CONFIGURE, &c): EBUSY
off 1024 lim 10240 num 1 flags 5 name cfg show(fd): 0
10240 num(fd, BLKGETSIZE64, 8): 0
1024 num(fd, BLKSSZGET, 4): 0
pwrite(fd, "x", 1, 0): EPERM
ioctl(fd, LOOP_CONFIGURE, &c): EBUSY
show(fd): ENXIO
0 num(fd, BLKGETSIZE64, 8): 0
1 num(fd, BLKROGET, 4): 0
mknod("node", S_IFBLK | 0600, makedev(7, n)): 0
0 num(fd2, BLKGETSIZE64, 8): 0
"""


def test_ioctls_and_data() -> None:
    status, out = by_guest(build(_PROGRAM))
    assert out.decode().splitlines() == _PRINTS.strip("\n").splitlines()
    assert status == 0


@pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="no e2fsprogs")
def test_tools() -> None:
    """util-linux and e2fsprogs find their way; what they make can't be mounted."""
    with Machine(check=True) as m:
        p = m.spawn(["/bin/sh", "-c", """
            PATH=/sbin:/usr/sbin:$PATH
            rm -rf /tmp/lt; mkdir /tmp/lt && cd /tmp/lt && truncate -s 4M img
            losetup -f --show img && losetup -n -l -O NAME,OFFSET,BACK-FILE
            mkfs.ext4 -q -F /dev/loop0 && e2fsck -fn /dev/loop0 > /dev/null 2>&1; echo $?
            tail -c +1081 img | head -c 2 | od -An -tx1; blockdev --getsize64 /dev/loop0
            mkdir m; mount -t ext4 /dev/loop0 m > /dev/null 2>&1; echo $?
            mount -o loop -t tmpfs img m && df --output=target m | tail -n 1 && umount m
            losetup -d /dev/loop0; losetup -a; losetup /dev/loop1 img  # and stays so
        """], stdin=b"", stdout=PIPE, stderr=STDOUT)  # fmt: skip
        m.run(timeout=100)
        m.check()
        lines = [" ".join(line.split()) for line in (p.stdout or b"").decode().splitlines()]
    assert lines == ["/dev/loop0", "/dev/loop0 0 /tmp/lt/img", "0", "53 ef", "4194304", "32",
                     "/tmp/lt/m"]  # fmt: skip
