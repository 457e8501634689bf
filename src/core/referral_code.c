
/*
 * Copyright (C) The nginx referral module authors
 */


#include "referral_code.h"


ssize_t
referral_code_fold(const u_char *src, size_t len, u_char *code)
{
    u_char  ch;
    size_t  i;

    if (len == 0 || len > REFERRAL_CODE_LEN) {
        return REFERRAL_DECLINED;
    }

    for (i = 0; i < len; i++) {
        ch = src[i];

        if (ch >= 'a' && ch <= 'z') {
            ch = (u_char) (ch - 'a' + 'A');

        } else if (!((ch >= 'A' && ch <= 'Z') || (ch >= '0' && ch <= '9')
                     || ch == '_' || ch == '-'))
        {
            return REFERRAL_DECLINED;
        }

        code[i] = ch;
    }

    return (ssize_t) len;
}
