"""What the C programs of the socket tests share."""

from __future__ import annotations

from file_util import T as _FILES

S = (
    _FILES
    + r"""
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <linux/sockios.h>
#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59
#endif
#define ERRNO printf("errno %d\n", errno)
static struct sockaddr_un un_;
/* The address of a file, or with '@' first of an abstract name that only this run has. */
static socklen_t addr_(const char *name)
{
    memset(&un_, 0, sizeof un_);
    un_.sun_family = AF_UNIX;
    if (*name != '@') {
        strcpy(un_.sun_path, name);
        return offsetof(struct sockaddr_un, sun_path) + strlen(name) + 1;
    }
    static char run[9];
    if (!*run) {
        int fd = open("/dev/urandom", O_RDONLY);
        for (int i = 0; i < 8; i++) { read(fd, run + i, 1); run[i] = 'a' + (run[i] & 15); }
        close(fd);
    }
    int n = sprintf(un_.sun_path + 1, "%s%s", run, name + 1);
    return offsetof(struct sockaddr_un, sun_path) + 1 + n;
}
static int bind_(int s, const char *name) { socklen_t n = addr_(name);
    return bind(s, (void *)&un_, n); }
static int connect_(int s, const char *name) { socklen_t n = addr_(name);
    return connect(s, (void *)&un_, n); }
static long sendto_(int s, const char *data, const char *name) { socklen_t n = addr_(name);
    return sendto(s, data, strlen(data), MSG_DONTWAIT, (void *)&un_, n); }
static int listener_(int type, const char *name, int backlog) {
    int s = socket(AF_UNIX, type, 0);
    if (bind_(s, name) || listen(s, backlog)) _exit(97);
    return s;
}
static int opt_(int s, int name) { int v = -1; socklen_t n = sizeof v;
    return getsockopt(s, SOL_SOCKET, name, &v, &n) ? -errno : v; }
static int set_(int s, int name, int v) { return setsockopt(s, SOL_SOCKET, name, &v, sizeof v); }
static int poll_(int s) {
    struct pollfd p = {s, POLLIN | POLLOUT | POLLPRI | POLLRDHUP | POLLRDNORM | POLLWRBAND, 0};
    poll(&p, 1, 0);
    return p.revents;
}
static int inq_(int s) { int n = -1; return ioctl(s, FIONREAD, &n) ? -errno : n; }
static int outq_(int s) { int n = -1; return ioctl(s, SIOCOUTQ, &n) ? -errno : n; }
/* One message of recvmsg, told in a line. */
static void got_(int s, int room, int croom, int flags) {
    static char data[1 << 18], control[4096];
    struct sockaddr_un from;
    struct iovec iov = {data, room};
    struct msghdr m = {&from, sizeof from, &iov, 1, croom ? control : 0, croom, 0};
    memset(data, 0, sizeof data); memset(control, 0, sizeof control);
    errno = 0;
    long r = recvmsg(s, &m, flags);
    printf("got %ld %d", r, r < 0 ? errno : 0);
    if (r >= 0) {
        printf(" '%.20s' flags %x namelen %d control %ld:", data, m.msg_flags, (int)m.msg_namelen,
               (long)m.msg_controllen);
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
            printf(" [len %ld type %d", (long)c->cmsg_len, c->cmsg_type);
            if (c->cmsg_type == SCM_RIGHTS)
                for (int i = 0; i < (c->cmsg_len - sizeof *c) / 4; i++) {
                    int fd; memcpy(&fd, CMSG_DATA(c) + 4 * i, 4);
                    printf(" fd %d %x", fd, fcntl(fd, F_GETFD));
                }
            if (c->cmsg_type == SCM_CREDENTIALS && c->cmsg_len >= CMSG_LEN(sizeof(struct ucred))) {
                struct ucred *u = (void *)CMSG_DATA(c);
                printf(" pid %s %d %d", u->pid == getpid() ? "me" : u->pid ? "other" : "0", u->uid,
                       u->gid);
            }
            printf("]");
        }
    }
    printf("\n");
    fflush(stdout);
}
/* Send data with some descriptors. */
static long give_(int s, const char *data, int n, const int *fds) {
    char control[CMSG_SPACE(256 * 4)] = {0};
    struct iovec iov = {(void *)data, strlen(data)};
    struct msghdr m = {0, 0, &iov, 1, control, CMSG_SPACE(4 * n), 0};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET; c->cmsg_type = SCM_RIGHTS; c->cmsg_len = CMSG_LEN(4 * n);
    memcpy(CMSG_DATA(c), fds, 4 * n);
    return sendmsg(s, &m, MSG_DONTWAIT);
}
static int lowest_(void) { int fd = dup(0); close(fd); return fd; }
"""
)
