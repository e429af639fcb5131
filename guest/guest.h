/* What the guest programs share. A guest prints what it observed, nothing that differs between two
 * runs (no addresses, no pids), and exits 0 when all its CHECKs held. The tests compare output and
 * exit status with the same binary run by the host's own kernel. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL

#define CHECK(cond)                                                                     \
	do {                                                                            \
		if (!(cond)) {                                                          \
			fflush(stdout);                                                 \
			dprintf(2, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #cond, \
				errno);                                                 \
			_exit(99);                                                      \
		}                                                                       \
	} while (0)

/* Anonymous private memory of n pages. */
static inline char *pages(size_t n)
{
	char *p = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED);
	return p;
}

/* Wait for `pid` and return how it ended: exit status, or 128 + signal. */
static inline int reap(pid_t pid)
{
	int status;
	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Wait until process `pid` sleeps. One that kill() has just woken does not. */
static inline void until_asleep(pid_t pid)
{
	char path[40], text[200];
	sprintf(path, "/proc/%d/stat", pid);
	do {
		int fd = open(path, O_RDONLY);
		ssize_t n = read(fd, text, sizeof text - 1);
		CHECK(n > 0 && close(fd) == 0);
		text[n] = 0;
	} while (!strchr("SD", strrchr(text, ')')[2]));
}

/* An unlinked file of `size` bytes whose page n is filled with 'a' + n % 26. */
static inline int scratch_file(size_t size)
{
	char name[] = "/tmp/guestXXXXXX";
	int fd = mkstemp(name);
	CHECK(fd >= 0 && unlink(name) == 0);
	for (size_t at = 0; at < size; at += PAGE) {
		char block[PAGE];
		memset(block, 'a' + at / PAGE % 26, PAGE);
		size_t n = size - at < PAGE ? size - at : PAGE;
		CHECK(write(fd, block, n) == (ssize_t)n);
	}
	return fd;
}

static sigjmp_buf guest_jmp;
static siginfo_t guest_info;

__attribute__((unused)) static void guest_catch(int sig, siginfo_t *info, void *context)
{
	(void)context;
	guest_info = *info;
	siglongjmp(guest_jmp, sig);
}

/* Run a statement and give the signal it raised, 0 when none; si_code and si_addr in guest_info. */
#define SIGNAL_OF(statement)                                                   \
	({                                                                     \
		int sig_ = sigsetjmp(guest_jmp, 1);                            \
		if (sig_ == 0) {                                               \
			statement;                                             \
		}                                                              \
		sig_;                                                          \
	})

static inline void catch_signal(int sig)
{
	struct sigaction act = { .sa_sigaction = guest_catch, .sa_flags = SA_SIGINFO };
	CHECK(sigaction(sig, &act, NULL) == 0);
}
