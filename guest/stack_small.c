/* A small RLIMIT_STACK holds from the first instruction of a program on. */
#include "guest.h"

int main(int argc, char **argv)
{
	volatile char here = 0;
	if (argc > 1) {
		volatile char *p = &here - atoi(argv[1]) * 1024;
		*p = 1;
		return 0;
	}
	struct rlimit limit = { 65536, 65536 };
	CHECK(setrlimit(RLIMIT_STACK, &limit) == 0);
	static const char *const deep[] = { "8", "40", "100" };
	for (int i = 0; i < 3; i++) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			execl("/proc/self/exe", argv[0], deep[i], (char *)NULL);
			_exit(98);
		}
		printf("%s KiB: %d\n", deep[i], reap(pid));
	}
	return 0;
}
