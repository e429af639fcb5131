/* Reads from a pipe: with an argument nobody will ever write to it, else a child does. */
#include "look.h"

int main(int argc, char **argv)
{
	(void)argv;
	int fd[2];
	CHECK(pipe(fd) == 0);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		if (argc > 1)
			hear(fd);
		until_asleep(getppid());
		look(1, 0, 0);
		tell(fd);
		_exit(0);
	}
	hear(fd);
	look(2, 0, 0);
	puts("heard");
	return reap(pid);
}
