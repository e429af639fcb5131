/* MAP_GROWSDOWN: a mapping that extends itself when the page below is touched. */
#include "guest.h"

int main(void)
{
	char *room = pages(600);
	CHECK(munmap(room, 600 * PAGE) == 0);
	char *p = mmap(room + 590 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	CHECK(p == room + 590 * PAGE);
	for (int i = 0; i < 20; i++)
		p[-i * (long)PAGE] = (char)i;
	int sum = 0;
	for (int i = 0; i < 20; i++)
		sum += p[-i * (long)PAGE];
	printf("sum %d\n", sum);
	return 0;
}
