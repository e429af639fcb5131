/* Eight children, all alive, touch the same eight shared pages for the first time, one child after
 * the other: four read them, four write them. */
#include "look.h"

#define N 8
#define CHILDREN 8

int main(void)
{
	int done[2], go[2];
	pid_t pids[CHILDREN];
	int status = 0;
	CHECK(pipe(done) == 0 && pipe(go) == 0);
	char *p = apart(0, N, MAP_SHARED);
	for (int i = 0; i < CHILDREN; i++) {
		pids[i] = fork();
		CHECK(pids[i] >= 0);
		if (pids[i] == 0) {
			unsigned sum = read_all(p, 0, 0); /* its code is there */
			look3(1, p, N, i);
			if (i < CHILDREN / 2)
				sum = read_all(p, 0, N);
			else
				touch(p, 0, N, 1);
			look3(2, p, N, i);
			tell(done);
			hear(go);
			_exit(sum == 0 ? 1 : 2);
		}
		hear(done);
	}
	look(3, p, N);
	for (int i = 0; i < CHILDREN; i++)
		tell(go);
	for (int i = 0; i < CHILDREN; i++)
		status += reap(pids[i]);
	look(4, p, N);
	printf("%d %c\n", status, p[(N - 1) * PAGE]);
	return 0;
}
