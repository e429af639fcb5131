/* Advice about pages that are there. */
#include "look.h"

#define N 512

int main(void)
{
	char *p = apart(0, N, MAP_PRIVATE);
	touch(p, 0, N, 1);
	look(1, p, N);
	CHECK(madvise(p, N * PAGE, MADV_COLD) == 0);
	look(2, p, N);
	CHECK(madvise(p, N * PAGE, MADV_WILLNEED) == 0);
	look(3, p, N);
	CHECK(madvise(p, N * PAGE, MADV_FREE) == 0);
	look(4, p, N);
	touch(p, 0, 8, 1);
	look(5, p, N);
	CHECK(madvise(p + 16 * PAGE, 16 * PAGE, MADV_DONTNEED) == 0);
	look(6, p, N);
	unsigned sum = read_all(p, 16, 32);
	look(7, p, N);
	CHECK(madvise(p + 8 * PAGE, 8 * PAGE, MADV_SEQUENTIAL) == 0);
	look(8, p, N);
	CHECK(madvise(p + 8 * PAGE, 8 * PAGE, MADV_RANDOM) == 0);
	CHECK(madvise(p + 8 * PAGE, 8 * PAGE, MADV_DONTDUMP) == 0);
	look(9, p, N);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0)
		_exit(0);
	look(10, p, N);
	CHECK(madvise(p, 8 * PAGE, MADV_FREE) == 0);
	look(11, p, N);
	printf("%u %d\n", sum, reap(pid));
	return 0;
}
