-- Copyright (C) The nginx referral module authors
--
-- Counters: what the view says does not change when deltas are folded.

BEGIN;

SELECT no_plan();

INSERT INTO referral.counter_delta (program_id, referrer_id, code, day, type,
                                    verdict, kind, n)
    VALUES (NULL, NULL, 'A', '2026-11-20', 'click', 'valid', 'unknown', 2),
           (NULL, NULL, 'A', '2026-11-20', 'click', 'valid', 'unknown', 3),
           (NULL, NULL, 'A', '2026-11-21', 'click', 'valid', 'unknown', 7),
           (1, NULL, 'A', '2026-11-20', 'click', 'valid', 'unknown', 11),
           (NULL, NULL, NULL, '2026-11-20', 'share', NULL, 'unknown', 13);

PREPARE expected AS
    VALUES (NULL::bigint, 'A', DATE '2026-11-20', 'click', 5::bigint),
           (NULL, 'A', '2026-11-21', 'click', 7),
           (1, 'A', '2026-11-20', 'click', 11),
           (NULL, NULL, '2026-11-20', 'share', 13);

PREPARE counted AS
    SELECT program_id, code, day, type, n FROM referral.counters;

SELECT bag_eq('counted', 'expected', 'deltas count before they are folded');

SELECT is(done, 5::bigint, 'five deltas are folded')
    FROM referral.housekeeping(now(), 'counters');

SELECT bag_eq('counted', 'expected', 'and count the same afterwards');
SELECT is_empty('SELECT FROM referral.counter_delta', 'no delta is left');
SELECT is((SELECT count(*) FROM referral.counter), 4::bigint,
          'one row a key, null being a value like others');

INSERT INTO referral.counter_delta (code, day, type, verdict, kind, n)
    VALUES ('A', '2026-11-20', 'click', 'valid', 'unknown', 100);

SELECT is((SELECT n FROM referral.counters
               WHERE program_id IS NULL AND day = '2026-11-20'
                     AND code = 'A'), 105::bigint, 'the view adds both');
SELECT is(referral.counter_fold(), 1::bigint, 'folded into the same row');
SELECT is((SELECT count(*) FROM referral.counter), 4::bigint, 'the same row');
SELECT is((SELECT n FROM referral.counter
               WHERE program_id IS NULL AND day = '2026-11-20'
                     AND code = 'A'), 105::bigint, 'with the sum');
SELECT is(referral.counter_fold(), 0::bigint, 'nothing to fold');

-- the session knows a plan by now, made when there was next to nothing

INSERT INTO referral.counter_delta (code, day, type, verdict, kind, n)
    SELECT 'B' || i % 50, '2026-11-20', 'click', 'valid', 'unknown', 1
        FROM generate_series(1, 60000) i;

SELECT performs_ok('SELECT referral.counter_fold()', 5000,
                   'many deltas do not take long');
SELECT is(sum(n), 60000::numeric, 'and count')
    FROM referral.counter WHERE code LIKE 'B%';

SELECT * FROM finish();

ROLLBACK;
