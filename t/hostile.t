#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Requests made at random, while Redis comes and goes, nginx reloads and its
# workers are killed: nothing breaks, nobody is sent where no code says, and
# every click id that a client was given stands in the journal, once.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use Referral::Test;


my $seed = $ENV{REFERRAL_SEED} // int(rand(2 ** 31));

srand($seed);

my $rounds = $ENV{REFERRAL_ROUNDS} // 120;

my $t = Referral::Test->new();
my $redis = $t->redis();

my @codes = map { "CODE$_" } 1 .. 12;

sub set_codes {
    for my $n (1 .. 12) {
        my %field = (url => "https://example.com/$n/{code}?id={click_id}#f");

        $field{state} = (qw(active inactive exhausted))[int(rand(3))]
            if rand() < 0.3;
        $field{expires} = int(time()) + int(rand(4)) - 2 if rand() < 0.2;
        $field{url} = "https://example.com/\x01$n" if rand() < 0.1;

        $redis->code("CODE$n", %field);
    }
}

set_codes();

$t->nginx(cookie => 1, status => 1, workers => 2, http => q{
    referral_redis %%REDIS%% timeout=50ms;
    referral_zone 1m valid=300ms invalid=300ms stale=1s;
    real_ip_header X-Real-IP;
    set_real_ip_from 127.0.0.1;

    server {
        listen 127.0.0.1:%%PORT:up%%;
        location / { return 200 "up $http_x_click\n"; }
    }
}, server => q{
    referral on;
    referral_param ref r;
    referral_cookie _ref visitor=on;

    location /r/ { referral_redirect; referral_passthrough all; }
    location /f/ {
        referral_redirect;
        referral_fallback https://example.com/lost;
    }
    location /e/ { referral_redirect; error_page 404 410 503 /gone; }
    location /gone { return 200 "gone\n"; }
    location /rw/ { rewrite "(?s)^/rw/(.*)$" /r/$1 last; }
    location /deny/ { deny all; }
    location /proxy/ {
        proxy_pass http://127.0.0.1:%%PORT:up%%/;
        proxy_set_header X-Click $referral_click_id;
    }
    location /error/ { return 500; }
    location / { return 200 "page $referral_code\n"; }
});


#
# what a client may send
#

sub any { return $_[int(rand(@_))] }

sub noise {
    my ($max) = @_;

    return join('', map { chr(any(0x21 .. 0x7e, 0x80 .. 0xff)) }
                    1 .. int(rand($max)));
}

sub escaped { return join('', map { sprintf('%%%02X', int(rand(256))) }
                          1 .. int(rand(12))) }

my @tokens = ('v1', '.......', 'x' x 3000);

sub code {
    my $x = rand();

    return any(@codes) if $x < 0.6;
    return lc(any(@codes)) if $x < 0.7;
    return 'NONE' . int(rand(50)) if $x < 0.8;
    return escaped() if $x < 0.9;
    return 'A' x int(rand(80));
}

