#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Requests that wait for Redis and end otherwise: clients that go, reloads,
# workers that are told to stop, are killed, or lose Redis meanwhile.

use strict;
use warnings;

use POSIX ();
use Socket qw(SOL_SOCKET SO_LINGER);
use Test::More;
use Time::HiRes qw(sleep time);

use Referral::Test;
use Referral::Test::Http;


my $server = q{
    referral on;
    add_header X-Cache $referral_cache always;
    add_header X-Verdict $referral_verdict always;
    keepalive_requests 100000;
    location /r/ { referral_redirect; }
    location / { return 200 "page $uri $referral_code\n"; }
};


sub start {
    my (%arg) = @_;

    my $t = Referral::Test->new();
    my $timeout = delete $arg{timeout} // '3s';

    $t->redis()->code("C$_", url => "https://example.com/$_") for 1 .. 60;

    $t->nginx(http => "referral_redis %%REDIS%% timeout=$timeout;",
              server => $server, %arg);

    return $t;
}


sub freeze {
    my ($t) = @_;

    $t->redis()->disconnect();
    $t->redis()->pause();
}


# sends the requests, each on a connection of its own, and does not wait

sub send_all {
    my ($t, @paths) = @_;

    return map {
        my $c = $t->connect();
        $c->write(Referral::Test::Http::request(path => $_));
        $c;
    } @paths;
}


# a RST instead of a FIN

