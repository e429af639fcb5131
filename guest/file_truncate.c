/* A file that shrinks under its mappings: pages beyond the new end are gone (SIGBUS); when it grows
 * again they are zero. A private copy made before does not care. */
#include "guest.h"

int main(void)
{
	int fd = scratch_file(4 * PAGE);
	char *s = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(s != MAP_FAILED);
	CHECK(s[3 * PAGE] == 'd' && s[2 * PAGE] == 'c');
	CHECK(ftruncate(fd, PAGE + 10) == 0);
	catch_signal(SIGBUS);
	printf("signal %d\n", SIGNAL_OF(*(volatile char *)(s + 3 * PAGE)));
	printf("inside: %c then %d\n", s[PAGE + 9], s[PAGE + 10]);
	CHECK(ftruncate(fd, 4 * PAGE) == 0);
	printf("grown: %d %d %d\n", s[PAGE + 10], s[2 * PAGE], s[3 * PAGE]);
	s[3 * PAGE] = 'n';
	char c;
	CHECK(pread(fd, &c, 1, 3 * PAGE) == 1);
	printf("file: %c\n", c);
	return 0;
}
