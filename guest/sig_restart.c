/* A read interrupted by a signal: restarted with SA_RESTART, EINTR without. */
#include "guest.h"
#include <time.h>

static volatile sig_atomic_t count;
static void handler(int sig)
{
	(void)sig;
	count++;
}

static void alarm_in_ms(int ms)
{
	struct itimerval timer = { .it_value = { 0, ms * 1000 } };
	CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

int main(void)
{
	int fds[2];
	char c;
	CHECK(pipe(fds) == 0);
	struct sigaction act = { .sa_handler = handler };
	CHECK(sigaction(SIGALRM, &act, NULL) == 0);
	alarm_in_ms(30);
	CHECK(read(fds[0], &c, 1) == -1 && errno == EINTR);
	printf("interrupted, %d signal\n", (int)count);
	act.sa_flags = SA_RESTART;
	CHECK(sigaction(SIGALRM, &act, NULL) == 0);
	pid_t pid = fork();
	if (pid == 0) {
		usleep(120 * 1000);
		CHECK(write(fds[1], "k", 1) == 1);
		_exit(0);
	}
	alarm_in_ms(30);
	CHECK(read(fds[0], &c, 1) == 1);
	printf("restarted, %d signals, got %c\n", (int)count, c);
	while (waitpid(pid, NULL, 0) == -1)
		CHECK(errno == EINTR);
	struct timespec asked = { 0, 200 * 1000 * 1000 }, rest = { 0, 0 };
	alarm_in_ms(30);
	CHECK(nanosleep(&asked, &rest) == -1 && errno == EINTR);
	printf("slept partly: %d\n", rest.tv_nsec > 0 && rest.tv_nsec < 190 * 1000 * 1000);
	return 0;
}
