/* System calls at random, from a seed. Half of them are any number with any arguments, with a bias
 * towards values that have a meaning; half are calls with the kinds of arguments that they want:
 * descriptors of every sort of file, paths that exist, structures partly overwritten.
 *
 * Each round is a process group of its own, whose members may fork, share memory and kill each
 * other; when its time is over, what is left of it is killed. Nothing is checked here: what matters
 * is that the kernel survives. */
#include "../guest.h"
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

#define AREA_PAGES 16
#define CALLS 80
#define ROUND_NS 400000000L
#define PROCESSES 10

static uint64_t state;
static uint64_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state * 0x2545f4914f6cdd1dUL >> 8;
}

static char *area;   /* pages 4 a hole, 5 without rights, 6 read-only, 8 to 11 shared by the group,
			12, 13 a file, 14 behind its end */
static int *members; /* processes of the round so far; in shared memory */

static const long special[] = { 0, 1, 2, 3, 4, 7, 8, 16, 63, 64, 255, 256, 1024, 4095, 4096, 4097,
	65536, 1L << 31, (1L << 31) - 1, 1L << 32, -1, -2, -100, -4096, 1L << 47,
	(1L << 47) - 4096, 1L << 62, (long)(1UL << 63), 0x7ffffffff000, 0x400000, 1000000000,
	(long)0xffff800000000000, (long)0xffffffff80000000, (long)0xffffffff80001ff8 };

#define OF(array) array[rnd() % (sizeof(array) / sizeof(array[0]))]

/* The last bytes in front of a page that is unlike its neighbour. */
static long edge(void)
{
	static const int pages[] = { 4, 5, 6, 8, 12, 14, AREA_PAGES };
	return (long)(area + OF(pages) * PAGE - rnd() % 64);
}

static long argument(void)
{
	switch (rnd() % 8) {
	case 0:
		return (long)rnd();
	case 1:
	case 2:
		return OF(special);
	case 3:
		return (long)(area + rnd() % (AREA_PAGES * PAGE));
	case 4:
		return (long)(area + rnd() % AREA_PAGES * PAGE);
	case 5:
		return (long)(rnd() % 48);
	case 6:
		return edge();
	default:
		return 1L << rnd() % 40;
	}
}

/* A structure of words that are partly what they should be. */
static long structure(void)
{
	static const long words[] = { 0, 0, 0, 1, 1, 2, 3, 5, 10, 100, 4096, 1000, 999999999, -1,
		1L << 32, 0x500000005 };
	long *at = (long *)(area + rnd() % 2 * 4096 + rnd() % 32 * 64);
	for (int i = 0; i < 8; i++)
		switch (rnd() % 4) {
		case 0:
			at[i] = OF(words);
			break;
		case 1:
			at[i] = (long)(area + rnd() % (AREA_PAGES * PAGE) / 8 * 8);
			break;
		case 2:
			at[i] = argument();
			break;
		}
	return (long)at;
}

/* Calls by the kinds of their arguments: f descriptor, p path, b buffer, s size, S structure,
 * o offset, i small number, F flags (a few bits), a page address, l length in pages, P pid,
 * g signal, m mode. */
