/* The heap: grown, shrunk, grown again (zero again), and against its limit. */
#include "guest.h"
#include <sys/syscall.h>

int main(void)
{
	char *old = sbrk(0);
	char *start = (char *)(((uintptr_t)old + PAGE - 1) & ~(PAGE - 1));
	CHECK(brk(start + 8 * PAGE) == 0);
	for (int i = 0; i < 8; i++)
		start[i * PAGE] = 'h';
	CHECK(brk(start + 2 * PAGE) == 0);
	CHECK(brk(start + 8 * PAGE) == 0);
	printf("%c %c %d %d\n", start[0], start[PAGE], start[2 * PAGE], start[7 * PAGE]);
	struct rlimit limit = { 1 << 20, RLIM_INFINITY };
	CHECK(setrlimit(RLIMIT_DATA, &limit) == 0);
	CHECK(sbrk(8 << 20) == (void *)-1 && errno == ENOMEM);
	CHECK((char *)syscall(SYS_brk, 0) == start + 8 * PAGE);
	puts("limited");
	return 0;
}
