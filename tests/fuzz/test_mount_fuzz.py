"""Mounts, views, moves and what is done to names on them, at random: the host, in a mount namespace
of its own, and the machine say the same to each call."""

from __future__ import annotations

import os

import pytest

from tests.kern.guest_util import _difference, build, by_guest, by_host
from tests.kern.test_mount import _BEGIN, _END, _host_mounts

_BODY = r"""
    srand(atoi(argv[1]));
    static const char *P[] = {"a", "b", "c", "a/x", "b/x", "c/x", "a/x/y", "b/x/y", "c/x/y", "a/f",
        "b/f", "c/f", "a/x/f", "b/x/f", "link/x", "b/x/.."};
    umask(0);
    int fd = -1;
    mkdir("a/x", 0755); mkdir("b/x", 0755); mkdir("a/x/y", 0755); put("a/f", "a"); put("b/f", "b");
    for (int i = 0; i < 250; i++) {
        const char *p = P[rand() % 16], *q = P[rand() % 16];
        char name[300], pp[300], qq[300];
        int r = rand() % 30, n = rand(), e = 0;
        printf("%d: %d %s %s ", i, r, p, q);
        sprintf(pp, "%s/%s", base, p); sprintf(qq, "%s/%s", base, q);
        if (n % 8) p = pp, q = qq;
        errno = 0;
        switch (r) {
        case 0: case 1: e = mount("s", p, "tmpfs", 0, "size=1m"); break;
        case 2: case 3: case 4: case 5: e = mount(p, q, 0, MS_BIND, 0); break;
        case 6: e = mount(p, q, 0, MS_BIND | MS_REC, 0); break;
        case 7: case 8: e = mount(p, q, 0, MS_MOVE, 0); break;
        case 9: case 10: case 11: e = umount(p); break;
        case 12: e = umount2(p, MNT_DETACH); break;
        case 13: e = mount(0, p, 0, MS_REMOUNT | MS_BIND | (n & 64 ? MS_RDONLY : 0), 0); break;
        case 14: e = mount(0, p, 0, MS_REMOUNT | (n & 192 ? 0 : MS_RDONLY), 0); break;
        case 15: e = rmdir(p); break;
        case 16: case 17: e = mkdir(p, 0755); break;
        case 18: case 19: sprintf(name, "%d", i); e = put(p, name); break;
        case 20: e = unlink(p); break;
        case 21: e = rename(p, q); break;
        case 22: e = n & 64 ? link(p, q) : access(p, W_OK); break;
        case 23: e = chdir(p); break;
        case 24: if (fd >= 0) close(fd); fd = e = open(p, n & 64 ? O_RDWR : O_RDONLY); break;
        case 25: e = ls(p); break;
        case 26: e = get(p); break;
        case 27: e = cwd(); break;
        case 28: { struct stat s; e = stat(p, &s); if (!e) printf("%o ", s.st_mode); break; }
        case 29: if (fd >= 0) { close(fd); fd = -1; } if (n & 64) chdir(base); break;
        }
        puts(en(e < 0 ? errno : 0));
    }
    chdir("/"); if (fd >= 0) close(fd);
    FILE *f = fopen("/proc/self/mountinfo", "r"); char line[1000];
    while (fgets(line, 999, f)) { char *at = strstr(line, base); if (at) printf("%s", at + 14); }
    fclose(f);
"""


@pytest.mark.skipif(os.getuid() != 0 or not _host_mounts(), reason="no mounts on the host")
@pytest.mark.parametrize("seed", range(10))
def test_random_calls(seed: int) -> None:
    program = build(_BEGIN.replace("main(void)", "main(int argc, char **argv)") + _BODY + _END)
    expected = by_host("unshare", "-m", program, str(seed))
    ours = by_guest(program, str(seed))
    assert ours == expected, _difference(ours, expected)
