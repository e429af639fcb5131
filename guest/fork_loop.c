/* A process that forks in a loop, child after child, and goes on as the child: its backing chains
 * must not grow with it. */
#include "guest.h"

int main(void)
{
	unsigned *p = (unsigned *)pages(8);
	for (int round = 0; round < 24; round++) {
		p[(round % 8) * 1024]++;
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid != 0)
			_exit(reap(pid)); /* the parent only passes the status on */
	}
	unsigned sum = 0;
	for (int i = 0; i < 8; i++)
		sum += p[i * 1024];
	dprintf(1, "sum %u\n", sum);
	return sum == 24 ? 42 : 1;
}
