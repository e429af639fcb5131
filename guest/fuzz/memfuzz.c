/* Memory operations at random, from a seed, against a model that knows what every byte must be.
 *
 * A small area of pages is mapped, unmapped, protected, moved, advised, written and read, by
 * instructions and by the kernel, in several processes: children that run at once, and children
 * that sleep with the memory they got from fork until their parent has written all over its own.
 * Only four words of a page are ever written, so the model is small, and all else must be zero.
 *
 * The model of what is shared (a file and anonymous objects) is in shared memory itself; only one
 * process runs at a time. The output is a hash of all that happened, the same on every kernel. */
#include "../guest.h"

#define AREA ((char *)0x10000000)
#define NPAGES 24
#define OBJECTS 24
#define OBJ_PAGES 16
#define WORDS 4
#define SLEEPERS 3
#define DEPTH 3

enum { HOLE, ANON, SHARED, FILE_PRIVATE };

static const int word_at[WORDS] = { 0, 1032, 2048, PAGE - 8 };

struct page {
	int kind, prot;
	int dontfork;
	int object, index; /* SHARED, FILE_PRIVATE: what it shows; object 0 is the file */
	int mapping;	   /* pages of one mmap have the same number */
	int own;	   /* FILE_PRIVATE: it has been written to */
	uint64_t word[WORDS]; /* ANON, and FILE_PRIVATE that is its own */
};

static struct model {
	int objects;
	int mappings;
	uint64_t hash;
	uint64_t word[OBJECTS][OBJ_PAGES][WORDS];
} *model;

static struct page page[NPAGES];
static int file, model_fd;
static uint64_t state;
static int depth;
static struct {
	pid_t pid;
	int wake;
} sleeper[SLEEPERS];
static int sleepers;
static const char *self;

static uint64_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state * 0x2545f4914f6cdd1dUL >> 16;
}

static int below(int n)
{
	return (int)(rnd() % (unsigned)n);
}

static void note(uint64_t what)
{
	model->hash = (model->hash ^ what) * 0x100000001b3UL + 0x9e37;
}

static uint64_t *words(struct page *p)
{
	if (p->kind == ANON || (p->kind == FILE_PRIVATE && p->own))
		return p->word;
	return model->word[p->object][p->index];
}

static char *address(int n)
{
	return AREA + n * PAGE;
}

/* What an access of `kind` (PROT_READ or PROT_WRITE) to page n raises. */
static int expected_signal(int n, int kind, int *code)
{
	struct page *p = &page[n];
	*code = SEGV_MAPERR;
	if (p->kind == HOLE)
		return SIGSEGV;
	*code = SEGV_ACCERR;
	if (kind == PROT_READ ? p->prot == PROT_NONE : !(p->prot & PROT_WRITE))
		return SIGSEGV;
	return 0;
}

static int readable(int n)
{
	int code;
	return expected_signal(n, PROT_READ, &code) == 0;
}

static int writable(int n)
{
	int code;
	return expected_signal(n, PROT_WRITE, &code) == 0;
}

static void verify(int n)
{
	static const char zero[PAGE];
	volatile uint64_t *at = (volatile uint64_t *)address(n);
	int code, sig = expected_signal(n, PROT_READ, &code);
	CHECK(SIGNAL_OF((void)*at) == sig);
	if (sig) {
		CHECK(guest_info.si_code == code && guest_info.si_addr == address(n));
		return;
	}
	uint64_t *w = words(&page[n]);
	int end = 0;
	for (int i = 0; i < WORDS; i++) {
		CHECK(at[word_at[i] / 8] == w[i]);
		CHECK(memcmp(address(n) + end, zero, word_at[i] - end) == 0);
		end = word_at[i] + 8;
	}
	note(w[0] + w[3]);
}

static void verify_all(void)
{
	for (int n = 0; n < NPAGES; n++)
		verify(n);
}

/* The model of getting a page for writing: a private one of a file parts from the file. */
static void part(int n)
{
	struct page *p = &page[n];
	if (p->kind == FILE_PRIVATE && !p->own) {
		memcpy(p->word, model->word[0][p->index], sizeof p->word);
		p->own = 1;
	}
}

/* The model of a store to a page. */
static void stored(int n, int i, uint64_t value)
{
	part(n);
	words(&page[n])[i] = value;
}

