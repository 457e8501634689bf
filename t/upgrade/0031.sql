-- Copyright (C) The nginx referral module authors
--
-- After 0031: rewards that were paid, one of which a refund made a debt, and a
-- program with settings that say how customers are known.

BEGIN;

SELECT referral.program_create(o, 'debts', 'Debts',
           '{"landing_url": "https://example.com/",'
           ' "settings": {"calling_code": "49"}}') AS debts
    FROM referral.organisation_create('debtors', 'Debtors') o \gset
SELECT referral.reward_rules_set(:debts, '[{"kind": "cash",'
           ' "rate_bp": 1000, "times": null}]'),
       referral.program_set_status(:debts, 'active') \g /dev/null
SELECT referral.code_create(:debts, referral.referrer_create(
           p.organisation_id, 'customer',
           jsonb_build_object('external_id', who)), who)
    FROM referral.program p, unnest('{ower,other}'::text[]) who
    WHERE p.id = :debts \g /dev/null
SELECT referral.conversion_record(p.organisation_id, jsonb_build_object(
           'order_ref', who || n, 'external_id', who || n, 'code', who,
           'amount', 10000))
    FROM referral.program p, unnest('{ower,other}'::text[]) who,
         generate_series(1, 2) n
    WHERE p.id = :debts \g /dev/null
SELECT referral.payout_request(f.id, '{"amount": 1000, "method": "cash"}')
           AS payout
    FROM referral.referrer f WHERE f.external_id = 'ower' \gset
SELECT referral.payout_approve(:payout), referral.payout_pay(:payout)
    \g /dev/null
SELECT referral.refund_record(p.organisation_id, jsonb_build_object(
           'order_ref', who || n, 'refund_ref', who || n, 'amount', 6000))
    FROM referral.program p, unnest('{ower,other}'::text[]) who,
         generate_series(1, 2) n
    WHERE p.id = :debts AND NOT (who = 'other' AND n = 2) \g /dev/null

COMMIT;
