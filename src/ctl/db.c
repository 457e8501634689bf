
/*
 * Copyright (C) The nginx referral module authors
 */


#include "db.h"
#include "output.h"
#include "pg.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>


#define CTL_DB_FILE_MAX   (16 * 1024 * 1024)
#define CTL_DB_SHA_LEN    (2 * SHA256_DIGEST_LENGTH)

#define CTL_DB_LOCK  "hashtextextended('referral.schema_migration', 0)"


typedef enum {
    CTL_DB_PENDING = 0,
    CTL_DB_APPLIED,
    CTL_DB_UNCHECKED,                      /* by psql: without a checksum */
    CTL_DB_CHANGED,
    CTL_DB_MISSING                         /* applied, but no file here */
} ctl_db_state_e;


typedef struct {
    int                  version;
    char                 name[128];
    char                 file[160];        /* "" if missing */
    char                *text;
    char                 sha256[CTL_DB_SHA_LEN + 1];
    char                 applied_at[64];
    ctl_db_state_e       state;
} ctl_migration_t;


typedef struct {
    char                 dir[PATH_MAX];
    ctl_migration_t     *list;
    size_t               n;
} ctl_migrations_t;


static int ctl_db_dir(ctl_migrations_t *m, const ctl_options_t *o);
static int ctl_db_load(ctl_migrations_t *m, const ctl_options_t *o);
static int ctl_db_name(const struct dirent *entry);
static int ctl_db_file(ctl_migrations_t *m, const char *name);
static int ctl_db_read(ctl_migration_t *f, const char *path);
static ctl_migration_t *ctl_db_add(ctl_migrations_t *m);
static int ctl_db_compare(PGconn *pg, ctl_migrations_t *m);
static void ctl_db_match(ctl_migrations_t *m, int version, const char *name,
    const char *sha256, const char *applied_at);
static int ctl_db_refuse(const ctl_migrations_t *m);
static int ctl_db_lock(PGconn *pg);
static int ctl_db_apply(PGconn *pg, const ctl_migrations_t *m,
    ctl_migration_t *f);
static int ctl_db_seal(PGconn *pg, ctl_migrations_t *m);
static void ctl_db_report(const ctl_migrations_t *m, size_t applied,
    int json);
static void ctl_db_table(const ctl_migrations_t *m);
static json_t *ctl_db_json(const ctl_migrations_t *m);
static void ctl_db_free(ctl_migrations_t *m);


static const char  *ctl_db_states[] = {
    "pending", "applied", "unchecked", "changed", "missing"
};


int
ctl_db_upgrade(ctl_options_t *o)
{
    int               rc;
    size_t            i, applied;
    PGconn           *pg;
    ctl_migrations_t  m;

    rc = ctl_db_load(&m, o);

    if (rc != CTL_DONE) {
        return rc;
    }

    applied = 0;
    pg = NULL;

    rc = ctl_pg_open(&pg, o);

    if (rc == CTL_DONE) {
        rc = ctl_db_lock(pg);
    }

    if (rc == CTL_DONE) {
        rc = ctl_db_compare(pg, &m);
    }

    if (rc == CTL_DONE) {
        rc = ctl_db_refuse(&m);
    }

    for (i = 0; rc == CTL_DONE && i < m.n; i++) {

        if (m.list[i].state != CTL_DB_PENDING) {
            continue;
        }

        rc = ctl_db_apply(pg, &m, &m.list[i]);

        if (rc == CTL_DONE) {
            applied++;

            if (!o->json) {
                printf("applied %s\n", m.list[i].file);
                fflush(stdout);
            }
        }
    }

    if (rc == CTL_DONE) {
        rc = ctl_db_seal(pg, &m);
    }

    if (rc == CTL_DONE) {
        ctl_db_report(&m, applied, o->json);
    }

    /* the end of the session releases the lock */

    PQfinish(pg);
    ctl_db_free(&m);

    return rc;
}