static void do_write(int n)
{
	int i = below(WORDS), code, sig = expected_signal(n, PROT_WRITE, &code);
	uint64_t value = rnd();
	volatile uint64_t *at = (volatile uint64_t *)(address(n) + word_at[i]);
	CHECK(SIGNAL_OF(*at = value) == sig);
	if (sig)
		CHECK(guest_info.si_code == code && guest_info.si_addr == (void *)at);
	else
		stored(n, i, value);
}

/* The kernel as the one who reads or writes user memory. */
static void do_transfer(int n)
{
	int i = below(WORDS), index = below(OBJ_PAGES);
	char *at = address(n) + word_at[i];
	off_t off = index * (off_t)PAGE + word_at[i];
	if (below(2)) {
		uint64_t value = model->word[0][index][i];
		ssize_t got = pread(file, at, 8, off);
		if (writable(n)) {
			CHECK(got == 8);
			stored(n, i, value);
		} else {
			CHECK(got == -1 && errno == EFAULT);
		}
	} else {
		uint64_t value = readable(n) ? words(&page[n])[i] : 0;
		ssize_t put = pwrite(file, at, 8, off);
		if (readable(n)) {
			CHECK(put == 8);
			model->word[0][index][i] = value;
		} else {
			CHECK(put == -1 && errno == EFAULT);
		}
	}
}

/* Whole pages through the file, where all of them can be accessed. */
static void do_bulk(int n, int count)
{
	int index = below(OBJ_PAGES), in = below(2);
	if (index + count > OBJ_PAGES)
		count = OBJ_PAGES - index;
	for (int k = 0; k < count; k++) {
		if (in ? !writable(n + k) : !readable(n + k))
			return;
		if (page[n + k].kind == SHARED && page[n + k].object == 0)
			return; /* onto itself */
		if (page[n + k].kind == FILE_PRIVATE && !page[n + k].own)
			return;
	}
	size_t size = count * PAGE;
	if (in)
		CHECK(pread(file, address(n), size, index * PAGE) == (ssize_t)size);
	else
		CHECK(pwrite(file, address(n), size, index * PAGE) == (ssize_t)size);
	for (int k = 0; k < count; k++)
		for (int i = 0; i < WORDS; i++)
			if (in)
				stored(n + k, i, model->word[0][index + k][i]);
			else
				model->word[0][index + k][i] = words(&page[n + k])[i];
}

static int random_prot(void)
{
	static const int prots[] = { PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
		PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC,
		PROT_READ | PROT_WRITE | PROT_EXEC };
	return prots[below(7)];
}

static void do_map(int n, int count)
{
	int kind = 1 + below(4), prot = random_prot(), object = 0, index = 0, flags = MAP_FIXED;
	if (kind == 4)
		kind = ANON;
	if (kind == SHARED && below(2) && model->objects < OBJECTS)
		object = model->objects++;
	if (kind == FILE_PRIVATE || (kind == SHARED && !object)) {
		index = below(OBJ_PAGES);
		if (index + count > OBJ_PAGES)
			count = OBJ_PAGES - index;
	}
	if (object && count > OBJ_PAGES)
		count = OBJ_PAGES;
	if (kind == ANON || object)
		flags |= MAP_ANONYMOUS;
	flags |= kind == SHARED ? MAP_SHARED : MAP_PRIVATE;
	if (below(8) == 0)
		flags |= MAP_POPULATE;
	CHECK(mmap(address(n), count * PAGE, prot, flags, flags & MAP_ANONYMOUS ? -1 : file,
		   index * PAGE) == address(n));
	int mapping = ++model->mappings;
	for (int k = 0; k < count; k++)
		page[n + k] = (struct page){ .kind = kind, .prot = prot, .object = object,
			.index = index + k, .mapping = mapping };
	for (int k = 0; k < count && flags & MAP_POPULATE && prot & PROT_WRITE; k++)
		part(n + k);
}

static void do_unmap(int n, int count)
{
	CHECK(munmap(address(n), count * PAGE) == 0);
	memset(&page[n], 0, count * sizeof page[0]);
}

static void do_protect(int n, int count)
{
	int prot = random_prot(), whole = 1;
	int r = mprotect(address(n), count * PAGE, prot);
	for (int k = 0; k < count && whole; k++) {
		if (page[n + k].kind == HOLE)
			whole = 0;
		else
			page[n + k].prot = prot;
	}
	CHECK(whole ? r == 0 : r == -1 && errno == ENOMEM);
}

