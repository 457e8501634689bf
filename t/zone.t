#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The shared-memory zone: hits, misses, absent codes, stale entries, a full
# zone, reload, and one read of Redis for all who wait for a code.

use strict;
use warnings;

use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

use Referral::Test;


my $server = q{
    add_header X-Cache $referral_cache always;
    add_header X-Verdict $referral_verdict always;
    keepalive_requests 100000;
    location /r/ { referral_redirect; }
};


# reads of codes: a read of the publisher's state goes with each

sub hmgets {
    my ($redis) = @_;

    my ($n) = $redis->cmd('INFO', 'commandstats')
              =~ /^cmdstat_hmget:calls=(\d+)/m;

    return ($n // 0) / 2;
}


# "302 hit https://example.com/a": what a request for a code shows

sub shown {
    my ($r) = @_;

    return join(' ', $r->status, $r->header('X-Cache') // '-',
                $r->header('Location') // ());
}


sub start {
    my ($zone, %arg) = @_;

    my $t = Referral::Test->new();

    $t->redis(%{ $arg{redis} // {} });
    $t->nginx(http => "referral_zone $zone; "
              . "referral_redis %%REDIS%% timeout=2s; $arg{http}",
              server => $server, workers => $arg{workers} // 1, status => 1);

    return $t;
}


subtest 'hit, miss, absent' => sub {

    my $t = start('1m valid=10s invalid=500ms', http => '');
    my $redis = $t->redis();

    $redis->code('ONE', url => 'https://example.com/one');

    my $n = hmgets($redis);

    is(shown($t->get('/r/ONE')), '302 miss https://example.com/one', 'miss');
    is(shown($t->get('/r/ONE')), '302 hit https://example.com/one', 'hit');
    is(shown($t->get('/r/one')), '302 hit https://example.com/one',
       'another spelling is the same entry');
    is(hmgets($redis) - $n, 1, 'one read');

    $n = hmgets($redis);

    is(shown($t->get('/r/LATER')), '404 miss', 'absent, asked');
    is(shown($t->get('/r/LATER')), '404 hit', 'absent, known');
    is(hmgets($redis) - $n, 1, 'one read');

    $redis->code('LATER', url => 'https://example.com/later');
    sleep(0.6);

    is(shown($t->get('/r/LATER')), '302 miss https://example.com/later',
       'an absent code is never served stale');

    $n = hmgets($redis);

    is(shown($t->get('/r/no.code')) =~ /^404 / ? 1 : 0, 1, 'malformed');
    is($t->get('/r/' . 'A' x 65)->status, 404, 'too long');
    is(hmgets($redis) - $n, 0, 'neither is asked for');

    my $long = 'L' x 64;
    $redis->code($long, url => 'https://example.com/' . 'x' x 2000);

    is(shown($t->get("/r/$long")) , '302 miss https://example.com/'
       . 'x' x 2000, 'the longest code and a long url');
    is(shown($t->get("/r/$long")) , '302 hit https://example.com/'
       . 'x' x 2000, 'and from the zone');
    is(shown($t->get('/r/' . 'L' x 63)), '404 miss', 'its prefix is not it');

    $t->done();
};


subtest 'stale' => sub {

    my $t = start('1m valid=300ms invalid=300ms stale=2500ms', http => '');
    my $redis = $t->redis();

    $redis->code('S', url => 'https://example.com/old');

    is(shown($t->get('/r/S')), '302 miss https://example.com/old', 'filled');

    $redis->code('S', url => 'https://example.com/new');
    sleep(0.4);

    my $n = hmgets($redis);

    my @shown = map { shown($_) } $t->parallel(('/r/S') x 20);

    is(scalar(grep { $_ eq '302 stale https://example.com/old'
                     || $_ eq '302 hit https://example.com/new' } @shown),
       20, 'nobody waits for the refresh');
    like($shown[0], qr/stale/, 'the first is served stale');

    ok($t->wait_for(sub {
        shown($t->get('/r/S')) eq '302 hit https://example.com/new'
    }, 1), 'refreshed behind');

    cmp_ok(hmgets($redis) - $n, '<=', 2, 'one read for each expiry');

    # a dead Redis: the entry answers at once, until "stale" is over

    $redis->pause();
    sleep(0.4);

    my $start = time();
    my @again = map { shown($t->get('/r/S')) } 1 .. 5;

    is_deeply([ @again ], [ ('302 stale https://example.com/new') x 5 ],
              'stale while Redis is stopped');
    cmp_ok(time() - $start, '<', 1, 'without waiting');

    sleep(2.6);

    my $r = $t->get('/r/S');
    is($r->status, 503, 'too old to be served');
    is($r->header('X-Verdict'), 'unverified', 'unverified');

    $redis->resume();

    ok($t->wait_for(sub {
        $t->get('/r/S')->status == 302
    }, 10), 'and back');

    $t->done();
};


subtest 'versions' => sub {

    my $t = start('1m valid=100ms stale=2s', http => '');
    my $redis = $t->redis();

    my $settled = sub {
        my ($url) = @_;

        # stale, refreshed behind; at once and after a second

        for (1 .. 3) {
            sleep(0.15);
            $t->get('/r/V');
            sleep(0.3);
        }

        return $t->get('/r/V')->header('Location');
    };

    $redis->code('V', url => 'https://example.com/5', version => 5);
    is($settled->(), 'https://example.com/5', 'version 5');

    $redis->code('V', url => 'https://example.com/3', version => 3);
    is($settled->(), 'https://example.com/5', 'version 3 does not replace it');

    $redis->code('V', url => 'https://example.com/6', version => 6);
    is($settled->(), 'https://example.com/6', 'version 6 does');

    $redis->code('V', url => 'https://example.com/hand');
    is($settled->(), 'https://example.com/hand',
       'a hash without a version replaces all');

    $redis->code('V', url => 'https://example.com/7', version => 7);
    is($settled->(), 'https://example.com/7', 'version 7');

    $redis->code('V', url => 'https://example.com/2', version => 2);
    is($settled->(), 'https://example.com/7', 'version 2 does not');
    sleep(2.5);
    is($t->get('/r/V')->header('Location'), 'https://example.com/2',
       'what can no longer be served holds nothing back');

    $redis->cmd('DEL', 'referral:code:V');
    sleep(0.2);
    $t->get('/r/V');

    ok($t->wait_for(sub { $t->get('/r/V')->status == 404 }, 3),
       'absence replaces any version');

    $t->done();
};


subtest 'bad values' => sub {

    my $t = start('1m valid=10s', http => '');
    my $redis = $t->redis();

    $redis->cmd('SET', 'referral:code:TEXT', 'https://example.com/');
    $redis->code('SCRIPT', url => 'javascript:alert(1)');
    $redis->code('TIME', expires => 'tomorrow');
    $redis->code('STATE', state => 'perhaps');
    $redis->cmd('HSET', 'referral:code:BARE', 'campaign', 'x');
    $redis->cmd('HSET', 'referral:code:OTHER', 'colour', 'red');
    $redis->code('FINE', colour => 'red');

    for my $code (qw(TEXT SCRIPT TIME STATE BARE)) {
        is(shown($t->get("/r/$code")), '410 miss', "$code is inactive");
        is(shown($t->get("/r/$code")), '410 hit', 'and stays so');

        my @lines = grep { /code "$code" counts as inactive/ }
                    split(/\n/, $t->log());
        is(scalar(@lines), 1, 'logged once');
        like($lines[0], qr/\[error\].*referral:code:$code/, 'with its key');
    }

    is($t->get('/r/OTHER')->status, 404, 'only unknown fields: absent');
    is($t->get('/r/FINE')->status, 302, 'unknown fields are ignored');

    $t->done();
};


subtest 'full' => sub {

    my $t = start('160k valid=100s invalid=100s', http => '');
    my $redis = $t->redis();
    my $c = $t->connect();

    my @codes = map { sprintf('CODE%04d', $_) } 1 .. 900;

    $redis->code($_, url => "https://example.com/$_") for @codes;

    my $wrong = 0;

    for (@codes) {
        $wrong++ unless shown($c->ask("/r/$_"))
                        eq "302 miss https://example.com/$_";
    }

    is($wrong, 0, 'all codes work');

    is(shown($c->ask('/r/CODE0900')), '302 hit https://example.com/CODE0900',
       'the newest is there');
    is(shown($c->ask('/r/CODE0001')), '302 miss https://example.com/CODE0001',
       'the oldest was evicted');

    # what is used stays, whatever comes

    $wrong = 0;

    for (1 .. 850) {
        $c->ask("/r/$codes[$_ - 1]");
        next if $_ % 100;

        $wrong++ if shown($c->ask('/r/CODE0900')) !~ /^302 hit /;
    }

    is($wrong, 0, 'what is not used goes first');

    # long entries find room among short ones

    $redis->code("BIG$_", url => 'https://example.com/' . $_ x 2000)
        for 1 .. 9;

    is(shown($c->ask("/r/BIG$_")), '302 miss https://example.com/'
       . $_ x 2000, 'a long one') for 1 .. 9;
    is(shown($c->ask("/r/BIG$_")), '302 hit https://example.com/'
       . $_ x 2000, 'is kept') for 1 .. 9;

    # absent codes have their share only

    $c->ask("/r/NO$_") for 1 .. 600;

    is(shown($c->ask('/r/NO600')), '404 hit', 'the newest absent code');
    is(shown($c->ask('/r/NO1')), '404 miss', 'the oldest was evicted');
    is(shown($c->ask('/r/BIG9')) =~ /^302 hit/ ? 1 : 0, 1,
       'absent codes push no code out');

    $c->close();
    $t->log_unlike(qr/no memory|crit/, 'no complaint');
    $t->done();
};


subtest 'reload' => sub {

    my $t = start('1m valid=60s', http => '', workers => 2);
    my $redis = $t->redis();

    $redis->code('KEEP', url => 'https://example.com/keep');

    is(shown($t->get('/r/KEEP')), '302 miss https://example.com/keep',
       'filled');
    is(shown($t->get('/r/KEEP')), '302 hit https://example.com/keep',
       'another worker may answer') for 1 .. 8;

    ok($t->reload(), 'reload');
    like($t->status(), qr/^referral_zone_codes 1$/m, 'kept');

    # on a busy machine the old workers may go before a new one subscribed:
    # then nobody heard what changed, and it is read again

    ok($t->wait_for(sub {
        shown($t->get('/r/KEEP')) eq '302 hit https://example.com/keep'
    }, 5), 'and as good as before');

    $redis->stop();

    ok($t->reload(), 'reload');
    is(shown($t->get('/r/KEEP')), '302 stale https://example.com/keep',
       'kept, with Redis down');

    my %conf = (server => $server, workers => 2);

    ok($t->reconfigure(%conf, http => 'referral_zone 1m valid=1ms stale=1h; '
                       . 'referral_redis %%REDIS%%;'), 'other times');
    is(shown($t->get('/r/KEEP')), '302 stale https://example.com/keep',
       'they hold for entries that are there');

    ok($t->reconfigure(%conf, http => 'referral_zone 2m; '
                       . 'referral_redis %%REDIS%%;'), 'another size');
    is($t->get('/r/KEEP')->status, 503, 'a new zone is empty');

    $t->done();
};


subtest 'counters' => sub {

    my $t = Referral::Test->new();
    my $redis = $t->redis();

    $redis->code('ONE');
    $t->nginx(server => $server, status => 1, workers => 2);

    my $count = sub {
        my ($name) = @_;
        return $t->status() =~ /^\Q$name\E (\d+)/m ? $1 : undef;
    };

    my $hit = 'referral_zone_lookups_total{result="hit"}';
    my $miss = 'referral_zone_lookups_total{result="miss"}';

    $t->wait_for(sub { $count->('referral_zone_covered') }, 10);
    $t->get('/r/ONE') for 1 .. 11;

    is($count->($hit), 10, 'hits');
    is($count->($miss), 1, 'misses');
    is($count->('referral_zone_codes'), 1, 'codes');

    $t->get('/r/NONE');

    is($count->('referral_zone_absent_codes'), 1, 'absent codes');
    cmp_ok($count->('referral_redis_commands_total'), '==', 2, 'commands');

    ok($t->reload(), 'reload');
    is($count->($hit), 10, 'they survive a reload');

    $t->kill_worker();

    # the first may have to be read again, when nobody was subscribed

    $t->get('/r/ONE') for 1 .. 2;
    cmp_ok($count->($hit), '>=', 11, 'and a worker that is killed');

    $t->done();
};


# A small zone, many sizes, two workers, four clients: whatever is evicted
# under whom, nobody ever gets what belongs to another code.

subtest 'evictions under load' => sub {

    my $t = start('160k valid=200ms invalid=100ms stale=2s', http => '',
                  workers => 2);
    my $redis = $t->redis();

    my $name = sub { 'C' . $_[0] . ($_[0] % 7 ? '' : 'L' x 50) };
    my $url = sub {
        my ($n) = @_;
        return "https://example.com/$n/" . 'x' x ($n * 7919 % 1500);
    };

    $redis->code($name->($_), url => $url->($_), campaign => 'k' x ($_ % 128))
        for 1 .. 500;

    my @pids;

    for my $n (1 .. 4) {
        my $pid = fork();
        die "fork: $!" unless defined $pid;

        if ($pid == 0) {
            my $c = $t->connect();
            my ($end, $bad, $i) = (time() + 2.5, 0, $n);

            while (time() < $end) {
                $i = ($i * 1103515245 + 12345) % 2147483648;
                my $code = ($i >> 8) % 560 + 1;
                my $r = $c->ask('/r/' . $name->($code));
                my $right = $code <= 500
                    ? ($r->header('Location') // '') eq $url->($code)
                    : $r->status == 404;
                $bad++ unless $right;
            }

            POSIX::_exit($bad > 250 ? 250 : $bad);
        }

        push @pids, $pid;
    }

    my $bad = 0;

    for (@pids) {
        waitpid($_, 0);
        $bad += $? >> 8;
    }

    is($bad, 0, 'every answer is right');

    $t->done();
};


subtest 'shared wait' => sub {

    my $t = start('1m', http => '');
    my $redis = $t->redis();

    $redis->code('HOT', url => 'https://example.com/hot');

    is($t->get('/r/OTHER')->status, 404, 'well');

    my $n = hmgets($redis);

    $redis->disconnect();
    $redis->pause();

    my $pid = fork();
    die "fork: $!" unless defined $pid;

    if ($pid == 0) {
        select(undef, undef, undef, 0.5);
        kill('CONT', $redis->pid());
        POSIX::_exit(0);
    }

    my @r = $t->parallel(('/r/HOT') x 100, ('/r/NONE') x 50);

    waitpid($pid, 0);

    is(scalar(grep { shown($_) eq '302 miss https://example.com/hot' } @r),
       100, 'all who waited are answered');
    is(scalar(grep { shown($_) eq '404 miss' } @r), 50,
       'for absent codes too');
    is(hmgets($redis) - $n, 2, 'one read for each code');

    $t->done();
};


subtest 'cap on waiting requests' => sub {

    my $t = Referral::Test->new();
    my $redis = $t->redis();

    plan skip_all => 'needs 4096 descriptors'
        if POSIX::sysconf(POSIX::_SC_OPEN_MAX()) < 4096;

    $redis->code('HOT', url => 'https://example.com/hot');

    $t->write_file('dir', '');
    mkdir($t->path('journal'));

    $t->nginx(conf => <<"END");
%%GLOBALS%%
worker_processes 1;
worker_rlimit_nofile 4096;
events { worker_connections 4000; }
http {
%%HTTP_GLOBALS%%
    access_log off;
    referral_zone 1m;
    referral_journal %%DIR%%/journal size=64m segment=256k;
    referral_cookie off;
    referral_redis %%REDIS%% timeout=5s;
    server {
        listen 127.0.0.1:%%PORT%% backlog=2048;
        $server
    }
}
END

    # what follows is about a link that is up

    is($t->get('/r/NONE')->status, 404, 'well');

    $redis->disconnect();
    $redis->pause();

    my $pid = fork();
    die "fork: $!" unless defined $pid;

    if ($pid == 0) {
        select(undef, undef, undef, 2.5);
        kill('CONT', $redis->pid());
        POSIX::_exit(0);
    }

    my @r = $t->parallel(('/r/HOT') x 1100);

    waitpid($pid, 0);

    is(scalar(grep { $_->status == 302 } @r), 1024, 'so many wait');
    is(scalar(grep { $_->status == 503 } @r), 76, 'the rest is answered');

    my ($last) = sort { $b <=> $a } map { $_->{at} }
                 grep { $_->status == 503 } @r;
    my ($first) = sort { $a <=> $b } map { $_->{at} }
                  grep { $_->status == 302 } @r;

    cmp_ok($last, '<', $first, 'at once');

    is($t->get('/r/HOT')->status, 302, 'and it goes on');

    $t->done();
};


subtest 'configuration' => sub {

    my $t = Referral::Test->new();

    my @cases = (
        [ 'referral_zone 1x;', qr/invalid zone size "1x"/ ],
        [ 'referral_zone 8k;',
          qr/zone size "8k" is too small, the least is \d+k/ ],
        [ 'referral_zone 1m valid=x;', qr/invalid time in "valid=x"/ ],
        [ 'referral_zone 1m stale=;', qr/invalid time in "stale="/ ],
        [ 'referral_zone 1m colour=red;',
          qr/invalid parameter "colour=red"/ ],
        [ 'referral_zone 1m; referral_zone 1m;', qr/is duplicate/ ],
    );

    for (@cases) {
        my ($conf, $pattern) = @$_;
        my $r = $t->nginx_test(http => $conf, server => $server);

        isnt($r->{status}, 0, $conf);
        like($r->{output}, qr/\[emerg\].*$pattern/, 'says why');
    }

    $t->done();
};


done_testing();
