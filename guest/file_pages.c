/* A file's pages: shared between read, write, a shared and a private mapping; its tail; its end. */
#include "look.h"

int main(void)
{
	int fd = scratch_file(3 * PAGE + 100);
	catch_signal(SIGBUS);
	char *s = mmap(place(0), 5 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *v = mmap(place(1), 5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(s == place(0) && v == place(1));
	look3(1, s, v, fd);
	CHECK(msync(s, 4 * PAGE, MS_SYNC) == 0);
	look3(2, s, v, fd);
	volatile unsigned sum = read_all(s, 0, 4) + read_all(v, 0, 4);
	look3(3, s, v, fd);
	s[PAGE] = 'S';
	look3(4, s, v, fd);
	v[2 * PAGE] = 'V';
	look3(5, s, v, fd);
	CHECK(pwrite(fd, "W", 1, 1000) == 1);
	look3(6, s, v, fd);
	CHECK(msync(s, 4 * PAGE, MS_SYNC) == 0);
	look3(7, s, v, fd);
	char c = 0;
	CHECK(pread(fd, &c, 1, PAGE) == 1);
	printf("%u %c%c%c tail %d\n", sum, c, v[1000], s[2 * PAGE], s[3 * PAGE + 100]);
	volatile int past = SIGNAL_OF(s[4 * PAGE] = 1);
	printf("past the end: %d %d at %ld\n", past, guest_info.si_code == BUS_ADRERR,
	       (long)((char *)guest_info.si_addr - s));
	CHECK(ftruncate(fd, PAGE + 10) == 0);
	look3(8, s, v, fd);
	volatile int cut = SIGNAL_OF((void)*(volatile char *)(s + 2 * PAGE));
	printf("cut off: %d, %d %d\n", cut, s[PAGE], s[PAGE + 11]);
	errno = 0;
	CHECK(munmap(s + PAGE, PAGE) == 0);
	CHECK(msync(s, 3 * PAGE, MS_SYNC) == -1 && errno == ENOMEM);
	CHECK(munmap(s, 5 * PAGE) == 0 && munmap(v, 5 * PAGE) == 0);
	look3(9, s, v, fd);
	return 0;
}
