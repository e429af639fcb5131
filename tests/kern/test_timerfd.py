"""timerfd, on the host and in the machine."""

from __future__ import annotations

from tests.kern.guest_util import same

TIMERFD = r"""
    #include <poll.h>
    #include <sys/epoll.h>
    #include <sys/timerfd.h>
    #define E(x) (errno = 0, printf("%s %d\n", #x, (int)(x) < 0 ? -errno : 0))
    static uint64_t v;
    static void take(int fd) {
        ssize_t n = read(fd, &v, 8);
        printf("read %zd %lu\n", n, v > 1000000 ? 1000000 : v);
    }
    static void ask(struct pollfd *pf) {
        int n = poll(pf, 1, -1);
        printf("poll %d %x\n", n, pf->revents);
    }
    static struct itimerspec t, o;
    static void value(long s, long ns, long is, long ins) {
        t = (struct itimerspec){{is, ins}, {s, ns}};
    }
    """


def test_timerfd_arguments() -> None:
    same(
        TIMERFD
        + r"""
    int main(void) {
        void *bad = (void *)-1;
        for (int clock = -1; clock < 13; clock++) {
            errno = 0;
            printf("clock %d %d", clock, timerfd_create(clock, 0) < 0);
            printf(" errno %d\n", errno);
        }
        E(timerfd_create(0, 1));
        int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        printf("%x %x\n", fcntl(fd, F_GETFL), fcntl(fd, F_GETFD));
        E(read(fd, &v, 8));
        E(read(fd, &v, 7));
        E(write(fd, &v, 8));
        E(lseek(fd, 5, SEEK_SET));
        E(pread(fd, &v, 8, 0));
        E(timerfd_gettime(fd, bad));
        E(timerfd_gettime(-1, &o));
        E(timerfd_gettime(0, &o));
        E(timerfd_settime(-1, 0, bad, 0));
        E(timerfd_settime(0, 0, &t, 0));
        E(timerfd_settime(-1, 4, &t, 0));
        E(timerfd_settime(fd, 0, 0, 0));
        E(timerfd_settime(fd, 3, &t, bad));
        value(0, 1000000000, 0, 0), E(timerfd_settime(-1, 0, &t, 0));
        value(0, -1, 0, 0), E(timerfd_settime(fd, 0, &t, 0));
        value(-1, 0, 0, 0), E(timerfd_settime(fd, 0, &t, 0));
        value(0, 0, -1, 0), E(timerfd_settime(fd, 0, &t, 0));
        value(0x7fffffffffffffff, 0, 5, 6), E(timerfd_settime(fd, TFD_TIMER_ABSTIME, &t, &o));
        printf("%ld %ld\n", (long)o.it_value.tv_sec, (long)o.it_interval.tv_nsec);
        value(1000, 0, 50, 7), E(timerfd_settime(fd, 0, &t, &o));
        printf("%ld %ld\n", (long)o.it_interval.tv_sec, (long)o.it_interval.tv_nsec);
        E(timerfd_gettime(fd, &o));
        printf("%d %ld\n", o.it_value.tv_sec > 900, (long)o.it_interval.tv_sec);
        char path[64], text[512];
        sprintf(path, "/proc/self/fdinfo/%d", fd);
        int info = open(path, O_RDONLY);
        text[read(info, text, sizeof text - 1)] = 0;
        strstr(text, "it_value")[0] = 0;
        puts(strstr(text, "clockid"));
        return 0;
    }
    """
    )


def test_timerfd_expires() -> None:
    """One expiration, many that nobody has read, and those that are forgotten; poll, epoll, and
    a read that sleeps."""
    same(
        TIMERFD
        + r"""
    int main(void) {
        int fd = timerfd_create(CLOCK_REALTIME, 0);
        struct pollfd pf = {fd, POLLIN | POLLOUT};
        E(poll(&pf, 1, 0));
        value(0, 1000000, 0, 0), timerfd_settime(fd, 0, &t, 0);
        ask(&pf);
        timerfd_gettime(fd, &o);
        printf("left %ld %ld\n", (long)o.it_value.tv_sec, (long)o.it_value.tv_nsec);
        take(fd);
        timerfd_settime(fd, 0, &t, 0);
        take(fd);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        E(read(fd, &v, 8));
        value(0, 1, 1, 0), timerfd_settime(fd, TFD_TIMER_ABSTIME, &t, 0);
        ask(&pf);
        timerfd_gettime(fd, &o);
        printf("left %d\n", o.it_value.tv_sec == 0 && o.it_value.tv_nsec > 0);
        take(fd);
        value(0, 1, 0, 0), timerfd_settime(fd, TFD_TIMER_ABSTIME, &t, 0);
        ask(&pf);
        value(0, 0, 0, 0), timerfd_settime(fd, 0, &t, 0);
        printf("disarmed %d\n", poll(&pf, 1, 0));
        int ep = epoll_create1(0);
        struct epoll_event ev = {EPOLLIN | EPOLLET}, got;
        E(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev));
        value(0, 1000000, 0, 0), timerfd_settime(fd, 0, &t, 0);
        printf("epoll %d", epoll_wait(ep, &got, 1, -1));
        printf(" %x again %d\n", got.events, epoll_wait(ep, &got, 1, 0));
        E(read(fd, (void *)-1, 8));
        E(read(fd, &v, 8));
        return 0;
    }
    """
    )


def test_timerfd_is_shared_and_interrupted() -> None:
    same(
        TIMERFD
        + r"""
    static void nop(int s) {}
    int main(void) {
        int fd = timerfd_create(CLOCK_MONOTONIC, 0);
        struct sigaction a = {.sa_handler = nop};
        sigaction(SIGUSR1, &a, 0);
        value(1000, 0, 0, 0), timerfd_settime(fd, 0, &t, 0);
        timer_t alarm;
        struct sigevent se = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
        timer_create(CLOCK_MONOTONIC, &se, &alarm);
        struct itimerspec often = {{0, 5000000}, {0, 5000000}};
        timer_settime(alarm, 0, &often, 0);
        E(read(fd, &v, 8));
        timer_delete(alarm);
        value(0, 1000000, 0, 0), timerfd_settime(fd, 0, &t, 0);
        if (!fork()) {
            take(fd);
            fcntl(fd, F_SETFL, O_NONBLOCK);
            exit(0);
        }
        wait(0);
        E(read(fd, &v, 8));
        return 0;
    }
    """
    )
