/* Who marks a page as used and as changed: the program, and the kernel on its behalf. */
#include "look.h"

int main(void)
{
	int fd[2];
	CHECK(pipe(fd) == 0);
	char *p = apart(0, 8, MAP_PRIVATE);
	CHECK(madvise(p, 8 * PAGE, MADV_NORMAL) == 0);
	touch(p, 3, 4, 1); /* its neighbours come with it, unused */
	look(1, p, 8);
	CHECK(write(fd[1], p + 4 * PAGE, 10) == 10);
	look(2, p, 8);
	CHECK(read(fd[0], p + 5 * PAGE, 10) == 10);
	look(3, p, 8);
	(void)*(volatile char *)(p + 2 * PAGE);
	look(4, p, 8);
	*(volatile char *)(p + 2 * PAGE) = 1;
	look(5, p, 8);
	puts("done");
	return 0;
}
