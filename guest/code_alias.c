/* One page mapped twice, writable here and executable there, as compilers do that may not have
 * both at once: a store through the one is executed through the other. */
#include "guest.h"

int main(void)
{
	int fd = scratch_file(PAGE);
	unsigned char *w = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	unsigned char *x = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	CHECK(w != MAP_FAILED && x != MAP_FAILED);
	int sum = 0;
	for (int i = 0; i < 8; i++) {
		unsigned char code[] = { 0xb8, (unsigned char)i, 0, 0, 0, 0xc3 };
		if (i % 2)
			CHECK(pwrite(fd, code, sizeof(code), 0) == sizeof(code));
		else
			memcpy(w, code, sizeof(code));
		sum = sum * 10 + ((int (*)(void))x)();
	}
	printf("%d\n", sum);
	return 0;
}
