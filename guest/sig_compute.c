/* A timer signal reaches a program that only computes, and its registers come back whole: the
 * integer, SSE and x87 state is live across the handler, which spoils all of it. */
#include "guest.h"

static volatile sig_atomic_t count;
static void handler(int sig)
{
	(void)sig;
	volatile double d = 1.0;
	for (int i = 1; i < 50; i++)
		d = d * 1.5 / i;
	volatile long double x = d;
	for (int i = 0; i < 9; i++)
		x = x * 3.25L + i;
	count++;
}

int main(void)
{
	struct sigaction act = { .sa_handler = handler, .sa_flags = SA_RESTART };
	CHECK(sigaction(SIGALRM, &act, NULL) == 0);
	struct itimerval timer = { .it_value = { 0, 5000 }, .it_interval = { 0, 5000 } };
	CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
	double sum = 0;
	long double wide = 0;
	uint64_t hash = 1;
	while (count < 10) {
		double s = 0;
		long double w = 0;
		uint64_t h = 1;
		for (int i = 1; i <= 20000; i++) {
			s += 1.0 / i;
			w += 1.0L / ((long double)i * i);
			h = h * 6364136223846793005ULL + (unsigned)i;
		}
		CHECK(sum == 0 || (sum == s && wide == w && hash == h));
		sum = s;
		wide = w;
		hash = h;
	}
	printf("%.12f %.15Lf %016lx\n", sum, wide, (unsigned long)hash);
	return 0;
}
