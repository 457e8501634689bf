-- Copyright (C) The nginx referral module authors
--
-- Housekeeping: every part works, together and alone.

BEGIN;

SELECT no_plan();

SELECT results_eq(
    $$ SELECT part FROM referral.housekeeping() $$,
    $$ SELECT part FROM referral.housekeeping_part ORDER BY place $$,
    'all parts, in their order');
SELECT is_empty($$ SELECT FROM referral.housekeeping() WHERE done IS NULL $$,
                'none is left out');
SELECT is((SELECT count(*)
               FROM referral.housekeeping_part p,
                    LATERAL referral.housekeeping(now(), p.part) h
               WHERE h.part = p.part AND h.done IS NOT NULL),
          (SELECT count(*) FROM referral.housekeeping_part),
          'and each alone');
SELECT throws_ok($$ SELECT referral.housekeeping(now(), 'windows') $$,
                 'RF127', NULL, 'no such part');

SET LOCAL ROLE referral_worker;
SELECT lives_ok($$ SELECT * FROM referral.housekeeping() $$,
                'the worker may');
RESET ROLE;
SET LOCAL ROLE referral_app;
SELECT throws_ok($$ SELECT * FROM referral.housekeeping() $$, '42501', NULL,
                 'others need not');
RESET ROLE;

SELECT * FROM finish();
ROLLBACK;
