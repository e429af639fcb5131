/* Beyond the end of a file: the rest of its last page reads as zero, the next page is SIGBUS. */
#include "guest.h"

int main(void)
{
	int fd = scratch_file(PAGE + 100);
	char *p = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED);
	printf("%c %d %d\n", p[PAGE + 99], p[PAGE + 100], p[2 * PAGE - 1]);
	catch_signal(SIGBUS);
	int sig = SIGNAL_OF(*(volatile char *)(p + 2 * PAGE + 5));
	printf("signal %d code %d at +%ld\n", sig, guest_info.si_code,
	       (long)((char *)guest_info.si_addr - p));
	sig = SIGNAL_OF(*(volatile char *)(p + 2 * PAGE) = 1);
	printf("signal %d code %d at +%ld\n", sig, guest_info.si_code,
	       (long)((char *)guest_info.si_addr - p));
	p[PAGE + 200] = 'z'; /* lands beyond the end: never part of the file */
	struct stat st;
	CHECK(fstat(fd, &st) == 0);
	printf("size %ld\n", (long)st.st_size);
	return 0;
}
