/* Masks are inherited by fork, pending signals are not; blocked signals wait; sigsuspend swaps. */
#include "guest.h"

static volatile sig_atomic_t count;
static void handler(int sig)
{
	(void)sig;
	count++;
}

int main(void)
{
	struct sigaction act = { .sa_handler = handler };
	CHECK(sigaction(SIGUSR1, &act, NULL) == 0);
	sigset_t set, old, none;
	sigemptyset(&none);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	CHECK(sigprocmask(SIG_BLOCK, &set, &old) == 0);
	raise(SIGUSR1);
	raise(SIGUSR1);
	printf("blocked: %d\n", (int)count);
	pid_t pid = fork();
	if (pid == 0) {
		sigset_t now;
		CHECK(sigpending(&now) == 0 && !sigismember(&now, SIGUSR1));
		CHECK(sigprocmask(0, NULL, &now) == 0 && sigismember(&now, SIGUSR1));
		_exit(0);
	}
	CHECK(reap(pid) == 0);
	CHECK(sigsuspend(&none) == -1 && errno == EINTR);
	printf("after sigsuspend: %d\n", (int)count);
	raise(SIGUSR1);
	CHECK(sigprocmask(SIG_SETMASK, &old, NULL) == 0);
	printf("after unblock: %d\n", (int)count);
	pid = fork();
	if (pid == 0) {
		for (int i = 0; i < 3; i++)
			kill(getppid(), SIGUSR1);
		_exit(4);
	}
	int status;
	while (waitpid(pid, &status, 0) == -1)
		CHECK(errno == EINTR);
	printf("from child: %d, status %d\n", count > 2, WEXITSTATUS(status));
	return 0;
}
