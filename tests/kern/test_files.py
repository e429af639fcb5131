"""Names, opening, attributes, positions and sizes. Each program runs on the host too."""

from __future__ import annotations

from file_util import T
from guest_util import build, by_guest, same


def test_open_flags() -> None:
    same(T + r"""
int main() {
    put_("f", "contents"); mkdir("d", 0755); symlink("f", "l"); symlink("nowhere", "dang");
    symlink("d", "ld"); symlink("s", "s");
    T(open("f", O_CREAT | O_EXCL, 0644)); T(open("g", O_CREAT | O_EXCL | O_RDWR, 0640));
    T(open("l", O_CREAT | O_EXCL, 0644));
    T(open("dang", O_CREAT | O_EXCL, 0644)); T(open("l", O_NOFOLLOW)); T(open("ld/", O_NOFOLLOW));
    T(open("ld", O_NOFOLLOW | O_DIRECTORY));
    T(open("f", O_DIRECTORY)); T(open("d", O_DIRECTORY)); T(open("d", O_WRONLY));
    T(open("d", O_RDWR)); T(open("d", O_CREAT, 0644));
    T(open("f/", O_RDONLY)); T(open("f/x", O_RDONLY)); T(open("new/", O_CREAT, 0644));
    T(open("", O_RDONLY)); T(open("s", O_RDONLY));
    T(open("nofile", O_RDONLY)); T(open("nodir/f", O_CREAT, 0644)); T(open("dang", O_RDONLY));
    T(open("dang", O_CREAT | O_RDWR, 0600));
    T(access("nowhere", F_OK)); T(open("l", O_RDONLY)); T(open("d", O_RDWR | O_TMPFILE, 0600));
    T(open("d", O_RDONLY | O_TMPFILE, 0600));
    T(open("f", O_RDWR | O_TMPFILE, 0600)); T(open("d", O_CREAT | O_DIRECTORY, 0755));
    T(open("f", O_TRUNC | O_RDONLY));
    struct stat st; stat("f", &st); T(st.st_size); stat("g", &st); T(st.st_mode);
    char longname[5000]; memset(longname, 'n', 4999); longname[256] = 0;
    T(open(longname, O_CREAT, 0644)); longname[255] = 0;
    T(open(longname, O_CREAT, 0644)); memset(longname, '/', 4095); longname[4095] = 0;
    T(open(longname, 0)); longname[4095] = '/'; longname[4096] = 0; T(open(longname, 0));
    T(open("f", O_RDWR | O_APPEND | O_NONBLOCK | O_SYNC | 0x40000000));
    int fl = fcntl(open("f", O_WRONLY | O_APPEND | O_SYNC | O_CLOEXEC | O_EXCL), F_GETFL); T(fl);
    T(fcntl(open("f", O_PATH | O_RDWR | O_CREAT | O_TRUNC), F_GETFL)); T(open("f", 3));
    T(creat("c", 0400)); stat("c", &st); T(st.st_mode);
    umask(077); T(open("u", O_CREAT | O_WRONLY, 0777)); stat("u", &st); T(st.st_mode);
    T(umask(0)); T(open("f", O_CREAT | O_RDONLY | O_DIRECTORY)); T(openat(99, "f", 0));
    T(openat(99, "/", 0)); T(openat(open("f", 0), "f", 0));
    return 0;
}""")  # fmt: skip


def test_path_descriptors() -> None:
    same(T + r"""
int main() {
    put_("f", "data"); mkdir("d", 0755); put_("d/x", "1"); symlink("f", "l"); struct stat st;
    int fd = open("f", O_PATH), d = open("d", O_PATH | O_DIRECTORY);
    int l = open("l", O_PATH | O_NOFOLLOW);
    T(read(fd, buf, 1)); T(write(fd, buf, 1)); T(lseek(fd, 0, 0)); T(fchmod(fd, 0600));
    T(ftruncate(fd, 0)); T(ioctl(fd, FIONREAD, buf)); T(fcntl(fd, F_SETFL, 0));
    T(fstat(fd, &st)); T(st.st_size); T(openat(d, "x", O_RDONLY)); T(fchdir(d));
    T(access("x", 0)); T(fcntl(dup(fd), F_GETFD)); T(fstat(l, &st)); T(st.st_mode & S_IFMT);
    memset(buf, 0, 10); T(readlinkat(l, "", buf, 10)); puts(buf); T(readlinkat(fd, "", buf, 10));
    T(fstatat(fd, "", &st, AT_EMPTY_PATH)); T(fstatat(AT_FDCWD, "", &st, AT_EMPTY_PATH));
    T(fstatat(fd, "", &st, 0));
    char name[50]; sprintf(name, "/proc/self/fd/%d", fd); T(open(name, O_RDWR));
    T(linkat(AT_FDCWD, name, AT_FDCWD, "hard", AT_SYMLINK_FOLLOW)); stat("hard", &st);
    T(st.st_nlink);
    T(flock(fd, LOCK_SH)); T(fsync(fd)); T(syscall(SYS_getdents64, d, buf, 1000)); T(close(fd));
    struct statfs sf; T(fstatfs(d, &sf)); T(faccessat(d, "x", R_OK, 0));
    T(fchownat(d, "", -1, -1, AT_EMPTY_PATH));
    return 0;
}""")  # fmt: skip


