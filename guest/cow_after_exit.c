/* The parent writes after the child is gone: the page is its own again, whatever the kernel did to
 * the mapping meanwhile. Eight rounds, so that chains would show. */
#include "guest.h"

int main(void)
{
	unsigned *p = (unsigned *)pages(2);
	for (unsigned round = 0; round < 8; round++) {
		p[0] = round;
		pid_t pid = fork();
		if (pid == 0) {
			CHECK(p[0] == round);
			p[0] = 1000 + round;
			_exit(p[0] == 1000 + round ? 5 : 6);
		}
		CHECK(reap(pid) == 5);
		CHECK(p[0] == round);
		p[1024] += p[0];
	}
	printf("sum %u\n", p[1024]);
	return 0;
}