static const struct {
	int number;
	const char *kinds;
} calls[] = {
	{ SYS_read, "fbs" }, { SYS_write, "fbs" }, { SYS_open, "pFm" }, { SYS_close, "f" },
	{ SYS_fstat, "fb" }, { SYS_stat, "pb" }, { SYS_lstat, "pb" }, { SYS_poll, "Sii" },
	{ SYS_lseek, "foi" }, { SYS_mmap, "alFFfo" }, { SYS_mprotect, "ali" },
	{ SYS_munmap, "al" }, { SYS_brk, "b" }, { SYS_rt_sigaction, "gSbi" },
	{ SYS_ioctl, "fIS" }, { SYS_pread64, "fbso" }, { SYS_pwrite64, "fbso" },
	{ SYS_readv, "fSi" }, { SYS_writev, "fSi" }, { SYS_access, "pi" }, { SYS_pipe, "b" },
	{ SYS_select, "iSSSS" }, { SYS_mremap, "allia" }, { SYS_msync, "ali" },
	{ SYS_mincore, "alb" }, { SYS_madvise, "ali" }, { SYS_dup, "f" }, { SYS_dup2, "ff" },
	{ SYS_nanosleep, "Sb" }, { SYS_sendfile, "ffSs" }, { SYS_socketpair, "iiib" },
	{ SYS_wait4, "PbFb" }, { SYS_kill, "Pg" }, { SYS_uname, "b" }, { SYS_fcntl, "fiS" },
	{ SYS_flock, "fi" }, { SYS_fsync, "f" }, { SYS_truncate, "po" }, { SYS_ftruncate, "fo" },
	{ SYS_getdents, "fbs" }, { SYS_getcwd, "bs" }, { SYS_chdir, "p" }, { SYS_fchdir, "f" },
	{ SYS_rename, "pp" }, { SYS_mkdir, "pm" }, { SYS_rmdir, "p" }, { SYS_link, "pp" },
	{ SYS_unlink, "p" }, { SYS_symlink, "pp" }, { SYS_readlink, "pbs" }, { SYS_chmod, "pm" },
	{ SYS_fchmod, "fm" }, { SYS_getrlimit, "ib" }, { SYS_getrusage, "ib" },
	{ SYS_sysinfo, "b" }, { SYS_times, "b" }, { SYS_getgroups, "ib" },
	{ SYS_setgroups, "iS" }, { SYS_rt_sigpending, "bi" }, { SYS_rt_sigtimedwait, "SbSi" },
	{ SYS_rt_sigqueueinfo, "PgS" }, { SYS_rt_sigsuspend, "Si" }, { SYS_sigaltstack, "Sb" },
	{ SYS_utime, "pS" }, { SYS_mknod, "pmi" }, { SYS_statfs, "pb" }, { SYS_fstatfs, "fb" },
	{ SYS_mlock, "al" }, { SYS_munlock, "al" }, { SYS_mlockall, "i" },
	{ SYS_munlockall, "" }, { SYS_prctl, "iSSSS" }, { SYS_setrlimit, "iS" },
	{ SYS_chroot, "p" }, { SYS_futex, "bibSbi" }, { SYS_sched_setaffinity, "PsS" },
	{ SYS_sched_getaffinity, "Psb" }, { SYS_getdents64, "fbs" },
	{ SYS_fadvise64, "fooi" }, { SYS_timer_create, "iSb" }, { SYS_timer_settime, "iFSb" },
	{ SYS_timer_gettime, "ib" }, { SYS_timer_delete, "i" }, { SYS_clock_gettime, "ib" },
	{ SYS_clock_nanosleep, "iFSb" }, { SYS_epoll_wait, "fbii" }, { SYS_epoll_ctl, "fifS" },
	{ SYS_tgkill, "PPg" }, { SYS_tkill, "Pg" }, { SYS_utimes, "pS" },
	{ SYS_waitid, "iPbFb" }, { SYS_openat, "fpFm" }, { SYS_mkdirat, "fpm" },
	{ SYS_newfstatat, "fpbF" }, { SYS_unlinkat, "fpF" }, { SYS_renameat, "fpfp" },
	{ SYS_linkat, "fpfpF" }, { SYS_symlinkat, "pfp" }, { SYS_readlinkat, "fpbs" },
	{ SYS_fchmodat, "fpm" }, { SYS_faccessat, "fpi" }, { SYS_pselect6, "iSSSSS" },
	{ SYS_ppoll, "SiSSi" }, { SYS_utimensat, "fpSF" }, { SYS_epoll_pwait, "fbiiSi" },
	{ SYS_fallocate, "fioo" }, { SYS_eventfd2, "iF" }, { SYS_epoll_create1, "F" },
	{ SYS_dup3, "ffF" }, { SYS_pipe2, "bF" }, { SYS_preadv, "fSio" },
	{ SYS_pwritev, "fSio" }, { SYS_prlimit64, "PiSb" }, { SYS_renameat2, "fpfpF" },
	{ SYS_getrandom, "bsF" }, { SYS_memfd_create, "bF" }, { SYS_execve, "pSS" },
	{ SYS_execveat, "fpSSF" }, { SYS_mlock2, "ali" }, { SYS_copy_file_range, "fSfSsi" },
	{ SYS_preadv2, "fSioiF" }, { SYS_pwritev2, "fSioiF" }, { SYS_statx, "fpFib" },
	{ SYS_rseq, "Siii" }, { 435 /* clone3 */, "Si" }, { 436 /* close_range */, "iiF" },
	{ 437 /* openat2 */, "fpSi" }, { 439 /* faccessat2 */, "fpiF" },
	{ SYS_personality, "i" }, { SYS_sendto, "fbsFSi" }, { SYS_recvfrom, "fbsFSS" },
	{ SYS_sendmsg, "fSF" }, { SYS_recvmsg, "fSF" }, { SYS_bind, "fSi" },
	{ SYS_socket, "iii" }, { SYS_setpriority, "iii" }, { SYS_getitimer, "ib" },
	{ SYS_sched_setscheduler, "PiS" }, { SYS_sched_setattr, "PSF" }, { SYS_capget, "Sb" },
	{ SYS_rt_sigprocmask, "iSSs" }, { SYS_alarm, "i" }, { SYS_setitimer, "iSS" },
	{ SYS_connect, "fSi" }, { SYS_accept, "fSS" }, { SYS_shutdown, "fi" },
	{ SYS_listen, "fi" }, { SYS_getsockname, "fSS" }, { SYS_getpeername, "fSS" },
	{ SYS_setsockopt, "fiiSi" }, { SYS_getsockopt, "fiiSS" }, { SYS_fdatasync, "f" },
	{ SYS_creat, "pm" }, { SYS_fchown, "fii" }, { SYS_umask, "m" }, { SYS_gettimeofday, "SS" },
	{ SYS_setuid, "i" }, { SYS_setgid, "i" }, { SYS_setreuid, "ii" }, { SYS_setregid, "ii" },
	{ SYS_setresuid, "iii" }, { SYS_getresuid, "SSS" }, { SYS_setresgid, "iii" },
	{ SYS_getresgid, "SSS" }, { SYS_getpgid, "P" }, { SYS_setfsuid, "i" },
	{ SYS_setfsgid, "i" }, { SYS_getsid, "P" }, { SYS_getpriority, "ii" },
	{ SYS_sched_setparam, "PS" }, { SYS_sched_getparam, "PS" },
	{ SYS_sched_getscheduler, "P" }, { SYS_sched_get_priority_max, "i" },
	{ SYS_sched_get_priority_min, "i" }, { SYS_sched_rr_get_interval, "PS" },
	{ SYS_arch_prctl, "iS" }, { SYS_sync, "" }, { SYS_settimeofday, "SS" },
	{ SYS_sethostname, "Ss" }, { SYS_setdomainname, "Ss" }, { SYS_setxattr, "pSSsF" },
	{ SYS_lsetxattr, "pSSsF" }, { SYS_fsetxattr, "fSSsF" }, { SYS_getxattr, "pSSs" },
	{ SYS_lgetxattr, "pSSs" }, { SYS_fgetxattr, "fSSs" }, { SYS_listxattr, "pSs" },
	{ SYS_llistxattr, "pSs" }, { SYS_flistxattr, "fSs" }, { SYS_removexattr, "pS" },
	{ SYS_lremovexattr, "pS" }, { SYS_fremovexattr, "fS" }, { SYS_epoll_create, "i" },
	{ SYS_set_tid_address, "S" }, { SYS_timer_getoverrun, "i" }, { SYS_clock_settime, "iS" },
	{ SYS_clock_getres, "iS" }, { SYS_inotify_init, "" }, { SYS_inotify_add_watch, "fpi" },
	{ SYS_inotify_rm_watch, "fi" }, { SYS_mknodat, "fpmi" }, { SYS_fchownat, "fpiiF" },
	{ SYS_futimesat, "fpS" }, { SYS_unshare, "F" }, { SYS_set_robust_list, "Ss" },
	{ SYS_get_robust_list, "PSS" }, { SYS_splice, "fSfSsF" }, { SYS_tee, "ffsF" },
	{ SYS_vmsplice, "fSiF" }, { SYS_signalfd, "fSs" }, { SYS_timerfd_create, "iF" },
	{ SYS_eventfd, "i" }, { SYS_timerfd_settime, "fFSS" }, { SYS_timerfd_gettime, "fS" },
	{ SYS_accept4, "fSSF" }, { SYS_signalfd4, "fSsF" }, { SYS_inotify_init1, "F" },
	{ SYS_syncfs, "f" }, { SYS_getcpu, "SSS" }, { SYS_process_vm_readv, "PSiSiF" },
	{ SYS_process_vm_writev, "PSiSiF" }, { SYS_sched_getattr, "PSiF" },
	{ SYS_membarrier, "iFi" }, { 424 /* pidfd_send_signal */, "fgSF" },
	{ 434 /* pidfd_open */, "PF" }, { 438 /* pidfd_getfd */, "ffF" },
	{ 441 /* epoll_pwait2 */, "fSiSSs" }, { 452 /* fchmodat2 */, "fpmF" },
	{ SYS_sync_file_range, "fooF" }, { SYS_readahead, "fos" }, { SYS_fork, "" },
	{ SYS_fork, "" }, { SYS_vfork, "" }, { SYS_clone, "CFbbb" },
};

