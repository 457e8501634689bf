-- Copyright (C) The nginx referral module authors
--
-- DEV-O, a service for developers whose users invite users: the life of its
-- referral program as its specification tells it, in the words of its own
-- models (the views seed_saas_*).
--
-- What the specification asks for, and the parts below that show it:
--
--   a unique code for each user, at sign-up, such as DEV-O-ALEX123      1
--   the code from the user's name and random characters, made again
--     while it is taken; at most 20 characters                          1
--   the link https://dev-o.ai/signup?ref=CODE                           1
--   ReferralCode: user (one to one), code (unique), clicks, signups,
--     conversions, created_at                                           1 9
--   clicks are tracked: code, ip address, user agent, time; counted     2
--   an unknown code is a 404                                            2
--   the session remembers the click until the sign-up                   3
--   two clicks, one after another, are two (no lost update)             2
--   Referral: referrer, referee (one to one), code; clicked, signed_up,
--     converted, with the time of each                                  2 3 4
--   an expired code, one's own code, a second code for one user         3
--   rewards of the referrer at sign-up: +10 messages for 1 month,
--     +5 project requests for 1 month                                   3
--   welcome bonus of the referee: +5 messages, +2 requests for the
--     first month, a 7-day trial of Pro                                 3
--   at the upgrade: $10 account credit, or 1 month of Pro, or 50
--     messages and 25 requests (an A/B test: three variants)            4
--   the upgrade comes from the payment provider's webhook, which sends
--     the same event more than once                                     4
--   an upgrade of somebody who was not referred rewards nobody          4
--   ReferralReward: user, referral, reward_type (extra_messages,
--     extra_requests, account_credit, feature_unlock), status (pending,
--     active, expired, redeemed), amount, description, valid_from,
--     valid_until, redeemed_at                                          3 5 8
--   redemptions are tracked; $10 off the next payment                   5
--   a payment is refunded after its reward was used                     5
--   tiered rewards: more referrals, better rewards                      6
--   contests: twice the reward for a limited time                       6
--   e-mails by events; their receiver is down for a while               7
--   rewards that expire, and word of it before                          8
--   the user's dashboard: link, clicks, signups, conversions, rewards   9
--   referrals made, conversion rate (signups to paid), leaderboard,
--     redemption rate, revenue; cost per acquisition, cost per
--     conversion, ROI; badges by rank                                   9
--   users are deleted (CASCADE): who they were goes, the sums stay      10
--
-- Outside, and what we offer there: POST /referral/track and its script: the
-- edge records the visit of signup?ref=CODE itself and keeps the click in a
-- signed cookie (referral_capture, $referral_click_id); the dashboard's page:
-- the views and my_page(); one-click sharing: the link, and share_record();
-- e-mail templates: the webhooks' events; the payment webhook: it calls
-- conversion_record(); limits of messages and requests: balances, redeem().

BEGIN;

SET LOCAL timezone = 'UTC';

SELECT no_plan();

SELECT referral.organisation_create('dev-o', 'DEV-O') AS devo \gset
SELECT referral.program_create(:devo, 'invite', 'Refer Friends, Get Rewards!',
           '{"template": "user-invite", "code_prefix": "DEV-O-",
             "landing_url": "https://dev-o.ai/signup?ref={code}"}') AS invite
    \gset
SELECT set_config('t.devo', :'devo', true),
       set_config('t.invite', :'invite', true) \g /dev/null

SELECT referral.program_variant_set(:invite, 'credit', 1) AS credit,
       referral.program_variant_set(:invite, 'pro', 1) AS pro,
       referral.program_variant_set(:invite, 'bonus', 1) AS bonus \gset

-- The rules; CREDIT is what an upgrade gives to those whose code has the
-- variant "credit".