int
ctl_db_status(ctl_options_t *o)
{
    int               rc;
    size_t            i;
    PGconn           *pg;
    ctl_migrations_t  m;

    rc = ctl_db_load(&m, o);

    if (rc != CTL_DONE) {
        return rc;
    }

    rc = ctl_pg_open(&pg, o);

    if (rc == CTL_DONE) {
        rc = ctl_db_compare(pg, &m);
        PQfinish(pg);
    }

    if (rc != CTL_DONE) {
        ctl_db_free(&m);
        return rc;
    }

    for (i = 0; i < m.n; i++) {
        if (m.list[i].state != CTL_DB_APPLIED
            && m.list[i].state != CTL_DB_UNCHECKED)
        {
            rc = CTL_FOUND;
        }
    }

    if (o->json) {
        ctl_json_print(ctl_db_json(&m));

    } else {
        ctl_db_table(&m);
    }

    ctl_db_free(&m);

    return rc;
}


static void
ctl_db_table(const ctl_migrations_t *m)
{
    char              version[16];
    size_t            i;
    const char       *texts[4];
    ctl_table_t       table;
    ctl_migration_t  *f;

    static const ctl_column_t  columns[] = {
        { "VERSION", 1 },
        { "NAME", 0 },
        { "STATE", 0 },
        { "APPLIED (UTC)", 0 }
    };

    ctl_table_init(&table, columns, sizeof(columns) / sizeof(columns[0]));

    for (i = 0; i < m->n; i++) {

        f = &m->list[i];
        snprintf(version, sizeof(version), "%d", f->version);

        texts[0] = version;
        texts[1] = f->name;
        texts[2] = ctl_db_states[f->state];
        texts[3] = f->applied_at;

        ctl_table_row(&table, texts);
    }

    ctl_table_print(&table);
}


/* where the files are: given, beside the tree's build, or installed */

static int
ctl_db_dir(ctl_migrations_t *m, const ctl_options_t *o)
{
    char         exe[PATH_MAX], *slash;
    size_t       i;
    ssize_t      n;
    struct stat  st;

    /* build/, build/asan/, bin/ */

    static const char  *places[] = {
        "/../sql", "/../../sql", "/../share/referral/sql"
    };

    if (o->sql != NULL) {
        snprintf(m->dir, sizeof(m->dir), "%s", o->sql);
        return REFERRAL_OK;
    }

    n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

    if (n == -1) {
        return REFERRAL_DECLINED;
    }

    exe[n] = '\0';
    slash = strrchr(exe, '/');

    if (slash != NULL) {
        *slash = '\0';
    }

    for (i = 0; i < sizeof(places) / sizeof(places[0]); i++) {

        if (snprintf(m->dir, sizeof(m->dir), "%s%s", exe, places[i])
                < (int) sizeof(m->dir)
            && stat(m->dir, &st) == 0 && S_ISDIR(st.st_mode))
        {
            return REFERRAL_OK;
        }
    }

    return REFERRAL_DECLINED;
}


static int
ctl_db_load(ctl_migrations_t *m, const ctl_options_t *o)
{
    int              i, n, rc;
    struct dirent  **names;

    memset(m, 0, sizeof(ctl_migrations_t));

    if (ctl_db_dir(m, o) != REFERRAL_OK) {
        ctl_error("where are the migrations?  Give --sql DIR or set "
                  "REFERRAL_SQL: the directory sql of the sources");
        return CTL_USAGE;
    }

    n = scandir(m->dir, &names, ctl_db_name, alphasort);

    if (n == -1) {
        ctl_error("migrations: %s: %s", m->dir, strerror(errno));
        return CTL_USAGE;
    }

    rc = CTL_DONE;

    for (i = 0; i < n; i++) {

        if (rc == CTL_DONE) {
            rc = ctl_db_file(m, names[i]->d_name);
        }

        free(names[i]);
    }

    free(names);

    if (rc == CTL_DONE && n == 0) {
        ctl_error("migrations: %s has no file NNNN_name.sql", m->dir);
        rc = CTL_USAGE;
    }

    if (rc != CTL_DONE) {
        ctl_db_free(m);
    }

    return rc;
}