def test_names() -> None:
    same(T + r"""
int main() {
    put_("f", "1"); put_("g", "22"); mkdir("d", 0755); mkdir("d/e", 0755); symlink("d", "ld");
    struct stat st;
    T(mkdir("d", 0755)); T(mkdir("f", 0755)); T(mkdir("f/x", 0755)); T(mkdir("no/x", 0755));
    T(mkdir("n/", 0777)); T(mkdir(".", 0755)); T(mkdir("/", 0755)); T(mkdir("", 0));
    stat("n", &st); T(st.st_mode); T(st.st_nlink);
    T(rmdir("d")); T(rmdir("f")); T(rmdir("ld")); T(rmdir("nofile")); T(rmdir("."));
    T(rmdir("d/..")); T(rmdir("/")); T(rmdir("n/")); T(rmdir("d/e")); T(rmdir("d"));
    T(unlink("n")); T(unlink("nofile")); T(unlink("f/")); T(unlink(".")); T(unlink("/"));
    T(unlinkat(AT_FDCWD, "f", 5)); T(mkdir("d", 0755)); T(unlink("d")); T(unlink("d/"));
    T(unlinkat(AT_FDCWD, "d", AT_REMOVEDIR));
    T(link("f", "h")); T(link("f", "h")); T(link("nofile", "x")); T(mkdir("d", 0755));
    T(link("d", "hd")); T(link("f", "no/x")); T(link("f", "x/")); stat("f", &st); T(st.st_nlink);
    T(linkat(AT_FDCWD, "f", AT_FDCWD, "y", 77));
    T(symlink("target", "sl")); T(symlink("x", "sl")); T(symlink("", "e")); T(symlink("x", "f"));
    memset(buf, 0, 100); T(readlink("sl", buf, 100)); puts(buf); T(readlink("sl", buf, 3));
    T(readlink("f", buf, 10)); T(readlink("sl", buf, 0)); T(readlink("no", buf, 9));
    T(readlink("", buf, 9));
    T(link("sl", "sl2")); T(lstat("sl2", &st)); T(st.st_mode); T(st.st_size); T(st.st_nlink);
    T(rename("f", "r")); T(rename("nofile", "x")); T(rename("r", "g")); puts(get_("g"));
    T(rename("d", "g")); T(rename("g", "d")); T(mkdir("d2", 0755)); T(rename("d", "d2"));
    T(mkdir("d2/s", 0755)); T(rename("d2", "d2/s/x")); T(rename("d2/s", "d2"));
    T(rename("h", "h")); T(rename("g", "h")); T(access("g", 0)); T(rename("d2", "d3/"));
    T(rename("h", "q/")); T(rename(".", "x")); T(rename("d3", "..")); T(rename("d3/.", "x"));
    put_("a", "A"); put_("b", "B"); T(syscall(SYS_renameat2, AT_FDCWD, "a", AT_FDCWD, "b", 1));
    T(syscall(SYS_renameat2, AT_FDCWD, "a", AT_FDCWD, "b", 2)); puts(get_("a")); puts(get_("b"));
    T(syscall(SYS_renameat2, AT_FDCWD, "a", AT_FDCWD, "c", 2));
    T(syscall(SYS_renameat2, AT_FDCWD, "a", AT_FDCWD, "b", 3));
    T(syscall(SYS_renameat2, AT_FDCWD, "a", AT_FDCWD, "c", 1));
    T(syscall(SYS_renameat2, AT_FDCWD, "c", AT_FDCWD, "d3", 2));
    T(syscall(SYS_renameat2, AT_FDCWD, "b", AT_FDCWD, "z", 64));
    T(mknod("fi", S_IFIFO | 0600, 0)); T(mknod("re", 0644, 0)); stat("re", &st); T(st.st_mode);
    T(mknod("di", S_IFDIR | 0755, 0)); T(mknod("xx", S_IFLNK | 0755, 0));
    T(mknod("so", S_IFSOCK | 0600, 0)); T(open("so", O_RDONLY)); T(mknod("re", S_IFREG, 0));
    return 0;
}""")  # fmt: skip


def test_a_removed_file_lives_while_open() -> None:
    same(T + r"""
int main() {
    put_("f", "alive"); int fd = open("f", O_RDWR); struct stat st; T(unlink("f"));
    fstat(fd, &st); T(st.st_nlink); T(read(fd, buf, 9)); T(pwrite(fd, "A", 1, 0));
    T(access("f", 0));
    char n[40]; sprintf(n, "/proc/self/fd/%d", fd); long k = readlink(n, buf, 999); buf[k] = 0;
    puts(strrchr(buf, '/')); int g = open(n, O_RDONLY); T(read(g, buf, 9)); buf[5] = 0; puts(buf);
    mkdir("d", 0755); int d = open("d", 0); chdir("d"); T(rmdir("../d"));
    T(syscall(SYS_getcwd, buf, 100)); T(syscall(SYS_getdents64, d, buf, 1000));
    T(open("x", O_CREAT, 0600)); T(mkdir("y", 0)); T(access(".", 0)); T(chdir(".."));
    T(fchdir(d)); fstat(d, &st); T(st.st_nlink);
    int t = open("/tmp", O_TMPFILE | O_RDWR, 0600); T(t > 0); write(t, "tmp", 3);
    sprintf(n, "/proc/self/fd/%d", t); chdir("/tmp"); char m[40];
    sprintf(m, "dfvmtmp%d", getpid()); T(linkat(AT_FDCWD, n, AT_FDCWD, m, AT_SYMLINK_FOLLOW));
    puts(get_(m)); T(unlink(m));
    return 0;
}""")  # fmt: skip


