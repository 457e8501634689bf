
/*
 * Copyright (C) The nginx referral module authors
 */


#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "referral_segment.h"
#include "referral_crc32c.h"
#include "referral_fault.h"
#include "referral_record.h"

#include <endian.h>
#include <stdio.h>
#include <string.h>


/*
 * The header:
 *
 *   0  magic | 8 version u32 | 16 stream | 32 salt u32 | 36 pid u32 | 40 size
 *   48 limit | 56 created | 64 edge | 252 crc32c of all before
 *
 * The begin block: crc32c u32 | mark u32 | first number u64; the checksum
 * covers mark and number.
 */

#define REFERRAL_SEGMENT_MAGIC   "RFRLSEG\n"

#define REFERRAL_HEADER_VERSION  8
#define REFERRAL_HEADER_STREAM   16
#define REFERRAL_HEADER_SALT     32
#define REFERRAL_HEADER_PID      36
#define REFERRAL_HEADER_SIZE     40
#define REFERRAL_HEADER_LIMIT    48
#define REFERRAL_HEADER_CREATED  56
#define REFERRAL_HEADER_EDGE     64
#define REFERRAL_HEADER_CRC      252

#define REFERRAL_BEGIN_MARK      0x4e474542U    /* "BEGN" */


static void referral_put32(u_char *p, uint32_t n);
static void referral_put64(u_char *p, uint64_t n);
static uint32_t referral_get32(const u_char *p);
static uint64_t referral_get64(const u_char *p);
static uint32_t referral_frame_crc(const u_char *frame, uint32_t salt,
    size_t len);


void
referral_segment_header_encode(const referral_segment_header_t *h, u_char *buf)
{
    memset(buf, 0, REFERRAL_SEGMENT_BEGIN);

    memcpy(buf, REFERRAL_SEGMENT_MAGIC, sizeof(REFERRAL_SEGMENT_MAGIC) - 1);

    referral_put32(buf + REFERRAL_HEADER_VERSION, REFERRAL_SEGMENT_VERSION);
    memcpy(buf + REFERRAL_HEADER_STREAM, h->stream, REFERRAL_UUID_LEN);
    referral_put32(buf + REFERRAL_HEADER_SALT, h->salt);
    referral_put32(buf + REFERRAL_HEADER_PID, h->pid);
    referral_put64(buf + REFERRAL_HEADER_SIZE, h->size);
    referral_put64(buf + REFERRAL_HEADER_LIMIT, h->limit);
    referral_put64(buf + REFERRAL_HEADER_CREATED, h->created);

    memcpy(buf + REFERRAL_HEADER_EDGE, h->edge,
           strnlen(h->edge, sizeof(h->edge) - 1));

    referral_put32(buf + REFERRAL_HEADER_CRC,
                   referral_crc32c(0, buf, REFERRAL_HEADER_CRC));
}


int
referral_segment_header_decode(referral_segment_header_t *h, const u_char *buf,
    char *error)
{
    uint32_t  version;

    memset(h, 0, sizeof(referral_segment_header_t));

    if (memcmp(buf, REFERRAL_SEGMENT_MAGIC, sizeof(REFERRAL_SEGMENT_MAGIC) - 1)
        != 0)
    {
        snprintf(error, REFERRAL_ERROR_LEN, "no journal segment (magic)");
        return REFERRAL_ERROR;
    }

    version = referral_get32(buf + REFERRAL_HEADER_VERSION);

    if (version != REFERRAL_SEGMENT_VERSION) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "segment version %u is not known, only %d", version,
                 REFERRAL_SEGMENT_VERSION);
        return REFERRAL_ERROR;
    }

    if (referral_get32(buf + REFERRAL_HEADER_CRC)
        != referral_crc32c(0, buf, REFERRAL_HEADER_CRC))
    {
        snprintf(error, REFERRAL_ERROR_LEN, "header checksum is wrong");
        return REFERRAL_ERROR;
    }

    memcpy(h->stream, buf + REFERRAL_HEADER_STREAM, REFERRAL_UUID_LEN);
    h->salt = referral_get32(buf + REFERRAL_HEADER_SALT);
    h->pid = referral_get32(buf + REFERRAL_HEADER_PID);
    h->size = referral_get64(buf + REFERRAL_HEADER_SIZE);
    h->limit = referral_get64(buf + REFERRAL_HEADER_LIMIT);
    h->created = referral_get64(buf + REFERRAL_HEADER_CREATED);

    memcpy(h->edge, buf + REFERRAL_HEADER_EDGE, sizeof(h->edge));
    h->edge[sizeof(h->edge) - 1] = '\0';

    if (h->salt == 0) {
        snprintf(error, REFERRAL_ERROR_LEN, "header has no salt");
        return REFERRAL_ERROR;
    }

    if (h->size < REFERRAL_SEGMENT_MIN || h->size > REFERRAL_SEGMENT_MAX) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "segment size %llu is out of range",
                 (unsigned long long) h->size);
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


