#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The worker's main path: batches, restarts, kill -9 under load, signals.

use strict;
use warnings;

use IO::Select;
use IO::Socket::UNIX;
use Socket qw(SOCK_DGRAM);
use Test::More;
use Time::HiRes qw(sleep time);
use Referral::Test;
use Referral::Test::Process;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $journal = $t->dir() . '/journal';

mkdir($journal) or die;

sub journal_write { $t->journal_write($journal, @_) }

sub rows { $pg->value('SELECT count(*) FROM referral.interaction') }

sub rows_are {
    my ($n, $name) = @_;
    $t->wait_for(sub { rows() >= $n }, 20);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is(rows(), $n, $name);
}

# what must hold after everything

sub conserved {
    my ($name) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is($pg->value(q{
        SELECT count(*) FROM referral.ingest_cursor c
            WHERE rows <> (SELECT count(*) FROM referral.interaction i
                               WHERE i.stream = c.stream)
                  OR rows <> (SELECT count(DISTINCT seq)
                                  FROM referral.interaction i
                                  WHERE i.stream = c.stream) }),
       0, "$name: cursors say what is there");
    is($pg->value('SELECT sum(n) FROM referral.counters'), rows(),
       "$name: counters agree");
}

# more than two batches

journal_write('--count', 11000, '--codes', 3);

my $w = $t->worker();

like($w->notified(qr/READY=1/), qr/READY=1/, 'ready');
rows_are(11000, 'a journal that was there');
conserved('batches');

my ($cursor) = $pg->rows('SELECT seq, rows, edge, last_id =
    (SELECT id FROM referral.interaction WHERE seq = 11000)
    FROM referral.ingest_cursor');
is_deeply($cursor, [ 11000, 11000, 'test', 't' ], 'the cursor');
is($pg->value('SELECT count(*) FROM referral.counters'), 3,
   'one counter a code');
is($pg->value('SELECT count(*) FROM referral.interaction WHERE occurred_at <>
               referral.uuid_time(id)'), 0, 'occurred_at is in the id');
is($pg->value('SELECT count(*) FROM referral.interaction
               WHERE received_at < occurred_at - interval \'1 minute\''), 0,
   'received_at is set');
ok($t->wait_for(sub { $w->notified(qr/STATUS=idle/, 0.2) }, 5),
   'the status line');

# a stream that is being written: soon visible

my $hold = open(my $in, '|-', $t->build() . "/t/journal_write --journal"
                . " $journal --count 1 --code HELD --hold >/dev/null")
    or die;
$in->autoflush(1);
rows_are(11001, 'the first record of a live stream');

my $start = time();
print $in "1\n";
rows_are(11002, 'the next');
cmp_ok(time() - $start, '<', 1.5, 'within batch_wait and a little');
close($in);

# stopped, and again: nothing twice, nothing missing

$w->stop();
is($w->status(), 0, 'SIGTERM is a clean end');
like($w->output(), qr/event=stop rows=11002 /, 'with its line');
journal_write('--count', 500);
$w->start();
rows_are(11502, 'after a restart');
conserved('restart');
unlike($w->output(), qr/level=(?:warn|error)/, 'no complaint so far');

# kill -9 under load

my $writer = Referral::Test::Process->new(name => 'writer',
    log => $t->dir() . '/writer.log',
    argv => [ $t->build() . '/t/journal_write', '--journal', $journal,
              '--count', 9000, '--rate', 4000, '--ids', '--code', 'LOAD' ]);

for (1 .. 6) {
    sleep(0.1 + rand(0.4));
    $w->kill9();
    $w->start();
}

is($writer->wait(20), 0, 'the writer wrote');
my @ids = $writer->output() =~ /^\d+ (\S+)$/mg;
is(scalar(@ids), 9000, 'and says what');
rows_are(11502 + 9000, 'all there after kill -9, six times');
conserved('kill -9');
is(join("\n", sort map { $_->[0] } $pg->rows("SELECT id FROM
        referral.interaction WHERE code = 'LOAD'")), join("\n", sort @ids),
   'these very records');

# SIGHUP

$w->configure(%{ $w->{conf} }, log_level => 'debug', batch_rows => 100);
$w->hup();
like($w->notified(qr/RELOADING=1/), qr/MONOTONIC_USEC=\d+/, 'reloading');
ok($w->notified(qr/READY=1/), 'and ready again');
journal_write('--count', 250);
rows_are(20752, 'goes on');
like($w->output(), qr/level=debug event=batch .* rows=100$/m,
     'with the new settings');

$w->configure(%{ $w->{conf} }, nonsense => 1);
$w->hup();
ok($w->notified(qr/READY=1/), 'a bad file');
like($w->output(), qr/event=reload-failed text="[^"]*unknown setting/,
     'is refused with the reason');
$w->configure(map { $_ => $w->{conf}{$_} } qw(journal postgres));
journal_write('--count', 1);
rows_are(20753, 'and the worker goes on');

# a server that does not answer: the first SIGTERM waits for it, the second
# leaves

my @backends = $pg->rows("SELECT pid FROM pg_stat_activity
                          WHERE application_name = 'referral-worker'");
is(scalar(@backends), 1, 'one connection');
kill('STOP', $backends[0][0]);
journal_write('--count', 1);
sleep(1.5);
$w->{process}->signal('TERM');
sleep(0.5);
ok($w->alive(), 'SIGTERM waits for the batch');
$w->{process}{expected} = 1;
$w->{process}->signal('TERM');
is($w->{process}->wait(2), 0, 'a second one leaves now');
kill('CONT', $backends[0][0]);

$w->start();
rows_are(20754, 'and the record is there once');
$w->stop();

# the watchdog is fed while there is nothing to do, and while there is nobody
# to do it with; the socket may be an abstract one

$w->{env}{WATCHDOG_USEC} = 900_000;
$w->start();
ok($w->notified(qr/WATCHDOG=1/, 5), 'fed when idle') for 1 .. 2;
$pg->stop();
ok($w->notified(qr/STATUS=waiting for postgres/), 'Postgres went');
ok($w->notified(qr/WATCHDOG=1/, 5), 'fed in a wait with a name') for 1 .. 2;
$pg->start();
$w->stop();

my $name = "\0referral-test-$$";
my $abstract = IO::Socket::UNIX->new(Local => $name, Type => SOCK_DGRAM);
delete $w->{env}{WATCHDOG_USEC};
$w->{env}{NOTIFY_SOCKET} = '@' . substr($name, 1);
$w->start();
ok(IO::Select->new($abstract)->can_read(5), 'an abstract socket');
$abstract->recv(my $text, 100);
like($text, qr/^(?:READY|STATUS)=/, 'is told the same');
conserved('the end');

$t->done();
