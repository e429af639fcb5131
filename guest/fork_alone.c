/* A child that exits at once and is waited for: what fork made copy on write is the parent's alone
 * again. */
#include "look.h"

#define N 16

int main(void)
{
	char *p = apart(0, N, MAP_PRIVATE);
	touch(p, 0, N, 1);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0)
		_exit(4);
	int status = reap(pid);
	look(1, p, N);
	touch(p, 0, N, 1);
	look(2, p, N);
	printf("%d\n", status);
	return 0;
}