static int
ctl_db_name(const struct dirent *entry)
{
    size_t       len;
    const char  *name;

    name = entry->d_name;
    len = strlen(name);

    return len > sizeof("0000_.sql") - 1 && strspn(name, "0123456789") == 4
           && name[4] == '_' && strcmp(name + len - 4, ".sql") == 0;
}


static int
ctl_db_file(ctl_migrations_t *m, const char *name)
{
    int               version;
    char              path[PATH_MAX + 256];
    ctl_migration_t  *f;

    version = atoi(name);

    if (m->n && m->list[m->n - 1].version == version) {
        ctl_error("migrations: %s has two files with the number %04d",
                  m->dir, version);
        return CTL_USAGE;
    }

    /* numbers have no gaps: a hole is a file that was lost */

    if (version != (int) m->n + 1) {
        ctl_error("migrations: %s has no file with the number %04d before "
                  "%s", m->dir, (int) m->n + 1, name);
        return CTL_USAGE;
    }

    if (strlen(name) >= sizeof(f->name)) {
        ctl_error("migrations: %s/%s: the name is too long", m->dir, name);
        return CTL_USAGE;
    }

    f = ctl_db_add(m);
    f->version = version;

    memcpy(f->file, name, strlen(name) + 1);
    memcpy(f->name, name + 5, strlen(name) - (sizeof("0000_.sql") - 1));
    snprintf(path, sizeof(path), "%s/%s", m->dir, name);

    return ctl_db_read(f, path);
}


static int
ctl_db_read(ctl_migration_t *f, const char *path)
{
    FILE         *file;
    size_t        i, len;
    u_char        digest[SHA256_DIGEST_LENGTH];
    struct stat   st;

    file = fopen(path, "re");

    if (file == NULL) {
        ctl_error("migrations: %s: %s", path, strerror(errno));
        return CTL_USAGE;
    }

    if (fstat(fileno(file), &st) == -1 || st.st_size > CTL_DB_FILE_MAX) {
        ctl_error("migrations: %s: this is no file of SQL", path);
        fclose(file);
        return CTL_USAGE;
    }

    f->text = ctl_alloc(st.st_size + 1);
    len = fread(f->text, 1, st.st_size, file);

    if (ferror(file) || memchr(f->text, '\0', len) != NULL) {
        ctl_error("migrations: %s: this is no file of SQL", path);
        fclose(file);
        return CTL_USAGE;
    }

    fclose(file);

    (void) SHA256((u_char *) f->text, len, digest);

    for (i = 0; i < SHA256_DIGEST_LENGTH; i++) {
        sprintf(&f->sha256[2 * i], "%02x", digest[i]);
    }

    return CTL_DONE;
}


static ctl_migration_t *
ctl_db_add(ctl_migrations_t *m)
{
    m->list = ctl_realloc(m->list, (m->n + 1) * sizeof(ctl_migration_t));
    memset(&m->list[m->n], 0, sizeof(ctl_migration_t));

    return &m->list[m->n++];
}


static int
ctl_db_compare(PGconn *pg, ctl_migrations_t *m)
{
    int        i, rc, exists;
    PGresult  *res;

    res = ctl_pg_query(pg, &rc, "SELECT to_regclass("
                       "'referral.schema_migration') IS NOT NULL", 0, NULL);
    if (res == NULL) {
        return rc;
    }

    exists = (PQgetvalue(res, 0, 0)[0] == 't');
    PQclear(res);

    if (!exists) {
        return CTL_DONE;
    }

    res = ctl_pg_query(pg, &rc,
                       "SELECT version, name, coalesce(sha256, ''),"
                       " to_char(applied_at AT TIME ZONE 'UTC',"
                       " 'YYYY-MM-DD HH24:MI:SS')"
                       " FROM referral.schema_migration ORDER BY version",
                       0, NULL);
    if (res == NULL) {
        return rc;
    }

    for (i = 0; i < PQntuples(res); i++) {
        ctl_db_match(m, atoi(PQgetvalue(res, i, 0)), PQgetvalue(res, i, 1),
                     PQgetvalue(res, i, 2), PQgetvalue(res, i, 3));
    }

    PQclear(res);

    return CTL_DONE;
}


