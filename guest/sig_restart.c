/* A read interrupted by a signal: restarted with SA_RESTART, EINTR without. */
#include "guest.h"
#include <time.h>

static volatile sig_atomic_t count;
static void handler(int sig)
{
	(void)sig;
	count++;
}

/* A child that sends SIGALRM when we sleep, and then what `fd` is to get when we do so again. */
static pid_t alarm_when_asleep(int fd)
{
	pid_t parent = getpid();
	pid_t pid = fork();
	if (pid == 0) {
		until_asleep(parent);
		CHECK(kill(parent, SIGALRM) == 0);
		if (fd >= 0) {
			until_asleep(parent);
			CHECK(write(fd, "k", 1) == 1);
		}
		_exit(0);
	}
	CHECK(pid > 0);
	return pid;
}

int main(void)
{
	int fds[2];
	char c;
	CHECK(pipe(fds) == 0);
	struct sigaction act = { .sa_handler = handler };
	CHECK(sigaction(SIGALRM, &act, NULL) == 0);
	pid_t pid = alarm_when_asleep(-1);
	CHECK(read(fds[0], &c, 1) == -1 && errno == EINTR);
	CHECK(reap(pid) == 0);
	printf("interrupted, %d signal\n", (int)count);
	act.sa_flags = SA_RESTART;
	CHECK(sigaction(SIGALRM, &act, NULL) == 0);
	pid = alarm_when_asleep(fds[1]);
	CHECK(read(fds[0], &c, 1) == 1);
	printf("restarted, %d signals, got %c\n", (int)count, c);
	CHECK(reap(pid) == 0);
	struct timespec asked = { 100000, 0 }, rest = { 0, 0 };
	pid = alarm_when_asleep(-1);
	CHECK(nanosleep(&asked, &rest) == -1 && errno == EINTR);
	printf("slept partly: %d\n", rest.tv_sec > 90000 && rest.tv_sec <= 100000);
	CHECK(reap(pid) == 0);
	return 0;
}
