/* Endless recursion meets RLIMIT_STACK: SIGSEGV, on an alternate stack if there is one, and death
 * without. */
#include "guest.h"

static unsigned endless(unsigned level);
static unsigned (*volatile again)(unsigned) = endless; /* or the compiler sees through it */

static unsigned endless(unsigned level)
{
	volatile char frame[2000];
	frame[0] = (char)level;
	return again(level + 1) + (unsigned char)frame[0];
}

int main(void)
{
	struct rlimit limit = { 1 << 20, 8 << 20 };
	CHECK(setrlimit(RLIMIT_STACK, &limit) == 0);
	pid_t pid = fork();
	if (pid == 0) {
		struct rlimit no_core = { 0, 0 };
		setrlimit(RLIMIT_CORE, &no_core);
		_exit((int)endless(0));
	}
	printf("child %d\n", reap(pid));
	fflush(stdout);
	stack_t alt = { .ss_sp = pages(16), .ss_size = 16 * PAGE };
	CHECK(sigaltstack(&alt, NULL) == 0);
	struct sigaction act = { .sa_sigaction = guest_catch, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	CHECK(sigaction(SIGSEGV, &act, NULL) == 0);
	printf("signal %d\n", SIGNAL_OF(endless(0)));
	return 0;
}
