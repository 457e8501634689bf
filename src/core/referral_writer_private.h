
/*
 * Copyright (C) The nginx referral module authors
 *
 * Inside the writer: the owner's side (referral_writer.c), the helper's
 * thread (referral_writer_helper.c) and what is made on disk
 * (referral_writer_files.c).
 *
 * Who owns what.  The owner's thread has current, pos and everything under
 * "owner" below.  The helper makes and destroys segments; a pointer that it
 * loaded from active stays good, since only the helper frees.  Segments go
 * from helper to owner through spare, and back through retired.
 *
 * What a dead writer may leave behind, in the order of its steps:
 *
 *   <id>.new               removed by the next writer
 *   spare.seg, no header   not in use
 *   spare.seg              not in use
 *   spare.seg with begin   in use: readers take it like any other
 *   <first>.seg            in use
 */


#ifndef _REFERRAL_WRITER_PRIVATE_H_INCLUDED_
#define _REFERRAL_WRITER_PRIVATE_H_INCLUDED_


#include "referral_segment.h"
#include "referral_writer.h"

#include <pthread.h>
#include <sys/mman.h>


#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE  23            /* Linux 5.14 */
#endif


#define REFERRAL_WRITER_WINDOW    (256 * 1024)   /* populated at a time */
#define REFERRAL_WRITER_FOLIO     (32 * 1024)    /* written at a time */

#define REFERRAL_WRITER_LINE      64       /* bytes, of a processor's cache */
#define REFERRAL_WRITER_AHEAD     512      /* fetched ahead: a usual record */

#define REFERRAL_WRITER_BUSY      10       /* ms between ticks under load */
#define REFERRAL_WRITER_NEAR      50       /* ms, something is unfinished */
#define REFERRAL_WRITER_BLANK     100      /* ms for the zeros of a spare */
#define REFERRAL_WRITER_RETRY     100      /* ms between allocations, full */
#define REFERRAL_WRITER_SECOND    1000     /* ms */
#define REFERRAL_WRITER_SCAN      10000    /* ms between scans, in use */
#define REFERRAL_WRITER_STALE     60       /* s, age of a dead <id>.new */

#define REFERRAL_WRITER_NOISE     10       /* noise has size / 10 */

#define REFERRAL_WRITER_MESSAGES  8
#define REFERRAL_WRITER_STACK     (256 * 1024)

#define REFERRAL_WRITER_NEW       ".new"


#define referral_load(p)       __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define referral_store(p, v)   __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define referral_add(p, v)                                                   \
    (void) __atomic_fetch_add(p, v, __ATOMIC_RELAXED)


typedef struct referral_writer_segment_s  referral_writer_segment_t;


struct referral_writer_segment_s {
    referral_writer_segment_t  *next;
    u_char                     *map;
    size_t                      size;
    size_t                      used;      /* set when retired */
    uint64_t                    first;
    uint32_t                    salt;
    int                         fd;
    int                         failed;    /* by the helper: could not sync */

    /* for the helper alone */

    unsigned                    populated:1;
    unsigned                    named:1;
    unsigned                    retired:1;
    unsigned                    synced:1;
};


/* what the helper says, by kind: each kind once a second */

typedef enum {
    REFERRAL_SAY_FULL = 0,
    REFERRAL_SAY_ALLOCATE,
    REFERRAL_SAY_RENAME,
    REFERRAL_SAY_SYNC,
    REFERRAL_SAY_SCAN,
    REFERRAL_SAY_MAX
} referral_say_e;


struct referral_writer_s {

    /* fixed after referral_writer_open() */

    char                       *path;
    uint64_t                    size;
    uint64_t                    limit;
    size_t                      segment;
    uint64_t                    sync;      /* ms */
    char                        edge[64];
    u_char                      id[REFERRAL_UUID_LEN];
    char                        name[REFERRAL_UUID_HEX_LEN + 1];
    int                         root;      /* the journal directory */
    int                         dir;       /* the stream's */
    int                         lock;
    unsigned                    hidden:1;  /* the id was given */

    /* owner */

    referral_writer_segment_t  *current;
    size_t                      pos;
    size_t                      reserved;  /* payload bytes, 0: none */
    uint64_t                    number;    /* of the last record */
    uint64_t                    ticked;    /* number at the last tick */
    uint64_t                    bytes;
    uint64_t                    segments;
    uint64_t                    full;

    /* between the threads */

    referral_writer_segment_t  *active;    /* current, as the helper sees it */
    referral_writer_segment_t  *spare;
    referral_writer_segment_t  *retired;   /* newest first */
    uint64_t                    committed;
    uint64_t                    synced;
    uint64_t                    errors;
    uint64_t                    journal;
    uint64_t                    noise_own;    /* bytes, ever */
    int64_t                     noise_others; /* last scan less own by then */
    uint64_t                    scanned;      /* ms, time of the last scan */
    uint64_t                    allocated;    /* ms, the last attempt */
    int                         asleep;       /* helper waits for a tick */
    unsigned                    said;         /* messages to fetch */

    /* helper */

    referral_writer_segment_t  *old;       /* taken from retired */
    uint64_t                    sync_due;  /* ms, 0: nothing to sync */
    uint64_t                    sync_last;
    int                         again;     /* work is left */
    int                         unnamed;   /* spare.seg is or was taken */

    pthread_t                   thread;
    pthread_mutex_t             mutex;
    pthread_cond_t              cond;
    unsigned                    wake:1;    /* under mutex, as quit is */
    unsigned                    quit:1;

    pthread_mutex_t             say_mutex;
    unsigned                    say_first;
    unsigned                    say_count;
    char                        say[REFERRAL_WRITER_MESSAGES]
                                   [REFERRAL_ERROR_LEN];
    uint64_t                    say_last[REFERRAL_SAY_MAX];
};


/* referral_writer_files.c */

int referral_writer_check(const referral_writer_conf_t *conf,
    char *error);
int referral_writer_identify(u_char *id, char *name, char *error,
    const char *path);
int referral_writer_make_dir(int root, const char *path,
    const char *name, int *dir, char *error);
int referral_writer_take_lock(int dir, const char *path, int *lock,
    char *error);
void referral_writer_clear(int root, const char *name, int dir);
void referral_writer_sweep(int root);
int referral_writer_allocate(referral_writer_t *w,
    referral_writer_segment_t **sp, char *error);
int referral_writer_scan_due(referral_writer_t *w, uint64_t now);
void referral_writer_scan(referral_writer_t *w);


/* referral_writer_helper.c */

void *referral_writer_helper(void *data);
int referral_writer_rename(referral_writer_t *w,
    referral_writer_segment_t *s);
void referral_writer_destroy(referral_writer_segment_t *s);
void referral_writer_say(referral_writer_t *w, referral_say_e kind,
    const char *fmt, ...) __attribute__((format(printf, 3, 4)));
uint64_t referral_writer_now(void);


#endif /* _REFERRAL_WRITER_PRIVATE_H_INCLUDED_ */
