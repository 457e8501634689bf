
/*
 * Copyright (C) The nginx referral module authors
 *
 * Writes synthetic records into a journal, as an nginx worker would: for
 * tests of everything that reads journals.  See usage[] below.
 */


#include "referral_core.h"
#include "referral_fault.h"
#include "referral_record.h"
#include "referral_uuid.h"
#include "referral_writer.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>


#define WRITE_FULL_WAIT  5000              /* ms */


typedef struct {
    referral_writer_conf_t   conf;
    referral_writer_t       *writer;
    referral_uuid_source_t   source;

    uint64_t                 count;
    uint64_t                 codes;
    uint64_t                 at;           /* Unix ms, 0: the clock */
    uint64_t                 step;         /* ms between records */
    uint64_t                 rate;         /* records a second, 0: all */
    uint64_t                 garbage;      /* every nth payload, 0: none */
    uint64_t                 made;

    const char              *code;
    const char              *type;
    unsigned                 verdict;
    unsigned                 via;
    referral_str_t           ua;
    referral_str_t           city;
    referral_str_t           path;
    referral_str_t           destination;
    referral_str_t           country;
    referral_str_t           arg;
    referral_ip_t            ip;
    int64_t                  program_id;

    unsigned                 hold:1;
    unsigned                 crash:1;
    unsigned                 full:1;
    unsigned                 ids:1;
} write_ctx_t;


typedef struct {
    const char  *name;
    int          value;                    /* takes a value */
} write_option_t;


static void write_text(referral_str_t *s, const char *text);
static uint64_t write_number(const char *name, const char *text);
static unsigned write_word(const char *name, const char *text, unsigned max,
    const referral_str_t *(*word)(unsigned n));
static void write_options(write_ctx_t *ctx, int argc, char **argv);
static void write_set(write_ctx_t *ctx, const char *name, const char *value);
static void write_messages(write_ctx_t *ctx);
static u_char *write_reserve(write_ctx_t *ctx, size_t len);
static int write_record(write_ctx_t *ctx);
static int write_records(write_ctx_t *ctx, uint64_t n);
static int write_hold(write_ctx_t *ctx);


static const char  usage[] =
    "usage: journal_write --journal DIR [options]\n"
    "  --count N           records to write (1)\n"
    "  --code CODE         their code (SUMMER25)\n"
    "  --codes N           N codes in turn: CODE-0, CODE-1, ...\n"
    "  --type WORD         type (click)\n"
    "  --verdict WORD      verdict (valid)\n"
    "  --via WORD          via (redirect)\n"
    "  --at MS             time of the first record, Unix milliseconds (now)\n"
    "  --step MS           time between records, with --at (1)\n"
    "  --rate N            records a second (as fast as possible)\n"
    "  --ua TEXT           user agent; \\xNN in these texts is one byte\n"
    "  --city TEXT --country TEXT --path TEXT --destination TEXT --ip ADDR\n"
    "  --arg TEXT          value of the recorded argument utm_source\n"
    "  --program N         program_id\n"
    "  --garbage N         every Nth payload is no record at all\n"
    "  --segment BYTES     segment size (65536)\n"
    "  --size BYTES        size of the journal (67108864)\n"
    "  --sync MS           sync interval, 0 is off (0)\n"
    "  --edge NAME         name of the host (test)\n"
    "  --ids               print \"NUMBER ID\" of every record\n"
    "  --full              a full journal is no error: stop there\n"
    "  --crash             leave without closing the stream\n"
    "  --hold              then keep the stream live: a line on stdin is a\n"
    "                      number of further records; its end closes\n"
    "\n"
    "Prints \"stream ID\", and \"appended N\" (the last number) after the\n"
    "records and after each line read with --hold.\n";


static const write_option_t  options[] = {
    { "journal", 1 }, { "count", 1 }, { "code", 1 }, { "codes", 1 },
    { "type", 1 }, { "verdict", 1 }, { "via", 1 }, { "at", 1 },
    { "step", 1 }, { "rate", 1 }, { "ua", 1 }, { "city", 1 },
    { "country", 1 }, { "path", 1 }, { "destination", 1 }, { "ip", 1 },
    { "arg", 1 }, { "program", 1 }, { "garbage", 1 }, { "segment", 1 },
    { "size", 1 }, { "sync", 1 }, { "edge", 1 }, { "ids", 0 },
    { "full", 0 }, { "crash", 0 }, { "hold", 0 }, { NULL, 0 }
};


