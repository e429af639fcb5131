/* Six children, one after the other, each of which uses memory all over its address space, then
 * exits; the parent does the same to itself with munmap. */
#include "look.h"

int main(void)
{
	for (int i = 0; i < 6; i++) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			look(10, 0, 0);
			for (unsigned k = 0; k < 5; k++)
				touch(apart(k * 600, 8, MAP_PRIVATE), 0, 8, 1);
			look(11, 0, 0);
			_exit(5);
		}
		CHECK(reap(pid) == 5);
		look(1, 0, 0);
	}
	for (int i = 0; i < 3; i++) {
		char *p = apart(700, 40, MAP_PRIVATE);
		touch(p, 0, 40, 1);
		look(2, p, 40);
		CHECK(munmap(p, 40 * PAGE) == 0);
		look(3, p, 40);
	}
	puts("gone");
	return 0;
}
