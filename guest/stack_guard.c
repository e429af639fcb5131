/* A stack that grows keeps its distance from what is mapped below it: 256 pages, unless that can't be
 * accessed anyway. The same for MAP_GROWSDOWN. */
#include "guest.h"

#define GAP 256

static int poke(volatile char *p)
{
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		*p = 1;
		_exit(0);
	}
	return reap(pid);
}

static void try_below(const char *what, char *wall)
{
	CHECK(mmap(wall, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == wall);
	printf("%s: %d", what, poke(wall + GAP / 4 * PAGE));
	printf(" %d", poke(wall + GAP * PAGE));
	printf(" %d", poke(wall + (GAP + 1) * PAGE));
	CHECK(mprotect(wall, PAGE, PROT_NONE) == 0);
	printf(", inaccessible %d", poke(wall + GAP / 4 * PAGE));
	CHECK(munmap(wall, PAGE) == 0);
	printf(", gone %d\n", poke(wall + GAP / 4 * PAGE));
}

int main(void)
{
	char here;
	char *sp = (char *)((uintptr_t)&here & ~(PAGE - 1));
	try_below("stack", sp - 4 * GAP * PAGE);

	char *top = (char *)0x200000000000UL;
	CHECK(mmap(top, PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0) == top);
	try_below("growsdown", top - 4 * GAP * PAGE);
	return 0;
}
