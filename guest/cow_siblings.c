/* Four children of one parent write the same page and a page of their own; none sees another. */
#include "guest.h"

int main(void)
{
	char *p = pages(6);
	strcpy(p, "parent");
	pid_t child[4];
	for (int i = 0; i < 4; i++) {
		child[i] = fork();
		CHECK(child[i] >= 0);
		if (child[i] == 0) {
			CHECK(strcmp(p, "parent") == 0);
			sprintf(p, "child %d", i);
			p[(i + 1) * PAGE] = 1;
			int touched = 0;
			for (int k = 1; k < 6; k++)
				touched += p[k * PAGE];
			_exit(touched * 10 + (p[6] - '0'));
		}
	}
	for (int i = 0; i < 4; i++)
		printf("child %d: %d\n", i, reap(child[i]));
	puts(p);
	return 0;
}
