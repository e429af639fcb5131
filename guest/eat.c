/* Eats the memory that its argument says, in MiB, in a child; nothing without one. A small process
 * beside it goes on. */
#include "look.h"

int main(int argc, char **argv)
{
	size_t mib = argc > 1 ? (size_t)atoi(argv[1]) : 0;
	char *mine = pages(16);
	memset(mine, 'm', 16 * PAGE);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		char *p = mmap(NULL, (mib + 1) << 20, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		CHECK(p != MAP_FAILED);
		for (size_t i = 0; i < mib << 20; i += PAGE)
			p[i] = 1;
		_exit(0);
	}
	int status = reap(pid);
	look(1, 0, 0);
	for (int i = 0; i < 16; i++)
		CHECK(mine[i * PAGE] == 'm');
	memset(mine, 'n', 16 * PAGE);
	printf("child %d\n", status);
	return 0;
}
