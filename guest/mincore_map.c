/* mincore tells which pages of an anonymous mapping are there. */
#include "guest.h"

int main(void)
{
	char *p = pages(64);
	CHECK(madvise(p, 64 * PAGE, MADV_NOHUGEPAGE) == 0 || errno == EINVAL);
	CHECK(madvise(p, 64 * PAGE, MADV_RANDOM) == 0);
	p[0] = p[20 * PAGE] = p[63 * PAGE] = 1;
	unsigned char there[64];
	CHECK(mincore(p, 64 * PAGE, there) == 0);
	printf("%d %d %d\n", there[0] & 1, there[20] & 1, there[63] & 1);
	CHECK(munmap(p + 10 * PAGE, PAGE) == 0);
	CHECK(mincore(p, 64 * PAGE, there) == -1 && errno == ENOMEM);
	CHECK(mincore(p + 1, PAGE, there) == -1 && errno == EINVAL);
	CHECK(mincore(p, PAGE, NULL) == -1 && errno == EFAULT);
	return 0;
}
