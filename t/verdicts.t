#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Each state of a code and of what the module depends on, for a short link and
# for a page: what the visitor gets, and what the journal says.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use Referral::Test;


my $t = Referral::Test->new();
my $redis = $t->redis();
my $agent = 0;
my $records = 0;


# Asks for a path with a User-Agent of its own, by which the record is found.

sub ask {
    my ($path, %arg) = @_;

    my $name = 'agent-' . ++$agent;
    my $start = time();
    my $r = $t->get($path, headers => { 'User-Agent' => $name });

    $r->{agent} = $name;
    $r->{took} = time() - $start;

    return $r;
}


# the records of a response: none, or one if all is well

sub records_of {
    my ($r, $all) = @_;

    return grep { ($_->{user_agent} // '') eq $r->{agent} } @$all;
}


# What was expected of a response, checked at the end of its part, when the
# journal is read once.

my @expected;

sub expect {
    my ($name, $path, %want) = @_;

    my $r = ask($path);

    is($r->status, $want{status}, "$name: status");
    is($r->header('Location'), $want{location}, "$name: Location");
    is($r->header('Cache-Control'), $want{control}, "$name: Cache-Control");
    is(scalar($r->all('Cache-Control')), $want{control} ? 1 : 0,
       "$name: Cache-Control stands once");

    if (exists $want{cookie}) {
        is(defined $r->cookie('_ref') ? 1 : 0, $want{cookie},
           "$name: " . ($want{cookie} ? 'a cookie' : 'no cookie'));
    }

    if (defined $want{body}) {
        is($r->body, $want{body}, "$name: body");
    }

    if (exists $want{retry}) {
        is(defined $r->header('Retry-After') ? 1 : 0, $want{retry},
           "$name: Retry-After");
    }

    push @expected, [ $name, $r, $want{record}, $want{cookie} ];

    return $r;
}


sub check_records {
    my @all = $t->records($records += grep { $_->[2] } @expected);

    for (@expected) {
        my ($name, $r, $want, $cookie) = @$_;

        my @mine = records_of($r, \@all);

        if (!$want) {
            is(scalar @mine, 0, "$name: not recorded");
            next;
        }

        is(scalar @mine, 1, "$name: recorded once") or next;

        my $record = $mine[0];

        for my $field (sort keys %$want) {
            is($record->{$field} // '', $want->{$field},
               "$name: recorded $field");
        }

        if ($cookie) {
            my ($id) = (split(/\./, $r->cookie('_ref')))[5];

            (my $hex = $record->{id} // '') =~ tr/-//d;
            is($id, $hex, "$name: the cookie's click is the record's");
        }
    }

    @expected = ();
}


#
# codes in every state, Redis and journal well
#

my $now = int(time());

$redis->code('VALID', url => 'https://example.com/{code}?c={click_id}');
$redis->code('PLAIN', url => 'https://example.com/plain');
$redis->code('OFF', state => 'inactive');
$redis->code('USEDUP', state => 'exhausted');
$redis->code('EARLY', not_before => $now + 3600);
$redis->code('EXPIRED', expires => $now - 1);
$redis->code('STARTED', url => 'https://example.com/started',
             not_before => $now - 10, expires => $now + 3600);
$redis->code('BADURL', url => 'javascript:alert(1)');
$redis->code('BADTIME', expires => 'tomorrow');
$redis->cmd('HSET', 'referral:code:NOURL', 'campaign', 'x');
$redis->cmd('SET', 'referral:code:STRING', 'not a hash');

my $server = q{
    referral on;

    location /r/ { referral_redirect; }

    location /f/ {
        referral_redirect;
        referral_fallback https://example.com/lost;
    }

    location /e/ {
        referral_redirect;
        error_page 404 410 503 /gone.html;
        expires 1h;
        add_header Cache-Control public always;
    }

    location = /gone.html { expires 1h; }

    location / { return 200 "page code=$referral_code\n"; }
};

$t->write_file('html/gone.html', "gone\n");

$t->nginx(cookie => 1, status => 1, server => $server,
          http => 'referral_redis %%REDIS%% timeout=500ms;'
                  . 'referral_zone 1m valid=1s invalid=1s stale=1h;');

# code in the path, verdict, status without a fallback, code recorded

my @refused = (
    [ 'NOSUCH', 'unknown', 404, 'NOSUCH' ],
    [ 'no%20code', 'malformed', 404, 'no code' ],
    [ 'X' x 65, 'malformed', 404, 'X' x 64 ],
    [ 'off', 'inactive', 410, 'OFF' ],
    [ 'USEDUP', 'exhausted', 410, 'USEDUP' ],
    [ 'EXPIRED', 'expired', 410, 'EXPIRED' ],
    [ 'EARLY', 'early', 404, 'EARLY' ],
    [ 'BADURL', 'inactive', 410, 'BADURL' ],
    [ 'BADTIME', 'inactive', 410, 'BADTIME' ],
    [ 'NOURL', 'inactive', 410, 'NOURL' ],
    [ 'STRING', 'inactive', 410, 'STRING' ],
);

for (@refused) {
    my ($code, $verdict, $status, $recorded) = @$_;

    my $name = length($code) > 20 ? "$verdict (long)" : "$verdict ($code)";

    expect("$name, /r/", "/r/$code", status => $status, control => 'no-store',
           cookie => 0, retry => 0,
           record => { verdict => $verdict, via => 'redirect',
                       code => $recorded });

    expect("$name, fallback", "/f/$code", status => 302, cookie => 0,
           location => 'https://example.com/lost', control => 'no-store',
           record => { verdict => $verdict, via => 'redirect',
                       code => $recorded });

    expect("$name, error page", "/e/$code", status => $status, cookie => 0,
           control => 'no-store', body => "gone\n",
           record => { verdict => $verdict, via => 'redirect',
                       code => $recorded });

    expect("$name, page", "/?ref=$code", status => 200, cookie => 0,
           record => { verdict => $verdict, via => 'parameter',
                       code => $recorded });
}

for my $code ('plain', 'PLAIN', 'started') {
    my $url = 'https://example.com/' . lc($code);

    expect("valid ($code), /r/", "/r/$code", status => 302, body => '',
           location => $url, control => 'no-store', cookie => 1,
           record => { verdict => 'valid', via => 'redirect',
                       code => uc $code, destination => $url });

    expect("valid ($code), fallback not used", "/f/$code", status => 302,
           location => $url, control => 'no-store', cookie => 1,
           record => { verdict => 'valid', via => 'redirect',
                       code => uc $code });

    expect("valid ($code), expires and add_header", "/e/$code",
           status => 302, location => $url, control => 'no-store',
           cookie => 1,
           record => { verdict => 'valid', via => 'redirect',
                       code => uc $code });

    expect("valid ($code), page", "/?ref=$code", status => 200, cookie => 1,
           control => 'private', body => "page code=\U$code\E\n",
           record => { verdict => 'valid', via => 'parameter',
                       code => uc $code });
}

{
    my $r = ask('/r/valid');

    my ($id) = (split(/\./, $r->cookie('_ref') // ''))[5];

    is($r->status, 302, 'click id in the destination: status');

    my $location = $r->header('Location') // '';

    like($location, qr{^https://example\.com/VALID\?c=[0-9a-f-]{32,36}$},
         'click id in the destination');

    $location =~ s/.*c=//;
    $location =~ tr/-//d;

    is($location, $id, 'the cookie has the same click id');

    push @expected, [ 'click id in the destination', $r,
                      { verdict => 'valid', code => 'VALID' }, 1 ];
}

expect('no code at all, page', '/', status => 200, cookie => 0,
       body => "page code=\n");
expect('an empty code, page', '/?ref=', status => 200, cookie => 0,
       body => "page code=\n");

check_records();

for my $word (qw(BADURL BADTIME NOURL)) {
    $t->log_like(qr/$word/, "the log says what is wrong with $word");
}


#
# Redis frozen or down: an entry that became stale answers at once
#

sub without_redis {
    my ($state, $slow) = @_;

    my $r = expect("$state, stale entry, /r/", '/r/PLAIN', status => 302,
                   location => 'https://example.com/plain', cookie => 1,
                   control => 'no-store',
                   record => { verdict => 'valid', via => 'redirect',
                               code => 'PLAIN', cache => 'stale' });

    # far from the deadline, which is half a second

    cmp_ok($r->{took}, '<', 0.3, "$state, stale entry, /r/: at once");

    $r = expect("$state, stale entry, page", '/?ref=STARTED', status => 200,
                control => 'private', cookie => 1,
                record => { verdict => 'valid', via => 'parameter',
                            code => 'STARTED', cache => 'stale' });

    cmp_ok($r->{took}, '<', 0.3, "$state, stale entry, page: at once");

    $r = expect("$state, stale entry of an inactive code, /r/", '/r/OFF',
                status => 410, control => 'no-store', cookie => 0,
                record => { verdict => 'inactive', via => 'redirect',
                            code => 'OFF', cache => 'stale' });

    $r = expect("$state, no entry, /r/", "/r/NEW-$state", status => 503,
                control => 'no-store', cookie => 0, retry => 1,
                record => { verdict => 'unverified', via => 'redirect',
                            code => uc "NEW-$state" });

    cmp_ok($r->{took}, '<', 2, "$state, no entry, /r/: the deadline holds");

    expect("$state, no entry, fallback", "/f/NEW-$state-F", status => 302,
           location => 'https://example.com/lost', control => 'no-store',
           record => { verdict => 'unverified', via => 'redirect',
                       code => uc "NEW-$state-F" });

    $r = expect("$state, no entry, page", "/?ref=NEW-$state-P", status => 200,
                control => 'private', cookie => 1,
                record => { verdict => 'unverified', via => 'parameter',
                            code => uc "NEW-$state-P" });

    cmp_ok($r->{took}, '<', 2, "$state, no entry, page: the deadline holds");

    # what no Redis is needed for

    expect("$state, malformed, /r/", '/r/no%20code', status => 404,
           control => 'no-store', cookie => 0,
           record => { verdict => 'malformed', via => 'redirect' });

    expect("$state, no code", '/', status => 200, cookie => 0);

    # the circuit opens: a dead Redis costs a request nothing

    ask("/r/MORE-$state-$_") for 1 .. 10;

    my @took = sort { $a <=> $b } map { ask("/r/OPEN-$state-$_")->{took} }
               1 .. 9;

    cmp_ok($took[4], '<', 0.2, "$state: after a while nothing waits");

    check_records();
}


# what the zone has is judged by the clock of each request

my $soon = int(time()) + 2;

$redis->code('ENDS', url => 'https://example.com/ends', expires => $soon);
$redis->code('BEGINS', url => 'https://example.com/begins',
             not_before => $soon);

expect('before it ends, /r/', '/r/ENDS', status => 302, cookie => 1,
       location => 'https://example.com/ends', control => 'no-store',
       record => { verdict => 'valid', code => 'ENDS' });
expect('before it begins, /r/', '/r/BEGINS', status => 404, cookie => 0,
       control => 'no-store', record => { verdict => 'early' });

sleep($soon + 0.6 - time());

$redis->pause();

expect('after it ended, /r/', '/r/ENDS', status => 410, cookie => 0,
       control => 'no-store',
       record => { verdict => 'expired', code => 'ENDS', cache => 'stale' });
expect('after it began, /r/', '/r/BEGINS', status => 302, cookie => 1,
       location => 'https://example.com/begins', control => 'no-store',
       record => { verdict => 'valid', code => 'BEGINS', cache => 'stale' });
expect('after it began, page', '/?ref=BEGINS', status => 200, cookie => 1,
       control => 'private',
       record => { verdict => 'valid', code => 'BEGINS', cache => 'stale' });

without_redis('frozen');

$redis->resume();

ok($t->wait_for(sub { ask('/r/PLAIN')->status() == 302
                      && ask('/r/NOSUCH')->status() == 404 }, 10),
   'thawed: answers again');

sleep(1.1);

$redis->stop();
without_redis('down');
$redis->start();

$redis->code('PLAIN', url => 'https://example.com/back');

ok($t->wait_for(sub { (ask('/r/PLAIN')->header('Location') // '')
                      eq 'https://example.com/back' }, 10),
   'started again: answers with what is there now');


#
# geo databases that are missing or damaged
#

$t->write_file('corrupt.mmdb', "\0" x 4096);

{
    my %geo = (cookie => 1, status => 1, server => $server, http => q{
        referral_geoip %%DIR%%/missing.mmdb;
        referral_geoip %%DIR%%/corrupt.mmdb;
    });

    my $test = $t->nginx_test(%geo);
    is($test->{status}, 0, 'a missing database is no error')
        or diag($test->{output});

    $t->reconfigure(%geo);

    expect('no geo, /r/', '/r/PLAIN', status => 302, cookie => 1,
           location => 'https://example.com/back', control => 'no-store',
           record => { verdict => 'valid', country => '', city => '' });

    expect('no geo, page', '/?ref=PLAIN', status => 200, cookie => 1,
           control => 'private',
           record => { verdict => 'valid', country => '', city => '' });

    check_records();

    my $status = $t->status();
    my $errors = 0;

    $errors += $1 while $status =~
                        /^referral_geo_\w*\{[^}]*error[^}]*\} (\d+)$/mg;

    cmp_ok($errors, '>=', 1, 'lookups without a database are counted');
}


#
# a journal that is full, then one that is gone
#

{
    my $first = $t;

    $t = Referral::Test->new();
    $first->done();
}

mkdir($t->dir . '/small') or die;

$t->redis()->code('VALID', url => 'https://example.com/?c={click_id}');

$t->nginx(cookie => 1, status => 1, server => $server,
          http => 'referral_journal %%DIR%%/small size=256k segment=64k;');

{
    my ($c, $r, $n) = ($t->connect(port => $t->port()), undef, 0);
    my $refused = 0;

    while ($n++ < 4000) {
        $r = $c->ask('/r/VALID');

        if ($r->status() != 302) {
            $c = $t->connect(port => $t->port());
            last if $n > 1 && $r->status();
            next;
        }

        # the next segment may only be late

        $refused = defined $r->cookie('_ref') ? 0 : $refused + 1;
        last if $refused == 10;
        sleep(0.05) if $refused;
    }

    $c->close();

    cmp_ok($n, '>', 100, 'a journal of 256k takes clicks');
    cmp_ok($n, '<', 4000, 'and becomes full');

    $r = ask('/r/VALID');

    is($r->status, 302, 'journal full, /r/: status');
    is($r->header('Location'), 'https://example.com/?c=',
       'journal full, /r/: no click id');
    is($r->header('Cache-Control'), 'no-store',
       'journal full, /r/: Cache-Control');
    is($r->cookie('_ref'), undef, 'journal full, /r/: no cookie');

    $r = ask('/?ref=VALID');

    is($r->status, 200, 'journal full, page: status');
    is($r->cookie('_ref'), undef, 'journal full, page: no cookie');
    is($r->header('Cache-Control'), undef,
       'journal full, page: Cache-Control is the page\'s');

    my ($dropped) = $t->status() =~
                    /^referral_dropped_total\{reason="full"\} (\d+)$/m;

    cmp_ok($dropped // 0, '>=', 2, 'journal full: counted');

    $t->log_like(qr/journal.*full/, 'journal full: logged');

    my @lines = $t->log() =~ /^.*journal.*full.*$/mg;
    cmp_ok(scalar @lines, '<=', 5, 'journal full: not a line a click');

    my @all = $t->records(1, journal => $t->dir . '/small');
    my %ids = map { $_->{id} => 1 } @all;

    is(scalar(keys %ids), scalar(@all), 'what was accepted stands once');
}

{
    # in one step: the worker is making files there

    rename($t->dir . '/small', $t->dir . '/gone') or die;
    $t->kill_worker(($t->workers())[0]);

    my $r = $t->wait_for(sub { my $r = eval { ask('/r/VALID') };
                               $r && $r->status() ? $r : undef });

    is($r->status, 302, 'journal gone, /r/: status');
    is($r->header('Location'), 'https://example.com/?c=',
       'journal gone, /r/: no click id');
    is($r->cookie('_ref'), undef, 'journal gone, /r/: no cookie');

    $r = ask('/?ref=VALID');

    is($r->status, 200, 'journal gone, page: status');
    is($r->cookie('_ref'), undef, 'journal gone, page: no cookie');

    $t->log_like(qr/\Q@{[ $t->dir ]}\E\/small/,
                 'journal gone: the log names the directory');
}

$t->done();
