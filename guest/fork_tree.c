/* A binary tree of processes, four levels deep; exit statuses are summed on the way up. */
#include "guest.h"

static int tree(int depth, int *where)
{
	*where = depth;
	if (depth == 0)
		return 1;
	pid_t kid[2];
	for (int i = 0; i < 2; i++) {
		kid[i] = fork();
		CHECK(kid[i] >= 0);
		if (kid[i] == 0)
			_exit(tree(depth - 1, where));
	}
	int sum = 1 + reap(kid[0]) + reap(kid[1]);
	CHECK(*where == depth);
	return sum;
}

int main(void)
{
	int *where = (int *)pages(1);
	printf("%d processes\n", tree(4, where));
	return 0;
}