static void do_advise(int n, int count)
{
	static const int advices[] = { MADV_DONTNEED, MADV_DONTNEED, MADV_DONTFORK, MADV_DOFORK,
		MADV_WILLNEED, MADV_SEQUENTIAL, MADV_NORMAL, MADV_RANDOM };
	int advice = advices[below(8)], whole = 1;
	int r = madvise(address(n), count * PAGE, advice);
	for (int k = 0; k < count; k++) {
		struct page *p = &page[n + k];
		if (p->kind == HOLE) {
			whole = 0;
		} else if (advice == MADV_DONTFORK || advice == MADV_DOFORK) {
			p->dontfork = advice == MADV_DONTFORK;
		} else if (advice == MADV_DONTNEED) {
			p->own = 0;
			if (p->kind == ANON)
				memset(p->word, 0, sizeof p->word);
		}
	}
	CHECK(whole ? r == 0 : r == -1 && errno == ENOMEM);
}

static void do_remove(int n)
{
	struct page *p = &page[n];
	if (p->kind != SHARED || !p->object)
		return;
	CHECK(madvise(address(n), PAGE, MADV_REMOVE) == 0);
	memset(words(p), 0, sizeof p->word);
}

static void do_lock(int n, int count)
{
	for (int k = 0; k < count; k++)
		if (!readable(n + k))
			return;
	CHECK(mlock(address(n), count * PAGE) == 0);
	for (int k = 0; k < count; k++) {
		if (writable(n + k))
			part(n + k);
		verify(n + k);
	}
	CHECK(munlock(address(n), count * PAGE) == 0);
}

/* Move pages of one mapping, or grow a single page where more of it is zeros or more of the file.
 * Where kernels differ (what still is one VMA after all that has happened to it) the pages are
 * moved one by one. */
static void do_remap(int n, int count)
{
	struct page moved[NPAGES] = { 0 };
	struct page *p = &page[n];
	if (p->kind == HOLE)
		return;
	for (int k = 1; k < count; k++)
		if (p[k].mapping != p->mapping || p[k].prot != p->prot ||
		    p[k].dontfork != p->dontfork || p[k].index != p->index + k) {
			count = k;
			break;
		}
	int grows = count == 1 && (p->kind != SHARED || !p->object);
	int size = 1 + below(grows ? 4 : count);
	if (p->kind != ANON && p->index + size > OBJ_PAGES)
		size = OBJ_PAGES - p->index;
	if (n + size > NPAGES)
		size = NPAGES - n;
	int to = below(NPAGES - size + 1);
	int keep = size < count ? size : count;
	if (size != count && below(2)) { /* in place */
		char *r = mremap(address(n), count * PAGE, size * PAGE, 0);
		int room = 1;
		for (int k = count; k < size && room; k++)
			room = page[n + k].kind == HOLE;
		if (!room) {
			CHECK(r == MAP_FAILED && errno == ENOMEM);
			return;
		}
		CHECK(r == address(n));
		to = n;
	} else {
		int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
		char *r = mremap(address(n), count * PAGE, size * PAGE, flags, address(to));
		if (to < n + count && n < to + size) {
			CHECK(r == MAP_FAILED && errno == EINVAL);
			return;
		}
		if (r == MAP_FAILED) {
			CHECK(errno == EFAULT && count > 1);
			for (int k = 0; k < count; k++)
				if (k < size)
					CHECK(mremap(address(n + k), PAGE, PAGE, flags,
						     address(to + k)) == address(to + k));
				else
					CHECK(munmap(address(n + k), PAGE) == 0);
		} else {
			CHECK(r == address(to));
		}
	}
	for (int k = 0; k < size; k++) {
		if (k < keep) {
			moved[k] = p[k];
		} else {
			moved[k] = p[0];
			moved[k].own = 0;
			moved[k].index = p[0].index + k;
			memset(moved[k].word, 0, sizeof moved[k].word);
		}
	}
	memset(p, 0, count * sizeof *p);
	memcpy(&page[to], moved, size * sizeof *p);
}

static void operations(int count);

static _Noreturn void child(int wait_for)
{
	for (int i = 0; i < sleepers; i++)
		close(sleeper[i].wake);
	sleepers = 0;
	depth++;
	for (int n = 0; n < NPAGES; n++)
		if (page[n].dontfork)
			memset(&page[n], 0, sizeof page[n]);
	if (wait_for >= 0) {
		char c;
		CHECK(read(wait_for, &c, 1) == 1);
		close(wait_for);
	}
	state ^= 0x5851f42d4c957f2dUL * (uint64_t)(depth + 1);
	verify_all();
	operations(10 + below(20));
	_exit(0);
}

static void do_fork(void)
{
	if (depth == DEPTH)
		return;
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0)
		child(-1);
	CHECK(reap(pid) == 0);
}

