#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Regular work that fails does not stop the clicks; logins that are refused;
# the watchdog in a long transaction.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep);
use Referral::Test;
use Referral::Test::Process;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $journal = $t->dir() . '/journal';

mkdir($journal) or die;

sub journal_write { $t->journal_write($journal, @_) }

sub rows_are {
    my ($code, $expected, $name) = @_;
    my $sql = "SELECT count(*) FROM referral.interaction WHERE code = '$code'";
    $t->wait_for(sub { $pg->value($sql) >= $expected }, 10);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is($pg->value($sql), $expected, $name);
}

# counters that can not be folded

$pg->rows('ALTER TABLE referral.counter ADD CONSTRAINT nothing CHECK (false)');
journal_write('--count', 5, '--code', 'FOLD');
my $w = $t->worker();
rows_are('FOLD', 5, 'clicks flow while counters are not folded');
$w->restart();
ok($t->wait_for(sub { $w->output() =~
        /level=error event=housekeeping-failed part=counters sqlstate=23514/ },
   10), 'it is an error, and says which');
journal_write('--count', 5, '--code', 'FOLD2');
rows_are('FOLD2', 5, 'clicks flow after that, too');
is($pg->value("SELECT sum(n) FROM referral.counters
               WHERE code IN ('FOLD', 'FOLD2')"), 10, 'and are counted');
unlike($w->output(), qr/postgres-failed/, 'Postgres has not failed');
$pg->rows('ALTER TABLE referral.counter DROP CONSTRAINT nothing');

# a table in the way of the partition of the day after tomorrow

$w->stop();
my $table = $pg->value("SELECT 'interaction_' || to_char(now() AT TIME ZONE
                        'UTC' + interval '2 days', 'YYYYMMDD')");
$pg->rows("DROP TABLE referral.$table");
$pg->rows("CREATE TABLE referral.$table ()");
$w->start();
journal_write('--count', 5, '--code', 'AHEAD');
rows_are('AHEAD', 5, 'clicks flow while a partition can not be made ahead');
ok($t->wait_for(sub { $w->output() =~
        /level=error event=maintain-failed work=partitions sqlstate=RF002/ },
   10), 'which is an error');

# somebody else makes it at this moment, in a database of strict isolation

$w->stop();
$pg->rows("DROP TABLE referral.$table");
$pg->rows("ALTER DATABASE referral
           SET default_transaction_isolation = 'serializable'");
my $maker = Referral::Test::Process->new(name => 'maker',
    log => $t->dir() . '/maker.log',
    argv => [ 'psql', '-X', '-d', $pg->conninfo(), '-c',
              "BEGIN; SELECT referral.partition_ensure((now() AT TIME ZONE
               'UTC')::date + 2); SELECT pg_sleep(2); COMMIT" ]);
ok($t->wait_for(sub { $pg->value("SELECT count(*) FROM pg_locks
                                  WHERE locktype = 'advisory'") }, 10),
   'another one makes a partition');
my $before = length($w->output());
$w->start();
journal_write('--count', 5, '--code', 'MAKER');
rows_are('MAKER', 5, 'clicks wait for it');
is($maker->wait(10), 0, 'it is made');
unlike(substr($w->output(), $before), qr/maintain-failed/, 'and is no error');

# a login that is refused is an alarm, not an outage

$w->configure(%{ $w->{conf} }, postgres => $pg->conninfo(user => 'nobody1'));
$w->hup();
ok($t->wait_for(sub { $w->output() =~
        /level=error event=postgres-failed .*sqlstate=28000 kind=alarm/ },
   10), 'a role that is not there is an alarm');
$w->configure(%{ $w->{conf} }, postgres => $pg->conninfo(user => 'edge')
              . ' dbname=nothing');
$w->hup();
ok($t->wait_for(sub { $w->output() =~
        /level=error event=postgres-failed .*sqlstate=3D000 kind=alarm/ },
   10), 'and so is a database that is not');
like($w->output(), qr/database \\"nothing\\" does not exist/,
     'in plain words');
unlike($w->output(), qr/LOCATION/, 'without the place in the source');

# thousands of short statements in one transaction are progress, too

$w->stop();
$pg->rows("ALTER TABLE referral.interaction ADD CONSTRAINT refused
           CHECK (code <> 'REFUSED')");
journal_write('--count', 3000, '--code', 'REFUSED');
$w->configure(%{ $w->{conf} }, postgres => $pg->conninfo(user => 'edge'));
$w->{env}{WATCHDOG_USEC} = 60_000;
$w->start();
ok($w->notified(qr/READY=1/), 'ready');
my $fed = 0;
$fed++ while $w->output() !~ /event=dead-letter/
             && $w->notified(qr/WATCHDOG=1/, 1) && $fed < 1000;
cmp_ok($fed, '>', 4, 'the watchdog is fed within a transaction');
$t->wait_for(sub { $pg->value('SELECT count(*)
                               FROM referral.dead_letter') == 3000 }, 10);
is($pg->value('SELECT count(*) FROM referral.dead_letter'), 3000,
   'which ends well');

$t->done();
