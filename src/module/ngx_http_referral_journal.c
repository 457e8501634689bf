
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral_journal.h"
#include "ngx_http_referral_limit.h"
#include "ngx_http_referral_stat.h"

#include "referral_fault.h"
#include "referral_segment.h"

#include <grp.h>
#include <sys/wait.h>


#define NGX_HTTP_REFERRAL_JOURNAL_SIZE       ((off_t) 1024 * 1024 * 1024)
#define NGX_HTTP_REFERRAL_JOURNAL_SEGMENT    (4 * 1024 * 1024)
#define NGX_HTTP_REFERRAL_JOURNAL_SYNC       500      /* ms */
#define NGX_HTTP_REFERRAL_JOURNAL_SYNC_MAX   3600000

/* of opening a stream that failed, ms */

#define NGX_HTTP_REFERRAL_JOURNAL_RETRY      1000
#define NGX_HTTP_REFERRAL_JOURNAL_RETRY_MAX  10000

/* seconds between lines about noise */

#define NGX_HTTP_REFERRAL_JOURNAL_NOISE      60

/* of one stream: in use, and allocated ahead */

#define NGX_HTTP_REFERRAL_JOURNAL_SEGMENTS   2

/* at reload old workers run beside the new ones */

#define NGX_HTTP_REFERRAL_JOURNAL_CYCLES     2


/* of this worker; the path is a copy, it outlives its cycle */

typedef struct {
    referral_writer_t       *writer;
    referral_writer_conf_t   conf;
    ngx_event_t              tick;
    ngx_event_t              retry;
    ngx_msec_t               backoff;
    ngx_uint_t               dropped;              /* not logged yet */
    time_t                   logged;
    ngx_uint_t               noise;                /* the same of noise */
    time_t                   noise_logged;
    uint64_t                 mark;                 /* a record, unsynced */
    unsigned                 refusing:1;
    char                     path[NGX_MAX_PATH];
    char                     edge[NGX_MAXHOSTNAMELEN + 1];
} ngx_http_referral_journal_t;


static ngx_int_t ngx_http_referral_journal_check_size(ngx_log_t *log,
    ngx_http_referral_journal_conf_t *jcf, ngx_core_conf_t *ccf);
static ngx_int_t ngx_http_referral_journal_check_path(ngx_log_t *log,
    ngx_http_referral_journal_conf_t *jcf, ngx_core_conf_t *ccf);
static ssize_t ngx_http_referral_journal_read(ngx_fd_t fd, char *buf,
    size_t size);
static void ngx_http_referral_journal_probe(
    ngx_http_referral_journal_conf_t *jcf, ngx_core_conf_t *ccf, char *error);
static void ngx_http_referral_journal_hint(
    ngx_http_referral_journal_conf_t *jcf, ngx_core_conf_t *ccf, char *error,
    const char *reason);
#if (REFERRAL_FAULTS)
static void ngx_http_referral_journal_faults(ngx_log_t *log);
#endif
static void ngx_http_referral_journal_open(ngx_http_referral_journal_t *j);
static void ngx_http_referral_journal_retry_handler(ngx_event_t *ev);
static void ngx_http_referral_journal_tick_handler(ngx_event_t *ev);
static void ngx_http_referral_journal_age(ngx_http_referral_journal_t *j);
static void ngx_http_referral_journal_noise(ngx_http_referral_journal_t *j);
static void ngx_http_referral_journal_refused(ngx_http_referral_journal_t *j);
static void ngx_http_referral_journal_log(ngx_http_referral_journal_t *j);


static ngx_http_referral_journal_t  ngx_http_referral_stream;

/* timers of nginx look for a connection's number in their logs */

static ngx_connection_t             ngx_http_referral_journal_dummy;


