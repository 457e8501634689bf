#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Journal space: what is freed and when, damage, cursors that go back; and
# the end of old partitions.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $n = 0;
my ($journal, $w);

sub value { $pg->value(@_) }

sub fresh {
    my (%conf) = @_;
    $w->stop() if $w;
    $journal = $t->dir() . '/journal' . ++$n;
    mkdir($journal) or die;
    $w = $t->worker(name => "worker$n", journal => $journal,
                    start_later => 1, %conf);
}

sub journal_write {
    return ($t->journal_write($journal, @_) =~ /^stream ([0-9a-f]{32})/m)[0];
}

sub hold { $t->journal_hold($journal, @_) }

sub segments { my @f = glob("$journal/*/0*.seg"); return @f }

sub rows { value("SELECT count(*) FROM referral.interaction
                  WHERE code = '$_[0]'") }

sub rows_are {
    my ($code, $expected, $name) = @_;
    $t->wait_for(sub { rows($code) >= $expected }, 15);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is(rows($code), $expected, $name);
}

# retention: not before, then all but what is being written

fresh(retention => '3s');
my $in = hold('--count', 2000, '--code', 'KEEP');
my $many = segments();
cmp_ok($many, '>', 5, 'several segments');
my $start = time();
$w->start();
rows_are('KEEP', 2000, 'all committed');
sleep(1.5);
is(segments(), $many, 'nothing is freed before retention');
ok($t->wait_for(sub { segments() == 1 }, 10), 'then all but the last');
cmp_ok(time() - $start, '>=', 3, 'not too early');
print $in "1\n";
rows_are('KEEP', 2001, 'the live stream goes on');
$w->restart();
print $in "1\n";
rows_are('KEEP', 2002, 'also after a restart');
is(value('SELECT sum(gap) FROM referral.ingest_cursor'), 0,
   'freed is no gap');
close($in);
ok($t->wait_for(sub { !glob("$journal/*/lock") }, 15),
   'a final stream is removed');
journal_write('--code', 'AFTER');
rows_are('AFTER', 1, 'a new one is seen');

# nothing goes while Postgres is away, whatever the retention

fresh(retention => '0');
$pg->stop();
journal_write('--count', 2000, '--code', 'AWAY');
$many = segments();
$w->start();
sleep(2.5);
is(segments(), $many, 'what is not committed stays');
$pg->start();
rows_are('AWAY', 2000, 'it is carried');
ok($t->wait_for(sub { segments() == 0 }, 10), 'and freed at once');

# space comes before retention

fresh(retention => '1h');
$in = hold('--size', 1048576, '--count', 400, '--code', 'SPACE');
$w->start();

for my $i (1 .. 12) {
    print $in "300\n";
    my $want = 400 + $i * 300;
    $t->wait_for(sub { rows('SPACE') >= $want }, 10);
    sleep(0.25);
}

rows_are('SPACE', 4000, 'more than the journal holds');
unlike($t->read_file('hold.log'), qr/full/i, 'was never full');
ok($t->wait_for(sub {
    my $bytes = 0;
    $bytes += -s $_ for segments();
    return $bytes <= 1048576 * 3 / 4;
}, 10), 'it stays below three quarters of its limit');
cmp_ok(scalar(segments()), '>', 3, 'and no more than needed is freed');
close($in);

# a cursor that goes back: a failover that lost the last commits

$w->stop();
fresh(retention => '1h');
journal_write('--count', 1000, '--code', 'BACK');
$w->start();
rows_are('BACK', 1000, 'committed');
my ($stream) = $pg->rows("SELECT stream FROM referral.interaction
                          WHERE code = 'BACK' LIMIT 1");
$pg->rows("BEGIN;
    DELETE FROM referral.interaction WHERE stream = $stream->[0] AND seq > 600;
    UPDATE referral.ingest_cursor SET seq = 600, rows = 600,
        last_id = (SELECT id FROM referral.interaction
                       WHERE stream = $stream->[0] AND seq = 600)
        WHERE stream = $stream->[0];
    COMMIT");
rows_are('BACK', 1000, 'they are sent again, without a restart');
like($w->output(), qr/level=warn event=cursor-back .*from=1000 to=600/,
     'and it is said');
$pg->rows("BEGIN;
    DELETE FROM referral.interaction WHERE stream = $stream->[0];
    DELETE FROM referral.ingest_cursor WHERE stream = $stream->[0];
    COMMIT");
rows_are('BACK', 1000, 'even when the cursor is gone');
is(value("SELECT count(DISTINCT seq) FROM referral.interaction
          WHERE code = 'BACK'"), 1000, 'each once');

# damage: a segment that is gone, bytes that changed

$w->stop();
fresh(retention => '1h');
my $id = journal_write('--count', 2000, '--code', 'HOLE');
my @files = sort(segments());
my ($first) = $files[2] =~ /0*(\d+)\.seg$/;
my ($next) = $files[3] =~ /0*(\d+)\.seg$/;
unlink($files[2]) or die;

open(my $fh, '+<', $files[4]) or die;
seek($fh, 30000, 0);
print $fh "\x55" x 64;
close($fh);

$w->start();
$t->wait_for(sub { (value('SELECT max(seq) FROM referral.ingest_cursor c
                           WHERE gap > 0') // 0) >= 2000 }, 15);

my ($cursor) = $pg->rows('SELECT stream, seq, rows, gap FROM
                          referral.ingest_cursor WHERE gap > 0');
is($cursor->[1], 2000, 'damage does not stop a stream');
is($cursor->[2], rows('HOLE'), 'what is left is there');
is($cursor->[2] + $cursor->[3], 2000, 'and the rest is counted');

my @gaps = $pg->rows("SELECT from_seq, to_seq, reason FROM referral.ingest_gap
                      WHERE stream = $cursor->[0] ORDER BY from_seq");
is_deeply([ @{ $gaps[0] }[0, 1] ], [ $first, $next - 1 ],
          'the lost segment');
is(scalar(@gaps), 2, 'and the changed bytes');
cmp_ok($gaps[1][1] - $gaps[1][0], '<', 3, 'which hide one or two records');
isnt($gaps[1][2], '', 'with a reason');
my $lines = () = $w->output() =~ /level=error event=gap/g;
is($lines, 2, 'both are logged');
is(value("SELECT count(*) FROM referral.interaction i
          JOIN referral.ingest_gap g ON i.stream = g.stream
          AND i.seq BETWEEN g.from_seq AND g.to_seq"), 0,
   'a gap has no rows');

# old partitions

$w->stop();
$pg->rows("SELECT referral.partition_ensure(d) FROM (VALUES
    (DATE '2022-01-01'), ('2022-01-02'), ('2022-01-03'),
    ((now() AT TIME ZONE 'UTC' - interval '12 months')::date)) v (d)");
$pg->rows('ALTER TABLE referral.interaction DETACH PARTITION
           referral.interaction_20220102');
$pg->rows("ALTER TABLE referral.interaction DETACH PARTITION
           referral.interaction_20220103");
$pg->rows("COMMENT ON TABLE referral.interaction_20220103 IS 'expired'");
$w->start();
ok($t->wait_for(sub { !value("SELECT to_regclass(
                              'referral.interaction_20220101')") }, 10),
   'an old partition goes');
ok($t->wait_for(sub { !value("SELECT to_regclass(
                              'referral.interaction_20220103')") }, 10),
   'one that we had detached, too');
is(value("SELECT to_regclass('referral.interaction_20220102')"),
   'referral.interaction_20220102', 'one that somebody detached stays');
is(value("SELECT count(*) FROM referral.interaction_partition
          WHERE day < now() - interval '11 months' AND attached"), 1,
   'and so does what is younger');
unlike($w->output(), qr/retention-failed/, 'without an error');

# a reader that holds the partition

$w->stop();
$pg->rows("SELECT referral.partition_ensure('2022-01-05')");
$w->configure(%{ $w->{conf} }, lock_timeout => '200ms');
my $reader = Referral::Test::Process->new(name => 'reader',
    log => $t->dir() . '/reader.log',
    argv => [ 'psql', '-X', '-d', $pg->conninfo(), '-c',
              'BEGIN; SELECT count(*) FROM referral.interaction;'
              . ' SELECT pg_sleep(4)' ]);
sleep(0.5);
$w->start();
ok($t->wait_for(sub { $w->output() =~ /event=retention-failed/ }, 10),
   'is waited for no longer than lock_timeout');
journal_write('--code', 'FLOW');
rows_are('FLOW', 1, 'and clicks flow');
ok($reader->alive(), 'while it reads');
$reader->wait(10);
$w->restart();
ok($t->wait_for(sub { !value("SELECT to_regclass(
                              'referral.interaction_20220105')") }, 10),
   'later it goes');

$t->done();
