/* Bad pointers to system calls: EFAULT, and what was transferred before stays counted. */
#include "guest.h"
#include <sys/syscall.h>
#include <sys/uio.h>

static const char *name_of(long result)
{
	return result >= 0 ? "ok" : errno == EFAULT ? "EFAULT" : strerror(errno);
}

int main(void)
{
	char *p = pages(4), *bad = (char *)0x123;
	memset(p, 'e', 4 * PAGE);
	CHECK(munmap(p + PAGE, PAGE) == 0);
	CHECK(mprotect(p + 2 * PAGE, PAGE, PROT_READ) == 0);
	int fds[2], fd = scratch_file(2 * PAGE);
	CHECK(pipe(fds) == 0);
	struct stat st;
	printf("open %s\n", name_of(open(bad, O_RDONLY)));
	printf("stat %s\n", name_of(stat(bad, &st)));
	printf("fstat %s\n", name_of(fstat(0, (struct stat *)bad)));
	printf("write %s\n", name_of(write(fds[1], bad, 10)));
	printf("read %s\n", name_of(pread(fd, bad, 10, 0)));
	printf("read into read-only %s\n", name_of(pread(fd, p + 2 * PAGE, 10, 0)));
	printf("pipe %s\n", name_of(pipe((int *)bad)));
	printf("kernel address %s\n", name_of(pread(fd, (void *)0xffff800000001000UL, 10, 0)));
	printf("partial read %ld\n", (long)pread(fd, p + PAGE - 100, 500, 0));
	printf("untouched before: %c, read: %c\n", p[PAGE - 101], p[PAGE - 1]);
	struct iovec iov[2] = { { p, 10 }, { bad, 10 } };
	printf("writev %ld\n", (long)writev(fds[1], iov, 2));
	printf("sigaction %s\n", name_of(syscall(SYS_rt_sigaction, SIGUSR1, bad, NULL, 8)));
	printf("nanosleep %s\n", name_of(syscall(SYS_nanosleep, bad, NULL)));
	char *args[] = { bad, NULL };
	printf("execve path %s\n", name_of(execve(bad, args, NULL)));
	printf("execve arg %s\n", name_of(execve("/proc/self/exe", args, NULL)));
	return 0;
}