sub reset_now {
    my ($c) = @_;

    setsockopt($c->socket(), SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
    $c->close();
}


subtest 'clients go' => sub {

    my $t = start(status => 1);
    my ($pid) = $t->workers();

    $t->get('/r/NONE');
    freeze($t);

    my @paths = map { $_ % 2 ? "/r/C$_" : "/page?ref=C$_" } 1 .. 40;
    my @c = send_all($t, @paths, ('/r/C1') x 10);

    sleep(0.2);

    # every third is closed, every third reset, among those for one code too

    for (0 .. $#c) {
        $c[$_]->close() if $_ % 3 == 0;
        reset_now($c[$_]) if $_ % 3 == 1;
    }

    sleep(0.2);
    $t->redis()->resume();

    my $right = 0;

    for (0 .. $#c) {
        next unless $_ % 3 == 2;
        my $r = $c[$_]->response();
        my $path = $_ < 40 ? $paths[$_] : '/r/C1';
        my ($n) = $path =~ /C(\d+)/;

        $right++ if $path =~ /^.r/
            ? ($r->header('Location') // '') eq "https://example.com/$n"
            : $r->body() eq "page /page C$n\n";
    }

    is($right, scalar(grep { $_ % 3 == 2 } 0 .. $#c), 'who stays is answered');

    ok($t->wait_for(sub { $t->status() =~ /^referral_zone_codes 40$/m }, 5),
       'replies for those who went fill the zone');
    is_deeply([ $t->workers() ], [ $pid ], 'the same worker');

    $t->done();
};


subtest 'clients go after the deadline, and before' => sub {

    my $t = start(timeout => '300ms');

    $t->get('/r/NONE');
    freeze($t);

    my @c = send_all($t, '/r/C1', '/r/C1', '/r/C2', '/p?ref=C2');
    sleep(0.1);
    $c[0]->close();
    $c[2]->close();
    sleep(0.4);

    is($c[1]->response()->status, 503, 'answered at the deadline');
    is($c[3]->response()->status, 200, 'a page is a page');

    $t->redis()->resume();

    ok($t->wait_for(sub { $t->get('/r/C3')->status == 302 }, 10), 'works');

    $t->done();
};


subtest 'pipelining' => sub {

    my $t = start();
    my $c = $t->connect();

    $c->write(join('', map {
        Referral::Test::Http::request(keepalive => 1, path => $_)
    } '/r/C1', '/p?ref=C2', '/r/NONE', '/r/C3', '/p?ref=NOT', '/r/C1'));

    my @r = map { $c->response() } 1 .. 6;

    is(join(' ', map { $_->status } @r), '302 200 404 302 200 302',
       'in order');
    is($r[3]->header('Location'), 'https://example.com/3', 'and right');

    # closed with answers outstanding

    freeze($t);

    $c->write(join('', map {
        Referral::Test::Http::request(keepalive => 1, path => "/r/C$_")
    } 10 .. 20));
    sleep(0.2);
    $c->close();
    sleep(0.2);
    $t->redis()->resume();

    is($t->get('/r/C30')->status, 302, 'works');

    $t->done();
};


subtest 'HTTP/2' => sub {

    my $t = Referral::Test->new();
    my $redis = $t->redis();

    my ($version) = $t->run($t->binary(), '-v')->{output} =~ /nginx\/([\d.]+)/;
    my ($major, $minor) = split(/\./, $version);
    my $new = $major > 1 || $minor >= 25;

    $redis->code("C$_", url => "https://example.com/$_") for 1 .. 20;
    $t->nginx(http => 'referral_redis %%REDIS%% timeout=3s;'
              . ($new ? ' http2 on;' : ''),
              server => $server, listen => $new ? '' : 'http2');

    my $url = 'http://127.0.0.1:' . $t->port('http');

    is($t->curl('--http2-prior-knowledge', "$url/r/C1")->status, 302,
       'waits');

    freeze($t);

    # three streams of one connection, reset by the client

    $t->curl('--http2-prior-knowledge', '-Z', '--max-time', '0.4',
             map { ("$url/r/C$_", "$url/p?ref=C$_") } 2 .. 4);

    my $pid = fork();
    die "fork: $!" unless defined $pid;

    if ($pid == 0) {
        select(undef, undef, undef, 0.4);
        kill('CONT', $redis->pid());
        POSIX::_exit(0);
    }

    is($t->curl('--http2-prior-knowledge', "$url/r/C5")->status, 302,
       'another waits through');
    waitpid($pid, 0);

    is($t->curl('--http2-prior-knowledge', "$url/r/C2")
       ->header('x-cache'), 'hit', 'what was asked for is known');

    $t->done();
};


subtest 'reload while they wait' => sub {

    my $t = start(workers => 2);

    $t->get('/r/NONE');
    freeze($t);

    my @c = send_all($t, map { ("/r/C$_", "/p?ref=C$_") } 1 .. 10);

    sleep(0.2);

    my @old = $t->workers();
    kill('HUP', $t->master());
    sleep(0.5);

    $t->redis()->resume();

    my @r = map { $_->response() } @c;

    is(join(' ', map { $_->status } @r), join(' ', (302, 200) x 10),
       'old workers answer first');

    ok($t->wait_for(sub {
        !grep { Referral::Test::alive($_) } @old
    }, 10), 'then they are gone');

    $t->done();
};


subtest 'reload while Redis is frozen or down' => sub {

    for my $how (qw(pause stop)) {

        my $t = start(timeout => '100ms');

        $t->get('/r/C1');
        $t->redis()->disconnect();
        $t->redis()->$how();
        $t->get("/r/C$_") for 2 .. 9;

        my @old = $t->workers();

        ok($t->reload(5), "$how: reload");
        ok($t->wait_for(sub {
            !grep { Referral::Test::alive($_) } @old
        }, 2), 'old workers go at once');

        is($t->get('/r/C1')->header('X-Cache'), 'stale', 'the zone answers');

        $t->redis()->resume() if $how eq 'pause';

        $t->nginx_stop();
        $t->nginx_start();

        $t->redis()->start() if $how eq 'stop';

      subtest $how => sub { $t->done(); };
    }

    done_testing();
};


subtest 'told to stop while they wait' => sub {

    for my $signal (qw(QUIT TERM)) {

      subtest $signal => sub {

        my $t = start();

        $t->get('/r/NONE');
        freeze($t);

        my @c = send_all($t, '/r/C1', '/r/C2', '/p?ref=C1', '/p?ref=C4');

        sleep(0.2);

        my $pid = fork();
        die "fork: $!" unless defined $pid;

        if ($pid == 0) {
            select(undef, undef, undef, 0.5);
            kill('CONT', $t->redis()->pid());
            POSIX::_exit(0);
        }

        $t->nginx_stop($signal);
        waitpid($pid, 0);

        if ($signal eq 'QUIT') {
            is(join(' ', map { $_->response()->status } @c),
               '302 302 200 200', 'they are answered');
        }

        $t->done();
      };
    }
};


subtest 'a worker is killed while they wait' => sub {

    my $t = start();

    $t->get('/r/C1');
    freeze($t);

    my @c = send_all($t, map { "/r/C$_" } 2 .. 10);

    sleep(0.2);
    $t->kill_worker();
    $t->redis()->resume();

    ok($t->wait_for(sub { $t->get('/r/C2')->status == 302 }, 5),
       'the next one works');

    # without Redis: it may be asked again, when nobody heard it for too long

    freeze($t);
    is($t->get('/r/C1')->status, 302, 'with the same zone');

    $t->done();
};


subtest 'Redis dies while they wait' => sub {

    my $t = start();

    $t->get('/r/NONE');
    freeze($t);

    my @c = send_all($t, map { ("/r/C$_", "/p?ref=C$_") } 1 .. 10);

    sleep(0.2);

    my $start = time();

    $t->redis()->kill9();

    my @r = map { $_->response() } @c;

    is(join(' ', map { $_->status } @r), join(' ', (503, 200) x 10),
       'all are answered');
    cmp_ok(time() - $start, '<', 1, 'at once');

    $t->done();
};


subtest 'worker_shutdown_timeout' => sub {

    my $t = start(main => 'worker_shutdown_timeout 1s;', timeout => '20s');

    $t->get('/r/NONE');
    freeze($t);

    my @c = send_all($t, '/r/C1', '/p?ref=C2');

    sleep(0.2);

    my @old = $t->workers();

    ok($t->reload(8), 'reload');
    ok($t->wait_for(sub {
        !grep { Referral::Test::alive($_) } @old
    }, 3), 'the old worker goes');

    $t->redis()->resume();

    ok($t->wait_for(sub { $t->get('/r/C1')->status == 302 }, 5), 'works');

    $t->done();
};


subtest 'reloads under load, Redis comes and goes' => sub {

    my $t = start(workers => 2, timeout => '50ms');

    my $end = time() + 4;
    my @pids;

    for my $n (1 .. 3) {
        my $pid = fork();
        die "fork: $!" unless defined $pid;

        if ($pid == 0) {
            my ($bad, $i) = (0, 0);

            while (time() < $end) {
                my $code = $i++ % 2 ? 'C' . int(rand(60) + 1) : "N${n}X$i";
                my $path = $i % 3 ? "/r/$code" : "/p?ref=$code";
                my $r = eval { $t->get($path) };

                $bad++ unless $r && $r->status =~ /^(?:200|302|404|503)$/;
            }

            POSIX::_exit($bad > 250 ? 250 : $bad);
        }

        push @pids, $pid;
    }

    my $redis = $t->redis();

    for my $how (qw(pause kill9 pause stop)) {
        sleep(0.3);
        $redis->disconnect();
        $redis->$how();
        kill('HUP', $t->master());
        sleep(0.4);
        $how eq 'pause' ? $redis->resume() : $redis->start();
    }

    my $bad = 0;

    for (@pids) {
        waitpid($_, 0);
        $bad += $? >> 8;
    }

    is($bad, 0, 'every request is answered');

    $redis->code('LAST');
    ok($t->wait_for(sub { $t->get('/r/LAST')->status == 302 }, 10), 'works');
    ok($t->wait_for(sub { $t->workers() == 2 }, 10), 'two workers are left');

    $t->done();
};


done_testing();
