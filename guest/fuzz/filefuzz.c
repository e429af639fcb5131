/* What is in a file, whoever looks at it and how, while several processes change it at once.
 *
 * Every word that is ever stored in a file says which file it belongs to and at what offset, so
 * that each of them is right or 0 at any time, however reads and writes, mappings, truncation and
 * holes meet. (A page too many, a frame that has gone to somebody else, what stood behind the end
 * of a file or in a hole: all of that shows.) A private view may have words of its owner's, too. The
 * file that is appended to is a sequence of whole records in the end, of each process in order.
 *
 * Some of the processes share memory (CLONE_VM), some the descriptors, and they fork more. Each has
 * addresses of its own. Usage: filefuzz SEED OPERATIONS; exit status 99 and a line on stderr when a
 * word is wrong. */
#include "../guest.h"

#include <sched.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>

#define WORKERS 5
#define FILES 3
#define SPAN 12L     /* pages of a file, at most */
#define WINDOW 8     /* pages of a mapping */
#define RECORD 2000L /* words of a record, at most */

enum { NONE, SHARED, PRIVATE };

struct worker {
	uint64_t state;
	int id, left;
	uint64_t count; /* words stored, records appended */
	uint64_t *buffer; /* SPAN pages, and RECORD words */
	char *window;	  /* what is mapped there: */
	int kind, file;
	long offset, pages;
	int out[2]; /* a pipe */
};

static int fd[FILES], append_fd;

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

/* Load or store a word: whether it could be reached. */
extern int reach_load(uint64_t *at, uint64_t *value);
extern int reach_store(uint64_t *at, uint64_t value);
extern char reach_failed[];
asm(".text\n"
    "reach_load: movq (%rdi), %rax\n\tmovq %rax, (%rsi)\n\tmovl $1, %eax\n\tret\n"
    "reach_store: movq %rsi, (%rdi)\n\tmovl $1, %eax\n\tret\n"
    "reach_failed: xorl %eax, %eax\n\tret\n");

static void on_fault(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)info;
	((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] = (long)reach_failed;
}

/* The word that belongs in file f at byte `off`; `owner` is 0, or who has it in a private view. */
static uint64_t word(struct worker *w, int f, long off, int owner)
{
	w->count++;
	return (uint64_t)(f + 1) << 56 | (uint64_t)owner << 48 | (uint64_t)(off / 8) << 24 |
	       (w->count & 0xffffff);
}

static void check(struct worker *w, uint64_t got, int f, long off, int owner, const char *how)
{
	if (got == 0)
		return;
	int whose = (int)(got >> 48 & 0xff);
	if (got >> 56 == (uint64_t)(f + 1) && (whose == 0 || whose == owner) &&
	    (got >> 24 & 0xffffff) == (uint64_t)(off / 8))
		return;
	dprintf(2, "worker %d, %d left: %s of file %d at %#lx: %#lx\n", w->id, w->left, how, f, off,
		got);
	call(SYS_exit_group, 99, 0, 0, 0, 0, 0);
}

static void check_buffer(struct worker *w, int f, long off, long len, const char *how)
{
	for (long i = 0; i < len / 8; i++)
		check(w, w->buffer[i], f, off + i * 8, 0, how);
}

static void fill_buffer(struct worker *w, int f, long off, long len)
{
	for (long i = 0; i < len / 8; i++)
		w->buffer[i] = word(w, f, off + i * 8, 0);
}

/* Which words of the window look how. */
static void check_window(struct worker *w)
{
	uint64_t got;
	if (w->kind == NONE)
		return;
	for (int i = 0; i < 12; i++) {
		long at = below(w, w->pages * PAGE / 8) * 8;
		if (reach_load((uint64_t *)(w->window + at), &got))
			check(w, got, w->file, w->offset + at, w->kind == PRIVATE ? w->id : 0, "view");
	}
}

static void store_window(struct worker *w)
{
	if (w->kind == NONE)
		return;
	for (int i = 0; i < 6; i++) {
		long at = below(w, w->pages * PAGE / 8) * 8, off = w->offset + at;
		reach_store((uint64_t *)(w->window + at),
			    word(w, w->file, off, w->kind == PRIVATE ? w->id : 0));
	}
}

static void map_window(struct worker *w)
{
	call(SYS_munmap, (long)w->window, SPAN * PAGE, 0, 0, 0, 0);
	w->kind = below(w, 2) ? SHARED : PRIVATE;
	w->file = (int)below(w, FILES);
	w->offset = below(w, SPAN - 2) * PAGE;
	w->pages = 1 + below(w, WINDOW);
	long flags = MAP_FIXED | (w->kind == SHARED ? MAP_SHARED : MAP_PRIVATE);
	if (below(w, 4) == 0)
		flags |= MAP_POPULATE;
	long at = call(SYS_mmap, (long)w->window, w->pages * PAGE, 3, flags, fd[w->file], w->offset);
	if (at != (long)w->window)
		w->kind = NONE;
}

