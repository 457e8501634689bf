
/*
 * Copyright (C) The nginx referral module authors
 *
 * The format of journal files, shared by writer and readers.  Numbers are
 * little-endian.
 *
 *   0     header, one page; written and synced before the segment is used
 *   256   begin: the first record's number, published when the segment is
 *         taken into use (checksum last)
 *   512   noise: bytes of records whose verdict is not valid (a hint)
 *   4096  frames, each aligned to 8 bytes:
 *
 *         crc32c u32 | length u32 | number u64 | payload | padding
 *
 * The checksum is seeded with the segment's salt and covers length, number
 * and payload: bytes inside a payload cannot pass for a frame.  Payload and
 * number are stored first; checksum and length, one aligned 64-bit word, are
 * published last.  A zero word means: not written yet.
 */


#ifndef _REFERRAL_SEGMENT_H_INCLUDED_
#define _REFERRAL_SEGMENT_H_INCLUDED_


#include "referral_core.h"


#define REFERRAL_SEGMENT_VERSION    1

#define REFERRAL_SEGMENT_BEGIN      256    /* offset of the begin block */
#define REFERRAL_SEGMENT_NOISE      512    /* offset of the noise counter */
#define REFERRAL_SEGMENT_DATA       4096   /* offset of the first frame */

#define REFERRAL_SEGMENT_MIN        (64 * 1024)
#define REFERRAL_SEGMENT_MAX        (1024 * 1024 * 1024)

#define REFERRAL_FRAME_HEAD         16

#define referral_frame_size(len)                                             \
    ((REFERRAL_FRAME_HEAD + (size_t) (len) + 7) & ~(size_t) 7)


/* names inside a journal directory */

#define REFERRAL_READER_LOCK     "reader.lock"
#define REFERRAL_SPACE_LOCK      "space.lock"   /* held while allocating */
#define REFERRAL_STREAM_LOCK     "lock"
#define REFERRAL_STREAM_STATE    "committed"
#define REFERRAL_STREAM_ASIDE    "aside"
#define REFERRAL_SPARE           "spare.seg"    /* allocated, maybe in use */
#define REFERRAL_SEGMENT_NAME    "%020llu.seg"  /* first number */


typedef struct {
    u_char               stream[REFERRAL_UUID_LEN];
    uint32_t             salt;             /* random, never 0 */
    uint64_t             size;             /* of this file, bytes */
    uint64_t             limit;            /* of the whole journal, bytes */
    uint64_t             created;          /* Unix milliseconds */
    uint32_t             pid;              /* of the writer */
    char                 edge[64];         /* host name, NUL-terminated */
} referral_segment_header_t;


/* buf has REFERRAL_SEGMENT_BEGIN bytes */

void referral_segment_header_encode(const referral_segment_header_t *h,
    u_char *buf);

/* REFERRAL_ERROR with the reason: magic, version, checksum, size */
int referral_segment_header_decode(referral_segment_header_t *h,
    const u_char *buf, char *error);

/* buf points at the begin block; published with the checksum last */

void referral_segment_begin_publish(u_char *buf, uint32_t salt,
    uint64_t first);

/*
 * REFERRAL_OK and the first number; REFERRAL_DECLINED: not in use yet (all
 * zero); REFERRAL_ERROR: damaged.
 */
int referral_segment_begin_decode(const u_char *buf, uint32_t salt,
    uint64_t *first);


/*
 * Publishes a frame whose payload stands at frame + REFERRAL_FRAME_HEAD
 * already.  frame is aligned to 8 bytes.
 */
void referral_frame_publish(u_char *frame, uint32_t salt, uint64_t number,
    size_t len);

/*
 * Looks at a frame; avail is what can be read from there.
 *
 *   REFERRAL_OK        good: *number and *len are set
 *   REFERRAL_AGAIN     not written (the word is zero), or avail is too short
 *   REFERRAL_ERROR     length out of range or checksum wrong
 */
int referral_frame_check(const u_char *frame, size_t avail, uint32_t salt,
    uint64_t *number, size_t *len);


#endif /* _REFERRAL_SEGMENT_H_INCLUDED_ */
