
/*
 * Copyright (C) The nginx referral module authors
 *
 * CSV as RFC 4180 has it: fields between commas, quoted ones may hold commas,
 * line ends and doubled quotes; a line ends with LF or CRLF.
 */


#ifndef _REFERRAL_CSV_H_INCLUDED_
#define _REFERRAL_CSV_H_INCLUDED_


#include "referral_core.h"


#define REFERRAL_CSV_FIELDS  64


typedef struct {
    referral_str_t       fields[REFERRAL_CSV_FIELDS];    /* into the text */
    size_t               nfields;
    size_t               lines;            /* line ends that were passed */
    unsigned             blank:1;          /* an empty line */
    const char          *error;            /* NULL: the record is good */
} referral_csv_t;


/*
 * Takes one record from the beginning of the text and takes its quotes away,
 * in place.  Returns the bytes that were passed; 0 when there are none.
 * REFERRAL_AGAIN: the record has no end here, and last does not say that
 * nothing follows; the text is as it was.
 *
 * A record that breaks the rules has an error, and what was passed ends with
 * its line, so that reading can go on; a quote that is never closed passes
 * everything.
 */
ssize_t referral_csv_record(referral_csv_t *csv, u_char *text, size_t len,
    unsigned last);


#endif /* _REFERRAL_CSV_H_INCLUDED_ */