static void change_window(struct worker *w)
{
	static const int advice[] = { 0, 1, 2, 3, 4, 20, 21, 22, 23 };
	long at = (long)w->window, len = w->pages * PAGE;
	if (w->kind == NONE)
		return;
	switch (below(w, 8)) {
	case 0: call(SYS_madvise, at, len, advice[below(w, 9)], 0, 0, 0); break;
	case 1: call(SYS_msync, at, len, below(w, 2) ? MS_SYNC : MS_SYNC | MS_INVALIDATE, 0, 0, 0); break;
	case 2: call(SYS_mlock, at, len, 0, 0, 0, 0); break;
	case 3: call(SYS_mlock2, at, len, 1, 0, 0, 0); break;
	case 4: call(SYS_munlock, at, len, 0, 0, 0, 0); break;
	case 5: call(SYS_mprotect, at, len, below(w, 2) ? 1 : 3, 0, 0, 0); break;
	case 6: {
		long pages = 1 + below(w, WINDOW);
		if (call(SYS_mremap, at, len, pages * PAGE, 0, 0, 0) == at)
			w->pages = pages;
		break;
	}
	case 7: /* away and back */
		if (call(SYS_mremap, at, len, len, 3, at + SPAN * PAGE, 0) == at + SPAN * (long)PAGE)
			call(SYS_mremap, at + SPAN * PAGE, len, len, 3, at, 0);
		break;
	}
}

/* Where the bytes of file f from `off` on may come from or go to: our buffer, the window if it
 * shows them, or memory that is not there yet. */
static uint64_t *place(struct worker *w, int f, long off, long *len)
{
	long at = off - w->offset;
	if (w->kind == SHARED && w->file == f && at >= 0 && at < w->pages * (long)PAGE && below(w, 3) == 0) {
		if (*len > w->pages * (long)PAGE - at)
			*len = w->pages * (long)PAGE - at;
		return (uint64_t *)(w->window + at);
	}
	if (below(w, 3) == 0)
		call(SYS_madvise, (long)w->buffer, SPAN * PAGE, MADV_DONTNEED, 0, 0, 0);
	return w->buffer;
}

static void transfer(struct worker *w)
{
	int f = (int)below(w, FILES);
	long off = below(w, (SPAN - 3) * PAGE / 8) * 8, len = (1 + below(w, 2 * PAGE / 8)) * 8, n, o = off;
	uint64_t *from;
	switch (below(w, 7)) {
	case 0:
	case 1: /* 0 is a word, too */
		from = place(w, f, off, &len);
		if (from == w->buffer && below(w, 4))
			fill_buffer(w, f, off, len);
		else if (from == w->buffer)
			memset(from, 0, len);
		call(SYS_pwrite64, fd[f], (long)from, len, off, 0, 0);
		break;
	case 2:
	case 3:
		from = place(w, f, off, &len);
		n = call(SYS_pread64, fd[f], (long)from, len, off, 0, 0);
		if (from == w->buffer)
			check_buffer(w, f, off, n, "read");
		break;
	case 4:
		n = call(SYS_splice, fd[f], (long)&o, w->out[1], 0, len, 2);
		if (n > 0) {
			n = call(SYS_read, w->out[0], (long)w->buffer, n, 0, 0, 0);
			check_buffer(w, f, off, n, "splice");
		}
		break;
	case 5: {
		struct iovec v = { w->buffer, (size_t)len };
		fill_buffer(w, f, off, len);
		n = call(SYS_vmsplice, w->out[1], (long)&v, 1, 2, 0, 0);
		if (n > 0 && call(SYS_splice, w->out[0], 0, fd[f], (long)&o, n, 2) != n)
			while (call(SYS_read, w->out[0], (long)w->buffer, len, 0, 0, 0) > 0)
				;
		break;
	}
	case 6: {
		if (w->kind == NONE)
			break;
		struct iovec mine = { w->buffer, w->pages * PAGE }, view = { w->window, w->pages * PAGE };
		n = call(SYS_process_vm_readv, call(SYS_getpid, 0, 0, 0, 0, 0, 0), (long)&mine, 1,
			 (long)&view, 1, 0);
		for (long i = 0; i < n / 8; i++)
			check(w, w->buffer[i], w->file, w->offset + i * 8,
			      w->kind == PRIVATE ? w->id : 0, "vm_readv");
		break;
	}
	}
}

