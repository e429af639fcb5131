/* A gigabyte of which sixty-four pages are touched: only they exist. */
#include "guest.h"

int main(void)
{
	size_t size = 1UL << 30, step = size / 64;
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(p != MAP_FAILED);
	CHECK(madvise(p, size, MADV_NOHUGEPAGE) == 0 || errno == EINVAL);
	for (size_t i = 0; i < 64; i++)
		p[i * step + i] = (char)(i + 1);
	unsigned sum = 0;
	for (size_t i = 0; i < 64; i++)
		sum += (unsigned char)p[i * step + i] + p[i * step + PAGE / 2];
	printf("sum %u\n", sum);
	pid_t pid = fork();
	if (pid == 0) {
		for (size_t i = 0; i < 64; i += 2)
			p[i * step + i] = 0;
		_exit(0);
	}
	CHECK(reap(pid) == 0);
	printf("still %d %d\n", p[0], p[63 * step + 63]);
	return 0;
}
