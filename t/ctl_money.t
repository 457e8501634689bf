#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# referralctl referral, conversion, rule, reward, payout, statement, ledger,
# report, person, visitor and webhook: one life of a referral, and what is
# refused on its way.

use strict;
use warnings;

use Test::More;
use JSON::PP;
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $json = JSON::PP->new()->utf8()->allow_nonref();

delete @ENV{qw(REFERRAL_REDIS REFERRAL_ORG REFERRAL_ACTOR PGOPTIONS)};
$ENV{REFERRAL_DB} = $pg->conninfo();


sub ctl { return $t->referralctl(@_) }


sub doc {
    my (@args) = @_;

    my $r = ctl(@args, '--json');
    is($r->{status}, 0, "@args") or diag($r->{output});

    return eval { $json->decode($r->{output}) } // diag($r->{output});
}


sub refused {
    my ($says, @args) = @_;

    my $r = ctl(@args);
    is($r->{status}, 1, "@args is refused");
    like($r->{output}, $says, 'with the reason') or diag($r->{output});
    unlike($r->{output}, qr/SQLSTATE|CONTEXT/, 'as one sentence');
}


sub usage {
    my ($says, @args) = @_;

    my $r = ctl(@args);
    is($r->{status}, 2, "@args is wrong");
    like($r->{output}, $says, 'says why') or diag($r->{output});
}


