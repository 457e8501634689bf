#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# A standby that lacks the last commits takes over: what it lacks is sent
# again from what the journal retains, and nothing twice.

use strict;
use warnings;

use IO::Handle;
use Test::More;
use Time::HiRes qw(sleep);
use Referral::Test;
use Referral::Test::Process;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $journal = $t->dir() . '/journal';
my $home = "$pg->{home}/standby";
my $log = $t->dir() . '/hold.log';

mkdir($journal) or die;

open(my $in, '|-', 'exec ' . $t->build() . "/t/journal_write --journal"
     . " $journal --hold --count 500 >$log") or die;
$in->autoflush(1);

my $w = $t->worker(postgres => "host=$pg->{home},$home port=5432"
                               . ' dbname=referral user=edge');

sub count {
    my ($host) = @_;
    my $r = $t->run('psql', '-X', '-A', '-t', '-d',
                    "host=$host port=5432 dbname=referral user=postgres",
                    '-c', 'SELECT count(*) FROM referral.interaction');
    return $r->{status} ? -1 : $r->{output} + 0;
}

sub one {
    my ($sql) = @_;
    my $r = $t->run('psql', '-X', '-A', '-t', '-d',
                    "host=$home port=5432 dbname=referral user=postgres",
                    '-c', $sql);
    chomp(my $text = $r->{output});
    return $text;
}

ok($t->wait_for(sub { count($pg->{home}) == 500 }, 10), 'the primary has 500');

my $r = $pg->run("$pg->{bin}/pg_basebackup", '-D', "$home/data", '-R', '-c',
                 'fast', '-X', 'stream', '-h', $pg->{home}, '-p', 5432, '-U',
                 'postgres');
is($r->{status}, 0, 'a standby as of now') or diag($r->{output});

print $in "500\n";
ok($t->wait_for(sub { count($pg->{home}) == 1000 }, 10),
   'the primary has 1,000');

# the primary dies; clicks go on

$pg->stop(signal => 'QUIT');
print $in "100\n";
ok($t->wait_for(sub { ($t->read_file('hold.log') // '') =~ /appended 1100/ },
                10), 'clicks go on');

my $standby = Referral::Test::Process->new(name => 'standby',
    user => $pg->{user}, death => 'INT', log => "$pg->{home}/standby.log",
    env => { LC_ALL => 'C.UTF-8' },
    argv => [ "$pg->{bin}/postgres", '-D', "$home/data", '-c',
              "unix_socket_directories=$home", '-c', 'listen_addresses=',
              '-c', 'fsync=off', '-c', 'shared_buffers=32MB',
              '-c', 'max_connections=40' ]);

ok($t->wait_for(sub { count($home) == 500 }, 20), 'the standby has 500');
sleep(1.5);
is(count($home), 500, 'and is left alone');

my $other = $t->dir() . '/other';
mkdir($other) or die;
$r = $t->run($t->build() . '/t/journal_write', '--journal', $other);
my ($aside) = $r->{output} =~ /^stream (\w+)/m;
$t->write_file("other/$aside/aside", "for a test\n");
$r = $t->referralctl('journal', 'adopt', $aside, '--journal', $other, '--db',
                     "host=$home port=5432 dbname=referral user=postgres");
is($r->{status}, 1, 'a standby can not tell what is known');
like($r->{output}, qr/is a standby/, 'and is not asked');
ok(-e "$other/$aside/aside", 'nothing is adopted');

# it takes over

$r = $pg->run("$pg->{bin}/pg_ctl", '-D', "$home/data", '-w', 'promote');
is($r->{status}, 0, 'it is promoted') or diag($r->{output});

ok($t->wait_for(sub { count($home) == 1100 }, 20), 'it gets what it lacks');
print $in "1\n";
ok($t->wait_for(sub { count($home) == 1101 }, 10), 'and what comes');

is(one('SELECT count(DISTINCT id) FROM referral.interaction'), 1101,
   'nothing twice');
is(one('SELECT sum(n) FROM referral.counters'), 1101, 'counters agree');
is(one("SELECT seq || ' ' || rows || ' ' || gap || ' ' || dead
        FROM referral.ingest_cursor"), '1101 1101 0 0', 'so does the cursor');
like($w->output(), qr/event=cursor-back .*from=1000 to=500/, 'it is said');
unlike($w->output(), qr/stream-aside|level=error/, 'as no alarm');

$w->stop();
close($in);
$standby->stop('INT', 20);

$t->done();
