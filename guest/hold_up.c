/* Three calls that the machine may hold up (here, because the test keeps a page busy), and a second
 * process in the same address space that wants to change it meanwhile. */
#include "look.h"
#include <sched.h>

#define N 4

static volatile int step;
static char *file, *locked;

static int helper(void *unused)
{
	(void)unused;
	while (step < 1)
		sched_yield();
	until_asleep(getppid());
	look(5, file, N);
	char *q = mmap(place(9), PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	look(6, file, N);
	while (step < 2)
		sched_yield();
	until_asleep(getppid());
	look(8, locked, N);
	int failed = munmap(locked, N * PAGE);
	look(9, locked, N);
	_exit(q != place(9) || failed);
}

int main(void)
{
	char *p = apart(0, N, MAP_PRIVATE);
	touch(p, 0, N, 1);
	look(1, p, N);
	touch(p, 1, 2, 1);
	look(2, p, N);

	int fd = scratch_file(N * PAGE);
	file = mmap(place(1), N * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(file == place(1));
	touch(file, 0, N, 1);
	locked = apart(2, N, MAP_PRIVATE);
	touch(locked, 0, N, 1);
	char *stack = pages(16);
	pid_t pid = clone(helper, stack + 16 * PAGE, CLONE_VM | SIGCHLD, NULL);
	CHECK(pid > 0);
	look(3, file, N);
	step = 1;
	CHECK(msync(file, N * PAGE, MS_SYNC) == 0);
	look(4, file, N);
	look(7, locked, N);
	step = 2;
	mlock(locked, N * PAGE); /* which of the two calls comes first is the host's business */
	look(10, locked, N);
	printf("helper %d, %c", reap(pid), p[PAGE]);
	catch_signal(SIGSEGV);
	printf(", signal %d\n", SIGNAL_OF((void)*(volatile char *)locked));
	return 0;
}