int
main(int argc, char **argv)
{
    int          rc;
    char         error[REFERRAL_ERROR_LEN];
    write_ctx_t  ctx;

    memset(&ctx, 0, sizeof(write_ctx_t));

#if (REFERRAL_FAULTS)
    if (referral_fault_init(error) != REFERRAL_OK) {
        fprintf(stderr, "journal_write: %s\n", error);
        return 2;
    }
#endif

    ctx.conf.size = 64 * 1024 * 1024;
    ctx.conf.segment = 64 * 1024;
    ctx.conf.edge = "test";
    ctx.count = 1;
    ctx.step = 1;
    ctx.code = "SUMMER25";
    ctx.type = "click";
    ctx.verdict = REFERRAL_VERDICT_VALID;
    ctx.via = REFERRAL_VIA_REDIRECT;

    write_text(&ctx.ua, "Mozilla/5.0 (X11; Linux x86_64) Firefox/128");
    write_text(&ctx.city, "Berlin");
    write_text(&ctx.country, "DE");
    write_text(&ctx.destination, "https://example.com/summer");
    write_set(&ctx, "ip", "203.0.113.0/24");

    write_options(&ctx, argc, argv);

    if (ctx.conf.path == NULL) {
        fputs(usage, stderr);
        return 2;
    }

    setvbuf(stdout, NULL, _IOLBF, 0);

    if (referral_uuid_source_init(&ctx.source) != REFERRAL_OK) {
        fprintf(stderr, "journal_write: no randomness\n");
        return 1;
    }

    if (referral_writer_open(&ctx.writer, &ctx.conf, error) != REFERRAL_OK) {
        fprintf(stderr, "journal_write: %s\n", error);
        return 1;
    }

    printf("stream %s\n", referral_writer_stream(ctx.writer));

    rc = write_records(&ctx, ctx.count);

    if (rc == REFERRAL_OK && ctx.hold) {
        rc = write_hold(&ctx);
    }

    write_messages(&ctx);
    fflush(stdout);

    if (ctx.crash) {
        _exit(rc == REFERRAL_OK ? 0 : 1);
    }

    referral_writer_close(ctx.writer);

    free(ctx.ua.data);
    free(ctx.city.data);
    free(ctx.path.data);
    free(ctx.destination.data);
    free(ctx.country.data);
    free(ctx.arg.data);

    return rc == REFERRAL_OK ? 0 : 1;
}


static void
write_text(referral_str_t *s, const char *text)
{
    u_char  *p;
    char     hex[3];

    free(s->data);

    s->data = malloc(strlen(text) + 1);
    if (s->data == NULL) {
        exit(1);
    }

    p = s->data;

    while (*text != '\0') {

        if (text[0] == '\\' && text[1] == 'x'
            && isxdigit((u_char) text[2]) && isxdigit((u_char) text[3]))
        {
            hex[0] = text[2];
            hex[1] = text[3];
            hex[2] = '\0';
            *p++ = (u_char) strtoul(hex, NULL, 16);
            text += 4;
            continue;
        }

        *p++ = (u_char) *text++;
    }

    s->len = p - s->data;
}


static uint64_t
write_number(const char *name, const char *text)
{
    char      *end;
    uint64_t   n;

    errno = 0;
    n = strtoull(text, &end, 10);

    if (!isdigit((u_char) *text) || *end != '\0' || errno) {
        fprintf(stderr, "journal_write: --%s: \"%s\" is no number\n", name,
                text);
        exit(2);
    }

    return n;
}


static unsigned
write_word(const char *name, const char *text, unsigned max,
    const referral_str_t *(*word)(unsigned n))
{
    unsigned               n;
    const referral_str_t  *s;

    for (n = 1; n < max; n++) {
        s = word(n);

        if (strlen(text) == s->len && memcmp(text, s->data, s->len) == 0) {
            return n;
        }
    }

    fprintf(stderr, "journal_write: --%s: unknown word \"%s\"\n", name, text);
    exit(2);
}


