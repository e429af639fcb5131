/* A process that forks 16 times and writes one page after each fork. With "reap" as its argument
 * it waits for each child, else all children live to the end, and check what they remember. */
#include "look.h"

#define N 24
#define FORKS 16

int main(int argc, char **argv)
{
	int wait_at_once = argc > 1 && strcmp(argv[1], "reap") == 0;
	int go[2];
	pid_t pids[FORKS];
	int bad = 0;
	CHECK(pipe(go) == 0);
	char *p = apart(0, N, MAP_PRIVATE);
	touch(p, 0, N, 1);
	for (int i = 0; i < FORKS; i++) {
		pids[i] = fork();
		CHECK(pids[i] >= 0);
		if (pids[i] == 0) {
			if (!wait_at_once)
				hear(go);
			for (int k = 0; k < N; k++)
				bad += p[k * PAGE] != (k < i ? '0' + k : 'A' + k % 26);
			_exit(bad);
		}
		look3(1, p, N, i);
		p[i * PAGE] = (char)('0' + i);
		look3(2, p, N, i);
		if (wait_at_once)
			bad += reap(pids[i]);
	}
	if (!wait_at_once)
		for (int i = 0; i < FORKS; i++)
			tell(go);
	for (int i = 0; i < FORKS && !wait_at_once; i++)
		bad += reap(pids[i]);
	look(3, p, N);
	printf("%d wrong\n", bad);
	return bad;
}
