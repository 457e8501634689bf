-- Copyright (C) The nginx referral module authors
--
-- Partitions: made once, with UTC bounds whatever the session thinks.

BEGIN;

SELECT no_plan();

SET LOCAL timezone = 'Europe/Berlin';
SET LOCAL datestyle = 'German, DMY';

SELECT is(referral.partition_ensure(DATE '2026-03-29'), true,
          'made on the day that Berlin has 23 hours');
SELECT is(referral.partition_ensure(DATE '2026-03-29'), false, 'once');
SELECT is(referral.partition_ensure(DATE '2026-03-28'), true,
          'the day before does not overlap');

SET LOCAL timezone = 'Asia/Kolkata';
SELECT is(referral.partition_ensure(DATE '2026-03-30'), true,
          'nor does the day after, from another zone');

SET LOCAL timezone = 'UTC';
SET LOCAL datestyle = 'ISO, YMD';
SELECT is(pg_get_expr(relpartbound, oid),
          'FOR VALUES FROM (''2026-03-29 00:00:00+00'')'
          ' TO (''2026-03-30 00:00:00+00'')', 'bounds are days of UTC')
    FROM pg_class WHERE oid = 'referral.interaction_20260329'::regclass;

INSERT INTO referral.interaction (id, occurred_at, stream, seq, type)
    VALUES ('0195e000-0000-7000-8000-000000000001',
            '2026-03-29 23:59:59.999999+00', 1, 1, 'click'),
           ('0195e000-0000-7000-8000-000000000002',
            '2026-03-30 00:00:00+00', 1, 2, 'click');
SELECT results_eq($$ SELECT tableoid::regclass::text, seq
                         FROM referral.interaction ORDER BY seq $$,
                  $$ VALUES ('referral.interaction_20260329', 1::bigint),
                            ('referral.interaction_20260330', 2) $$,
                  'rows find theirs');

SELECT has_index('referral', 'interaction_20260329',
                 'interaction_20260329_pkey', 'the primary key came along');
SELECT is((SELECT count(*) FROM pg_index
               WHERE indrelid = 'referral.interaction_20260329'::regclass),
          2::bigint, 'two indexes, none twice');
SELECT is((SELECT count(*) FROM pg_inherits
               WHERE inhparent = 'referral.interaction_code'::regclass
                     AND inhrelid IN (SELECT indexrelid FROM pg_index
                         WHERE indrelid =
                               'referral.interaction_20260329'::regclass)),
          1::bigint, 'attached to the index of the parent');
SELECT is((SELECT relowner::regrole::text FROM pg_class
               WHERE oid = 'referral.interaction_20260329'::regclass),
          'referral_partitions', 'the right owner');

SELECT throws_ok($$ INSERT INTO referral.interaction
                        (id, occurred_at, stream, seq, type)
                        VALUES ('0195e000-0000-7000-8000-000000000003',
                                '2021-01-01 00:00+00', 1, 3, 'click') $$,
                 '23514', NULL, 'no partition is a 23514');

SELECT throws_ok($$ SELECT referral.partition_ensure('2019-12-31') $$,
                 'RF001', NULL, 'too old a day');
SELECT throws_ok($$ SELECT referral.partition_ensure(current_date + 400) $$,
                 'RF001', NULL, 'too far a day');
SELECT throws_ok($$ SELECT referral.partition_ensure(NULL) $$, 'RF001', NULL,
                 'no day');

CREATE TABLE referral.interaction_20200101 (x int);
SELECT throws_ok($$ SELECT referral.partition_ensure('2020-01-01') $$,
                 'RF002', NULL, 'a table in the way');

ALTER TABLE referral.interaction
    DETACH PARTITION referral.interaction_20260329;
SELECT throws_ok($$ SELECT referral.partition_ensure('2026-03-29') $$,
                 'RF002', NULL, 'a detached partition in the way');
SELECT results_eq($$ SELECT attached, expired
                         FROM referral.interaction_partition
                         WHERE day = '2026-03-29' $$,
                  $$ VALUES (false, false) $$, 'and is seen as such');

SELECT results_eq($$ SELECT min(day), max(day), bool_and(attached)
                         FROM referral.interaction_partition
                         WHERE day >= current_date - 1 $$,
                  $$ VALUES (current_date - 1, current_date + 3, true) $$,
                  'the migration made yesterday to three days ahead');
SELECT is(referral.partitions_ahead(), 0, 'nothing more to make');
SELECT is(referral.partitions_ahead(5), 2, 'two days more');

SELECT * FROM finish();

ROLLBACK;
