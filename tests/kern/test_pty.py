"""Pseudo terminals made by the guest, and the line discipline. Each program runs on the host too,
where the terminal is Linux's own.
"""

from __future__ import annotations

from file_util import T
from guest_util import same

P = (
    T
    + r"""
#include <termios.h>
static int m, s;
static void open_(void) {
    m = posix_openpt(O_RDWR | O_NOCTTY); if (m < 0 || grantpt(m) || unlockpt(m)) { T(-1); exit(1);
    }
    s = open(ptsname(m), O_RDWR | O_NOCTTY); if (s < 0) { T(-1); exit(1); }
}
/* Linux brings what was typed to the line discipline, and what that echoes to the master, in the
   background. Whoever polls and finds nothing waits for that (n_tty_poll, tty_buffer_flush_work),
   so first the one end is polled and then the other. */
static void settle(void) {
    struct pollfd p = {s, POLLIN}, q = {m, POLLIN};
    poll(&p, 1, 0); poll(&q, 1, 0);
}
/* What can be read now: a line of the slave's, all of the master's. */
static void show(const char *what, int fd) {
    settle(); fcntl(fd, F_SETFL, O_NONBLOCK);
    long n = read(fd, buf, 2000), more;
    while (fd == m && n > 0 && (more = read(fd, buf + n, 2000 - n)) > 0) n += more;
    printf("%s: %ld [", what, n < 0 ? -errno : n);
    for (long i = 0; i < n; i++)
        if (buf[i] >= 32 && buf[i] < 127) putchar(buf[i]); else printf("\\%03o", buf[i] & 255);
    puts("]"); fflush(stdout); fcntl(fd, F_SETFL, 0);
}
static void type(const char *t) {
    write(m, t, strlen(t)); show("  shown", m); show("  read", s);
}
static struct termios t_;
#define CHANGE(field) static void field(int off, int on) { \
    tcgetattr(s, &t_); t_.c_##field = (t_.c_##field & ~off) | on; tcsetattr(s, TCSANOW, &t_); }
CHANGE(iflag) CHANGE(oflag) CHANGE(lflag)
static void cc(int i, int v) { tcgetattr(s, &t_); t_.c_cc[i] = v; tcsetattr(s, TCSANOW, &t_); }
"""
)


def test_a_pair() -> None:
    same(P + r"""
int main() {
    m = open("/dev/ptmx", O_RDWR | O_NOCTTY); char *n = ptsname(m); T(strncmp(n, "/dev/pts/", 9));
    int lk; T(ioctl(m, TIOCGPTLCK, &lk)); T(lk); T(open(n, O_RDWR)); T(unlockpt(m));
    s = open(n, O_RDWR | O_NOCTTY); T(s); T(isatty(s)); T(isatty(m)); struct stat st;
    T(fstat(s, &st)); T(st.st_mode & S_IFMT); T(major(st.st_rdev)); T(strcmp(ttyname(s), n));
    struct termios t; T(tcgetattr(s, &t)); T(t.c_iflag); T(t.c_oflag); T(t.c_cflag); T(t.c_lflag);
    for (int i = 0; i < 17; i++) printf("%d ", t.c_cc[i]); puts("");
    struct winsize w = {25, 81, 3, 4}, v; T(ioctl(s, TIOCSWINSZ, &w));
    T(ioctl(m, TIOCGWINSZ, &v));
    T(v.ws_row * 1000 + v.ws_col); T(lseek(s, 0, SEEK_CUR)); T(pread(s, buf, 1, 0));
    T(write(m, "hello\n", 6)); T(read(s, buf, 100)); T(read(m, buf, 100));
    T(write(s, "out\n", 4)); settle();
    T(read(m, buf, 100)); T(tcgetpgrp(s)); T(tcgetpgrp(m)); T(tcgetsid(m));
    struct pollfd p[2] = {{m, POLLIN | POLLOUT}, {s, POLLIN | POLLOUT}}; T(poll(p, 2, 0));
    T(p[0].revents); T(p[1].revents); write(m, "x", 1); settle(); T(poll(p, 2, 0));
    T(p[0].revents);
    T(p[1].revents); write(m, "\n", 1); settle(); T(poll(p, 2, 0)); T(p[1].revents);
    T(ioctl(s, FIONREAD, &lk));
    T(lk); T(tcflush(s, TCIFLUSH)); T(ioctl(s, FIONREAD, &lk)); T(lk); close(s);
    read(m, buf, 100); T(poll(p, 1, 0)); T(p[0].revents); T(read(m, buf, 1));
    s = open(n, O_RDWR | O_NOCTTY);
    T(poll(p, 1, 0)); T(p[0].revents); close(m); p[1].fd = s; T(poll(p + 1, 1, 0));
    T(p[1].revents);
    T(read(s, buf, 1)); T(write(s, "x", 1)); T(tcgetattr(s, &t)); T(open(n, O_RDWR));
    T(access(n, 0));
    return 0;
}""")  # fmt: skip


