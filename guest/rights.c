/* Rights of pages as mprotect changes them, and what accesses against them get. */
#include "look.h"

#define N 8

static const char *name(int sig)
{
	if (sig == 0)
		return "ok";
	return guest_info.si_code == SEGV_ACCERR ? "ACCERR" : "MAPERR";
}

int main(void)
{
	catch_signal(SIGSEGV);
	char *p = apart(0, N, MAP_PRIVATE);
	volatile char *v = p;
	touch(p, 0, N, 1);
	look(1, p, N);
	CHECK(mprotect(p, N * PAGE, PROT_READ) == 0);
	look(2, p, N);
	int sig = SIGNAL_OF(v[3 * PAGE + 5] = 1);
	printf("write: %s at %ld\n", name(sig), (long)((char *)guest_info.si_addr - p));
	CHECK(mprotect(p, N * PAGE, PROT_READ | PROT_WRITE) == 0);
	look(3, p, N);
	touch(p, 0, 4, 1);
	look(4, p, N);
	CHECK(mprotect(p, N * PAGE, PROT_NONE) == 0);
	look(5, p, N);
	sig = SIGNAL_OF((void)v[2 * PAGE]);
	printf("read: %s\n", name(sig));
	CHECK(mprotect(p, N * PAGE, PROT_READ | PROT_EXEC) == 0);
	volatile unsigned sum = read_all(p, 0, N);
	look(6, p, N);
	CHECK(mprotect(p, N * PAGE, PROT_READ) == 0);
	look(7, p, N);
	sig = SIGNAL_OF(((void (*)(void))(uintptr_t)p)());
	printf("run: %s at %ld\n", name(sig), (long)((char *)guest_info.si_addr - p));
	/* A hole at the end: nothing of it may change before the hole was seen … to DragonFly; Linux
	 * changes what comes before the hole. */
	CHECK(munmap(p + 6 * PAGE, PAGE) == 0);
	sig = SIGNAL_OF((void)v[6 * PAGE]);
	printf("hole: %s\n", name(sig));
	sig = SIGNAL_OF((void)*(volatile char *)0xffff800000000000UL);
	printf("kernel: %s, sum %u\n", name(sig), sum);
	/* A file opened for reading can't be written through a shared mapping, ever. */
	int fd = open("/proc/self/exe", O_RDONLY);
	char *f = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	CHECK(fd >= 0 && f != MAP_FAILED);
	look(8, f, 1);
	CHECK(mprotect(f, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
	look(9, f, 1);
	return 0;
}
