/* Anonymous memory from its first touch on: page by page, by reading, with neighbours, in order. */
#include "look.h"

int main(void)
{
	look(0, 0, 0);
	char *p = apart(0, 64, MAP_PRIVATE);
	look(1, p, 64);
	touch(p, 0, 64, 1);
	look(2, p, 64);

	char *q = apart(1, 16, MAP_PRIVATE);
	touch(q, 0, 1, 1); /* its object and page table */
	look(3, q, 16);
	unsigned sum = read_all(q, 1, 16);
	look(4, q, 16);
	touch(q, 1, 16, 1);
	look(5, q, 16);

	char *r = apart(2, 128, MAP_PRIVATE);
	CHECK(madvise(r, 128 * PAGE, MADV_NORMAL) == 0);
	touch(r, 20, 21, 1);
	look(6, r, 128);
	touch(r, 60, 61, 1);
	look(7, r, 128);

	char *s = apart(3, 128, MAP_PRIVATE);
	CHECK(madvise(s, 128 * PAGE, MADV_SEQUENTIAL) == 0);
	touch(s, 20, 21, 1);
	look(8, s, 128);
	touch(s, 60, 61, 1);
	look(9, s, 128);

	printf("sum %u, %c%c%c\n", sum, p[63 * PAGE], q[15 * PAGE], r[60 * PAGE]);
	return 0;
}
