#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Postgres away, back, read-only, without rights, without partitions, locked,
# and gone in the middle of a COMMIT.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);
use Referral::Test;
use Referral::Test::Process;

my $t = Referral::Test->new();
my $pg = $t->postgres(tcp => 1);
my $journal = $t->dir() . '/journal';
my $total = 0;

mkdir($journal) or die;

sub journal_write {
    my ($n, @args) = @_;
    $t->journal_write($journal, '--count', $n, @args);
    $total += $n;
}

sub rows_are {
    my ($name) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    my $count = sub {
        my $r = $pg->try('SELECT count(*) FROM referral.interaction');
        return $r->{status} ? -1 : $r->{rows}[0][0];
    };

    $t->wait_for(sub { $count->() >= $total }, 20);
    is($count->(), $total, $name);
    is($pg->value('SELECT sum(n) FROM referral.counters'), $total,
       "$name: counters");
}

sub lines {
    my ($w, $pattern) = @_;
    return scalar(() = $w->output() =~ /$pattern/mg);
}

# absent at start

journal_write(10);
$pg->stop();

my $w = $t->worker();

ok($w->notified(qr/READY=1/), 'ready without Postgres');
ok($w->notified(qr/STATUS=waiting for postgres/), 'and says what it waits for');
sleep(1.5);
is(lines($w, qr/event=postgres-failed/), 1, 'said once');
like($w->output(), qr/event=postgres-failed .*kind=outage/, 'as an outage');

$pg->start();
rows_are('there it is');
is(lines($w, qr/event=postgres-back/), 1, 'said once, too');

# restarts, fast and immediate, in the middle of a load

my $writer = Referral::Test::Process->new(name => 'writer',
    log => $t->dir() . '/writer.log',
    argv => [ $t->build() . '/t/journal_write', '--journal', $journal,
              '--count', 6000, '--rate', 2000 ]);
$total += 6000;

sleep(0.5);
$pg->restart();
sleep(0.5);
$pg->restart(signal => 'QUIT');

