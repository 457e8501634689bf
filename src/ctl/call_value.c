
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"
#include "output.h"
#include "pg.h"
#include "referral_code.h"
#include "referral_utf8.h"
#include "time_text.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>


/*
 * How names are found.  $1 is the name, $2 the organisation or null, $3 the
 * id when the name can be one; the columns are id, organisation, how people
 * call it.  What has this name comes first, so that LIMIT keeps it.
 */

typedef struct {
    ctl_arg_e            type;
    const char          *what;
    const char          *sql;
    const char          *exact;            /* how to say what is meant */
} ctl_call_name_t;


static const ctl_call_name_t *ctl_call_name(ctl_arg_e type);
static int ctl_call_ambiguous(const ctl_call_name_t *name, const char *text,
    PGresult *result);
static int ctl_call_number(const char *name, const char *text,
    json_t **value);
static int ctl_call_flag(const char *name, const char *text, json_t **value);
static int ctl_call_json(const char *name, const char *text, json_t **value);
static json_t *ctl_call_list(const char *text);
static int ctl_call_time(const char *name, const char *text, json_t **value);
static int ctl_call_day(const char *name, const char *text, json_t **value);
static int ctl_call_uuid(const char *name, const char *text, json_t **value);
static int ctl_call_money_text(const char *name, const char *text,
    json_t **value);
static json_t *ctl_call_pattern(const char *text);


static const ctl_call_name_t  ctl_call_names[] = {

    { CTL_ARG_ORG, "organisation",
      "SELECT id, id, slug FROM referral.organisations"
      "    WHERE (slug = $1 OR id = $3::bigint)"
      "          AND ($2::bigint IS NULL OR id = $2::bigint)"
      "    ORDER BY slug <> $1, 3 LIMIT 6",
      "id:17 is the one with this id" },

    { CTL_ARG_PROGRAM, "program",
      "SELECT p.id, o.id, o.slug || '/' || p.slug"
      "    FROM referral.programs p"
      "         JOIN referral.organisations o ON o.id = p.organisation_id"
      "    WHERE (p.slug = $1 OR o.slug || '/' || p.slug = $1"
      "           OR p.id = $3::bigint)"
      "          AND ($2::bigint IS NULL OR o.id = $2::bigint)"
      "    ORDER BY p.slug <> $1, 3 LIMIT 6",
      "write ORG/PROGRAM, or id:17 for the one with this id" },

    { CTL_ARG_REFERRER, "referrer",
      "SELECT r.id, o.id, o.slug || '/' || coalesce(r.external_id,"
      "                                             'id:' || r.id)"
      "    FROM referral.referrers r"
      "         JOIN referral.organisations o ON o.id = r.organisation_id"
      "    WHERE (r.external_id = $1 OR r.id = $3::bigint"
      "           OR starts_with($1, o.slug || '/')"
      "              AND r.external_id = substr($1, length(o.slug) + 2))"
      "          AND ($2::bigint IS NULL OR o.id = $2::bigint)"
      "    ORDER BY r.external_id IS DISTINCT FROM $1, 3 LIMIT 6",
      "write ORG/ID, or id:17 for the one with this number" },

    { CTL_ARG_CODE, "code",
      "SELECT id, organisation_id, code FROM referral.codes"
      "    WHERE (code = upper($1::text) OR id = $3::bigint)"
      "          AND ($2::bigint IS NULL OR organisation_id = $2::bigint)"
      "    ORDER BY code <> upper($1::text), 3 LIMIT 6",
      "id:17 is the one with this id" }
};


static const ctl_call_name_t *
ctl_call_name(ctl_arg_e type)
{
    size_t  i;

    for (i = 0; ctl_call_names[i].type != type; i++) { /* void */ }

    return &ctl_call_names[i];
}


int
ctl_call_resolve(PGconn *pg, ctl_arg_e type, const char *text, char **org,
    char **id)
{
    int                     rc, n;
    PGresult               *result;
    const char             *params[3], *digits;
    const ctl_call_name_t  *name;

    name = ctl_call_name(type);

    digits = strncmp(text, "id:", 3) == 0 ? text + 3 : text;
    n = strspn(digits, "0123456789");

    /* a code is never taken for an id: any number can be one */

    params[0] = digits == text ? text : NULL;
    params[1] = *org;
    params[2] = (n == 0 || n > 18 || digits[n] != '\0'
                 || (type == CTL_ARG_CODE && digits == text))
                ? NULL : digits;

    if (params[2] == NULL) {
        params[0] = text;
    }

    result = ctl_pg_query(pg, &rc, name->sql, 3, params);

    if (result == NULL) {
        return rc;
    }

    switch (PQntuples(result)) {

    case 0:
        ctl_error("there is no %s \"%s\"", name->what, text);
        rc = CTL_FOUND;
        break;

    case 1:
        *id = ctl_dup(PQgetvalue(result, 0, 0),
                      strlen(PQgetvalue(result, 0, 0)));
        free(*org);
        *org = ctl_dup(PQgetvalue(result, 0, 1),
                       strlen(PQgetvalue(result, 0, 1)));
        break;

    default:
        rc = ctl_call_ambiguous(name, text, result);
        break;
    }

    PQclear(result);

    return rc;
}


