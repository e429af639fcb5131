/* Copy on write after fork, in both directions: whoever writes first gets a page of its own, the
 * other keeps the old one. Page 0 is written by the child, page 1 by the parent, page 2 by both,
 * page 3 by nobody. */
#include "guest.h"

int main(void)
{
	char *p = pages(4);
	for (int i = 0; i < 4; i++)
		p[i * PAGE] = 'A' + i;
	int go[2], done[2];
	CHECK(pipe(go) == 0 && pipe(done) == 0);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		char c;
		p[0 * PAGE] = 'x';
		p[2 * PAGE] = 'y';
		CHECK(write(done[1], "c", 1) == 1 && read(go[0], &c, 1) == 1);
		dprintf(1, "child  %c%c%c%c\n", p[0], p[PAGE], p[2 * PAGE], p[3 * PAGE]);
		_exit(7);
	}
	char c;
	CHECK(read(done[0], &c, 1) == 1);
	p[1 * PAGE] = 'p';
	p[2 * PAGE] = 'q';
	CHECK(write(go[1], "g", 1) == 1);
	int status = reap(pid);
	printf("parent %c%c%c%c, child exited %d\n", p[0], p[PAGE], p[2 * PAGE], p[3 * PAGE], status);
	return 0;
}
