#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The proxy that spoils a network does what it is told, and nothing else.

use strict;
use warnings;

use Errno qw(ECONNRESET);
use IO::Socket::INET;
use IO::Socket::UNIX;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);
use Referral::Test;
use Referral::Test::Proxy;

my $t = Referral::Test->new();
my $port = $t->port('proxy');
my $server = $t->port('server');
my $echo = fork() // die;

if ($echo == 0) {
    echo($server);
    POSIX::_exit(0);
}

my $p = Referral::Test::Proxy->new(listen => $port, to => $server);

$t->wait_for(sub { IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                         PeerPort => $server) }, 5);


# the server answers each line "x\n" with "<x>\n", and "big" with a lot

sub echo {
    my ($at) = @_;

    local @SIG{qw(CHLD PIPE)} = ('IGNORE') x 2;
    $SIG{TERM} = 'DEFAULT';

    my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 9,
                                       LocalPort => $at, ReuseAddr => 1)
        or die;

    while (my $c = $listen->accept()) {
        next if fork();

        open(my $log, '>>', $t->dir() . '/server.log') or die;

        while (defined(my $line = <$c>)) {
            syswrite($log, $line);
            chomp($line);
            my $answer = $line eq 'big' ? 'x' x 300_000 . "\n" : "<$line>\n";
            $c->print($answer);
            $c->flush();
        }

        syswrite($log, "end\n");
        POSIX::_exit(0);
    }
}


sub client {
    my $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port,
                                  Timeout => 5);
    return $c;
}


# what comes within a time: text, then "EOF", "RST" or "..." for silence

sub answer {
    my ($c, $seconds, $until) = @_;

    my ($text, $end) = ('', time() + ($seconds // 5));

    for ( ;; ) {
        my $left = $end - time();
        my $set = '';
        vec($set, fileno($c), 1) = 1;

        return "$text..." if $left <= 0 || !select($set, undef, undef, $left);

        my $n = sysread($c, $text, 65536, length($text));

        return "$text" . ($! == ECONNRESET ? 'RST' : $!) unless defined $n;
        return "${text}EOF" unless $n;
        return $text if defined $until && length($text) >= $until;
    }
}


sub ask {
    my ($c, $line) = @_;
    syswrite($c, "$line\n");
    return answer($c, 5, length($line) + 3);
}


sub server_got {
    my ($text) = @_;
    return $t->wait_for(sub { ($t->read_file('server.log') // '')
                              =~ /$text/ }, 3);
}

# a network

my $c = client();
is(ask($c, 'one'), "<one>\n", 'forwards');
syswrite($c, "big\n");
is(length(answer($c, 10, 300_001)), 300_001, 'a lot, too');
shutdown($c, 1);
is(answer($c), 'EOF', 'and the end');
ok(server_got(qr/end$/), 'in both directions');

# latency

$p->latency(0.2);
$c = client();
my $from = time();
is(ask($c, 'late'), "<late>\n", 'latency');
ok(time() - $from >= 0.39, 'there and back');
$p->clear();
$from = time();
ask($c, 'soon');
ok(time() - $from < 0.3, 'cleared');

# slices

$p->slice(1);
my $line = 's' x 100;
syswrite($c, "$line\n");
my @pieces;
push @pieces, answer($c, 5, 1)
    until join('', @pieces) =~ /\n/ || @pieces > 103;
is(join('', @pieces), "<$line>\n", 'slices');
cmp_ok(scalar(@pieces), '>', 1, 'come as such');
$p->clear();

# ends

$p->close();
is(answer($c), 'EOF', 'close');
$c = client();
ask($c, 'x');
$p->reset();
is(answer($c), 'RST', 'reset');
$c = client();
is(ask($c, 'after'), "<after>\n", 'new connections are taken');
$p->cut();
is(answer($c), 'EOF', 'cut');
$c = client();
like($c ? answer($c) : 'RST', qr/EOF|RST/, 'new ones are, too');
$p->clear();
$c = client();
is(ask($c, 'again'), "<again>\n", 'until it is cleared');
$p->refuse();
ok(!client(), 'nobody listens');
is(ask($c, 'still'), "<still>\n", 'who is in is in');
$p->clear();
ok(client(), 'listens again');

# silence

$p->hang();
syswrite($c, "hung\n");
is(answer($c, 0.3), '...', 'hangs');
$p->clear();
is(answer($c, 5, 7), "<hung>\n", 'and goes on');

unlink($t->dir() . '/server.log');
$c = client();
ask($c, 'half');
$p->half();
is(answer($c), 'EOF', 'half: the client is cut');
sleep(0.3);
unlike($t->read_file('server.log'), qr/end/, 'the server does not know');
is($p->stats()->{open} > 0, 1, 'its side is open');
$p->clear();
ok(server_got(qr/end$/), 'until it is cleared');

# garbage

$c = client();
$p->garbage("\0\xff\n");
syswrite($c, "x\n");
is(answer($c, 0.5), "\0\xff\n" . '...', 'garbage instead of an answer');
is(ask($c, 'y'), "<y>\n", 'once');

# limits

$p->limit(down => 5, times => 1);
is(ask($c, 'open'), "<open>\n", 'what is open is not counted');
$c = client();
syswrite($c, "abcdef\n");
is(answer($c), '<abcdEOF', 'a limit down');
$c = client();
is(ask($c, 'abcdef'), "<abcdef>\n", 'one time');
is($p->stats()->{hits}, 1, 'counted');

unlink($t->dir() . '/server.log');
$p->limit(up => 6, then => 'reset', times => 1);
$c = client();
ask($c, 'ab');
syswrite($c, "cdef\n");
is(answer($c), 'RST', 'a limit up');
ok(server_got(qr/end$/), 'the server sees an end');
unlike($t->read_file('server.log'), qr/cdef/, 'before what is beyond');

unlink($t->dir() . '/server.log');
$p->limit(down => 0, after => 'COMMIT', then => 'reset', times => 1);
$c = client();
is(ask($c, 'BEGIN'), "<BEGIN>\n", 'a limit after a text');
syswrite($c, 'COM');
sleep(0.1);
syswrite($c, "MIT\n");
is(answer($c), 'RST', 'no answer');
ok(server_got(qr/COMMIT$/m), 'to what did arrive');
ok($p->wait_hits(1), 'waited for');
$c = client();
is(ask($c, 'COMMIT'), "<COMMIT>\n", 'one time');

$p->limit(down => 2, then => 'hang', times => 1);
$c = client();
syswrite($c, "abc\n");
is(answer($c, 0.3), '<a...', 'a limit that hangs');
$p->clear();

# unix sockets

my $u = Referral::Test::Proxy->new(listen => $t->dir() . '/u', to => $port);
$c = IO::Socket::UNIX->new(Peer => $t->dir() . '/u');
is(ask($c, 'unix'), "<unix>\n", 'a unix socket, two in a row');
$u->cut();
is(answer($c), 'EOF', 'cut');
$u->stop();
ok(!-e $t->dir() . '/u', 'stopped');

# a server that is not there, an error in a verb

my $none = Referral::Test::Proxy->new(listen => $t->port('none'),
                                      to => $t->dir() . '/nothing');
$c = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                           PeerPort => $t->port('none'));
like(answer($c), qr/EOF|RST/, 'nothing behind it');
ok(!eval { $none->tell('nonsense'); 1 }, 'an unknown verb');
like($@, qr/no such verb: nonsense/, 'is said');

my $pid = $p->pid();
undef $p;
ok(!kill(0, $pid), 'ends with its object');

kill('TERM', $echo);
waitpid($echo, 0);

$t->done();
