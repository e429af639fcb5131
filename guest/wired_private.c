/* A child's copy of a wired private file mapping is the child's own, and still a view of the file:
 * the file is there again when the private pages are thrown away. */
#include "guest.h"

#define N 4

int main(void)
{
	int fd = scratch_file(N * PAGE);
	char *p = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(p != MAP_FAILED);
	p[0] = 'X';
	CHECK(mlock(p, N * PAGE) == 0);
	fflush(stdout);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		p[PAGE] = 'Y';
		printf("%c%c%c%c\n", p[0], p[PAGE], p[2 * PAGE], p[3 * PAGE]);
		CHECK(madvise(p, N * PAGE, MADV_DONTNEED) == 0);
		printf("%c%c%c%c\n", p[0], p[PAGE], p[2 * PAGE], p[3 * PAGE]);
		fflush(stdout);
		_exit(0);
	}
	CHECK(reap(pid) == 0);
	printf("%c%c%c%c\n", p[0], p[PAGE], p[2 * PAGE], p[3 * PAGE]);
	return 0;
}
