/* Memory locked by mlock is copied at fork, not shared: neither side may fault on it later. */
#include "guest.h"

int main(void)
{
	char *p = pages(4);
	memset(p, 'w', 4 * PAGE);
	CHECK(mlock(p, 4 * PAGE) == 0);
	pid_t pid = fork();
	if (pid == 0) {
		CHECK(p[3 * PAGE] == 'w');
		p[3 * PAGE] = 'c';
		_exit(p[3 * PAGE] == 'c' ? 1 : 2);
	}
	p[2 * PAGE] = 'p';
	int status = reap(pid);
	printf("%d %c%c\n", status, p[2 * PAGE], p[3 * PAGE]);
	CHECK(munlock(p, 4 * PAGE) == 0);
	CHECK(munmap(p, 4 * PAGE) == 0);
	return 0;
}