void
referral_segment_begin_publish(u_char *buf, uint32_t salt, uint64_t first)
{
    u_char    mark[4];
    uint32_t  crc;
    uint64_t  word;

    referral_put32(mark, REFERRAL_BEGIN_MARK);
    referral_put64(buf + 8, first);

    crc = referral_crc32c(salt, mark, 4);
    crc = referral_crc32c(crc, buf + 8, 8);

    word = (uint64_t) REFERRAL_BEGIN_MARK << 32 | crc;

    referral_fault("segment-beginning");

    __atomic_store_n((uint64_t *) (void *) buf, htole64(word),
                     __ATOMIC_RELEASE);
}


int
referral_segment_begin_decode(const u_char *buf, uint32_t salt,
    uint64_t *first)
{
    /* a number alone is no damage: the writer died between its stores */

    if (referral_get64(buf) == 0) {
        return REFERRAL_DECLINED;
    }

    *first = referral_get64(buf + 8);

    if (referral_get32(buf + 4) != REFERRAL_BEGIN_MARK
        || referral_get32(buf) != referral_crc32c(salt, buf + 4, 12)
        || *first == 0)
    {
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


void
referral_frame_publish(u_char *frame, uint32_t salt, uint64_t number,
    size_t len)
{
    u_char    head[4];
    uint32_t  crc;

    /* the length is part of the checksum, but not stored before it */

    referral_put32(head, (uint32_t) len);
    referral_put64(frame + 8, number);

    crc = referral_crc32c(salt, head, 4);
    crc = referral_crc32c(crc, frame + 8, 8 + len);

    referral_fault("record-written");

    __atomic_store_n((uint64_t *) (void *) frame,
                     htole64((uint64_t) len << 32 | crc), __ATOMIC_RELEASE);
}


int
referral_frame_check(const u_char *frame, size_t avail, uint32_t salt,
    uint64_t *number, size_t *len)
{
    size_t  n;

    if (avail < REFERRAL_FRAME_HEAD || referral_get64(frame) == 0) {
        return REFERRAL_AGAIN;
    }

    n = referral_get32(frame + 4);

    if (n == 0 || n > REFERRAL_RECORD_MAX) {
        return REFERRAL_ERROR;
    }

    if (avail < REFERRAL_FRAME_HEAD + n) {
        return REFERRAL_AGAIN;
    }

    if (referral_get32(frame) != referral_frame_crc(frame, salt, n)
        && referral_guard("record-checksum"))
    {
        return REFERRAL_ERROR;
    }

    *number = referral_get64(frame + 8);
    *len = n;

    return REFERRAL_OK;
}


static uint32_t
referral_frame_crc(const u_char *frame, uint32_t salt, size_t len)
{
    return referral_crc32c(salt, frame + 4, 12 + len);
}


static void
referral_put32(u_char *p, uint32_t n)
{
    n = htole32(n);
    memcpy(p, &n, sizeof(n));
}


static void
referral_put64(u_char *p, uint64_t n)
{
    n = htole64(n);
    memcpy(p, &n, sizeof(n));
}


static uint32_t
referral_get32(const u_char *p)
{
    uint32_t  n;

    memcpy(&n, p, sizeof(n));

    return le32toh(n);
}


static uint64_t
referral_get64(const u_char *p)
{
    uint64_t  n;

    memcpy(&n, p, sizeof(n));

    return le64toh(n);
}
