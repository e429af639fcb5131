/* What tools/bench.py measures from inside: each mode prints nanoseconds per operation. */
#include <math.h>
#include "../guest.h"
#include <sys/syscall.h>
#include <time.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

/* A fixed number of simple instructions, nothing else. */
/* The sum keeps the calls from being left out. */
static void sines(long n)
{
	volatile double sum = 0;

	for (long i = 0; i < n; i++)
		sum = sum + sin(i * 0.37);
}

static void loop(long n)
{
	long a = 1, b = 2;
	for (long i = 0; i < n; i++)
		__asm__ volatile("add %1, %0; xor %0, %1; lea 3(%1), %1" : "+r"(a), "+r"(b));
	printf("%ld\n", a ^ b);
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

/* The host has other things to do now and then; a median does not hear of it. */
static double median(double *t, size_t n)
{
	qsort(t, n, sizeof *t, ascending);
	return t[n / 2];
}

/* What two calls of now() cost. */
static double clock_cost(void)
{
	double best = 1e18;
	for (int i = 0; i < 100; i++) {
		double t = now();
		t = now() - t;
		best = t < best ? t : best;
	}
	return best;
}

#define CHUNK 64

/* The median of what a page costs, over chunks. */
static double touch(volatile char *p, const unsigned *order, size_t n)
{
	static double cost[1 << 16];
	double clock = clock_cost();
	CHECK(n / CHUNK <= sizeof cost / sizeof *cost);
	for (size_t c = 0; c < n / CHUNK; c++) {
		double start = now();
		if (order)
			for (size_t i = c * CHUNK; i < (c + 1) * CHUNK; i++)
				p[order[i] * PAGE] = 1;
		else
			for (size_t i = c * CHUNK; i < (c + 1) * CHUNK; i++)
				p[i * PAGE] = 1;
		cost[c] = (now() - start - clock) / CHUNK;
	}
	return median(cost, n / CHUNK);
}

static void touch_mode(size_t n, int scattered)
{
	char *p = pages(n);
	unsigned *order = NULL;
	if (scattered) {
		CHECK(madvise(p, n * PAGE, MADV_RANDOM) == 0);
		order = (unsigned *)pages(n * sizeof(unsigned) / PAGE + 1);
		for (unsigned i = 0, at = 1; i < n; i++)
			order[i] = at = (at * 1664525 + 1013904223) % n;
	}
	double first = touch(p, order, n);
	double again = touch(p, order, n);
	for (int i = 0; i < 3; i++) {
		double t = touch(p, order, n);
		again = t < again ? t : again;
	}
	printf("%.1f %.1f\n", first, again);
}

static void getppid_mode(int n)
{
	double best = 1e18;
	for (int k = 0; k < 5; k++) {
		double start = now();
		for (int i = 0; i < n; i++)
			syscall(SYS_getppid);
		double t = (now() - start) / n;
		best = t < best ? t : best;
	}
	printf("%.1f\n", best);
}

static void io_mode(int n, int file)
{
	char *p = pages(16);
	int fds[2];
	memset(p, 'x', 16 * PAGE);
	double writing = 1e18, reading = 1e18;
	if (file)
		fds[0] = fds[1] = scratch_file(16 * PAGE);
	else
		CHECK(pipe(fds) == 0);
	for (int i = 0; i < n; i++) {
		if (file)
			lseek(fds[0], 0, SEEK_SET);
		double a = now();
		CHECK(write(fds[1], p, 16 * PAGE) == 16 * PAGE);
		double b = now();
		if (file)
			lseek(fds[0], 0, SEEK_SET);
		double c = now();
		CHECK(read(fds[0], p, 16 * PAGE) == 16 * PAGE);
		double d = now();
		writing = b - a < writing ? b - a : writing;
		reading = d - c < reading ? d - c : reading;
	}
	printf("%.1f %.1f\n", reading, writing);
}

static void fork_mode(int n, size_t resident)
{
	char *p = pages(resident + 1);
	memset(p, 1, resident * PAGE);
	double best = 1e18;
	for (int i = 0; i < n; i++) {
		double start = now();
		pid_t pid = fork();
		if (pid == 0)
			_exit(0);
		reap(pid);
		double t = now() - start;
		best = t < best ? t : best;
	}
	printf("%.1f\n", best);
}

/* n one-page mappings with a hole between each two, then the cost of a fault and of an
 * mmap and munmap among them. They may be more than vm.max_map_count allows at first. */
static void entries_mode(size_t n)
{
	FILE *limit = fopen("/proc/sys/vm/max_map_count", "w");
	CHECK(limit && fprintf(limit, "%zu\n", n + 1000) > 0 && fclose(limit) == 0);
	char *base = mmap(NULL, 2 * n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(base != MAP_FAILED && munmap(base, 2 * n * PAGE) == 0);
	for (size_t i = 0; i < n; i++)
		CHECK(mmap(base + 2 * i * PAGE, PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	static double fault[1000], map[1000];
	double clock = clock_cost();
	size_t at = 1, rounds = 1000;
	for (size_t i = 0; i < rounds; i++) {
		at = (at * 1664525 + 1013904223) % n;
		double start = now();
		*(volatile char *)(base + 2 * at * PAGE) = 1;
		fault[i] = now() - start - clock;
		start = now();
		CHECK(munmap(base + 2 * at * PAGE, PAGE) == 0);
		CHECK(mmap(base + 2 * at * PAGE, PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
		char *p = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(munmap(p, PAGE) == 0);
		map[i] = now() - start - clock;
	}
	printf("%.1f %.1f\n", median(fault, rounds), median(map, rounds));
}

int main(int argc, char **argv)
{
	CHECK(argc > 2);
	long n = atol(argv[2]);
	if (!strcmp(argv[1], "loop"))
		loop(n);
	else if (!strcmp(argv[1], "sin"))
		sines(n);
	else if (!strcmp(argv[1], "touch"))
		touch_mode((size_t)n, 0);
	else if (!strcmp(argv[1], "scatter"))
		touch_mode((size_t)n, 1);
	else if (!strcmp(argv[1], "getppid"))
		getppid_mode((int)n);
	else if (!strcmp(argv[1], "pipe"))
		io_mode((int)n, 0);
	else if (!strcmp(argv[1], "file"))
		io_mode((int)n, 1);
	else if (!strcmp(argv[1], "fork"))
		fork_mode(argc > 3 ? atoi(argv[3]) : 20, (size_t)n);
	else if (!strcmp(argv[1], "entries"))
		entries_mode((size_t)n);
	else
		return 1;
	return 0;
}
