/* Memory and file operations at random, from a seed, by several processes at once in one address
 * space (CLONE_VM), some of them with the same descriptors (CLONE_FILES), and by children that they
 * fork. They map, cut, move, protect, lock and advise the same few pages, and write, cut, extend
 * and copy the same few files, so that everybody pulls away what another is at.
 *
 * No result is looked at: what each call answers depends on the others. What must hold is that the
 * kernel is well afterwards, and that everybody comes to an end. No clock is asked, so that a seed
 * is the same run again, but for where a time slice ends. A seed also chooses which operations
 * there are, and how close together: few kinds meet each other more often than many.
 *
 * Usage: sharefuzz SEED OPERATIONS */
#include "../guest.h"

#include <sched.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>

#define WORKERS 5
#define AREA ((char *)0x30000000)
#define PAGES 64 /* at most */
#define KINDS 14 /* of operations on memory, and of those on files */
#define FILES 6 /* regular files among fd[]; then the two ends of a pipe */
#define READ_END FILES
#define WRITE_END (FILES + 1)

struct worker {
	uint64_t state;
	int left; /* operations */
};

static int fd[FILES + 2];
static long npages;	      /* of the area */
static int memory_ops[KINDS]; /* what is done to memory */
static int file_ops[KINDS];   /* … and to files */
static int memory_count, file_count; /* how many of these */

/* libc's wrappers write to errno, which all of us share. */
/* scratch_file, whose name is taken from clock and random numbers, would not be the same again. */
static int nameless_file(void)
{
	char name[40];
	sprintf(name, "/tmp/fuzz%d", getpid());
	int file = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	CHECK(file >= 0 && unlink(name) == 0);
	return file;
}

