#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Records that are strange: text that is none, times that can not be, garbage,
# rows that Postgres refuses.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(time);
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $journal = $t->dir() . '/journal';

mkdir($journal) or die;

sub journal_write { $t->journal_write($journal, @_) }

sub cursor_is {
    my ($expected, $name) = @_;

    my $total = $expected->[0];
    my $sql = 'SELECT sum(seq), sum(rows), sum(quarantined), sum(dead),
               sum(gap) FROM referral.ingest_cursor';

    $t->wait_for(sub { (($pg->rows($sql))[0][0] // 0) >= $total }, 15);

    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is_deeply(($pg->rows($sql))[0], $expected, $name);
}

sub value { $pg->value(@_) }

# text

journal_write('--ua', 'a\xff\xfeb\x00c\xc3', '--city', '\xed\xa0\x80x',
              '--arg', '"\\\x01\x02\xc3\xa9\xf4\x90\x80\x80 {},',
              '--path', "/\\N\t\\.");
journal_write('--ua', '\xf0\x9f\x98\x80' x 300, '--ip', '2001:db8:1:2::3',
              '--code', 'SIX', '--destination', 'https://x/?' . 'y' x 2000);

# a superuser is told more of refused rows than the worker's own role

my $w = $t->worker(postgres => $pg->conninfo());

cursor_is([ 2, 2, 0, 0, 0 ], 'both records are rows');

my $bad = "\x{fffd}";
is(value("SELECT user_agent FROM referral.interaction
          WHERE code = 'SUMMER25'"), "a$bad${bad}b${bad}c$bad",
   'what is no UTF-8, and NUL, is replaced');
like(value("SELECT city FROM referral.interaction WHERE code = 'SUMMER25'"),
     qr/^$bad+x$/, 'surrogates are none');
is(value("SELECT path FROM referral.interaction WHERE code = 'SUMMER25'"),
   "/\\N\t\\.", 'nothing is special in a path');
like(value("SELECT args ->> 'utm_source' FROM referral.interaction
            WHERE code = 'SUMMER25'"), qr/^"\\\x01\x02\xe9$bad+ \{\},$/,
     'JSON is escaped');
is(value("SELECT length(user_agent) FROM referral.interaction
          WHERE code = 'SIX'"), 128, 'long text is cut at a character');
is(value("SELECT text(ip) FROM referral.interaction WHERE code = 'SIX'"),
   '2001:db8:1:2::3/128', 'IPv6');
is(value("SELECT asn FROM referral.interaction WHERE code = 'SIX'"), undef,
   'what is not known is null');

# times

my $now = int(time() * 1000);
my $day = 86400_000;

journal_write('--code', 'SOON', '--at', $now + 240_000);
journal_write('--code', 'LATE', '--at', $now - 89 * $day);
journal_write('--code', 'FUTURE', '--at', $now + 2 * $day, '--count', 10);
journal_write('--code', 'PAST', '--at', $now - 100 * $day, '--count', 3);
journal_write('--code', 'NEVER', '--at', 2 ** 48 - 2);
journal_write('--code', 'EPOCH', '--at', 1);

cursor_is([ 19, 4, 15, 0, 0 ], 'implausible times go to quarantine');
is(value("SELECT count(*) FROM referral.interaction
          WHERE code IN ('SOON', 'LATE')"), 2, 'plausible ones do not');
is_deeply([ $pg->rows("SELECT reason, count(*) FROM referral.quarantine
                       GROUP BY reason ORDER BY reason") ],
          [ [ 'future', 11 ], [ 'past', 4 ] ], 'with the reason');
is(value("SELECT count(*) FROM referral.counters
          WHERE code IN ('FUTURE', 'PAST')"), 0, 'not counted');
like($w->output(), qr/level=warn event=quarantine/, 'and logged');

is(value('SELECT referral.requeue()'), 0, 'nothing plausible to requeue');
is(value("SELECT referral.requeue(stream, NULL, NULL, true)
          FROM referral.quarantine WHERE data ->> 'code' = 'FUTURE'
          LIMIT 1"), 10, 'by force');
is(value("SELECT sum(n) FROM referral.counters WHERE code = 'FUTURE'"), 10,
   'counted now');
is(value("SELECT count(*) FROM referral.interaction WHERE code = 'FUTURE'
          AND host = 'example.com' AND destination <> ''
          AND args ->> 'utm_source' IS NOT NULL
              IS NOT DISTINCT FROM (SELECT args ->> 'utm_source' IS NOT NULL
                  FROM referral.interaction WHERE code = 'SOON')"),
   10, 'rows as they would have been');
cursor_is([ 19, 14, 5, 0, 0 ], 'the cursor follows');

# the record in quarantine is the one of the journal

is(value("SELECT count(*) FROM referral.quarantine
          WHERE get_byte(record, 0) = 1 AND position('PAST'::bytea IN record)
                > 0"), 3, 'the raw record is kept');

# garbage

journal_write('--code', 'GARBAGE', '--count', 100, '--garbage', 10);
cursor_is([ 119, 104, 5, 10, 0 ], 'what is no record is a dead letter');
is(value("SELECT count(*) FROM referral.dead_letter
          WHERE reason = 'undecodable' AND detail <> ''
          AND length(record) > 0"), 10, 'with reason and bytes');
like($w->output(), qr/level=error event=dead-letter/, 'logged');

# rows that Postgres refuses: two of 3,000, found by halving in the second and
# in the last of eight batches, of which all but two are read ahead

$pg->rows("ALTER TABLE referral.interaction ADD CONSTRAINT poison
           CHECK (code NOT IN ('P-777', 'P-2999'))");
$w->stop();
$w->configure(%{ $w->{conf} }, batch_rows => 400);
journal_write('--code', 'P', '--codes', 3000, '--count', 3000);
$w->start();
cursor_is([ 3119, 3102, 5, 12, 0 ], 'only the bad ones are dead letters');
is_deeply([ $pg->rows("SELECT seq, reason FROM referral.dead_letter
                       WHERE reason ~ '^2' ORDER BY seq") ],
          [ [ 778, '23514' ], [ 3000, '23514' ] ], 'these two');
is(value("SELECT count(*) FROM referral.interaction WHERE code LIKE 'P-%'"),
   2998, 'the others are there');
is(value("SELECT sum(n) FROM referral.counters WHERE code LIKE 'P-%'"), 2998,
   'and counted, without them');
like($w->output(), qr/event=dead-letter stream=\S+ seq=778 reason=23514 text=/, 'logged');

# an id that is there already is loud

$w->stop();
my ($id) = journal_write('--code', 'TWICE', '--count', 5, '--ids')
           =~ /^3 (\S+)$/m;
$pg->rows("INSERT INTO referral.interaction (id, occurred_at, stream, seq,
           type) VALUES ('$id', referral.uuid_time('$id'), 0, 0, 'click')");
$w->start();
cursor_is([ 3124, 3106, 5, 13, 0 ], 'a repeated id is a dead letter');
is(value("SELECT reason FROM referral.dead_letter WHERE seq = 3"), '23505',
   'with its SQLSTATE');

# everything refused

$pg->rows("ALTER TABLE referral.interaction ADD CONSTRAINT nothing
           CHECK (code NOT LIKE 'ALL%')");
journal_write('--code', 'ALL', '--count', 200);
cursor_is([ 3324, 3106, 5, 213, 0 ], 'a batch of which nothing is taken');

unlike($w->output(), qr/Failing row|example\.com/, 'without its contents');

my $lines = () = $w->output() =~ /event=dead-letter /g;
cmp_ok($lines, '<', 40, 'does not flood the log');
like($w->output(), qr/event=more .*records=19\d /, 'which says how many more');

# words and types of one's own

journal_write('--code', 'T', '--type', 'share', '--verdict', 'unverified',
              '--via', 'scan');
cursor_is([ 3325, 3107, 5, 213, 0 ], 'another type');
is_deeply([ $pg->rows("SELECT type, verdict, via FROM referral.interaction
                       WHERE code = 'T'") ],
          [ [ 'share', 'unverified', 'scan' ] ], 'with its words');
is(value("SELECT count(*) FROM referral.click WHERE code = 'T'"), 0,
   'is no click');

$t->done();
