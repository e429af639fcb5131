/* Which functions of the engine's are replaced: a table in each file, which interpose.c goes through. */
#ifndef DFVM_REPLACE_H
#define DFVM_REPLACE_H

typedef struct {
    const char *name; /* the engine's, without the suffix of its architecture */
    void *ours;
    void **theirs; /* where the engine's own is kept; NULL when nobody calls it */
} Replacement;

#define OURS(name) {#name, dfvm_##name, NULL}
#define OURS_AND(name, theirs) {#name, dfvm_##name, (void **)&theirs}
#define END {NULL, NULL, NULL}

#endif
