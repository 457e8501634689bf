
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral_geo_private.h"
#include "ngx_http_referral_stat.h"

#include "referral_record.h"
#include "referral_utf8.h"

#include <sys/mman.h>


/* how often files are looked at, and how long one must not have changed, ms */

#define NGX_HTTP_REFERRAL_GEO_CHECK     2000
#define NGX_HTTP_REFERRAL_GEO_SETTLE    500

/*
 * The cache: sets of keys, chosen by /24 and /48, and a ring of what is known
 * of each network, the oldest overwritten first.  A hit touches one line of
 * the processor's cache for the keys of its set and two of the ring, which is
 * dense: 10,000 networks are 1.2 MB.  Both stand in huge pages where there
 * are any, or each hit would miss the TLB as well.
 */

#define NGX_HTTP_REFERRAL_GEO_SETS      16384      /* a power of 2 */
#define NGX_HTTP_REFERRAL_GEO_WAYS      4
#define NGX_HTTP_REFERRAL_GEO_RING      (4 * 1024 * 1024)  /* as well */
#define NGX_HTTP_REFERRAL_GEO_PAGE      (2 * 1024 * 1024)
#define NGX_HTTP_REFERRAL_GEO_LINE      64         /* bytes */

#define NGX_HTTP_REFERRAL_GEO_TEXT_LEN  REFERRAL_RECORD_PLACE_TEXT


typedef struct {
    uint64_t                         high;         /* of the address */
    uint32_t                         at;           /* lines, ever appended */
    uint16_t                         generation;   /* 0: free */
    uint8_t                          len;          /* 4 or 16 */
    uint8_t                          prefix;       /* bits */
} ngx_http_referral_geo_key_t;


/* high and low: the address in host order; of IPv4 the upper half of high */

#define ngx_http_referral_geo_word(p)                                         \
    ((uint32_t) (p)[0] << 24 | (uint32_t) (p)[1] << 16                        \
     | (uint32_t) (p)[2] << 8 | (p)[3])


/* high is here, too: positions in a key are short and come again */

typedef struct {
    uint64_t                         high;
    uint64_t                         low;
    uint32_t                         asn;
    uint16_t                         place_len;
    uint8_t                          country;      /* offset in place */
    uint8_t                          country_len;
    uint8_t                          city;
    uint8_t                          city_len;
    unsigned                         found:1;
    unsigned                         error:1;
    u_char                           place[REFERRAL_RECORD_PLACE];
} ngx_http_referral_geo_entry_t;


/* an entry while it is made */

typedef struct {
    referral_record_t                rec;
    uint8_t                          prefix;
    unsigned                         found:1;
    unsigned                         error:1;
    u_char                           country[2];
    u_char                           region[NGX_HTTP_REFERRAL_GEO_TEXT_LEN];
    u_char                           city[NGX_HTTP_REFERRAL_GEO_TEXT_LEN];
    u_char                           time_zone[NGX_HTTP_REFERRAL_GEO_TEXT_LEN];
    u_char                           latitude[REFERRAL_RECORD_PLACE_DEGREE];
    u_char                           longitude[REFERRAL_RECORD_PLACE_DEGREE];
} ngx_http_referral_geo_new_t;


/* of this worker */

typedef struct {
    ngx_http_referral_geo_conf_t    *conf;         /* NULL: no databases */
    ngx_http_referral_geo_key_t     *keys;
    u_char                          *ring;
    uint32_t                         head;         /* lines appended */
    uint16_t                         generation;   /* raised by each swap */
    ngx_http_referral_geo_t          answer;
    ngx_event_t                      event;
    ngx_http_referral_geo_db_t      *loading;
    ngx_http_referral_mmdb_load_t    load;
} ngx_http_referral_geo_state_t;


static ngx_http_referral_geo_entry_t *ngx_http_referral_geo_find(
    const referral_ip_t *ip);
static ngx_http_referral_geo_key_t *ngx_http_referral_geo_set(
    const referral_ip_t *ip, uint64_t *high, uint64_t *low);
static ngx_http_referral_geo_entry_t *ngx_http_referral_geo_match(
    const ngx_http_referral_geo_key_t *key, uint64_t high, uint64_t low);