static void
ctl_db_match(ctl_migrations_t *m, int version, const char *name,
    const char *sha256, const char *applied_at)
{
    size_t            i;
    ctl_migration_t  *f;

    for (i = 0; i < m->n && m->list[i].version != version; i++) { /* void */ }

    if (i == m->n) {
        f = ctl_db_add(m);
        f->version = version;
        f->state = CTL_DB_MISSING;
        snprintf(f->name, sizeof(f->name), "%s", name);

    } else {
        f = &m->list[i];

        if (sha256[0] == '\0') {
            f->state = CTL_DB_UNCHECKED;

        } else {
            f->state = strcmp(f->sha256, sha256) == 0 ? CTL_DB_APPLIED
                                                      : CTL_DB_CHANGED;
        }
    }

    snprintf(f->applied_at, sizeof(f->applied_at), "%s", applied_at);
}


static int
ctl_db_refuse(const ctl_migrations_t *m)
{
    int               rc;
    size_t            i;
    ctl_migration_t  *f;

    rc = CTL_DONE;

    for (i = 0; i < m->n; i++) {

        f = &m->list[i];

        if (f->state == CTL_DB_CHANGED) {
            ctl_error("migrations: %s/%s was changed after it had been "
                      "applied on %s UTC: restore the file, and write the "
                      "change as a new one", m->dir, f->file, f->applied_at);
            rc = CTL_FOUND;
        }

        if (f->state == CTL_DB_MISSING) {
            ctl_error("migrations: the database has version %d, %s, and %s "
                      "does not: use the newer referralctl", f->version,
                      f->name, m->dir);
            rc = CTL_FOUND;
        }
    }

    if (rc != CTL_DONE) {
        ctl_error("nothing was applied");
    }

    return rc;
}


static int
ctl_db_lock(PGconn *pg)
{
    int        rc, locked;
    PGresult  *res;

    if (PQserverVersion(pg) < 150000) {
        ctl_error("postgres: version 15 or newer is needed, this is %d.%d",
                  PQserverVersion(pg) / 10000, PQserverVersion(pg) % 10000);
        return CTL_FOUND;
    }

    res = ctl_pg_query(pg, &rc, "SELECT pg_is_in_recovery()", 0, NULL);

    if (res == NULL) {
        return rc;
    }

    locked = (PQgetvalue(res, 0, 0)[0] == 't');
    PQclear(res);

    if (locked) {
        ctl_error("postgres: this server is a standby, give the primary's "
                  "--db (target_session_attrs=read-write finds it)");
        return CTL_UNREACHABLE;
    }

    res = ctl_pg_query(pg, &rc, "SELECT pg_try_advisory_lock(" CTL_DB_LOCK
                       ")", 0, NULL);
    if (res == NULL) {
        return rc;
    }

    locked = (PQgetvalue(res, 0, 0)[0] == 't');
    PQclear(res);

    if (locked) {
        return CTL_DONE;
    }

    ctl_error("another upgrade is at work, waiting for it (60 s at most)");

    rc = ctl_pg_run(pg, "SET lock_timeout = '60s'", "lock_timeout");

    if (rc == CTL_DONE) {
        rc = ctl_pg_run(pg, "SELECT pg_advisory_lock(" CTL_DB_LOCK ")",
                        "waiting for the other upgrade");
    }

    return rc;
}


/*
 * The file has its own BEGIN and COMMIT and enters itself into the table;
 * only the checksum comes later, and a file without one is not run again.
 */