ngx_int_t
ngx_http_referral_journal_append(referral_record_t *rec)
{
    size_t                        len;
    u_char                       *p;
    ngx_uint_t                    noise;
    ngx_http_referral_journal_t  *j;

    j = &ngx_http_referral_stream;

    noise = rec->verdict != REFERRAL_VERDICT_VALID;

    if (j->writer == NULL) {
        ngx_http_referral_journal_refused(j);
        return NGX_ERROR;
    }

    /*
     * While Redis is away nobody can tell clicks from noise: unverified ones
     * have no rate, only the same tenth of the journal.
     */

    if (noise
        && (referral_writer_noise_full(j->writer)
            || (rec->verdict != REFERRAL_VERDICT_UNVERIFIED
                && !ngx_http_referral_limit_noise())))
    {
        ngx_http_referral_journal_noise(j);
        return NGX_DECLINED;
    }

    /* how long the record may become matters at the end of a segment only */

    len = REFERRAL_RECORD_MAX;

    if (referral_writer_room(j->writer) < len) {
        len = referral_record_size(rec);
    }

    p = referral_writer_reserve(j->writer, len);

    if (!j->tick.timer_set) {
        ngx_add_timer(&j->tick, 1);
    }

    if (p == NULL) {
        ngx_http_referral_journal_refused(j);
        return NGX_ERROR;
    }

    len = referral_record_encode(rec, p);

    (void) referral_writer_commit(j->writer, len, noise);

    ngx_http_referral_count(journal_records);
    ngx_http_referral_count_n(journal_bytes, referral_frame_size(len));

    /* not in the second of the last line: space may come and go at once */

    if (j->refusing && j->logged != ngx_time()) {
        ngx_http_referral_journal_log(j);
        j->refusing = 0;

        ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                      "referral: the journal \"%s\" accepts clicks again",
                      j->path);
    }

    return NGX_OK;
}


static void
ngx_http_referral_journal_noise(ngx_http_referral_journal_t *j)
{
    ngx_http_referral_count(dropped_noise);

    j->noise++;

    if (j->noise_logged
        && ngx_time() - j->noise_logged < NGX_HTTP_REFERRAL_JOURNAL_NOISE)
    {
        return;
    }

    ngx_log_error(NGX_LOG_WARN, ngx_cycle->log, 0,
                  "referral: %ui request(s) with codes that are not valid "
                  "were answered and not recorded, beyond a rate and a tenth "
                  "of the journal: does somebody guess codes, or is Redis "
                  "away?", j->noise);

    j->noise = 0;
    j->noise_logged = ngx_time();
}


static void
ngx_http_referral_journal_refused(ngx_http_referral_journal_t *j)
{
    ngx_http_referral_count(dropped_full);

    j->refusing = 1;
    j->dropped++;

    if (j->logged != ngx_time()) {
        ngx_http_referral_journal_log(j);
    }
}


static void
ngx_http_referral_journal_log(ngx_http_referral_journal_t *j)
{
    if (j->dropped == 0) {
        return;
    }

    ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                  "referral: the journal \"%s\" is %s, "
                  "%ui click(s) were not recorded%s",
                  j->path, j->writer ? "full or broken" : "not open",
                  j->dropped,
                  j->writer ? ": is there space, does referral-worker run, "
                              "does Postgres answer it?" : "");

    j->dropped = 0;
    j->logged = ngx_time();
}


static void
ngx_http_referral_journal_tick_handler(ngx_event_t *ev)
{
    char                          text[REFERRAL_ERROR_LEN];
    unsigned                      msec;
    ngx_http_referral_journal_t  *j;

    j = &ngx_http_referral_stream;

    if (j->writer == NULL) {
        return;
    }

    msec = referral_writer_tick(j->writer);

    ngx_http_referral_journal_age(j);

    while (referral_writer_message(j->writer, text, sizeof(text))
           == REFERRAL_OK)
    {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0, "referral: %s", text);
    }

    if (j->dropped) {

        if (j->logged != ngx_time()) {
            ngx_http_referral_journal_log(j);

        } else if (msec == 0) {
            msec = 1000;
        }
    }

    if (msec && !ev->timer_set) {
        ngx_add_timer(ev, msec);
    }
}


/*
 * For the status page: since when the oldest record that is not on disk has
 * waited, seen once a tick.  What comes while a marked record waits is not
 * older than that one.
 */

static void
ngx_http_referral_journal_age(ngx_http_referral_journal_t *j)
{
    referral_writer_stat_t  stat;

    if (j->conf.sync == 0) {
        return;
    }

    referral_writer_stat(j->writer, &stat);

    if (stat.synced == stat.appended) {
        j->mark = 0;
        ngx_http_referral_gauge(unsynced, 0);
        return;
    }

    if (j->mark == 0 || stat.synced >= j->mark) {
        j->mark = stat.appended;
        ngx_http_referral_gauge(unsynced,
                                ngx_http_referral_stat_clock() / 1000);
    }
}


