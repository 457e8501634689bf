#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Requests that wait for Redis: all kinds of them go on as if nothing had
# been, those whose client left are forgotten.

use strict;
use warnings;

use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

use Referral::Test;


my $t = Referral::Test->new();
my $redis = $t->redis();

$redis->code("C$_", url => "https://example.com/$_") for 1 .. 99;
$t->write_file('html/index.html', "index\n");
$t->write_file('html/page.html', "page\n");

$t->nginx(cookie => 1, http => q{
    log_format all '$status $request_uri $referral_click_id';
    access_log %%DIR%%/access.log all;
    referral_redis %%REDIS%% timeout=5s;
    limit_req_zone $server_name zone=slow:64k rate=20r/s;

    server {
        listen 127.0.0.1:%%PORT:app%%;
        access_log off;
        return 200 "app $http_x_code";
    }

    server {
        listen 127.0.0.1:%%PORT:h2%% http2;
        referral on;
        location / { return 200 "h2 $referral_code"; }
        location /r/ { referral_redirect; }
    }

    server {
        listen 127.0.0.1:%%PORT:moved%%;
        referral on;
        return 301 /elsewhere;
    }
}, server => q{
    referral on;
    location / { return 200 "$referral_code $referral_verdict $referral_cache"; }
    location /index/ { alias %%DIR%%/html/; }
    location /try { try_files /none /page.html; }
    location = /page.html { }
    location /r/ { referral_redirect; }
    location /slow { limit_req zone=slow burst=10; try_files /page.html =404; }
    location /proxy { proxy_pass http://127.0.0.1:%%PORT:app%%;
                      proxy_set_header X-Code $referral_code; }
    location /auth { auth_request /sub; try_files /page.html =404; }
    location = /sub { proxy_pass http://127.0.0.1:%%PORT:app%%; }
});

# the link is up

is($t->get('/?ref=C99')->body(), 'C99 valid miss', 'a miss');

my $records = 1;
my $code = 0;


# Redis is stopped while requests are sent, they are answered once it goes on

sub during {
    my ($send) = @_;

    my $redis_pid = $redis->pid();

    $redis->pause();

    my $pid = fork() // die "fork: $!";

    if ($pid == 0) {
        sleep(0.2);
        kill('CONT', $redis_pid);
        POSIX::_exit(0);
    }

    my @result = $send->();
    waitpid($pid, 0);

    return @result;
}


sub next_code { return 'C' . ++$code }


# one at a time

sub waits {
    my ($path, $status, $body, $name, %arg) = @_;

    my $c = next_code();
    my $connection;

    s/CODE/$c/ for $path, $body;

    my ($r) = during(sub {
        $connection = $t->connect();
        return $connection->ask($path, %arg);
    });

    is($r->status(), $status, "$name: status");
    is($r->body(), $body, "$name: body") if defined $body;
    $records++;

    # and the connection goes on

    is($connection->ask('/')->status(), 200, "$name: the next request");
    $connection->close();

    return $r;
}


waits('/?ref=CODE', 200, 'CODE valid miss', 'page');
waits('/?ref=CODE', 200, 'CODE valid miss', 'GET with a body',
      body => 'x' x 20000);
waits('/?ref=CODE', 200, '', 'HEAD', method => 'HEAD');
waits('/index/?ref=CODE', 200, "index\n", 'index');
waits('/try?ref=CODE', 200, "page\n", 'try_files');
waits('/proxy?ref=CODE', 200, 'app CODE', 'proxy_pass');
waits('/auth?ref=CODE', 200, "page\n", 'auth_request');
waits('/slow?ref=CODE', 200, "page\n", 'limit_req');

my $r = waits('/r/CODE', 302, '', '/r/');
is($r->header('Location'), "https://example.com/$code", '/r/: location');
waits('/r/CODE', 302, '', '/r/, GET with a body', body => 'x' x 20000);
waits('/r/CODE', 302, '', '/r/, HEAD', method => 'HEAD');

$r = $t->get('/?ref=C1', port => $t->port('moved'));
$records++;
my $moved = next_code();
($r) = during(sub { $t->get("/?ref=$moved", port => $t->port('moved')) });
is($r->status(), 301, 'return in the server');
$records++;

# many at the same time, for one code and for several

my $shared = next_code();
my @paths = (("/?ref=$shared") x 10, map { '/r/' . next_code() } 1 .. 10);

my @all = during(sub { $t->parallel(@paths) });

is(scalar(grep { $_->status() == 200 && $_->body() =~ /^$shared valid/ }
          @all[0 .. 9]), 10, 'ten for one code');
is(scalar(grep { $_->status() == 302 } @all[10 .. 19]), 10, 'ten for ten');
$records += 20;

# pipelined

my @codes = map { next_code() } 1 .. 4;
my $c = $t->connect();
during(sub {
    $c->write(join('', map {
        "GET /?ref=$_ HTTP/1.1\r\nHost: x\r\n\r\n"
    } @codes));
});

is(join(' ', map { ($c->response()->body() =~ /^(\S+)/)[0] } @codes),
   "@codes", 'pipelined requests, in order');
$c->close();
$records += 4;

# HTTP/2: streams of one connection, each on its own

my ($page, $short) = (next_code(), next_code());
my $h2 = 'http://127.0.0.1:' . $t->port('h2');

($r) = during(sub {
    $t->run('nghttp', '-v', '--no-dep', "$h2/?ref=$page", "$h2/r/$short",
            "$h2/again?ref=$page");
});

like($r->{output}, qr/h2 $page/, 'HTTP/2: page');
like($r->{output}, qr{location: https://example\.com/$code\n},
     'HTTP/2: redirect');
is(scalar(() = $r->{output} =~ /:status: 200/g), 2, 'HTTP/2: both pages');
$records += 3;

is(scalar($t->records($records)), $records, 'each was recorded once');

# clients that leave

for my $path ('/?ref=CODE', '/r/CODE', '/proxy?ref=CODE') {
    my $code = next_code();
    (my $leaving = $path) =~ s/CODE/$code/;

    $redis->pause();
    my $c = $t->connect();
    $c->write("GET $leaving HTTP/1.1\r\nHost: x\r\n\r\n");
    sleep(0.1);
    $c->close();

    ok($t->wait_for(sub {
        ($t->read_file('access.log') // '') =~ /^499 \Q$leaving\E $/m
    }, 3), "$path: a client that leaves is noticed, and has no id");

    $redis->resume();
}

# and of HTTP/2

my $leaving = next_code();
$redis->pause();
$t->curl('--http2-prior-knowledge', '--max-time', '0.2', "$h2/?ref=$leaving");
ok($t->wait_for(sub { $t->read_file('access.log') =~ /^499 \S+$leaving $/m },
                3), 'HTTP/2: a client that leaves');
$redis->resume();

is($t->get('/')->status(), 200, 'the worker is there');
is(scalar($t->records(0)), $records, 'they left no record');

# a reload: the old worker ends when its requests have

my $last = next_code();
$redis->pause();
$c = $t->connect();
$c->write("GET /?ref=$last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
sleep(0.1);
$t->reload();
$redis->resume();
is($c->response()->body(), "$last valid miss", 'a request across a reload');
ok($t->wait_for(sub { $t->workers() == 1 }, 10), 'the old worker ends');

# the deadline

$t->reconfigure(cookie => 1, http => 'referral_redis %%REDIS%% timeout=150ms;',
                server => q{
    referral on;
    location / { return 200 "$referral_code $referral_verdict"; }
    location /r/ { referral_redirect; }
});

is($t->get('/?ref=C98')->body(), 'C98 valid', 'the link is up');
$redis->pause();

my $start = time();
is($t->get('/?ref=C97')->body(), 'C97 unverified', 'a page at the deadline');
my $took = time() - $start;
cmp_ok($took, '>', 0.1, 'not before');
cmp_ok($took, '<', 1.5, 'and not long after');

$r = $t->get('/r/C96');
is($r->status(), 503, '/r/ at the deadline');
like($r->header('Retry-After'), qr/^\d+$/, 'with the time to come again');
is($r->header('Cache-Control'), 'no-store', 'and not stored');

$redis->resume();
$t->allow(qr/redis|Redis/);

$t->done();
