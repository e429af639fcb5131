/* Pages touched in a scattered order, then all of them read back: argument is the page count. */
#include "guest.h"

int main(int argc, char **argv)
{
	unsigned n = argc > 1 ? (unsigned)atoi(argv[1]) : 1024;
	unsigned *p = (unsigned *)pages(n);
	if (argc > 2)
		CHECK(madvise(p, n * PAGE, MADV_RANDOM) == 0);
	unsigned at = 1;
	for (unsigned i = 0; i < n; i++) {
		at = (at * 5 + 3) % n; /* n a power of two: a full cycle */
		p[at * 1024] = at ^ 0x5a5a;
	}
	unsigned good = 0;
	for (unsigned i = 0; i < n; i++)
		good += p[i * 1024] == (i ^ 0x5a5a);
	printf("%u of %u\n", good, n);
	return good != n;
}