void
ngx_http_referral_journal_init_process(ngx_cycle_t *cycle,
    ngx_http_referral_main_conf_t *rmcf)
{
    ngx_http_referral_journal_t       *j;
    ngx_http_referral_journal_conf_t  *jcf;

    jcf = rmcf->journal;

    if (jcf == NULL
        || (ngx_process != NGX_PROCESS_WORKER
            && ngx_process != NGX_PROCESS_SINGLE))
    {
        return;
    }

    j = &ngx_http_referral_stream;

    ngx_memzero(j, sizeof(ngx_http_referral_journal_t));

#if (REFERRAL_FAULTS)
    ngx_http_referral_journal_faults(cycle->log);
#endif

    /* the length was checked with the directive */

    ngx_cpystrn((u_char *) j->path, jcf->path.data, NGX_MAX_PATH);

    ngx_cpystrn((u_char *) j->edge, cycle->hostname.data,
                ngx_min(cycle->hostname.len, NGX_MAXHOSTNAMELEN) + 1);

    j->conf.path = j->path;
    j->conf.size = jcf->size;
    j->conf.segment = jcf->segment;
    j->conf.sync = jcf->sync;
    j->conf.edge = j->edge;

    j->backoff = NGX_HTTP_REFERRAL_JOURNAL_RETRY;

    ngx_http_referral_journal_dummy.fd = (ngx_socket_t) -1;

    j->tick.handler = ngx_http_referral_journal_tick_handler;
    j->tick.data = &ngx_http_referral_journal_dummy;
    j->tick.log = cycle->log;
    j->tick.cancelable = 1;

    j->retry.handler = ngx_http_referral_journal_retry_handler;
    j->retry.data = &ngx_http_referral_journal_dummy;
    j->retry.log = cycle->log;
    j->retry.cancelable = 1;

    ngx_http_referral_journal_open(j);
}


#if (REFERRAL_FAULTS)

/* here and not earlier: nothing is to happen to the master */

static void
ngx_http_referral_journal_faults(ngx_log_t *log)
{
    char  error[REFERRAL_ERROR_LEN];

    if (referral_fault_init(error) != REFERRAL_OK) {
        ngx_log_error(NGX_LOG_EMERG, log, 0,
                      "referral: %s: nothing is tested", error);
        return;
    }

    ngx_log_error(NGX_LOG_WARN, log, 0,
                  "referral: this module was built with fault points, "
                  "for tests only");
}

#endif


static void
ngx_http_referral_journal_open(ngx_http_referral_journal_t *j)
{
    char  error[REFERRAL_ERROR_LEN];

    ngx_http_referral_journal_log(j);

    if (referral_writer_open(&j->writer, &j->conf, error) != REFERRAL_OK) {
        j->writer = NULL;

        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "referral: clicks are not recorded: %s", error);

        ngx_add_timer(&j->retry, j->backoff);

        j->backoff = ngx_min(j->backoff * 2,
                             NGX_HTTP_REFERRAL_JOURNAL_RETRY_MAX);
        return;
    }

    ngx_http_referral_gauge(journal_streams, 1);

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, ngx_cycle->log, 0,
                   "referral journal stream %s",
                   referral_writer_stream(j->writer));

    /* wakes the helper, which has pages ready before a click needs them */

    ngx_add_timer(&j->tick, 1);
}


static void
ngx_http_referral_journal_retry_handler(ngx_event_t *ev)
{
    if (ngx_exiting) {
        return;
    }

    ngx_http_referral_journal_open(&ngx_http_referral_stream);
}


void
ngx_http_referral_journal_exit_process(void)
{
    ngx_http_referral_journal_t  *j;

    j = &ngx_http_referral_stream;

    if (j->tick.timer_set) {
        ngx_del_timer(&j->tick);
    }

    if (j->retry.timer_set) {
        ngx_del_timer(&j->retry);
    }

    if (j->writer) {
        referral_writer_close(j->writer);
        j->writer = NULL;
    }
}


referral_writer_t *
ngx_http_referral_journal_writer(void)
{
    return ngx_http_referral_stream.writer;
}


