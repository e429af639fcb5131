/* Children eat memory, one for each argument, so many MiB each, one after the other: each says when
 * it has, and keeps it until all are done. */
#include "look.h"

int main(int argc, char **argv)
{
	int done[2], go[2];
	pid_t pids[8];
	CHECK(argc <= 8 && pipe(done) == 0 && pipe(go) == 0);
	char *mine = pages(16);
	memset(mine, 'm', 16 * PAGE);
	for (int i = 1; i < argc; i++) {
		size_t size = (size_t)atoi(argv[i]) << 20;
		pids[i] = fork();
		CHECK(pids[i] >= 0);
		if (pids[i] == 0) {
			char *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
			CHECK(p != MAP_FAILED);
			close(done[0]);
			for (size_t at = 0; at < size; at += PAGE)
				p[at] = (char)(at / PAGE);
			close(done[1]);
			hear(go);
			for (size_t at = 0; at < size; at += PAGE)
				CHECK(p[at] == (char)(at / PAGE));
			_exit(0);
		}
		/* It is done, or dead, when nobody else has the other end of this pipe. */
		char c;
		close(done[1]);
		CHECK(read(done[0], &c, 1) == 0);
		close(done[0]);
		CHECK(pipe(done) == 0);
	}
	look(1, 0, 0);
	for (int i = 1; i < argc; i++)
		tell(go);
	for (int i = 1; i < argc; i++)
		printf("child %d\n", reap(pids[i]));
	look(2, 0, 0);
	for (int i = 0; i < 16; i++)
		CHECK(mine[i * PAGE] == 'm');
	memset(mine, 'n', 16 * PAGE);
	return 0;
}
