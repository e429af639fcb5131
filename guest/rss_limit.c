/* More memory than RLIMIT_RSS allows, with the 16 MiB that the limit may be passed by. */
#include "look.h"

#define N 6144 /* 24 MiB */

int main(int argc, char **argv)
{
	(void)argv;
	struct rlimit limit = { 2 << 20, 2 << 20 };
	if (argc == 1)
		CHECK(setrlimit(RLIMIT_RSS, &limit) == 0);
	char *p = pages(N);
	for (size_t i = 0; i < N; i++)
		*(unsigned *)(p + i * PAGE) = i * 2654435761u;
	look(1, p, N);
	for (size_t i = 0; i < N; i++)
		CHECK(*(unsigned *)(p + i * PAGE) == (unsigned)(i * 2654435761u));
	puts("all there");
	return 0;
}
