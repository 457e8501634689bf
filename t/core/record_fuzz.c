
/*
 * Copyright (C) The nginx referral module authors
 *
 * A payload that is accepted can be written again, and is the same record.
 */


#include "referral_record.h"

#include <stdlib.h>
#include <string.h>


int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);


static void
touch(const referral_str_t *s)
{
    size_t           i;
    volatile u_char  sum;

    sum = 0;

    for (i = 0; i < s->len; i++) {
        sum ^= s->data[i];
    }

    (void) sum;
}


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char               error[REFERRAL_ERROR_LEN];
    size_t             len, again;
    unsigned           i;
    static u_char      buf[REFERRAL_RECORD_MAX], buf2[REFERRAL_RECORD_MAX];
    referral_record_t  rec;

    if (referral_record_decode(&rec, data, size, error) != REFERRAL_OK) {

        if (memchr(error, '\0', sizeof(error)) == NULL) {
            abort();
        }

        return 0;
    }

    touch(&rec.type);
    touch(&rec.code);
    touch(&rec.destination);
    touch(&rec.visitor_hash);

    for (i = 0; i < rec.nargs; i++) {
        touch(&rec.args[i].name);
        touch(&rec.args[i].value);
    }

    len = referral_record_encode(&rec, buf);

    if (len > referral_record_size(&rec) || len > sizeof(buf)
        || referral_record_decode(&rec, buf, len, error) != REFERRAL_OK)
    {
        abort();
    }

    again = referral_record_encode(&rec, buf2);

    if (again != len || memcmp(buf, buf2, len) != 0) {
        abort();
    }

    return 0;
}