static ngx_http_referral_geo_entry_t *ngx_http_referral_geo_append(
    ngx_http_referral_geo_key_t *key, const referral_ip_t *ip, uint64_t low);
static void ngx_http_referral_geo_read(ngx_http_referral_geo_new_t *new,
    const referral_ip_t *ip);
static void ngx_http_referral_geo_lookup(ngx_http_referral_geo_db_t *db,
    ngx_http_referral_geo_new_t *new, const struct sockaddr *sa);
static ngx_int_t ngx_http_referral_geo_value(ngx_http_referral_geo_db_t *db,
    MMDB_entry_s *record, ngx_uint_t field, MMDB_entry_data_s *data);
static void ngx_http_referral_geo_text(referral_str_t *dst, u_char *buf,
    size_t size, const MMDB_entry_data_s *data);
static void ngx_http_referral_geo_country(referral_str_t *dst, u_char *buf,
    const MMDB_entry_data_s *data);
static void ngx_http_referral_geo_degrees(referral_str_t *dst, u_char *buf,
    size_t size, const MMDB_entry_data_s *data);
static uint32_t ngx_http_referral_geo_asn(const MMDB_entry_data_s *data);
static void ngx_http_referral_geo_check_handler(ngx_event_t *ev);
static ngx_msec_t ngx_http_referral_geo_check(void);
static ngx_msec_t ngx_http_referral_geo_load(void);


static const ngx_http_referral_geo_t  ngx_http_referral_geo_nowhere;

static ngx_http_referral_geo_state_t  ngx_http_referral_geo_state;

/* timers of nginx look for a connection's number in their logs */

static ngx_connection_t               ngx_http_referral_geo_dummy;


const ngx_http_referral_geo_t *
ngx_http_referral_geo_get(const referral_ip_t *ip)
{
    ngx_http_referral_geo_t        *geo;
    ngx_http_referral_geo_entry_t  *e;

    if (ngx_http_referral_geo_state.conf == NULL) {
        return &ngx_http_referral_geo_nowhere;
    }

    if (ip->len == 0) {
        ngx_http_referral_count(geo_missing);
        return &ngx_http_referral_geo_nowhere;
    }

    e = ngx_http_referral_geo_find(ip);

    if (e->error) {
        ngx_http_referral_count(geo_errors);

    } else if (e->found) {
        ngx_http_referral_count(geo_found);

    } else {
        ngx_http_referral_count(geo_missing);
    }

    geo = &ngx_http_referral_geo_state.answer;

    geo->place.len = e->place_len;
    geo->place.data = e->place;
    geo->country.len = e->country_len;
    geo->country.data = &e->place[e->country];
    geo->city.len = e->city_len;
    geo->city.data = &e->place[e->city];
    geo->asn = e->asn;

    return geo;
}


void
ngx_http_referral_geo_expect(const referral_ip_t *ip)
{
    uint64_t  high, low;

    if (ngx_http_referral_geo_state.conf != NULL && ip->len != 0) {
        __builtin_prefetch(ngx_http_referral_geo_set(ip, &high, &low));
    }
}


void
ngx_http_referral_geo_expect_place(const referral_ip_t *ip)
{
    uint32_t                      at;
    uint64_t                      high, low;
    ngx_uint_t                    i, n;
    ngx_http_referral_geo_key_t  *set;

    if (ngx_http_referral_geo_state.conf == NULL || ip->len == 0) {
        return;
    }

    set = ngx_http_referral_geo_set(ip, &high, &low);

    for (i = 0; i < NGX_HTTP_REFERRAL_GEO_WAYS; i++) {

        n = ngx_min(set[i].prefix, 64);

        if (n && (set[i].high ^ high) >> (64 - n) == 0) {
            at = set[i].at % (NGX_HTTP_REFERRAL_GEO_RING
                              / NGX_HTTP_REFERRAL_GEO_LINE);

            __builtin_prefetch(&ngx_http_referral_geo_state.ring[
                                   (size_t) at * NGX_HTTP_REFERRAL_GEO_LINE]);
            __builtin_prefetch(&ngx_http_referral_geo_state.ring[
                         (size_t) at * NGX_HTTP_REFERRAL_GEO_LINE
                         + NGX_HTTP_REFERRAL_GEO_LINE]);
            return;
        }
    }
}


