#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Budgets: misses for each /24 and /64, and records of clicks that are noise.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use Referral::Test;


my $realip = q{
    set_real_ip_from 127.0.0.1;
    real_ip_header X-Real-IP;
};

my $server = q{
    referral on;
    add_header X-Cache $referral_cache always;
    location /r/ { referral_redirect; }
    location / { return 200 "page\n"; }
    location /moved { rewrite ^ /page last; }
    location /own/ { error_page 429 /own429; return 200 "page\n"; }
    location /own429 { return 200 "own\n"; }
};


sub start {
    my ($limit, %arg) = @_;

    my $t = Referral::Test->new();

    $t->redis();
    $t->nginx(http => "$limit $realip", server => $server, %arg);

    return $t;
}


my $next = 0;

# statuses of $n requests from an address, each for a code not seen before

sub misses {
    my ($t, $address, $n, $path) = @_;

    $path //= '/r/';

    return join(' ', map {
        $t->get($path . 'MISS' . ++$next,
                headers => { 'X-Real-IP' => $address })->status
    } 1 .. $n);
}


subtest 'networks' => sub {

    my $t = start('referral_miss_limit rate=1r/m burst=2;');
    my $redis = $t->redis();

    is(misses($t, '192.0.2.1', 5), '404 404 404 429 429', 'burst, then 429');
    is(misses($t, '192.0.2.200', 1), '429', 'the same /24');
    is(misses($t, '192.0.3.1', 4), '404 404 404 429', 'another /24');

    is(misses($t, '2001:db8:0:1::1', 4), '404 404 404 429', 'a /64');
    is(misses($t, '2001:db8:0:1:ffff::2', 1), '429', 'the same /64');
    is(misses($t, '2001:db8:0:2::1', 1), '404', 'another /64');

    is(misses($t, '::ffff:192.0.2.9', 1), '429', 'IPv4 in IPv6 is IPv4');

    # 192.0.2.0 in IPv4 and its bytes at the start of an IPv6 address

    is(misses($t, 'c000:200::1', 1), '404', 'families are kept apart');

    my $r = $t->get('/r/ELSE', headers => { 'X-Real-IP' => '192.0.2.1' });

    is($r->status, 429, 'refused');
    is($r->header('Cache-Control'), 'no-store', 'not to be cached');
    ok($r->header('Retry-After'), 'says when to come again');

    # hits are free

    $redis->code('KNOWN', url => 'https://example.com/known');
    is($t->get('/r/KNOWN', headers => { 'X-Real-IP' => '198.51.100.1' })
       ->status, 302, 'filled by another network');

    is(join(' ', map {
           $t->get('/r/KNOWN', headers => { 'X-Real-IP' => '192.0.2.1' })
           ->status
       } 1 .. 20), join(' ', (302) x 20), 'hits are never limited');

    is(misses($t, '192.0.2.1', 3, '/page?ref='), '429 429 429',
       'parameters share the budget');
    is(misses($t, '192.0.2.1', 3, '/r/KNOWN?ref='), '302 302 302',
       'a parameter that loses against a hit costs the hit nothing');
    is(misses($t, '192.0.2.1', 1, '/r/ELSE?ref='), '429',
       'a miss stays one');
    is(misses($t, '192.0.2.1', 2, '/moved?ref='), '429 429',
       'a location that only rewrites');

    $r = $t->get('/own/x?ref=MISS' . ++$next,
                 headers => { 'X-Real-IP' => '192.0.2.1' });
    is($r->status . $r->body, "429own\n", "the site's own page for it");
    is($r->header('Cache-Control'), 'no-store', 'which is not to be cached');
    ok($r->header('Retry-After'), 'and says when to come again');

    is($t->get('/page', headers => { 'X-Real-IP' => '192.0.2.1' })->status,
       200, 'a page without a parameter is not touched');

    $t->done();
};


subtest 'rate' => sub {

    my $t = start('referral_miss_limit rate=10r/s;');

    is(misses($t, '192.0.2.1', 3), '404 429 429', 'no burst');
    sleep(0.15);
    is(misses($t, '192.0.2.1', 2), '404 429', 'one each 100 ms');

    is(misses($t, "10.0.$_.1", 1), '404', 'a fresh network') for 0 .. 3;

    $t->done();
};


