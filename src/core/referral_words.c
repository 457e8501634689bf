
/*
 * Copyright (C) The nginx referral module authors
 */


#include "referral_core.h"


static const referral_str_t  referral_verdicts[REFERRAL_VERDICT_MAX] = {
    referral_string(""),
    referral_string("valid"),
    referral_string("unknown"),
    referral_string("malformed"),
    referral_string("inactive"),
    referral_string("early"),
    referral_string("expired"),
    referral_string("exhausted"),
    referral_string("unverified")
};


static const referral_str_t  referral_vias[REFERRAL_VIA_MAX] = {
    referral_string(""),
    referral_string("redirect"),
    referral_string("parameter"),
    referral_string("scan"),
    referral_string("beacon"),
    referral_string("event")
};


static const referral_str_t  referral_caches[REFERRAL_CACHE_MAX] = {
    referral_string(""),
    referral_string("hit"),
    referral_string("stale"),
    referral_string("miss"),
    referral_string("off")
};


static const referral_str_t  referral_signals[REFERRAL_SIGNAL_COUNT] = {
    referral_string("head"),
    referral_string("prefetch"),
    referral_string("preview"),
    referral_string("gpc"),
    referral_string("dnt"),
    referral_string("no-consent"),
    referral_string("new-visitor"),
    referral_string("duplicate")
};


const referral_str_t *
referral_verdict_word(unsigned verdict)
{
    return &referral_verdicts[verdict < REFERRAL_VERDICT_MAX ? verdict : 0];
}


const referral_str_t *
referral_via_word(unsigned via)
{
    return &referral_vias[via < REFERRAL_VIA_MAX ? via : 0];
}


const referral_str_t *
referral_cache_word(unsigned cache)
{
    return &referral_caches[cache < REFERRAL_CACHE_MAX ? cache : 0];
}


const referral_str_t *
referral_signal_word(unsigned n)
{
    return n < REFERRAL_SIGNAL_COUNT ? &referral_signals[n]
                                     : &referral_verdicts[0];
}