static ngx_http_referral_geo_entry_t *
ngx_http_referral_geo_find(const referral_ip_t *ip)
{
    uint64_t                        high, low;
    ngx_uint_t                      i;
    ngx_http_referral_geo_key_t    *set, *key;
    ngx_http_referral_geo_entry_t  *e;
    ngx_http_referral_geo_state_t  *state;

    state = &ngx_http_referral_geo_state;

    set = ngx_http_referral_geo_set(ip, &high, &low);
    key = set;

    for (i = 0; i < NGX_HTTP_REFERRAL_GEO_WAYS; i++) {

        if (set[i].generation != state->generation) {
            key = &set[i];
            continue;
        }

        if (set[i].len == ip->len) {
            e = ngx_http_referral_geo_match(&set[i], high, low);

            if (e != NULL) {
                return e;
            }
        }

        /* the oldest goes when none is free */

        if (key->generation == state->generation
            && state->head - set[i].at > state->head - key->at)
        {
            key = &set[i];
        }
    }

    key->high = high;
    key->generation = state->generation;
    key->len = ip->len;

    return ngx_http_referral_geo_append(key, ip, low);
}


static ngx_http_referral_geo_key_t *
ngx_http_referral_geo_set(const referral_ip_t *ip, uint64_t *high,
    uint64_t *low)
{
    uint64_t  hash;

    *low = 0;

    if (ip->len == 4) {
        *high = (uint64_t) ngx_http_referral_geo_word(ip->bytes) << 32;
        hash = *high >> 40;

    } else {
        *high = (uint64_t) ngx_http_referral_geo_word(ip->bytes) << 32
                | ngx_http_referral_geo_word(&ip->bytes[4]);
        *low = (uint64_t) ngx_http_referral_geo_word(&ip->bytes[8]) << 32
               | ngx_http_referral_geo_word(&ip->bytes[12]);
        hash = ~(*high >> 16);
    }

    /* Fibonacci hashing: Knuth, TAOCP 3, 6.4 */

    hash = (hash * 0x9e3779b97f4a7c15ull) >> 32;

    return &ngx_http_referral_geo_state.keys[
               (hash & (NGX_HTTP_REFERRAL_GEO_SETS - 1))
               * NGX_HTTP_REFERRAL_GEO_WAYS];
}


static ngx_http_referral_geo_entry_t *
ngx_http_referral_geo_match(const ngx_http_referral_geo_key_t *key,
    uint64_t high, uint64_t low)
{
    ngx_uint_t                      n;
    ngx_http_referral_geo_entry_t  *e;
    ngx_http_referral_geo_state_t  *state;

    n = ngx_min(key->prefix, 64);

    if (n && (key->high ^ high) >> (64 - n) != 0) {
        return NULL;
    }

    state = &ngx_http_referral_geo_state;
    n = NGX_HTTP_REFERRAL_GEO_RING / NGX_HTTP_REFERRAL_GEO_LINE;

    if (state->head - key->at > n) {
        return NULL;
    }

    e = (ngx_http_referral_geo_entry_t *)
            &state->ring[(size_t) (key->at % n) * NGX_HTTP_REFERRAL_GEO_LINE];

    if (e->high != key->high
        || (key->prefix > 64 && (e->low ^ low) >> (128 - key->prefix) != 0))
    {
        return NULL;
    }

    return e;
}