static void
write_options(write_ctx_t *ctx, int argc, char **argv)
{
    int                    i;
    const char            *value;
    const write_option_t  *o;

    for (i = 1; i < argc; i++) {

        for (o = options; o->name != NULL; o++) {
            if (strncmp(argv[i], "--", 2) == 0
                && strcmp(argv[i] + 2, o->name) == 0)
            {
                break;
            }
        }

        if (o->name == NULL || (o->value && i + 1 == argc)) {
            fprintf(stderr, "journal_write: bad option \"%s\"\n%s", argv[i],
                    usage);
            exit(2);
        }

        value = o->value ? argv[++i] : NULL;
        write_set(ctx, o->name, value);
    }
}


static void
write_set(write_ctx_t *ctx, const char *name, const char *value)
{
    unsigned  n;

    struct {
        const char       *name;
        uint64_t         *number;
        referral_str_t   *text;
        const char      **word;
    } targets[] = {
        { "journal", NULL, NULL, &ctx->conf.path },
        { "edge", NULL, NULL, &ctx->conf.edge },
        { "code", NULL, NULL, &ctx->code },
        { "type", NULL, NULL, &ctx->type },
        { "size", &ctx->conf.size, NULL, NULL },
        { "count", &ctx->count, NULL, NULL },
        { "codes", &ctx->codes, NULL, NULL },
        { "at", &ctx->at, NULL, NULL },
        { "step", &ctx->step, NULL, NULL },
        { "rate", &ctx->rate, NULL, NULL },
        { "garbage", &ctx->garbage, NULL, NULL },
        { "ua", NULL, &ctx->ua, NULL },
        { "city", NULL, &ctx->city, NULL },
        { "country", NULL, &ctx->country, NULL },
        { "path", NULL, &ctx->path, NULL },
        { "destination", NULL, &ctx->destination, NULL },
        { "arg", NULL, &ctx->arg, NULL }
    };

    for (n = 0; n < sizeof(targets) / sizeof(targets[0]); n++) {

        if (strcmp(name, targets[n].name) != 0) {
            continue;
        }

        if (targets[n].number != NULL) {
            *targets[n].number = write_number(name, value);

        } else if (targets[n].text != NULL) {
            write_text(targets[n].text, value);

        } else {
            *targets[n].word = value;
        }

        return;
    }

    if (strcmp(name, "segment") == 0) {
        ctx->conf.segment = write_number(name, value);

    } else if (strcmp(name, "sync") == 0) {
        ctx->conf.sync = (unsigned) write_number(name, value);

    } else if (strcmp(name, "program") == 0) {
        ctx->program_id = (int64_t) write_number(name, value);

    } else if (strcmp(name, "verdict") == 0) {
        ctx->verdict = write_word(name, value, REFERRAL_VERDICT_MAX,
                                  referral_verdict_word);

    } else if (strcmp(name, "via") == 0) {
        ctx->via = write_word(name, value, REFERRAL_VIA_MAX,
                              referral_via_word);

    } else if (strcmp(name, "ip") == 0) {
        if (referral_ip_parse(&ctx->ip, (const u_char *) value, strlen(value))
            != REFERRAL_OK)
        {
            fprintf(stderr, "journal_write: --ip: bad address\n");
            exit(2);
        }

    } else if (strcmp(name, "ids") == 0) {
        ctx->ids = 1;

    } else if (strcmp(name, "full") == 0) {
        ctx->full = 1;

    } else if (strcmp(name, "crash") == 0) {
        ctx->crash = 1;

    } else if (strcmp(name, "hold") == 0) {
        ctx->hold = 1;
    }
}


static void
write_messages(write_ctx_t *ctx)
{
    char  text[REFERRAL_ERROR_LEN];

    while (referral_writer_message(ctx->writer, text, sizeof(text))
           == REFERRAL_OK)
    {
        fprintf(stderr, "journal_write: %s\n", text);
    }
}


/* the helper thread allocates ahead; a fast writer has to wait for it */

