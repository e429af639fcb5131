/* .data and .bss share a page: what lies behind the file's bytes is zero, stores to .data never
 * reach the file, and an exec of the same file starts from the file again. */
#include "guest.h"

static char data[100] = "initialised";
static char bss[3 * PAGE];

int main(int argc, char **argv)
{
	for (size_t i = 0; i < sizeof(bss); i++)
		CHECK(bss[i] == 0);
	printf("%s\n", data);
	strcpy(data, "changed");
	memset(bss, 1, sizeof(bss));
	if (argc == 1) {
		fflush(stdout);
		char *args[] = { argv[0], "again", NULL };
		execv("/proc/self/exe", args);
		return 1;
	}
	return 0;
}
