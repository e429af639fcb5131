/* Copies that overlap and straddle pages, by the program and by the kernel. */
#include "guest.h"

int main(void)
{
	unsigned char *p = (unsigned char *)pages(6);
	for (unsigned i = 0; i < 3 * PAGE; i++)
		p[i] = (unsigned char)(i * 7 + i / 256);
	memmove(p + 100, p, 3 * PAGE);
	memmove(p + 50, p + 100, 3 * PAGE);
	unsigned sum = 0;
	for (unsigned i = 0; i < 6 * PAGE; i++)
		sum = sum * 31 + p[i];
	printf("%08x\n", sum);
	int fds[2];
	CHECK(pipe(fds) == 0);
	CHECK(write(fds[1], p + PAGE - 13, 5000) == 5000);
	CHECK(read(fds[0], p + 3 * PAGE - 1, 5000) == 5000);
	sum = 0;
	for (unsigned i = 0; i < 6 * PAGE; i++)
		sum = sum * 31 + p[i];
	printf("%08x\n", sum);
	return 0;
}