SELECT set_config('t.rules', format('[
    {"slot": "messages", "trigger": "registration", "kind": "messages",
     "amount": 10, "valid_for": "1 month"},
    {"slot": "requests", "trigger": "registration", "kind": "requests",
     "amount": 5, "valid_for": "1 month"},
    {"slot": "messages", "trigger": "registration", "kind": "messages",
     "beneficiary": "referee", "amount": 5, "valid_for": "1 month"},
    {"slot": "requests", "trigger": "registration", "kind": "requests",
     "beneficiary": "referee", "amount": 2, "valid_for": "1 month"},
    {"slot": "trial", "trigger": "registration", "kind": "feature_days",
     "beneficiary": "referee", "amount": 7, "valid_for": "7 days",
     "item": "Pro"},
    {"slot": "pro", "conversion_kinds": ["upgrade"], "variant_id": %s,
     "kind": "feature_days", "amount": 30, "valid_for": "30 days",
     "item": "Pro"},
    {"slot": "messages", "conversion_kinds": ["upgrade"], "variant_id": %s,
     "kind": "messages", "amount": 50},
    {"slot": "requests", "conversion_kinds": ["upgrade"], "variant_id": %2$s,
     "kind": "requests", "amount": 25},
    {"slot": "credit", "conversion_kinds": ["upgrade"], "variant_id": %s,
     "kind": "credit"}]', :pro, :bonus, :credit), true) \g /dev/null
CREATE FUNCTION pg_temp.rules(credit jsonb) RETURNS int LANGUAGE sql
    RETURN (SELECT referral.reward_rules_set(
                current_setting('t.invite')::bigint,
                jsonb_set(r, '{8}', r -> 8 || rules.credit))
                FROM CAST(current_setting('t.rules') AS jsonb) r);

SELECT is((SELECT string_agg(concat_ws(' ', beneficiary, kind, amount), ', '
                             ORDER BY position)
               FROM referral.reward_rules
               WHERE program_id = :invite AND trigger = 'registration'),
          'referrer messages 10, referrer requests 5, referee messages 5,'
          ' referee requests 2, referee feature_days 7',
          'the rules of the template at sign-up');
SELECT is(pg_temp.rules('{"amount": 1000}'), 2, 'and ours');
SELECT referral.program_set_status(:invite, 'active') \g /dev/null

-- The rows of a query, each a line of its values, - for null.

CREATE FUNCTION pg_temp.rows(query text) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    lines  text[];
BEGIN
    EXECUTE 'SELECT array_agg((SELECT string_agg(coalesce(v.value, ''-''),
                                          '' '' ORDER BY v.n)
                                   FROM json_each_text(row_to_json(t))
                                        WITH ORDINALITY v (key, value, n)))
                 FROM (' || query || ') t' INTO lines;
    RETURN lines;
END $$;

-- A click as the edge records it.

CREATE FUNCTION pg_temp.click(code text, ago interval, agent text,
                              verdict text DEFAULT 'valid',
                              kind text DEFAULT 'person') RETURNS uuid
    LANGUAGE plpgsql AS $$
DECLARE
    at    timestamptz := now() - ago;
    made  uuid := (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12,
                        '0')
                   || '7' || substr(gen_random_uuid()::text, 16))::uuid;
BEGIN
    PERFORM referral.partition_ensure((at AT TIME ZONE 'UTC')::date);
    INSERT INTO referral.interaction (id, occurred_at, stream, seq, type,
                                      verdict, via, kind, code, code_id,
                                      program_id, referrer_id, ip, user_agent)
        SELECT made, referral.uuid_time(made), 1, 1, 'click', verdict,
               'parameter', click.kind, click.code, c.id, c.program_id,
               c.referrer_id, '192.0.2.0/24', agent
            FROM (SELECT 1) one
                 LEFT JOIN referral.code c ON c.code = click.code;
    INSERT INTO referral.counter_delta (program_id, code, day, type, verdict,
                                        kind, n)
        SELECT c.program_id, click.code, (at AT TIME ZONE 'UTC')::date,
               'click', verdict, click.kind, 1
            FROM (SELECT 1) one
                 LEFT JOIN referral.code c ON c.code = click.code;
    RETURN made;
END $$;

-- The token of the cookie that the edge sets, signed with key k1.

INSERT INTO referral.token_key (id, secret)
    VALUES ('k1', convert_to(repeat('k', 32), 'UTF8'));
CREATE FUNCTION pg_temp.token(code text, click uuid) RETURNS jsonb
    LANGUAGE sql
