/* What mmap, munmap and mprotect do to the shape of a map: growing, cutting, merging, finding room. */
#include "look.h"

static char *next_to(char *p, size_t n)
{
	char *q = mmap(p, n * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(q == p);
	return q;
}

int main(void)
{
	/* Growing at the end, before and after memory has been used. */
	char *p = next_to(place(0), 16);
	next_to(p + 16 * PAGE, 16);
	look(1, p, 32);
	touch(p, 0, 32, 1);
	next_to(p + 32 * PAGE, 16);
	look(2, p, 48);
	touch(p, 32, 48, 1);
	look(3, p, 48);

	/* Cutting and merging. */
	CHECK(mprotect(p + 8 * PAGE, 8 * PAGE, PROT_READ) == 0);
	look(4, p, 48);
	CHECK(mprotect(p + 8 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE) == 0);
	look(5, p, 48);

	/* A hole in the middle gives its pages back at once, though the object lives on. */
	look(6, p, 48);
	CHECK(munmap(p + 16 * PAGE, 16 * PAGE) == 0);
	look(7, p, 48);
	next_to(p + 16 * PAGE, 16);
	look(8, p, 48);
	printf("%d%c%c\n", p[20 * PAGE], p[15 * PAGE], p[32 * PAGE]);

	/* The lowest hole that fits is taken, also after a larger one was looked for. */
	char *holes[8];
	char *big = pages(64);
	CHECK(munmap(big, 64 * PAGE) == 0);
	for (int i = 0; i < 8; i++)
		holes[i] = pages(8);
	CHECK(munmap(holes[2] + 2 * PAGE, 3 * PAGE) == 0);
	CHECK(munmap(holes[5] + 2 * PAGE, 4 * PAGE) == 0);
	look(9, holes[2], holes[5]);
	char *three = pages(3);
	look3(10, three, holes[2], holes[5]);
	char *four = pages(4);
	look3(11, four, holes[2], holes[5]);
	return 0;
}
