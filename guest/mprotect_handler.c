/* The classic user-level pager: a SIGSEGV handler that grants the missing right and returns. */
#include "guest.h"

static char *area;
static int faults;

static void grant(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	CHECK(info->si_code == SEGV_ACCERR);
	char *page = (char *)((uintptr_t)info->si_addr & ~(PAGE - 1));
	CHECK(page >= area && page < area + 8 * PAGE);
	faults++;
	CHECK(mprotect(page, PAGE, PROT_READ | PROT_WRITE) == 0);
}

int main(void)
{
	area = pages(8);
	for (int i = 0; i < 8; i++)
		area[i * PAGE] = i;
	CHECK(mprotect(area, 8 * PAGE, PROT_NONE) == 0);
	struct sigaction act = { .sa_sigaction = grant, .sa_flags = SA_SIGINFO };
	CHECK(sigaction(SIGSEGV, &act, NULL) == 0);
	int sum = 0;
	for (int i = 0; i < 8; i++)
		sum += area[i * PAGE];
	CHECK(mprotect(area, 4 * PAGE, PROT_READ) == 0);
	for (int i = 0; i < 8; i++)
		area[i * PAGE] += 10;
	printf("sum %d, faults %d, last %d\n", sum, faults, area[7 * PAGE]);
	return 0;
}