AS $$
    SELECT jsonb_build_object('token', t.body || '.' || rtrim(translate(
               encode(substr(sha256(k.outer_pad || sha256(k.inner_pad
                   || convert_to(t.body, 'UTF8'))), 1, 16), 'base64'),
               '+/', '-_'), '='))
        FROM referral.token_key k,
             (SELECT concat_ws('.', 'v1', 'k1', code,
                               replace(click::text, '-', ''), code,
                               replace(click::text, '-', ''), '') AS body) t
        WHERE k.id = 'k1' $$;

-- A sign-up of NAME, and NAME's first payment of $20.00 for a paid plan.

CREATE FUNCTION pg_temp.sign_up(name text, options jsonb) RETURNS text
    LANGUAGE sql
    RETURN referral.referral_register(NULL, options || jsonb_build_object(
               'external_id', 'u-' || name)) ->> 'outcome';
CREATE FUNCTION pg_temp.upgrade(name text) RETURNS jsonb LANGUAGE sql
    RETURN referral.conversion_record(current_setting('t.devo')::bigint,
               jsonb_build_object('order_ref', 'checkout-' || name,
                   'external_id', 'u-' || name, 'kind', 'upgrade',
                   'product', 'pro', 'amount', 2000));

-- What somebody got by a referral of NAME, as the application reads it.

CREATE FUNCTION pg_temp.rewards(of_user text, by text) RETURNS SETOF text
    LANGUAGE sql
AS $$
    SELECT concat_ws(' ', w.reward_type, w.status, w.amount)
        FROM referral.seed_saas_reward w
             JOIN referral.seed_saas_referral r ON r.id = w.referral_id
        WHERE w.user_id = 'u-' || of_user AND r.referee = 'u-' || by
        ORDER BY 1 $$;
CREATE FUNCTION pg_temp.balance(of_user text, of_unit text) RETURNS bigint
    LANGUAGE sql
    RETURN (SELECT b.balance FROM referral.balances b
                JOIN referral.referrers f ON f.id = b.referrer_id
                WHERE f.external_id = 'u-' || of_user AND b.unit = of_unit
                      AND b.kind = 'credit');


-- 1. Every user gets a code when he signs up.

SELECT is(referral.ensure_code(:invite, 'u-alex', jsonb_build_object(
              'code', 'DEV-O-ALEX123', 'variant_id', :credit)),
          'DEV-O-ALEX123', '1 the code that Alex wants');
SELECT is(referral.ensure_code(:invite, 'u-alex', '{"name": "alex"}'),
          'DEV-O-ALEX123', '1 asked again, the same: one for each user');
SELECT matches(referral.ensure_code(:invite, 'u-blair', jsonb_build_object(
                   'name', 'blair', 'variant_id', :pro)),
               '^DEV-O-BLAIR[2-9A-HJKMNP-Z]{4}$', '1 made of a name');
SELECT matches(referral.ensure_code(:invite, 'u-casey', jsonb_build_object(
                   'name', left('Casey O''Neill-Wellington', 4),
                   'variant_id', :bonus)),
               '^DEV-O-CASE[2-9A-HJKMNP-Z]{4}$',
               '1 of its first four letters, as the specification does it');
SELECT is(max(length(code)), 15, '1 at most 20 characters')
    FROM referral.codes;
SELECT code AS blair FROM referral.seed_saas_code
    WHERE user_id = 'u-blair' \gset
SELECT code AS casey FROM referral.seed_saas_code
    WHERE user_id = 'u-casey' \gset

SELECT throws_ok($$ SELECT referral.ensure_code(
                        current_setting('t.invite')::bigint, 'u-alexa',
                        '{"code": "dev-o-alex123"}') $$, 'RF029', NULL,
                 '1 a code is somebody''s, however it is written');

-- all random parts are the same for a while: the code is taken four times

SAVEPOINT collision;
CREATE OR REPLACE FUNCTION referral.code_random(wanted int) RETURNS text
    LANGUAGE sql RETURN repeat('7', wanted);
SELECT is(referral.ensure_code(:invite, 'u-sam', '{"name": "sam"}'),
          'DEV-O-SAM7777', '1 the first Sam');
SELECT is(referral.ensure_code(:invite, 'u-sam-2', '{"name": "sam"}'),
          'DEV-O-SAM77777', '1 the second gets another one, a digit longer');
ROLLBACK TO collision;