static ngx_http_referral_geo_entry_t *
ngx_http_referral_geo_append(ngx_http_referral_geo_key_t *key,
    const referral_ip_t *ip, uint64_t low)
{
    uint32_t                        n, lines;
    ngx_http_referral_geo_new_t     new;
    ngx_http_referral_geo_entry_t  *e;
    ngx_http_referral_geo_state_t  *state;

    state = &ngx_http_referral_geo_state;

    ngx_http_referral_count(geo_reads);

    ngx_http_referral_geo_read(&new, ip);

    /* an entry lies in one piece: what does not fit at the end stays empty */

    n = NGX_HTTP_REFERRAL_GEO_RING / NGX_HTTP_REFERRAL_GEO_LINE;
    lines = sizeof(ngx_http_referral_geo_entry_t) / NGX_HTTP_REFERRAL_GEO_LINE
            + 1;

    if (state->head % n + lines > n) {
        state->head += n - state->head % n;
    }

    e = (ngx_http_referral_geo_entry_t *)
            &state->ring[(size_t) (state->head % n)
                         * NGX_HTTP_REFERRAL_GEO_LINE];

    e->high = key->high;
    e->low = low;
    e->place_len = referral_record_place(&new.rec, e->place);
    e->country_len = new.rec.country.len;
    e->country = e->country_len ? new.rec.country.data - e->place : 0;
    e->city_len = new.rec.city.len;
    e->city = e->city_len ? new.rec.city.data - e->place : 0;
    e->asn = new.rec.asn;
    e->found = new.found;
    e->error = new.error;

    key->prefix = new.prefix;
    key->at = state->head;

    state->head += (offsetof(ngx_http_referral_geo_entry_t, place)
                    + e->place_len + NGX_HTTP_REFERRAL_GEO_LINE - 1)
                   / NGX_HTTP_REFERRAL_GEO_LINE;

    return e;
}


static void
ngx_http_referral_geo_read(ngx_http_referral_geo_new_t *new,
    const referral_ip_t *ip)
{
    ngx_uint_t                   i;
    struct sockaddr_in           sin;
    struct sockaddr_in6          sin6;
    const struct sockaddr       *sa;
    ngx_http_referral_geo_db_t  *db;

    ngx_memzero(new, sizeof(ngx_http_referral_geo_new_t));

    if (ip->len == 4) {
        ngx_memzero(&sin, sizeof(struct sockaddr_in));
        sin.sin_family = AF_INET;
        ngx_memcpy(&sin.sin_addr, ip->bytes, 4);
        sa = (const struct sockaddr *) &sin;

    } else {
        ngx_memzero(&sin6, sizeof(struct sockaddr_in6));
        sin6.sin6_family = AF_INET6;
        ngx_memcpy(&sin6.sin6_addr, ip->bytes, 16);
        sa = (const struct sockaddr *) &sin6;
    }

    db = ngx_http_referral_geo_state.conf->dbs.elts;

    for (i = 0; i < ngx_http_referral_geo_state.conf->dbs.nelts; i++) {

        if (db[i].open) {
            ngx_http_referral_geo_lookup(&db[i], new, sa);

        } else {
            new->error = 1;
        }
    }
}


/* what an earlier database knew stays; the entry's network becomes smaller */

