/* Memory that is given back in part after a fork is free again, although parent and child have shared
 * it: it need not wait for the last page of the mapping. Needs more than the machine has if not. */
#include "look.h"

#define N 4096 /* pages: a quarter of 64 MiB */
#define TIMES 6

static void nobody(void)
{
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0)
		_exit(0);
	CHECK(reap(pid) == 0);
}

/* A child that stays until it is told, by closing, that it may go. */
static pid_t somebody(int fds[2])
{
	CHECK(pipe(fds) == 0);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		char c;
		close(fds[1]);
		_exit((int)read(fds[0], &c, 1));
	}
	close(fds[0]);
	return pid;
}

static char *filled(int with)
{
	char *p = pages(N);
	memset(p, with, N * PAGE);
	return p;
}

int main(void)
{
	look(1, 0, 0);
	for (int i = 0; i < TIMES; i++) {
		char *p = filled(1);
		nobody();
		p[(N - 1) * PAGE] = 2;
		CHECK(munmap(p, (N - 1) * PAGE) == 0);
	}
	look(2, 0, 0);
	puts("munmap");

	for (int i = 0; i < TIMES; i++) {
		char *p = sbrk(N * PAGE);
		CHECK(p != (char *)-1);
		memset(p, 1, N * PAGE);
		nobody();
		p[0] = 2;
		CHECK(sbrk(-(long)(N - 1) * (long)PAGE) != (char *)-1);
	}
	look(3, 0, 0);
	puts("brk");

	for (int i = 0; i < TIMES; i++) {
		char *p = filled(1);
		nobody();
		CHECK(madvise(p, (N - 1) * PAGE, MADV_DONTNEED) == 0);
		CHECK(p[0] == 0 && p[(N - 1) * PAGE] == 1);
	}
	look(4, 0, 0);
	puts("madvise");

	/* What the parent lets go while the child sees it goes with the child. */
	for (int i = 0; i < TIMES; i++) {
		int fds[2];
		char *p = filled(1);
		pid_t pid = somebody(fds);
		CHECK(munmap(p + PAGE, (N - 2) * PAGE) == 0);
		CHECK(p[0] == 1 && p[(N - 1) * PAGE] == 1);
		close(fds[1]);
		CHECK(reap(pid) == 0);
	}
	look(5, 0, 0);
	puts("child");

	/* Behind the front: the parent has copied half of it while the child was there. */
	for (int i = 0; i < TIMES; i++) {
		int fds[2];
		char *p = filled(1);
		pid_t pid = somebody(fds);
		memset(p, 2, N / 2 * PAGE);
		close(fds[1]);
		CHECK(reap(pid) == 0);
		CHECK(munmap(p + PAGE, (N - 2) * PAGE) == 0);
		CHECK(p[0] == 2 && p[(N - 1) * PAGE] == 1);
	}
	look(6, 0, 0);
	puts("chain");
	return 0;
}