SELECT is((SELECT concat_ws(' ', state, url) FROM referral.code_published
               WHERE code = 'DEV-O-ALEX123'),
          'active https://dev-o.ai/signup?ref={code}',
          '1 the edge has it, with the link');


-- 2. Clicks.  Alex mails his link and posts it; five people follow it, and a
-- program that makes previews.  The edge answers a code that nobody has with
-- 404, and records it.

SELECT referral.share_record('DEV-O-ALEX123', '{"type": "email_sent"}'),
       referral.share_record('dev-o-alex123', '{"source": "twitter"}')
    \g /dev/null
SELECT pg_temp.click('DEV-O-ALEX123', '3 days', 'bob') AS bob,
       pg_temp.click('DEV-O-ALEX123', '2 days', 'dora') AS dora,
       pg_temp.click('DEV-O-ALEX123', '1 day', 'eve') AS eve,
       pg_temp.click('DEV-O-ALEX123', '1 hour', 'carl') AS carl,
       pg_temp.click('DEV-O-ALEX123', '1 hour', 'ivy') AS ivy,
       pg_temp.click('DEV-O-ALEX123', '1 hour', 'Slackbot', 'valid',
                     'preview'),
       pg_temp.click(:'blair', '6 hours', 'finn') AS finn,
       pg_temp.click(:'casey', '5 hours', 'gus') AS gus,
       pg_temp.click(:'casey', '4 hours', 'lee') AS lee,
       pg_temp.click('DEVO-NOBODY99', '1 hour', 'x', 'unknown') AS nobody
    \gset

