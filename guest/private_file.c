/* A private mapping of a file: own stores stay private; pages not yet written show the file. */
#include "guest.h"

int main(void)
{
	int fd = scratch_file(3 * PAGE);
	char *p = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(p != MAP_FAILED);
	printf("%c%c%c\n", p[0], p[PAGE], p[2 * PAGE]);
	p[PAGE] = 'X';
	CHECK(pwrite(fd, "12", 2, 0) == 2);
	CHECK(pwrite(fd, "34", 2, PAGE) == 2);
	char buf[2];
	CHECK(pread(fd, buf, 2, PAGE) == 2);
	printf("mapping %c%c %c%c, file %c%c\n", p[0], p[1], p[PAGE], p[PAGE + 1], buf[0], buf[1]);
	pid_t pid = fork();
	if (pid == 0) {
		p[0] = 'C';
		p[PAGE] = 'D';
		dprintf(1, "child %c%c %c%c\n", p[0], p[1], p[PAGE], p[PAGE + 1]);
		_exit(0);
	}
	CHECK(reap(pid) == 0);
	printf("parent %c%c %c%c\n", p[0], p[1], p[PAGE], p[PAGE + 1]);
	return 0;
}