static long call(long n, long a, long b, long c, long d, long e, long f)
{
	long r;
	register long r10 asm("r10") = d;
	register long r8 asm("r8") = e;
	register long r9 asm("r9") = f;
	asm volatile("syscall"
		     : "=a"(r)
		     : "0"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return r;
}

static uint64_t rnd(struct worker *w)
{
	w->state ^= w->state << 13;
	w->state ^= w->state >> 7;
	w->state ^= w->state << 17;
	return w->state * 0x2545f4914f6cdd1dUL >> 16;
}

static long below(struct worker *w, long n)
{
	return (long)(rnd(w) % (unsigned long)n);
}

static char *somewhere(struct worker *w)
{
	return AREA + below(w, npages) * PAGE;
}

/* A load or a store that may fault: the handler goes on behind it. */
extern char touch_done[];
asm(".text\n"
    "touch_read: movzbl (%rdi), %eax\n\tjmp touch_done\n"
    "touch_write: movb %sil, (%rdi)\n"
    "touch_done: ret\n");
extern void touch_read(char *at);
extern void touch_write(char *at, int value);

static void on_fault(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)info;
	((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] = (long)touch_done;
}

/* What a child does with the memory it got from fork. */
static void child(struct worker *w)
{
	for (int i = 0; i < 6; i++) {
		char *at = somewhere(w);
		long f = fd[below(w, FILES)];
		switch (below(w, 4)) {
		case 0: touch_write(at, i); break;
		case 1: call(SYS_pwrite64, f, (long)at, 5000, below(w, 20000), 0, 0); break;
		case 2: call(SYS_pread64, f, (long)at, 5000, below(w, 20000), 0, 0); break;
		case 3: call(SYS_ftruncate, f, below(w, 30000), 0, 0, 0, 0); break;
		}
		call(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
	}
	call(SYS_exit_group, 0, 0, 0, 0, 0, 0);
}

static void memory(struct worker *w, char *at, long len, long f)
{
	static const int advice[] = { 0, 1, 2, 3, 4, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23, 24 };
	int prot = (int)below(w, 8), kind = below(w, 2) ? MAP_SHARED : MAP_PRIVATE;
	long offset = below(w, 8) * PAGE;
	switch (memory_ops[below(w, memory_count)]) {
	case 0:
		call(SYS_mmap, (long)at, len, 3, MAP_FIXED | MAP_ANONYMOUS | kind, -1, 0);
		break;
	case 1:
		call(SYS_mmap, (long)at, len, prot, MAP_FIXED | kind, f, offset);
		break;
	case 2:
		call(SYS_mmap, (long)at, len, 3, MAP_FIXED | MAP_POPULATE | kind, f, offset);
		break;
	case 3: call(SYS_munmap, (long)at, len, 0, 0, 0, 0); break;
	case 4: call(SYS_mprotect, (long)at, len, prot, 0, 0, 0); break;
	case 5:
	case 6:
		call(SYS_madvise, (long)at, len, advice[below(w, 16)], 0, 0, 0);
		break;
	case 7:
		call(SYS_mremap, (long)at, len, (1 + below(w, 12)) * PAGE, below(w, 2) ? 1 : 3,
		     (long)somewhere(w), 0);
		break;
	case 8: call(SYS_msync, (long)at, len, below(w, 8), 0, 0, 0); break;
	case 9: call(SYS_mlock, (long)at, len, 0, 0, 0, 0); break;
	case 10: call(SYS_mlock2, (long)at, len, 1, 0, 0, 0); break;
	case 11: call(SYS_munlock, (long)at, len, 0, 0, 0, 0); break;
	case 12: {
		char vec[PAGES];
		call(SYS_mincore, (long)at, len, (long)vec, 0, 0, 0);
		break;
	}
	case 13: {
		struct iovec mine = { at, len }, theirs = { somewhere(w), len };
		call(below(w, 2) ? SYS_process_vm_readv : SYS_process_vm_writev,
		     call(SYS_getpid, 0, 0, 0, 0, 0, 0), (long)&mine, 1, (long)&theirs, 1, 0);
		break;
	}
	}
}

static void file(struct worker *w, char *at, long f)
{
	long len = below(w, 20000), off = below(w, 30000), to = fd[below(w, FILES)];
	switch (file_ops[below(w, file_count)]) {
	case 0: call(SYS_ftruncate, f, below(w, 40000), 0, 0, 0, 0); break;
	case 1: call(SYS_pread64, f, (long)at + below(w, PAGE), len, off, 0, 0); break;
	case 2: call(SYS_pwrite64, f, (long)at + below(w, PAGE), len, off, 0, 0); break;
	case 3: call(SYS_read, f, (long)at, len, 0, 0, 0); break;
	case 4: call(SYS_write, f, (long)at, len, 0, 0, 0); break;
	case 5: call(SYS_fallocate, f, below(w, 2) ? 3 : 0, off, 1 + len, 0, 0); break;
	case 6: call(SYS_fsync, f, 0, 0, 0, 0, 0); break;
	case 7: {
		struct iovec v = { at, (size_t)len };
		call(SYS_vmsplice, fd[WRITE_END], (long)&v, 1, 2, 0, 0);
		call(SYS_read, fd[READ_END], (long)somewhere(w), 60000, 0, 0, 0);
		break;
	}
	case 8: {
		long o = off;
		call(SYS_splice, f, (long)&o, fd[WRITE_END], 0, 8192, 2);
		call(SYS_splice, fd[READ_END], 0, to, (long)&o, 8192, 2);
		break;
	}
	case 9: {
		long in = off, out = below(w, 20000);
		call(SYS_copy_file_range, f, (long)&in, to, (long)&out, len, 0);
		break;
	}
	case 10: {
		long in = off;
		call(SYS_sendfile, to, f, (long)&in, len, 0, 0);
		break;
	}
	case 11: { /* at the end of the file, wherever that is */
		struct iovec v = { at, (size_t)len };
		call(SYS_pwritev2, f, (long)&v, 1, 0, 0, 0x10);
		break;
	}
	case 12: { /* a file that nothing but a descriptor and perhaps a mapping holds */
		long tmp = call(SYS_memfd_create, (long)"gone", 0, 0, 0, 0, 0), o = 0;
		if (tmp < 0)
			break;
		call(SYS_ftruncate, tmp, len, 0, 0, 0, 0);
		call(SYS_mmap, (long)at, 3 * PAGE, 3, MAP_FIXED | MAP_SHARED, tmp, 0);
		call(SYS_sendfile, tmp, f, (long)&o, len, 0, 0);
		call(SYS_close, tmp, 0, 0, 0, 0, 0);
		break;
	}
	case 13: { /* from one mapping to another file, without the program */
		struct iovec v[2] = { { at, (size_t)len / 2 }, { somewhere(w), (size_t)len / 2 } };
		call(below(w, 2) ? SYS_preadv : SYS_pwritev, f, (long)v, 2, off, 0, 0);
		break;
	}
	}
}

static int worker(void *arg)
{
	struct worker *w = arg;
	while (w->left-- > 0) {
		char *at = somewhere(w);
		long len = (1 + below(w, 12)) * PAGE, f = fd[below(w, FILES)];
		switch (below(w, 16)) {
		case 0: call(SYS_sched_yield, 0, 0, 0, 0, 0, 0); break;
		case 1: touch_read(at); break;
		case 2:
		case 3: touch_write(at, w->left); break;
		case 4: {
			long pid = call(SYS_fork, 0, 0, 0, 0, 0, 0);
			if (pid == 0)
				child(w);
			if (pid > 0 && below(w, 2))
				call(SYS_wait4, pid, 0, 0, 0, 0, 0);
			break;
		}
		case 5: call(SYS_wait4, -1, 0, WNOHANG, 0, 0, 0); break;
		case 6: { /* somebody else's descriptor, where the table is shared */
			long n = below(w, FILES), other = call(SYS_dup, fd[n], 0, 0, 0, 0, 0);
			if (other > 3) {
				call(SYS_pwrite64, other, (long)at, len, below(w, 20000), 0, 0);
				call(SYS_close, other - below(w, 2), 0, 0, 0, 0, 0);
			}
			break;
		}
		case 7:
		case 8:
		case 9:
		case 10: memory(w, at, len, f); break;
		default: file(w, at, f); break;
		}
		if (below(w, 3) == 0)
			call(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
	}
	call(SYS_exit, 0, 0, 0, 0, 0, 0);
	return 0;
}

/* Choose about half of the kinds, always those below `first`. */
static int choose(struct worker *w, int *ops, int first)
{
	int n = 0;
	for (int kind = 0; kind < KINDS; kind++)
		if (kind < first || below(w, 2))
			ops[n++] = kind;
	return n;
}

static void start(struct worker *w, pid_t *pid, char **stack, int i)
{
	*stack = pages(16);
	*pid = clone(worker, *stack + 16 * PAGE, CLONE_VM | SIGCHLD | (i % 2 ? CLONE_FILES : 0), w);
	CHECK(*pid > 0);
}

int main(int argc, char **argv)
{
	CHECK(argc == 3);
	uint64_t seed = strtoul(argv[1], NULL, 0);
	int operations = atoi(argv[2]);
	struct rlimit few = { 64, 64 };
	setrlimit(RLIMIT_NPROC, &few);
	struct sigaction act = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	sigaction(SIGSEGV, &act, NULL);
	sigaction(SIGBUS, &act, NULL);
	signal(SIGPIPE, SIG_IGN);
	for (int i = 0; i < FILES; i++) {
		fd[i] = i % 2 ? memfd_create("share", 0) : nameless_file();
		if (i == 4)
			CHECK(fcntl(fd[i], F_SETFL, O_APPEND) == 0);
		CHECK(fd[i] >= 0 && ftruncate(fd[i], 20000 - 3000 * i) == 0);
	}
	CHECK(pipe2(fd + READ_END, O_NONBLOCK) == 0);

	struct worker w[WORKERS], choice = { (seed + 1) * 0x9e3779b97f4a7c15UL | 1, 0 };
	npages = below(&choice, 2) ? PAGES : 16;
	memory_count = choose(&choice, memory_ops, 2);
	file_count = choose(&choice, file_ops, 1);
	pid_t pid[WORKERS];
	char *stack[WORKERS];
	for (int i = 0; i < WORKERS; i++) {
		w[i].state = (seed * WORKERS + i + 1) * 0x9e3779b97f4a7c15UL | 1;
		w[i].left = operations;
		start(&w[i], &pid[i], &stack[i], i);
	}
	if (seed % 4 == 0) { /* in the middle of whatever it does */
		for (unsigned n = seed / 4 % 64; n; n--)
			sched_yield();
		kill(pid[seed / 4 % WORKERS], SIGKILL);
	}
	for (int i = 0; i < WORKERS; i++)
		reap(pid[i]);
	while (waitpid(-1, NULL, 0) > 0)
		;
	printf("done\n");
	return 0;
}