SELECT is(pg_temp.rows('SELECT user_id, clicks, signups, conversions
                       FROM referral.seed_saas_code ORDER BY user_id'),
          ARRAY['u-alex 5 0 0', 'u-blair 1 0 0', 'u-casey 2 0 0'],
          '2 people are counted, previews are not');
SELECT referral.referral_create(:invite, jsonb_build_object(
           'click_id', :'eve')) AS eve_referral \gset
SELECT is(pg_temp.rows(format('SELECT r.status, r.referrer, r.referee,
                                 round(extract(epoch FROM now()
                                       - r.clicked_at) / 3600),
                                 host(c.ip), c.user_agent
                              FROM referral.seed_saas_referral r
                                   JOIN referral.click c ON c.id = r.click_id
                              WHERE r.id = %s', :eve_referral)),
          ARRAY['clicked u-alex - 24 192.0.2.0 eve'],
          '2 a referral may begin with its click');
SELECT throws_ok(format('SELECT pg_temp.sign_up(''zoe'', %L)',
                        jsonb_build_object('click_id', :'nobody')),
                 'RF093', 'code DEVO-NOBODY99 is not known',
                 '2 an unknown code is nobody''s');


-- 3. Sign-ups.  The cookie, or the application's session, has the click; Dora
-- comes back without one and types the code.

SELECT is(pg_temp.sign_up('bob', pg_temp.token('DEV-O-ALEX123', :'bob')),
          'registered', '3 Bob signs up, with the cookie of his click');
SELECT is(pg_temp.sign_up('dora', '{"code": "dev-o-alex123"}'),
          'registered', '3 Dora, with the code');
SELECT is(pg_temp.sign_up('finn', jsonb_build_object('click_id', :'finn')),
          'registered', '3 Finn, by Blair');
SELECT is(pg_temp.sign_up('gus', jsonb_build_object('click_id', :'gus')),
          'registered', '3 Gus, by Casey');
SELECT is(pg_temp.sign_up('bob', jsonb_build_object('code', :'casey')),
          'existing', '3 once for each user, whatever code comes later');
SELECT is(pg_temp.rows($$ SELECT referrer, referral_code, status,
                            round(extract(epoch FROM now() - clicked_at)
                                  / 3600),
                            signed_up_at = now(), converted_at
                         FROM referral.seed_saas_referral
                         WHERE referee = 'u-bob' $$),
          ARRAY['u-alex DEV-O-ALEX123 signed_up 72 true -'],
          '3 Bob was referred by Alex');
SELECT is(pg_temp.rows($$ SELECT pg_temp.rewards('alex', 'bob') $$),
          ARRAY['extra_messages active 10', 'extra_requests active 5'],
          '3 what Alex gets for it');
SELECT is(pg_temp.rows($$ SELECT pg_temp.rewards('bob', 'bob') $$),
          ARRAY['extra_messages active 5', 'extra_requests active 2',
                'feature_unlock active 7'], '3 and Bob''s welcome');
SELECT is(pg_temp.rows($$ SELECT description, valid_from = now(),
                            valid_until = now() + interval '1 month'
                         FROM referral.seed_saas_reward
                         WHERE user_id = 'u-alex'
                               AND reward_type = 'extra_messages'
                               AND referral_id = (SELECT r.id
                                   FROM referral.seed_saas_referral r
                                   WHERE r.referee = 'u-bob') $$),
          ARRAY['+10 messages true true'], '3 for a month');
SELECT is(pg_temp.rows($$ SELECT description, valid_until
                            = now() + interval '7 days'
                         FROM referral.seed_saas_reward
                         WHERE user_id = 'u-bob'
                               AND reward_type = 'feature_unlock' $$),
          ARRAY['+7 feature_days of Pro true'], '3 seven days of Pro');
SELECT throws_ok($$ SELECT pg_temp.sign_up('alex',
                        '{"code": "DEV-O-ALEX123"}') $$, 'RF097', NULL,
                 '3 nobody invites himself');

SAVEPOINT suspended;
SELECT referral.referrer_set_status(f.id, 'suspended')
    FROM referral.referrers f WHERE f.external_id = 'u-alex' \g /dev/null
SELECT throws_ok($$ SELECT pg_temp.sign_up('zoe',
                        '{"code": "DEV-O-ALEX123"}') $$, 'RF094', NULL,
                 '3 nor is anybody referred by one who is suspended');
ROLLBACK TO suspended;

SELECT referral.code_create(:invite, NULL, 'DEV-O-LAUNCH', jsonb_build_object(
           'expires_at', now() - interval '1 day')) \g /dev/null
SELECT throws_ok($$ SELECT pg_temp.sign_up('zoe',
                        '{"code": "DEV-O-LAUNCH"}') $$, 'RF093', NULL,
                 '3 an expired code is refused');
SELECT is(pg_temp.sign_up('pat', jsonb_build_object('click_id',
              pg_temp.click('DEV-O-LAUNCH', '2 days', 'pat'))),
          'registered', '3 but good for who clicked when it was valid');


-- 4. Upgrades, as the webhook of the payment provider reports them.

SELECT is(pg_temp.upgrade('bob') ->> 'outcome', 'credited', '4 Bob pays');
SELECT is(pg_temp.upgrade('bob'), pg_temp.upgrade('bob'),
          '4 the webhook says so twice and more');
SELECT pg_temp.upgrade('finn'), pg_temp.upgrade('gus') \g /dev/null
SELECT is(pg_temp.rows($$ SELECT status, converted_at = now()
                         FROM referral.seed_saas_referral
                         WHERE referee = 'u-bob' $$),
          ARRAY['converted true'], '4 Bob is converted');
SELECT is(pg_temp.balance('alex', 'USD'), 1000::bigint, '4 $10, once');
SELECT is(pg_temp.rows($$ SELECT pg_temp.rewards('blair', 'finn') $$),
          ARRAY['extra_messages active 10', 'extra_requests active 5',
                'feature_unlock active 30'],
          '4 Blair''s variant: a month of Pro');
SELECT is(pg_temp.rows($$ SELECT pg_temp.rewards('casey', 'gus') $$),
          ARRAY['extra_messages active 10', 'extra_messages active 50',
                'extra_requests active 25', 'extra_requests active 5'],
          '4 Casey''s: 50 messages and 25 requests');
SELECT is(referral.conversion_record(:devo, '{"order_ref": "chat-bob",
              "external_id": "u-bob", "kind": "chat"}') -> 'rewards', '[]',
          '4 using the service is no upgrade');
SELECT is(pg_temp.upgrade('zoe') ->> 'outcome', 'unattributed',
          '4 Zoe came by herself');


-- 5. Redemption.  Alex' next invoice is $20; then Bob gets his money back, and
-- what Alex has used he owes.

CREATE FUNCTION pg_temp.invoice(order_ref text) RETURNS jsonb LANGUAGE sql
    RETURN referral.redeem(current_setting('t.devo')::bigint, order_ref,
               jsonb_build_object('order_amount', 2000, 'referrer_id',
                   (SELECT f.id FROM referral.referrers f
                        WHERE f.external_id = 'u-alex')));
SELECT is(pg_temp.invoice('invoice-1') - 'redemption_id',
          '{"amount": 1000, "remaining": 0, "status": "used"}'::jsonb,
          '5 $10 off the next payment');
SELECT is(pg_temp.rows($$ SELECT status, description, redeemed_at = now()
                         FROM referral.seed_saas_reward
                         WHERE user_id = 'u-alex'
                               AND reward_type = 'account_credit' $$),
          ARRAY['redeemed +10.00 USD true'], '5 the reward is redeemed');
SELECT is(referral.redeem(:devo, 'chat-1', jsonb_build_object('unit',
              'messages', 'amount', 4, 'referrer_id', f.id)) -> 'remaining',
          '16', '5 4 of the 10 + 10 messages of Bob and Dora')
    FROM referral.referrers f WHERE f.external_id = 'u-alex';
SELECT is(referral.redeem(:devo, 'chat-2', '{"external_id": "u-dora",
              "unit": "messages"}') -> 'amount', '5',
          '5 Dora uses all of hers');
SELECT throws_ok($$ SELECT referral.redeem(current_setting('t.devo')::bigint,
                        'chat-3', '{"external_id": "u-dora",
                        "unit": "messages", "amount": 1}') $$, 'RF110', NULL,
                 '5 and has no more');
SELECT is(referral.refund_record(:devo, '{"refund_ref": "re_1",
              "order_ref": "checkout-bob"}') -> 'left', '0',
          '5 Bob''s payment is refunded');
SELECT is(pg_temp.balance('alex', 'USD'), -1000::bigint,
          '5 Alex owes what he used');


-- 6. A contest: for a week every upgrade counts twice; and from the third on
-- it is $15.  These are new rules, for those who sign up from now on.

SELECT is(pg_temp.rules(jsonb_build_object(
              'tiers', '[{"from": 1, "amount": 1000},
                         {"from": 3, "amount": 1500}]'::jsonb,
              'seasons', jsonb_build_array(jsonb_build_object(
                  'from', (now() AT TIME ZONE 'UTC')::date,
                  'until', (now() AT TIME ZONE 'UTC')::date + 6,
                  'multiplier_bp', 20000)))), 3, '6 new rules');
SELECT pg_temp.sign_up('carl', jsonb_build_object('click_id', :'carl')),
       pg_temp.sign_up('ivy', jsonb_build_object('click_id', :'ivy')),
       pg_temp.upgrade('carl'), pg_temp.upgrade('dora'),
       pg_temp.upgrade('ivy') \g /dev/null

-- Carl 10.00 * 2, Dora 10.00 as when she signed up, Ivy the fourth 15.00 * 2

SELECT is(pg_temp.rows($$ SELECT r.referee, w.amount
                         FROM referral.seed_saas_reward w
                              JOIN referral.seed_saas_referral r
                                  ON r.id = w.referral_id
                         WHERE w.reward_type = 'account_credit'
                         ORDER BY 1 $$),
          ARRAY['u-bob 1000', 'u-carl 2000', 'u-dora 1000', 'u-ivy 3000'],
          '6 twice in the contest, more from the third on');
SELECT is(pg_temp.balance('alex', 'USD'), 5000::bigint,
          '6 20 + 10 + 30 dollars, less the 10 he owed');


-- 7. E-mails hang on events.  Their sender is down while Lee signs up: nothing
-- fails, nothing is lost, and the order is kept.

SELECT id AS hook FROM referral.webhook_add(:devo,
    'https://mail.dev-o.ai/referral', '{referral.registered,reward.earned}')
    \gset
SELECT is(pg_temp.sign_up('lee', jsonb_build_object('click_id', :'lee')),
          'registered', '7 Lee signs up');
CREATE TEMP TABLE claim AS
    SELECT * FROM referral.webhook_claim(10, '1 minute');
SELECT is(pg_temp.rows($$ SELECT body::jsonb ->> 'type' FROM claim $$),
          ARRAY['referral.registered'], '7 the first of six goes out');
SELECT is(outcome, 'retry', '7 there is no answer: again, later')
    FROM claim, referral.webhook_done(jsonb_build_array(jsonb_build_object(
                    'delivery', claim.delivery_id, 'attempt', 1,
                    'status', 0, 'error', 'connection refused')));
SELECT is_empty($$ SELECT * FROM referral.webhook_claim(10, '1 minute') $$,
                '7 and what comes after it waits');
UPDATE referral.webhook_delivery SET next_at = now() WHERE status = 'pending';

CREATE FUNCTION pg_temp.deliver() RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    c  record;
BEGIN
    LOOP
        SELECT * INTO c FROM referral.webhook_claim(1, '1 minute');
        EXIT WHEN NOT FOUND;
        PERFORM referral.webhook_done(jsonb_build_array(jsonb_build_object(
                    'delivery', c.delivery_id, 'attempt', c.attempt,
                    'status', 204)));
        RETURN NEXT concat_ws(' ', c.body::jsonb ->> 'type',
                       c.body::jsonb #>> '{data,beneficiary}',
                       c.body::jsonb #>> '{data,unit}');
    END LOOP;
END $$;
SELECT is(pg_temp.rows('SELECT pg_temp.deliver()'),
          ARRAY['referral.registered', 'reward.earned referrer messages',
                'reward.earned referrer requests',
                'reward.earned referee messages',
                'reward.earned referee requests',
                'reward.earned referee feature_days'],
          '7 when it is back, all come, in order');
SELECT is(pg_temp.rows('SELECT status, count(*)
                            FROM referral.webhook_deliveries GROUP BY 1'),
          ARRAY['delivered 6'], '7 once each');


-- 8. Rewards expire: seven days of Pro after seven days, messages after a
-- month, of which is warned a week before.  Credit stays.

SELECT lives_ok($$ SELECT referral.reward_expire(now()
                                                 + interval '8 days') $$,
                '8 eight days later');
SELECT is((SELECT string_agg(DISTINCT reward_type, ' ')
               FROM referral.seed_saas_reward WHERE status = 'expired'),
          'account_credit feature_unlock',
          '8 the trials are over, like the credit of the refund');
-- of Alex 8 messages and requests, Casey 4, Blair 2 and a month of Pro, of the
-- eight who came 16, less the messages that Dora has used: 30

SELECT is(referral.reward_expiring(now() + interval '25 days'), 30,
          '8 three weeks later');
SELECT is((SELECT count(*) FROM referral.events
               WHERE type = 'reward.expiring' AND data ->> 'unit' = 'messages'
                     AND data ->> 'beneficiary' = 'referrer'
                     AND data ->> 'referrer_id' = (SELECT f.id::text
                         FROM referral.referrers f
                         WHERE f.external_id = 'u-alex')), 4::bigint,
          '8 Alex hears of messages, for each of four friends');
SELECT lives_ok($$ SELECT referral.reward_expire(now()
                                                 + interval '32 days') $$,
                '8 after the month');
SELECT is((SELECT sum(balance) FROM referral.balances
               WHERE kind = 'expired' AND unit = 'messages'
                     AND referrer_id = (SELECT f.id FROM referral.referrers f
                                            WHERE f.external_id = 'u-alex')),
          36::numeric, '8 4 times 10 messages less the 4 that he used');
SELECT is(pg_temp.balance('alex', 'USD'), 5000::bigint, '8 credit stays');
SELECT is(pg_temp.balance('casey', 'messages'), 50::bigint,
          '8 as do the messages of the upgrade');


-- 9. Figures.  Nine clicks: Bob, Dora, Eve, Carl and Ivy by Alex, Finn by
-- Blair, Gus and Lee by Casey, Pat by DEV-O-LAUNCH.  Eight sign-ups: all but
-- Eve.  Six upgrades of $20: Bob, Finn, Gus, Carl, Dora, Ivy; Bob's was
-- refunded.  Rewards in dollars: 10 + 20 + 10 + 30, less Bob's 10, are 60.
-- Spent besides: 25.

SELECT referral.program_cost_record(:invite, (now() AT TIME ZONE 'UTC')::date,
                                    2500, 'newsletter') \g /dev/null
SELECT referral.counter_fold(), referral.rollup_refresh('1 minute', '0')
    \g /dev/null
CREATE TEMP VIEW period AS
    SELECT (now() AT TIME ZONE 'UTC')::date - 9 AS low,
           (now() AT TIME ZONE 'UTC')::date + 1 AS high;

SELECT is(pg_temp.rows('SELECT user_id, clicks, signups, conversions
                       FROM referral.seed_saas_code WHERE user_id IS NOT NULL
                       ORDER BY user_id'),
          ARRAY['u-alex 5 4 4', 'u-blair 1 1 1', 'u-casey 2 2 1'],
          '9 clicks, signups and conversions of each code');
SELECT is(pg_temp.rows(format('SELECT step, n, of_previous FROM period,
                              referral.funnel(%s, low, high)', :invite)),
          ARRAY['shared 2 -', 'clicked 9 4.5000', 'referred 9 1.0000',
                'registered 8 0.8889', 'converted 6 0.7500'],
          '9 the funnel: of 8 who signed up 6 pay');
SELECT is(pg_temp.rows(format('SELECT revenue, refunds, net, cost, spend,
                                 average_reward, cost_per_acquisition, roi
                              FROM period, referral.program_figures(%s, low,
                                                                    high)',
                         :invite)),
          ARRAY['12000 2000 10000 6000 2500 1000 1417 0.1765'],
          '9 revenue, cost of a conversion, of an acquisition, ROI');
SELECT is(pg_temp.rows(format('SELECT rank, external_id, converted, revenue
                              FROM period, referral.leaderboard(%s,
                                       ''converted'', low, high)', :invite)),
          ARRAY['1 u-alex 4 6000', '2 u-blair 1 2000', '2 u-casey 1 2000'],
          '9 the leaderboard; badges go by its rank');
SELECT is(pg_temp.rows(format('SELECT name, clicks, converted FROM period,
                              referral.breakdown(%s, ''variant'', low, high)
                              WHERE clicks > 0 AND name IS NOT NULL',
                         :invite)),
          ARRAY['credit 5 4', 'bonus 2 1', 'pro 1 1'],
          '9 the variants side by side');
SELECT is((SELECT concat_ws(' ', rewards, earned, redeemed, expired,
                            remaining, used_rate)
               FROM period, referral.reward_outcomes(:invite, low, high)
               WHERE beneficiary = 'referee' AND kind = 'messages'),
          -- 8 * 5, of which Dora used hers
          '8 40 5 35 0 0.1250', '9 redemption rate of the welcome');

SELECT set_config('referral.referrer', (SELECT f.id::text
           FROM referral.referrers f WHERE f.external_id = 'u-alex'), true)
    \g /dev/null
SET LOCAL ROLE referral_partner;
SELECT is((SELECT page -> 'referrals' || jsonb_build_object('clicks',
                      page #> '{codes,0,clicks}', 'code',
                      page #> '{codes,0,code}', 'credit', jsonb_path_query(
                      page, '$.balances[*] ? (@.unit == "USD" &&
                             @.kind == "credit").balance'))
               FROM referral.my_page() page),
          '{"code": "DEV-O-ALEX123", "clicks": 5, "pending": 1,
            "rewarded": 4, "credit": 5000}'::jsonb, '9 Alex'' own dashboard');
RESET ROLE;


-- 10. Bob deletes his account: nothing names him any more, and nothing else
-- has changed.

SELECT referral.customer_erase(:devo, 'u-bob', NULL, 'account deleted')
    \g /dev/null
SELECT is_empty($$ SELECT FROM referral.seed_saas_referral
                       WHERE referee = 'u-bob' $$, '10 Bob is gone');
SELECT is((SELECT signups FROM referral.seed_saas_code
               WHERE user_id = 'u-alex'), 4::bigint, '10 his sign-up is not');
SELECT is(pg_temp.balance('alex', 'USD'), 5000::bigint,
          '10 nor has Alex'' credit changed');

SET CONSTRAINTS ALL IMMEDIATE;
SELECT is_empty('SELECT * FROM referral.ledger_check()', 'it adds up');

SELECT * FROM finish();

ROLLBACK;