def test_attributes() -> None:
    same(T + r"""
static void st_(const char *n) { struct stat s; if (stat(n, &s)) { T(-1); return; }
printf("%o %ld %ld %ld.%09ld %ld.%09ld\n", s.st_mode, (long)s.st_size, (long)s.st_nlink,
        (long)s.st_atime, s.st_atim.tv_nsec,
        (long)s.st_mtime, s.st_mtim.tv_nsec);
fflush(stdout); }
static void mode_(const char *n) { struct stat s; stat(n, &s);
printf("%o %d %d\n", s.st_mode, s.st_uid, s.st_gid); fflush(stdout); }
int main() {
    put_("f", "1234"); symlink("f", "l"); int fd = open("f", O_RDWR);
    T(chmod("f", 0)); mode_("f"); T(chmod("f", 07777)); mode_("f"); T(fchmod(fd, 0644));
    T(chmod("l", 0600)); mode_("f"); T(chmod("no", 0)); T(fchmodat(AT_FDCWD, "f", 0111, 0));
    mode_("f"); T(fchmod(99, 0));
    T(chmod("f", 0644)); T(chown("f", 12, 34)); mode_("f"); T(chown("f", -1, 56)); mode_("f");
    T(lchown("l", 7, 7)); mode_("f"); T(fchown(fd, 0, 0)); chmod("f", 06755); T(chown("f", 1, 1));
    mode_("f"); T(chown("f", 0x80000000, 0xfffffffe)); mode_("f"); T(fchown(fd, -1, 1u << 31));
    mode_("f"); T(chown("f", 0, 0));
    struct timespec ts[2] = {{1000000000, 5}, {1100000000, 999999999}};
    T(utimensat(AT_FDCWD, "f", ts, 0)); st_("f"); ts[0].tv_nsec = UTIME_OMIT;
    ts[1] = (struct timespec){7, 8}; T(utimensat(AT_FDCWD, "f", ts, 0)); st_("f");
    ts[0].tv_nsec = 1000000000; T(utimensat(AT_FDCWD, "f", ts, 0));
    ts[0].tv_nsec = ts[1].tv_nsec = UTIME_OMIT; T(utimensat(AT_FDCWD, "nofile", ts, 0));
    ts[0].tv_nsec = 0; T(utimensat(AT_FDCWD, "nofile", ts, 0));
    T(futimens(fd, (struct timespec[]){{-5, 3}, {1, 1}})); st_("f");
    T(utimensat(AT_FDCWD, "l", (struct timespec[]){{9, 9}, {9, 9}}, AT_SYMLINK_NOFOLLOW));
    st_("f"); T(utimensat(AT_FDCWD, "f", 0, 12345));
    struct timeval tv[2] = {{50, 60}, {70, 1000000}}; T(utimes("f", tv)); tv[1].tv_usec = 80;
    T(utimes("f", tv)); st_("f"); T(utime("f", &(struct { long a, b; }){3, 4})); st_("f");
    T(utimensat(fd, 0, (struct timespec[]){{8, 8}, {8, 8}}, 0)); st_("f");
    struct stat a, b; stat("f", &a); T(utimensat(AT_FDCWD, "f", 0, 0)); stat("f", &b);
    T(b.st_mtime > a.st_mtime); T(b.st_ctime >= b.st_mtime);
    T(access("f", R_OK | W_OK)); T(access("f", X_OK)); T(access("f", 8)); T(access("no", F_OK));
    chmod("f", 0100); T(access("f", X_OK)); T(faccessat(AT_FDCWD, "f", 0, AT_SYMLINK_NOFOLLOW));
    T(syscall(SYS_faccessat2, AT_FDCWD, "f", 0, 0x8000));
    struct statx x; T(statx(AT_FDCWD, "f", 0, STATX_ALL, &x)); T(x.stx_mode); T(x.stx_size);
    T(x.stx_nlink); T((x.stx_mask & STATX_BASIC_STATS) == STATX_BASIC_STATS);
    T(x.stx_ino == b.st_ino); T(makedev(x.stx_dev_major, x.stx_dev_minor) == b.st_dev);
    T(statx(AT_FDCWD, "f", 0x10000, 0, &x)); T(statx(AT_FDCWD, "f", 0, 0x80000000, &x));
    T(statx(fd, "", AT_EMPTY_PATH, 0, &x)); T(statx(AT_FDCWD, "f", 0x6000, 0, &x));
    T(fstatat(AT_FDCWD, "f", &a, 0x10000)); T(fstatat(AT_FDCWD, "l", &a, AT_SYMLINK_NOFOLLOW));
    T(a.st_mode); T(stat("/dev/null", &a)); T(a.st_rdev); T(a.st_mode);
    return 0;
}""")  # fmt: skip


def test_positions_and_sizes() -> None:
    same(T + r"""
int main() {
    int fd = open("f", O_RDWR | O_CREAT, 0644); struct stat st; T(write(fd, "0123456789", 10));
    T(lseek(fd, 4, SEEK_SET)); T(lseek(fd, -2, SEEK_CUR)); T(lseek(fd, -3, SEEK_CUR));
    T(lseek(fd, 100, SEEK_END)); T(write(fd, "x", 1)); fstat(fd, &st); T(st.st_size);
    T(lseek(fd, -1, SEEK_SET)); T(lseek(fd, 0, 9)); T(lseek(fd, LONG_MAX, SEEK_CUR));
    T(lseek(fd, 0, SEEK_DATA)); T(lseek(fd, 111, SEEK_DATA)); T(lseek(fd, 111, SEEK_HOLE));
    T(lseek(fd, -1, SEEK_HOLE)); T(lseek(fd, 5, SEEK_HOLE));
    T(pread(fd, buf, 5, 8)); T(buf[0] * 256 + buf[2]); T(pread(fd, buf, 5, 111));
    T(pread(fd, buf, 5, -1)); T(pwrite(fd, "ab", 2, 0)); T(pwrite(fd, "ab", 2, -1));
    T(pwrite(fd, "z", 1, 200)); T(lseek(fd, 0, SEEK_CUR)); T(lseek(fd, 0, SEEK_SET));
    T(read(fd, buf, 1000));
    T(ftruncate(fd, 5)); T(lseek(fd, 0, SEEK_END)); T(read(fd, buf, 5)); T(ftruncate(fd, 10000));
    T(pread(fd, buf, 3, 9999)); T(buf[0]); T(ftruncate(fd, -1)); T(truncate("f", 3));
    T(truncate("nofile", 3)); T(truncate(".", 3)); T(truncate("f", -1)); fstat(fd, &st);
    T(st.st_size); int ro = open("f", O_RDONLY); T(ftruncate(ro, 1)); T(write(ro, "x", 1));
    int wo = open("f", O_WRONLY); T(read(wo, buf, 1)); T(pread(wo, buf, 1, 0));
    int ap = open("f", O_RDWR | O_APPEND); T(lseek(ap, 0, SEEK_SET)); T(write(ap, "END", 3));
    T(lseek(ap, 0, SEEK_CUR)); T(pwrite(ap, "!", 1, 0)); puts(get_("f"));
    T(lseek(ap, 0, SEEK_CUR));
    struct iovec v[3] = {{"one", 3}, {"", 0}, {"three", 5}}; T(writev(ap, v, 3));
    T(lseek(fd, 0, 0)); v[0].iov_base = buf; v[1] = (struct iovec){buf + 10, 2};
    v[2] = (struct iovec){buf + 20, 900}; T(readv(fd, v, 3)); T(buf[10]);
    T(pwritev(fd, v, 1, 500)); T(preadv(fd, v, 3, 498)); T(preadv(fd, v, 3, -1));
    T(syscall(SYS_preadv2, fd, v, 1, -1L, 0, 0));
    T(syscall(SYS_preadv2, fd, v, 1, 0L, 0, 0x40000000));
    T(syscall(SYS_pwritev2, fd, v, 1, 0L, 0, 16)); fstat(fd, &st); T(st.st_size);
    T(fallocate(fd, 0, 0, 5000)); fstat(fd, &st); T(st.st_size);
    T(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 90000)); fstat(fd, &st); T(st.st_size);
    T(fallocate(fd, 3, 0, 4096)); T(pread(fd, buf, 10, 0)); T(buf[0]); T(fallocate(fd, 0, -1, 1));
    T(fallocate(fd, 0, 0, 0)); T(fallocate(fd, 2, 0, 1)); T(fallocate(ro, 0, 0, 1));
    T(posix_fadvise(fd, 0, 0, 99)); T(posix_fadvise(fd, 0, 0, 3)); T(fsync(fd)); T(fdatasync(fd));
    T(fsync(open(".", 0))); T(syncfs(fd)); T(lseek(open("/dev/null", 0), 55, SEEK_SET));
    T(lseek(open("/dev/zero", 0), 55, SEEK_SET));
    return 0;
}""")  # fmt: skip


