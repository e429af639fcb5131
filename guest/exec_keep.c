/* What exec keeps (pid, cwd, umask, open files, ignored signals, mask, pending) and what it loses
 * (close-on-exec files, handlers, mappings, alternate stack, locks of memory). */
#include "guest.h"

static void handler(int sig)
{
	(void)sig;
}

int main(int argc, char **argv)
{
	if (argc == 1) {
		int keep = scratch_file(10), lose = scratch_file(10);
		CHECK(dup2(keep, 50) == 50 && dup2(lose, 51) == 51);
		CHECK(fcntl(51, F_SETFD, FD_CLOEXEC) == 0);
		CHECK(lseek(50, 3, SEEK_SET) == 3);
		signal(SIGUSR1, SIG_IGN);
		signal(SIGUSR2, handler);
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, SIGTERM);
		CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
		raise(SIGTERM);
		umask(027);
		CHECK(chdir("/") == 0);
		stack_t alt = { .ss_sp = pages(16), .ss_size = 16 * PAGE };
		CHECK(sigaltstack(&alt, NULL) == 0);
		char pid[20];
		sprintf(pid, "%d", getpid());
		char *args[] = { argv[0], pid, "second", "", "last arg", NULL };
		char *env[] = { "A=1", "B=two words", NULL };
		execve("/proc/self/exe", args, env);
		CHECK(!"execve returned");
	}
	printf("argc %d, last '%s', env %s %s\n", argc, argv[argc - 1], environ[0], environ[1]);
	printf("same pid: %d\n", atoi(argv[1]) == getpid());
	printf("kept file at %ld, lost %d\n", (long)lseek(50, 0, SEEK_CUR),
	       fcntl(51, F_GETFD) == -1 && errno == EBADF);
	struct sigaction act;
	CHECK(sigaction(SIGUSR1, NULL, &act) == 0);
	printf("ignored: %d\n", act.sa_handler == SIG_IGN);
	CHECK(sigaction(SIGUSR2, NULL, &act) == 0);
	printf("default: %d\n", act.sa_handler == SIG_DFL);
	sigset_t set;
	CHECK(sigprocmask(0, NULL, &set) == 0);
	printf("blocked: %d\n", sigismember(&set, SIGTERM));
	CHECK(sigpending(&set) == 0);
	printf("pending: %d\n", sigismember(&set, SIGTERM));
	stack_t alt;
	CHECK(sigaltstack(NULL, &alt) == 0);
	printf("altstack disabled: %d\n", alt.ss_flags == SS_DISABLE);
	char cwd[64];
	printf("umask %03o, cwd %s\n", umask(0), getcwd(cwd, sizeof(cwd)));
	return 0;
}
