-- Copyright (C) The nginx referral module authors
--
-- The cursor's promise, requeue(), recorded(), and what housekeeping deletes.

BEGIN;

SELECT no_plan();

INSERT INTO referral.ingest_cursor (stream_id, edge)
    VALUES ('00000000-0000-4000-8000-000000000001', 'one'),
           ('00000000-0000-4000-8000-000000000002', 'two');

SELECT throws_ok($$ UPDATE referral.ingest_cursor SET seq = 5, rows = 4
                        WHERE edge = 'one' $$, '23514', NULL,
                 'a record that is nowhere is refused');
SELECT throws_ok($$ UPDATE referral.ingest_cursor
                        SET seq = 4, rows = 5, dead = -1
                        WHERE edge = 'one' $$, '23514', NULL,
                 'so is a negative number');
SELECT throws_ok($$ INSERT INTO referral.ingest_cursor (stream_id)
                        VALUES ('00000000-0000-4000-8000-000000000001') $$,
                 '23505', NULL, 'a stream has one cursor');

UPDATE referral.ingest_cursor SET seq = 6, rows = 1, quarantined = 4, dead = 1
    WHERE edge = 'one';
UPDATE referral.ingest_cursor SET seq = 1, quarantined = 1
    WHERE edge = 'two';

-- four in quarantine: plausible by now, plausible, far ahead, beyond all

CREATE FUNCTION pg_temp.would_be(n int, at timestamptz) RETURNS jsonb
    LANGUAGE sql AS $$
    SELECT jsonb_build_object('id', '01a1f8b6-a71e-758c-b42e-00000000000' || n,
        'occurred_at', at, 'stream', 99, 'seq', 99, 'type', 'click',
        'verdict', 'valid', 'via', 'redirect', 'kind', 'unknown',
        'code', 'Q', 'ip', '203.0.113.0/24', 'visitor_hash', '\x0102',
        'signals', jsonb_build_array('head', 'gpc'),
        'args', jsonb_build_object('utm_source', 'x')) $$;

INSERT INTO referral.quarantine (stream, seq, reason, record, data)
    SELECT c.stream, v.seq, 'future', '\x01', pg_temp.would_be(v.seq, v.at)
        FROM referral.ingest_cursor c,
             (VALUES (2, now()), (3, now() - interval '80 days'),
                     (4, now() + interval '30 days'),
                     (5, now() + interval '10 years')) v (seq, at)
        WHERE edge = 'one';
INSERT INTO referral.quarantine (stream, seq, reason, record, data)
    SELECT stream, 1, 'future', '\x01', pg_temp.would_be(6, now())
        FROM referral.ingest_cursor WHERE edge = 'two';

SELECT throws_ok('SELECT referral.requeue(NULL, 3, 2)', 'RF003', NULL,
                 'no range');
SELECT is(referral.requeue((SELECT stream FROM referral.ingest_cursor
                                WHERE edge = 'one')),
          2::bigint, 'what is plausible moves');
SELECT results_eq($$ SELECT seq, rows, quarantined, dead
                         FROM referral.ingest_cursor WHERE edge = 'one' $$,
                  $$ VALUES (6::bigint, 3::bigint, 2::bigint, 1::bigint) $$,
                  'and the cursor knows');
SELECT results_eq($$ SELECT i.seq, i.code, i.ip::text, i.visitor_hash,
                            i.signals, i.args ->> 'utm_source', i.kind
                         FROM referral.interaction i
                              JOIN referral.ingest_cursor c USING (stream)
                         WHERE c.edge = 'one' ORDER BY seq $$,
                  $$ VALUES (2::bigint, 'Q', '203.0.113.0/24', '\x0102'::bytea,
                             '{head,gpc}'::text[], 'x', 'unknown'),
                            (3, 'Q', '203.0.113.0/24', '\x0102',
                             '{head,gpc}', 'x', 'unknown') $$,
                  'rows are whole, with their stream and number');
SELECT is((SELECT sum(n) FROM referral.counters WHERE code = 'Q'), 2::numeric,
          'counted');
SELECT is((SELECT count(*) FROM referral.quarantine
               JOIN referral.ingest_cursor USING (stream)
               WHERE edge = 'two'), 1::bigint, 'other streams are left alone');
SELECT is(referral.requeue(), 1::bigint, 'all streams');
SELECT is(referral.requeue(), 0::bigint, 'nothing plausible is left');
SELECT is(referral.requeue(NULL, 4, 4, true), 1::bigint,
          'by force, with a partition made for it');
SELECT throws_ok('SELECT referral.requeue(NULL, NULL, NULL, true)', 'RF001',
                 NULL, 'not even by force');
SELECT is((SELECT count(*) FROM referral.quarantine), 1::bigint,
          'which stays where it was');

-- the worker's own clock has no word in this

SELECT is(referral.plausible(now() + interval '4 minutes'), true, 'soon');
SELECT is(referral.plausible(now() + interval '6 minutes'), false, 'ahead');
SELECT is(referral.plausible(now() - interval '89 days'), true, 'late');
SELECT is(referral.plausible(now() - interval '91 days'), false, 'too late');

-- recorded()

DO $$ BEGIN PERFORM referral.partition_ensure('2026-11-20'); END $$;
INSERT INTO referral.interaction (id, occurred_at, stream, seq, type)
    VALUES ('01a1f8b6-a71e-758c-b42e-85afb2e01677',
            '2026-11-20 11:28:02.334+00', 7, 3, 'click');
INSERT INTO referral.dead_letter (stream, seq, reason) VALUES (7, 4, '22P02');

SELECT is(referral.uuid_time('01a1f8b6-a71e-758c-b42e-85afb2e01677'),
          '2026-11-20 11:28:02.334+00'::timestamptz, 'the time of an id');
SELECT is(referral.uuid_time('01a1f8b6-a71e-458c-b42e-85afb2e01677'), NULL,
          'version 4 has none');
SELECT is(referral.recorded(7, 3, '01a1f8b6-a71e-758c-b42e-85afb2e01677'),
          true, 'the very record');
SELECT is(referral.recorded(7, 2, '01a1f8b6-a71e-758c-b42e-85afb2e01677'),
          false, 'another number');
SELECT is(referral.recorded(8, 3, '01a1f8b6-a71e-758c-b42e-85afb2e01677'),
          false, 'another stream');
SELECT is(referral.recorded(7, 3, '01a1f8b6-a71e-758c-b42e-85afb2e01678'),
          false, 'another id');
SELECT is(referral.recorded(7, 4, '01a1f8b6-a71e-758c-b42e-85afb2e01678'),
          true, 'a dead letter');

-- housekeeping

UPDATE referral.dead_letter SET at = now() - interval '31 days';
INSERT INTO referral.dead_letter (stream, seq, reason, at)
    VALUES (7, 5, '22P02', now() - interval '29 days');
UPDATE referral.quarantine SET at = now() - interval '91 days';

SELECT results_eq($$ SELECT done
                         FROM referral.housekeeping(now(), 'ingest') $$,
                  $$ VALUES (2::bigint) $$,
                  'dead letters go after 30 days, quarantine after 90');

SELECT * FROM finish();

ROLLBACK;