static void resize(struct worker *w)
{
	int f = (int)below(w, FILES);
	long off = below(w, SPAN * PAGE / 8) * 8, len = (1 + below(w, 3 * PAGE / 8)) * 8;
	switch (below(w, 5)) {
	case 0:
	case 1: call(SYS_ftruncate, fd[f], off, 0, 0, 0, 0); break;
	case 2: call(SYS_fallocate, fd[f], 3, off, len, 0, 0); break;
	case 3:
		if (off + len > SPAN * (long)PAGE)
			len = SPAN * PAGE - off;
		if (len)
			call(SYS_fallocate, fd[f], 0, off, len, 0, 0);
		break;
	case 4: call(SYS_fsync, fd[f], 0, 0, 0, 0, 0); break;
	}
}

/* A record: its length in words, who wrote it, which one it is of his; the rest is that again. */
static void append(struct worker *w)
{
	long n = 3 + below(w, RECORD - 3);
	w->count++;
	for (long i = 0; i < n; i++)
		w->buffer[i] = i == 0 ? (uint64_t)n : i == 1 ? (uint64_t)w->id : w->count;
	long done = call(SYS_write, append_fd, (long)w->buffer, n * 8, 0, 0, 0);
	if (done != n * 8) {
		dprintf(2, "worker %d: appended %ld of %ld\n", w->id, done, n * 8);
		call(SYS_exit_group, 99, 0, 0, 0, 0, 0);
	}
}

static void one(struct worker *w)
{
	switch (below(w, 12)) {
	case 0: map_window(w); break;
	case 1:
	case 2: check_window(w); break;
	case 3:
	case 4: store_window(w); break;
	case 5: change_window(w); break;
	case 6:
	case 7: resize(w); break;
	default: transfer(w); break;
	}
	if (below(w, 3) == 0)
		call(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
}

static int worker(void *arg)
{
	struct worker *w = arg;
	while (w->left-- > 0) {
		int what = (int)below(w, 24);
		if (what == 0) {
			append(w);
		} else if (what == 1) {
			long pid = call(SYS_fork, 0, 0, 0, 0, 0, 0);
			if (pid == 0) {
				call(SYS_pipe2, (long)w->out, O_NONBLOCK, 0, 0, 0, 0);
				for (int i = 0; i < 8; i++)
					one(w);
				call(SYS_exit_group, 0, 0, 0, 0, 0, 0);
			}
			if (pid > 0 && below(w, 2)) {
				int status = 0;
				call(SYS_wait4, pid, (long)&status, 0, 0, 0, 0);
				if (status)
					call(SYS_exit_group, 99, 0, 0, 0, 0, 0);
			}
		} else {
			one(w);
		}
	}
	call(SYS_exit, 0, 0, 0, 0, 0, 0);
	return 0;
}

static void check_records(void)
{
	uint64_t last[WORKERS + 1] = { 0 }, record[RECORD];
	long at = 0, n;
	while ((n = pread(append_fd, record, 24, at)) > 0) {
		CHECK(n == 24 && record[0] >= 3 && record[0] < RECORD);
		CHECK(record[1] >= 1 && record[1] <= WORKERS && record[2] > last[record[1]]);
		n = (long)record[0] * 8;
		CHECK(pread(append_fd, record, n, at) == n);
		for (long i = 3; i < n / 8; i++)
			CHECK(record[i] == record[2]);
		last[record[1]] = record[2];
		at += n;
	}
}

int main(int argc, char **argv)
{
	CHECK(argc == 3);
	uint64_t seed = strtoul(argv[1], NULL, 0);
	struct sigaction act = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	sigaction(SIGSEGV, &act, NULL);
	sigaction(SIGBUS, &act, NULL);
	for (int i = 0; i < FILES; i++) {
		fd[i] = i ? memfd_create("f", 0) : nameless_file();
		CHECK(fd[i] >= 0 && ftruncate(fd[i], 7 * PAGE + 1000) == 0);
	}
	append_fd = nameless_file();
	CHECK(fcntl(append_fd, F_SETFL, O_APPEND) == 0);
	struct worker w[WORKERS];
	pid_t pid[WORKERS];
	for (int i = 0; i < WORKERS; i++) {
		char *room = pages(16 + 3 * SPAN + 4);
		w[i] = (struct worker){ .state = (seed * WORKERS + i + 1) * 0x9e3779b97f4a7c15UL | 1,
					.id = i + 1, .left = atoi(argv[2]),
					.buffer = (uint64_t *)(room + 16 * PAGE) };
		w[i].window = pages(2 * SPAN);
		CHECK(pipe2(w[i].out, O_NONBLOCK) == 0);
		int flags = i == 0 ? 0 : i % 2 ? CLONE_VM | CLONE_FILES : CLONE_VM;
		pid[i] = clone(worker, room + 16 * PAGE, flags | SIGCHLD, &w[i]);
		CHECK(pid[i] > 0);
	}
	int bad = 0;
	for (int i = 0; i < WORKERS; i++)
		bad |= reap(pid[i]);
	while (waitpid(-1, NULL, 0) > 0)
		;
	check_records();
	return bad;
}