static int
ctl_call_ambiguous(const ctl_call_name_t *name, const char *text,
    PGresult *result)
{
    int     i;
    char    list[1024];
    size_t  n;

    n = 0;

    for (i = 0; i < PQntuples(result) && n < sizeof(list); i++) {
        n += snprintf(&list[n], sizeof(list) - n, "%s%s (id %s)",
                      i ? ", " : "", i < 5 ? PQgetvalue(result, i, 2) : "...",
                      PQgetvalue(result, i, 0));
    }

    ctl_error("%s \"%s\" can be %s; %s", name->what, text, list, name->exact);

    return CTL_FOUND;
}


int
ctl_call_value(const char *name, ctl_arg_e type, const char *text,
    json_t **value)
{
    u_char   code[REFERRAL_CODE_LEN];
    ssize_t  n;

    if (!referral_utf8_valid((u_char *) text, strlen(text))) {
        ctl_error("%s: \"%s\" is not valid UTF-8", name, text);
        return CTL_USAGE;
    }

    if (text[0] == '\0') {
        *value = json_null();
        return CTL_DONE;
    }

    switch (type) {

    case CTL_ARG_NUMBER:
    case CTL_ARG_ID:
        return ctl_call_number(name, text, value);

    case CTL_ARG_FLAG:
        return ctl_call_flag(name, text, value);

    case CTL_ARG_JSON:
        return ctl_call_json(name, text, value);

    case CTL_ARG_LIST:
        *value = ctl_call_list(text);
        return CTL_DONE;

    case CTL_ARG_TIME:
        return ctl_call_time(name, text, value);

    case CTL_ARG_DAY:
        return ctl_call_day(name, text, value);

    case CTL_ARG_UUID:
        return ctl_call_uuid(name, text, value);

    case CTL_ARG_MONEY:
        return ctl_call_money_text(name, text, value);

    case CTL_ARG_PATTERN:
        *value = ctl_call_pattern(text);
        return CTL_DONE;

    case CTL_ARG_CODE_TEXT:
        n = referral_code_fold((u_char *) text, strlen(text), code);

        if (n < 0) {
            ctl_error("%s \"%s\": a code is 1 to %d of A-Z a-z 0-9 _ and -",
                      name, text, REFERRAL_CODE_LEN);
            return CTL_USAGE;
        }

        *value = json_stringn((char *) code, n);
        return CTL_DONE;

    default:
        *value = json_string(text);
        return CTL_DONE;
    }
}


static int
ctl_call_number(const char *name, const char *text, json_t **value)
{
    char     *end;
    int64_t   n;

    errno = 0;
    n = strtoll(text, &end, 10);

    if (errno || *end != '\0'
        || (!isdigit((u_char) text[0])
            && !(text[0] == '-' && isdigit((u_char) text[1]))))
    {
        ctl_error("%s: \"%s\" is not a number", name, text);
        return CTL_USAGE;
    }

    *value = json_integer(n);

    return CTL_DONE;
}


static int
ctl_call_flag(const char *name, const char *text, json_t **value)
{
    size_t  i;

    static const char  *words[] = {
        "no", "yes", "false", "true", "off", "on"
    };

    for (i = 0; i < sizeof(words) / sizeof(words[0]); i++) {

        if (strcmp(text, words[i]) == 0) {
            *value = json_boolean(i & 1);
            return CTL_DONE;
        }
    }

    ctl_error("%s: \"%s\" is neither yes nor no", name, text);

    return CTL_USAGE;
}


static int
ctl_call_json(const char *name, const char *text, json_t **value)
{
    json_error_t  error;

    *value = json_loads(text, JSON_DECODE_ANY|JSON_REJECT_DUPLICATES, &error);

    if (*value == NULL) {
        ctl_error("%s: this is no JSON: %s, at byte %d", name, error.text,
                  error.position);
        return CTL_USAGE;
    }

    return CTL_DONE;
}


static json_t *
ctl_call_list(const char *text)
{
    size_t   len;
    json_t  *list;

    list = json_array();

    for ( ;; ) {
        len = strcspn(text, ",");

        if (len) {
            json_array_append_new(list, json_stringn(text, len));
        }

        if (text[len] == '\0') {
            return list;
        }

        text += len + 1;
    }
}


