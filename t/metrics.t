#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Each counter of referral_status: one request moves it by one, and moves
# nothing else; at the end there is none without such a request.  Both formats
# say the same, and promtool reads the text.

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256);
use JSON::PP ();
use MIME::Base64 qw(decode_base64 encode_base64url);
use Test::More;
use Time::HiRes qw(sleep time);

use Referral::Test;
use Referral::Test::Gate;
use Referral::Test::Metrics;


my %one;                                # counters that were moved by one
my %seen;                               # gauge => values

my $t = Referral::Test->new();
my $redis = $t->redis();
my $future = time() + 86400;

sub codes {
    $redis->code('OK', url => 'https://example.com/');
    $redis->code('OTHER', url => 'https://example.com/other');
    $redis->code('OFF', url => 'https://example.com/', state => 'inactive');
    $redis->code('DONE', url => 'https://example.com/', state => 'exhausted');
    $redis->code('EARLY', url => 'https://example.com/',
                 not_before => int($future));
    $redis->code('LATE', url => 'https://example.com/', expires => 1);
}


codes();

my $place = { country => { iso_code => 'PT' } };

$t->mmdb('city.mmdb', { '192.0.2.0/24' => $place });

mkdir($t->path('journal'));

my %conf = (
    http => q{
        referral_redis %%REDIS%% timeout=300ms;
        referral_zone 1m valid=1h;
        referral_miss_limit rate=1r/m burst=1;
        referral_geoip %%DIR%%/city.mmdb;
        referral_journal %%DIR%%/journal size=64m segment=256k sync=50ms;
        set_real_ip_from 127.0.0.1;
        real_ip_header X-Real-IP;
        server {
            listen 127.0.0.1:%%PORT:h2%% http2;
            set_real_ip_from 127.0.0.1;
            real_ip_header X-Real-IP;
            referral on;
            location /r/ { referral_redirect; }
        }
    },
    server => q{
        referral on;
        location /r/ { referral_redirect; }
        location / { return 200 "page"; }
        location = /metrics { referral_status; }
    },
    cookie => 1, status => 1,
);

$t->nginx(%conf);
$t->wait_for(sub { metrics()->{redis_connected_workers}
                   && metrics()->{zone_covered} }, 5);


sub metrics {
    my %metrics;

    for (split(/\n/, $t->status())) {
        $metrics{$1} = $2 if /^referral_(\S+) ([\d.]+)$/;
    }

    $seen{$_}{ $metrics{$_} } = 1 for keys %metrics;

    return \%metrics;
}


# counters that $code moved; what depends on time and length is left out

sub moved {
    my ($code) = @_;

    my $before = metrics();
    $code->();
    my $after = metrics();

    return {
        map { $_ => $after->{$_} - $before->{$_} }
        grep { $after->{$_} != $before->{$_} }
        grep { /_total|_count/ && !/journal_bytes|geo_reads/ } keys %$after
    };
}


my $networks = 0;

# from a network of its own, so that the miss limit has nothing to say

sub ask {
    my ($path, %headers) = @_;

    $networks++;

    return $t->get($path, headers => {
        'X-Real-IP' => sprintf('10.%d.%d.1', $networks >> 8, $networks & 255),
        %headers });
}


sub request {
    my ($verdict, $via) = @_;
    return "requests_total{verdict=\"$verdict\",via=\"$via\"}" => 1;
}


my @record = (journal_records_total => 1);
my @miss = ('zone_lookups_total{result="miss"}' => 1);
my @hit = ('zone_lookups_total{result="hit"}' => 1);
my @redis = (redis_commands_total => 1, redis_replies_total => 1,
             redis_latency_seconds_count => 1);
my @nowhere = ('geo_lookups_total{result="missing"}' => 1);
my @new = ('tokens_total{result="new"}' => 1);


# the histogram's buckets differ by time, the last one counts all

