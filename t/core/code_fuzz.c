
/*
 * Copyright (C) The nginx referral module authors
 */


#include <stdlib.h>
#include <string.h>

#include "referral_code.h"


#define check(condition)  if (!(condition)) abort()


int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t   i;
    u_char   code[REFERRAL_CODE_LEN], again[REFERRAL_CODE_LEN];
    ssize_t  n;

    n = referral_code_fold(data, size, code);

    if (n < 0) {
        check(n == REFERRAL_DECLINED);
        return 0;
    }

    check((size_t) n == size && size >= 1 && size <= REFERRAL_CODE_LEN);

    for (i = 0; i < size; i++) {
        check((code[i] >= 'A' && code[i] <= 'Z')
              || (code[i] >= '0' && code[i] <= '9')
              || code[i] == '_' || code[i] == '-');
    }

    check(referral_code_fold(code, size, again) == n);
    check(memcmp(code, again, size) == 0);

    return 0;
}
