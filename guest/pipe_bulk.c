/* A megabyte through a pipe between two processes, in odd sizes, with a checksum on both sides;
 * then the end of the pipe: EOF, SIGPIPE, EPIPE. */
#include "guest.h"

int main(void)
{
	int fds[2];
	CHECK(pipe(fds) == 0);
	size_t total = 1 << 20;
	pid_t pid = fork();
	if (pid == 0) {
		close(fds[0]);
		unsigned char *p = (unsigned char *)pages(256);
		for (size_t i = 0; i < total; i++)
			p[i] = (unsigned char)(i * i >> 3);
		for (size_t at = 0, n = 1; at < total; n = n * 3 % 70001 + 1) {
			size_t part = n < total - at ? n : total - at;
			ssize_t done = write(fds[1], p + at, part);
			CHECK(done == (ssize_t)part);
			at += part;
		}
		_exit(0);
	}
	close(fds[1]);
	unsigned sum = 0;
	size_t got = 0;
	unsigned char buf[9000];
	for (ssize_t n; (n = read(fds[0], buf, sizeof(buf))) > 0; got += n)
		for (ssize_t i = 0; i < n; i++)
			sum = sum * 31 + buf[i];
	printf("%zu bytes %08x, writer %d\n", got, sum, reap(pid));
	CHECK(pipe(fds) == 0);
	close(fds[0]);
	signal(SIGPIPE, SIG_IGN);
	CHECK(write(fds[1], "x", 1) == -1 && errno == EPIPE);
	pid = fork();
	if (pid == 0) {
		signal(SIGPIPE, SIG_DFL);
		write(fds[1], "x", 1);
		_exit(0);
	}
	printf("writer without reader: %d\n", reap(pid));
	return 0;
}