static long path(void)
{
	static const char *const names[] = { "/tmp/fuzzfile", "/tmp/fuzzdir", "/tmp/fuzzdir/a",
		"/tmp/fuzzlink", "/tmp/fuzzfifo", "fuzzfile", ".", "..", "/", "", "/proc/self/maps",
		"/proc/self/fd/5", "/proc/self", "/proc/self/exe", "/proc/self/mem", "/dev/null",
		"/dev/zero", "/dev/tty", "/dev/ptmx", "/proc/1/stat", "/proc/self/fd", "/etc",
		"/etc/passwd", "/tmp/fuzzfile/x", "/tmp/../tmp/fuzzdir/.", "/proc/self/cwd/tmp" };
	char *at = area + 2 * PAGE + rnd() % 8 * 256;
	if (rnd() % 8 == 0)
		return argument();
	strcpy(at, OF(names));
	return (long)at;
}

static long kind(char c)
{
	static const unsigned ioctls[] = { 0x5401, 0x5402, 0x5403, 0x5405, 0x5409, 0x540b, 0x540e,
		0x540f, 0x5410, 0x5411, 0x5413, 0x5414, 0x541b, 0x5421, 0x5429, 0x5430, 0x80045430,
		0x40045431, 0x5450, 0x5451, 0x5452, 0x5460 };
	static const long sizes[] = { 0, 1, 8, 100, 4096, 5000, 65536, 1 << 20, 1L << 31,
		0x7ffff000, 1L << 40, -1 };
	static const long offsets[] = { 0, 0, 1, 4096, 5000, 1 << 20, 1L << 40, 1L << 62,
		0x7fffffffffffffff, -1 };
	static const int clones[] = { 0, SIGCHLD, CLONE_VM | CLONE_VFORK | SIGCHLD,
		CLONE_FILES | SIGCHLD, CLONE_FS | SIGCHLD, CLONE_PARENT | SIGCHLD,
		CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, CLONE_CHILD_CLEARTID | CLONE_PARENT_SETTID,
		CLONE_NEWNS, CLONE_SETTLS | SIGCHLD };
	if (rnd() % 24 == 0)
		return argument();
	switch (c) {
	case 'f':
		return rnd() % 12 ? (long)(rnd() % 48) : AT_FDCWD;
	case 'p':
		return path();
	case 'b':
		return rnd() % 6 ? (long)(area + rnd() % (AREA_PAGES * PAGE)) : edge();
	case 's':
		return OF(sizes);
	case 'S':
		return rnd() % 8 ? structure() : rnd() % 2 ? edge() : 0;
	case 'o':
		return OF(offsets);
	case 'F':
		return rnd() % 2 ? 0 : 1L << rnd() % 24 | 1L << rnd() % 24;
	case 'a':
		return (long)(area + rnd() % AREA_PAGES * PAGE);
	case 'l':
		return (long)(rnd() % AREA_PAGES * PAGE);
	case 'P':
		return rnd() % 3 ? (rnd() % 2 ? 0 : getpid()) : getpid() + (long)(rnd() % 5);
	case 'g':
		return (long)(rnd() % 65);
	case 'm':
		return (long)(rnd() % 0200000);
	case 'I':
		return OF(ioctls);
	case 'C':
		return OF(clones);
	default:
		return (long)(rnd() % 12);
	}
}