static int
ctl_db_apply(PGconn *pg, const ctl_migrations_t *m, ctl_migration_t *f)
{
    int          rc;
    char         version[16];
    PGresult    *res;
    const char  *params[1];

    rc = ctl_pg_run(pg, "RESET ALL; SET lock_timeout = '10s';"
                        " SET client_min_messages = warning", "settings");

    if (rc == CTL_DONE) {
        rc = ctl_pg_run(pg, f->text, f->file);
    }

    if (rc == CTL_DONE && PQtransactionStatus(pg) != PQTRANS_IDLE) {
        ctl_error("migrations: %s/%s does not end its transaction: COMMIT "
                  "is missing", m->dir, f->file);
        rc = CTL_FOUND;
    }

    if (rc != CTL_DONE) {

        if (PQstatus(pg) == CONNECTION_OK) {
            PQclear(PQexec(pg, "ROLLBACK"));
            ctl_error("%s was not applied, and nothing after it", f->file);
        }

        return rc;
    }

    snprintf(version, sizeof(version), "%d", f->version);
    params[0] = version;

    res = ctl_pg_query(pg, &rc, "SELECT 1 FROM referral.schema_migration"
                                " WHERE version = $1::int", 1, params);
    if (res == NULL) {
        return rc;
    }

    if (PQntuples(res) == 0) {
        ctl_error("migrations: %s/%s was run but did not enter version %d "
                  "into referral.schema_migration", m->dir, f->file,
                  f->version);
        rc = CTL_FOUND;
    }

    PQclear(res);
    f->state = CTL_DB_UNCHECKED;

    return rc;
}


/* checksums of what was run just now, and of what psql had applied */

static int
ctl_db_seal(PGconn *pg, ctl_migrations_t *m)
{
    int               rc;
    char              version[16];
    size_t            i;
    PGresult         *res;
    const char       *params[2];
    ctl_migration_t  *f;

    rc = CTL_DONE;

    for (i = 0; rc == CTL_DONE && i < m->n; i++) {

        f = &m->list[i];

        if (f->state != CTL_DB_UNCHECKED) {
            continue;
        }

        snprintf(version, sizeof(version), "%d", f->version);
        params[0] = f->sha256;
        params[1] = version;

        res = ctl_pg_query(pg, &rc, "UPDATE referral.schema_migration"
                           " SET sha256 = $1"
                           " WHERE version = $2::int AND sha256 IS NULL",
                           2, params);
        PQclear(res);

        f->state = CTL_DB_APPLIED;
    }

    return rc;
}


static void
ctl_db_report(const ctl_migrations_t *m, size_t applied, int json)
{
    json_t  *doc;

    if (json) {
        doc = json_object();
        json_object_set_new(doc, "applied", json_integer(applied));
        json_object_set_new(doc, "version",
                            json_integer(m->list[m->n - 1].version));
        ctl_json_line(doc);
        return;
    }

    printf("the schema is at version %d%s\n", m->list[m->n - 1].version,
           applied ? "" : ", nothing was to do");
}


static json_t *
ctl_db_json(const ctl_migrations_t *m)
{
    size_t            i;
    json_t           *list, *json;
    ctl_migration_t  *f;

    list = json_array();

    for (i = 0; i < m->n; i++) {

        f = &m->list[i];
        json = json_object();

        json_object_set_new(json, "version", json_integer(f->version));
        json_object_set_new(json, "name", ctl_json_text(f->name,
                                                        strlen(f->name)));
        json_object_set_new(json, "state",
                            json_string(ctl_db_states[f->state]));
        json_object_set_new(json, "sha256", ctl_json_text(f->sha256,
                                                          strlen(f->sha256)));
        json_object_set_new(json, "applied_at",
                            ctl_json_text(f->applied_at,
                                          strlen(f->applied_at)));

        json_array_append_new(list, json);
    }

    return list;
}


static void
ctl_db_free(ctl_migrations_t *m)
{
    size_t  i;

    for (i = 0; i < m->n; i++) {
        free(m->list[i].text);
    }

    free(m->list);
}
