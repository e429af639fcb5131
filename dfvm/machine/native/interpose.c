/* Our functions in place of some of the engine's.
 *
 * The engine is a shared library whose functions are exported and call each other through its own
 * global offset table, as the ELF rules for symbol interposition have it: a library that is loaded
 * earlier, or with LD_PRELOAD, could define helper_fprem_x86_64 and the engine would use it. We come
 * later, so the words that the dynamic linker has filled in are filled in again. Only the engine's
 * data is written, in this process alone; what is replaced is found by name, and a name that is not
 * there is an error. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>

#include "native.h"
#include "replace.h"

#define SUFFIX "_x86_64"

#define ENGINE_DEFINE(type, name, args) type(*engine_##name) args;
ENGINE_CALLS(ENGINE_DEFINE)

extern const Replacement replace_memory[], replace_translate[], replace_sse[], replace_x87[],
    replace_insn[];
static const Replacement *const tables[] = {replace_memory, replace_translate, replace_sse,
                                            replace_x87, replace_insn};
#define TABLES (sizeof tables / sizeof *tables)

typedef struct {
    const char *strings;
    const ElfW(Sym) *symbols;
    const u32 *hash;
    const ElfW(Rela) *rela, *plt;
    size_t rela_bytes, plt_bytes;
    char *base;
    void *relro;
    size_t relro_bytes;
} Image;

static char message[200]; /* why it failed */

static u32 gnu_hash(const char *name)
{
    u32 h = 5381;
    for (; *name; name++)
        h = h * 33 + (u8)*name;
    return h;
}

/* The index of a symbol; 0 when there is none. */
static u32 find_symbol(const Image *image, const char *name)
{
    const u32 *hash = image->hash;
    u32 buckets = hash[0], first = hash[1], bloom = hash[2], h = gnu_hash(name);
    const u32 *bucket = hash + 4 + bloom * 2, *chain = bucket + buckets;
    u32 index = bucket[h % buckets];
    if (index < first)
        return 0;
    for (;; index++) {
        u32 other = chain[index - first];
        if ((other | 1) == (h | 1) &&
            !strcmp(image->strings + image->symbols[index].st_name, name))
            return index;
        if (other & 1)
            return 0;
    }
}

static int take_image(struct dl_phdr_info *info, size_t size, void *data)
{
    Image *image = data;
    const ElfW(Dyn) *dynamic = NULL;
    (void)size;
    if ((char *)info->dlpi_addr != image->base)
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *ph = info->dlpi_phdr + i;
        if (ph->p_type == PT_DYNAMIC)
            dynamic = (const ElfW(Dyn) *)(info->dlpi_addr + ph->p_vaddr);
        if (ph->p_type == PT_GNU_RELRO) {
            u64 start = (info->dlpi_addr + ph->p_vaddr) & ~(u64)(PAGE - 1);
            u64 end = (info->dlpi_addr + ph->p_vaddr + ph->p_memsz) & ~(u64)(PAGE - 1);
            image->relro = (void *)start;
            image->relro_bytes = end - start;
        }
    }
    for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
        const void *p = (const void *)dynamic->d_un.d_ptr;
        switch (dynamic->d_tag) {
        case DT_STRTAB: image->strings = p; break;
        case DT_SYMTAB: image->symbols = p; break;
        case DT_GNU_HASH: image->hash = p; break;
        case DT_RELA: image->rela = p; break;
        case DT_RELASZ: image->rela_bytes = dynamic->d_un.d_val; break;
        case DT_JMPREL: image->plt = p; break;
        case DT_PLTRELSZ: image->plt_bytes = dynamic->d_un.d_val; break;
        }
    }
    return 1;
}

enum { SYMBOLS = 1 << 16 };
static void *instead[SYMBOLS]; /* by the index of a symbol */

static void redirect(const Image *image, const ElfW(Rela) *r, size_t bytes)
{
    for (const ElfW(Rela) *end = r + bytes / sizeof *r; r < end; r++) {
        u32 index = ELF64_R_SYM(r->r_info);
        if (index && index < SYMBOLS && instead[index])
            *(void **)(image->base + r->r_offset) = instead[index];
    }
}

/* Put ours into the engine, of which `function` is any function. NULL, or why it can't be done. */
EXPORT const char *dfvm_native_install(void *function)
{
    Dl_info where;
    Image image = {0};
    if (!dladdr(function, &where))
        return "the engine's library is not known to the dynamic linker";
    image.base = where.dli_fbase;
    dl_iterate_phdr(take_image, &image);
    if (!image.strings || !image.symbols || !image.hash || !image.rela || !image.plt)
        return "the engine's library has no symbols to find its functions by";
    char name[100];
#define ENGINE_FIND(type, function_name, args)                                                 \
    {                                                                                          \
        u32 index = find_symbol(&image, #function_name SUFFIX);                                \
        if (!index) /* one for all architectures */                                            \
            index = find_symbol(&image, #function_name);                                       \
        if (!index) {                                                                          \
            snprintf(message, sizeof message, "the engine has no %s", #function_name SUFFIX);  \
            return message;                                                                    \
        }                                                                                      \
        engine_##function_name = (void *)(image.base + image.symbols[index].st_value);         \
    }
    ENGINE_CALLS(ENGINE_FIND)
    for (size_t t = 0; t < TABLES; t++)
        for (const Replacement *r = tables[t]; r->name; r++) {
            snprintf(name, sizeof name, "%s" SUFFIX, r->name);
            u32 index = find_symbol(&image, name);
            if (!index || index >= SYMBOLS) {
                snprintf(message, sizeof message, "the engine has no %s", name);
                return message;
            }
            if (r->theirs)
                *r->theirs = image.base + image.symbols[index].st_value;
            instead[index] = r->ours;
        }
    if (image.relro_bytes && mprotect(image.relro, image.relro_bytes, PROT_READ | PROT_WRITE))
        return "the engine's offset table can't be made writable";
    redirect(&image, image.rela, image.rela_bytes);
    redirect(&image, image.plt, image.plt_bytes);
    if (image.relro_bytes)
        mprotect(image.relro, image.relro_bytes, PROT_READ);
    return NULL;
}

/* Where our idea of the CPU state has some fields; machine/native.py knows where they are. */
EXPORT void dfvm_native_layout(u32 *out)
{
    static const u32 offsets[] = {
        offsetof(Env, eip), offsetof(Env, segs[SEG_FS].base), offsetof(Env, segs[SEG_GS].base),
        offsetof(Env, cr[3]), offsetof(Env, fpuc), offsetof(Env, fpregs), offsetof(Env, mxcsr),
        offsetof(Env, xmm[0]), offsetof(Env, xmm[1]),
    };
    memcpy(out, offsets, sizeof offsets);
}