/* Calls that would end or leave the experiment. */
static int excluded(long number)
{
	switch (number) {
	case SYS_exit:
	case SYS_exit_group:
	case SYS_rt_sigreturn:
	case SYS_setsid:
	case SYS_setpgid:
	case SYS_rt_tgsigqueueinfo:
	case SYS_reboot:
		return 1;
	}
	return 0;
}

static void call(void)
{
	long a[6], number;
	if (rnd() % 2) {
		number = (long)(rnd() % 32 ? rnd() % 470 : rnd());
		for (int i = 0; i < 6; i++)
			a[i] = argument();
		switch ((int)number) { /* only among ourselves */
		case SYS_kill:
		case SYS_tkill:
		case SYS_tgkill:
		case SYS_rt_sigqueueinfo:
			a[0] = kind('P');
			a[1] = (int)number == SYS_tgkill ? kind('P') : a[1];
		}
	} else {
		int n = (int)(rnd() % (sizeof calls / sizeof *calls));
		number = calls[n].number;
		for (int i = 0; i < 6; i++)
			a[i] = i < (int)strlen(calls[n].kinds) ? kind(calls[n].kinds[i]) : argument();
	}
	if (excluded((int)number))
		return;
	switch ((int)number) {
	case SYS_kill:
	case SYS_rt_sigqueueinfo:
		if ((int)a[0] < 0)
			return;
		if ((int)a[0] != 0 && (int)a[0] < getpgrp())
			return;
		break;
	case SYS_tkill:
	case SYS_tgkill:
		if ((int)a[0] < getpgrp())
			return;
		break;
	case SYS_fork:
	case SYS_vfork:
	case SYS_clone:
	case 435:
		if (__atomic_add_fetch(members, 1, __ATOMIC_SEQ_CST) > PROCESSES)
			return;
		if ((int)number == SYS_vfork)
			number = SYS_fork; /* a child would return on our stack */
		if ((int)number == SYS_clone && a[0] & CLONE_VM)
			a[0] |= CLONE_VFORK;
	}
	long r = syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (r == 0 && ((int)number == SYS_fork || (int)number == SYS_clone || number == 435))
		state ^= (uint64_t)getpid() * 0x9e3779b97f4a7c15UL;
}

