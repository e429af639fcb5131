/* The stack, page by page downwards from where it is, as far as RLIMIT_STACK lets it; and a mapping
 * that grows downwards up to its neighbour. */
#include "look.h"
#include <alloca.h>

int main(void)
{
	volatile char here;
	catch_signal(SIGSEGV);
	stack_t alt = { .ss_sp = pages(16), .ss_size = 16 * PAGE };
	CHECK(sigaltstack(&alt, NULL) == 0);
	struct sigaction act = { .sa_sigaction = guest_catch, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	CHECK(sigaction(SIGSEGV, &act, NULL) == 0);
	struct rlimit limit = { 1 << 20, 8 << 20 };
	CHECK(setrlimit(RLIMIT_STACK, &limit) == 0);
	look(1, &here, 0);
	volatile char *p = alloca(300 << 10);
	p[0] = 1;
	look(2, &here, p);
	volatile char *far = (char *)&here - (900 << 10);
	int sig = SIGNAL_OF(far[0] = 1);
	look3(3, &here, far, sig);
	far = (char *)&here - (1100 << 10);
	int beyond = SIGNAL_OF(far[0] = 1);
	look3(4, &here, far, beyond);
	printf("%d %d %s\n", sig, beyond, (char *)guest_info.si_addr == far ? "there" : "elsewhere");
	return 0;
}
