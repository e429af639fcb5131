/* mlock and its limits, and what munlock and munmap do to the count. */
#include "guest.h"

int main(void)
{
	struct rlimit limit = { 8 * PAGE, 8 * PAGE };
	CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
	char *p = pages(16);
	CHECK(mlock(p, 4 * PAGE) == 0);
	CHECK(mlock(p + 100, 4 * PAGE) == 0); /* rounds to five pages, four of them locked already */
	CHECK(munlock(p, 16 * PAGE) == 0);
	CHECK(munmap(p + 4 * PAGE, PAGE) == 0);
	CHECK(mlock(p, 8 * PAGE) == -1 && errno == ENOMEM); /* a hole */
	CHECK(munlock(p, 4 * PAGE) == 0);
	puts("ok");
	return 0;
}
