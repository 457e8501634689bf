#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Referrals and money under concurrent sessions: what is one stays one, limits
# hold, nothing is paid twice, and no two sessions wait for each other in a
# circle.  The storm lasts 10 s, or REFERRAL_STORM seconds; its seed is printed
# and REFERRAL_SEED repeats it.

use strict;
use warnings;

use Test::More;
use Referral::Test;
use Referral::Test::Sessions;

my $t = Referral::Test->new();
my $pg = $t->postgres(migrate => 0,
                      conf => { max_connections => 80,
                                deadlock_timeout => '500ms' });

for my $file (sort glob($t->root() . '/sql/[0-9]*.sql')) {
    my $r = $t->run('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
                    $pg->conninfo(), '-f', $file);
    die "$file: $r->{output}" if $r->{status};
}

my $s = Referral::Test::Sessions->new($pg, $t->dir());

sub ends { Referral::Test::Sessions::ends(@_) }

sub sane {
    my ($name) = @_;

    my @problems = $pg->rows('SELECT * FROM referral.ledger_check()');
    is(scalar(@problems), 0, "$name: the ledger adds up")
        or diag(join("\n", map { join(' ', map { $_ // '' } @$_) } @problems));

    is($pg->value(<<'SQL'), 0, "$name: a code's uses are its credited ones");
SELECT count(*) FROM referral.code c
    WHERE c.uses <> (SELECT count(*) FROM referral.referral r
                         WHERE r.code_id = c.id AND r.credited)
          OR c.uses > c.max_uses
SQL

    is($pg->value(<<'SQL'), 0, "$name: nobody is credited twice");
SELECT count(*) FROM (SELECT 1 FROM referral.referee_identity i
                          JOIN referral.referral r ON r.id = i.referral_id
                          WHERE r.credited
                          GROUP BY i.program_id, i.hash
                          HAVING count(*) > 1) d
SQL

    is($pg->value(<<'SQL'), 0, "$name: paid is the sum of payouts");
SELECT coalesce((SELECT sum(balance) FROM referral.balances
                     WHERE kind = 'paid'), 0)
       - coalesce((SELECT sum(amount) FROM referral.payouts
                       WHERE status = 'paid' AND method <> 'account_credit'),
                  0)
SQL
}

$pg->rows("SELECT referral.organisation_create('acme', 'Acme')");

sub program {
    my ($name, $options, $rules) = @_;

    my $id = $pg->value("SELECT referral.program_create(1, '$name', 'P',"
        . " '{\"landing_url\": \"https://example.com/\"}'::jsonb"
        . " || '$options')");
    $pg->rows("SELECT referral.reward_rules_set($id, '$rules')");
    $pg->rows("SELECT referral.program_set_status($id, 'active')");

    return $id;
}

sub code {
    my ($program, $referrer, $options) = @_;

    $options //= '{}';

    $pg->rows("SELECT referral.code_create($program,"
        . " referral.referrer_create(1, 'customer',"
        . " '{\"external_id\": \"$referrer\"}'), upper('$referrer'),"
        . " '$options')");
}

sub who {
    return $pg->value('SELECT id FROM referral.referrer'
                      . " WHERE external_id = '$_[0]'");
}

my $p = program('p', '{}',
    '[{"kind": "cash", "amount": 1000, "times": null},'
    . ' {"kind": "credit", "slot": "welcome", "beneficiary": "referee",'
    . ' "trigger": "registration", "amount": 500}]');
code($p, 'ann');
code($p, 'bob');
code($p, 'ten', '{"max_uses": 10}');

# one registration, fifty times

my @r = $s->at_once(map {
    q(SELECT referral.referral_register(NULL, '{"code": "ANN",
          "external_id": "u1"}', '{"email": "u1@example.com"}'))
} 1 .. 50);

is_deeply(ends(@r), { ok => 50 }, 'one registration fifty times at once')
    or diag(map { $_->{error} } @r);
is(scalar(grep { $_->{out} =~ /"outcome": "registered"/ } @r), 1,
   'registers once');

my %told = map { ($_->{out} =~ /"referral_id": (\d+)/)[0] => 1 } @r;
is(scalar(keys %told), 1, 'and all are told which');

is($pg->value('SELECT count(*) FROM referral.referral'), 1, 'one referral');
is($pg->value("SELECT uses FROM referral.code WHERE code = 'ANN'"), 1,
   'one use');
is($pg->value('SELECT count(*) FROM referral.reward'), 1, 'one welcome');

my $serial = $pg->try('BEGIN ISOLATION LEVEL SERIALIZABLE;'
    . ' SELECT referral.referral_register(NULL, \'{"code": "ANN",'
    . ' "external_id": "serial"}\')');
like($serial->{error}, qr/ISOLATION LEVEL READ COMMITTED/,
     'another isolation is refused, with a hint');

# the referee by e-mail here and by phone there, and two codes

@r = $s->at_once(map {
    my $code = $_ % 2 ? 'ANN' : 'BOB';
    my $contact = $_ % 3 == 0 ? '"email": "u2@example.com"'
                : $_ % 3 == 1 ? '"phone": "+4930123456"'
                : '"email": "u2@example.com", "phone": "+4930123456"';

    "SELECT referral.referral_register(NULL, '{\"code\": \"$code\","
    . " \"external_id\": \"u2\"}', '{$contact}')"
} 1 .. 30);

is_deeply(ends(@r), { ok => 30 }, 'two codes for one referee at once')
    or diag(map { $_->{error} } @r);
is(scalar(grep { $_->{out} =~ /"outcome": "registered"/ } @r), 1,
   'one of them is credited');
is($pg->value("SELECT sum(uses) FROM referral.code"), 2, 'one use more');

# leads by several referrers, then decided in many sessions

$pg->rows("SELECT referral.referral_create($p, jsonb_build_object('code', c),"
          . " '{\"email\": \"lead\@example.com\"}')"
          . " FROM unnest(ARRAY['ANN', 'BOB', 'TEN']) c");
@r = $s->at_once(map {
    $_ % 2 ? "SELECT referral.referral_register($p, '{}',"
             . " '{\"email\": \"lead\@example.com\"}')"
           : 'SELECT referral.conversion_record(1, \'{"order_ref": "lead",'
             . ' "email": "lead@example.com", "amount": 5000}\')'
} 1 .. 20);
is_deeply(ends(@r), { ok => 20 }, 'registration and conversion at once')
    or diag(map { $_->{error} } @r);
is($pg->value("SELECT string_agg(status, ' ' ORDER BY status)"
              . " FROM referral.referral WHERE id IN (SELECT referral_id"
              . " FROM referral.attribution a, jsonb_array_elements("
              . " a.candidates) WHERE jsonb_array_length(a.candidates) = 3)"
              . " OR status = 'superseded'"),
   'rewarded superseded superseded', 'one decision');

# ten uses, fifty who want one

my $used = $pg->value("SELECT uses FROM referral.code WHERE code = 'TEN'");
@r = $s->at_once(map {
    "SELECT referral.referral_register(NULL, '{\"code\": \"TEN\","
    . " \"external_id\": \"t$_\"}')"
} 1 .. 50);
is_deeply(ends(@r), { ok => 10 - $used, RF095 => 40 + $used },
          'ten uses and no more') or diag(map { $_->{error} } @r);
is($pg->value("SELECT uses FROM referral.code WHERE code = 'TEN'"), 10,
   'counted');
is($pg->value("SELECT count(*) FROM referral.event"
              . " WHERE type = 'code.exhausted'"), 1, 'told once');

# as many referrals as a referrer may have

my $limited = program('limited', '{"max_referrals_per_referrer": 5}', '[]');
code($limited, 'eve');
@r = $s->at_once(map {
    "SELECT referral.referral_create($limited, '{\"code\": \"EVE\"}',"
    . " '{\"email\": \"e$_\@example.com\"}')"
} 1 .. 20);
is_deeply(ends(@r), { ok => 5, RF098 => 15 }, 'five referrals and no more')
    or diag(map { $_->{error} } @r);

# one request, many times

@r = $s->at_once(map {
    "SELECT referral.referral_create($p, '{\"code\": \"ANN\","
    . ' "idempotency_key": "k1"}\')'
} 1 .. 20);
is_deeply(ends(@r), { ok => 20 }, 'one request twenty times at once');
is(scalar(keys %{{ map { $_->{out} => 1 } @r }}), 1, 'is one referral');

# one balance, twenty who want it

$pg->rows("SELECT referral.conversion_record(1, jsonb_build_object("
          . "'order_ref', 'b' || n, 'external_id', 'b' || n, 'code', 'BOB',"
          . " 'amount', 5000)) FROM generate_series(1, 7) n");
my $bob = who('bob');
my $payable = $pg->value('SELECT balance FROM referral.balances WHERE kind ='
                         . " 'payable' AND referrer_id = $bob");
@r = $s->at_once(map { "SELECT referral.payout_request($bob)" } 1 .. 20);
is_deeply(ends(@r), { ok => 1, RF108 => 19 },
          'a balance is asked for once') or diag(map { $_->{error} } @r);
is($pg->value("SELECT sum(amount) FROM referral.payouts"), $payable,
   'all of it');

my $payout = $pg->value('SELECT max(id) FROM referral.payouts');
$pg->rows("SELECT referral.payout_approve($payout)");
@r = $s->at_once(map {
    $_ % 2 ? "SELECT referral.payout_pay($payout, 'TX')"
           : "SELECT referral.payout_cancel($payout)"
} 1 .. 20);
is_deeply([sort values %{ ends(@r) }], [10, 10],
          'paid or cancelled, never both') or diag(explain(ends(@r)));

# parts of a balance, more than there is

$pg->rows("SELECT referral.conversion_record(1, jsonb_build_object("
          . "'order_ref', 'a' || n, 'external_id', 'a' || n, 'code', 'ANN',"
          . " 'amount', 5000)) FROM generate_series(1, 5) n");
my $ann = who('ann');
my $had = $pg->value('SELECT balance FROM referral.balances WHERE kind ='
                     . " 'payable' AND referrer_id = $ann");
@r = $s->at_once(map {
    $_ % 2 ? "SELECT referral.payout_request($ann, '{\"amount\": 700}')"
           : "SELECT referral.reward_transfer($ann, $bob,"
             . " '{\"amount\": 700, \"idempotency_key\": \"g$_\"}')"
} 1 .. 20);
is(ends(@r)->{ok}, int($had / 700), 'paid and given: no more than there is')
    or diag(explain(ends(@r)));

# credit of one, on many orders

@r = $s->at_once(map {
    "SELECT referral.redeem(1, 'order $_', '{\"external_id\": \"u1\","
    . ' "amount": 100, "partial": false}\')'
} 1 .. 20);
is_deeply(ends(@r), { ok => 5, RF110 => 15 }, 'credit is used once')
    or diag(map { $_->{error} } @r);

# Two sessions that meet half-way: a trigger makes each linger where the other
# comes by.

$pg->rows(<<'SQL');
CREATE FUNCTION public.linger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(0.3);
    RETURN NULL;
END
$$;
CREATE FUNCTION public.linger_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(0.3);
    RETURN NEW;
END
$$;
CREATE TRIGGER linger AFTER INSERT ON referral.account
    FOR EACH ROW EXECUTE FUNCTION public.linger();
SQL

my $shared = program('shared', '{"attribution": "linear"}',
    '[{"kind": "cash", "trigger": "registration", "amount": 900}]');
code($shared, $_) for qw(sam tom);

# the first rewards of two referrers, who share them in different parts

for my $who (qw(x y)) {
    $pg->rows("SELECT referral.referral_create($shared,"
              . " jsonb_build_object('code', c),"
              . " '{\"email\": \"$who\@example.com\"}')"
              . " FROM unnest(ARRAY['SAM', 'TOM']) c");
}

@r = $s->at_once(map {
    "SELECT referral.referral_register($shared, '{\"code\": \"$_->[1]\"}',"
    . " '{\"email\": \"$_->[0]\@example.com\"}')"
} ['x', 'SAM'], ['y', 'TOM']);
is_deeply(ends(@r), { ok => 2 }, 'accounts of two referrers, made by two')
    or diag(map { $_->{error} } @r);
is($pg->value("SELECT string_agg(amount::text, ' ' ORDER BY amount)"
              . " FROM referral.reward WHERE program_id = $shared"),
   '300 300 600 600', 'each has its shares');

# a bulk operation, one of whose referrals is rewarded while it waits for it

$pg->rows('DROP TRIGGER linger ON referral.account');
$pg->rows('CREATE TRIGGER linger AFTER INSERT OR UPDATE ON referral.reward'
          . ' FOR EACH STATEMENT EXECUTE FUNCTION public.linger()');

my $single = program('single', '{}',
    '[{"kind": "cash", "trigger": "registration", "amount": 900}]');
code($single, $_) for qw(una vic);
$pg->rows("SELECT referral.referral_register($single, '{\"code\": \"$_\","
          . " \"external_id\": \"of $_\"}')") for qw(VIC UNA);

my ($first, $second) = map {
    $pg->value("SELECT referral.referral_create($single,"
               . " '{\"code\": \"$_\"}',"
               . " '{\"email\": \"of.$_\@example.com\"}')")
} qw(UNA VIC);
my $register = "SELECT referral.referral_register($single, '{}',"
               . ' \'{"email": "of.%s@example.com"}\')';

$pg->rows(sprintf($register, 'UNA'));
@r = $s->at_once(
    sprintf($register, 'VIC'),
    "SELECT pg_sleep(0.1); SELECT outcome FROM referral.bulk("
        . "'referral_cancel', ARRAY[$first, $second])",
    "SELECT pg_sleep(0.65); SELECT referral.reward_transfer("
        . who('vic') . ', ' . who('una')
        . ', \'{"amount": 100, "idempotency_key": "b"}\')');
is_deeply(ends(@r), { ok => 3 }, 'rewarded while a bulk operation waits')
    or diag(map { $_->{error} } @r);
is($r[1]{out}, "\ndone\ndone", 'which cancels both');

# the credit of two referees, moved both ways between two referrers

my (@mine, @others);

$pg->rows("SELECT referral.code_create($single, ${\ who($_) },"
          . " upper('${_}2'))") for qw(una vic);

for my $n (0, 1) {
    my ($mine, $other) = $n ? qw(VIC UNA2) : qw(UNA VIC2);
    my $contact = "'{\"email\": \"moved.$n\@example.com\"}'";

    push @mine, $pg->value("SELECT referral.referral_register($single,"
        . " '{\"code\": \"$mine\"}', $contact) ->> 'referral_id'");
    push @others, $pg->value("SELECT referral.referral_create($single,"
        . " '{\"code\": \"$other\"}', '{\"email\":"
        . " \"other.$n\@example.com\"}')");
    $pg->rows('INSERT INTO referral.referee_identity (organisation_id,'
        . ' program_id, referral_id, kind, hash, key_id)'
        . " SELECT 1, $single, $others[$n], kind, hash, key_id FROM"
        . " referral.referee_identity WHERE referral_id = $mine[$n]");
}

@r = $s->at_once(map {
    "SELECT referral.attribution_override($_, 'test')"
} @others);
is_deeply(ends(@r), { ok => 2 }, 'credit moved both ways')
    or diag(map { $_->{error} } @r);
is($pg->value("SELECT string_agg(status, ' ' ORDER BY id)"
              . ' FROM referral.referral WHERE id IN ('
              . join(', ', @mine, @others) . ')'),
   'superseded registered superseded registered', 'and has moved');

$pg->rows('DROP TRIGGER linger ON referral.reward');

# one who is erased while he signs up again, with a number that is not known

my $again = "SELECT referral.referral_register($single, '{\"code\": \"UNA\","
            . ' "external_id": "again"}\', \'{"email": "again@example.com"%s}'
            . "\') ->> 'referral_id'";
my $signed = $pg->value(sprintf($again, ''));
my $person = $pg->value('SELECT person_id FROM referral.referral'
                        . " WHERE id = $signed");

$pg->rows('CREATE TRIGGER linger AFTER UPDATE ON referral.person'
          . ' FOR EACH STATEMENT EXECUTE FUNCTION public.linger()');
@r = $s->at_once(
    "SELECT referral.person_erase($person, 'test')",
    'SELECT pg_sleep(0.1); ' . sprintf($again, ', "phone": "+4930555555"'));
is_deeply(ends(@r), { ok => 2 }, 'erased, and there again at once')
    or diag(map { $_->{error} } @r);
is($pg->value("SELECT count(*) FROM referral.person WHERE id = $person"
              . ' AND erased_at IS NULL'), 0, 'as somebody else');
$pg->rows('DROP TRIGGER linger ON referral.person');

# a referrer who is erased while his code is used

$pg->rows('CREATE TRIGGER linger AFTER INSERT ON referral.referral'
          . ' FOR EACH STATEMENT EXECUTE FUNCTION public.linger()');
@r = $s->at_once(
    "SELECT referral.referral_register($single, '{\"code\": \"VIC\","
        . ' "external_id": "last"}\')',
    "SELECT pg_sleep(0.1); SELECT referral.customer_erase(1, 'vic', NULL,"
        . " 'test')");
is_deeply(ends(@r), { ok => 2 }, 'a code used while its referrer is erased')
    or diag(map { $_->{error} } @r);
is($pg->value("SELECT status || ' ' || uses FROM referral.code"
              . " WHERE code = 'VIC'"), 'disabled 2', 'is used and disabled');
$pg->rows('DROP TRIGGER linger ON referral.referral');

# Two referrals of one person, found by what the other one lacks.  Their common
# hashes were entered in two orders, and are read as they were entered.

my @same = map {
    $pg->value("SELECT referral.referral_create($single, '{\"code\": \"UNA\"}',"
               . " '{\"email\": \"same.$_\@example.com\"}')")
} 0, 1;

for my $n (0, 1) {
    $pg->rows('INSERT INTO referral.referee_identity (organisation_id,'
        . " program_id, referral_id, kind, hash) SELECT 1, $single,"
        . " $same[$n], 'phone', decode(lpad(v::text, 64, '0'), 'hex')"
        . ' FROM generate_series(1, 2) v ORDER BY v '
        . ('ASC', 'DESC')[$n]);
}

$pg->rows('CREATE TRIGGER linger BEFORE UPDATE ON referral.referee_identity'
          . ' FOR EACH ROW EXECUTE FUNCTION public.linger_row()');
@r = $s->at_once(map {
    'SET enable_indexscan = off; SET enable_bitmapscan = off; SELECT'
    . " referral.referral_register($single, '{}',"
    . " '{\"email\": \"same.$_\@example.com\"}')"
} 0, 1);
is_deeply(ends(@r), { ok => 1, RF096 => 1 }, 'one of two is credited')
    or diag(map { $_->{error} } @r);
$pg->rows('DROP TRIGGER linger ON referral.referee_identity');

# housekeeping from everywhere

@r = $s->at_once(map {
    q(SELECT referral.referral_expire(now() + interval '91 days', 7))
} 1 .. 20);
is_deeply(ends(@r), { ok => 20 }, 'expiry from twenty sessions');
is($pg->value("SELECT count(*) FROM referral.referral_step"
              . " WHERE to_status = 'expired'"),
   $pg->value("SELECT count(*) FROM referral.referral"
              . " WHERE status = 'expired'"), 'each expires once');

sane('races');


# The storm: few referrers, codes and referees, and everything happens to
# them.  Errors of ours are answers, any other ends the session.

my $seconds = $ENV{REFERRAL_STORM} || 10;
my $seed = $ENV{REFERRAL_SEED} || int(rand(1e6));
diag("storm of $seconds s, REFERRAL_SEED=$seed");

my $storm = program('storm', '{"attribution": "linear"}',
    '[{"kind": "cash", "rate_bp": 1000, "times": null},'
    . ' {"kind": "credit", "slot": "sign-up", "trigger": "registration",'
    . ' "amount": 300},'
    . ' {"kind": "credit", "slot": "welcome", "beneficiary": "referee",'
    . ' "trigger": "registration", "amount": 500, "valid_for": "1 day"}]');
code($storm, "storm$_", $_ % 2 ? '{"max_uses": 20}' : '{}') for 1 .. 6;

# any row's id, any of the last few, or none
sub some {
    my ($table, $where) = @_;

    return "(SELECT id FROM (SELECT id FROM referral.$table"
           . ' WHERE ' . ($where // 'true') . ' ORDER BY id DESC LIMIT 20) x'
           . ' ORDER BY random() LIMIT 1)';
}

my $referral = some('referral', "program_id = $storm");
my $referrer = some('referrer', "external_id LIKE 'storm%'");
my $code = "'STORM' || (1 + floor(random() * 6))::int";
my $referee = "'s' || floor(random() * 40)::int";
my $mail = qq(jsonb_build_object('email', $referee || '\@example.com'));

my @steps = (
    (qq(referral.referral_create($storm, jsonb_build_object('code', $code),
        $mail))) x 3,
    (qq(referral.referral_register($storm, jsonb_build_object('code', $code,
        'external_id', $referee), $mail))) x 4,
    (qq(referral.conversion_record(1, jsonb_build_object('program_id', $storm,
        'order_ref', 'o' || floor(random() * 300)::int, 'external_id',
        $referee, 'code', $code, 'amount', 5000)))) x 6,
    (qq(referral.refund_record(1, jsonb_build_object('order_ref', 'o'
        || floor(random() * 300)::int, 'refund_ref', 'f'
        || floor(random() * 300)::int, 'amount', 1500)))) x 2,
    (qq(referral.payout_request($referrer))) x 2,
    qq(referral.payout_request($referrer, '{"amount": 300}')),
    qq(referral.payout_approve(${\ some('payout', "status = 'requested'") })),
    (qq(referral.payout_pay(${\ some('payout', "status = 'approved'") },
        'TX'))) x 2,
    qq(referral.payout_reject(${\ some('payout') }, 'no')),
    qq(referral.redeem(1, 'r' || random(), jsonb_build_object('external_id',
       $referee, 'amount', 50))),
    qq(referral.redeem(1, 'r' || random(), jsonb_build_object('referrer_id',
       $referrer, 'amount', 50))),
    qq(referral.redemption_reverse(${\ some('redemption') })),
    qq(referral.reward_transfer($referrer, $referrer, jsonb_build_object(
       'idempotency_key', random()::text, 'amount', 100))),
    qq(referral.person_erase((SELECT person_id FROM referral.referral
       WHERE id = $referral), 'storm')),
    qq(referral.customer_erase(1, $referee, $mail, 'storm')),
    qq(referral.attribution_override($referral, 'storm')),
    qq(referral.referral_cancel($referral, 'storm')),
    qq(referral.referral_reject($referral, 'storm')),
    qq((SELECT count(*) FROM referral.bulk('referral_accept', ARRAY(
       SELECT id FROM referral.referral WHERE program_id = $storm
       ORDER BY random() LIMIT 5)))),
    qq((SELECT count(*) FROM referral.bulk('referral_cancel', ARRAY(
       SELECT id FROM referral.referral WHERE program_id = $storm
       ORDER BY random() LIMIT 3)))),
    qq((SELECT count(*) FROM referral.bulk('payout_approve', ARRAY(
       SELECT id FROM referral.payout ORDER BY random() LIMIT 3)))),
    qq(referral.referral_expire(now() + random() * interval '91 days', 3)),
    qq(referral.reward_expire(now() + random() * interval '2 days', 3)),
    qq(referral.reward_release(now())),
    qq(referral.payout_scheduled(now() + interval '40 days', 3)),
);

$pg->rows("SELECT referral.payout_policy_set(1, 'USD',"
          . ' \'{"every": "week"}\')');

my $cases = '';

for my $n (0 .. $#steps) {
    $cases .= "WHEN $n THEN PERFORM $steps[$n];\n";
}

@r = $s->at_once(map { <<"SQL" } 1 .. 10);
DO \$storm\$
DECLARE
    until  timestamptz := clock_timestamp() + interval '$seconds s';
    ours   int := 0;
    done   int := 0;
BEGIN
    PERFORM setseed(($seed + $_) % 1000 / 1000.0);

    WHILE clock_timestamp() < until LOOP
        BEGIN
            CASE floor(random() * ${\ scalar @steps })::int
            $cases
            END CASE;
            done := done + 1;
        EXCEPTION WHEN OTHERS THEN
            IF SQLSTATE NOT LIKE 'RF%' THEN
                RAISE;
            END IF;

            ours := ours + 1;
        END;

        COMMIT;
    END LOOP;

    RAISE WARNING 'done %, refused %', done, ours;
END
\$storm\$
SQL

is_deeply(ends(@r), { ok => 10 }, 'ten sessions, everything at once')
    or diag(map { substr($_->{error}, 0, 1500) } grep { $_->{status} } @r);
unlike($pg->log(), qr/deadlock detected/, 'no deadlock')
    or diag($pg->log() =~ /(deadlock detected.{0,3000})/s);

my $done = 0;

for my $r (@r) {
    $done += $1 if $r->{error} =~ /done (\d+)/;
}

diag("$done steps done");
cmp_ok($done, '>', 10 * $seconds, 'that did something');
cmp_ok($pg->value('SELECT count(DISTINCT to_status)'
                  . ' FROM referral.referral_step s JOIN referral.referral r'
                  . " ON r.id = s.referral_id WHERE program_id = $storm"),
       '>=', 7, 'of every kind');
cmp_ok($pg->value('SELECT count(*) FROM referral.audit'
                  . " WHERE action = 'erase' AND reason = 'storm'"), '>', 0,
       'and erased somebody');
sane('storm');

$t->done();
