/* Frames that held code are given out again with other code, also in another process and after
 * fork's copy on write. */
#include "guest.h"

static int run_once(int value)
{
	unsigned char *p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED);
	unsigned char code[] = { 0xb8, (unsigned char)value, 0, 0, 0, 0xc3 };
	for (int i = 0; i < 4; i++)
		memcpy(p + i * PAGE, code, sizeof(code));
	CHECK(mprotect(p, 4 * PAGE, PROT_READ | PROT_EXEC) == 0);
	int sum = 0;
	for (int i = 0; i < 4; i++)
		sum += ((int (*)(void))(p + i * PAGE))();
	CHECK(munmap(p, 4 * PAGE) == 0);
	return sum;
}

int main(void)
{
	int sum = 0;
	for (int i = 1; i <= 20; i++)
		sum += run_once(i);
	printf("%d\n", sum);
	for (int i = 0; i < 4; i++) {
		pid_t pid = fork();
		if (pid == 0)
			_exit(run_once(i + 10));
		printf("%d\n", reap(pid));
	}
	unsigned char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED);
	unsigned char code[] = { 0xb8, 7, 0, 0, 0, 0xc3 };
	memcpy(p, code, sizeof(code));
	int (*f)(void) = (int (*)(void))p;
	CHECK(f() == 7);
	pid_t pid = fork();
	if (pid == 0) {
		p[1] = 8;
		_exit(f());
	}
	printf("child %d ", reap(pid));
	printf("parent %d\n", f());
	p[1] = 9;
	printf("parent %d\n", f());
	return 0;
}