def test_line_editing() -> None:
    same(P + r"""
int main() {
    open_();
    type("hello\n"); type("helo\177lo\n"); type("abc\025def\n");
    type("one two  three\027\027X\n");
    type("\t\ta\177\177\n"); type("a\tb\177\177\177c\n"); type("x\001y\177\177z\n");
    type("abc\004"); type("\004");
    type("part"); type("ial\n"); type("two\nlines\n"); show("  more", s);
    type("lit\026\003\026\177eral\n");
    type("rep\022rint\n"); type("\177\177\n"); type("cr\r"); type("a.b-c_d \027!\n");
    type("12345\n");
    write(m, "long line to be read in parts\n", 30); settle(); T(read(s, buf, 5));
    T(read(s, buf, 5)); show("rest", s);
    lflag(ECHO, 0); show("m", m); type("quiet\n"); lflag(0, ECHONL); type("nl\n");
    lflag(ECHONL, ECHO); lflag(ECHOCTL, 0); type("a\001b\n");
    lflag(ECHOKE, ECHOCTL); type("kill\025all\n"); lflag(ECHOE, 0); type("era\177se\n");
    lflag(IEXTEN, ECHOE); type("x\026\027y\n");
    cc(VEOL, '!'); type("stop!go\n"); show("  more", s); cc(VERASE, '#'); type("ab#c\177\n");
    iflag(0, INLCR); type("x\n"); type("\r"); iflag(ICRNL | INLCR, IGNCR); type("a\rb\n");
    iflag(IGNCR, ISTRIP); type("\341\n");
    iflag(ISTRIP, IUTF8); type("\303\251x\177\177e\n");
    return 0;
}""")  # fmt: skip


def test_output() -> None:
    same(P + r"""
static void print(const char *t) { write(s, t, strlen(t)); show("shown", m); }
int main() {
    open_();
    print("a\nb\r\tc\b\n"); oflag(0, XTABS); print("a\tbc\td\n\t|\b\t|\n"); oflag(ONLCR, 0);
    print("x\ny\tz\r\n");
    oflag(0, OCRNL); print("a\rb\n"); oflag(OCRNL, ONOCR); print("\r\ra\r"); oflag(ONOCR, OLCUC);
    print("abC\n");
    oflag(OPOST, 0); print("raw\n\t\001\n"); oflag(0, OPOST | ONLCR | ONLRET); print("\n\r");
    return 0;
}""")  # fmt: skip


def test_raw_mode() -> None:
    same(P + r"""
static long ms(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
return t.tv_sec * 1000 + t.tv_nsec / 1000000; }
int main() {
    open_(); write(m, "typed ahead\nand", 15); settle();
    struct termios t, o; tcgetattr(s, &o); t = o; cfmakeraw(&t); T(tcsetattr(s, TCSANOW, &t));
    show("m", m); show("s", s); type("a\rb\nc\003\004\177"); cc(VMIN, 0); T(read(s, buf, 10));
    write(m, "xyz", 3); settle(); T(read(s, buf, 2)); T(read(s, buf, 10)); cc(VTIME, 1);
    long a = ms(); T(read(s, buf, 10)); T(ms() - a >= 90); cc(VTIME, 250); int parent = getpid();
    if (!fork()) { sleeps(parent); write(m, "q", 1); _exit(0); } T(read(s, buf, 10)); wait(0);
    cc(VTIME, 1); cc(VMIN, 3);
    if (!fork()) { sleeps(parent); write(m, "ab", 2); _exit(0); } T(read(s, buf, 10)); wait(0);
    if (!fork()) { write(m, "abcd", 4); _exit(0); } wait(0); settle(); T(read(s, buf, 2));
    T(read(s, buf, 10));
    cc(VTIME, 0); cc(VMIN, 5); write(m, "1234", 4); settle(); struct pollfd p = {s, POLLIN};
    T(poll(&p, 1, 0)); write(m, "5", 1);
    T(poll(&p, 1, -1)); T(read(s, buf, 100)); write(m, "ahead", 5); settle();
    T(tcsetattr(s, TCSANOW, &o)); show("canon", s);
    write(m, "gone", 4); settle(); T(tcsetattr(s, TCSAFLUSH, &o)); type("new\n");
    return 0;
}""")  # fmt: skip


