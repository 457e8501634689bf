#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Two workers, copied journals, and cursors that are not where they were left.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep);
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $journal = $t->dir() . '/journal';

mkdir($journal) or die;

sub journal_write {
    return ($t->journal_write($journal, @_) =~ /^stream ([0-9a-f]{32})/m)[0];
}

sub hold { $t->journal_hold($journal, @_) }

sub value { $pg->value(@_) }

sub rows_are {
    my ($n, $name) = @_;
    my $sql = 'SELECT count(*) FROM referral.interaction';
    $t->wait_for(sub { value($sql) >= $n }, 15);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is(value($sql), $n, $name);
}

# two on one journal: one waits

my $one = $t->worker(name => 'one');
ok($one->notified(qr/READY=1/), 'the first');
my $two = $t->worker(name => 'two');
ok($two->notified(qr/STATUS=waiting: another/), 'the second waits');
like($two->output(), qr/level=warn event=journal-taken .*another/,
     'and says for whom');

journal_write('--count', 100);
rows_are(100, 'one carries');
$one->kill9();
journal_write('--count', 100);
rows_are(200, 'the other takes over');
like($two->output(), qr/event=journal-open/, 'having the lock');
$two->stop();

# a worker is stopped in its sleep while a copy of the journal goes on

my $in = hold('--count', 100);
$one->start();
rows_are(300, 'a live stream');
$one->pause();
print $in "50\n";
$t->wait_for(sub { $t->read_file('hold.log') =~ /appended 150/ }, 5);

system('cp', '-a', $journal, $t->dir() . '/copy') == 0 or die;
my $three = $t->worker(name => 'three', journal => $t->dir() . '/copy');
rows_are(350, 'a worker with a copy of the journal is faster');
$one->resume();
ok($t->wait_for(sub { $one->output() =~ /event=cursor-moved/ }, 10),
   'the first finds the cursor moved');
print $in "10\n";
rows_are(360, 'and goes on from there');
is(value('SELECT count(DISTINCT (stream, seq)) FROM referral.interaction'),
   360, 'nothing twice');
is(value('SELECT sum(dead) + sum(gap) FROM referral.ingest_cursor'), 0,
   'nor refused by the primary key, which is only the second net');
unlike($one->output(), qr/stream-aside/, 'the records were the same');
$three->stop();

# one image started twice: the cursor's record is not ours

$one->stop();
$pg->rows(q{UPDATE referral.ingest_cursor SET last_id =
            '01a1f8b6-a71e-758c-b42e-85afb2e01677' WHERE seq = 160});
print $in "5\n";
$t->wait_for(sub { $t->read_file('hold.log') =~ /appended 165/ }, 5);
$one->start();
ok($t->wait_for(sub { $one->output() =~ /event=stream-aside/ }, 10),
   'a last record that is not ours');
like($one->output(), qr/level=error event=stream-aside .*started twice/,
     'is an alarm');
sleep(1);
is(value('SELECT count(*) FROM referral.interaction'), 360, 'nothing written');
my ($aside) = glob("$journal/*/aside");
like($aside ? $t->read_file($aside) : '', qr/started twice/,
     'the reason stands in the stream');
journal_write('--count', 7);
rows_are(367, 'other streams go on');
close($in);

# more in Postgres than in a live stream

$in = hold('--count', 20, '--code', 'LIVE');
rows_are(387, 'another live stream');
$one->stop();
$pg->rows('UPDATE referral.ingest_cursor SET seq = 70, rows = 70
           WHERE seq = 20');
$one->start();
ok($t->wait_for(sub { $one->output() =~ /more records than this live/ }, 10),
   'a cursor ahead of a live stream sets it aside');
close($in);

# after a power loss: final, shorter, and all of it known

my $stream = journal_write('--count', 40, '--code', 'POWER');
rows_are(427, 'a stream that ends');
ok(-d "$journal/$stream", 'and stays for its retention');
$one->stop();
$pg->rows('UPDATE referral.ingest_cursor SET seq = 50, rows = 50, last_id =
           NULL WHERE seq = 40');
$one->configure(%{ $one->{conf} }, retention => '0');
$one->start();
ok($t->wait_for(sub { $one->output() =~ /event=cursor-ahead/ }, 10),
   'a tail that was lost is said');
ok($t->wait_for(sub { !-d "$journal/$stream" }, 10),
   'and the stream is done with');
is(value('SELECT count(*) FROM referral.interaction'), 427, 'nothing twice');

# the same, but its last record is not known: a copy went on

$one->configure(%{ $one->{conf} }, retention => '1h');
$one->restart();
$stream = journal_write('--count', 30, '--code', 'COPY');
rows_are(457, 'a stream that ends');
$one->stop();
$pg->rows("DELETE FROM referral.interaction WHERE code = 'COPY' AND seq = 30");
$pg->rows('UPDATE referral.ingest_cursor SET seq = 50, rows = 50, last_id =
           NULL WHERE seq = 30');
$one->start();
ok($t->wait_for(sub { -e "$journal/$stream/aside" }, 10),
   'records that nobody has are kept');

# the last committed record is damaged here: the one before it tells

for my $twin (0, 1) {
    my $code = "HURT$twin";
    my $of = "WHERE code = '$code' AND seq";

    unlink($t->dir() . '/hold.log');
    $in = hold('--count', 20, '--code', $code);
    $t->wait_for(sub { (value("SELECT count(*) FROM referral.interaction $of"
                              . ' > 0') // 0) == 20 }, 10);
    $one->stop();
    damage(value("SELECT replace(id::text, '-', '')
                  FROM referral.interaction $of = 20"));
    $pg->rows("UPDATE referral.interaction SET id = overlay(id::text
               placing '00000000' from 29)::uuid $of = 19") if $twin;
    print $in "5\n";
    $t->wait_for(sub { $t->read_file('hold.log') =~ /appended 25/ }, 5);
    $one->start();
    my $rows = "SELECT count(*) FROM referral.interaction $of > 20";

    if ($twin) {
        ok($t->wait_for(sub { $one->output()
               =~ /event=stream-aside .*before it is not known/ }, 10),
           'a twin is known by the record before a damaged one');
        is(value($rows), 0, 'nothing written');

    } else {
        ok($t->wait_for(sub { value($rows) == 5 }, 10),
           'a damaged record that is committed does no harm');
    }

    close($in);
}

$t->done();


# flips a bit of the record that has this id

sub damage {
    my ($id) = @_;

    for my $file (glob("$journal/*/*.seg")) {
        my $at = index($t->read_file($file), pack('H*', $id));
        next if $at < 0;

        open(my $fh, '+<:raw', $file) or die "$file: $!";
        seek($fh, $at + 15, 0);
        read($fh, my $byte, 1);
        seek($fh, $at + 15, 0);
        print $fh $byte ^ "\x10";
        close($fh);
        return;
    }

    die "record $id is not there";
}
