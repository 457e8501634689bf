-- Copyright (C) The nginx referral module authors
--
-- The outbox: events, their fan-out, claims and results.  What goes over the
-- wire is in t/webhook.t.

BEGIN;

SELECT no_plan();

INSERT INTO referral.organisation (slug, name)
    VALUES ('acme', 'Acme'), ('other', 'Other');

CREATE TEMPORARY TABLE org AS
    SELECT (SELECT id FROM referral.organisation WHERE slug = 'acme') AS acme,
           (SELECT id FROM referral.organisation WHERE slug = 'other')
               AS other;
CREATE TEMPORARY TABLE hook (name text PRIMARY KEY, id bigint, secret text);
CREATE TEMPORARY TABLE got (delivery_id bigint, webhook_id bigint, attempt int,
                            url text, allow_private boolean, event_id uuid,
                            at bigint, signature text, body text);

-- one event for a webhook, all else finished

CREATE FUNCTION pg_temp.emit(key text, type text DEFAULT 'reward.earned')
    RETURNS uuid LANGUAGE sql
    RETURN (SELECT referral.emit(acme, type, key, '{"n":1}') FROM org);

CREATE FUNCTION pg_temp.claim(room int DEFAULT 100) RETURNS bigint
    LANGUAGE sql AS $$
    WITH c AS (INSERT INTO got
                   SELECT * FROM referral.webhook_claim(room, '30 s')
                   RETURNING 1)
    SELECT count(*) FROM c $$;

CREATE FUNCTION pg_temp.done(delivery bigint, status int,
                             retry_after bigint DEFAULT NULL) RETURNS text
    LANGUAGE sql
    RETURN (SELECT d.outcome FROM referral.webhook_done(jsonb_build_array(
                jsonb_build_object('delivery', delivery, 'status', status,
                    'attempt', (SELECT max(attempt) FROM got
                                    WHERE delivery_id = delivery),
                    'retry_after', retry_after, 'ms', 5, 'error', 'x',
                    'response', 'hello'))) d);

CREATE FUNCTION pg_temp.clear() RETURNS void LANGUAGE sql AS $$
    DELETE FROM referral.event; DELETE FROM got;
    UPDATE referral.webhook_state SET failures = 0, paused_until = NULL;
    UPDATE referral.webhook_endpoint SET status = 'active' $$;


-- adding

INSERT INTO hook SELECT 'all', w.* FROM org,
    referral.webhook_add(acme, 'https://example.com/hook') w;
SELECT ok(secret ~ '^whsec_[A-Za-z0-9+/]{43}=$', 'a secret of 32 bytes')
    FROM hook WHERE name = 'all';