def test_rlimit_fsize() -> None:
    same(T + r"""
static int got; static void h(int s) { got++; }
int main() {
    signal(SIGXFSZ, h); struct rlimit rl = {1000, 1000}; setrlimit(RLIMIT_FSIZE, &rl);
    int fd = open("f", O_RDWR | O_CREAT, 0644);
    T(write(fd, buf, 600)); T(write(fd, buf, 600)); T(got); T(write(fd, buf, 1)); T(got);
    T(pwrite(fd, "x", 1, 999)); T(pwrite(fd, "x", 1, 1000)); T(got); T(ftruncate(fd, 1001));
    T(got); T(ftruncate(fd, 1000)); T(truncate("f", 2000)); T(got); T(fallocate(fd, 0, 0, 1001));
    T(got); T(write(fd, buf, 0));
    int p[2]; pipe(p); T(write(p[1], buf, 2000)); signal(SIGXFSZ, SIG_IGN); T(write(fd, buf, 1));
    signal(SIGXFSZ, SIG_DFL); int st; if (!fork()) { write(fd, buf, 1); _exit(0); } wait(&st);
    T(st & 0x7f);
    return 0;
}""")  # fmt: skip


def test_directories() -> None:
    same(T + r"""
struct d64 { uint64_t ino; int64_t off; unsigned short len; unsigned char type; char name[]; };
int main() {
    mkdir("d", 0755); char n[20]; for (int i = 0; i < 300; i++) { sprintf(n, "d/f%03d", i);
    close(open(n, O_CREAT, 0644)); }
    mkdir("d/sub", 0755); symlink("x", "d/link"); mkfifo("d/fifo", 0600);
    DIR *d = opendir("d"); struct dirent *e;
    int count = 0, types[16] = {0}, seen[300] = {0}, bad = 0; long at = 0;
    while ((e = readdir(d))) {
        types[e->d_type]++; if (sscanf(e->d_name, "f%d", &count) == 1) { seen[count]++;
        if (count % 3 == 0) { sprintf(n, "d/f%03d", count); unlink(n); } }
        sprintf(n, "d/new%d", count); if (count % 50 == 1) close(open(n, O_CREAT, 0644));
    }
    for (int i = 0; i < 300; i++) bad += seen[i] != 1; T(bad); T(types[DT_DIR]); T(types[DT_LNK]);
    T(types[DT_FIFO]);
    rewinddir(d); count = 0; while ((e = readdir(d))) { count++; if (count == 20) at = telldir(d);
    } T(count);
    seekdir(d, at); int k = 0; while (readdir(d)) k++; T(k);
    int fd = open("d", O_RDONLY); T(syscall(SYS_getdents64, fd, buf, 10));
    long r = syscall(SYS_getdents64, fd, buf, 100); struct d64 *x = (void *)buf;
    T(r > 24 && r <= 100); T(x->len % 8); T(lseek(fd, 0, SEEK_CUR) != 0);
    T(lseek(fd, 0, SEEK_SET)); T(lseek(fd, 0, SEEK_CUR)); T(read(fd, buf, 10));
    T(write(fd, buf, 1)); T(syscall(SYS_getdents64, fd, 0, 1000));
    T(syscall(SYS_getdents64, open("d/f001", 0), buf, 1000)); T(pread(fd, buf, 1, 0));
    T(fchmod(fd, 0700));
    count = 0;
    while ((r = syscall(SYS_getdents, fd, buf, 500)) > 0)
        for (long o = 0; o < r; o += *(unsigned short *)(buf + o + 16)) {
    count++; bad += buf[o + *(unsigned short *)(buf + o + 16) - 1] == 0; } T(count); T(bad);
    return 0;
}""")  # fmt: skip


