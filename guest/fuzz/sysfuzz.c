/* System calls at random, from a seed: any number, any arguments, with a bias towards values that
 * have a meaning. The calls are made in a child with an alarm, so that one that blocks or kills
 * only ends its own round. Nothing is checked here: what matters is that the kernel survives. */
#include "../guest.h"
#include <sys/syscall.h>

static uint64_t state;
static uint64_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static char *area;

static long argument(void)
{
	static const long special[] = { 0, 1, 2, 3, 4, 7, 8, 16, 63, 64, 255, 256, 4095, 4096, 4097,
		65536, 1L << 31, (1L << 31) - 1, 1L << 32, -1, -2, -100, -4096, 1L << 47,
		(1L << 47) - 4096, 1L << 62, (long)(1UL << 63), 0x7ffffffff000, 0x400000 };
	switch (rnd() % 8) {
	case 0:
		return (long)rnd();
	case 1:
	case 2:
		return special[rnd() % (sizeof(special) / sizeof(special[0]))];
	case 3:
		return (long)(area + rnd() % (16 * PAGE));
	case 4:
		return (long)(area + rnd() % 16 * PAGE);
	case 5:
		return (long)(rnd() % 16);
	case 6:
		return (long)(area + 4 * PAGE - rnd() % 64); /* straddles into a hole */
	default:
		return 1L << rnd() % 40;
	}
}

/* Calls that would end or leave the experiment. */
static int excluded(long number)
{
	switch (number) {
	case SYS_exit:
	case SYS_exit_group:
	case SYS_kill:
	case SYS_tkill:
	case SYS_tgkill:
	case SYS_rt_sigqueueinfo:
	case SYS_rt_tgsigqueueinfo:
	case SYS_rt_sigreturn:
	case SYS_fork:
	case SYS_vfork:
	case SYS_clone:
	case SYS_setsid:
	case SYS_setpgid:
	case SYS_alarm:
	case SYS_setitimer:
	case SYS_rt_sigprocmask:
	case SYS_reboot:
		return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	CHECK(argc > 2);
	uint64_t seed = strtoull(argv[1], NULL, 0);
	int rounds = atoi(argv[2]);
	for (int round = 0; round < rounds; round++) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			state = seed * 0x9e3779b97f4a7c15UL + (uint64_t)round * 2654435761UL + 1;
			area = pages(16);
			for (int i = 0; i < 16; i++)
				memset(area + i * PAGE, (int)rnd(), 256);
			strcpy(area + PAGE, "/tmp/fuzzfile");
			strcpy(area + 2 * PAGE, "/proc/self/maps");
			CHECK(munmap(area + 4 * PAGE, PAGE) == 0);
			CHECK(mprotect(area + 6 * PAGE, PAGE, PROT_READ) == 0);
			alarm(1);
			for (int i = 0; i < 60; i++) {
				long number = (long)(rnd() % 340);
				if (rnd() % 32 == 0)
					number = (long)rnd();
				if (!excluded(number))
					syscall(number, argument(), argument(), argument(), argument(),
						argument(), argument());
			}
			_exit(0);
		}
		int status;
		while (waitpid(pid, &status, 0) != pid)
			;
	}
	return 0;
}
