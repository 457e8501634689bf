#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The /r/ location: every verdict, and every answer it gives.

use strict;
use warnings;

use Test::More;

use Referral::Test;


my $t = Referral::Test->new();
my $redis = $t->redis();
my $now = time();

$redis->code('VALID', url => 'https://example.com/valid');
$redis->code('LATER', url => 'https://example.com/x',
             not_before => $now + 3600);
$redis->code('PAST', url => 'https://example.com/x', expires => $now - 1);
$redis->code('OFF', url => 'https://example.com/x', state => 'inactive');
$redis->code('SPENT', url => 'https://example.com/x', state => 'exhausted');
$redis->code('EVIL', url => 'javascript:alert(1)');
$redis->cmd('HSET', 'referral:code:EMPTY', 'campaign', 'x');
$redis->code('ARGS', url => 'https://example.com/a?utm_source=own&x=1#frag');
$redis->code('MACROS',
    url => 'https://example.com/{code}?id={click_id}&c={country}');

my @locations = q{
    referral on;

    location /r/ { referral_redirect; }

    location /f/ {
        referral_redirect;
        referral_fallback https://example.com/fallback;
    }
    location /local/ { referral_redirect; referral_fallback /sorry?a=b; }
    location /var/ {
        referral_redirect;
        referral_fallback $arg_to;
    }
    location /all/ { referral_redirect; referral_passthrough all; }
    location /none/ { referral_redirect; referral_passthrough off; }
    location ~ ^/s/(?<short>[^/]+)/x$ { referral_redirect $short; }
    location = /qr { referral_redirect $arg_c; }
    location /bare { referral_redirect; }
    location /page/ { referral_redirect; error_page 404 410 =200 /gone.html; }
    location /cached/ {
        referral_redirect;
        expires 1h;
        add_header Cache-Control public always;
    }
    location /denied/ { referral_redirect; deny all; }
    location /if/ {
        referral_redirect;
        if ($arg_x) { set $y 1; }
    }
    location /gone.html { }
    location /sorry { return 200 "sorry"; }
    location / { return 200 "code=$referral_code verdict=$referral_verdict"; }
};

$t->write_file('html/gone.html', "gone\n");
$t->nginx(cookie => 1, server => $locations[0]);


sub answers {
    my ($path, $status, $location, $name, %arg) = @_;

    my $r = $t->get($path, %arg);

    is($r->status(), $status, "$name: status");
    is($r->header('Location'), $location, "$name: location");
    is(join('|', $r->all('Cache-Control')), 'no-store', "$name: not stored");
    is($r->header('Expires'), undef, "$name: no expires");

    if ($status == 302) {
        is($r->body(), '', "$name: no body");
        is($r->header('Content-Length'), 0, "$name: and its length");
    }

    return $r;
}


my $valid = 'https://example.com/valid';

# section 3's table, with the number of cookies, alone and with a fallback

my @table = (
    [ 'VALID',      302, 'valid',     1 ],
    [ 'valid',      302, 'valid',     1 ],
    [ 'valid/',     302, 'valid',     1 ],
    [ 'NOPE',       404, 'unknown',   0 ],
    [ '',           404, 'malformed', 0 ],
    [ 'a%20b',      404, 'malformed', 0 ],
    [ 'a/b',        404, 'malformed', 0 ],
    [ 'valid//',    302, 'valid',     1 ],
    [ 'valid/x',    404, 'malformed', 0 ],
    [ 'x' x 65,     404, 'malformed', 0 ],
    [ 'OFF',        410, 'inactive',  0 ],
    [ 'EVIL',       410, 'inactive',  0 ],
    [ 'EMPTY',      410, 'inactive',  0 ],
    [ 'PAST',       410, 'expired',   0 ],
    [ 'SPENT',      410, 'exhausted', 0 ],
    [ 'LATER',      404, 'early',     0 ],
);

my @verdicts;

for (@table) {
    my ($code, $status, $verdict, $cookies) = @$_;

    my $r = answers("/r/$code", $status, $status == 302 ? $valid : undef,
                    "/r/$code");

    is(scalar(grep { /^_ref=/ } $r->all('Set-Cookie')), $cookies,
       "/r/$code: cookie");

    $r = answers("/f/$code", 302, $verdict eq 'valid'
                 ? $valid : 'https://example.com/fallback', "/f/$code");

    push @verdicts, $verdict, $verdict;
}

# ids of one millisecond have no order, numbers have

my @records = sort { $a->{seq} <=> $b->{seq} } $t->records(scalar @verdicts);
is(join(' ', map { $_->{verdict} } @records), join(' ', @verdicts),
   'all recorded, with their verdicts');
is($records[0]{destination}, $valid, 'the destination is recorded');
is($records[7]{destination}, 'https://example.com/fallback',
   'and the fallback');
is($records[6]{destination}, undef, 'or none');

# the same codes on pages

for (@table) {
    my ($code, undef, $verdict, $cookies) = @$_;

    next if $code eq '' || $code =~ m{/};

    my $r = $t->get("/?ref=$code");

    is($r->status(), 200, "?ref=$code: page");
    like($r->body(), qr/verdict=$verdict$/, "?ref=$code: verdict");
    is(scalar(grep { /^_ref=/ } $r->all('Set-Cookie')), $cookies,
       "?ref=$code: cookie");
}

# methods

my $r = answers('/r/VALID', 302, $valid, 'HEAD', method => 'HEAD');
is($r->header('Set-Cookie'), undef, 'HEAD: no cookie');

for (qw(POST PUT DELETE OPTIONS PATCH)) {
    my $r = answers('/r/VALID', 405, undef, $_, method => $_, body => 'x');
    is($r->header('Allow'), 'GET, HEAD', "$_: what is allowed");
}