def test_working_directory_and_root() -> None:
    same(T + r"""
int main() {
    mkdir("a", 0755); mkdir("a/b", 0755); put_("a/f", "f"); symlink("a/b", "l"); char here[200];
    getcwd(here, 200); T(chdir("l")); getcwd(buf, 1000); puts(buf + strlen(here)); T(chdir(".."));
    getcwd(buf, 1000); puts(buf + strlen(here)); T(chdir("f")); T(chdir("no")); T(chdir(""));
    int d = open(".", O_RDONLY); T(chdir("/")); T(syscall(SYS_getcwd, buf, 1));
    T(syscall(SYS_getcwd, buf, 2)); T(syscall(SYS_getcwd, buf, 0)); T(fchdir(d));
    T(access("f", 0)); T(fchdir(0)); T(fchdir(99)); T(rename("../a", "../moved"));
    getcwd(buf, 1000); puts(buf + strlen(here));
    T(chroot("nofile")); T(chroot("f")); if (!fork()) { T(chroot(".")); getcwd(buf, 1000);
    puts(buf); T(chdir("/")); getcwd(buf, 1000); puts(buf); T(access("/b", 0)); T(chdir(".."));
    getcwd(buf, 1000); puts(buf); T(access("../../../f", 0)); T(open("/etc/passwd", 0));
    setuid(1000); T(chroot("/")); _exit(0); } wait(0); T(access("/etc/passwd", 0));
    if (!fork()) { chdir(here); chroot("moved/b"); T(syscall(SYS_getcwd, buf, 1000)); _exit(0); }
    wait(0);
    T(umask(0)); T(umask(01777)); T(umask(022));
    return 0;
}""")  # fmt: skip


def test_copies_in_the_kernel() -> None:
    same(T + r"""
int main() {
    for (int i = 0; i < 200000; i++) buf[i] = i * 7;
    int a = open("a", O_RDWR | O_CREAT, 0644), b = open("b", O_RDWR | O_CREAT, 0644), p[2];
    write(a, buf, 200000); pipe(p); off_t off = 100; T(lseek(a, 0, SEEK_SET));
    T(sendfile(b, a, &off, 1000)); T(off); T(lseek(a, 0, SEEK_CUR)); T(sendfile(b, a, 0, 300000));
    T(lseek(a, 0, SEEK_CUR)); T(lseek(b, 0, SEEK_CUR)); T(sendfile(p[1], a, &off, 500));
    T(read(p[0], buf + 300000, 1000)); T(memcmp(buf + 300000, buf + 1100, 500));
    T(sendfile(b, p[0], 0, 10)); T(sendfile(99, a, 0, 10)); off = -1; T(sendfile(b, a, &off, 10));
    T(sendfile(b, a, 0, 10)); T(sendfile(a, open("a", O_WRONLY), 0, 1));
    T(sendfile(open("a", 0), b, 0, 1));
    int c = open("c", O_RDWR | O_CREAT, 0644); loff_t i = 5, o = 10;
    T(copy_file_range(a, &i, c, &o, 1000, 0)); T(i); T(o); T(lseek(c, 0, SEEK_END));
    T(copy_file_range(a, &i, c, 0, 1 << 30, 0)); T(lseek(c, 0, SEEK_CUR));
    T(copy_file_range(a, &i, c, 0, 10, 0)); T(copy_file_range(a, &i, c, 0, 10, 1)); i = 0; o = 5;
    T(copy_file_range(a, &i, a, &o, 10, 0)); o = 10; T(copy_file_range(a, &i, a, &o, 10, 0));
    T(copy_file_range(p[0], 0, c, 0, 10, 0)); T(copy_file_range(open(".", 0), 0, c, 0, 10, 0));
    T(copy_file_range(a, 0, open("c", O_WRONLY | O_APPEND), 0, 10, 0));
    T(copy_file_range(a, 0, open("c", 0), 0, 10, 0));
    int m = memfd_create("name", 1); T(m > 0); T(write(m, "mem", 3)); T(pread(m, buf, 9, 0));
    T(fcntl(m, F_GETFD)); struct stat st; fstat(m, &st); T(st.st_mode); T(st.st_nlink);
    char n[40]; sprintf(n, "/proc/self/fd/%d", m); memset(buf, 0, 90); readlink(n, buf, 90);
    puts(buf); T(memfd_create("x", 512)); char *q = mmap(0, 4096, 3, MAP_SHARED, m, 0); T(q[1]);
    q[0] = 'M'; T(pread(m, buf, 1, 0)); T(buf[0]);
    return 0;
}""")  # fmt: skip


def test_holes() -> None:
    """SEEK_DATA and SEEK_HOLE, by pages: what was written is data, what was punched out is not."""
    same(T + r"""
int main() {
    int fd = memfd_create("sparse", 0); char *m;
    T(lseek(fd, 0, SEEK_DATA)); pwrite(fd, "x", 1, 24576); pwrite(fd, "y", 1, 163840);
    T(lseek(fd, 0, SEEK_DATA)); T(lseek(fd, 0, SEEK_HOLE)); T(lseek(fd, 24576, SEEK_HOLE));
    T(lseek(fd, 30000, SEEK_DATA)); T(lseek(fd, 163841, SEEK_DATA));
    T(lseek(fd, 163840, SEEK_HOLE)); T(lseek(fd, 163841, SEEK_HOLE)); T(lseek(fd, -1, SEEK_DATA));
    T(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 24576, 4096));
    T(lseek(fd, 0, SEEK_DATA)); T(ftruncate(fd, 1L << 40)); T(lseek(fd, 1L << 39, SEEK_DATA));
    T(lseek(fd, 1L << 39, SEEK_HOLE)); m = mmap(0, 8192, 3, MAP_SHARED, fd, 1L << 38); m[5000] = 1;
    T(lseek(fd, 1L << 20, SEEK_DATA)); T(lseek(fd, (1L << 38) + 4096, SEEK_HOLE));
    T(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1L << 40));
    T(lseek(fd, 0, SEEK_DATA)); T(m[5000]);
    int p[2]; pipe(p); T(lseek(p[0], 0, 9)); T(lseek(p[0], 0, SEEK_DATA));
    int s = open("/proc/self/stat", 0); T(lseek(s, 0, SEEK_END)); T(lseek(s, 3, SEEK_SET));
    return 0;
}""")  # fmt: skip


