/* An address space of thousands of entries: every other page of a large mapping has other rights. */
#include "look.h"

#define N 3000

int main(void)
{
	char *p = apart(0, N, MAP_PRIVATE);
	for (size_t i = 0; i < N; i += 2)
		CHECK(mprotect(p + i * PAGE, PAGE, PROT_READ) == 0);
	touch(p, 1, N, 2);
	look(1, p, N);
	printf("%u\n", read_all(p, 0, N));
	CHECK(munmap(p, N * PAGE) == 0);
	look(2, p, N);
	return 0;
}
