/* Signals on an alternate stack, nested, with siglongjmp out of one. */
#include "guest.h"

static char *alt_base;
static int on_alt(void)
{
	char here;
	return &here >= alt_base && &here < alt_base + 16 * PAGE;
}

static void inner(int sig)
{
	printf("inner %d on alt %d\n", sig, on_alt());
}

static void outer(int sig)
{
	stack_t now;
	CHECK(sigaltstack(NULL, &now) == 0);
	printf("outer %d on alt %d flags %d\n", sig, on_alt(), now.ss_flags);
	stack_t change = { .ss_sp = alt_base, .ss_size = 8 * PAGE };
	CHECK(sigaltstack(&change, NULL) == -1 && errno == EPERM);
	raise(SIGUSR2);
}

int main(void)
{
	alt_base = pages(16);
	stack_t alt = { .ss_sp = alt_base, .ss_size = 16 * PAGE };
	CHECK(sigaltstack(&alt, NULL) == 0);
	struct sigaction act = { .sa_handler = outer, .sa_flags = SA_ONSTACK };
	CHECK(sigaction(SIGUSR1, &act, NULL) == 0);
	act.sa_handler = inner;
	CHECK(sigaction(SIGUSR2, &act, NULL) == 0);
	raise(SIGUSR1);
	act.sa_flags = 0;
	CHECK(sigaction(SIGUSR2, &act, NULL) == 0);
	raise(SIGUSR2);
	act.sa_sigaction = guest_catch;
	act.sa_flags = SA_SIGINFO | SA_ONSTACK;
	CHECK(sigaction(SIGSEGV, &act, NULL) == 0);
	for (int i = 0; i < 3; i++)
		printf("segv %d\n", SIGNAL_OF(*(volatile char *)8));
	stack_t bad = { .ss_sp = alt_base, .ss_size = 100 };
	CHECK(sigaltstack(&bad, NULL) == -1 && errno == ENOMEM);
	return 0;
}
