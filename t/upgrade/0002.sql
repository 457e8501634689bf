-- Clicks of two days, one partition each.

DO $$ BEGIN PERFORM referral.partition_ensure(current_date); END $$;

INSERT INTO referral.interaction (id, occurred_at, stream, seq, type, verdict,
                                  via, kind, code, ip, args, signals)
    SELECT ('0197f3c2-a400-7abc-8def-' || lpad(to_hex(n), 12, '0'))::uuid,
           date_trunc('day', now()) + n * interval '1 second', 1, n, 'click',
           'valid', 'redirect', 'person', 'SUMMER25', '192.0.2.0/24',
           '{"utm_source": "mail"}', '{prefetch,gpc}'
        FROM generate_series(1, 100) n;