static u_char *
write_reserve(write_ctx_t *ctx, size_t len)
{
    u_char    *p;
    unsigned   ms;

    for (ms = 0; ms < WRITE_FULL_WAIT; ms++) {

        p = referral_writer_reserve(ctx->writer, len);

        if (p != NULL) {
            return p;
        }

        if (ctx->full && ms > 500) {
            break;
        }

        (void) referral_writer_tick(ctx->writer);
        usleep(1000);
    }

    return NULL;
}


static int
write_record(write_ctx_t *ctx)
{
    char               code[128], path[256];
    u_char            *p, text[REFERRAL_UUID_TEXT_LEN];
    size_t             len;
    uint64_t           now, number;
    struct timespec    ts;
    referral_record_t  rec;

    if (ctx->at) {
        now = ctx->at + ctx->made * ctx->step;

    } else {
        clock_gettime(CLOCK_REALTIME, &ts);
        now = (uint64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
    }

    if (ctx->codes) {
        snprintf(code, sizeof(code), "%s-%" PRIu64, ctx->code,
                 ctx->made % ctx->codes);

    } else {
        snprintf(code, sizeof(code), "%s", ctx->code);
    }

    snprintf(path, sizeof(path), "/r/%s", code);

    memset(&rec, 0, sizeof(referral_record_t));

    if (referral_uuid7(&ctx->source, now, rec.id) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    rec.type.data = (u_char *) ctx->type;
    rec.type.len = strlen(ctx->type);
    rec.verdict = ctx->verdict;
    rec.via = ctx->via;
    rec.cache = REFERRAL_CACHE_HIT;
    rec.code.data = (u_char *) code;
    rec.code.len = strlen(code);
    rec.program_id = ctx->program_id;
    rec.ip = ctx->ip;
    rec.country = ctx->country;
    rec.city = ctx->city;
    rec.user_agent = ctx->ua;
    rec.host = (referral_str_t) referral_string("example.com");
    rec.referer_host = (referral_str_t) referral_string("news.example");
    rec.language = (referral_str_t) referral_string("de-DE");
    rec.destination = ctx->destination;
    rec.path = ctx->path;

    if (rec.path.len == 0) {
        rec.path.data = (u_char *) path;
        rec.path.len = strlen(path);
    }

    if (ctx->arg.len) {
        rec.nargs = 1;
        rec.args[0].name = (referral_str_t) referral_string("utm_source");
        rec.args[0].value = ctx->arg;
    }

    p = write_reserve(ctx, referral_record_size(&rec));

    if (p == NULL) {
        return REFERRAL_DECLINED;
    }

    len = referral_record_encode(&rec, p);

    ctx->made++;

    if (ctx->garbage && ctx->made % ctx->garbage == 0) {
        memset(p, 0xa5, len);
    }

    number = referral_writer_commit(ctx->writer, len,
                                    ctx->verdict != REFERRAL_VERDICT_VALID);

    if (ctx->ids) {
        referral_uuid_text(rec.id, text);
        printf("%" PRIu64 " %.*s\n", number, REFERRAL_UUID_TEXT_LEN, text);
    }

    return REFERRAL_OK;
}


static int
write_records(write_ctx_t *ctx, uint64_t n)
{
    int                     rc;
    uint64_t                i;
    referral_writer_stat_t  stat;

    rc = REFERRAL_OK;

    for (i = 0; i < n; i++) {

        rc = write_record(ctx);

        if (rc == REFERRAL_DECLINED && ctx->full) {
            rc = REFERRAL_OK;
            break;
        }

        if (rc != REFERRAL_OK) {
            write_messages(ctx);
            fprintf(stderr, "journal_write: the journal takes no more\n");
            break;
        }

        (void) referral_writer_tick(ctx->writer);

        if (ctx->rate) {
            usleep(1000000 / ctx->rate);
        }
    }

    referral_writer_stat(ctx->writer, &stat);
    printf("appended %" PRIu64 "\n", stat.appended);

    return rc;
}


static int
write_hold(write_ctx_t *ctx)
{
    char  line[64];

    while (fgets(line, sizeof(line), stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';

        if (write_records(ctx, write_number("hold", line)) != REFERRAL_OK) {
            return REFERRAL_ERROR;
        }
    }

    return REFERRAL_OK;
}
