
/*
 * Copyright (C) The nginx referral module authors
 *
 * The file "committed": lines of text, the last one their checksum.
 */


#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "referral_reader_private.h"
#include "referral_crc32c.h"
#include "referral_fault.h"
#include "referral_uuid.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>


#define REFERRAL_POSITION_TEXT                                               \
    "referral position 1\nseq %llu\nlast_id %.32s\nsegment %s\n"             \
    "offset %llu\nfreed %llu\n"

#define REFERRAL_POSITION_SCAN                                               \
    "referral position 1\nseq %llu\nlast_id %32[0-9a-f]\nsegment %63s\n"     \
    "offset %llu\nfreed %llu\ncrc32c %8x\n"

#define REFERRAL_POSITION_LEN  512


int
referral_position_save(referral_stream_t *s, const referral_position_t *pos,
    char *error)
{
    int      dir, fd, len, n;
    char     text[REFERRAL_POSITION_LEN];
    u_char   id[REFERRAL_UUID_HEX_LEN];
    ssize_t  written;

    referral_uuid_hex(pos->last_id, id);

    len = snprintf(text, sizeof(text), REFERRAL_POSITION_TEXT,
                   (unsigned long long) pos->seq, (char *) id,
                   pos->segment[0] ? pos->segment : "-",
                   (unsigned long long) pos->offset,
                   (unsigned long long) pos->freed);

    len += snprintf(text + len, sizeof(text) - (size_t) len,
                    "crc32c %08x\n", referral_crc32c(0, text, (size_t) len));

    n = -1;
    dir = referral_stream_open_dir(s);

    if (dir != -1) {
        fd = openat(dir, REFERRAL_STREAM_STATE_NEW,
                    O_WRONLY|O_CREAT|O_TRUNC|O_NOFOLLOW|O_CLOEXEC, 0660);

        if (fd != -1) {
            referral_fault_half("position-half", fd, text, (size_t) len);

            written = referral_fault_fails("position-enospc")
                      ? -1 : write(fd, text, (size_t) len);

            if (written == len) {
                referral_fault("position-written");

                n = renameat(dir, REFERRAL_STREAM_STATE_NEW, dir,
                             REFERRAL_STREAM_STATE);

                referral_fault("position-saved");

            } else if (written != -1) {
                errno = ENOSPC;
            }
        }

        if (n == -1) {
            snprintf(error, REFERRAL_ERROR_LEN,
                     "\"%s/%s/%s\" cannot be written: %s", s->journal->path,
                     s->name, REFERRAL_STREAM_STATE, strerror(errno));
        }

        if (fd != -1) {
            (void) close(fd);
        }

        (void) close(dir);

    } else {
        snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s\" cannot be opened: %s",
                 s->journal->path, s->name, strerror(errno));
    }

    return n == -1 ? REFERRAL_ERROR : REFERRAL_OK;
}


int
referral_position_load(referral_stream_t *s, referral_position_t *pos,
    char *error)
{
    int                 dir, fd;
    char                text[REFERRAL_POSITION_LEN + 1], *crc;
    char                id[REFERRAL_UUID_HEX_LEN + 1];
    ssize_t             len;
    unsigned            sum;
    unsigned long long  seq, offset, freed;

    memset(pos, 0, sizeof(referral_position_t));

    len = -1;
    fd = -1;
    dir = referral_stream_open_dir(s);

    if (dir != -1) {
        fd = openat(dir, REFERRAL_STREAM_STATE,
                    O_RDONLY|O_NOFOLLOW|O_NONBLOCK|O_CLOEXEC);
    }

    if (fd != -1) {
        len = referral_read_at(fd, (u_char *) text, sizeof(text) - 1, 0);
        (void) close(fd);
    }

    if (dir != -1) {
        (void) close(dir);
    }

    if (len == -1) {
        snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s/%s\" cannot be read: %s",
                 s->journal->path, s->name, REFERRAL_STREAM_STATE,
                 strerror(errno));
        return errno == ENOENT ? REFERRAL_DECLINED : REFERRAL_ERROR;
    }

    text[len] = '\0';
    crc = strstr(text, "crc32c ");

    if (crc == NULL
        || sscanf(text, REFERRAL_POSITION_SCAN, &seq, id, pos->segment,
                  &offset, &freed, &sum) != 6
        || sum != referral_crc32c(0, text, (size_t) (crc - text))
        || referral_uuid_parse((u_char *) id, strlen(id), pos->last_id)
           != REFERRAL_OK)
    {
        memset(pos, 0, sizeof(referral_position_t));
        snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s/%s\" is damaged",
                 s->journal->path, s->name, REFERRAL_STREAM_STATE);
        return REFERRAL_DECLINED;
    }

    if (strcmp(pos->segment, "-") == 0) {
        pos->segment[0] = '\0';
    }

    pos->seq = seq;
    pos->offset = offset;
    pos->freed = freed;

    return REFERRAL_OK;
}