sub like_moved {
    my ($code, $expect, $name) = @_;

    my $moved = moved($code);

    delete $moved->{$_} for grep { /_bucket\{/ } keys %$moved;

    $one{$_} = 1 for grep { $expect->{$_} == 1 } keys %$expect;

    return is_deeply($moved, $expect, $name) || diag(explain($moved));
}


# one counter of those that moved

sub one {
    my ($moved, $counter, $name) = @_;

    $one{$counter} = 1;

    return is($moved->{$counter}, 1, $name) || diag(explain($moved));
}


# verdicts and ways

like_moved(sub { ask('/r/OK') },
           { request('valid', 'redirect'), @record, @miss, @redis, @nowhere,
             @new }, 'a redirect, from Redis');
like_moved(sub { ask('/r/OK') },
           { request('valid', 'redirect'), @record, @hit, @nowhere, @new },
           'a redirect, from the zone');
like_moved(sub { ask('/?ref=ok') },
           { request('valid', 'parameter'), @record, @hit, @nowhere, @new },
           'a page');

for ([ OFF => 'inactive' ], [ DONE => 'exhausted' ], [ EARLY => 'early' ],
     [ LATE => 'expired' ], [ NONE => 'unknown' ])
{
    my ($code, $verdict) = @$_;

    like_moved(sub { ask("/r/$code") },
               { request($verdict, 'redirect'), @record, @miss, @redis,
                 @nowhere }, "$verdict, a redirect");
    like_moved(sub { ask("/?ref=$code") },
               { request($verdict, 'parameter'), @record, @hit, @nowhere },
               "$verdict, a page");
}

like_moved(sub { ask('/r/a%20b') },
           { request('malformed', 'redirect'), @record, @nowhere },
           'malformed, a redirect');
like_moved(sub { ask('/?ref=%00') },
           { request('malformed', 'parameter'), @record, @nowhere },
           'malformed, a page');
like_moved(sub { ask('/plain') }, {}, 'a request without a code');
like_moved(sub { ask('/r/OK', 'Sec-Fetch-Dest' => 'image') },
           { @hit }, 'an image is no click');

my $bytes = metrics()->{journal_bytes_total};

ask('/r/OK');
cmp_ok(metrics()->{journal_bytes_total} - $bytes, '>', 64, 'bytes');
$one{journal_bytes_total} = 1;


# cookies

my %token = map { $_ => "tokens_total{result=\"$_\"}" }
            qw(verified rotated malformed unknown-key forged expired updated);

my $cookie = ask('/r/OK')->cookie('_ref');
my @valid = (request('valid', 'redirect'), @record, @hit, @nowhere);

like_moved(sub { ask('/r/OK', Cookie => "_ref=$cookie") },
           { @valid, $token{verified} => 1 }, 'the same code again');
ask('/r/OTHER');
like_moved(sub { ask('/r/OTHER', Cookie => "_ref=$cookie") },
           { @valid, $token{verified} => 1, $token{updated} => 1 },
           'another code: the cookie is updated');
like_moved(sub { ask('/r/OK', Cookie => '_ref=v1.junk') },
           { @valid, @new, $token{malformed} => 1 }, 'malformed');
like_moved(sub { ask('/r/OK',
                     Cookie => '_ref=' . ($cookie =~ s/^v1\.k1/v1.zz/r)) },
           { @valid, @new, $token{'unknown-key'} => 1 }, 'unknown key');

my $forged = $cookie;
substr($forged, -3, 1) = substr($forged, -3, 1) eq 'A' ? 'B' : 'A';

like_moved(sub { ask('/r/OK', Cookie => "_ref=$forged") },
           { @valid, @new, $token{forged} => 1 }, 'forged');

# signed by us, with clicks of 2001

my ($key) = $t->read_file('secret') =~ /^k1:(\S+)/m;
my $touch = 'OK.00e3c8a4000070008000000000000001';
my $old = "v1.k1.$touch.$touch.";

$old .= '.' . encode_base64url(substr(hmac_sha256($old, decode_base64($key)),
                                      0, 16));

like_moved(sub { ask('/r/OK', Cookie => "_ref=$old") },
           { @valid, @new, $token{expired} => 1 }, 'expired');


# geo

my @found = ('geo_lookups_total{result="found"}' => 1);

like_moved(sub { ask('/r/OK', 'X-Real-IP' => '192.0.2.7') },
           { request('valid', 'redirect'), @record, @hit, @new, @found },
           'an address that is found');

my $reads = metrics()->{geo_reads_total};

ask('/r/OK', 'X-Real-IP' => '192.0.2.99');
is(metrics()->{geo_reads_total} - $reads, 0, 'its network is known');
ask('/r/OK', 'X-Real-IP' => '2001:db8::1');
is(metrics()->{geo_reads_total} - $reads, 1, 'another is read');
$one{geo_reads_total} = 1;

my $built = metrics();
my ($stamp) = grep { /^geo_build_timestamp_seconds/ } keys %$built;

is($stamp, "geo_build_timestamp_seconds{database=\"" . $t->dir
           . '/city.mmdb"}', 'the database is named');
cmp_ok(abs($built->{$stamp} - time()), '<', 3600, 'when it was built');
is($built->{geo_databases}, 1, 'one is configured');
is($built->{geo_open_databases}, 1, 'and open');

$t->allow(qr/geo database/);
$t->mmdb('next.mmdb', { '192.0.2.0/24' => $place, '10.0.0.0/8' => $place });
rename($t->path('next.mmdb'), $t->path('city.mmdb'));
like_moved(sub { $t->wait_for(sub { metrics()->{geo_loads_total} }, 10) },
           { geo_loads_total => 1 }, 'a database is replaced');
$t->write_file('next.mmdb', 'junk' x 1000);
rename($t->path('next.mmdb'), $t->path('city.mmdb'));
like_moved(sub { $t->wait_for(sub { metrics()->{geo_load_failures_total} },
                              10) },
           { geo_load_failures_total => 1 }, 'one is refused');


# the miss limit

my @same = ('X-Real-IP' => '203.0.113.9');

ask('/r/MISS1', @same);
ask('/r/MISS2', @same);
like_moved(sub { ask('/r/MISS3', @same) },
           { limited_total => 1, @miss }, 'over the miss limit');


# an answer of Redis that is an error, one that is late, none at all

@found = ('geo_lookups_total{result="found"}' => 1);

$redis->cmd('SET', 'referral:code:STRING', 'x');
like_moved(sub { ask('/r/STRING') },
           { request('inactive', 'redirect'), @record, @miss, @redis,
             @found, redis_errors_total => 1 }, 'an error of Redis');

$redis->pause();

my $moved = moved(sub { ask('/r/SLOW1') });

one($moved, 'redis_timeouts_total', 'a timeout');
one($moved, 'redis_commands_total', 'of one command');
ok(!exists $moved->{redis_replies_total}, 'without a reply');
one($moved, 'requests_total{verdict="unverified",via="redirect"}',
   'unverified');
$moved = moved(sub { ask('/?ref=SLOW2') });
one($moved, 'requests_total{verdict="unverified",via="parameter"}',
   'a page, unverified');

my $before = metrics();
my @hold = map { $t->connect() } 1 .. 2;

$_->write("GET /r/WAIT HTTP/1.1\r\nHost: x\r\n"
          . "X-Real-IP: 198.51.100.1\r\n\r\n") for @hold;
sleep(0.1);
is(metrics()->{redis_waiting_requests}, 2, 'two wait');
$_->response('GET') for @hold;

is(metrics()->{redis_waiting_requests}, 0, 'nobody waits');
$before = metrics();

# many at once: after a second without any answer the link is closed instead,
# which may happen first where the machine is busy

for my $try (1 .. 10) {
    $redis->resume();
    $t->wait_for(sub { metrics()->{redis_connected_workers} }, 10);
    ask('/r/BACK' . rand());
    $redis->pause();
    $moved = moved(sub {
        $t->parallel(map { { path => "/r/OPEN$try-$_", headers =>
                             { 'X-Real-IP' => "198.$try.$_.1" } } } 1 .. 30);
    });
    last if metrics()->{redis_circuit_open_workers};
}

is(metrics()->{redis_circuit_open_workers}, 1, 'the circuit is open');
one($moved, 'redis_circuit_opened_total', 'and was opened once');

$redis->resume();
ok($t->wait_for(sub { !metrics()->{redis_circuit_open_workers} }, 10),
   'it closes');

$before = metrics();
$redis->stop();
ok($t->wait_for(sub { !metrics()->{redis_connected_workers} }, 10),
   'not connected');
ok($t->wait_for(sub { metrics()->{redis_connect_failures_total}
                      > $before->{redis_connect_failures_total} }, 10),
   'which was tried');
ok($t->wait_for(sub { !metrics()->{redis_subscribed_workers} }, 10),
   'not subscribed');
$moved = moved(sub { ask('/r/OK') });
one($moved, 'zone_lookups_total{result="stale"}',
   'an entry that may be stale');
one($moved, 'requests_total{verdict="valid",via="redirect"}',
   'is answered with');

$before = metrics();
$redis->start();
codes();
ok($t->wait_for(sub { metrics()->{redis_connected_workers}
                      && metrics()->{redis_subscribed_workers} }, 20),
   'connected again');
cmp_ok(metrics()->{redis_connects_total} - $before->{redis_connects_total},
       '>=', 2, 'two connections were made, some may have come too early');
is(metrics()->{redis_subscriptions_total}
   - $before->{redis_subscriptions_total}, 1, 'and one subscription');

$moved = moved(sub { ask('/r/OTHER') });
one($moved, 'zone_lookups_total{result="unsure"}',
   'what may have changed meanwhile is read again');


# what Redis announces

sub announced {
    my ($name, $message) = @_;

    return moved(sub {
        my $before = metrics()->{$name};
        $redis->cmd('PUBLISH', 'referral:invalidate', $message);
        $t->wait_for(sub { metrics()->{$name} > $before }, 5);
    });
}


one(announced('redis_invalidations_total', 'OTHER 5'),
    'redis_invalidations_total', 'a code that changed');
one(moved(sub { ask('/r/OTHER') }), 'zone_lookups_total{result="miss"}',
    'is forgotten');

announced('redis_invalidations_total', 'OLDER 9');
$redis->code('OLDER', url => 'https://example.com/', version => 3);
cmp_ok(moved(sub { ask('/r/OLDER') })->{'zone_refused_total{reason="older"}'},
       '>=', 1, 'an answer older than what was announced is not kept');

one(announced('redis_off_reads_total', 'off'), 'redis_off_reads_total',
    'what is switched off was read');

$redis->cmd('HSET', 'referral:publisher', 'ready', 0, 'generation', 1);
$moved = moved(sub { ask('/r/ABSENT') });
one($moved, 'redis_not_ready_total', 'Redis that is being filled');
one($moved, 'requests_total{verdict="unverified",via="redirect"}',
   'knows nothing for sure');
$redis->cmd('HSET', 'referral:publisher', 'ready', 1, 'generation', 1);


# more than may wait

$redis->pause();
$before = metrics();

my $h2 = $t->run('h2load', '-n', 1025, '-c', 9, '-m', 128, '-H',
                 'X-Real-IP: 198.51.101.1',
                 'http://127.0.0.1:' . $t->port('h2') . '/r/CROWD');

is(metrics()->{waiters_refused_total} - $before->{waiters_refused_total}, 1,
   'one of 1025 may not wait') || diag($h2->{output});
$one{waiters_refused_total} = 1;
$redis->resume();


# noise, beyond its budget of 2000 and 200 a second: each request is recorded
# or counted as dropped

$moved = moved(sub {
    $t->run('h2load', '-n', 4000, '-c', 4, '-m', 64,
            'http://127.0.0.1:' . $t->port('h2') . '/r/a%20b');
});

my $dropped = $moved->{'dropped_total{reason="noise"}'} // 0;

cmp_ok($dropped, '>', 0, 'noise is dropped');
$one{'dropped_total{reason="noise"}'} = 1;
is($moved->{'requests_total{verdict="malformed",via="redirect"}'}, 4000,
   'and counted as requests');
is($moved->{journal_records_total} + $dropped, 4000,
   'what is not recorded is counted as dropped');
$t->allow(qr/codes that are not valid/);


# what is synced has no age

ok($t->wait_for(sub { metrics()->{journal_sync_age_seconds} == 0 }, 5),
   'all is on disk');


# rotation: what k1 signed is read while k9 signs

my $secret = $t->read_file('secret');
$t->write_file('secret', 'k9:' . ('A' x 43) . "=\n$secret", 0640);
$t->reload();
ok($t->wait_for(sub { metrics()->{redis_connected_workers} }, 5),
   'connected after a reload');
ask('/r/OK');
$moved = moved(sub { ask('/r/OK', Cookie => "_ref=$cookie") });
one($moved, $token{rotated}, 'an older key');
ok(!exists $moved->{ $token{verified} }, 'is not the one that signs');


# both formats

my $text = $t->get('/metrics?format=prometheus');
my $json = $t->get('/metrics');

is($json->header('Content-Type'), 'application/json', 'JSON');

my $doc = eval { JSON::PP::decode_json($json->body()) };

is($@, '', 'which is correct') or diag($json->body());
is($t->get('/metrics?format=json')->header('Content-Type'),
   'application/json', 'asked for');
is($t->get('/metrics?format=xml')->status(), 400, 'no other format');

for ([ 'text/plain', 'text/plain' ],
     [ 'text/plain;version=0.0.4', 'text/plain' ],
     [ 'application/openmetrics-text;version=1.0.0;q=0.5,'
       . 'application/openmetrics-text;version=0.0.1;q=0.4,'
       . 'text/plain;version=0.0.4;q=0.3,*/*;q=0.2', 'text/plain' ],
     [ 'application/json;q=0.5, text/plain;q=0.4', 'application/json' ],
     [ 'application/json;q=0.4, text/plain; q=0.5', 'text/plain' ],
     [ 'text/html,application/xhtml+xml,*/*;q=0.8', 'application/json' ],
     [ 'text/plain;q=0, */*', 'application/json' ],
     [ 'text/plain;q=x', 'application/json' ],
     [ ';;,,;q=,;q', 'application/json' ])
{
    my ($accept, $type) = @$_;

    like($t->get('/metrics', headers => { Accept => $accept })
         ->header('Content-Type'), qr/^\Q$type\E/, "Accept: $accept");
}

my ($broken) = $text->body() =~ /^(# TYPE \w+ histogram\n.*?)^#/ms;

is_deeply([ Referral::Test::Metrics::histograms($text->body()) ], [],
          'buckets are cumulative, the last one is the count');
is(scalar(Referral::Test::Metrics::histograms($broken =~ s/ \d+$/ 99999/mr)),
   1, 'else it would be found');

# each sample of the text is in the document

my @different;

for (split(/\n/, $text->body())) {

    my ($name, $labels, $n) =
        /^referral_([a-z_]+?)(?:_bucket)?(?:\{(.*)\})? ([\d.]+)$/ or next;
    next if $name =~ /(.*)_(sum|count)$/ && ref $doc->{$1};

    my $at = $doc->{$name};
    $at = $at->{buckets} if ref $at && $at->{buckets};
    $at = $at->{$1} while defined $labels && $labels =~ /="([^"]*)"/g
                          && ref $at;

    push @different, "$_ is " . ($at // 'missing')
        if ($at // -1) != $n && $name !~ /age/;
}

is(join("\n", @different), '', 'both formats say the same');


SKIP: {
    skip 'no promtool here', 1 unless grep { -x "$_/promtool" }
        split(/:/, $ENV{PATH} . ':/usr/bin');

    $t->write_file('metrics.txt', $text->body());

    my $r = $t->run('sh', '-c', 'promtool check metrics < '
                                . $t->path('metrics.txt'));

    is("$r->{status} $r->{output}", '0 ', 'promtool has nothing to say');
}


# the journal cannot be opened by the worker that comes next

rename($t->path('journal'), $t->path('elsewhere'));
$t->allow(qr/journal/, qr/not recorded/);
$t->kill_worker();
$t->wait_for(sub { metrics()->{redis_connected_workers} }, 5);
is(metrics()->{journal_open_streams}, 0, 'no stream');
is(metrics()->{workers}, 1, 'of one worker: the killed one is forgotten');

$moved = moved(sub { ask('/r/OK') });
one($moved, 'dropped_total{reason="full"}', 'a click is dropped');
ok(!exists $moved->{journal_records_total}, 'and not recorded');
rename($t->path('elsewhere'), $t->path('journal'));


# a full zone: entries of one size go one by one

$conf{http} =~ s/referral_zone 1m/referral_zone 192k/;
$conf{http} =~ s/referral_miss_limit .*;//;
$t->reconfigure(%conf);
ok($t->wait_for(sub { metrics()->{redis_connected_workers} }, 5),
   'a smaller zone');
is(metrics()->{zone_evicted_total}, 0, 'is a new one');

my $full;

for my $n (1000 .. 3000) {
    $redis->code("E$n", url => 'https://example.com/');

    my $last = $full;
    $full = metrics()->{zone_evicted_total} if $n % 50 == 0;
    last if $full;

    ask("/r/E$n");
}

ok($full, 'a full zone evicts');
$redis->code('EXTRA', url => 'https://example.com/');
one(moved(sub { ask('/r/EXTRA') }), 'zone_evicted_total',
    'one entry for one');


# replies that come too late, and those of a Redis that lags

my $gate = Referral::Test::Gate->new(listen => $t->path('gate'),
                                     to => $redis->path());

$conf{http} =~ s{%%REDIS%%}{unix:%%DIR%%/gate};
$t->reconfigure(%conf);
ok($t->wait_for(sub { metrics()->{redis_connected_workers}
                      && metrics()->{zone_covered} }, 5), 'Redis by a gate');

$redis->code('RACE', url => 'https://example.com/', version => 1);

$moved = moved(sub {
    my $c = $t->connect();

    $gate->hold('lookup');
    $c->write("GET /r/RACE HTTP/1.1\r\nHost: x\r\n\r\n");
    $t->wait_for(sub { metrics()->{redis_waiting_requests} }, 5);
    announced('redis_invalidations_total', 'RACE 1');
    $gate->release('lookup');
    $c->response('GET');
});
one($moved, 'zone_refused_total{reason="changed"}',
    'a reply that was overtaken is not kept');

$redis->code('LAGS', url => 'https://example.com/', version => 9);
ask('/r/LAGS');
$redis->code('LAGS', url => 'https://example.com/', version => 8);

$moved = moved(sub {
    $gate->swallow('subscribe');
    $t->wait_for(sub { !metrics()->{zone_covered} }, 10);
    ask('/r/LAGS');
    $t->wait_for(sub { metrics()->{'zone_refused_total{reason="older"}'} }, 5);
});
one($moved, 'zone_refused_total{reason="older"}',
    'one that is older than what is known is not kept');
$gate->clear();
ok($t->wait_for(sub { metrics()->{zone_covered} }, 10), 'Redis is heard again');

for my $link (qw(lookup subscribe)) {

    $moved = moved(sub {
        my $n = metrics()->{redis_connects_total};
        my @ids = $redis->cmd('CLIENT', 'LIST')
                  =~ /^id=(\d+) .*name=referral-\d+-$link /mg;

        $redis->cmd('CLIENT', 'KILL', 'ID', $ids[-1]);
        $t->wait_for(sub { metrics()->{redis_connects_total} > $n
                           && metrics()->{redis_connected_workers}
                           && metrics()->{redis_subscribed_workers} }, 10);
    });
    one($moved, $_, "a connection that is cut, $link: $_")
        for qw(redis_connect_failures_total redis_connects_total),
            $link eq 'subscribe' ? 'redis_subscriptions_total' : ();
}


# a database that is not there

$conf{http} =~ s{(referral_geoip %%DIR%%/)city}{$1none};
$t->reconfigure(%conf);
$t->wait_for(sub { metrics()->{redis_connected_workers} }, 5);
one(moved(sub { ask('/r/OK') }), 'geo_lookups_total{result="error"}',
    'no geo database');


# no randomness, no id: RAND_bytes() fails while the file is there

SKIP: {
    skip 'nothing can be preloaded before the sanitizers', 2
        if $ENV{REFERRAL_ASAN};

    $t->write_file('random.c', q{
        #include <dlfcn.h>
        #include <unistd.h>

        int
        RAND_bytes(unsigned char *buf, int n)
        {
            int  (*next)(unsigned char *, int);

            *(void **) &next = dlsym(RTLD_NEXT, "RAND_bytes");

            return access(NONE, F_OK) == 0 ? 0 : next(buf, n);
        }
    });

    my $built = $t->run($ENV{CC} // 'gcc', '-D_GNU_SOURCE', '-shared', '-fPIC',
                        '-DNONE="' . $t->path('norandom') . '"',
                        '-o', $t->path('random.so'), $t->path('random.c'));

    is($built->{status}, 0, 'built') or diag($built->{output});

    $t->nginx_stop();
    {
        local $ENV{LD_PRELOAD} = $t->path('random.so');
        $t->nginx_start();
    }
    $t->write_file('norandom', '');

    # what was drawn before is used up first: a hundred ids

    for (1 .. 200) {
        $moved = moved(sub { ask('/r/OK') });
        last if $moved->{'dropped_total{reason="error"}'};
    }

    one($moved, 'dropped_total{reason="error"}', 'a click without an id');
    ok(!exists $moved->{journal_records_total}, 'is not recorded');
}


# no memory: with nothing left to evict, which only a fault brings about

subtest 'a zone without memory' => sub {

    local $ENV{REFERRAL_MODULE} = Referral::Test->faults()
        or plan skip_all => 'needs a build with fault points';

    my @others = ($t, $redis);

    $t = Referral::Test->new();
    $redis = $t->redis();
    codes();
    $t->nginx(main => 'env REFERRAL_FAULT=zone-memory-enomem:1:0;',
              http => 'referral_redis %%REDIS%%;',
              server => 'location /r/ { referral_redirect; }', status => 1);
    ok($t->wait_for(sub { metrics()->{redis_connected_workers} }, 5),
       'it starts');

    my $r;

    one(moved(sub { $r = ask('/r/OK') }), 'zone_no_memory_total',
        'an entry that is not stored');
    is($r->status(), 302, 'and is answered with all the same');

    $t->done();
    ($t, $redis) = @others;
};


# nothing is left out: the table in C, the text, and what was moved here

my $table = slurp($t->root() . '/src/module/ngx_http_referral_stat.h');

my ($counters, $gauges) =
    $table =~ /_COUNTERS\(X\)(.*?)\n\n.*?_GAUGES\(X\)(.*?)\n\n/s;

my @counters = map { /^"(\w+)", (?:"(\w+)", "([\w-]+)"|NULL, NULL),/
                     ? $1 . ($2 ? "{$2=\"$3\"}" : '') : "what is $_" }
               $counters =~ /\bX\(\w+,\s*(.*?,.*?,.*?,)/gs;

# ways that something counts; the others are words of the journal only

my @used = grep { $_ ne 'none' } map { lc($_) } map { /REFERRAL_VIA_(\w+)/g }
           map { slurp($_) } glob($t->root() . '/src/module/*.c');
my $used = join('|', grep { $_ ne 'max' } @used);

my @text = map { s/^referral_//r }
           Referral::Test::Metrics::counters($t->status());

is_deeply([ sort @counters, 'redis_latency_seconds_count' ],
          [ grep { !/^requests_total/ } @text ],
          'the text has what the table has');

# what needs fault points, and what cannot be preloaded before sanitizers

$one{zone_no_memory_total} = 1 unless Referral::Test->faults();
$one{'dropped_total{reason="error"}'} = 1 if $ENV{REFERRAL_ASAN};

is_deeply([ grep { !$one{$_} && (!/via="(.*)"/ || $1 =~ /^(?:$used)\z/) }
            @text ], [], 'each counter was moved by one');
is_deeply([ grep { keys %{ $seen{$_} // {} } < 2 }
            $gauges =~ /\bX\(\w+,\s*"(\w+)"/g ], [], 'each gauge changed');


sub slurp {
    my ($path) = @_;
    open(my $fh, '<', $path) or die "$path: $!\n";
    local $/;
    return <$fh>;
}

$t->done();
