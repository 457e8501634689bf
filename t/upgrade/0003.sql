-- Counts, folded ones and not.

INSERT INTO referral.counter_delta (program_id, referrer_id, code, day, type,
                                    verdict, kind, n)
    SELECT NULL, NULL, 'SUMMER25', current_date, 'click', 'valid', 'person', n
        FROM generate_series(1, 10) n;

DO $$ BEGIN PERFORM referral.counter_fold(); END $$;

INSERT INTO referral.counter_delta (program_id, referrer_id, code, day, type,
                                    verdict, kind, n)
    VALUES (1, 2, 'WINTER25', current_date, 'click', 'valid', 'person', 7);
