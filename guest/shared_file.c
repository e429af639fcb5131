/* Two processes map one file shared: stores are seen by the other, by read(2), and by a third
 * mapping of the same file; a write(2) is seen through all of them. */
#include "guest.h"

int main(void)
{
	int fd = scratch_file(3 * PAGE);
	char *a = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *b = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE);
	CHECK(a != MAP_FAILED && b != MAP_FAILED);
	pid_t pid = fork();
	if (pid == 0) {
		memcpy(a + PAGE, "from child", 10);
		_exit(0);
	}
	CHECK(reap(pid) == 0);
	char buf[16] = "";
	CHECK(pread(fd, buf, 10, PAGE) == 10);
	printf("read: %s\nmap: %.10s\nother map: %.10s\n", buf, a + PAGE, b);
	CHECK(pwrite(fd, "by write", 8, PAGE) == 8);
	printf("map: %.10s\nother map: %.10s\n", a + PAGE, b);
	CHECK(munmap(a, 3 * PAGE) == 0);
	CHECK(pread(fd, buf, 10, PAGE) == 10);
	printf("after munmap: %.10s %.3s\n", buf, b + 10);
	return 0;
}