static void do_sleeper(void)
{
	int fds[2];
	if (depth == DEPTH || sleepers == SLEEPERS)
		return;
	CHECK(pipe(fds) == 0);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		close(fds[1]);
		child(fds[0]);
	}
	close(fds[0]);
	sleeper[sleepers].pid = pid;
	sleeper[sleepers++].wake = fds[1];
}

static void wake_sleeper(void)
{
	if (!sleepers)
		return;
	int i = below(sleepers);
	pid_t pid = sleeper[i].pid;
	CHECK(write(sleeper[i].wake, "x", 1) == 1);
	close(sleeper[i].wake);
	sleeper[i] = sleeper[--sleepers];
	CHECK(reap(pid) == 0);
}

/* Another program finds the file as the model has it. */
static void do_exec(void)
{
	if (depth == DEPTH)
		return;
	pid_t pid = below(2) ? fork() : vfork();
	CHECK(pid >= 0);
	if (pid == 0) {
		static char a[16], b[16];
		snprintf(a, sizeof a, "%d", file);
		snprintf(b, sizeof b, "%d", model_fd);
		execl(self, self, "check", a, b, NULL);
		_exit(98);
	}
	CHECK(reap(pid) == 0);
}

static int check_file(int fd, int mfd)
{
	static uint64_t block[PAGE / 8];
	model = mmap(NULL, sizeof *model, PROT_READ, MAP_SHARED, mfd, 0);
	CHECK(model != MAP_FAILED);
	for (int n = 0; n < OBJ_PAGES; n++) {
		CHECK(pread(fd, block, PAGE, n * PAGE) == (ssize_t)PAGE);
		for (int i = 0; i < WORDS; i++)
			CHECK(block[word_at[i] / 8] == model->word[0][n][i]);
	}
	return 0;
}

static void operations(int count)
{
	while (count-- > 0) {
		int n = below(NPAGES), most = NPAGES - n, what = below(40);
		int len = 1 + below(most < 8 ? most : 8);
		if (what < 7)
			do_write(n);
		else if (what < 9)
			verify(n);
		else if (what < 12)
			do_transfer(n);
		else if (what < 14)
			do_bulk(n, len);
		else if (what < 19)
			do_map(n, len);
		else if (what < 21)
			do_unmap(n, len);
		else if (what < 25)
			do_protect(n, len);
		else if (what < 29)
			do_advise(n, len);
		else if (what < 33)
			do_remap(n, len);
		else if (what == 33)
			do_remove(n);
		else if (what == 34)
			do_lock(n, len);
		else if (what == 35)
			do_fork();
		else if (what == 36)
			do_sleeper();
		else if (what == 37)
			wake_sleeper();
		else if (what == 38)
			CHECK(msync(address(n), len * PAGE, MS_SYNC) == 0 || errno == ENOMEM);
		else if (below(4) == 0)
			do_exec();
		note((uint64_t)what);
	}
	verify_all();
	while (sleepers)
		wake_sleeper();
	verify_all();
}

int main(int argc, char **argv)
{
	CHECK(argc > 2);
	if (strcmp(argv[1], "check") == 0) {
		CHECK(argc > 3);
		return check_file(atoi(argv[2]), atoi(argv[3]));
	}
	self = "/proc/self/exe";
	state = strtoull(argv[1], NULL, 0) * 0x9e3779b97f4a7c15UL + 1;
	file = scratch_file(0);
	model_fd = scratch_file(0);
	CHECK(ftruncate(file, OBJ_PAGES * PAGE) == 0);
	CHECK(ftruncate(model_fd, sizeof *model) == 0);
	model = mmap(NULL, sizeof *model, PROT_READ | PROT_WRITE, MAP_SHARED, model_fd, 0);
	CHECK(model != MAP_FAILED);
	model->objects = 1;
	for (int n = 0; n < OBJ_PAGES; n++)
		for (int i = 0; i < WORDS; i++) {
			model->word[0][n][i] = rnd();
			CHECK(pwrite(file, &model->word[0][n][i], 8, n * PAGE + word_at[i]) == 8);
		}
	catch_signal(SIGSEGV);
	catch_signal(SIGBUS);
	CHECK(mmap(AREA + NPAGES * PAGE, PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
		   -1, 0) != MAP_FAILED); /* nothing grows out of the area */
	operations(atoi(argv[2]));
	CHECK(check_file(file, model_fd) == 0);
	printf("%016lx\n", model->hash);
	return 0;
}
