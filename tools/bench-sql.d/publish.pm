package publish;

# Copyright (C) The nginx referral module authors
#
# How fast codes get from Postgres to the edge: a full publish of a million of
# them, one switched off until nginx refuses it, and the program of all.
# Times begin when the answer to COMMIT is read.

use strict;
use warnings;

use IO::Socket::INET;
use IPC::Open2;
use Test::More ();
use Time::HiRes qw(sleep time);

use Referral::Test;


my ($t, $pg, $edge, $sql, @rows);


sub run {
    my (%arg) = @_;

    my $codes = int(1_000_000 * $arg{scale});
    my $switches = int(1000 * $arg{scale}) || 1;

    die "a scale below 0.01 measures nothing\n" if $codes < 10_000;

    # its tests are none

    Test::More->builder()->output(\*STDERR);

    $t = Referral::Test->new();
    ($edge, $sql, @rows) = ();

    eval { measure($codes, $switches); 1 };
    my $error = $@;

    $sql->() if $sql;
    $t->stop_all();
    my @problems = $t->problems();
    $t->finish();

    die $error if $error;
    die join("\n", @problems), "\n" if @problems;

    return @rows;
}


sub row {
    my ($name, $value, $unit, %target) = @_;
    push @rows, { name => $name, value => $value + 0, unit => $unit, %target };
}


sub step { printf STDERR "%12s  %s\n", '', $_[0] }


