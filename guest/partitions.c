/* One mapping of 160 MiB, touched here and there. */
#include "look.h"

#define MIB (1UL << 20)

int main(void)
{
	char *p = mmap(place(0) + 16 * MIB, 160 * MIB, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(p == place(0) + 16 * MIB);
	look(1, p, 160 * MIB / PAGE);
	p[50 * MIB] = 1;
	look(2, p, 160 * MIB / PAGE);
	p[51 * MIB] = 2;
	look(3, p, 160 * MIB / PAGE);
	p[159 * MIB] = 3;
	look(4, p, 160 * MIB / PAGE);
	printf("%d %d %d\n", p[50 * MIB], p[51 * MIB], p[159 * MIB]);
	return 0;
}