def test_ends_of_the_offsets() -> None:
    same(T + r"""
int main() {
    int fd = memfd_create("big", 0); struct iovec iv = {buf, 5};
    T(pwrite(fd, "end", 3, (2L << 30) - 2)); T(pwrite(fd, "4g", 2, 4L << 30));
    T(pread(fd, buf, 10, (4L << 30) - 1)); T(buf[0]); T(buf[1]); T(lseek(fd, 0, SEEK_END));
    T(pwrite(fd, "x", 1, LONG_MAX)); T(pread(fd, buf, 10, LONG_MAX - 3)); T(pread(fd, buf, 1, -1));
    T(pwritev2(fd, &iv, 1, -1, 0)); T(lseek(fd, 7, SEEK_SET));
    T(pwritev2(fd, &iv, 1, 0, RWF_APPEND)); T(lseek(fd, 0, SEEK_CUR));
    T(pwritev2(fd, &iv, 1, -1, RWF_APPEND)); T(lseek(fd, 0, SEEK_CUR));
    T(pwritev2(fd, &iv, 1, 0, 1 << 20)); T(preadv2(fd, &iv, 1, 0, RWF_DSYNC));
    char *top = mmap(0, 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); munmap(top + 4096, 4096);
    mmap(top + 4096, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    T(read(open("/dev/zero", 0), top + 4091, 10)); T(read(open("/dev/urandom", 0), top + 4091, 10));
    T(read(open("/dev/zero", 0), top + 4096, 10));
    return 0;
}""")  # fmt: skip


def test_times_of_access() -> None:
    """As with relatime: reading moves a time that is older than the last change."""
    same(T + r"""
#define OLD(n) do { struct timespec o_[2] = {{100, 0}, {100, 0}}; utimensat(AT_FDCWD, n, o_, \
    AT_SYMLINK_NOFOLLOW); } while (0)
#define SHOW(n) do { struct stat s_; lstat(n, &s_); printf("%s: atime %d mtime %d\n", n, \
    s_.st_atime > 100, s_.st_mtime > 100); } while (0)
int main() {
    put_("f", "abc"); int fd = open("f", O_RDWR); OLD("f"); read(fd, buf, 1); SHOW("f"); OLD("f");
    pread(fd, buf, 1, 0); SHOW("f"); OLD("f"); read(open("f", O_NOATIME), buf, 1); SHOW("f");
    OLD("f"); char *m = mmap(0, 4096, 3, MAP_SHARED, fd, 0); SHOW("f"); OLD("f");
    pwrite(fd, "x", 1, 0); SHOW("f"); mkdir("d", 0755); OLD("d"); DIR *d = opendir("d"); SHOW("d");
    readdir(d); SHOW("d"); symlink("to", "l"); OLD("l"); readlink("l", buf, 9); SHOW("l");
    mkfifo("p", 0600); OLD("p"); int p = open("p", O_RDWR); SHOW("p"); write(p, "ab", 2); SHOW("p");
    OLD("p"); read(p, buf, 1); SHOW("p"); OLD("f"); sendfile(p, fd, 0, 2); SHOW("f");
    return 0;
}""")  # fmt: skip


def test_rights_of_others() -> None:
    """What only shows to an unprivileged user; nothing does when the tests run as one."""
    same(T + r"""
static long mode_(const char *n) { struct stat st; lstat(n, &st); return st.st_mode; }
int main() {
    if (geteuid()) return 0;
    chmod(".", 0777); umask(0); mkdir("g", 0777); chown("g", 5, 6); chmod("g", 02777);
    put_("s", "x"); chmod("s", 0600); put_("r", "x"); put_("u", "x"); chmod("u", 04777);
    put_("w", "x"); chmod("w", 02766); put_("m", "x"); chmod("m", 0666);
    T(chown("m", 0xfffffffe, 0x80000000)); struct stat st; stat("m", &st); T(st.st_uid);
    T(st.st_gid); int r = open("r", O_RDWR), p[2];
    setgroups(0, 0); setresgid(77, 77, 77); setresuid(77, 77, 77);
    T(open("g/f", O_CREAT | O_RDWR, 06775)); T(mode_("g/f")); T(mkdir("g/d", 0755));
    T(mode_("g/d")); T(open("g/n", O_CREAT | O_RDWR, 02765)); T(mode_("g/n"));
    T(mknod("g/p", S_IFIFO | 06777, 0)); T(mode_("g/p")); T(link("s", "h1"));
    T(link("u", "h2")); T(link("m", "h3"));
    T(chown("r", -1, -1)); T(chown("r", 77, -1)); T(chown("u", -1, -1)); T(fchown(r, -1, -1));
    T(write(open("w", 1), "y", 1)); T(mode_("w")); T(fcntl(r, F_SETFL, O_NOATIME));
    pipe(p); fstat(p[0], &st); T(st.st_uid);
    T(fchown(p[0], 0, -1)); T(fchmod(p[0], 0640)); fstat(p[1], &st); T(st.st_mode);
    return 0;
}""")  # fmt: skip