sub args {
    my @args;

    for (1 .. int(rand(5))) {
        my $value = any(code(), noise(30), escaped(), 'https://evil.example/');

        $value =~ s/[&#]//g;

        push @args, any('ref', 'r', '%72ef', 'utm_source', 'id', 'REF', '',
                        'gclid', 'next', 'a[]')
                    . any('=', '=', '=', '', '==') . $value;
    }

    return @args ? '?' . join(any('&', '&', '&&'), @args) : '';
}

sub path {
    my $path = any('/r/', '/r/', '/r/', '/f/', '/e/', '/rw/', '/', '/page',
                   '/deny/', '/proxy/', '/error/', '/r', '//evil.example/');

    $path .= code() if $path =~ m{^/(?:r|f|e|rw)/};
    $path =~ s/[ ?#]//g;

    return $path . args();
}

sub request {
    my $method = rand() < 0.85 ? 'GET' : any('HEAD', 'POST', 'PUT', 'OPTIONS');
    my @headers;

    push @headers, 'User-Agent' => any('Mozilla/5.0', noise(700), '')
        if rand() < 0.8;
    push @headers, 'Referer' => any('https://search.example/a?b', noise(200),
                                    'https://', 'x' x 2000)
        if rand() < 0.4;
    push @headers, 'Cookie' => any('', 'a=b; ') . "_ref=$_"
        for map { any(@tokens) } 1 .. int(rand(3));
    # a mapped address from 128.0.0.0 on trips a sanitizer in nginx's own
    # ngx_http_access_module

    push @headers, 'X-Real-IP' => any('192.0.2.' . int(rand(256)),
                                      '2001:db8::' . int(rand(9999)),
                                      '::ffff:100.64.0.7', 'nonsense')
        if rand() < 0.7;
    push @headers, 'Sec-GPC' => '1' if rand() < 0.1;
    push @headers, 'Sec-Fetch-Dest' => any('document', 'image', 'empty')
        if rand() < 0.3;
    push @headers, 'Purpose' => 'prefetch' if rand() < 0.1;
    push @headers, 'Accept-Language' => any('es-MX,es;q=0.9', noise(200))
        if rand() < 0.3;

    return { method => $method, path => path(), headers => \@headers };
}


#
# what must hold for a response
#

my (%seen, %given, @wrong);

sub wrong {
    my ($what, $request, $r) = @_;

    push @wrong, "$what: $request->{method} $request->{path}\n"
                 . ($r->{raw} // '');
}

sub check {
    my ($request, $r) = @_;

    my $status = $r->status();

    $seen{$status}++;

    wrong("status $status", $request, $r)
        unless $status =~ /^(?:200|302|400|403|404|405|410|429|500|503)$/
               && ($status != 500 || $request->{path} =~ m{^/error/});

    my $location = $r->header('Location');

    if (defined $location) {
        wrong('location', $request, $r)
            unless $location =~ m{^https://example\.com/[\x21-\x7e]*$};

        if ($location =~ /[?&]id=([0-9a-f-]{32,36})[&#]/) {
            (my $id = $1) =~ tr/-//d;
            $given{$id}++;
        }
    }

    if ($request->{path} =~ m{^/(?:r|f|e|rw)/} && $status != 400) {
        wrong('may be cached', $request, $r)
            unless ($r->header('Cache-Control') // '') eq 'no-store';
    }

    my @cookies = $r->all('Set-Cookie');

    wrong('cookies', $request, $r) if @cookies > 1;

    if (@cookies) {
        my $token = $r->cookie('_ref') // '';

        wrong('cookie', $request, $r)
            unless $token =~ /^v1\.k1\.[A-Z0-9_-]{1,64}\.[0-9a-f]{32}
                              \.[A-Z0-9_-]{1,64}\.([0-9a-f]{32})
                              \.[0-9a-f]{32}\.[\w-]{22}$/x;
        $given{$1 // ''}++;

        wrong('a cookie that may be cached', $request, $r)
            unless ($r->header('Cache-Control') // '') =~ /private|no-store/;
        wrong('a cookie with an error', $request, $r)
            if $status == 403 || $status >= 500;

        push @tokens, $token;

        my $cut = substr($token, 0, int(rand(length($token))));
        (my $forged = $token) =~ s/([0-9a-f])(?=\.[\w-]*$)/$1 ^ "\1"/e;

        push @tokens, $cut, $forged if rand() < 0.1;
        splice(@tokens, 3, 1) while @tokens > 60;
    }

    if ($r->body() =~ /^up ([0-9a-f-]{32,36})$/m) {
        (my $id = $1) =~ tr/-//d;
        $given{$id}++;
    }
}


for my $round (1 .. $rounds) {
    my @requests = map { request() } 1 .. 12;
    my @responses = $t->parallel(@requests);

    check($requests[$_], $responses[$_]) for 0 .. $#requests;

    my $x = rand();

    if ($x < 0.05) {
        $redis->pause();
        $t->parallel(map { request() } 1 .. 8);
        $redis->resume();

    } elsif ($x < 0.08) {
        $redis->restart();
        set_codes();

    } elsif ($x < 0.20) {
        set_codes();

    } elsif ($x < 0.22) {
        $t->reload();

    } elsif ($x < 0.24) {
        $t->kill_worker();
    }
}

ok(!@wrong, "every response is one that may be (REFERRAL_SEED=$seed)")
    or diag(join("\n", @wrong > 5 ? @wrong[0 .. 4] : @wrong));

diag(join(', ', map { "$_: $seen{$_}" } sort keys %seen)) if @wrong;

for my $status (200, 302, 404, 410) {
    cmp_ok($seen{$status} // 0, '>', 0, "$status among them");
}

cmp_ok(scalar(keys %given), '>', 10, 'click ids were given out');

my %journal;

for ($t->records(1)) {
    (my $id = $_->{id}) =~ tr/-//d;
    $journal{$id}++;
}

is(scalar(grep { $journal{$_} != 1 } keys %journal), 0,
   "no id stands twice in the journal (REFERRAL_SEED=$seed)");

my @lost = grep { !$journal{$_} } keys %given;

is(scalar(@lost), 0,
   "each id that was given out stands there (REFERRAL_SEED=$seed)")
    or diag(join(' ', @lost));

my $verify = $t->referralctl('journal', 'verify', '--journal',
                             $t->dir . '/journal');

is($verify->{status}, 0, 'the journal is whole') or diag($verify->{output});

$t->done();