static void prepare(void)
{
	int fds[2];
	area = mmap((void *)0x20000000, AREA_PAGES * PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(area != MAP_FAILED);
	for (int i = 0; i < AREA_PAGES; i++)
		memset(area + i * PAGE, (int)rnd(), 256);
	CHECK(munmap(area + 4 * PAGE, PAGE) == 0);
	CHECK(mprotect(area + 5 * PAGE, PAGE, PROT_NONE) == 0);
	CHECK(mprotect(area + 6 * PAGE, PAGE, PROT_READ) == 0);
	CHECK(mmap(area + 8 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	members = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(members != MAP_FAILED);
	mkdir("/tmp/fuzzdir", 0777);
	symlink("/tmp/fuzzdir", "/tmp/fuzzlink");
	mkfifo("/tmp/fuzzfifo", 0666);
	/* Descriptors from 3 on, of every sort. */
	int file = open("/tmp/fuzzfile", O_RDWR | O_CREAT, 0666);
	if (file >= 0 && ftruncate(file, 20000) == 0) {
		mmap(area + 12 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		     file, 0);
		mmap(area + 14 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file,
		     5 * PAGE);
	}
	open("/proc/self/exe", O_RDONLY);
	open("/tmp/fuzzdir", O_RDONLY | O_DIRECTORY);
	open("/tmp/fuzzfile", O_PATH);
	open("/tmp", O_PATH);
	(void)!pipe(fds);
	(void)!pipe2(fds, O_NONBLOCK);
	(void)!write(fds[1], area, 100);
	open("/proc/self/maps", O_RDONLY);
	open("/proc/self/mem", O_RDWR);
	open("/proc/self/pagemap", O_RDONLY);
	open("/dev/null", O_RDWR);
	open("/dev/zero", O_RDWR);
	open("/dev/full", O_RDWR);
	open("/dev/urandom", O_RDWR);
	eventfd(3, EFD_NONBLOCK);
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT };
	epoll_ctl(epoll_create1(0), EPOLL_CTL_ADD, fds[1], &event);
	memfd_create("fuzz", 0);
	open("/dev/ptmx", O_RDWR | O_NOCTTY);
	open("/tmp/fuzzfifo", O_RDWR | O_NONBLOCK);
	open("/tmp/fuzzfile", O_WRONLY | O_APPEND);
	scratch_file(3 * PAGE);
	open("/proc", O_RDONLY);
	open("/proc/self/fd", O_RDONLY);
	socketpair(AF_UNIX, SOCK_STREAM, 0, fds);
	open("/tmp/fuzzlink", O_PATH | O_NOFOLLOW);
	sigset_t set;
	sigfillset(&set);
	signalfd(-1, &set, SFD_NONBLOCK);
	int watch = inotify_init1(IN_NONBLOCK);
	inotify_add_watch(watch, "/tmp/fuzzdir", IN_ALL_EVENTS);
	inotify_add_watch(watch, "/tmp/fuzzfile", IN_ALL_EVENTS);
	timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	syscall(434 /* pidfd_open */, getpid(), 0);
}

int main(int argc, char **argv)
{
	CHECK(argc > 2);
	uint64_t seed = strtoull(argv[1], NULL, 0);
	int rounds = atoi(argv[2]);
	sigset_t chld;
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, NULL);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	for (int round = 0; round < rounds; round++) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			setpgid(0, 0);
			state = seed * 0x9e3779b97f4a7c15UL + (uint64_t)round * 2654435761UL + 1;
			prepare();
			sigprocmask(SIG_UNBLOCK, &chld, NULL);
			for (int i = 0; i < CALLS; i++)
				call();
			_exit(0);
		}
		setpgid(pid, pid);
		struct timespec left = { .tv_nsec = ROUND_NS };
		siginfo_t info;
		while (sigtimedwait(&chld, &info, &left) == SIGCHLD && info.si_pid != pid)
			;
		kill(-pid, SIGKILL);
		while (waitpid(-1, NULL, 0) > 0)
			;
	}
	return 0;
}
