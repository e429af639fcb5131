/* MAP_FIXED replaces, MAP_FIXED_NOREPLACE refuses, hints are hints; bad arguments have their errnos. */
#include "guest.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

int main(void)
{
	int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;
	char *p = pages(4);
	memset(p, 'o', 4 * PAGE);
	CHECK(mmap(p + PAGE, 2 * PAGE, rw, anon | MAP_FIXED, -1, 0) == p + PAGE);
	printf("%c %d %d %c\n", p[0], p[PAGE], p[2 * PAGE], p[3 * PAGE]);
	CHECK(mmap(p + 3 * PAGE, 2 * PAGE, rw, anon | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED);
	printf("noreplace: %d\n", errno == EEXIST);
	char *hint = mmap(p, PAGE, rw, anon, -1, 0);
	CHECK(hint != MAP_FAILED && hint != p);
	CHECK(mmap(p + 1, PAGE, rw, anon | MAP_FIXED, -1, 0) == MAP_FAILED && errno == EINVAL);
	CHECK(mmap(NULL, 0, rw, anon, -1, 0) == MAP_FAILED && errno == EINVAL);
	CHECK(mmap(NULL, 1UL << 62, rw, anon, -1, 0) == MAP_FAILED && errno == ENOMEM);
	CHECK(mmap(NULL, PAGE, rw, MAP_PRIVATE, 77, 0) == MAP_FAILED && errno == EBADF);
	CHECK(mmap(NULL, PAGE, rw, MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EINVAL);
	int fd = open("/proc/self/exe", O_RDONLY);
	CHECK(fd >= 0);
	CHECK(mmap(NULL, PAGE, rw, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EACCES);
	CHECK(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 100) == MAP_FAILED && errno == EINVAL);
	char *image = mmap(NULL, PAGE, rw, MAP_PRIVATE, fd, 0);
	CHECK(image != MAP_FAILED);
	printf("%.3s\n", image + 1);
	return 0;
}