static int
ctl_call_time(const char *name, const char *text, json_t **value)
{
    char     buf[CTL_TIME_LEN];
    int64_t  seconds;

    if (ctl_time_parse(text, &seconds) != REFERRAL_OK || seconds < 0) {
        ctl_error("%s: \"%s\" is no time: Unix seconds or ISO 8601 as in "
                  "2026-12-31 or 2026-12-31T23:59:59Z", name, text);
        return CTL_USAGE;
    }

    /* what has no zone is of the program's, which Postgres knows */

    if (text[strspn(text, "0123456789")] == '\0') {
        text = ctl_time_iso((uint64_t) seconds * 1000, buf);
    }

    *value = json_string(text);

    return CTL_DONE;
}


static int
ctl_call_day(const char *name, const char *text, json_t **value)
{
    int64_t  seconds;

    if (strlen(text) != 10 || text[4] != '-'
        || ctl_time_parse(text, &seconds) != REFERRAL_OK)
    {
        ctl_error("%s: \"%s\" is no day such as 2026-12-31", name, text);
        return CTL_USAGE;
    }

    *value = json_string(text);

    return CTL_DONE;
}


static int
ctl_call_uuid(const char *name, const char *text, json_t **value)
{
    size_t  i, digits;

    digits = 0;

    for (i = 0; text[i] != '\0'; i++) {

        if (isxdigit((u_char) text[i])) {
            digits++;

        } else if (text[i] != '-') {
            break;
        }
    }

    if (text[i] != '\0' || digits != 32) {
        ctl_error("%s: \"%s\" is no id such as "
                  "01a1f8be-de27-7bff-8a65-3e00f9ea02aa", name, text);
        return CTL_USAGE;
    }

    *value = json_string(text);

    return CTL_DONE;
}


static int
ctl_call_money_text(const char *name, const char *text, json_t **value)
{
    size_t  whole, rest;

    whole = strspn(text, "0123456789");
    rest = whole;

    if (whole && whole <= 15 && text[rest] == '.') {
        rest += 1 + strspn(&text[rest + 1], "0123456789");
        rest = text[rest - 1] == '.' || rest > 20 ? 0 : rest;
    }

    if (whole == 0 || whole > 15 || rest == 0
        || (text[rest] != '\0' && text[rest] != ' '
            && !isalpha((u_char) text[rest])))
    {
        ctl_error("%s: \"%s\" is no amount such as \"12.50 EUR\", or 1250 "
                  "in minor units", name, text);
        return CTL_USAGE;
    }

    if (text[rest] == '\0' && rest != whole) {
        ctl_error("%s: %s of what?  Write \"%s EUR\", or a whole number of "
                  "minor units", name, text, text);
        return CTL_USAGE;
    }

    *value = json_string(text);

    return CTL_DONE;
}


int
ctl_call_money(PGconn *pg, const char *name, const char *text,
    json_t **amount, json_t **unit)
{
    int          rc;
    char         digits[64];
    size_t       whole, part, i;
    PGresult    *result;
    const char  *word;

    whole = strspn(text, "0123456789");
    part = text[whole] == '.' ? strspn(&text[whole + 1], "0123456789") : 0;
    word = &text[whole + (part ? part + 1 : 0)];

    while (*word == ' ') {
        word++;
    }

    if (*word == '\0') {
        *amount = json_integer(strtoll(text, NULL, 10));
        *unit = json_null();
        return CTL_DONE;
    }

    result = ctl_pg_query(pg, &rc, "SELECT exponent FROM referral.unit"
                          " WHERE code = $1", 1, &word);
    if (result == NULL) {
        return rc;
    }

    i = PQntuples(result) ? (size_t) atoi(PQgetvalue(result, 0, 0)) : 0;
    rc = PQntuples(result) ? CTL_DONE : CTL_FOUND;
    PQclear(result);

    if (rc != CTL_DONE) {
        ctl_error("%s: there is no unit \"%s\"", name, word);
        return rc;
    }

    if (part > i) {
        ctl_error("%s: %s has %zu digits after the point, not %zu", name,
                  word, i, part);
        return CTL_FOUND;
    }

    snprintf(digits, sizeof(digits), "%.*s%.*s%.*s", (int) whole, text,
             (int) part, &text[whole + (part != 0)], (int) (i - part),
             "0000");

    *amount = json_integer(strtoll(digits, NULL, 10));
    *unit = json_string(word);

    return CTL_DONE;
}


/* "SUMMER*" to what LIKE understands */

static json_t *
ctl_call_pattern(const char *text)
{
    char    *like, *p;
    json_t  *value;

    like = ctl_alloc(2 * strlen(text) + 1);

    for (p = like; *text != '\0'; text++) {

        if (*text == '%' || *text == '_' || *text == '\\') {
            *p++ = '\\';
        }

        *p++ = *text == '*' ? '%' : *text == '?' ? '_' : *text;
    }

    *p = '\0';
    value = json_string(like);
    free(like);

    return value;
}