# what is no navigation is redirected, but is no click

my $clicks = scalar($t->records(0));

for (qw(image iframe empty)) {
    my $r = answers('/r/VALID', 302, $valid, "Sec-Fetch-Dest $_",
                    headers => { 'Sec-Fetch-Dest' => $_ });
    is($r->header('Set-Cookie'), undef, "Sec-Fetch-Dest $_: no cookie");
}

$r = answers('/r/VALID', 302, $valid, 'Sec-Fetch-Dest document',
             headers => { 'Sec-Fetch-Dest' => 'document' });
ok($r->cookie('_ref'), 'Sec-Fetch-Dest document: cookie');
is(scalar($t->records($clicks + 1)), $clicks + 1, 'one of them was a click');

# where the code comes from

answers('/s/valid/x', 302, $valid, 'a regex location');
answers('/s/nope/x', 404, undef, 'a regex location, unknown');
answers('/qr?c=valid', 302, $valid, 'an argument');
answers('/qr', 404, undef, 'no argument');
answers('/bare/valid', 302, $valid, 'a location without a slash');
answers('/bare', 404, undef, 'and nothing');
answers('/r/%76alid', 302, $valid, 'an encoded path');
answers('/r/x/../valid', 302, $valid, 'a path with dots');
answers('/if/valid?x=1', 302, $valid, 'inside of an if');

# fallbacks

answers('/local/NOPE', 302, '/sorry?a=b', 'a path');
answers('/var/NOPE?to=/sorry', 302, '/sorry', 'a variable');
answers('/var/NOPE?to=https://example.com/y', 302, 'https://example.com/y',
        'a variable, absolute');

for ('', '//evil.example/', '/%5cevil.example', '/\\evil.example/',
     'javascript:x', 'evil', 'http:', 'ftp://x/', 'https://a@b/', '\\\\x')
{
    my $value = $_;
    answers("/var/NOPE?to=$value", 404, undef, "a variable: '$value'")
        unless $value eq '/%5cevil.example';
}

# passed arguments

answers('/r/ARGS?utm_source=theirs&utm_medium=print&y=2', 302,
        'https://example.com/a?utm_source=own&x=1&utm_medium=print#frag',
        'utm arguments pass, the own ones win');
answers('/all/ARGS?y=2&x=9&ref=VALID&z=%0d%0a', 302,
        'https://example.com/a?utm_source=own&x=1&y=2&z=%0d%0a#frag',
        'all arguments pass, ours does not');
answers('/none/ARGS?utm_medium=print&y=2', 302,
        'https://example.com/a?utm_source=own&x=1#frag', 'none pass');

# macros

$r = $t->get('/r/macros');
like($r->header('Location'),
     qr{^https://example\.com/MACROS\?id=[0-9a-f-]{36}&c=$}, 'macros');

my ($id) = $r->header('Location') =~ /id=([^&]*)/;
@records = $t->records(1);
my ($click) = grep { $_->{id} eq $id } @records;
ok($click, 'the id is the one recorded');
is($click->{destination},
   'https://example.com/{code}?id={click_id}&c={country}',
   'the destination is recorded as the code has it');

# other answers of the location

$r = $t->get('/page/NOPE');
is($r->status(), 200, 'error_page: status');
is($r->body(), "gone\n", 'error_page: body');
is($r->header('Cache-Control'), 'no-store', 'error_page: not stored');

$r = $t->get('/cached/NOPE');
is(join('|', $r->all('Cache-Control')), 'no-store', 'add_header: 404');
$r = $t->get('/cached/VALID');
is(join('|', $r->all('Cache-Control')), 'no-store', 'add_header: 302');
is($r->header('Expires'), undef, 'expires');
answers('/denied/VALID', 403, undef, 'deny');

# Redis goes away: what is in the zone stays, the others can not be known

$redis->stop();

answers('/r/VALID', 302, $valid, 'Redis down, in the zone');
answers('/f/FRESH', 302, 'https://example.com/fallback',
        'Redis down, fallback');
my $before = scalar($t->records(0));
$r = answers('/r/FRESH', 503, undef, 'Redis down');
like($r->header('Retry-After'), qr/^\d+$/, 'Redis down: when to come again');
is($r->header('Set-Cookie'), undef, 'Redis down: no cookie');

@records = $t->records($before + 1);
is($records[-1]{verdict}, 'unverified', 'Redis down: recorded all the same');

$r = $t->get('/?ref=FRESH2');
is($r->body(), 'code=FRESH2 verdict=unverified', 'Redis down: page');
ok($r->cookie('_ref'), 'Redis down: page sets the cookie');

# configuration

for ([ 'location ~ ^/q/ { referral_redirect; }', qr/needs an argument/ ],
     [ 'location = /q { referral_redirect; }', qr/needs an argument/ ],
     [ 'location @q { referral_redirect; }', qr/needs an argument/ ],
     [ 'location /q/ { referral_redirect; referral_redirect; }',
       qr/is duplicate/ ],
     [ 'referral_fallback //x;', qr/begins with two slashes/ ],
     [ 'referral_fallback /\\\\x;', qr/backslash/ ],
     [ 'referral_fallback x;', qr/absolute http or https URL/ ],
     [ 'referral_fallback ftp://x/;', qr/absolute http or https URL/ ],
     [ 'referral_passthrough some;', qr/invalid value "some"/ ])
{
    my ($text, $error) = @$_;

    my $c = $t->nginx_test(cookie => 1, server => "referral on; $text");

    isnt($c->{status}, 0, "$text: refused");
    like($c->{output}, $error, "$text: says why");
}

$t->allow(qr/invalid scheme|EVIL|EMPTY|referral_fallback|Redis|redis|access forbidden/);

$t->done();
