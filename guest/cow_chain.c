/* A chain of generations: each forks the next after changing one page, so a page is found deeper
 * in the chain the longer ago it was written. Each generation checks all of its pages. */
#include "guest.h"

#define GENERATIONS 9

int main(void)
{
	char *p = pages(GENERATIONS + 1);
	for (int i = 0; i <= GENERATIONS; i++)
		memset(p + i * PAGE, '.', PAGE);
	int me = 0;
	for (; me < GENERATIONS; me++) {
		p[me * PAGE + 17] = '0' + me;
		fflush(stdout);
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid != 0) {
			int status = reap(pid);
			CHECK(status == me + 1);
			break;
		}
		for (int i = 0; i <= GENERATIONS; i++)
			CHECK(p[i * PAGE + 17] == (i <= me ? '0' + i : '.'));
	}
	for (int i = 0; i <= GENERATIONS; i++)
		CHECK(p[i * PAGE + 17] == (i <= me && i < GENERATIONS ? '0' + i : '.'));
	char row[GENERATIONS + 1];
	for (int i = 0; i <= GENERATIONS; i++)
		row[i] = p[i * PAGE + 17];
	dprintf(1, "generation %d: %.*s\n", me, GENERATIONS + 1, row);
	return me;
}
