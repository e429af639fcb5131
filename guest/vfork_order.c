/* vfork: the child runs in the parent's memory, the parent waits until it exits or execs. */
#include "guest.h"

int main(int argc, char **argv)
{
	if (argc > 1)
		_exit(21);
	volatile int shared = 0;
	pid_t pid = vfork();
	if (pid == 0) {
		shared = 5;
		_exit(11);
	}
	printf("saw %d, child %d\n", shared, reap(pid));
	char *args[] = { argv[0], "again", NULL };
	pid = vfork();
	if (pid == 0) {
		shared = 6;
		execv("/proc/self/exe", args);
		_exit(1);
	}
	printf("saw %d, child %d\n", shared, reap(pid));
	return 0;
}
