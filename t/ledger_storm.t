#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Money under races: the same order, refund and payout sent by many sessions at
# once, and then a storm of everything on a few referrers and customers, in
# which nothing but the expected errors may come up, a deadlock least of all.
#
#     REFERRAL_STORM_SECONDS  how long (10)
#     REFERRAL_STORM_SEED     of the sessions' choices

use strict;
use warnings;

use Test::More;
use Referral::Test;

my $seconds = $ENV{REFERRAL_STORM_SECONDS} // 10;
my $seed = $ENV{REFERRAL_STORM_SEED} // time() % 1_000_000;

my $t = Referral::Test->new();
my $pg = $t->postgres(migrate => 0, conf => { max_connections => 80,
                                              deadlock_timeout => '200ms' });

diag("REFERRAL_STORM_SEED=$seed");

for my $file (sort glob($t->root() . '/sql/[0-9]*.sql')) {
    my $r = $t->run('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
                    $pg->conninfo(), '-f', $file);
    die "$file: $r->{output}" if $r->{status};
}

$pg->rows(<<'SQL');
SELECT referral.organisation_create('o', 'O');
SELECT referral.program_create(1, 'p', 'P',
           '{"landing_url": "https://example.com/"}');
SELECT referral.reward_rules_set(1, '[
    {"kind": "cash", "rate_bp": 1000, "times": null},
    {"kind": "cash", "amount": 700, "slot": "held", "hold": "10 days"},
    {"kind": "credit", "amount": 900, "slot": "credit",
     "valid_for": "20 days"},
    {"kind": "credit", "amount": 500, "beneficiary": "referee"},
    {"kind": "points", "amount": 5, "every": 3},
    {"kind": "points", "amount": 1, "trigger": "registration"}]',
    '{"cap": 5000, "approval_above": 900}');
SELECT referral.program_set_status(1, 'active');
SELECT referral.code_create(1, referral.referrer_create(1, 'customer',
           jsonb_build_object('external_id', 'r' || n)), 'C-' || n)
    FROM generate_series(1, 4) n;
SELECT referral.code_create(1, 1, 'LIMITED', '{"max_uses": 7}');
CREATE TABLE said (session int, what text, said text, n int);
SQL


# runs each of the statements in a session of its own; they wait for a lock
# until all are there, and what they say is returned

sub at_once {
    my (@sql) = @_;

    open(my $gate, '|-', 'psql', '-X', '-q', '-o', '/dev/null', '-d',
         $pg->conninfo()) or die "psql: $!";
    $gate->autoflush(1);
    print $gate "SELECT pg_advisory_lock(42);\n";
    gate('granted', 1);

    my @pipes = map {
        open(my $fh, '-|', 'psql', '-X', '-q', '-A', '-t', '-v',
             'VERBOSITY=sqlstate', '-d', $pg->conninfo(),
             '-c', '\o /dev/null', '-c', 'SELECT pg_advisory_lock_shared(42)',
             '-c', '\o', '-c', "\\set ON_ERROR_STOP 0", '-c',
             "DO \$\$ BEGIN PERFORM set_config('test.said', (SELECT ($_)"
             . "::text), false); EXCEPTION WHEN OTHERS THEN PERFORM"
             . " set_config('test.said', SQLSTATE, false); END \$\$",
             '-c', "SELECT current_setting('test.said')")
            or die "psql: $!";
        $fh
    } @sql;

    gate('NOT granted', scalar(@sql));
    close($gate);

    return map { my $line = join('', readline($_)); close($_);
                 chomp($line); $line } @pipes;
}


sub gate {
    my ($state, $n) = @_;

    $t->wait_for(sub {
        $pg->value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                   . " AND objid = 42 AND $state") >= $n
    }, 60) or die "sessions do not come to their gate\n";
}


sub distinct { my %n; $n{$_}++ for @_; return \%n }


# the same order, 50 times

my $order = "referral.conversion_record(1, '" . '{"order_ref": "same",'
            . ' "external_id": "same", "code": "C-1", "amount": 5000}' . "')";
my $said = distinct(at_once(($order) x 50));

is(scalar(keys %$said), 1, 'fifty times the same order: one answer');
like((keys %$said)[0], qr/"outcome": "credited"/, 'which is good');
is($pg->value('SELECT count(*) FROM referral.conversion'), 1,
   'one conversion');
