/* Linux's MADV_DONTNEED: private memory is dropped at once. Anonymous pages read as zero again, a
 * private file mapping shows the file again, a shared one loses nothing. */
#include "guest.h"

int main(void)
{
	char *p = pages(3);
	memset(p, 'x', 3 * PAGE);
	CHECK(madvise(p + PAGE, PAGE, MADV_DONTNEED) == 0);
	printf("%c %d %c\n", p[0], p[PAGE], p[2 * PAGE]);
	int fd = scratch_file(2 * PAGE);
	char *f = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	char *s = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(f != MAP_FAILED && s != MAP_FAILED);
	f[0] = 'P';
	s[PAGE] = 'S';
	CHECK(madvise(f, 2 * PAGE, MADV_DONTNEED) == 0);
	CHECK(madvise(s, 2 * PAGE, MADV_DONTNEED) == 0);
	printf("%c %c %c\n", f[0], f[PAGE], s[PAGE]);
	pid_t pid = fork();
	if (pid == 0) {
		CHECK(madvise(p, PAGE, MADV_DONTNEED) == 0);
		_exit(p[0] == 0 ? 8 : 9);
	}
	int status = reap(pid);
	printf("child %d parent %c\n", status, p[0]);
	CHECK(madvise(p + 1, PAGE, MADV_DONTNEED) == -1 && errno == EINVAL);
	CHECK(munmap(p + PAGE, PAGE) == 0);
	CHECK(madvise(p, 3 * PAGE, MADV_DONTNEED) == -1 && errno == ENOMEM);
	printf("%d %d\n", p[0], p[2 * PAGE]);
	return 0;
}