static void
ngx_http_referral_geo_lookup(ngx_http_referral_geo_db_t *db,
    ngx_http_referral_geo_new_t *new, const struct sockaddr *sa)
{
    int                    rc;
    uint16_t               prefix;
    ngx_uint_t             i;
    referral_str_t        *dst;
    MMDB_entry_data_s      data;
    referral_record_t     *rec;
    MMDB_lookup_result_s   result;

    rc = MMDB_SUCCESS;
    result = MMDB_lookup_sockaddr(&db->mmdb, sa, &rc);

    if (rc == MMDB_IPV6_LOOKUP_IN_IPV4_DATABASE_ERROR) {
        return;
    }

    if (rc != MMDB_SUCCESS) {
        new->error = 1;
        new->prefix = (sa->sa_family == AF_INET) ? 32 : 128;
        return;
    }

    prefix = result.netmask;

    if (sa->sa_family == AF_INET && db->mmdb.metadata.ip_version == 6) {
        prefix = (prefix > 96) ? prefix - 96 : 0;
    }

    new->prefix = ngx_max(new->prefix, prefix);

    if (!result.found_entry) {
        return;
    }

    new->found = 1;
    rec = &new->rec;

    for (i = 0; i < NGX_HTTP_REFERRAL_GEO_FIELDS; i++) {

        if (db->keys[i] == NULL) {
            continue;
        }

        rc = ngx_http_referral_geo_value(db, &result.entry, i, &data);

        if (rc == NGX_ERROR) {
            new->error = 1;
            continue;
        }

        if (rc == NGX_DECLINED) {
            continue;
        }

        switch (i) {

        case NGX_HTTP_REFERRAL_GEO_COUNTRY:
            ngx_http_referral_geo_country(&rec->country, new->country, &data);
            break;

        case NGX_HTTP_REFERRAL_GEO_REGION:
            ngx_http_referral_geo_text(&rec->region, new->region,
                                       sizeof(new->region), &data);
            break;

        case NGX_HTTP_REFERRAL_GEO_CITY:
            ngx_http_referral_geo_text(&rec->city, new->city,
                                       sizeof(new->city), &data);
            break;

        case NGX_HTTP_REFERRAL_GEO_TIME_ZONE:
            ngx_http_referral_geo_text(&rec->time_zone, new->time_zone,
                                       sizeof(new->time_zone), &data);
            break;

        case NGX_HTTP_REFERRAL_GEO_ASN:
            if (rec->asn == 0) {
                rec->asn = ngx_http_referral_geo_asn(&data);
            }
            break;

        default: /* NGX_HTTP_REFERRAL_GEO_LATITUDE, _LONGITUDE */
            dst = (i == NGX_HTTP_REFERRAL_GEO_LATITUDE) ? &rec->latitude
                                                        : &rec->longitude;
            ngx_http_referral_geo_degrees(dst,
                (i == NGX_HTTP_REFERRAL_GEO_LATITUDE) ? new->latitude
                                                      : new->longitude,
                sizeof(new->latitude), &data);
        }
    }
}


static ngx_int_t
ngx_http_referral_geo_value(ngx_http_referral_geo_db_t *db,
    MMDB_entry_s *record, ngx_uint_t field, MMDB_entry_data_s *data)
{
    int           rc;
    const char  **keys;

    keys = db->keys[field];

    for ( ;; ) {
        ngx_memzero(data, sizeof(MMDB_entry_data_s));

        rc = MMDB_aget_value(record, data, keys);

        if (rc == MMDB_SUCCESS && data->has_data) {
            return NGX_OK;
        }

        if (rc != MMDB_SUCCESS
            && rc != MMDB_INVALID_LOOKUP_PATH_ERROR
            && rc != MMDB_LOOKUP_PATH_DOES_NOT_MATCH_DATA_ERROR)
        {
            return NGX_ERROR;
        }

        if (field != NGX_HTTP_REFERRAL_GEO_COUNTRY
            || db->registered == NULL
            || keys == db->registered)
        {
            return NGX_DECLINED;
        }

        keys = db->registered;
    }
}


static void
ngx_http_referral_geo_text(referral_str_t *dst, u_char *buf, size_t size,
    const MMDB_entry_data_s *data)
{
    size_t         len;
    const u_char  *p;

    if (dst->len || data->type != MMDB_DATA_TYPE_UTF8_STRING) {
        return;
    }

    p = (const u_char *) data->utf8_string;
    len = referral_utf8_cut(p, data->data_size, size);

    if (!referral_utf8_valid(p, len)) {
        return;
    }

    ngx_memcpy(buf, p, len);

    dst->len = len;
    dst->data = buf;
}


static void
ngx_http_referral_geo_country(referral_str_t *dst, u_char *buf,
    const MMDB_entry_data_s *data)
{
    ngx_uint_t   i;
    const char  *p;

    if (dst->len
        || data->type != MMDB_DATA_TYPE_UTF8_STRING
        || data->data_size != 2)
    {
        return;
    }

    p = data->utf8_string;

    for (i = 0; i < 2; i++) {
        buf[i] = ngx_toupper(p[i]);

        if (buf[i] < 'A' || buf[i] > 'Z') {
            return;
        }
    }

    dst->len = 2;
    dst->data = buf;
}


