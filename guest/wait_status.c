/* Every way a child's end can look to its parent: exits, signals, stops and continues. */
#include "guest.h"

int main(void)
{
	int status;
	pid_t pid = fork();
	if (pid == 0)
		_exit(300); /* only the low byte counts */
	CHECK(waitpid(pid, &status, 0) == pid);
	printf("exit %d\n", WEXITSTATUS(status));
	int signals[] = { SIGTERM, SIGKILL, SIGUSR1, SIGALRM };
	for (size_t i = 0; i < 4; i++) {
		pid = fork();
		if (pid == 0) {
			raise(signals[i]);
			_exit(0);
		}
		CHECK(waitpid(pid, &status, 0) == pid);
		printf("signaled %d by %d\n", WIFSIGNALED(status), WTERMSIG(status));
	}
	int go[2]; /* closed when the child may end */
	CHECK(pipe(go) == 0);
	pid = fork();
	if (pid == 0) {
		char none;
		close(go[1]);
		raise(SIGSTOP);
		CHECK(read(go[0], &none, 1) == 0);
		_exit(9);
	}
	CHECK(waitpid(pid, &status, WUNTRACED) == pid);
	printf("stopped %d by %d\n", WIFSTOPPED(status), WSTOPSIG(status));
	CHECK(waitpid(pid, &status, WNOHANG) == 0);
	CHECK(kill(pid, SIGCONT) == 0);
	siginfo_t info;
	CHECK(waitid(P_PID, pid, &info, WCONTINUED) == 0);
	printf("continued: code %d status %d\n", info.si_code, info.si_status);
	close(go[1]);
	CHECK(waitid(P_PID, pid, &info, WEXITED | WNOWAIT) == 0);
	printf("waitid: code %d status %d\n", info.si_code, info.si_status);
	CHECK(waitid(P_PID, pid, &info, WCONTINUED) == -1 && errno == ECHILD);
	CHECK(waitid(P_ALL, 0, &info, WSTOPPED | WNOHANG) == -1 && errno == ECHILD);
	printf("exit %d\n", reap(pid));
	CHECK(waitpid(-1, &status, 0) == -1 && errno == ECHILD);
	puts("no more children");
	return 0;
}
