/* Code that rewrites itself: the new instructions run at once. */
#include "guest.h"

int main(void)
{
	unsigned char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED);
	int (*f)(void) = (int (*)(void))p;
	int sum = 0;
	for (int i = 0; i < 10; i++) {
		unsigned char code[] = { 0xb8, (unsigned char)i, 0, 0, 0, 0xc3 }; /* mov eax,i; ret */
		memcpy(p, code, sizeof(code));
		sum += f();
		sum += f();
	}
	/* a function that patches the instruction after its own store */
	unsigned char self[] = { 0xc6, 0x05, 1, 0, 0, 0, 42,  /* mov byte [rip+1],42 */
				 0xb8, 0, 0, 0, 0, 0xc3 };    /* mov eax,imm32 (patched); ret */
	memcpy(p, self, sizeof(self));
	printf("%d %d\n", sum, f());
	return 0;
}