static void
ngx_http_referral_geo_degrees(referral_str_t *dst, u_char *buf, size_t size,
    const MMDB_entry_data_s *data)
{
    int     n;
    size_t  i;
    double  value;

    if (dst->len) {
        return;
    }

    switch (data->type) {

    case MMDB_DATA_TYPE_DOUBLE:
        value = data->double_value;
        break;

    case MMDB_DATA_TYPE_FLOAT:
        value = data->float_value;
        break;

    case MMDB_DATA_TYPE_UTF8_STRING:

        if (data->data_size == 0 || data->data_size > size) {
            return;
        }

        for (i = 0; i < data->data_size; i++) {

            if (ngx_strchr("0123456789.-", data->utf8_string[i]) == NULL
                || data->utf8_string[i] == '\0')
            {
                return;
            }
        }

        ngx_memcpy(buf, data->utf8_string, data->data_size);

        dst->len = data->data_size;
        dst->data = buf;

        return;

    default:
        return;
    }

    /* not a number fails both */

    if (!(value >= -180 && value <= 180)) {
        return;
    }

    n = snprintf((char *) buf, size, "%.4f", value);

    if (n <= 0 || (size_t) n >= size) {
        return;
    }

    dst->len = n;
    dst->data = buf;
}


/* a number, or text as "AS64496" */

static uint32_t
ngx_http_referral_geo_asn(const MMDB_entry_data_s *data)
{
    size_t       len;
    u_char      *p;
    ngx_int_t    n;

    switch (data->type) {

    case MMDB_DATA_TYPE_UINT16:
        return data->uint16;

    case MMDB_DATA_TYPE_UINT32:
        return data->uint32;

    case MMDB_DATA_TYPE_UINT64:
        return data->uint64 <= 0xffffffff ? (uint32_t) data->uint64 : 0;

    case MMDB_DATA_TYPE_UTF8_STRING:
        p = (u_char *) data->utf8_string;
        len = data->data_size;

        if (len > 2 && ngx_strncasecmp(p, (u_char *) "AS", 2) == 0) {
            p += 2;
            len -= 2;
        }

        n = (len <= 10) ? ngx_atoi(p, len) : NGX_ERROR;

        return (n > 0 && (uint64_t) n <= 0xffffffff) ? (uint32_t) n : 0;

    default:
        return 0;
    }
}


static void
ngx_http_referral_geo_check_handler(ngx_event_t *ev)
{
    ngx_msec_t  next;

    if (ngx_exiting || ngx_http_referral_geo_state.conf == NULL) {
        return;
    }

    next = ngx_http_referral_geo_state.loading
           ? ngx_http_referral_geo_load() : ngx_http_referral_geo_check();

    ngx_add_timer(ev, next);
}


/* a file that another process may still be writing is left alone */

static ngx_msec_t
ngx_http_referral_geo_check(void)
{
    char                            error[REFERRAL_ERROR_LEN];
    ngx_msec_t                      next;
    ngx_uint_t                      i;
    ngx_http_referral_geo_db_t     *db;
    ngx_http_referral_mmdb_id_t     id;
    ngx_http_referral_geo_state_t  *state;

    state = &ngx_http_referral_geo_state;
    next = NGX_HTTP_REFERRAL_GEO_CHECK;

    db = state->conf->dbs.elts;

    for (i = 0; i < state->conf->dbs.nelts; i++, db++) {

        if (ngx_http_referral_mmdb_stat((char *) db->path.data, &id)
            != NGX_OK)
        {
            if (!db->missing) {
                db->missing = 1;

                ngx_http_referral_count(geo_failures);

                ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, ngx_errno,
                              "referral: geo database \"%V\" cannot be read, "
                              "%s", &db->path, db->open
                              ? "its last content stays in use"
                              : "geo data are empty until it can");
            }

            continue;
        }

        db->missing = 0;

        if ((db->open && ngx_http_referral_mmdb_same(&id, &db->id))
            || ngx_http_referral_mmdb_same(&id, &db->failed))
        {
            continue;
        }

        if (!ngx_http_referral_mmdb_same(&id, &db->seen)) {
            db->seen = id;
            next = NGX_HTTP_REFERRAL_GEO_SETTLE;
            continue;
        }

        if (ngx_http_referral_mmdb_begin(&state->load, (char *) db->path.data,
                                         error)
            != NGX_OK)
        {
            db->failed = id;

            ngx_http_referral_count(geo_failures);

            ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                          "referral: geo database not replaced: %s", error);
            continue;
        }

        state->loading = db;

        return 1;
    }

    return next;
}