for (1 .. 5) {
    sleep(0.2);
    $pg->try("SELECT pg_terminate_backend(pid) FROM pg_stat_activity
              WHERE application_name = 'referral-worker'");
}

is($writer->wait(20), 0, 'the writer wrote');
rows_are('after restarts and terminated backends');

# read-only, as a demoted primary

$pg->rows('ALTER DATABASE referral SET default_transaction_read_only = on');
$pg->rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE application_name = 'referral-worker'");
journal_write(5);
ok($t->wait_for(sub { $w->output() =~ /session is read-only/ }, 30),
   'a read-only server is refused');
is($pg->value('SELECT count(*) FROM referral.interaction'), $total - 5,
   'nothing written');
$pg->rows('ALTER DATABASE referral RESET default_transaction_read_only',
          db => 'postgres');
rows_are('writable again');

# a right is missing: an alarm, not a dead letter

$pg->rows('REVOKE INSERT ON referral.interaction FROM referral_worker');
journal_write(5);
ok($t->wait_for(sub { $w->output() =~ /sqlstate=42501 kind=alarm/ }, 10),
   'a missing right is an alarm');
is(lines($w, qr/level=error event=postgres-failed .*sqlstate=42501/), 1,
   'at level error, once');
$pg->rows('GRANT INSERT ON referral.interaction TO referral_worker');
rows_are('the right is back');
is($pg->value('SELECT count(*) FROM referral.dead_letter'), 0,
   'no dead letters from any of this');

# the partition of today is gone

my $today = $pg->value(
    "SELECT 'referral.interaction_'
            || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')");
my $had = $pg->value("SELECT count(*) FROM $today");
$pg->rows("DROP TABLE $today");
$pg->rows('TRUNCATE referral.counter, referral.counter_delta');
$total -= $had;
$total = 0 if $total < 0;
$pg->rows('DELETE FROM referral.interaction');
$total = 0;
journal_write(7);
rows_are('a partition that was dropped is made again');

# records of a day that has none yet

my $old = (int(time() / 86400) - 40) * 86400_000 + 86399_990;
journal_write(20, '--at', $old, '--step', 1);
rows_are('two old days');
is($pg->value("SELECT count(DISTINCT tableoid) FROM referral.interaction
               WHERE occurred_at < now() - interval '30 days'"), 2,
   'in two partitions');

# the table is locked for longer than lock_timeout

$w->configure(%{ $w->{conf} }, lock_timeout => '200ms');
$w->hup();
my $locker = Referral::Test::Process->new(name => 'locker',
    log => $t->dir() . '/locker.log',
    argv => [ 'psql', '-X', '-d', $pg->conninfo(), '-c',
              'BEGIN; LOCK TABLE referral.interaction; SELECT pg_sleep(2)' ]);
sleep(0.5);
journal_write(3);
ok($t->wait_for(sub { $w->output() =~ /sqlstate=55P03 kind=outage/ }, 10),
   'lock_timeout');
rows_are('the lock is gone');
$locker->wait(10);

# so many rows wait that a COPY of them would take four times as long as a
# statement may

$pg->rows(q{CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END'});
$pg->rows('CREATE TRIGGER slow BEFORE INSERT ON referral.interaction
           FOR EACH ROW EXECUTE FUNCTION public.slow()');
$w->configure(%{ $w->{conf} }, statement_timeout => '500ms');
$w->stop();
journal_write(1000);
$w->start();
rows_are('a server that is slow takes fewer at a time');
cmp_ok(lines($w, qr/event=postgres-failed .*sqlstate=57014/), '>=', 1,
       'which its time limit told');
$pg->rows('DROP TRIGGER slow ON referral.interaction');
delete($w->{conf}{statement_timeout});

# several hosts, of which the first is no server

$w->configure(%{ $w->{conf} }, postgres => "host=/nonexistent,$pg->{home}"
              . ' port=' . $t->port('pg') . ' dbname=referral user=edge');
$w->restart();
journal_write(2);
rows_are('the second host');

# a COMMIT is lost, and of the next one the answer; both while what follows
# was read already

$w->stop();

my $lost = 0;
my $port = $t->port('proxy');
my $proxy = fork() // die;

if ($proxy == 0) {
    proxy($port, $t->port('pg'));
    POSIX::_exit(0);
}

sleep(0.2);
$w->configure(%{ $w->{conf} }, postgres => "host=127.0.0.1 port=$port"
              . ' dbname=referral user=edge sslmode=disable'
              . ' gssencmode=disable', batch_rows => 10);
journal_write(50);
$w->start();
rows_are('a COMMIT that was lost, or its answer, counts once');
ok(-e $t->dir() . "/cut-$_", "it was lost, $_") for qw(request answer);
like($w->output(), qr/event=postgres-failed/, 'which was noticed');
is($pg->value('SELECT count(*) - count(DISTINCT id) FROM
               referral.interaction'), 0, 'nothing twice');
$w->stop();
kill('TERM', $proxy);
waitpid($proxy, 0);

$t->done();


# forwards, but drops the connection instead of the first COMMIT of a
# transaction that copied, and instead of the answer to the next; a process for
# each connection

sub proxy {
    my ($from, $to) = @_;

    $SIG{TERM} = 'DEFAULT';

    my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1',
        LocalPort => $from, Listen => 5, ReuseAddr => 1) or die;

    my $cut = $t->dir() . '/cut';
    my $mark = sub { open(my $made, '>', "$cut-$_[0]") };
    $SIG{CHLD} = 'IGNORE';

    for ( ;; ) {
        my $client = $listen->accept() or next;
        next if fork();
        close($listen);

        my $server = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                           PeerPort => $to)
            or POSIX::_exit(0);
        my $select = IO::Select->new($client, $server);
        my $copied = 0;

        CONNECTION: for ( ;; ) {
            for my $fh ($select->can_read()) {
                my $n = sysread($fh, my $data, 65536);
                last CONNECTION unless $n;

                if ($fh == $client) {
                    $copied = 1 if $data =~ /COPY referral\.interaction/;

                    my $commit = $copied && $data =~ /COMMIT\0/;

                    if ($commit && !-e "$cut-request") {
                        $mark->('request');
                        last CONNECTION;
                    }

                    syswrite($server, $data);

                    if ($commit && !-e "$cut-answer") {
                        $mark->('answer');
                        sleep(0.3);
                        last CONNECTION;
                    }

                } else {
                    syswrite($client, $data);
                }
            }
        }

        POSIX::_exit(0);
    }
}
