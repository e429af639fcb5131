/* A hole in the middle of a mapping: the neighbours live on, the hole is gone, and what is mapped
 * there later is new. */
#include "guest.h"

int main(void)
{
	char *p = pages(9);
	for (int i = 0; i < 9; i++)
		p[i * PAGE] = 'a' + i;
	CHECK(munmap(p + 3 * PAGE, 3 * PAGE) == 0);
	CHECK(munmap(p + 3 * PAGE, 3 * PAGE) == 0); /* nothing there: no error */
	catch_signal(SIGSEGV);
	printf("%c %d %c\n", p[2 * PAGE], SIGNAL_OF(*(volatile char *)(p + 4 * PAGE)), p[6 * PAGE]);
	char *q = mmap(p + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(q == p + 4 * PAGE);
	printf("%d\n", q[0]);
	CHECK(mprotect(p, 9 * PAGE, PROT_READ) == -1 && errno == ENOMEM);
	CHECK(munmap(p, 9 * PAGE) == 0);
	printf("%d\n", SIGNAL_OF(*(volatile char *)p));
	CHECK(munmap(p + 1, PAGE) == -1 && errno == EINVAL);
	return 0;
}