sub measure {
    my ($codes, $switches) = @_;

    $pg = $t->postgres(fsync => 1, conf => { shared_buffers => '512MB',
                                             max_wal_size => '8GB' });
    my $redis = $t->redis();

    $pg->rows("
        SELECT referral.organisation_create('org', 'An organisation');
        SELECT referral.program_create(1, 'big', 'Big',
                   '{\"landing_url\": \"https://example.com/big\"}');
        SELECT referral.program_create(1, 'small', 'Small',
                   '{\"landing_url\": \"https://example.com/small\"}');
        SELECT referral.program_set_status(1, 'active');
        SELECT referral.program_set_status(2, 'active');
        INSERT INTO referral.code (organisation_id, program_id, code)
            SELECT 1, 2, 'S' || g FROM generate_series(1, 2000) g");

    step("making $codes codes");

    $pg->rows("INSERT INTO referral.code (organisation_id, program_id, code,
                                          campaign)
                   SELECT 1, 1, 'B' || g, 'campaign' || g % 100
                       FROM generate_series(1, $codes) g");
    $pg->rows('ANALYZE referral.code');
    $pg->rows('SELECT referral.publish_prune()');

    full($redis, $codes);

    $t->nginx(workers => 1, http => q{
        referral_redis %%REDIS%% timeout=100ms;
        referral_zone 64m;
        keepalive_requests 100000000;
    }, server => q{
        referral on;
        location /r/ { referral_redirect; }
    });

    $sql = session();

    single($switches);
    program($codes);
}


sub full {
    my ($redis, $codes) = @_;

    mkdir($t->dir() . '/journal');

    step('publishing all of them');

    my $w = $t->worker(redis => $redis->url());
    my $end = time() + 900;

    sleep(0.1) until $w->output() =~ /event=publish-ready /
                     || time() > $end || !$w->alive();

    my ($ms) = $w->output() =~ /event=publish-ready .* ms=(\d+)/
        or die "no full publish:\n", $w->output();

    row('full publish into an empty Redis', $ms / 1000, 's', max => 60);
    row('  codes a second', $codes / ($ms / 1000), '1/s');

    my $id = $pg->value('SELECT referral.publish_request(true)');
    my $again;

    sleep(0.1) until defined($again = answered($id)) || time() > $end;
    row('full publish into a full one', $again, 's', max => 60);
    row('  memory of the worker, at most', memory($w->pid()), 'MB');
}


sub memory {
    my ($pid) = @_;

    open(my $fh, '<', "/proc/$pid/status") or return 0;
    my ($kb) = join('', <$fh>) =~ /^VmHWM:\s*(\d+)/m;
    return ($kb // 0) / 1024;
}


sub answered {
    my ($id) = @_;
    my $row = ($pg->rows("SELECT done, seconds
                              FROM referral.publish_answers($id)"))[0];
    return $row && $row->[0] eq 't' ? $row->[1] : undef;
}


sub ask {
    my ($code) = @_;

    $edge //= IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                    PeerPort => $t->port('http'))
        or die "nginx: $!\n";

    syswrite($edge, "GET /r/$code HTTP/1.1\r\nHost: localhost\r\n\r\n");

    my $text = '';
    until ($text =~ /\r\n\r\n/) {
        sysread($edge, $text, 65536, length($text))
            or die "nginx closed the connection\n";
    }

    my ($length) = $text =~ /^Content-Length: (\d+)/mi;
    my $head = index($text, "\r\n\r\n") + 4;

    sysread($edge, $text, 65536, length($text))
        while $length && length($text) < $head + $length;

    return ($text =~ m{^HTTP/1\.1 (\d+)})[0];
}


# a session of its own, so that starting psql is not measured

sub session {
    my $pid = open2(my $out, my $in, 'psql', '-X', '-q', '-A', '-t', '-v',
                    'ON_ERROR_STOP=1', '-d', $pg->conninfo());

    return sub {
        if (!defined $_[0]) {
            close($in);
            waitpid($pid, 0);
            return;
        }

        print $in "$_[0];\n\\echo done\n";
        $in->flush();
        while (<$out>) { return if /^done/ }
        die "psql failed: $_[0]\n";
    };
}


# from the moment at which COMMIT is answered to the first answer that obeys

sub switch {
    my ($code, $set, $status) = @_;

    $sql->($set);

    my $start = time();
    my $got;

    until (($got = ask($code)) == $status) {
        die "$code is answered $got after 10 s\n" if time() - $start > 10;
    }

    return (time() - $start) * 1000;
}


sub spread {
    my ($name, $median, $worst, @ms) = @_;

    return unless @ms;

    @ms = sort { $a <=> $b } @ms;
    row("$name, median", $ms[@ms / 2], 'ms', $median ? (max => $median) : ());
    row('  99 of 100', $ms[@ms * 0.99], 'ms');
    row('  worst', $ms[-1], 'ms', $worst ? (max => $worst) : ());
}


sub single {
    my ($switches) = @_;

    my (@off, @on);

    step("switching $switches codes off");

    for my $n (1 .. $switches) {
        my $code = 'S' . (1 + $n % 1000);

        ask($code) == 302 or die "$code is not active\n";

        push @off, switch($code, "UPDATE referral.code SET status ="
                                 . " 'disabled' WHERE code = '$code'", 410);
        push @on, switch($code, "UPDATE referral.code SET status = 'active'"
                                . " WHERE code = '$code'", 302);
    }

    spread('COMMIT of code off to the first refusal', 20, 100, @off);
    spread('COMMIT of code on to the first redirect', undef, undef, @on);
}


# and single codes while those of the program are rewritten

sub program {
    my ($codes) = @_;

    my @off;

    step('switching a program off');
    ask("B$_") == 302 or die "B$_ is not active\n" for 1, $codes;

    my $ms = switch("B$codes",
                    "SELECT referral.program_set_status(1, 'paused')", 410);
    my $start = time();

    row("COMMIT of program off to refusal", $ms, 'ms', max => 100);

    for my $n (1 .. 100) {
        last if !pending();

        my $code = 'S' . (1000 + $n);

        ask($code) == 302 or die "$code is not active\n";
        push @off, switch($code, "UPDATE referral.code SET status ="
                                 . " 'disabled' WHERE code = '$code'", 410);
    }

    spread('a code off while its codes are rewritten', undef, undef, @off);
    sleep(0.1) while pending() && time() - $start < 900;
    row('  all of them rewritten after', time() - $start, 's');
}


sub pending { return $pg->value('SELECT pending FROM referral.publications') }


1;