static ngx_msec_t
ngx_http_referral_geo_load(void)
{
    char                            error[REFERRAL_ERROR_LEN];
    ngx_int_t                       rc;
    ngx_http_referral_geo_db_t     *db;
    ngx_http_referral_geo_state_t  *state;

    state = &ngx_http_referral_geo_state;
    db = state->loading;

    rc = ngx_http_referral_mmdb_step(&state->load, (char *) db->path.data,
                                     error);

    if (rc == NGX_AGAIN) {
        return 1;
    }

    state->loading = NULL;

    if (rc == NGX_ERROR) {
        db->failed = state->load.id;

        ngx_http_referral_count(geo_failures);

        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "referral: geo database not replaced: %s", error);

        return NGX_HTTP_REFERRAL_GEO_CHECK;
    }

    if (db->open) {
        MMDB_close(&db->mmdb);
    }

    db->mmdb = state->load.mmdb;
    db->id = state->load.id;
    db->open = 1;

    state->generation = (state->generation == 65535) ? 1
                                                     : state->generation + 1;

    /* a number that comes again must not find what it left */

    if (state->generation == 1) {
        ngx_memzero(state->keys, NGX_HTTP_REFERRAL_GEO_SETS
                                 * NGX_HTTP_REFERRAL_GEO_WAYS
                                 * sizeof(ngx_http_referral_geo_key_t));
    }

    ngx_http_referral_count(geo_loads);

    ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                  "referral: geo database \"%V\" replaced", &db->path);

    return NGX_HTTP_REFERRAL_GEO_SETTLE;
}


ngx_int_t
ngx_http_referral_geo_init_process(ngx_cycle_t *cycle,
    ngx_http_referral_main_conf_t *rmcf)
{
    size_t                          n;
    ngx_http_referral_geo_state_t  *state;

    if (rmcf->geo == NULL
        || (ngx_process != NGX_PROCESS_WORKER
            && ngx_process != NGX_PROCESS_SINGLE))
    {
        return NGX_OK;
    }

    state = &ngx_http_referral_geo_state;

    ngx_memzero(state, sizeof(ngx_http_referral_geo_state_t));

    n = NGX_HTTP_REFERRAL_GEO_SETS * NGX_HTTP_REFERRAL_GEO_WAYS
        * sizeof(ngx_http_referral_geo_key_t);

    state->keys = ngx_memalign(NGX_HTTP_REFERRAL_GEO_PAGE,
                               n + NGX_HTTP_REFERRAL_GEO_RING, cycle->log);
    if (state->keys == NULL) {
        return NGX_ERROR;
    }

#ifdef MADV_HUGEPAGE
    (void) madvise(state->keys, n + NGX_HTTP_REFERRAL_GEO_RING,
                   MADV_HUGEPAGE);
#endif

    ngx_memzero(state->keys, n);

    state->ring = (u_char *) state->keys + n;
    state->conf = rmcf->geo;
    state->generation = 1;

    ngx_http_referral_geo_dummy.fd = (ngx_socket_t) -1;

    state->event.handler = ngx_http_referral_geo_check_handler;
    state->event.data = &ngx_http_referral_geo_dummy;
    state->event.log = cycle->log;
    state->event.cancelable = 1;

    /* the workers do not all load a new file at once */

    ngx_add_timer(&state->event, ngx_random() % NGX_HTTP_REFERRAL_GEO_CHECK);

    return NGX_OK;
}


void
ngx_http_referral_geo_exit_process(void)
{
    ngx_http_referral_geo_state_t  *state;

    state = &ngx_http_referral_geo_state;

    if (state->conf == NULL) {
        return;
    }

    if (state->event.timer_set) {
        ngx_del_timer(&state->event);
    }

    ngx_http_referral_mmdb_abort(&state->load);

    ngx_free(state->keys);

    state->keys = NULL;
    state->conf = NULL;
}


void
ngx_http_referral_geo_forget(ngx_http_referral_geo_conf_t *gcf)
{
    if (ngx_http_referral_geo_state.conf == gcf) {
        ngx_http_referral_geo_exit_process();
    }
}
