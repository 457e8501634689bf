#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Codes that change: what Redis announces reaches the zone, whatever happens
# to the connections meanwhile, and nothing old is believed afterwards.

use strict;
use warnings;

use IO::Socket::UNIX;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

use Referral::Test;
use Referral::Test::Gate;


my $server = q{
    add_header X-Cache $referral_cache always;
    add_header X-Verdict $referral_verdict always;
    keepalive_requests 1000000;
    location /r/ { referral_redirect; }
};


# "302 hit a": status, cache, the last part of the destination

sub shown {
    my ($r) = @_;

    my ($to) = ($r->header('Location') // '') =~ m{/([^/]+)\z};

    return join(' ', $r->status, $r->header('X-Cache') // '-', $to // ());
}


sub show { my ($t, $code) = @_; return shown($t->get("/r/$code")) }


# nginx whose connections to Redis can be told apart, and stopped

sub start {
    my (%arg) = @_;

    my $t = Referral::Test->new();
    my $redis = $t->redis(%{ $arg{redis} // {} });
    my $gate;

    if ($arg{gate}) {
        $gate = Referral::Test::Gate->new(listen => $t->path('gate'),
                                          to => $redis->path());
    }

    my $at = $arg{at} // ($gate ? 'unix:%%DIR%%/gate' : '%%REDIS%%');
    my $zone = $arg{zone} // '1m valid=60s invalid=60s';
    my $http = $arg{http} // '';
    my $timeout = $arg{timeout} // '2s';

    $t->nginx(http => "referral_zone $zone; referral_redis $at "
                      . "timeout=$timeout; $http",
              main => $arg{main} // '', server => $server, status => 1,
              workers => $arg{workers} // 1);

    covered($t, $arg{workers}) unless $arg{uncovered};

    return ($t, $redis, $gate);
}


sub value {
    my ($t, $name) = @_;

    return $t->status() =~ /^referral_\Q$name\E (\d+)/m ? $1 : undef;
}


sub covered {
    my ($t, $workers) = @_;

    return $t->wait_for(sub {
        value($t, 'zone_covered')
            && value($t, 'redis_subscribed_workers') >= ($workers // 1)
    }, 10);
}


# sets a code and says so, as the publisher does

sub publish {
    my ($redis, $code, $version, %field) = @_;

    $redis->cmd('DEL', "referral:code:$code");
    $redis->cmd('HSET', "referral:code:$code",
                url => "https://example.com/$version",
                version => $version, %field);
    $redis->cmd('PUBLISH', 'referral:invalidate', "$code $version");
}


# a request whose answer comes later: $later->() waits for it

sub later {
    my ($t, $path) = @_;

    my $c = $t->connect();
    $c->write("GET $path HTTP/1.1\r\nHost: x\r\n\r\n");

    return sub { my $r = $c->response(); $c->close(); return $r };
}


sub soon {
    my ($t, $code, $expect, $name, $timeout) = @_;

    my $got = '';

    ok($t->wait_for(sub { ($got = show($t, $code)) =~ $expect },
                    $timeout // 2), $name) or diag("it is $got");
}


subtest 'a change is heard' => sub {

    my ($t, $redis) = start(workers => 2);

    # a word that comes between a read and its reply keeps that out of the zone

    publish($redis, 'A', 1);
    sleep(0.1);
    is(show($t, 'A'), '302 miss 1', 'filled');
    is(show($t, 'A'), '302 hit 1', 'kept');

    publish($redis, 'A', 2);
    soon($t, 'A', qr/^302 \w+ 2$/, 'changed');

    publish($redis, 'A', 3, state => 'inactive');
    soon($t, 'A', qr/^410 /, 'switched off');

    is(show($t, 'B'), '404 miss', 'absent');
    is(show($t, 'B'), '404 hit', 'and known as such');
    publish($redis, 'B', 4);
    soon($t, 'B', qr/^302 \w+ 4$/, 'made');

    $redis->cmd('DEL', 'referral:code:B');
    $redis->cmd('PUBLISH', 'referral:invalidate', 'B 5');
    soon($t, 'B', qr/^404 /, 'removed');

    # from the command of the change to the first answer that is new

    my @took;
    my $c = $t->connect();

    for my $n (10 .. 109) {
        $c->ask('/r/C');
        publish($redis, 'C', $n);
        my $start = time();
        1 until shown($c->ask('/r/C')) =~ / $n$/ || time() - $start > 5;
        push @took, time() - $start;
    }

    @took = sort { $a <=> $b } @took;
    cmp_ok($took[50], '<', 0.02, 'half of 100 changes in 20 ms');
    cmp_ok($took[-1], '<', 1, 'each in time');
    $c->close();

    # what is no message changes nothing, and breaks nothing

    publish($redis, 'D', 200);
    show($t, 'D');

    for my $odd ('', ' ', 'off ', 'OFF', '* ', '*x', "D\0", 'D 1x', ' D',
                 'D ' . '9' x 30, '../..', "\x00" x 100, 'x' x 1_000_000)
    {
        $redis->cmd('PUBLISH', 'referral:invalidate', $odd);
    }

    soon($t, 'D', qr/^302 \w+ 200$/, 'odd messages');

    # by hand, without a version

    $redis->cmd('HSET', 'referral:code:D', url => 'https://example.com/hand');
    $redis->cmd('PUBLISH', 'referral:invalidate', 'd');
    soon($t, 'D', qr/^302 \w+ hand$/, 'any spelling, no version');

    # by each worker, or by one while the other subscribes again

    cmp_ok(value($t, 'redis_invalidations_total'), '>=', 100, 'counted');

    $t->done();
};


# as a person does

sub by_hand {
    my ($redis, $code, $to) = @_;

    $redis->cmd('HSET', "referral:code:$code",
                url => "https://example.com/$to");
    $redis->cmd('PUBLISH', 'referral:invalidate', $code);
}


# The two connections are not ordered: a reply may be older than what the
# subscription has said since it was asked for.

sub race {
    my (%arg) = @_;

    my ($t, $redis, $gate) = start(gate => 1, %arg);

    by_hand($redis, 'RACE', 1);
    sleep(0.1);
    $gate->hold('lookup');

    my $first = later($t, '/r/RACE');

    $t->wait_for(sub { value($t, 'redis_waiting_requests') == 1 }, 5);
    sleep(0.05);

    my $heard = value($t, 'redis_invalidations_total');
    by_hand($redis, 'RACE', 2);
    $t->wait_for(sub {
        value($t, 'redis_invalidations_total') > $heard
    }, 5);

    my $second = later($t, '/r/RACE');
    $t->wait_for(sub { value($t, 'redis_waiting_requests') == 2 }, 5);

    $gate->release('lookup');

    my @shown = map { shown($_->()) } $first, $second;

    push @shown, show($t, 'RACE');

    my $changed = value($t, 'zone_refused_total{reason="changed"}');

    return ($t, $changed, @shown);
}


subtest 'a reply that was overtaken' => sub {

    my ($t, $changed, @shown) = race();

    is($shown[0], '302 miss 1', 'who asked before the change may see it');
    is($shown[1], '302 miss 2', 'who came later does not');
    is($shown[2], '302 hit 2', 'nor does the zone');
    is($changed, 1, 'counted');

    $t->done();
};


subtest 'the same without the guard' => sub {

    local $ENV{REFERRAL_MODULE} = Referral::Test->faults()
        or plan skip_all => 'needs a build with fault points';

    my ($t, $changed, @shown) =
        race(main => 'env REFERRAL_NO_GUARD=zone-generation;');

    is($shown[2], '302 hit 1', 'the zone is wrong');

    $t->done();
};


subtest 'versions' => sub {

    my ($t, $redis) = start(timeout => '300ms');

    publish($redis, 'V', 4);
    is(show($t, 'V'), '302 miss 4', 'filled');

    # a word that another worker heard, too, long ago

    $redis->cmd('PUBLISH', 'referral:invalidate', 'V 3');
    $redis->cmd('PUBLISH', 'referral:invalidate', 'V 4');
    sleep(0.1);
    is(show($t, 'V'), '302 hit 4', 'as new as what is announced: it stays');

    # an older reply than what was announced, as of a replica that lags

    $redis->cmd('PUBLISH', 'referral:invalidate', 'V 6');
    sleep(0.1);

    my $r = $t->get('/r/V');
    is($r->status . $r->header('X-Verdict'), '503unverified',
       'an older version is not believed');
    cmp_ok(value($t, 'zone_refused_total{reason="older"}'), '>=', 1,
           'counted');

    $redis->cmd('HSET', 'referral:code:V', url => 'https://example.com/6',
                version => 6);
    is(show($t, 'V'), '302 miss 6', 'until it is there');

    # everything is published again, maybe with other versions

    $redis->cmd('PUBLISH', 'referral:invalidate', 'W 9');
    $redis->cmd('HSET', 'referral:code:W', url => 'https://example.com/5',
                version => 5);
    sleep(0.1);
    is($t->get('/r/W')->status, 503, 'too old');
    $redis->cmd('PUBLISH', 'referral:invalidate', '* 1');
    soon($t, 'W', qr/^302 \w+ 5$/, '"*" forgets what was announced');

    # a database that was restored counts from where it was then

    publish($redis, 'Y', 9);
    is(show($t, 'Y'), '302 miss 9', 'filled');
    $redis->cmd('HSET', 'referral:code:Y', url => 'https://example.com/5',
                version => 5);
    $redis->cmd('PUBLISH', 'referral:invalidate', '* 2');
    soon($t, 'Y', qr/^302 \w+ 5$/, '"*" forgets versions in the zone, too');

    publish($redis, 'Z', 9);
    is(show($t, 'Z'), '302 miss 9', 'filled');
    $redis->cmd('HSET', 'referral:publisher', generation => 2, ready => 1);
    show($t, 'NONE');
    $redis->cmd('HSET', 'referral:code:Z', url => 'https://example.com/5',
                version => 5);
    $redis->cmd('HSET', 'referral:publisher', generation => 3);
    show($t, 'NONE2');
    soon($t, 'Z', qr/^302 \w+ 5$/, 'so does a generation that is read');

    $t->done();
};


# a name with two addresses: one server is not told of the other's changes

subtest 'the server of lookups' => sub {

    plan(skip_all => 'nothing can be preloaded before the sanitizers')
        if $ENV{REFERRAL_ASAN};

    my $t = Referral::Test->new();
    my $one = $t->redis(tcp => 1);
    my $two = $t->redis(name => 'two', port => $one->port(),
                        args => [ '--bind', '127.0.0.2' ]);

    $t->write_file('names.c', q{
        #include <arpa/inet.h>
        #include <dlfcn.h>
        #include <netdb.h>
        #include <string.h>

        int
        getaddrinfo(const char *node, const char *service,
            const struct addrinfo *hints, struct addrinfo **res)
        {
            int               rc;
            struct addrinfo  *two;
            int             (*next)(const char *, const char *,
                                    const struct addrinfo *,
                                    struct addrinfo **);

            *(void **) &next = dlsym(RTLD_NEXT, "getaddrinfo");

            if (strcmp(node, "redis.example") != 0) {
                return next(node, service, hints, res);
            }

            rc = next("127.0.0.1", service, hints, res);

            if (rc == 0) {
                (*res)->ai_next = NULL;
                rc = next("127.0.0.2", service, hints, &two);
                (*res)->ai_next = two;
            }

            return rc;
        }
    });

    my $built = $t->run($ENV{CC} // 'gcc', '-D_GNU_SOURCE', '-shared', '-fPIC',
                        '-o', $t->path('names.so'), $t->path('names.c'));

    is($built->{status}, 0, 'built') or diag($built->{output});

    {
        local $ENV{LD_PRELOAD} = $t->path('names.so');
        $t->nginx(http => 'referral_zone 1m valid=60s; referral_redis'
                          . ' redis://redis.example:' . $one->port() . ';',
                  server => $server, status => 1);
    }

    ok(covered($t), 'covered');
    publish($one, 'C', 1);
    is(show($t, 'C'), '302 miss 1', 'by the first of two');

    my $named = sub {
        return scalar(grep { /name=referral-\d+-\Q$_[1]\E / }
                      split(/\n/, $_[0]->cmd('CLIENT', 'LIST')));
    };

    # it takes lookups, and no second connection

    $one->cmd('CONFIG', 'SET', 'maxclients', 2);
    $one->cmd('CLIENT', 'KILL', 'TYPE', 'pubsub');
    ok($t->wait_for(sub { !value($t, 'zone_covered') }, 10), 'refused');
    sleep(0.5);

    ok(!$named->($two, 'subscribe'), 'another server is not the one to hear');
    is($named->($one, 'lookup'), 1, 'of what is read here');
    publish($one, 'C', 2);
    soon($t, 'C', qr/^302 \w+ 2$/, 'it is read again');

    $one->cmd('CONFIG', 'SET', 'maxclients', 100);
    ok(covered($t), 'covered again');
    is($named->($one, 'subscribe'), 1, 'by the first');

    # when that is gone, both go

    $two->cmd('HSET', 'referral:code:C', url => 'https://example.com/3',
              version => 3);
    $one->stop();
    ok($t->wait_for(sub { $named->($two, 'lookup')
                          && $named->($two, 'subscribe') }, 10), 'both');
    ok(covered($t), 'covered by the second');
    soon($t, 'C', qr/^302 \w+ 3$/, 'what it has');

    $t->done();
};


subtest 'all have changed' => sub {

    my ($t, $redis) = start(workers => 2,
                            http => 'referral_miss_limit rate=1r/m burst=9;',
                            timeout => '50ms');

    $redis->code("A$_", url => 'https://example.com/old') for 1 .. 9;
    show($t, "A$_") for 1 .. 9;
    is(show($t, 'NONE'), '404 miss', 'the budget is spent');
    is($t->get('/r/NONE2')->status, 429, 'it is');

    $redis->code("A$_", url => 'https://example.com/new') for 1 .. 9;

    my $epoch = value($t, 'zone_epoch');
    $redis->cmd('PUBLISH', 'referral:invalidate', '* 7');
    ok($t->wait_for(sub { value($t, 'zone_epoch') > $epoch }, 5), 'heard');
    sleep(0.2);
    is(value($t, 'zone_epoch'), $epoch + 1, 'once, by two workers');

    is(join(' ', map { show($t, "A$_") } 1 .. 4),
       join(' ', ('302 miss new') x 4), 'each is read again, at no expense');
    is(show($t, 'A1'), '302 hit new', 'once');
    is(show($t, 'NONE'), '404 miss', 'what was absent, too');

    # Redis stops just then: the entry is the answer

    my $pid = $redis->pid();
    $redis->cmd('PUBLISH', 'referral:invalidate', '* 8');
    sleep(0.1);
    $redis->disconnect();
    $redis->pause();

    my $start = time();
    is(show($t, 'A1'), '302 stale new', 'at the deadline');
    cmp_ok(time() - $start, '<', 1, 'in time');
    $t->get("/r/A$_") for (1 .. 9) x 2;

    is(show($t, 'A3'), '302 stale new', 'and when nobody waits any more');

    # the best of some, as others use the machine, too

    my @took;

    for (1 .. 5) {
        $start = time();
        is(show($t, 'A9'), '302 stale old', 'whatever is there');
        push(@took, time() - $start);
    }

    @took = sort { $a <=> $b } @took;
    cmp_ok($took[0], '<', 0.05, 'at once');

    $redis->resume();
    soon($t, 'A9', qr/^302 \w+ new$/, 'and is read when Redis is back', 10);

    # by hand: always

    $epoch = value($t, 'zone_epoch');
    $redis->cmd('PUBLISH', 'referral:invalidate', '*');
    ok($t->wait_for(sub { value($t, 'zone_epoch') > $epoch }, 5),
       'without a generation');

    $t->done();
};


subtest 'the cap is for misses' => sub {

    plan skip_all => 'needs 4096 descriptors'
        if POSIX::sysconf(POSIX::_SC_OPEN_MAX()) < 4096;

    my $t = Referral::Test->new();
    my $redis = $t->redis();

    $redis->code('HOT', url => 'https://example.com/hot');
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
    referral_redis %%REDIS%% timeout=1s;
    server {
        listen 127.0.0.1:%%PORT%% backlog=2048;
        $server
    }
    server {
        listen 127.0.0.1:%%PORT:status%%;
        location = /status { referral_status; }
    }
}
END

    covered($t);
    is(show($t, 'HOT'), '302 miss hot', 'filled');
    $redis->cmd('PUBLISH', 'referral:invalidate', '* 1');
    sleep(0.1);
    $redis->disconnect();
    $redis->pause();

    my @r = $t->parallel(('/r/HOT') x 1100);

    is(scalar(grep { $_->status == 302 } @r), 1100,
       'nobody is turned away whose code is known');

    $redis->resume();
    $t->done();
};


subtest 'switched off as a whole' => sub {

    my ($t, $redis) = start(workers => 2);

    $redis->code('P7', program_id => 7, referrer_id => 1);
    $redis->code('P8', program_id => 8, referrer_id => 2);
    $redis->code('HAND');

    is($t->get("/r/$_")->status, 302, $_) for qw(P7 P8 HAND);

    my $off = sub {
        $redis->cmd(@_);
        $redis->cmd('PUBLISH', 'referral:invalidate', 'off');
    };
    my $all = sub { join(' ', map { $t->get("/r/$_")->status }
                              qw(P7 P8 HAND)) };
    my $becomes = sub {
        my ($expect, $name) = @_;
        ok($t->wait_for(sub { $all->() eq $expect }, 2), $name)
            or diag($all->());
        is($all->(), $expect, 'and stays so') for 1 .. 4;
    };

    $off->('SADD', 'referral:off', 'program:7');
    $becomes->('410 302 302', 'a program');

    $off->('SADD', 'referral:off', 'referrer:2', 'referrer:7', 'program:1',
           'program:70', 'program:-7', 'nonsense', 'program:',
           'referrer:99999999999999999999');
    $becomes->('410 410 302', 'a referrer');
    $t->log_like(qr/\[error\].*referral:off.*neither program:<id> nor/,
                 'members that are none');
    is(value($t, 'zone_off_members'), 5, 'counted');

    # a code that is read only now

    $redis->code('P7NEW', program_id => 7);
    is($t->get('/r/P7NEW')->status, 410, 'an unknown code of the program');

    $off->('SREM', 'referral:off', 'program:7');
    $becomes->('302 410 302', 'the program is on again');

    $off->('DEL', 'referral:off');
    $becomes->('302 302 302', 'all is');

    # nobody says a word: a look now and then

    $redis->cmd('SADD', 'referral:off', 'program:8');
    ok($t->wait_for(sub { $all->() eq '302 410 302' }, 12),
       'a lost word is made good');

    $t->done();
};


subtest 'the set changes while it is read' => sub {

    my ($t, $redis, $gate) = start(gate => 1);

    $redis->code('P7', program_id => 7);
    is($t->get('/r/P7')->status, 302, 'on');

    my $reads = value($t, 'redis_off_reads_total');

    $gate->hold('lookup');
    $redis->cmd('PUBLISH', 'referral:invalidate', 'off');
    $t->wait_for(sub { value($t, 'redis_off_reads_total') > $reads }, 5);
    sleep(0.05);

    $redis->cmd('SADD', 'referral:off', 'program:7');
    $redis->cmd('PUBLISH', 'referral:invalidate', 'off') for 1 .. 20;
    sleep(0.05);
    $gate->release('lookup');

    soon($t, 'P7', qr/^410 /, 'it is read again');
    is(value($t, 'redis_off_reads_total'), $reads + 2, 'once');

    $t->done();
};


subtest 'too many are switched off' => sub {

    my ($t, $redis) = start(zone => '512k valid=60s');

    $redis->code('P7', program_id => 7, url => 'https://example.com/1');
    $redis->code('HAND');
    show($t, $_) for qw(P7 HAND);

    $redis->cmd('SADD', 'referral:off', map { "program:$_" } 100 .. 5000);
    $redis->cmd('PUBLISH', 'referral:invalidate', 'off');

    $t->log_like(qr/\[error\].*referral:off.*has more than 4096 members/,
                 'says so');
    sleep(1);

    $redis->code('P7', program_id => 7, url => 'https://example.com/2');
    soon($t, 'P7', qr/^302 \w+ 2$/, 'such codes are read again', 3);
    is($t->get('/r/HAND')->header('X-Cache'), 'hit', 'others are not');

    $redis->cmd('DEL', 'referral:off');
    $redis->cmd('PUBLISH', 'referral:invalidate', 'off');
    sleep(1.2);
    show($t, 'P7');
    is($t->get('/r/P7')->header('X-Cache'), 'hit', 'until there are fewer');

    $t->done();
};


subtest 'the subscription is cut' => sub {

    my ($t, $redis, $gate) = start(gate => 1);

    $redis->code($_, url => 'https://example.com/old') for qw(A B);
    show($t, $_) for qw(A B);

    $gate->cut('subscribe');
    ok($t->wait_for(sub { value($t, 'zone_covered') == 0 }, 1),
       'known at once');

    my $commands = value($t, 'redis_commands_total');
    my %seen;
    my $end = time() + 2.2;

    while (time() < $end) {
        $seen{show($t, 'A')}++;
        sleep(0.01);
    }

    is(join(' ', keys %seen), '302 stale old', 'what is there answers');
    my $n = value($t, 'redis_commands_total') - $commands;
    cmp_ok($n, '>=', 1, 'and is read behind');
    cmp_ok($n, '<=', 4, 'once a second');

    publish($redis, $_, 2) for qw(A B);
    soon($t, 'A', qr/ 2$/, 'so a change is seen', 3);

    $gate->clear();
    ok(covered($t), 'whole again');
    is(show($t, 'B'), '302 miss 2', 'what was missed is read first');
    is(show($t, 'B'), '302 hit 2', 'once');

    publish($redis, 'B', 3);
    soon($t, 'B', qr/ 3$/, 'and changes are heard');

    $t->log_like(qr/\[warn\].*redis \S+ does not tell what changes: /, 'said');
    $t->log_like(qr/\[notice\].*tells what changes again/, 'both');

    $t->done();
};


subtest 'the cable is pulled' => sub {

    my ($t, $redis, $gate) = start(gate => 1);

    $redis->code($_, url => 'https://example.com/old') for qw(A B);
    show($t, $_) for qw(A B);

    $gate->swallow('subscribe');
    publish($redis, $_, 2) for qw(A B);

    ok($t->wait_for(sub { value($t, 'zone_covered') == 0 }, 1.5),
       'noticed without a word');
    soon($t, 'A', qr/ 2$/, 'entries are read behind', 3);
    $t->log_like(qr/does not tell what changes: (?:no answer|connected, but)/,
                 'said');

    $gate->clear();
    ok(covered($t), 'connected anew');
    is(show($t, 'B'), '302 miss 2', 'what was missed is read first');

    $t->done();
};


subtest 'Redis is frozen' => sub {

    my ($t, $redis) = start(timeout => '100ms');

    my @codes = map { "A$_" } 1 .. 20;
    publish($redis, $_, 1) for @codes;
    show($t, $_) for @codes;

    $redis->pause();

    # what the publisher wants to say waits in a socket

    my $writer = IO::Socket::UNIX->new(Peer => $redis->path());
    $writer->autoflush(1);
    print $writer map {
        "HSET referral:code:$_ url https://example.com/2 version 2\r\n"
        . "PUBLISH referral:invalidate \"$_ 2\"\r\n"
    } @codes;

    my ($slow, $wrong) = (0, 0);
    my $end = time() + 5;

    while (time() < $end) {
        my $start = time();
        my $got = show($t, $codes[rand @codes]);
        $slow++ if time() - $start > 0.08;
        $wrong++ unless $got =~ /^302 (?:hit|stale) 1$/;
        sleep(0.01);
    }

    is($wrong, 0, 'known codes answer');
    cmp_ok($slow, '<=', 2, 'at once');
    is(value($t, 'zone_covered'), 0, 'nothing is covered');

    $redis->resume();

    ok(covered($t), 'well again');
    is(scalar(grep { show($t, $_) !~ /^302 \w+ 2$/ } @codes), 0,
       'nothing old is left');

    $t->done();
};


subtest 'Redis is emptied' => sub {

    my ($t, $redis) = start(zone => '1m valid=300ms invalid=200ms');

    $redis->code('KNOWN');
    $redis->cmd('HSET', 'referral:publisher', fence => 1, generation => 5,
                batch => 1, ready => 1);
    is($t->get('/r/KNOWN')->status, 302, 'known');
    is($t->get('/r/NONE')->status, 404, 'unknown');

    $redis->cmd('FLUSHALL');

    my %seen;
    my $end = time() + 2;

    while (time() < $end) {
        $seen{$t->get('/r/KNOWN')->status}++;
        sleep(0.02);
    }

    is(join(' ', keys %seen), '302', 'a known code stays');

    my $r = $t->get('/r/OTHER');
    is($r->status . $r->header('X-Verdict'), '503unverified',
       'another may have been there');
    is($t->get('/r/OTHER')->header('X-Cache'), 'miss', 'it is not stored');
    cmp_ok(value($t, 'redis_not_ready_total'), '>=', 2, 'counted');

    # published anew, half of it first

    $redis->cmd('HSET', 'referral:publisher', fence => 2, generation => 6,
                batch => 0, ready => 0);
    is($t->get('/r/OTHER2')->status, 503, 'not ready');
    $redis->code('THERE');
    is($t->get('/r/THERE')->status, 302, 'what is there, is');

    $redis->cmd('HSET', 'referral:publisher', batch => 1, ready => 1);
    $redis->cmd('PUBLISH', 'referral:invalidate', '* 6');
    is($t->get('/r/OTHER')->status, 404, 'ready');
    soon($t, 'KNOWN', qr/^404 /, 'what is gone, is', 4);

    # a reload forgets nothing, a new generation without a word is noticed

    $redis->code('X', url => 'https://example.com/old');
    $t->reload();
    covered($t);
    soon($t, 'X', qr/^302 \w+ old/, 'filled');
    my $epoch = value($t, 'zone_epoch');
    $redis->cmd('HSET', 'referral:publisher', generation => 7);
    show($t, 'SOMETHING');
    is(value($t, 'zone_epoch'), $epoch + 1, 'another generation');

    $t->done();
};


subtest 'filled by hand' => sub {

    my ($t, $redis) = start();

    is(show($t, 'NONE'), '404 miss', 'no publisher was ever there');
    $redis->cmd('SET', 'referral:publisher', 'x');
    is(show($t, 'NONE2'), '404 miss', 'or something else is');

    $t->done();
};


subtest 'workers come and go' => sub {

    my ($t, $redis) = start(workers => 4);

    ok(covered($t, 4), 'all subscribe');
    $redis->code('A', url => 'https://example.com/old');
    show($t, 'A');

    my $epoch = value($t, 'zone_epoch');
    my @workers = $t->workers();

    # one of four: nothing is missed by the others

    $t->kill_worker();
    ok(covered($t, 4), 'a new one subscribes');
    is(value($t, 'zone_epoch'), $epoch, 'the others heard everything');
    is(show($t, 'A'), '302 hit old', 'so entries are good');

    # one that is stopped proves nothing, the others do

    my ($pid) = $t->workers();
    kill('STOP', $pid);
    sleep(2.5);
    is($redis->cmd('PUBLISH', 'referral:invalidate', 'A'), 4, 'heard');

    kill('CONT', $pid);
    soon($t, 'A', qr/^302 \w+ old/, 'goes on');
    is(value($t, 'zone_covered'), 1, 'covered all the time');
    is(value($t, 'zone_epoch'), $epoch, 'no reason to doubt');

    for (1 .. 4) {
        $t->reload();
        sleep(0.1 * $_);
    }

    ok(covered($t, 4), 'reloads');
    publish($redis, 'A', 3);
    soon($t, 'A', qr/^302 \w+ 3/, 'changes are heard');

    $t->done();
};


subtest 'the only worker' => sub {

    my ($t, $redis) = start();

    $redis->code($_, url => 'https://example.com/old') for qw(A B);
    show($t, $_) for qw(A B);

    $t->kill_worker();
    publish($redis, 'A', 2);
    ok(covered($t), 'subscribed again');
    is(show($t, 'A'), '302 miss 2', 'what nobody heard is read');

    # stopped for longer than a proof holds, and nothing is lost

    show($t, 'B');
    my $epoch = value($t, 'zone_epoch');
    my ($pid) = $t->workers();
    kill('STOP', $pid);
    publish($redis, 'B', 3);
    sleep(2.3);
    kill('CONT', $pid);
    soon($t, 'B', qr/^302 \w+ 3$/, 'the message was waiting');
    ok(covered($t), 'proven');

    $t->done();
};


# what the zone knows of one server says nothing of another

subtest 'another server at a reload' => sub {

    my ($t, $one) = start(workers => 2);
    my $two = $t->redis(name => 'two');

    $one->cmd('HSET', 'referral:publisher', fence => 1, generation => 4,
              batch => 1, ready => 1);
    $one->cmd('SADD', 'referral:off', 'program:5');
    publish($one, 'C', 9);
    publish($one, 'D', 9);
    show($t, $_) for qw(C D NONE);
    is(show($t, 'C'), '302 hit 9', 'of the first');

    # filled by hand

    $two->code('C', url => 'https://example.com/hand', program_id => 5);
    $two->code('NONE', url => 'https://example.com/new', version => 3);

    # a request that keeps an old worker alive, which hears the first one

    my $held = $t->connect();
    $held->write("GET /r/C HTTP/1.1\r\nHost: x\r\n");

    $t->reconfigure(http => 'referral_zone 1m valid=60s invalid=60s;'
                            . ' referral_redis unix:' . $two->path() . ';',
                    server => $server, status => 1, workers => 2);

    is($t->get('/r/OTHER')->status, 404, 'absent is unknown: no publisher');
    like(show($t, 'C'), qr/^302 miss hand/, 'a code that both have');
    is(show($t, 'D'), '404 miss', 'one that this one has not');
    like(show($t, 'NONE'), qr/^302 miss new/, 'or that only this one has');

    ok(covered($t, 2), 'covered');
    show($t, 'C');
    $one->cmd('PUBLISH', 'referral:invalidate', $_) for 'C 99', '* 9', 'off';
    sleep(0.2);
    is(show($t, 'C'), '302 hit hand', 'what the first says is not heard');

    $held->write("\r\n");
    is($held->response()->status, 302, 'the old worker answers');
    $held->close();

    $t->done();
};


subtest 'reload' => sub {

    my ($t, $redis) = start(workers => 2);

    covered($t, 2);
    $redis->code('A');
    show($t, 'A');

    my $epoch = value($t, 'zone_epoch');
    my $kept = 0;

    for (1 .. 5) {
        $t->reload();
        covered($t, 2);
        sleep(0.3);
        $kept++ if value($t, 'zone_epoch') == $epoch;
        $epoch = value($t, 'zone_epoch');
    }

    # the old ones have 100 ms to vouch for the new ones

    cmp_ok($kept, '>=', 2, 'entries stay good');

    $t->reload() for 1 .. 6;
    ok(covered($t, 2), 'a storm of reloads');
    is($t->get('/r/A')->status, 302, 'serves');
    ok($t->wait_for(sub {
        (() = $redis->cmd('CLIENT', 'LIST') =~ /name=referral-/g) == 4
    }, 10), 'two connections for each worker');

    $t->done();
};


subtest 'a replica' => sub {

    my $t = Referral::Test->new();
    my $master = $t->redis(tcp => 1);
    my $port = $t->port('redis');
    my $replica = $t->redis(name => 'replica', args =>
                            [ '--replicaof', "127.0.0.1 $port" ]);

    ok($t->wait_for(sub {
        $replica->cmd('INFO', 'replication') =~ /master_link_status:up/
    }, 15), 'it follows');

    $t->nginx(http => 'referral_zone 1m; referral_redis unix:'
              . $replica->path() . ' timeout=1s;', server => $server,
              status => 1);
    ok(covered($t), 'covered');

    my $wrong = 0;
    my $c = $t->connect();

    for my $n (1 .. 100) {
        my $code = 'R' . $n % 7;
        publish($master, $code, $n);
        my $end = time() + 5;
        my $got = '';
        $got = shown($c->ask("/r/$code"))
            until $got =~ / $n$/ || time() > $end;
        $wrong++ unless $got =~ / $n$/;
        $wrong++ unless shown($c->ask("/r/$code")) =~ / $n$/;
    }

    is($wrong, 0, '100 changes');
    $c->close();
    $t->done();
};


subtest 'not allowed to subscribe' => sub {

    my $t = Referral::Test->new();
    my $redis = $t->redis();

    $redis->cmd('ACL', 'SETUSER', 'default', 'on', 'nopass', '~*', '&*',
                '+@all');
    $redis->cmd('ACL', 'SETUSER', 'edge', 'on', '>pw', '~referral:*',
                'resetchannels', '+hmget');
    $redis->cmd('ACL', 'SETUSER', 'mute', 'on', '>pw', '~referral:*',
                '&referral:invalidate', '+hmget', '+subscribe',
                '+srandmember');
    $redis->code('A', url => 'https://example.com/old');
    $t->write_file('pw', "pw\n", 0600);

    # a URL for a unix socket has no user: TCP is not needed for the default

    my $port = $t->port('acl');
    $redis->cmd('CONFIG', 'SET', 'port', $port);

    my $n = 0;

    for my $case ([ 'edge', qr/\+subscribe \+ping &referral:invalidate/ ],
                  [ 'mute', qr/NOPERM.*ping/i ])
    {
        my ($user, $pattern) = @$case;
        my %conf = (http => "referral_zone ${\(1024 + $n)}k valid=400ms; "
                    . "referral_redis redis://$user\@127.0.0.1:$port "
                    . "password_file=%%DIR%%/pw;",
                    server => $server, status => 1);

        $n++ ? $t->reconfigure(%conf) : $t->nginx(%conf);

        $t->log_like(qr/\[warn\].*does not let this user subscribe.*$pattern/,
                     "$user: says what to do");
        $redis->code('A', url => 'https://example.com/old');
        soon($t, 'A', qr/^302 hit old$/, 'entries are good');

        $redis->code('A', url => 'https://example.com/new');
        sleep(0.5);
        is(show($t, 'A'), '302 stale old', 'until they are old');
        soon($t, 'A', qr/^302 hit new$/, 'and are read behind');
        is($t->get('/r/NONE')->status, 404, 'nothing else is different');
    }

    my @lines = grep { /does not let this user/ } split(/\n/, $t->log());
    is(scalar(@lines), 3, 'once each');
    like($lines[1] . $lines[0], qr/\+srandmember/, 'for the set, too');
    unlike($t->log(), qr/is not usable/, 'lookups are not concerned');

    # the rights that README.md names, and no others

    my ($rights) = $t->read_file($t->root() . '/README.md')
        =~ /`ACL SETUSER edge on >PASSWORD ([^`]+)`/;

    $redis->cmd('ACL', 'SETUSER', 'right', 'reset', 'on', '>pw',
                split(' ', $rights));
    $t->reconfigure(http => "referral_zone 1030k valid=60s; "
                    . "referral_redis redis://right\@127.0.0.1:$port "
                    . "password_file=%%DIR%%/pw;",
                    server => $server, status => 1);
    soon($t, 'A', qr/^302 hit new$/, 'a code is read');
    $redis->code('A', url => 'https://example.com/newer');
    $redis->cmd('PUBLISH', 'referral:invalidate', 'A 7');
    soon($t, 'A', qr/^302 \w+ newer$/, 'and its change is heard');

    my $forbidden = join(' ', map { @$_ } @{ $redis->cmd('ACL', 'LOG') });
    like($forbidden, qr/username mute/, 'what is forbidden is in a log');
    unlike($forbidden, qr/username right/, 'nothing was to this user');

    $t->done();
};


subtest 'a flood of changes' => sub {

    my ($t, $redis) = start(redis => { args => [
        '--client-output-buffer-limit', 'pubsub 0 0 0' ] });

    $redis->code('CALM', url => 'https://example.com/calm');
    show($t, 'CALM');

    my $memory = sub {
        my ($pid) = $t->workers();
        return $t->read_file("/proc/$pid/status") =~ /VmRSS:\s+(\d+)/
               ? $1 : 0;
    };

    my $many = $ENV{REFERRAL_ASAN} ? 100_000 : 1_000_000;
    my $before = $memory->();
    my $heard = value($t, 'redis_invalidations_total');
    my $writer = fork() // die "fork: $!";

    if ($writer == 0) {
        $redis->disconnect();

        for my $part (1 .. $many / 20_000) {
            $redis->cmd('EVAL', 'for i = 1, 20000 do redis.call("PUBLISH",'
                        . '"referral:invalidate", "C"'
                        . ' .. i .. "P" .. ARGV[1] .. " 17") end', 0, $part);
        }

        POSIX::_exit(0);
    }

    my ($worst, $wrong, $most, $c) = (0, 0, 0, $t->connect());
    my $end = time() + 60;

    while (time() < $end) {
        my $start = time();
        $wrong++ unless shown($c->ask('/r/CALM')) =~ /^302 \w+ calm$/;
        my $took = time() - $start;
        $worst = $took if $took > $worst;
        sleep(0.002);

        next if rand() > 0.05;
        my $now = $memory->();
        $most = $now if $now > $most;
        last if value($t, 'redis_invalidations_total') - $heard >= $many;
    }

    waitpid($writer, 0);
    $c->close();

    is(value($t, 'redis_invalidations_total') - $heard, $many,
       "$many changes were heard");
    is($wrong, 0, 'requests are answered all the while');
    cmp_ok($worst, '<', 1, 'soon');
    cmp_ok($most - $before, '<', 4096, 'memory does not grow, KB')
        unless $ENV{REFERRAL_ASAN};

    $t->done();
};


# Codes are switched under load, connections are cut now and then; in the
# end the edge says what Redis says.

subtest 'switching under load' => sub {

    my ($t, $redis, $gate) = start(gate => 1, workers => 2,
                                   zone => '512k valid=60s');

    my @codes = map { "S$_" } 1 .. 500;
    my %state;
    my $version = 1;

    publish($redis, $_, $version, state => 'active') for @codes;
    $state{$_} = 1 for @codes;

    my @load;

    for (1 .. 2) {
        my $pid = fork() // die "fork: $!";

        if ($pid == 0) {
            my $c = $t->connect();
            my $end = time() + 5;

            while (time() < $end) {
                $c->ask('/r/' . $codes[rand() ** 3 * @codes]);
            }

            POSIX::_exit(0);
        }

        push @load, $pid;
    }

    my $end = time() + 4.5;
    my ($next, $n) = (time() + 1, 0);

    while (time() < $end) {
        my $code = $codes[rand() ** 3 * @codes];
        $state{$code} = !$state{$code};
        publish($redis, $code, ++$version,
                state => $state{$code} ? 'active' : 'inactive');
        $n++;

        if (time() > $next) {
            $next += 1;
            $gate->cut('subscribe');
            $gate->clear();
        }
    }

    waitpid($_, 0) for @load;

    ok(covered($t, 2), "$n changes");
    sleep(0.2);

    my $c = $t->connect();
    my $wrong = grep {
        $c->ask("/r/$_")->status != ($state{$_} ? 302 : 410)
    } @codes;

    is($wrong, 0, 'none of 500 is wrong');
    $c->close();
    $t->done();
};


done_testing();
