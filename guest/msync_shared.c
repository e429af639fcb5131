/* msync writes back; holes and bad flags are refused; the data is in the file afterwards. */
#include "guest.h"

int main(void)
{
	char name[] = "/tmp/msyncXXXXXX";
	int fd = mkstemp(name);
	CHECK(fd >= 0 && ftruncate(fd, 4 * PAGE) == 0);
	char *p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED);
	for (int i = 0; i < 4; i++)
		sprintf(p + i * PAGE, "page %d", i);
	CHECK(msync(p, 4 * PAGE, MS_SYNC) == 0);
	CHECK(msync(p, 4 * PAGE, MS_ASYNC | MS_INVALIDATE) == 0);
	CHECK(msync(p, PAGE, MS_SYNC | MS_ASYNC) == -1 && errno == EINVAL);
	CHECK(munmap(p + PAGE, PAGE) == 0);
	CHECK(msync(p, 4 * PAGE, MS_SYNC) == -1 && errno == ENOMEM);
	CHECK(munmap(p, 4 * PAGE) == 0 && close(fd) == 0);
	fd = open(name, O_RDONLY);
	CHECK(fd >= 0);
	for (int i = 0; i < 4; i++) {
		char buf[16];
		CHECK(pread(fd, buf, 16, i * PAGE) == 16);
		puts(buf);
	}
	CHECK(unlink(name) == 0);
	return 0;
}
