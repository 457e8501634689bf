-- Copyright (C) The nginx referral module authors
--
-- Software as a service: users invite users (the fifth of the five
-- specifications, "Referral Program").
--
-- requirement -> test
--   one code per user, DEV-O-ALEX123, at sign-up, unique, 20 characters
--                                                  -> "code: ..."
--   link https://dev-o.ai/signup?ref=...           -> "link", and the edge
--   reward for the referrer at sign-up and at upgrade, for the referee at
--     sign-up                                      -> "rewards: ..."
--   extra messages, requests, account credit, feature unlock
--                                                  -> "rewards: ..."
--   amount, description, valid from and until      -> "validity"
--   pending active expired redeemed                -> "words: ..."
--   clicked, signed_up, converted, with dates      -> "lifecycle: ..."
--   click: ip, user agent; unknown code is 404     -> the edge,
--                                                     "click: unknown"
--   clicks, signups, conversions per code; no lost update
--                                                  -> "figures: ..."
--   attribution from the session                   -> "lifecycle: by the
--                                                     token", "by the click"
--   one referral per referee                       -> "one referrer"
--   upgrade by the payment's webhook               -> "lifecycle: converted",
--                                                     "the webhook again"
--   redemption rates, revenue, leaderboard         -> t/sql/report.sql
--   tiers, more referrals, better rewards          -> "tiers"
--   expiring rewards                               -> "validity: expired"
--   contests, twice for a time                     -> "contest"
--   A/B                                            -> t/sql/seed_insurance.sql
--   dashboard, social share, e-mails -> outside: hooks are views and events
--   fulfilment (messages and features are given) -> outside: hooks are
--                                    reward.approved and redeem(), "fulfilment"

BEGIN;

SELECT no_plan();

SELECT referral.organisation_create('dev-o', 'DEV-O') AS org \gset
SELECT set_config('t.org', :'org', true) \g /dev/null
SELECT referral.program_create(:org, 'invite', 'Invite', '{"type": "user",
           "landing_url": "https://dev-o.example/signup", "code_prefix":
           "DEVO-"}') AS program \gset
SELECT referral.reward_rules_set(:program, '[
           {"slot": "messages", "kind": "messages", "unit": "messages",
            "trigger": "registration", "amount": 10, "valid_for": "1 month"},
           {"slot": "requests", "kind": "requests", "unit": "requests",
            "trigger": "registration", "amount": 5, "valid_for": "1 month"},
           {"slot": "messages", "beneficiary": "referee", "kind": "messages",
            "unit": "messages", "trigger": "registration", "amount": 5,
            "valid_for": "1 month"},
           {"slot": "trial", "beneficiary": "referee",
            "kind": "feature_days", "unit": "feature_days",
            "trigger": "registration", "amount": 7, "item": "pro",
            "valid_for": "7 days"},
           {"slot": "upgrade", "kind": "credit", "conversion_kinds":
            ["upgrade"], "tiers": [{"from": 1, "amount": 1000},
                                   {"from": 3, "amount": 1500}],
            "seasons": [{"from": "2030-06-01", "until": "2030-06-30",
                         "multiplier_bp": 20000}]}]') \g /dev/null
SELECT referral.program_set_status(:program, 'active') \g /dev/null

-- codes are made when users are

SELECT referral.ensure_code(:program, 'alex') AS alex \gset
SELECT is(referral.ensure_code(:program, 'alex'), :'alex',
          'code: one per user');
SELECT is(:'alex' LIKE 'DEVO-%' AND length(:'alex') <= 20, true,
          'code: with its prefix, 20 characters at most');
SELECT isnt(referral.ensure_code(:program, 'alexa'), :'alex', 'code: unique');
SELECT is((referral.code_create(:program, (SELECT id FROM referral.referrers
               WHERE external_id = 'alexa'), 'dev-o-alex123')).code,
          'DEV-O-ALEX123', 'code: by wish');
SELECT is((SELECT url FROM referral.code_published WHERE code = :'alex'),
          'https://dev-o.example/signup', 'link: where it leads');