def test_signals_and_flow() -> None:
    same(P + r"""
int main() {
    open_(); lflag(0, NOFLSH); int p[2]; pipe(p);
    int pid = fork();
    if (!pid) {
        setsid(); ioctl(s, TIOCSCTTY, 0); T(tcgetpgrp(s) == getpid()); signal(SIGHUP, SIG_IGN);
        for (int i = 0; i < 4; i++) {
            int c = fork(), st;
            if (!c) { setpgid(0, 0); signal(SIGTTOU, SIG_IGN); tcsetpgrp(s, getpid());
            write(p[1], "x", 1); pause(); _exit(0); }
            waitpid(c, &st, WUNTRACED); printf("child %x\n", st); fflush(stdout);
            if (WIFSTOPPED(st)) kill(c, SIGKILL), waitpid(c, &st, 0);
        }
        write(p[1], "y", 1); pause(); _exit(0);
    }
    close(s); char c; const char *keys[] = {"\003", "\034", "\032"};
    for (int i = 0; i < 3; i++) { read(p[0], &c, 1); write(m, "typed", 5); write(m, keys[i], 1); }
    read(p[0], &c, 1); struct winsize w = {1, 2}; T(ioctl(m, TIOCSWINSZ, &w));
    T(ioctl(m, TIOCSIG, SIGTERM));
    ioctl(m, TIOCSIG, SIGINT); read(p[0], &c, 1);
    s = open(ptsname(m), O_RDWR | O_NOCTTY); show("echo", m); fcntl(s, F_SETFL, O_NONBLOCK);
    write(m, "\023", 1); settle(); T(write(s, "held", 4)); show("m", m); write(m, "\021", 1);
    fcntl(s, F_SETFL, O_NONBLOCK); settle(); T(write(s, "ok", 2)); show("m", m);
    fcntl(s, F_SETFL, 0); T(tcflow(s, TCOOFF)); fcntl(s, F_SETFL, O_NONBLOCK);
    T(write(s, "x", 1)); T(tcflow(s, TCOON)); T(write(s, "x", 1)); T(tcflow(s, TCIOFF));
    show("m", m);
    kill(pid, SIGKILL); waitpid(pid, 0, 0);
    return 0;
}""")  # fmt: skip


def test_a_session_on_it() -> None:
    same(P + r"""
static void h(int n) { write(2, n == SIGHUP ? "H" : "C", 1); }
int main() {
    m = posix_openpt(O_RDWR); unlockpt(m); int p[2], q[2]; pipe(p); pipe(q);
    char *n = ptsname(m), c;
    int pid = fork();
    if (!pid) {
        close(m); dup2(p[1], 2); setsid(); T(open("/dev/tty", O_RDWR)); s = open(n, O_RDWR);
        int t = open("/dev/tty", O_RDWR);
        T(t > 0); T(tcgetsid(t) == getpid()); T(tcgetpgrp(t) == getpid()); signal(SIGHUP, h);
        signal(SIGCONT, h);
        fflush(stdout); dup2(s, 0); char l[20]; write(q[1], "x", 1); T(read(0, l, 20));
        fflush(stdout); write(q[1], "x", 1); T(read(0, l, 20));
        T(read(t, l, 20)); T(tcgetpgrp(0)); T(open("/dev/tty", O_RDWR)); _exit(0);
    }
    read(q[0], &c, 1); write(m, "line\n", 5); read(q[0], &c, 1); sleeps(pid); close(m);
    waitpid(pid, 0, 0);
    fcntl(p[0], F_SETFL, O_NONBLOCK); long k = read(p[0], buf, 10); T(k); buf[k] = 0; puts(buf);
    T(access(n, 0));
    return 0;
}""")  # fmt: skip


