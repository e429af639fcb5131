/* A page that was read-only at fork: the child makes it writable and writes, the parent's stays. */
#include "guest.h"

int main(void)
{
	char *p = pages(1);
	strcpy(p, "old");
	CHECK(mprotect(p, PAGE, PROT_READ) == 0);
	pid_t pid = fork();
	if (pid == 0) {
		CHECK(mprotect(p, PAGE, PROT_READ | PROT_WRITE) == 0);
		strcpy(p, "new");
		_exit(strcmp(p, "new") == 0 ? 3 : 4);
	}
	printf("child %d\n", reap(pid));
	puts(p);
	catch_signal(SIGSEGV);
	int sig = SIGNAL_OF(*(volatile char *)p = 1);
	printf("signal %d code %d\n", sig, guest_info.si_code);
	return 0;
}
