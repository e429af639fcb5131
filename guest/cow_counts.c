/* Copy on write, page by page and in a known order: 32 pages; the child writes 8 of them, then the
 * parent the first 16, then, when the child has gone, the rest. */
#include "look.h"

#define N 32

int main(void)
{
	int go[2], done[2];
	CHECK(pipe(go) == 0 && pipe(done) == 0);
	char *p = apart(0, N, MAP_PRIVATE);
	char *none = apart(1, 4, MAP_PRIVATE);
	char *shared = apart(2, 4, MAP_SHARED);
	touch(p, 0, N, 1);
	touch(shared, 0, 4, 1);
	CHECK(madvise(none, 4 * PAGE, MADV_DONTFORK) == 0);
	look3(1, p, N, shared);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		look3(10, p, N, shared);
		hear(go);
		touch(p, 0, 1, 1);
		look(11, p, N);
		touch(p, 1, 8, 1);
		look(12, p, N);
		unsigned sum = read_all(p, 8, N);
		look(13, p, N);
		tell(done);
		hear(go);
		_exit(sum == (unsigned)(read_all(p, 8, N)) ? 3 : 4);
	}
	look3(2, p, N, shared);
	tell(go);
	hear(done);
	touch(p, 0, 1, 1);
	look(3, p, N);
	touch(p, 1, 16, 1);
	look(4, p, N);
	tell(go);
	int status = reap(pid);
	look(5, p, N);
	touch(p, 16, N, 1);
	look(6, p, N);
	printf("child %d, sum %u\n", status, read_all(p, 0, N));
	return 0;
}
