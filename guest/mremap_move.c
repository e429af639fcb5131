/* mremap: in place, moved, to a fixed address; contents travel, the old place is gone. */
#include "guest.h"

int main(void)
{
	char *room = pages(64);
	CHECK(munmap(room, 64 * PAGE) == 0);
	char *p = mmap(room, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(p == room);
	strcpy(p, "first");
	strcpy(p + PAGE, "second");
	char *q = mremap(p, 2 * PAGE, 8 * PAGE, 0);
	printf("grown in place: %d, new page %d\n", q == p, q[7 * PAGE]);
	char *wall = mmap(p + 8 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(wall == p + 8 * PAGE);
	CHECK(mremap(p, 8 * PAGE, 16 * PAGE, 0) == MAP_FAILED && errno == ENOMEM);
	q = mremap(p, 8 * PAGE, 16 * PAGE, MREMAP_MAYMOVE);
	CHECK(q != MAP_FAILED);
	printf("moved: %d, %s %s\n", q != p, q, q + PAGE);
	catch_signal(SIGSEGV);
	printf("old place: %d\n", SIGNAL_OF(*(volatile char *)p));
	char *r = mremap(q, 16 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + 40 * PAGE);
	printf("fixed: %d, %s %s\n", r == room + 40 * PAGE, r, r + PAGE);
	printf("old place: %d\n", SIGNAL_OF(*(volatile char *)q));
	q = mremap(r, 2 * PAGE, PAGE, 0);
	printf("shrunk: %d, then %d\n", q == r, SIGNAL_OF(*(volatile char *)(r + PAGE)));
	return 0;
}