ngx_int_t
ngx_http_referral_journal_check(ngx_cycle_t *cycle,
    ngx_http_referral_main_conf_t *rmcf)
{
    ngx_core_conf_t                   *ccf;
    ngx_http_referral_journal_conf_t  *jcf;

    jcf = rmcf->journal;

    if (jcf == NULL) {
        return NGX_OK;
    }

    ccf = (ngx_core_conf_t *) ngx_get_conf(cycle->conf_ctx, ngx_core_module);

    if (ngx_http_referral_journal_check_size(cycle->log, jcf, ccf) != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_referral_journal_check_path(cycle->log, jcf, ccf);
}


static ngx_int_t
ngx_http_referral_journal_check_size(ngx_log_t *log,
    ngx_http_referral_journal_conf_t *jcf, ngx_core_conf_t *ccf)
{
    off_t      needed;
    ngx_int_t  workers;

    workers = ccf->master ? ccf->worker_processes : 1;

    needed = (off_t) workers * NGX_HTTP_REFERRAL_JOURNAL_CYCLES
             * NGX_HTTP_REFERRAL_JOURNAL_SEGMENTS * jcf->segment;

    if (jcf->size >= needed) {
        return NGX_OK;
    }

    ngx_log_error(NGX_LOG_EMERG, log, 0,
                  "referral_journal \"%V\": size=%O is too small, "
                  "%i worker(s) with %d segments of %uz bytes each need "
                  "%O at reload, when old workers run beside new ones: "
                  "raise size= or lower segment=",
                  &jcf->path, jcf->size, workers,
                  NGX_HTTP_REFERRAL_JOURNAL_SEGMENTS, jcf->segment, needed);

    return NGX_ERROR;
}


static ngx_int_t
ngx_http_referral_journal_check_path(ngx_log_t *log,
    ngx_http_referral_journal_conf_t *jcf, ngx_core_conf_t *ccf)
{
    char       error[REFERRAL_ERROR_LEN];
    int        status;
    ssize_t    n;
    sigset_t   set, old;
    ngx_fd_t   fd[2];
    ngx_pid_t  pid;

    if (pipe(fd) == -1) {
        ngx_log_error(NGX_LOG_EMERG, log, ngx_errno, "pipe() failed");
        return NGX_ERROR;
    }

    /* the master's SIGCHLD handler must not wait for this child */

    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);

    if (sigprocmask(SIG_BLOCK, &set, &old) == -1) {
        ngx_log_error(NGX_LOG_EMERG, log, ngx_errno, "sigprocmask() failed");
        close(fd[0]);
        close(fd[1]);
        return NGX_ERROR;
    }

    pid = fork();

    if (pid == 0) {
        error[0] = '\0';

        close(fd[0]);
        ngx_http_referral_journal_probe(jcf, ccf, error);

        n = write(fd[1], error, ngx_strlen(error));
        _exit(n < 0);
    }

    close(fd[1]);

    n = -1;
    status = 0;

    if (pid != -1) {
        n = ngx_http_referral_journal_read(fd[0], error, sizeof(error) - 1);

        while (waitpid(pid, &status, 0) == -1 && ngx_errno == NGX_EINTR) {
            /* void */
        }

    } else {
        ngx_log_error(NGX_LOG_EMERG, log, ngx_errno, "fork() failed");
    }

    close(fd[0]);

    (void) sigprocmask(SIG_SETMASK, &old, NULL);

    if (pid == -1) {
        return NGX_ERROR;
    }

    if (n > 0) {
        error[n] = '\0';
        ngx_log_error(NGX_LOG_EMERG, log, 0, "referral_journal: %s", error);
        return NGX_ERROR;
    }

    if (n < 0 || status != 0) {
        ngx_log_error(NGX_LOG_EMERG, log, 0,
                      "referral_journal \"%V\": the test of the directory "
                      "ended with status %Xd", &jcf->path, status);
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ssize_t
ngx_http_referral_journal_read(ngx_fd_t fd, char *buf, size_t size)
{
    size_t   len;
    ssize_t  n;

    len = 0;

    while (len < size) {
        n = read(fd, buf + len, size - len);

        if (n == 0) {
            break;
        }

        if (n == -1) {
            if (ngx_errno == NGX_EINTR) {
                continue;
            }

            return -1;
        }

        len += n;
    }

    return len;
}


/* in a child: becomes the worker's user, as ngx_worker_process_init() does */

static void
ngx_http_referral_journal_probe(ngx_http_referral_journal_conf_t *jcf,
    ngx_core_conf_t *ccf, char *error)
{
    ngx_err_t               err;
    struct stat             st;
    referral_writer_conf_t  conf;

    if (geteuid() == 0) {
        if (setgid(ccf->group) == -1
            || initgroups(ccf->username, ccf->group) == -1
            || setuid(ccf->user) == -1)
        {
            err = ngx_errno;
            snprintf(error, REFERRAL_ERROR_LEN,
                     "cannot become the worker's user %s: %s",
                     ccf->username, strerror(err));
            return;
        }
    }

    if (stat((char *) jcf->path.data, &st) == -1) {
        err = ngx_errno;
        ngx_http_referral_journal_hint(jcf, ccf, error,
            err == NGX_ENOENT ? "does not exist" : strerror(err));
        return;
    }

    if (!S_ISDIR(st.st_mode)) {
        snprintf(error, REFERRAL_ERROR_LEN, "\"%s\" is not a directory",
                 (char *) jcf->path.data);
        return;
    }

    if (access((char *) jcf->path.data, R_OK|W_OK|X_OK) == -1) {
        err = ngx_errno;
        ngx_http_referral_journal_hint(jcf, ccf, error,
            err == NGX_EACCES ? "cannot be written by the worker's user"
                              : strerror(err));
        return;
    }

    ngx_memzero(&conf, sizeof(referral_writer_conf_t));

    conf.path = (char *) jcf->path.data;
    conf.size = jcf->size;
    conf.segment = jcf->segment;
    conf.sync = jcf->sync;
    conf.edge = "";

    if (referral_writer_probe(&conf, error) == REFERRAL_OK) {
        error[0] = '\0';
        return;
    }

    if (error[0] == '\0') {
        snprintf(error, REFERRAL_ERROR_LEN, "\"%s\" cannot be used",
                 conf.path);
    }
}


static void
ngx_http_referral_journal_hint(ngx_http_referral_journal_conf_t *jcf,
    ngx_core_conf_t *ccf, char *error, const char *reason)
{
    const char     *user;
    struct passwd  *pw;

    pw = getpwuid(geteuid());
    user = pw ? pw->pw_name : ccf->username;

    snprintf(error, REFERRAL_ERROR_LEN,
             "\"%s\" %s; as root: install -d -m 2770 -o %s -g referral %s",
             (char *) jcf->path.data, reason, user ? user : "nginx",
             (char *) jcf->path.data);
}


char *
ngx_http_referral_journal(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_referral_main_conf_t  *rmcf = conf;

    off_t                              size;
    ngx_str_t                         *value, s;
    ngx_int_t                          msec;
    ngx_uint_t                         i;
    ngx_http_referral_journal_conf_t  *jcf;

    if (rmcf->journal) {
        return "is duplicate";
    }

    jcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_referral_journal_conf_t));
    if (jcf == NULL) {
        return NGX_CONF_ERROR;
    }

    jcf->size = NGX_HTTP_REFERRAL_JOURNAL_SIZE;
    jcf->segment = NGX_HTTP_REFERRAL_JOURNAL_SEGMENT;
    jcf->sync = NGX_HTTP_REFERRAL_JOURNAL_SYNC;

    value = cf->args->elts;

    jcf->path = value[1];

    while (jcf->path.len > 1 && jcf->path.data[jcf->path.len - 1] == '/') {
        jcf->path.len--;
        jcf->path.data[jcf->path.len] = '\0';
    }

    if (jcf->path.len == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"referral_journal\" needs a directory");
        return NGX_CONF_ERROR;
    }

    if (ngx_conf_full_name(cf->cycle, &jcf->path, 0) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    /* a stream's name and a segment's name come behind it */

    if (jcf->path.len + 2 * REFERRAL_UUID_HEX_LEN + 2 >= NGX_MAX_PATH) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "path \"%V\" is too long", &jcf->path);
        return NGX_CONF_ERROR;
    }

    for (i = 2; i < cf->args->nelts; i++) {

        if (ngx_strncmp(value[i].data, "size=", 5) == 0) {
            s.len = value[i].len - 5;
            s.data = value[i].data + 5;

            jcf->size = ngx_parse_offset(&s);

            if (jcf->size <= 0) {
                goto invalid;
            }

            continue;
        }

        if (ngx_strncmp(value[i].data, "segment=", 8) == 0) {
            s.len = value[i].len - 8;
            s.data = value[i].data + 8;

            size = ngx_parse_offset(&s);

            if (size < REFERRAL_SEGMENT_MIN || size > REFERRAL_SEGMENT_MAX
                || size % ngx_pagesize)
            {
                ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                                   "\"%V\" must be a multiple of %ui bytes, "
                                   "from %d to %d", &value[i], ngx_pagesize,
                                   REFERRAL_SEGMENT_MIN, REFERRAL_SEGMENT_MAX);
                return NGX_CONF_ERROR;
            }

            jcf->segment = size;

            continue;
        }

        if (ngx_strncmp(value[i].data, "sync=", 5) == 0) {
            s.len = value[i].len - 5;
            s.data = value[i].data + 5;

            if (s.len == 3 && ngx_strncmp(s.data, "off", 3) == 0) {
                jcf->sync = 0;
                continue;
            }

            msec = ngx_parse_time(&s, 0);

            if (msec <= 0 || msec > NGX_HTTP_REFERRAL_JOURNAL_SYNC_MAX) {
                goto invalid;
            }

            jcf->sync = msec;

            continue;
        }

        goto invalid;
    }

    rmcf->journal = jcf;

    return NGX_CONF_OK;

invalid:

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid parameter \"%V\"", &value[i]);

    return NGX_CONF_ERROR;
}
