package Referral::Test::Edge;

# Copyright (C) The nginx referral module authors

=head1 NAME

Referral::Test::Edge - after the last switch, the edge says what the database
says

=head1 SYNOPSIS

    my @wrong = Referral::Test::Edge::run(codes => 500, seconds => 3);

=head1 DESCRIPTION

Codes are switched off and on, alone, by program and by referrer, made and
deleted, while clients ask for them all the time.  Then each code is asked for
once at each nginx worker's turn, and its answer is compared with the database:
302 for an active code, 410 for another one, 404 for a deleted one.

    codes, seconds, clients     their numbers
    evil => 1                   meanwhile subscriptions are cut, Redis is
                                emptied, the worker is killed, nginx reloaded

Returns what is wrong, and sets $asked, the requests of the clients.

=cut

use strict;
use warnings;

use IO::Socket::INET;
use POSIX ();
use Time::HiRes qw(sleep time);

use Referral::Test::Publish;


our $asked = 0;


# one request on a connection that stays: the status

sub ask {
    my ($state, $code) = @_;

    for my $try (1, 2) {
        $state->{sock} //= IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                                 PeerPort => $state->{port},
                                                 Timeout => 5)
            or next;

        local $SIG{PIPE} = 'IGNORE';
        my $text = '';
        my $sock = $state->{sock};

        syswrite($sock, "GET /r/$code HTTP/1.1\r\nHost: localhost\r\n\r\n")
            or (delete $state->{sock}, next);

        while ($text !~ /\r\n\r\n/) {
            sysread($sock, $text, 65536, length($text)) or last;
        }

        my ($length) = $text =~ /^Content-Length: (\d+)/mi;
        my $end = index($text, "\r\n\r\n") + 4;

        while ($length && length($text) < $end + $length) {
            sysread($sock, $text, 65536, length($text)) or last;
        }

        delete $state->{sock} if $text =~ /^Connection: close/mi;
        return $1 if $text =~ m{^HTTP/1\.1 (\d+)};
        delete $state->{sock};
    }

    return 0;
}


sub client {
    my ($port, $n, $seed, $file) = @_;

    my $pid = fork();
    die "fork: $!\n" unless defined $pid;
    return $pid if $pid;

    srand($seed);
    my $stop = 0;
    local $SIG{TERM} = sub { $stop = 1 };
    my ($state, $count) = ({ port => $port }, 0);

    until ($stop) {
        ask($state, 'CODE' . (1 + int(rand($n))));
        $count++;

        # a few codes are asked for all the time

        ask($state, 'CODE' . (1 + $count % 20));
        $count++;
    }

    if (open(my $fh, '>', $file)) {
        print $fh $count;
        close($fh);
    }

    POSIX::_exit(0);
}


sub run {
    my (%arg) = @_;

    my ($n, $evil) = ($arg{codes}, $arg{evil});
    my $p = Referral::Test::Publish->new(codes => $n);
    my $t = $p->t();
    my $w = $p->worker('a');
    my @wrong;

    # a second program, a referrer with codes of its own

    $p->sql("SELECT referral.program_create(1, 'second', 'B',
                 '{\"landing_url\": \"https://example.com/second\"}');
             SELECT referral.program_set_status(2, 'active');
             SELECT referral.referrer_create(1, 'partner',
                 '{\"external_id\": \"r1\"}');
             UPDATE referral.code SET program_id = 2 WHERE id % 3 = 0;
             UPDATE referral.code SET referrer_id = 1 WHERE id % 5 = 0");
    push @wrong, $p->settle();

    $t->nginx(workers => 2, http => q{
        referral_redis %%REDIS%% timeout=200ms;
        referral_zone 8m;
        keepalive_requests 1000000;
    }, server => q{
        referral on;
        location /r/ { referral_redirect; }
    });

    my $port = $t->port('http');
    my @pids = map { client($port, $n, $_, $t->dir() . "/client.$_") }
               1 .. $arg{clients} // 3;

    my ($end, $i) = (time() + $arg{seconds}, 0);

    while (time() < $end) {
        $i++;

        my ($a, $b) = (int(rand($n)) + 1, int(rand(20)) + 1);

        $p->sql("UPDATE referral.code SET status = CASE status WHEN 'active'
                     THEN 'disabled' ELSE 'active' END
                     WHERE code IN ('CODE$a', 'CODE$b') OR id % 97 = "
                . $i % 97 . ';'
                . ($i % 9 == 0 ? "DELETE FROM referral.code WHERE code =
                       'CODE$a';" : '')
                . ($i % 5 == 0 ? "UPDATE referral.program SET status = CASE
                       status WHEN 'active' THEN 'paused' ELSE 'active' END
                       WHERE id = 1 + $i % 2;" : '')
                . ($i % 7 == 0 ? "UPDATE referral.referrer SET status = CASE
                       status WHEN 'active' THEN 'suspended' ELSE 'active' END
                       WHERE id = 1;" : ''));

        next unless $evil;

        $p->redis()->cmd('CLIENT', 'KILL', 'TYPE', 'pubsub') if $i % 11 == 0;
        $p->redis()->cmd('CLIENT', 'KILL', 'TYPE', 'normal') if $i % 37 == 0;
        $p->redis()->cmd('FLUSHALL') if $i % 53 == 0;
        $w->kill9()->start() if $i % 43 == 0;
        $t->reload() if $i % 71 == 0;
    }

    # everything on at the end, so that each verdict is seen

    $p->sql("UPDATE referral.program SET status = 'active' WHERE id = 1;
             UPDATE referral.referrer SET status = 'active'");
    push @wrong, $p->settle();

    my %want = map { ("CODE$_" => 404) } 1 .. $n;
    $want{$_->[0]} = $_->[1] eq 'active' ? 302 : 410
        for $p->sql('SELECT code, state FROM referral.code_published');

    # a subscription that was cut often comes back later, and till then what
    # is known is answered: here that is waited for, not longer than it may be

    my %state = (port => $port);
    my $settled = time() + 15;

    sleep(0.2);

    if ($evil) {
        my @off = grep { $want{$_} != 302 } sort keys %want;
        my @on = grep { $want{$_} == 302 } sort keys %want;

        for my $code (@off, @on) {
            sleep(0.05) while ask(\%state, $code) != $want{$code}
                              && time() < $settled;
        }
    }

    for my $turn (1, 2) {

        # a new connection may be the other worker's; what was wrong in the
        # first turn is told apart from what stays wrong

        %state = (port => $port);

        for my $code (sort keys %want) {
            my $got = ask(\%state, $code);
            push @wrong, "$code is answered $got, not $want{$code}, in turn"
                         . " $turn"
                if $got != $want{$code};
        }
    }

    if (@wrong) {
        push @wrong, 'referral:off has '
                     . join(' ', @{ $p->redis()->cmd('SMEMBERS',
                                                     'referral:off') })
                     . ', pending is '
                     . $p->value('SELECT pending FROM referral.publications
                                      ORDER BY generation DESC LIMIT 1');
    }

    kill('TERM', @pids);
    waitpid($_, 0) for @pids;

    $asked = 0;
    $asked += $t->read_file("client.$_") // 0 for 1 .. @pids;
    push @wrong, "only $asked requests were made" if $asked < 100;

    my %seen;
    $seen{$_}++ for values %want;
    push @wrong, "no code has to be answered $_"
        for grep { !$seen{$_} } 302, 410, 404;

    push @wrong, $p->close();

    return @wrong > 12 ? (@wrong[0 .. 5, -6 .. -1], '... ' . @wrong) : @wrong;
}


1;
