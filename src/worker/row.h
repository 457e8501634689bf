
/*
 * Copyright (C) The nginx referral module authors
 *
 * How a record of the journal becomes a row of referral.interaction.
 */


#ifndef _REFERRAL_ROW_H_INCLUDED_
#define _REFERRAL_ROW_H_INCLUDED_


#include "referral_record.h"
#include "copy.h"


/* in the order of the columns */

#define REFERRAL_ROW_COLUMNS                                                 \
    "id, occurred_at, stream, seq, type, verdict, via, code, code_id,"       \
    " program_id, referrer_id, visitor, visitor_hash, ip, country, region,"  \
    " city, asn, user_agent, referer_host, host, path, args, language,"      \
    " source, signals, destination, metadata"


/* appends the row to a COPY */
void referral_row_copy(referral_buf_t *b, const referral_record_t *rec,
    uint64_t occurred, int32_t stream, uint64_t seq);

/* appends the row as a JSON object, for referral.requeue() */
void referral_row_json(referral_buf_t *b, const referral_record_t *rec,
    uint64_t occurred, int32_t stream, uint64_t seq);

/* "click" when the record names no type */
const referral_str_t *referral_row_type(const referral_record_t *rec);


#endif /* _REFERRAL_ROW_H_INCLUDED_ */
