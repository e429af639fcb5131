/* A guest that has the test look at it. */
#include "guest.h"

/* Stop here while the test looks at the machine; it is told `tag` and three values. Touches no
 * memory. To every other kernel this is sched_get_priority_max(SCHED_OTHER). */
static inline void look_(long tag, uintptr_t a, uintptr_t b, uintptr_t c)
{
	register long r10 asm("r10") = (long)b;
	register long r8 asm("r8") = (long)c;
	long call = 146;
	asm volatile("syscall"
		     : "+a"(call)
		     : "D"(0L), "S"(tag), "d"(a), "r"(r10), "r"(r8)
		     : "rcx", "r11", "memory");
}

#define look(tag, a, b) look_(tag, (uintptr_t)(a), (uintptr_t)(b), 0)
#define look3(tag, a, b, c) look_(tag, (uintptr_t)(a), (uintptr_t)(b), (uintptr_t)(c))

/* Where mapping number n may go: far from everything, and from the other numbers. */
static inline char *place(unsigned n)
{
	return (char *)(0x100000000000UL + n * 0x40000000UL);
}

/* Anonymous memory of n pages there, `flags` MAP_PRIVATE or MAP_SHARED, faulted page by page. */
static inline char *apart(unsigned where, size_t n, int flags)
{
	char *p = mmap(place(where), n * PAGE, PROT_READ | PROT_WRITE,
		       flags | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(p == place(where));
	CHECK(madvise(p, n * PAGE, MADV_RANDOM) == 0);
	return p;
}

/* Write to one page of every `step` from `first` up to `end`. */
static inline void touch(char *p, size_t first, size_t end, size_t step)
{
	for (size_t i = first; i < end; i += step)
		((volatile char *)p)[i * PAGE] = (char)('A' + i % 26);
}

__attribute__((noinline, unused)) static unsigned read_all(const char *p, size_t first, size_t end)
{
	unsigned sum = 0;
	for (size_t i = first; i < end; i++)
		sum += ((const volatile unsigned char *)p)[i * PAGE];
	return sum;
}

/* Wait for a byte from the other process, and send one. */
static inline void hear(const int fd[2])
{
	char c;
	CHECK(read(fd[0], &c, 1) == 1);
}

static inline void tell(const int fd[2])
{
	CHECK(write(fd[1], "!", 1) == 1);
}
