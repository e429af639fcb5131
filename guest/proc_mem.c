/* Writing to one's own memory through /proc/self/mem: also where the program itself may only read,
 * and without anybody else noticing. */
#include "look.h"

#define N 4

int main(void)
{
	char *p = apart(0, N, MAP_PRIVATE);
	touch(p, 0, N, 1);
	CHECK(mprotect(p, N * PAGE, PROT_READ) == 0);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		unsigned sum = read_all(p, 0, N);
		int fd = open("/proc/self/mem", O_RDWR);
		CHECK(fd >= 0);
		look(1, p, N);
		CHECK(pwrite(fd, "xyz", 3, (off_t)(uintptr_t)(p + PAGE)) == 3);
		look(2, p, N);
		char buf[4] = "";
		CHECK(pread(fd, buf, 3, (off_t)(uintptr_t)(p + 2 * PAGE)) == 3);
		printf("%u: %.3s %c %c\n", sum, p + PAGE, buf[0], p[0]);
		look(3, p, N);
		/* Nothing is mapped at page N. */
		errno = 0;
		CHECK(pwrite(fd, "x", 1, (off_t)(uintptr_t)(p + N * PAGE)) == -1 && errno == EIO);
		fflush(stdout);
		catch_signal(SIGSEGV);
		_exit(SIGNAL_OF(*(volatile char *)(p + PAGE) = 1));
	}
	int status = reap(pid);
	printf("child %d, %.3s\n", status, p + PAGE);
	return 0;
}
