/* Makes the engine's TLB grow and shrink: much memory, flushes (each mprotect takes a right away
 * from a page in use), little memory, flushes. */
#include "guest.h"

#define MANY 8192

int main(void)
{
	char *p = pages(MANY);
	unsigned long sum = 0;
	for (int round = 0; round < 8; round++) {
		for (int pass = 0; pass < 6; pass++) {
			for (size_t i = 0; i < MANY; i++)
				p[i * PAGE]++;
			CHECK(mprotect(p, PAGE, PROT_READ) == 0 && mprotect(p, PAGE, PROT_READ | PROT_WRITE) == 0);
		}
		for (int i = 0; i < 1000; i++) {
			CHECK(mprotect(p, PAGE, PROT_READ) == 0 && mprotect(p, PAGE, PROT_READ | PROT_WRITE) == 0);
			p[1]++;
		}
	}
	for (size_t i = 0; i < MANY; i++)
		sum += (unsigned char)p[i * PAGE];
	printf("%lu %d\n", sum, (unsigned char)p[1]);
	return 0;
}
