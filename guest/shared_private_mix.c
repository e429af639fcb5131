/* One file mapped shared by the parent and private by the child: the child sees stores made before
 * its own, and keeps its own after. */
#include "guest.h"

int main(void)
{
	int fd = scratch_file(2 * PAGE), go[2], done[2];
	char c;
	CHECK(pipe(go) == 0 && pipe(done) == 0);
	char *s = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(s != MAP_FAILED);
	pid_t pid = fork();
	if (pid == 0) {
		char *p = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
		CHECK(p != MAP_FAILED && p[0] == 'a');
		CHECK(write(done[1], "", 1) == 1 && read(go[0], &c, 1) == 1);
		char seen = p[0];
		p[0] = 'C';
		CHECK(write(done[1], "", 1) == 1 && read(go[0], &c, 1) == 1);
		dprintf(1, "child saw %c, has %c, shared view %c\n", seen, p[0], s[0]);
		_exit(0);
	}
	CHECK(read(done[0], &c, 1) == 1);
	s[0] = '1';
	CHECK(write(go[1], "", 1) == 1 && read(done[0], &c, 1) == 1);
	s[0] = '2';
	CHECK(write(go[1], "", 1) == 1);
	CHECK(reap(pid) == 0);
	printf("parent %c\n", s[0]);
	return 0;
}