SELECT is(referral.attribute(:program, '{"code": "DEVO-NOBODY"}')
              #>> '{candidates,0,why}', 'unknown', 'click: unknown');

-- the click, as the edge recorded it, and the token that it signed

CREATE FUNCTION pg_temp.click(code text) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    id  uuid := (lpad(to_hex((extract(epoch FROM clock_timestamp())
                              * 1000)::bigint), 12, '0')
                 || '7' || substr(gen_random_uuid()::text, 16))::uuid;
BEGIN
    INSERT INTO referral.interaction (id, occurred_at, stream, seq, type,
                                      verdict, via, kind, code, ip, user_agent)
        VALUES (id, referral.uuid_time(id), 1, 1, 'click', 'valid',
                'parameter', 'person', code, '203.0.113.0/24', 'Mozilla/5.0');
    INSERT INTO referral.counter_delta (code, day, type, verdict, kind, n)
        VALUES (code, current_date, 'click', 'valid', 'person', 1);
    RETURN id;
END $$;
CREATE FUNCTION pg_temp.token(code text, click uuid) RETURNS text LANGUAGE sql
    AS $$
    SELECT t.body || '.' || rtrim(translate(encode(substr(sha256(k.outer_pad
               || sha256(k.inner_pad || convert_to(t.body, 'UTF8'))), 1, 16),
               'base64'), '+/', '-_'), '=')
        FROM referral.token_key k,
             (SELECT concat_ws('.', 'v1', 'k1', code,
                               replace(click::text, '-', ''), code,
                               replace(click::text, '-', ''), '') AS body) t $$;
INSERT INTO referral.token_key (id, secret)
    VALUES ('k1', convert_to(repeat('k', 32), 'UTF8'));

SELECT pg_temp.click(:'alex') AS click \gset
SELECT referral.referral_create(NULL, jsonb_build_object('click_id', :'click'))
           AS session \gset
CREATE FUNCTION pg_temp.word(referral bigint) RETURNS text LANGUAGE sql
    RETURN (SELECT concat_ws(' ', referrer, referee, status)
                FROM referral.seed_saas_referral WHERE id = referral);
SELECT is(pg_temp.word(:session), 'alex clicked',
          'lifecycle: clicked, nobody knows who');
SELECT is((referral.referral_register(NULL, jsonb_build_object('external_id',
               'bea', 'referral_id', :session)) ->> 'referral_id')::bigint,
          :session::bigint, 'lifecycle: by the session''s referral');
SELECT is(pg_temp.word(:session), 'alex bea signed_up',
          'lifecycle: signed up');
SELECT is((referral.referral_register(NULL, jsonb_build_object('external_id',
               'cem', 'token', pg_temp.token(:'alex',
                                             pg_temp.click(:'alex'))))
               ->> 'code'), :'alex', 'lifecycle: by the token');
SELECT is((referral.referral_register(NULL, jsonb_build_object('external_id',
               'dia', 'click_id', pg_temp.click(:'alex'))) ->> 'code'),
          :'alex', 'lifecycle: by the click');
SELECT is((referral.referral_register(NULL, '{"external_id": "bea",
               "code": "DEV-O-ALEX123"}') ->> 'code'), :'alex',
          'one referrer: the first stays');

-- what both got

SELECT is((SELECT string_agg(concat_ws(' ', user_id, reward_type, amount,
                                       status), ', '
                             ORDER BY user_id, reward_type)
               FROM referral.seed_saas_reward WHERE referral_id = :session),
          'alex extra_messages 10 active, alex extra_requests 5 active,'
          ' bea extra_messages 5 active, bea feature_unlock 7 active',
          'rewards: at sign-up, of both');
SELECT is((SELECT valid_until = valid_from + interval '1 month'
               FROM referral.seed_saas_reward
               WHERE referral_id = :session AND user_id = 'bea'
                     AND reward_type = 'extra_messages'), true, 'validity');
SELECT is((SELECT count(*) FROM referral.event
               WHERE type = 'reward.approved'
                     AND data ->> 'kind' = 'feature_days'), 3::bigint,
          'fulfilment: the hook');

-- the upgrade

CREATE FUNCTION pg_temp.upgrade(who text, at timestamptz DEFAULT now())
    RETURNS text LANGUAGE sql
    RETURN referral.conversion_record(current_setting('t.org')::bigint,
               jsonb_build_object('idempotency_key', 'checkout-' || who,
                   'external_id', who, 'kind', 'upgrade', 'amount', 2000,
                   'occurred_at', at)) #>> '{rewards,0,amount}';
SELECT is(pg_temp.upgrade('bea'), '1000', 'rewards: credit at upgrade');
SELECT is(pg_temp.upgrade('bea'), '1000', 'the webhook again');
SELECT is(pg_temp.word(:session), 'alex bea converted',
          'lifecycle: converted');
SELECT is((SELECT count(*) FROM referral.conversions), 1::bigint,
          'the webhook again: one conversion');
SELECT pg_temp.upgrade('cem') \g /dev/null
SELECT is(pg_temp.upgrade('dia'), '1500', 'tiers: the third');
SELECT is(referral.conversion_record(:org, '{"idempotency_key": "chat-1",
              "external_id": "dia", "kind": "chat"}') -> 'rewards', '[]',
          'rewards: not for what is no upgrade');
SELECT is((SELECT a.amount FROM referral.reward_rule u,
                LATERAL referral.reward_amount(u, 1, '2030-06-15', 0, NULL) a
               WHERE u.program_id = :program AND u.slot = 'upgrade'),
          2000::bigint, 'contest: twice in June 2030');
SELECT is((SELECT a.amount FROM referral.reward_rule u,
                LATERAL referral.reward_amount(u, 1, '2030-07-01', 0, NULL) a
               WHERE u.program_id = :program AND u.slot = 'upgrade'),
          1000::bigint, 'contest: and no longer');

SELECT results_eq(format('SELECT clicks, signups, conversions
                              FROM referral.seed_saas_code WHERE code = %L',
                         :'alex'),
                  $$ VALUES (3::numeric, 3::bigint, 3::bigint) $$,
                  'figures: clicks, signups, conversions');
SELECT is((SELECT sum(n) FROM referral.counters WHERE code = :'alex'),
          3::numeric, 'figures: as many as clicks');

-- used, and not used in time

SELECT is((referral.redeem(:org, 'window-1', '{"external_id": "bea",
               "unit": "messages", "amount": 5}') ->> 'remaining')::int, 0,
          'fulfilment: five messages used');
SELECT is((SELECT string_agg(reward_type || ' ' || status, ', '
                             ORDER BY reward_type)
               FROM referral.seed_saas_reward WHERE user_id = 'bea'),
          'extra_messages redeemed, feature_unlock active',
          'words: redeemed, active');
SELECT cmp_ok(referral.reward_expire(now() + interval '8 days'), '>', 0,
              'validity: expired');
SELECT is((SELECT status FROM referral.seed_saas_reward
               WHERE user_id = 'bea' AND reward_type = 'feature_unlock'),
          'expired', 'words: expired');
SELECT id AS alex_id FROM referral.referrers WHERE external_id = 'alex' \gset
SELECT is((referral.redeem(:org, 'invoice-1', jsonb_build_object('referrer_id',
               :alex_id, 'order_amount', 2000)) ->> 'remaining')::int, 1500,
          'rewards: credit off the next payment');
SELECT referral.referrer_set_status(:alex_id, 'suspended') \g /dev/null
SELECT referral.referrer_create(:org, 'user', '{"external_id": "eli"}') AS eli
    \gset
SELECT throws_ok(format('SELECT referral.referral_register(NULL, %L)',
                        jsonb_build_object('code', :'alex', 'external_id',
                                           'fay')), 'RF094', NULL,
                 'one referrer: not a suspended one');

SELECT is_empty('SELECT * FROM referral.ledger_check()', 'it adds up');

SELECT * FROM finish();

ROLLBACK;
