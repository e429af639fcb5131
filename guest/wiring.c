/* mlock: pages come at once and stay, fork copies them, munlock lets them go; a page that can't be
 * had; mlockall(MCL_FUTURE) locks what comes later. */
#include "look.h"

#define N 8

int main(void)
{
	char *p = apart(0, N, MAP_PRIVATE);
	char *q = apart(1, N, MAP_PRIVATE);
	touch(p, 0, 1, 1);
	look(1, p, N);
	CHECK(mlock(p, N * PAGE) == 0);
	look(2, p, N);
	touch(p, 0, N, 1);
	look(3, p, N);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		look(4, p, N);
		touch(p, 0, N, 1);
		look(5, p, N);
		_exit(0);
	}
	look(6, p, N);
	touch(p, 0, N, 1);
	look(7, p, N);
	CHECK(reap(pid) == 0);
	CHECK(mlock(p + 2 * PAGE, 2 * PAGE) == 0); /* counts once */
	CHECK(munlock(p, N * PAGE) == 0);
	look(8, p, N);
	CHECK(munmap(q + 6 * PAGE, PAGE) == 0);
	errno = 0;
	CHECK(mlock(q + 7 * PAGE, 2 * PAGE) == -1 && errno == ENOMEM);
	CHECK(munmap(q, N * PAGE) == 0);
	CHECK(mlockall(MCL_FUTURE) == 0);
	char *r = mmap(place(2), N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(r == place(2));
	look(9, r, N);
	CHECK(munlockall() == 0);
	look(10, r, N);
	CHECK(munmap(r, N * PAGE) == 0);
	look(11, r, N);
	int fd = scratch_file(2 * PAGE);
	char *f = mmap(place(3), 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(f == place(3));
	look(12, f, 2);
	errno = 0;
	int failed = mlock(f, 3 * PAGE); /* the last page is beyond the end of the file */
	look(13, f, 2);
	printf("%d %d, ", failed, errno == ENOMEM);
	puts("done");
	return 0;
}