def test_files_without_a_name_have_attributes() -> None:
    same(T + r"""
int main() {
    int p[2], e = eventfd(0, 0); struct stat st; struct statfs sf; pipe(p);
    T(fchmod(p[0], 0640)); fstat(p[1], &st); T(st.st_mode); T(futimens(p[0], 0));
    struct timespec ts[2] = {{5, 6}, {7, 8}}; T(futimens(p[1], ts)); fstat(p[0], &st);
    T(st.st_atime); T(st.st_mtime); T(fstatfs(p[0], &sf)); T(sf.f_type); T(sf.f_namelen);
    T(fstatfs(e, &sf)); T(sf.f_type); T(posix_fadvise(p[0], 0, 0, 9)); T(posix_fadvise(e, 0, 0, 1));
    T(fallocate(p[1], 0, 0, 1)); T(fallocate(e, 0, 0, 1)); T(sync_file_range(99, 0, 1, 9));
    T(sync_file_range(open("/dev/null", 1), 0, 1, 1)); mkfifo("f", 0600); T(open("f", 3));
    T(open("f", O_RDWR | O_DIRECT)); T(open("/dev/null", O_RDWR | O_DIRECT));
    T(fcntl(open("/dev/null", 2), F_SETFL, O_DIRECT)); T(fcntl(e, F_SETFL, O_DIRECT));
    char n[40]; int t = open(".", O_TMPFILE | O_RDWR | O_EXCL, 0600);
    sprintf(n, "/proc/self/fd/%d", t); T(linkat(AT_FDCWD, n, AT_FDCWD, "t", AT_SYMLINK_FOLLOW));
    return 0;
}""")  # fmt: skip


def test_restricted_paths() -> None:
    same(T + r"""
#include <linux/openat2.h>
static int at(int d, const char *path, long flags, long resolve) {
    struct open_how how = {flags, flags & O_CREAT ? 0600 : 0, resolve};
    int fd = syscall(437, d, path, &how, sizeof how);
    if (fd >= 0) close(fd);
    return fd < 0 ? -1 : 0;
}
#define C AT_FDCWD
int main() {
    put_("f", "1"); mkdir("root", 0755); put_("root/in", "1"); symlink("/in", "root/abs");
    symlink("../../in", "root/up"); symlink("in", "root/near"); symlink("root", "dir");
    symlink("none", "root/dang"); int r = open("root", O_PATH);
    T(at(C, "f", 0, RESOLVE_BENEATH)); T(at(C, "../x", 0, RESOLVE_BENEATH));
    T(at(C, "/etc", 0, RESOLVE_BENEATH)); T(at(r, "abs", 0, RESOLVE_BENEATH));
    T(at(r, "up", 0, RESOLVE_BENEATH)); T(at(r, "near", 0, RESOLVE_BENEATH));
    T(at(r, "./in", 0, RESOLVE_BENEATH)); T(at(r, "..", 0, RESOLVE_BENEATH));
    T(at(r, "in/../in", 0, RESOLVE_BENEATH)); T(at(r, "new", O_CREAT, RESOLVE_BENEATH));
    T(at(r, "../new", O_CREAT, RESOLVE_BENEATH)); T(at(r, "dang", O_CREAT, RESOLVE_BENEATH));
    T(access("root/none", 0)); T(at(r, "/in", 0, RESOLVE_IN_ROOT));
    T(at(r, "abs", 0, RESOLVE_IN_ROOT));
    T(at(r, "up", 0, RESOLVE_IN_ROOT)); T(at(r, "../../../in", 0, RESOLVE_IN_ROOT));
    T(at(r, "/../f", 0, RESOLVE_IN_ROOT)); T(at(C, "dir/in", 0, RESOLVE_NO_SYMLINKS));
    T(at(C, "dir", O_PATH | O_NOFOLLOW, RESOLVE_NO_SYMLINKS));
    T(at(C, "dir/", 0, RESOLVE_NO_SYMLINKS));
    T(at(C, "dir/near", 0, RESOLVE_NO_MAGICLINKS));
    T(at(C, "/proc/self/exe", 0, RESOLVE_NO_MAGICLINKS));
    T(at(C, "/proc/self/exe", 0, RESOLVE_BENEATH)); T(at(C, "/proc/self/stat", 0, RESOLVE_NO_XDEV));
    T(at(C, "f", 0, RESOLVE_NO_XDEV)); T(at(C, "dir/../f", 0, RESOLVE_NO_XDEV));
    T(at(r, "in", 0, RESOLVE_BENEATH | RESOLVE_IN_ROOT)); T(at(r, "in", 0, 0x100));
    T(at(r, "in", O_TRUNC | O_RDWR, 0x20)); T(at(r, "in/", 0, RESOLVE_BENEATH));
    T(at(r, "", 0, RESOLVE_BENEATH)); T(at(99, "in", 0, RESOLVE_BENEATH)); T(at(r, "in/x", 0, 8));
    T(at(r, ".", O_DIRECTORY, RESOLVE_BENEATH)); T(at(r, "new", O_CREAT | O_EXCL, RESOLVE_BENEATH));
    return 0;
}""")  # fmt: skip


def test_a_working_directory_too_deep_to_name() -> None:
    same(T + r"""
int main() {
    int n = 0; static char b[16384];
    while (n < 300 && !mkdir("directory_____", 0755) && !chdir("directory_____")) n++;
    T(n); T(syscall(SYS_getcwd, b, sizeof b)); T(syscall(SYS_getcwd, b, 10));
    T(open("f", O_CREAT | O_RDWR, 0600) >= 0); T(unlink("f"));
    while (n && !chdir("..") && !rmdir("directory_____")) n--;
    T(n); T(syscall(SYS_getcwd, b, 3)); return 0;
}""")  # fmt: skip


def test_a_file_is_called_by_a_name_it_still_has() -> None:
    same(T + r"""
static void say(int f) {
    char p[40]; sprintf(p, "/proc/self/fd/%d", f); memset(buf, 0, 200);
    readlink(p, buf, 199); puts(strstr(buf, "XXXXXX") ? buf : buf + strlen("/tmp/dfvmXXXXXX"));
}
int main() {
    put_("x", ""); link("x", "y"); unlink("x"); int f = open("y", 0); say(f); close(f);
    mkdir("a", 0755); link("y", "a/z"); f = open("a/z", 0); say(f); unlink("a/z"); say(f);
    close(f); f = open("y", 0); say(f); rmdir("a"); say(f); return 0;
}""")  # fmt: skip


