/* The kernel writes the code: read(2) into a page that has already been executed. */
#include "guest.h"

int main(void)
{
	unsigned char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED);
	int fds[2], sum = 0;
	CHECK(pipe(fds) == 0);
	for (int i = 0; i < 8; i++) {
		unsigned char code[] = { 0xb8, (unsigned char)i, 0, 0, 0, 0xc3 };
		CHECK(write(fds[1], code, sizeof(code)) == sizeof(code));
		CHECK(read(fds[0], p, sizeof(code)) == sizeof(code));
		sum = sum * 10 + ((int (*)(void))p)();
	}
	printf("%d\n", sum);
	return 0;
}
