/* What the kernel keeps in its own map for programs: stacks, pipe buffers, arguments of an exec. */
#include "look.h"

int main(int argc, char **argv)
{
	if (argc > 1) {
		look(9, 0, 0);
		printf("%d %s\n", argc, argv[1]);
		return 0;
	}
	int fd[2], go[2];
	pid_t pids[4];
	CHECK(pipe(fd) == 0 && pipe(go) == 0);
	look(1, 0, 0);
	CHECK(write(fd[1], "in the pipe's own page", 22) == 22);
	look(2, 0, 0);
	for (int i = 0; i < 4; i++) {
		pids[i] = fork();
		CHECK(pids[i] >= 0);
		if (pids[i] == 0) {
			hear(go);
			_exit(0);
		}
	}
	look(3, 0, 0);
	for (int i = 0; i < 4; i++)
		tell(go);
	for (int i = 0; i < 4; i++)
		CHECK(reap(pids[i]) == 0);
	fflush(stdout);
	pid_t pid = vfork();
	CHECK(pid >= 0);
	if (pid == 0) {
		look(4, 0, 0);
		char *args[] = { "kernel_memory", "an argument", NULL };
		char *env[] = { NULL };
		execve("/proc/self/exe", args, env);
		_exit(9);
	}
	look(5, 0, 0);
	return reap(pid);
}