def test_termio_packets_and_exclusion() -> None:
    same(T + r"""
#include <pty.h>
#include <termios.h>
struct termio_ { unsigned short i, o, c, l; unsigned char line, cc[8]; };
int main() {
    int m, s, n = 1; struct termio_ a, b; struct termios t; openpty(&m, &s, 0, 0, 0);
    memset(&a, 0, sizeof a); memset(&b, 0, sizeof b); T(ioctl(s, 0x5405 /* TCGETA */, &a));
    T(a.i); T(a.o); T(a.c); T(a.l); T(a.cc[0]); T(a.cc[7]); a.l &= ~ECHO; a.cc[2] = 8;
    T(ioctl(s, 0x5406 /* TCSETA */, &a)); tcgetattr(s, &t); T(t.c_lflag); T(t.c_cc[2]);
    T(t.c_cc[10]); a.i |= IXOFF; T(ioctl(s, 0x5408 /* TCSETAF */, &a)); T(ioctl(m, 0x5405, &b));
    T(memcmp(&a, &b, 17)); T(ioctl(s, 0x5405, (void *)-1)); T(ioctl(s, 0x5406, (void *)-1));
    T(ioctl(m, TIOCPKT, &n)); n = 0; T(ioctl(m, TIOCGPKT, &n)); T(n); T(ioctl(s, TIOCPKT, &n));
    write(s, "pk", 2); T(read(m, buf, 9)); T(buf[0]); T(buf[1]); T(tcflush(s, TCIOFLUSH));
    struct pollfd p = {m, POLLIN | POLLPRI}; T(poll(&p, 1, 0)); T(p.revents); T(read(m, buf, 9));
    T(buf[0]); T(tcflow(s, TCOOFF)); T(read(m, buf, 9)); T(buf[0]); T(tcflow(s, TCOON));
    T(read(m, buf, 9)); T(buf[0]); tcgetattr(s, &t); t.c_iflag ^= IXON; T(tcsetattr(s, 0, &t));
    T(read(m, buf, 9)); T(buf[0]); n = 0; T(ioctl(m, TIOCPKT, &n)); n = 99;
    T(ioctl(s, TIOCSETD, &n)); n = 0; T(ioctl(s, TIOCSETD, &n)); T(ioctl(s, TIOCEXCL));
    T(ioctl(s, TIOCGEXCL, &n)); T(n); T(ioctl(s, TIOCNXCL)); tcgetattr(s, &t); cfmakeraw(&t);
    t.c_cc[VMIN] = 3; tcsetattr(s, 0, &t); write(m, "ab", 2); tcdrain(m);
    p = (struct pollfd){m, POLLOUT}; poll(&p, 1, -1); fcntl(s, F_SETFL, O_NONBLOCK);
    while ((n = read(s, buf, 9)) < 0); T(n); T(buf[0]); return 0;
}""")  # fmt: skip


def test_locked_settings() -> None:
    same(P + r"""
static void tell(void) {
    T(tcgetattr(s, &t_)); printf("%x %x %x %x %d %d\n", t_.c_iflag, t_.c_oflag, t_.c_cflag,
        t_.c_lflag, t_.c_cc[VERASE], t_.c_cc[VKILL]);
}
int main() {
    struct { unsigned f[4]; unsigned char line, cc[19]; } k = {{ICRNL, 0, 0, ECHO | ISIG}}, old;
    open_(); memset(&old, 9, sizeof old); T(ioctl(s, TIOCGLCKTRMIOS, &old)); T(old.f[3]);
    k.cc[VERASE] = 1; T(ioctl(m, TIOCSLCKTRMIOS, &k)); T(ioctl(s, TIOCGLCKTRMIOS, &old));
    T(memcmp(&k, &old, sizeof k)); T(ioctl(s, TIOCSLCKTRMIOS, 8)); T(ioctl(s, TIOCGLCKTRMIOS, 8));
    iflag(ICRNL | IXON, 0); lflag(ECHO | ICANON, 0); cc(VERASE, 8); cc(VKILL, 9); tell();
    struct { unsigned short f[4]; unsigned char line, cc[8]; } a; T(ioctl(s, TCGETA, &a));
    a.f[0] = 0; a.f[3] = NOFLSH; a.cc[VERASE] = 7; a.cc[VKILL] = 6; T(ioctl(s, TCSETA, &a)); tell();
    memset(&k, 0, sizeof k); T(ioctl(s, TIOCSLCKTRMIOS, &k)); lflag(ECHO, 0); tell();
    setuid(1); T(ioctl(s, TIOCSLCKTRMIOS, &k)); T(ioctl(s, TIOCGLCKTRMIOS, &k));
    return 0;
}""")  # fmt: skip