doc(qw(org create acme currency=EUR));
doc(qw(program create acme summer landing_url=https://example.com/));
doc(qw(program enable acme/summer));
doc(qw(referrer create acme customer external_id=4711));
doc(qw(code create acme/summer JUAN referrer=4711));

#
# rules
#

my $rules = '[{"kind": "cash", "rate_bp": 1000, "approval": "manual"},'
            . ' {"kind": "credit", "amount": 500, "beneficiary": "referee",'
            . '  "trigger": "registration"}]';

my $set = doc(qw(rule set acme/summer), $rules, 'cap=500.00 EUR');
is($set->{version}, 1, 'a version of the rules');
is($set->{rules}, 2, 'two of them');

$t->write_file('rules.json', $rules);
my $ctl = $t->build() . '/referralctl';
my $dir = $t->dir();
my $out = qx('$ctl' rule set acme/summer - note=again --json < '$dir/rules.json');
is($json->decode($out)->{version}, 2, 'from standard input');

my $list = doc(qw(rule list acme/summer));
is_deeply([ map { $_->{version} } @$list ], [ 2, 2, 1, 1 ], 'list');
is($list->[-1]{cap}, 50000, 'in minor units');
is($list->[0]{current}, JSON::PP::true, 'the newest are current');
refused(qr/\(RF\d+\)/, qw(rule set acme/summer), '[{"kind": "gold"}]');
usage(qr/RULES: this is no JSON/, qw(rule set acme/summer), '[{');

#
# a referral
#

my $r = doc(qw(referral create code=juan email=eva@example.com),
            'value=100.5 EUR', 'source=email');
is($r->{status}, 'pending', 'a referral');
is($r->{value}, 10050, 'worth 100.50');
is($r->{code}, 'JUAN', 'by a code');
is($r->{referrer}, '4711', 'of a referrer');
unlike($json->encode($r), qr/eva/, 'nothing personal');
my $id = $r->{id};

is(doc('referral', 'contact', $id)->{email}, 'eva@example.com',
   'which is another command');
is(doc('referral', 'accept', $id)->{status}, 'accepted', 'accept');
like(ctl('referral', 'list')->{output},
     qr/^ID +STATUS +CREDITED .*\n +$id +accepted /, 'a table');

my $other = doc(qw(referral create program=summer referrer=4711),
                'email=bob@example.com')->{id};
is(doc('referral', 'reject', $other, 'no = no')->{steps}[-1]{reason},
   'no = no', 'reject, with the reason');
is(scalar(@{ doc(qw(referral list status=rejected)) }), 1, 'list by status');
is(scalar(@{ doc(qw(referral list code=juan referrer=4711)) }), 1,
   'by code and referrer');
is(scalar(@{ doc(qw(referral list since=2099-01-01)) }), 0, 'by time');
refused(qr/\(RF\d+\)/, 'referral', 'accept', $other);
refused(qr/nothing to show/, qw(referral show 999));
usage(qr/REFERRAL: "x" is not a number/, qw(referral show x));
usage(qr/value: 5\.00 of what\?/, qw(referral create code=juan value=5.00));
usage(qr/click_id: "7" is no id/, qw(referral create click_id=7));
refused(qr/EUR has 2 digits after the point, not 3/,
        qw(referral create code=juan), 'value=5.001 EUR');
refused(qr/there is no unit "XXX"/, qw(referral create code=juan),
        'value=5 XXX');

my $answer = doc(qw(referral register code=juan external_id=eva),
                 'email=eva@example.com');
is($answer->{outcome}, 'registered', 'register');
is($answer->{referral_id}, $id, 'the same referral');
is_deeply(doc(qw(referral register code=juan external_id=eva),
              'email=eva@example.com')->{referral_id}, $id, 'again, the same');
refused(qr/\(RF\d+\)/, 'referral', 'override', $other, 'why not');

#
# money
#

$answer = doc(qw(conversion add acme order_ref=A1 external_id=eva),
              'amount=49.90 EUR');
is($answer->{outcome}, 'credited', 'conversion add');
is_deeply([ map { $_->{amount} } @{ $answer->{rewards} } ], [ 499 ],
          'earns ten per cent');
is(doc(qw(conversion add acme order_ref=A1 external_id=eva),
       'amount=49.90 EUR')->{conversion_id}, $answer->{conversion_id}, 'once');

my $un = ctl(qw(conversion add acme order_ref=A2 external_id=nobody
                amount=100));
is($un->{status}, 1, 'nobody\'s order');
like($un->{output}, qr/outcome +unattributed/, 'is unattributed');
refused(qr/\(RF068\)/, qw(conversion add acme order_ref=A1 external_id=eva),
        'amount=50.00 EUR');

is(doc(qw(conversion list acme program=summer))->[0]{amount_text},
   '49.90 EUR', 'list');

my ($reward) = grep { $_->{beneficiary} eq 'referrer' }
               @{ doc('reward', 'list', 'acme', "referral=$id") };
is($reward->{status}, 'pending', 'a reward');
is(doc('reward', 'hold', $reward->{id}, 'is looked at')->{status}, 'held',
   'hold');
is(doc('reward', 'approve', $reward->{id})->{status}, 'approved', 'approve');
is(doc('reward', 'show', $reward->{id})->{available}, 499, 'show');
refused(qr/\(RF\d+\)/, 'reward', 'reject', $reward->{id}, 'too late');

my $payout = doc(qw(payout request acme/4711), 'amount=4.00 EUR');
is($payout->{amount}, 400, 'a payout of a part');
is(doc('payout', 'reject', $payout->{id}, 'closed')->{status}, 'rejected',
   'reject');
refused(qr/\(RF\d+\)/, qw(payout request 4711), 'amount=5.00 EUR');
$payout = doc(qw(payout request 4711 method=check))->{id};
is(doc('payout', 'approve', $payout)->{status}, 'approved', 'approve');
is(doc('payout', 'pay', $payout, 'reference=R 1')->{reference}, 'R 1', 'pay');
refused(qr/\(RF\d+\)/, 'payout', 'cancel', $payout);
is(doc('payout', 'show', $payout)->{method}, 'check', 'show');
is(scalar(@{ doc(qw(payout list acme status=paid)) }), 1, 'list');
is(doc('referral', 'show', $id)->{status}, 'paid', 'the referral is paid');

refused(qr/of an order in EUR/, qw(conversion refund acme A1 R1),
        'amount=10.00 USD');
is(doc(qw(conversion refund acme A1 R1), 'amount=10.00 EUR')->{left}, 3990,
   'refund');
refused(qr/\(RF072\)/, qw(conversion refund acme A1 R2), 'amount=40.00 EUR');
refused(qr/\(RF\d+\)/, qw(conversion refund acme NOPE R3));

my ($payable) = grep { $_->{kind} eq 'payable' }
                @{ doc(qw(ledger balance acme referrer=4711)) };
is($payable->{balance_text}, '-1.00 EUR', 'what was paid too much is owed');
my $sum = 0;
$sum += $_->{amount} for @{ doc(qw(ledger list acme)) };
is($sum, 0, 'entries add up to nothing');
is_deeply(doc(qw(ledger check)), [], 'ledger check');
like(ctl(qw(ledger check))->{output}, qr/^no problems$/, 'in words');

my @lines = @{ doc(qw(statement acme/4711)) };
is((grep { $_->{account} eq 'payable' && $_->{line} eq 'closing' } @lines)[0]
   {balance}, -100, 'a statement');
is(scalar(grep { $_->{line} eq 'movement' }
          @{ doc(qw(statement 4711 from=2001-01-01 until=2001-01-31)) }), 0,
   'of an empty month');
usage(qr/from: "2026" is no day/, qw(statement 4711 from=2026));

# a ledger that does not add up is said

my $wrong = 'ALTER TABLE referral.entry DISABLE TRIGGER ALL; UPDATE'
            . ' referral.entry SET amount = amount %s 1 WHERE transfer_id = 1'
            . ' AND seq = 1; ALTER TABLE referral.entry ENABLE TRIGGER ALL;'
            . ' SELECT 1';

$pg->value(sprintf($wrong, '+'));
my $bad = ctl(qw(ledger check));
is($bad->{status}, 1, 'a broken ledger');
like($bad->{output}, qr/^PROBLEM +OBJECT/, 'is told');
cmp_ok(scalar(@{ $json->decode(ctl(qw(ledger check --json))->{output}) }),
       '>', 0, 'as JSON, too');
$pg->value(sprintf($wrong, '-'));
is(ctl(qw(ledger check))->{status}, 0, 'and mended');

#
# reports
#

$pg->value('SELECT count(*) FROM referral.housekeeping()');

for (qw(figures funnel trend leaderboard time cohorts value retention quality))
{
    my $doc = doc('report', $_, 'acme/summer');
    ok(ref($doc), "report $_");
    is(ctl('report', $_, 'acme/summer')->{status}, 0, 'in words');
}

is(doc(qw(report breakdown acme/summer source)) ? 1 : 0, 1, 'breakdown');
ok(exists doc(qw(report dashboard acme/summer))->{funnel}, 'dashboard');
ok(ref(doc(qw(report partner 4711))), 'partner');
is(doc(qw(report figures acme/summer))->{revenue}, 4990, 'revenue');
refused(qr/\(RF\d+\)/, qw(report breakdown acme/summer moon));
refused(qr/\(RF\d+\)/, qw(report trend acme/summer step=moon));

#
# persons
#

my $all = doc(qw(person export acme email=eva@example.com), 'reason=asked');
like($json->encode($all), qr/eva\@example\.com/, 'export');
refused(qr/nobody is asked for \(RF125\)/, qw(person export acme));
usage(qr/person erase needs: REASON/, qw(person erase acme));
doc(qw(person erase acme asked email=eva@example.com));
is($pg->value("SELECT count(*) FROM referral.person WHERE email LIKE 'eva%'"),
   0, 'erase');

my $uuid = '01a1f8be-de27-7bff-8a65-3e00f9ea02aa';
ok(defined doc('visitor', 'export', $uuid), 'visitor export');
is(doc('visitor', 'erase', $uuid, 'asked')->{interactions}, 0,
   'visitor erase');
usage(qr/visitor erase needs: REASON/, 'visitor', 'erase', $uuid);

#
# webhooks
#

my $hook = doc(qw(webhook add acme https://example.com/hook),
               'types=payout.paid,reward.approved');
like($hook->{secret}, qr/^whsec_/, 'a webhook and its secret');
my ($w) = @{ doc(qw(webhook list acme)) };
is_deeply($w->{types}, [ 'payout.paid', 'reward.approved' ], 'list');
ok(!exists $w->{secret}, 'the secret is not shown again');
is(doc('webhook', 'update', $w->{id}, 'description=crm')->{description},
   'crm', 'update');
ok(doc('webhook', 'test', $w->{id})->{event}, 'test');
is(doc('webhook', 'deliveries', $w->{id})->[0]{type}, 'webhook.test',
   'deliveries');
my $d = doc('webhook', 'deliveries', $w->{id}, 'status=pending')->[0]{id};
is(doc('webhook', 'redeliver', $w->{id}, "delivery=$d")->{deliveries}, 1,
   'redeliver one');
is(doc('webhook', 'redeliver', $w->{id})->{deliveries}, 0, 'the dead ones');
is(doc('webhook', 'disable', $w->{id}, 'moves')->{status}, 'disabled',
   'disable');
is(doc('webhook', 'enable', $w->{id})->{status}, 'active', 'enable');
isnt(doc('webhook', 'rotate', $w->{id}, 'overlap=1 hour')->{secret},
     $hook->{secret}, 'rotate');
is(doc('webhook', 'show', $w->{id})->{secrets}, 2, 'both sign for a while');
refused(qr/\(RF\d+\)/, qw(webhook add acme ftp://x));
refused(qr/\(RF\d+\)/, qw(webhook add acme https://example.com types=moon));
refused(qr/\(RF\d+\)/, 'webhook', 'redeliver', $w->{id}, 'delivery=999');

$t->done();
