/* si_code and si_addr for each way of touching what one may not. */
#include "guest.h"

static void report(const char *what, int sig, char *base)
{
	long at = (char *)guest_info.si_addr - base;
	printf("%-12s signal %d code %d offset %ld\n", what, sig, guest_info.si_code, at);
}

int main(void)
{
	char *p = pages(4);
	p[0] = (char)0xc3; /* ret */
	catch_signal(SIGSEGV);
	CHECK(munmap(p + 2 * PAGE, PAGE) == 0);
	CHECK(mprotect(p + 3 * PAGE, PAGE, PROT_NONE) == 0);
	CHECK(mprotect(p + PAGE, PAGE, PROT_READ) == 0);
	report("null", SIGNAL_OF(*(volatile char *)NULL), NULL);
	report("read-only", SIGNAL_OF(*(volatile char *)(p + PAGE + 3) = 1), p);
	report("hole", SIGNAL_OF(*(volatile char *)(p + 2 * PAGE + 9)), p);
	report("none", SIGNAL_OF(*(volatile char *)(p + 3 * PAGE)), p);
	report("no exec", SIGNAL_OF(((void (*)(void))p)()), p);
	report("jump null", SIGNAL_OF(((void (*)(void))NULL)()), NULL);
	report("kernel", SIGNAL_OF(*(volatile char *)0xffffffff81000000UL), (char *)0xffffffff81000000UL);
	return 0;
}
