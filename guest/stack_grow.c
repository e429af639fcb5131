/* A stack that grows by recursion to six megabytes, and by one large step. */
#include "guest.h"

static unsigned deep(unsigned level)
{
	volatile char frame[4000];
	frame[0] = (char)level;
	frame[3999] = (char)(level >> 8);
	if (level == 0)
		return 0;
	return deep(level - 1) + (unsigned char)frame[0] + (unsigned char)frame[3999];
}

int main(void)
{
	printf("%u\n", deep(1500));
	volatile char big[1 << 20];
	for (size_t i = 0; i < sizeof(big); i += PAGE)
		big[i] = 1;
	printf("%u %d\n", deep(3), big[PAGE]);
	return 0;
}
