/* MAP_SHARED anonymous memory stays one memory across fork, and across the fork of the child. */
#include "guest.h"

int main(void)
{
	volatile int *p = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED);
	p[0] = 1;
	pid_t pid = fork();
	if (pid == 0) {
		p[0] = 2;
		pid_t grandchild = fork();
		if (grandchild == 0) {
			p[1024] = p[0] + 40; /* a page nobody touched before the forks */
			_exit(0);
		}
		_exit(reap(grandchild));
	}
	CHECK(reap(pid) == 0);
	printf("%d %d\n", p[0], p[1024]);
	return 0;
}
