/* A child that has exited and has not been waited for, and then has. */
#include "look.h"

int main(void)
{
	for (int i = 0; i < 3; i++) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			touch(apart(0, 30, MAP_PRIVATE), 0, 30, 1);
			look(1, 0, 0);
			_exit(0);
		}
		siginfo_t info;
		CHECK(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) == 0);
		look(2, pid, 0);
		CHECK(reap(pid) == 0);
		look(3, pid, 0);
	}
	puts("reaped");
	return 0;
}