def test_how_much_of_a_file_is_in_memory() -> None:
    same(T + r"""
static struct { unsigned long off, len; } r; static unsigned long cs[5]; static int f;
static void c(unsigned long off, unsigned long len) {
    memset(cs, 9, sizeof cs); r.off = off, r.len = len; T(syscall(451, f, &r, cs, 0));
    for (int i = 0; i < 3; i++) printf(" %lx", cs[i]); puts("");
}
int main() {
    f = open("f", O_RDWR | O_CREAT, 0644); c(0, 0); write(f, buf, 50000); c(0, 0); c(0, 5000);
    c(4095, 2); c(100000, 0); c(-1, -1); fsync(f); c(0, 0); T(syscall(451, f, &r, cs, 1));
    T(syscall(451, 99, &r, cs, 0)); T(syscall(451, f, 8, cs, 0)); T(syscall(451, f, &r, 8, 0));
    f = open("/proc/self/stat", O_RDONLY); c(0, 0); f = open("/", O_RDONLY); c(1 << 20, 0);
    f = open("/", O_PATH); c(0, 0); int p[2]; pipe(p); f = p[0]; c(0, 0); return 0;
}""")  # fmt: skip


def test_which_mount_a_file_is_in() -> None:
    """statx, /proc/self/fdinfo and mountinfo agree."""
    same(T + r"""
#include <linux/stat.h>
static long id(int fd, const char *path, int flags, int *root) {
    static struct { unsigned mask, blk; unsigned long attr, n[2], ino, size, blocks, attrs;
                    char times[64]; unsigned dev[4]; unsigned long mnt; char rest[104]; } x;
    if (syscall(SYS_statx, fd, path, flags, 0x17ff, &x) || !(x.mask & 0x1000)) return -1;
    *root = x.attrs & 0x2000 ? !!(x.attr & 0x2000) : -1;
    return x.mnt;
}
int main() {
    put_("f", ""); int f = open("f", O_RDONLY), root, same = 0, shown = 0; char p[50], line[300];
    long here = id(f, "", AT_EMPTY_PATH, &root), proc = id(AT_FDCWD, "/proc", 0, &root);
    printf("%d %d\n", here > 0 && proc > 0 && here != proc, root);
    T(id(AT_FDCWD, "f", 0, &root) == here); T(root); T(id(AT_FDCWD, "/", 0, &root) > 0); T(root);
    T(id(AT_FDCWD, "/proc/self/stat", 0, &root) == proc); T(root);
    sprintf(p, "/proc/self/fdinfo/%d", f); char *l = strstr(get_(p), "mnt_id:");
    T(atol(l + 7) == here);
    for (FILE *m = fopen("/proc/self/mountinfo", "r"); fgets(line, 300, m);)
        if (atol(line) == proc) shown += strstr(line, " /proc ") != 0;
    T(shown); return 0;
}""")  # fmt: skip


def test_birth_times() -> None:
    """A file's own time of birth stays what it was, whatever happens to it; that of a host's file
    is not known, and nothing else is taken for it."""
    program = build(r"""
    int main(void) {
        char dir[] = "/tmp/birthXXXXXX";
        chdir(mkdtemp(dir));
        struct statx x, y;
        int fd = creat("f", 0600);
        statx(fd, "", AT_EMPTY_PATH, STATX_ALL, &x);
        write(fd, "x", 1), fchmod(fd, 0644);
        utimensat(AT_FDCWD, "f", (struct timespec[]){{1, 2}, {3, 4}}, 0);
        statx(fd, "", AT_EMPTY_PATH, STATX_ALL, &y);
        printf("%d %d\n", !!(y.stx_mask & STATX_BTIME),
               !memcmp(&x.stx_btime, &y.stx_btime, sizeof x.stx_btime));
        statx(AT_FDCWD, "/proc/self/exe", 0, STATX_ALL, &x);
        printf("%d %lld\n", !!(x.stx_mask & STATX_BTIME), (long long)x.stx_btime.tv_sec);
        return 0;
    }
    """)
    assert by_guest(program)[1] == b"1 1\n0 0\n"


def test_a_hole_in_a_hole_takes_no_room() -> None:
    same(r"""
    int main(void) {
        char dir[] = "/tmp/holeXXXXXX";
        chdir(mkdtemp(dir));
        struct stat st;
        int fd = open("f", O_RDWR | O_CREAT, 0600);
        ftruncate(fd, 131073);
        for (int i = 0; i < 3; i++) {
            static const long holes[][2] = {{0, 131073}, {5000, 100}, {4000, 20000}};
            int r = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, holes[i][0],
                              holes[i][1]);
            fsync(fd), fstat(fd, &st);
            printf("%d %ld\n", r, (long)st.st_blocks);
        }
        char c = 'x', got[3];
        pwrite(fd, &c, 1, 5000), pwrite(fd, &c, 1, 6000), pwrite(fd, &c, 1, 131072), fsync(fd);
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5500, 131073 - 5500);
        for (int i = 0; i < 3; i++) pread(fd, got + i, 1, (int[]){5000, 6000, 131072}[i]);
        printf("%d %d %d\n", got[0], got[1], got[2]);
        return 0;
    }
    """)


def test_files_that_can_not_share_their_blocks() -> None:
    same(T + r"""
int main() {
    struct { long fd; unsigned long off, len, to; } r = {0}; int p[2]; pipe(p);
    put_("a", "abc"); int a = open("a", O_RDONLY), b = open("b", O_RDWR | O_CREAT, 0644);
    int w = open("a", O_WRONLY), d = open(".", O_RDONLY), app = open("b", O_RDWR | O_APPEND);
    T(ioctl(b, 0x40049409, a)); T(ioctl(b, 0x40049409, 999)); T(ioctl(a, 0x40049409, b));
    T(ioctl(b, 0x40049409, w)); T(ioctl(b, 0x40049409, d)); T(ioctl(app, 0x40049409, a));
    T(ioctl(b, 0x40049409, p[0])); r.fd = a; T(ioctl(b, 0x4020940d, &r));
    T(ioctl(b, 0x4020940d, 8)); r.fd = -1; T(ioctl(b, 0x4020940d, &r));
    return 0;
}""")  # fmt: skip