INSERT INTO hook SELECT 'reward', w.* FROM org,
    referral.webhook_add(acme, 'http://127.0.0.1:8080/a?b=c',
        '{reward.*,payout.paid}', '{"allow_private": true,
        "description": "books", "max_in_flight": 2,
        "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}') w;
SELECT is(secret, 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'a given secret')
    FROM hook WHERE name = 'reward';
INSERT INTO hook SELECT 'other', w.* FROM org,
    referral.webhook_add(other, 'https://example.org/') w;

SELECT throws_ok(format('SELECT referral.webhook_add(%s, %L)', acme, url),
                 'RF052', NULL,
                 'no usable URL: ' || translate(left(url, 40), E'#\n', '??'))
    FROM org, unnest(ARRAY['', 'example.com', 'ftp://example.com/',
        'http://example.com/', 'https://', 'https:///x', 'HTTPS://x/',
        'https://u:p@example.com/', 'https://example.com/#x',
        'https://example.com/ x', E'https://example.com/\nx',
        'https://example.com/ü', 'https://exam\ple.com/',
        'https://x/' || repeat('a', 2048)]) url;
SELECT throws_ok(format('SELECT referral.webhook_add(%s, NULL)', acme),
                 'RF052', NULL, 'no URL') FROM org;
SELECT throws_ok(format('SELECT referral.webhook_add(%s, %L, %L)', acme,
                        'https://x/', types), 'RF050', NULL,
                 'no type: ' || types)
    FROM org, unnest('{"{}","{reward}","{reward.eraned}","{nothing.*}",
                       "{NULL}","{reward.earned,x.*}"}'::text[]) types;
SELECT throws_ok(format('SELECT referral.webhook_add(%s, %L, %L, %L)', acme,
                        'https://x/', '{*}', options), state, NULL,
                 'no option: ' || left(options, 40))
    FROM org, (VALUES ('{"colour":1}', 'RF011'),
        ('{"allow_private":1}', 'RF055'), ('{"allow_private":null}', 'RF055'),
        ('{"max_in_flight":0}', 'RF055'), ('{"max_in_flight":33}', 'RF055'),
        ('{"max_in_flight":1e400}', 'RF055'), ('{"description":[]}', 'RF055'),
        ('{"secret":"abc"}', 'RF054'), ('{"secret":null}', 'RF054'),
        ('{"secret":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS"}', 'RF054'),
        ('{"secret":"whsec_' || encode(repeat('x', 23)::bytea, 'base64')
         || '"}', 'RF054'),
        ('{"secret":"whsec_' || replace(encode(repeat('x', 65)::bytea,
                                               'base64'), E'\n', '')
         || '"}', 'RF054')) v (options, state);
SELECT throws_ok('SELECT referral.webhook_add(-1, ''https://x/'')', 'RF012',
                 NULL, 'an organisation that is not there');


-- the fan-out

SELECT isnt(pg_temp.emit('referral:1'), NULL, 'an event');
SELECT pg_temp.emit('referral:1', 'referral.created') \g /dev/null
SELECT pg_temp.emit(NULL, 'payout.paid') \g /dev/null
SELECT is(array_agg(ev.type ORDER BY d.id), CASE name
          WHEN 'all' THEN '{reward.earned,referral.created,payout.paid}'
          WHEN 'reward' THEN '{reward.earned,payout.paid}'
          ELSE '{NULL}'::text[] END,
          'what it is to get: ' || name)
    FROM hook LEFT JOIN (referral.webhook_delivery d JOIN referral.event ev
                         ON ev.id = d.event_id) ON d.endpoint_id = hook.id
    GROUP BY name;
SELECT is(abs(extract(epoch FROM referral.uuid_time(id) - clock_timestamp()))
          < 60, true, 'the id has the time') FROM referral.event LIMIT 1;
SELECT throws_ok(format('SELECT referral.emit(%s, %L, NULL, ''{}'')', acme,
                        'reward.eraned'), 'RF050', NULL, 'no such type')
    FROM org;
SELECT throws_ok(format('SELECT referral.emit(%s, %L, NULL, %L)', acme,
                        'reward.earned', data), 'RF051', NULL, 'no object')
    FROM org, (VALUES ('[]'), ('null'), (NULL),
                      (jsonb_build_object('a', repeat('x', 17000))::text))
                  v (data);


-- claims: signed as the specification says, in the order of their key

SELECT is(pg_temp.claim(), 4::bigint, 'one of each key for each webhook');
SELECT is(pg_temp.claim(), 0::bigint, 'and no more');
SELECT is(array_agg(ev.type ORDER BY ev.type),
          '{payout.paid,reward.earned}'::text[], 'the first of the key')
    FROM got JOIN referral.event ev ON ev.id = got.event_id
    WHERE webhook_id = (SELECT id FROM hook WHERE name = 'all');
SELECT is(signature, 'v1,' || encode(sha256(
              referral.hmac_pad(decode('MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw',
                                       'base64'), 92)
              || sha256(referral.hmac_pad(
                     decode('MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'base64'), 54)
                     || convert_to(event_id || '.' || at || '.' || body,
                                   'UTF8'))), 'base64'), 'the signature')
    FROM got WHERE url = 'http://127.0.0.1:8080/a?b=c';
SELECT is(g.body::jsonb, jsonb_build_object('type', ev.type, 'data', ev.data,
              'timestamp', g.body::jsonb ->> 'timestamp'), 'the body')
    FROM got g JOIN referral.event ev ON ev.id = g.event_id;
SELECT is((g.body::jsonb ->> 'timestamp')::timestamptz, ev.created_at,
          'has the time of the event')
    FROM got g JOIN referral.event ev ON ev.id = g.event_id;

SELECT is(pg_temp.done(delivery_id, 204), 'delivered', 'delivered')
    FROM got JOIN hook ON id = webhook_id
         JOIN referral.event ev ON ev.id = event_id
    WHERE name = 'all' AND type = 'reward.earned';
SELECT is(pg_temp.claim(), 1::bigint, 'the next of the key follows');
SELECT is(pg_temp.done(delivery_id, 200), 'delivered', 'delivered, too')
    FROM got WHERE body::jsonb ->> 'type' = 'referral.created';
SELECT is(pg_temp.done(delivery_id, 200), 'late', 'a result is taken once')
    FROM got WHERE body::jsonb ->> 'type' = 'referral.created';


-- the schedule

SELECT pg_temp.clear() \g /dev/null
UPDATE referral.webhook_endpoint SET status = 'disabled'
    WHERE id <> (SELECT id FROM hook WHERE name = 'all');
SELECT pg_temp.emit('a') \g /dev/null

CREATE FUNCTION pg_temp.life() RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    wait  interval;
    want  interval[] := '{5 s,5 min,30 min,2 h,5 h,10 h,14 h,20 h,24 h}';
    one   bigint;
BEGIN
    FOR n IN 1 .. 10 LOOP
        UPDATE referral.webhook_delivery SET next_at = now();
        RETURN NEXT is(pg_temp.claim(), 1::bigint, 'attempt ' || n);
        SELECT delivery_id INTO one FROM got LIMIT 1;
        RETURN NEXT is(pg_temp.done(one, 500),
                       CASE n WHEN 10 THEN 'dead' ELSE 'retry' END, 'fails');
        SELECT next_at - now() INTO wait FROM referral.webhook_delivery;
        IF n < 10 THEN
            RETURN NEXT ok(wait BETWEEN want[n] * 0.9 AND want[n] * 1.1,
                           'and waits ' || want[n]);
            RETURN NEXT is(pg_temp.claim(), 0::bigint, 'not before');
        END IF;
    END LOOP;
END $$;

SELECT * FROM pg_temp.life();
SELECT is((SELECT (status, attempts, http_status, error, response)::text
               FROM referral.webhook_deliveries),
          '(dead,10,500,x,hello)', 'it is listed with what came of it');
SELECT is((SELECT (pending, dead, failures)::text FROM referral.webhooks
               WHERE id = (SELECT id FROM hook WHERE name = 'all')),
          '(0,1,10)', 'and counted');
SELECT is(referral.webhook_redeliver_dead(id), 1::bigint, 'sent again')
    FROM hook WHERE name = 'all';
SELECT is(pg_temp.claim(), 1::bigint, 'claimed');
SELECT is((SELECT attempts FROM referral.webhook_delivery), 1, 'from one on');


-- an earlier one that fails holds the later ones of its key, no others

SELECT pg_temp.clear() \g /dev/null
UPDATE referral.webhook_endpoint SET status = 'disabled'
    WHERE id <> (SELECT id FROM hook WHERE name = 'all');
SELECT pg_temp.emit('a') \g /dev/null
SELECT pg_temp.emit('a') \g /dev/null
SELECT pg_temp.emit('a') \g /dev/null
SELECT pg_temp.emit('b') \g /dev/null
SELECT is(pg_temp.claim(), 2::bigint, 'of each key the first');
SELECT pg_temp.done(min(delivery_id), 500) FROM got \g /dev/null
SELECT is(pg_temp.claim(), 0::bigint, 'a failed one holds its key');
SELECT is(count(DISTINCT d.next_at), 1::bigint, 'they have its time')
    FROM referral.webhook_delivery d WHERE order_key = 'a';
UPDATE referral.webhook_delivery SET next_at = now() WHERE order_key = 'a';
SELECT is(pg_temp.claim(), 1::bigint, 'and then it goes first');
SELECT is(attempt, 2, 'again') FROM got ORDER BY attempt DESC LIMIT 1;
SELECT pg_temp.done(delivery_id, 200) FROM got WHERE attempt = 2 \g /dev/null
SELECT is(pg_temp.claim(), 1::bigint, 'then the next one');
UPDATE referral.webhook_delivery SET next_at = now()
    WHERE status = 'sending' AND order_key = 'a';
SELECT is(pg_temp.claim(), 1::bigint, 'a lease that is over');
SELECT is((SELECT attempts FROM referral.webhook_delivery
               WHERE status = 'sending' AND order_key = 'a'), 2,
          'counts as an attempt');


-- Retry-After, 410, throttling

SELECT pg_temp.clear() \g /dev/null
UPDATE referral.webhook_endpoint SET status = 'disabled'
    WHERE id <> (SELECT id FROM hook WHERE name = 'all');
SELECT pg_temp.emit(NULL) FROM generate_series(1, 20) \g /dev/null
SELECT is(pg_temp.claim(3), 3::bigint, 'no more than there is room for');
SELECT is(pg_temp.claim(), 1::bigint, 'nor than the endpoint takes');
SELECT is(pg_temp.done(min(delivery_id), 429, 600), 'retry', 'a 429') FROM got;
SELECT ok(next_at = now() + interval '10 min', 'Retry-After is obeyed')
    FROM referral.webhook_delivery WHERE http_status = 429;
SELECT ok(paused_until = now() + interval '10 min', 'by all of it')
    FROM referral.webhooks WHERE id = (SELECT id FROM hook WHERE name = 'all');
SELECT is(pg_temp.claim(), 0::bigint, 'nothing more');
SELECT is(pg_temp.done(max(delivery_id), 503, 999999999999), 'retry', 'a 503')
    FROM got;
SELECT ok(paused_until = now() + interval '1 day', 'a day at most')
    FROM referral.webhooks WHERE id = (SELECT id FROM hook WHERE name = 'all');
UPDATE referral.webhook_state SET paused_until = NULL, failures = 5;
SELECT is(pg_temp.claim(), 0::bigint, 'after five failures with two out');
SELECT pg_temp.done(delivery_id, 500) FROM got WHERE attempt = 1 \g /dev/null
SELECT is(pg_temp.claim(), 1::bigint, 'one at a time');
SELECT is(pg_temp.done(max(delivery_id), 410), 'disabled', 'a 410') FROM got;
SELECT is((SELECT (status, disabled_reason)::text FROM referral.webhooks
               WHERE id = (SELECT id FROM hook WHERE name = 'all')),
          '(disabled,"it answered 410 Gone")', 'disables the endpoint');
SELECT is(pg_temp.claim(), 0::bigint, 'nothing more is sent');
SELECT throws_ok(format('SELECT referral.webhook_test(%s)', id), 'RF056', NULL,
                 'not even a test') FROM hook WHERE name = 'all';
SELECT throws_ok(format('SELECT referral.webhook_redeliver(%s)',
                        max(delivery_id)), 'RF056', NULL,
                 'nor anything again') FROM got;
SELECT lives_ok(format('SELECT referral.webhook_enable(%s)', id), 'enabled')
    FROM hook WHERE name = 'all';
SELECT is(pg_temp.claim(), 4::bigint, 'and it goes on');


-- rotation

SELECT pg_temp.clear() \g /dev/null
UPDATE referral.webhook_endpoint SET status = 'disabled'
    WHERE id <> (SELECT id FROM hook WHERE name = 'all');
SELECT isnt(referral.webhook_rotate(id), secret, 'another secret')
    FROM hook WHERE name = 'all';
SELECT pg_temp.emit(NULL) \g /dev/null
SELECT pg_temp.claim() \g /dev/null
SELECT ok(signature ~ '^v1,[A-Za-z0-9+/]{43}= v1,[A-Za-z0-9+/]{43}=$',
          'two signatures') FROM got;
SELECT isnt(split_part(signature, ' ', 1), split_part(signature, ' ', 2),
            'of two keys') FROM got;
SELECT isnt(referral.webhook_rotate(id), NULL, 'again')
    FROM hook WHERE name = 'all';
SELECT is(secrets, 2::bigint, 'two at most') FROM referral.webhooks
    WHERE id = (SELECT id FROM hook WHERE name = 'all');
SELECT isnt(referral.webhook_rotate(id, '0'), NULL, 'at once')
    FROM hook WHERE name = 'all';
SELECT is(secrets, 1::bigint, 'then there is one') FROM referral.webhooks
    WHERE id = (SELECT id FROM hook WHERE name = 'all');
SELECT throws_ok(format('SELECT referral.webhook_rotate(%s, %L)', id, span),
                 'RF057', NULL, 'no overlap: ' || span)
    FROM hook, unnest('{-1 s,31 days}'::text[]) span WHERE name = 'all';


-- changes, tests, redelivery, removal

SELECT lives_ok(format('SELECT referral.webhook_update(%s, %L)', id,
                       '{"types":["payout.*"],"description":null}'), 'changed')
    FROM hook WHERE name = 'reward';
SELECT is((SELECT (url, types, description, allow_private, max_in_flight)::text
               FROM referral.webhooks
               WHERE id = (SELECT id FROM hook WHERE name = 'reward')),
          '(http://127.0.0.1:8080/a?b=c,{payout.*},,t,2)', 'and nothing else');
SELECT throws_ok(format('SELECT referral.webhook_update(%s, %L)', id, changes),
                 state, NULL, 'refused: ' || changes)
    FROM hook, (VALUES ('{"types":"reward.*"}', 'RF050'),
        ('{"types":["x"]}', 'RF050'), ('{"url":null}', 'RF052'),
        ('{"url":"http:/"}', 'RF052'), ('{"allow_private":false}', 'RF052'),
        ('{"status":"active"}', 'RF011'), ('{"max_in_flight":"x"}', 'RF055'))
        v (changes, state)
    WHERE name = 'reward';

SELECT pg_temp.clear() \g /dev/null
SELECT isnt(referral.webhook_test(id), NULL, 'a test') FROM hook
    WHERE name = 'reward';
SELECT is(pg_temp.claim(), 1::bigint, 'goes to it alone');
SELECT is(body::jsonb -> 'data', jsonb_build_object('webhook_id', webhook_id),
          'and says what it is') FROM got;
SELECT is(referral.webhook_redeliver_event(pg_temp.emit('z')), 1,
          'an event again to who wants it');
SELECT is(referral.webhook_redeliver_event(e.id, h.id), 1,
          'or to one who had not wanted it')
    FROM referral.event e, hook h
    WHERE e.order_key = 'z' AND h.name = 'reward';
SELECT is(count(*), 2::bigint, 'each has one')
    FROM referral.webhook_deliveries WHERE order_key = 'z';
SELECT throws_ok('SELECT referral.webhook_redeliver(-1)', 'RF053', NULL,
                 'no such delivery');
SELECT throws_ok(format('SELECT referral.webhook_redeliver_event(%L)',
                        gen_random_uuid()), 'RF053', NULL, 'no such event');
SELECT throws_ok('SELECT referral.webhook_disable(-1)', 'RF053', NULL,
                 'no such webhook');
SELECT lives_ok(format('SELECT referral.webhook_remove(%s)', id), 'removed')
    FROM hook WHERE name = 'reward';
SELECT is(count(*), 0::bigint, 'with its deliveries')
    FROM referral.webhook_delivery
    WHERE endpoint_id = (SELECT id FROM hook WHERE name = 'reward');


-- another organisation's

SELECT set_config('referral.organisation', acme::text, true) FROM org
\g /dev/null
SELECT throws_ok(format('SELECT referral.webhook_rotate(%s)', id), 'RF012',
                 NULL, 'another organisation''s webhook')
    FROM hook WHERE name = 'other';
SELECT is(count(*), 1::bigint, 'is not seen either') FROM referral.webhooks;
SELECT set_config('referral.organisation', '', true) \g /dev/null


-- pruning

SELECT pg_temp.clear() \g /dev/null
SELECT pg_temp.emit('a') \g /dev/null
SELECT is(referral.webhook_prune(now() + interval '29 days'), 0::bigint,
          'events are kept 30 days');
SELECT is(referral.webhook_prune(now() + interval '31 days'), 1::bigint,
          'and no more');
SELECT is(count(*), 0::bigint, 'their deliveries neither')
    FROM referral.webhook_delivery;


-- who may what

SELECT is(count(*), 0::bigint, 'nobody reads the secrets')
    FROM unnest('{referral_worker,referral_app,referral_analyst,
                  referral_partner}'::text[]) r
    WHERE has_any_column_privilege(r, 'referral.webhook_secret', 'SELECT');
SELECT is(has_function_privilege(r, f, 'EXECUTE'), allowed,
          r || ' and ' || f)
    FROM (VALUES
        ('referral_worker', 'referral.webhook_claim(int,interval)', true),
        ('referral_worker', 'referral.webhook_done(jsonb)', true),
        ('referral_app', 'referral.webhook_claim(int,interval)', false),
        ('referral_app', 'referral.webhook_done(jsonb)', false),
        ('referral_app', 'referral.emit(bigint,text,text,jsonb)', false),
        ('referral_worker', 'referral.emit(bigint,text,text,jsonb)', false),
        ('referral_partner', 'referral.webhook_test(bigint)', false),
        ('referral_analyst', 'referral.webhook_test(bigint)', false),
        ('referral_app', 'referral.webhook_test(bigint)', true))
        v (r, f, allowed);

SELECT * FROM finish();

ROLLBACK;