subtest 'across workers and reload' => sub {

    my $t = start('referral_miss_limit rate=1r/m burst=3;', workers => 2);

    is(misses($t, '192.0.2.1', 8),
       '404 404 404 404 429 429 429 429', 'one budget for all workers');

    ok($t->reload(), 'reload');

    is(misses($t, '192.0.2.1', 2), '429 429', 'the budget stays spent');

    $t->done();
};


subtest 'Redis is down' => sub {

    my $t = start('referral_miss_limit rate=1r/m;');

    $t->redis()->stop();
    $t->log_like(qr/is not usable/, 'noticed');

    is(misses($t, '192.0.2.1', 5), '503 503 503 503 503',
       'nothing is asked, nothing is counted');

    $t->redis()->start();
    $t->log_like(qr/is usable again/, 'noticed');

    is(misses($t, '192.0.2.1', 2), '404 429', 'and now it is');

    $t->done();
};


subtest 'joining a read costs nothing' => sub {

    my $t = Referral::Test->new();
    my $redis = $t->redis();

    $t->nginx(http => "referral_miss_limit rate=1r/m; $realip "
              . 'referral_redis %%REDIS%% timeout=3s;', server => $server);

    $redis->code('LAUNCH', url => 'https://example.com/');

    is(misses($t, '192.0.2.1', 1), '404', 'well');

    $redis->disconnect();
    $redis->pause();

    my $pid = fork();
    die "fork: $!" unless defined $pid;

    if ($pid == 0) {
        select(undef, undef, undef, 0.3);
        kill('CONT', $redis->pid());
        POSIX::_exit(0);
    }

    my @r = $t->parallel(('/r/LAUNCH') x 30);

    waitpid($pid, 0);

    is(scalar(grep { $_->status == 302 } @r), 30,
       'a crowd behind one address gets in');

    $t->done();
};


subtest 'noise' => sub {

    my $t = start('');
    my $redis = $t->redis();
    my $c = $t->connect();

    $redis->code('GOOD', url => 'https://example.com/');

    # the budget is 2,000 at once, then 200 a second; a reload gives a new one

    $t->reconfigure(http => $realip, status => 1,
                    server => 'keepalive_requests 100000;' . $server);

    $c = $t->connect();

    my $began = time();

    $c->ask('/r/BAD') for 1 .. 3000;

    my $took = time() - $began;

    $c->ask('/r/GOOD') for 1 .. 5;
    $c->close();

    my ($dropped) = $t->status()
        =~ /^referral_dropped_total\{reason="noise"\} (\d+)/m;

    my $room = 2000 + 200 * $took;

    cmp_ok(abs(3000 - $dropped - $room), '<', 60 + 0.05 * $room,
           'the budget for noise is as said')
        or diag("dropped $dropped of 3000 in $took s");

    my @records = $t->records(2005);
    my $good = grep { ($_->{code} // '') eq 'GOOD' } @records;

    is($good, 5, 'clicks on good codes are recorded');
    is(scalar(@records), 3005 - $dropped,
       'all that is not recorded is counted');

    $t->done();
};


subtest 'configuration' => sub {

    my $t = Referral::Test->new();

    my @cases = (
        [ 'rate=0r/s', qr/invalid rate "rate=0r\/s"/ ],
        [ 'rate=10r/h', qr/invalid rate "rate=10r\/h"/ ],
        [ 'rate=r/s', qr/invalid rate "rate=r\/s"/ ],
        [ 'rate=', qr/invalid rate "rate="/ ],
        [ 'rate=-1r/s', qr/invalid rate "rate=-1r\/s"/ ],
        [ 'burst=5', qr/must have the "rate" parameter/ ],
        [ 'rate=1r/s burst=x', qr/invalid burst value "burst=x"/ ],
        [ 'rate=1r/s nodelay', qr/invalid parameter "nodelay"/ ],
        [ 'rate=1r/s; referral_miss_limit rate=1r/s', qr/is duplicate/ ],
    );

    for (@cases) {
        my ($value, $pattern) = @$_;
        my $r = $t->nginx_test(http => "referral_miss_limit $value;");

        isnt($r->{status}, 0, $value);
        like($r->{output}, qr/\[emerg\].*$pattern/, 'says why');
    }

    is($t->nginx_test(http => "referral_miss_limit rate=$_;")->{status}, 0,
       "rate=$_")
        for '10r/s', '30r/m', '10', '1r/s burst=0';

    $t->done();
};


done_testing();