is($pg->value("SELECT count(*) FROM referral.reward WHERE slot = 'held'"), 1,
   'rewarded once');


# one customer, many orders: the cap of his referral holds

at_once(map {; "referral.conversion_record(1, '" . qq({"order_ref": "cap$_",)
              . ' "external_id": "same", "code": "C-1", "amount": 20000}'
              . "')" } 1 .. 20);
is($pg->value("SELECT sum(amount - reversed) FROM referral.reward"
              . " WHERE unit = 'USD' AND referral_id = 1"), 5000,
   'twenty orders of one customer: the cap is reached, and not passed');


# twenty customers and seven uses

my @limited = at_once(map {; "referral.conversion_record(1, '"
              . qq({"order_ref": "limited$_", "external_id": "l$_",)
              . ' "code": "LIMITED", "amount": 100}' . "') ->> 'outcome'" }
              1 .. 20);
is_deeply(distinct(@limited), { credited => 7, unattributed => 13 },
          'a code with seven uses');
is_deeply([ map { $_->[0] } $pg->rows("SELECT nth FROM referral.conversion"
            . " WHERE order_ref LIKE 'limited%' ORDER BY 1") ],
          [ 2 .. 8 ], 'the referrals are numbered without gaps');


# refunds: the sum is never above the amount

my @refunds = at_once(map {; "referral.refund_record(1, '"
              . qq({"order_ref": "same", "refund_ref": "f$_",)
              . ' "amount": 1200}' . "') ->> 'amount'" } 1 .. 12);
is_deeply(distinct(@refunds), { 1200 => 4, RF072 => 8 },
          'twelve refunds of 12.00, and 50.00 to refund');
my @again = at_once(("referral.refund_record(1, '" . '{"order_ref": "same",'
                     . ' "refund_ref": "f", "amount": 200}' . "')"
                     . " ->> 'refund_id'") x 20);
is(scalar(keys %{ distinct(@again) }), 1,
   'twenty times the same refund: one answer');


# a balance is paid once

my @paid = at_once(("referral.payout_request(1, '{}') > 0") x 20);
is(scalar(grep { $_ eq 'true' } @paid), 1, 'twenty ask for the whole balance')
    or diag(join(' ', @paid));
is($pg->value("SELECT count(*) FROM referral.balances WHERE balance < 0"
              . " AND kind IN ('payable', 'reserved')"), 0, 'of all there is');


# approvals and rejections of one reward

my $reward = $pg->value("SELECT min(id) FROM referral.reward WHERE status ="
                        . " 'pending'");
at_once((map {; "referral.reward_approve($reward)",
               "referral.reward_reject($reward, 'x')" } 1 .. 10),
        ("referral.reward_release(now() + interval '11 days')") x 5);
is($pg->value("SELECT count(*) FROM referral.transfer WHERE reward_id ="
              . " $reward AND kind IN ('approval', 'rejection')"), 1,
   'ten approve, ten reject, five release: one of it happens');
is_deeply([ $pg->rows('SELECT * FROM referral.ledger_check()') ], [],
          'the checker has nothing to say');


# the storm: each session goes on for its time with one step a transaction

$pg->rows(<<'SQL');
CREATE FUNCTION step(session int, n int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    r   int := 1 + random() * 3;
    c   text := 's' || (random() * 40)::int;
    o   text := 's' || (random() * 200)::int;
    w   bigint;
    p   bigint;
BEGIN
    SELECT id INTO w FROM referral.reward
        WHERE id > random() * (SELECT max(id) FROM referral.reward)
        ORDER BY id LIMIT 1;
    SELECT id INTO p FROM referral.payout
        WHERE id >= random() * (SELECT max(id) FROM referral.payout)
        ORDER BY id LIMIT 1;

    CASE (random() * 17)::int
    WHEN 0, 1, 2, 3, 4 THEN
        PERFORM referral.conversion_record(1, jsonb_build_object('order_ref',
                    o, 'external_id', 's' || right(o, 1) || length(o), 'code',
                    'C-' || (1 + length(o)), 'amount', 100 * length(o)));
        RETURN 'convert';
    WHEN 5 THEN
        PERFORM referral.referral_register(1, jsonb_build_object(
                    'external_id', c, 'code', 'C-' || r));
        RETURN 'register';
    WHEN 6, 7 THEN
        PERFORM referral.refund_record(1, jsonb_build_object('order_ref', o,
                    'refund_ref', session || '/' || n, 'amount',
                    1 + (random() * 200)::int));
        RETURN 'refund';
    WHEN 8 THEN
        PERFORM referral.reward_approve(w);
        RETURN 'approve';
    WHEN 9 THEN
        PERFORM referral.reward_cancel(w, 'storm');
        RETURN 'cancel';
    WHEN 10 THEN
        PERFORM referral.reward_release(now() + interval '11 days', 20);
        RETURN 'release';
    WHEN 11 THEN
        PERFORM referral.reward_expire(now() + interval '25 days', 20);
        RETURN 'expire';
    WHEN 12 THEN
        PERFORM referral.reward_expiring(now() + interval '25 days', 20);
        RETURN 'expiring';
    WHEN 13, 14 THEN
        PERFORM referral.payout_request(r, CASE WHEN random() < 0.5
                    THEN '{"amount": 50}' ELSE '{}' END::jsonb);
        RETURN 'request';
    WHEN 15 THEN
        PERFORM referral.payout_approve(p);
        PERFORM referral.payout_pay(p, 'storm');
        RETURN 'pay';
    WHEN 16 THEN
        PERFORM referral.payout_reject(p, 'storm');
        RETURN 'reject';
    ELSE
        PERFORM referral.redeem(1, session || '/' || n, jsonb_build_object(
                    'referrer_id', r, 'amount', 1 + (random() * 900)::int));
        RETURN 'redeem';
    END CASE;
END
$$;

CREATE PROCEDURE storm(session int, seed double precision, until timestamptz)
    LANGUAGE plpgsql AS $$
DECLARE
    n      int := 0;
    what   text;
    what_  text;
BEGIN
    PERFORM setseed(seed);

    WHILE clock_timestamp() < until LOOP
        n := n + 1;
        BEGIN
            what := step(session, n);
            what_ := 'ok';
        EXCEPTION WHEN OTHERS THEN
            what_ := SQLSTATE;
            what := CASE WHEN SQLSTATE LIKE 'RF%' THEN '' ELSE SQLERRM END;
        END;

        BEGIN
            SET CONSTRAINTS ALL IMMEDIATE;
        EXCEPTION WHEN OTHERS THEN
            what_ := 'constraint ' || SQLSTATE || SQLERRM;
        END;

        INSERT INTO said VALUES (session, what, what_, 1);
        COMMIT;
    END LOOP;
END
$$;
SQL

my $until = $pg->value("SELECT now() + interval '$seconds seconds'");
my @storm = map {
    open(my $fh, '-|', 'psql', '-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1',
         '-d', $pg->conninfo(), '-c', sprintf("CALL storm(%d, %f, '%s')", $_,
             (($seed * 31 + $_ * 7919) % 1_000_000) / 1_000_000, $until))
        or die "psql: $!";
    $fh
} 1 .. 10;

for my $fh (@storm) {
    my @lines = readline($fh);
    close($fh);
    is($?, 0, 'a session came through') or diag(@lines);
}

my @bad = $pg->rows("SELECT said, what, count(*) FROM said WHERE said <> 'ok'"
                    . " AND said !~ '^RF(066|071|072|073|090|091|107|108|109"
                    . "|110|111|112|113|070)\$' GROUP BY 1, 2");
is_deeply(\@bad, [], 'no deadlock, and nothing but what was to be expected');
is($pg->value("SELECT deadlocks FROM pg_stat_database WHERE datname ="
              . " 'referral'"), 0, 'the server counts none, either');

my $done = $pg->value("SELECT count(*) FROM said WHERE said = 'ok'");
cmp_ok($done, '>', 50 * $seconds / 10, "$done steps were done");
note(map { "$_->[0] $_->[1]: $_->[2]\n" }
     $pg->rows('SELECT what, said, count(*) FROM said GROUP BY 1, 2'
               . ' ORDER BY 1, 2'));
is_deeply([ $pg->rows('SELECT * FROM referral.ledger_check()') ], [],
          'the checker has nothing to say');

$t->done();
