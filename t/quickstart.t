#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# tools/quickstart: its proof, its view, and that a run after kill -9 ends
# what was left.

use strict;
use warnings;

use IO::Socket::INET;
use Test::More;

use Referral::Test;


my $t = Referral::Test->new();

if ($t->build() ne $t->root() . '/build' || $ENV{REFERRAL_ASAN}) {
    $t->remove();
    @Referral::Test::instances = ();
    plan(skip_all => 'quickstart builds and starts what is in build/');
}

my $quickstart = $t->root() . '/tools/quickstart';
my $dir = $t->dir() . '/state';
my $port = $t->port('quickstart');
my $site = "http://127.0.0.1:$port";

# what "make test" passes on is not for the make in there

delete @ENV{qw(MAKEFLAGS MFLAGS MAKELEVEL)};


sub start {
    my ($n) = @_;

    my $p = Referral::Test::Process->new(
        name => 'quickstart', log => $t->dir() . "/view-$n", cwd => $t->root(),
        argv => [ $quickstart, '--port', $port, '--dir', $dir ]);

    $t->wait_for(sub { $p->output() =~ /^TIME /m || !$p->alive() }, 120);

    like($p->output(), qr{^  \Q$site\E/r/SUMMER25 .*^TIME }ms, 'shows links')
        or diag($p->output());

    return $p;
}


# pids of processes that name the directory of the servers

sub servers {
    my ($data) = @_;

    return sort grep {
        my $line = $t->read_file("/proc/$_/cmdline") // '';
        index($line, "$data/") >= 0;
    } map { m{(\d+)$} } glob('/proc/[0-9]*');
}


# usage

is($t->run($quickstart, '--help')->{status}, 0, '--help');

my $r = $t->run($quickstart, '--no-such');
is($r->{status}, 2, 'an unknown option');
like($r->{output}, qr/unknown option "--no-such"\nUsage: /, 'with the usage');

for (0, 65536, 'x', '-1') {
    $r = $t->run($quickstart, '--port', $_);
    is($r->{status}, 1, "--port $_");
    like($r->{output}, qr/"\Q$_\E" is not a port/, 'says so');
}

# a port that is taken

my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1,
                                   LocalPort => $port, ReuseAddr => 1);

$r = $t->run($quickstart, '--port', $port, '--dir', $dir);
is($r->{status}, 1, 'the port is taken');
like($r->{output}, qr/port $port is taken by \S+ \(pid $$\); name another/,
     'by whom');

close($socket);

# the proof

$r = $t->run($quickstart, '--check', '--port', $port, '--dir', $dir);
is($r->{status}, 0, '--check') or diag($r->{output});
like($r->{output}, qr/^quickstart: everything is as it should be\n\z/m,
     'says so');
unlike($r->{output}, qr/NOT OK/, 'nothing was not');
ok(!-l "$dir/check", 'and leaves nothing');

# the view, ended by kill -9

my $view = start(1);
my $data = readlink("$dir/data");

is($t->get('/r/SUMMER25', port => $port,
           headers => { 'X-Forwarded-For' => '203.0.113.9' })->status(), 302,
   'a click');

my $row = qr/SUMMER25 +valid +redirect +KE Nairobi .*203\.0\.113\.0/;

ok($t->wait_for(sub { $view->output() =~ $row }, 20), 'is shown') or diag($view->output());

$r = $t->run($quickstart, '--port', $port + 0, '--dir', $dir);
is($r->{status}, 1, 'a second one');
like($r->{output}, qr/another one runs with /, 'is refused');

$view->kill9();

my @left = servers($data);
cmp_ok(scalar(@left), '>=', 4, 'kill -9 leaves the servers');

# another run with the same state

$view = start(2);
is(readlink("$dir/data"), $data, 'the same directory');

my %now = map { $_ => 1 } servers($data);
is_deeply([ grep { $now{$_} } @left ], [], 'the old servers were ended');

is($t->get('/pricing?ref=juan2025', port => $port)->status(), 200, 'a click');
ok($t->wait_for(sub { $view->output() =~ /JUAN2025 +valid +parameter/ }, 20),
   'is shown');
unlike($view->output(), qr/SUMMER25 +valid/, 'older ones are not again');

ok($view->stop('TERM', 40), 'ends when told to');
is_deeply([ servers($data) ], [], 'with all its servers');

$t->run('rm', '-rf', $data);

$t->done();
