#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The parameter against everything else that a configuration does with a
# request: each visit is recorded once, what was denied is not.

use strict;
use warnings;

use Test::More;

use Referral::Test;


my $t = Referral::Test->new();

$t->redis()->code('SUMMER25', url => 'https://example.com/summer');
$t->redis()->code('JUAN', url => 'https://example.com/juan');

for (qw(index.html dir/index.html try.html static.html)) {
    $t->write_file("html/$_", "file $_\n");
}

$t->write_file('html/ssi.html',
               '<!--# include virtual="/part?ref=JUAN" -->'
               . '<!--# include virtual="/part?ref=JUAN" -->');

$t->nginx(cookie => 1,
          http => q{
    limit_req_zone $server_name zone=one:64k rate=1r/m;

    server {
        listen 127.0.0.1:%%PORT:plain%%;
        referral on;
        location / { return 301 http://localhost:%%PORT%%$request_uri; }
    }

    server {
        listen 127.0.0.1:%%PORT:rewriting%%;
        referral on;
        rewrite ^/short/(.*)$ /r/$1 last;
        rewrite ^/old/(.*)$ /new/$1 last;
        rewrite ^/gone/(.*)$ /new/$1 permanent;
        location /r/ { referral_redirect; }
        location /new/ { return 200 "new $uri"; }
    }

    server {
        listen 127.0.0.1:%%PORT:whole%%;
        referral on;
        return 200 "$referral_code";
    }

    server {
        listen 127.0.0.1:%%PORT:app%%;
        location / {
            return 200 "uri=$request_uri code=$http_x_code id=$http_x_id";
        }
        location = /auth { return 204; }
        location = /noauth { return 401; }
        location = /broken { return 500; }
        location = /part { return 200 "part"; }
    }},
          server => q{
    referral on;

    location /r/ { referral_redirect; }
    location /static { }
    location /dir { }

    location /deny { deny all; }
    location /limited { limit_req zone=one; }
    location /back { return 302 /next?ref=SUMMER25; }
    location /back/encoded { return 302 "/next?a=1&r%65f=SUMMER25#x"; }
    location /away { return 302 /next?a=1; }
    location /empty { return 302 /next?ref=; }
    location /fragment { return 302 "/next#?ref=SUMMER25"; }
    location /unauthorized { return 401; }
    location /busy { return 429; }
    location /error { return 500; }
    location /teapot { return 418; }
    location /closed { return 444; }

    location /try { try_files $uri.html @app; }
    location /tryr { try_files $uri /r/JUAN; }
    location /named { try_files /none @app; }
    location @app { proxy_pass http://127.0.0.1:%%PORT:app%%; }

    location /missing { error_page 404 /static.html; }
    location /missingapp { error_page 404 = @app; }
    location /missingr { error_page 404 = /r/JUAN; }
    location /denied { deny all; error_page 403 = @app; }

    location /proxy {
        proxy_pass http://127.0.0.1:%%PORT:app%%;
        proxy_set_header X-Code $referral_code;
        proxy_set_header X-Id $referral_click_id;
    }

    location /broken {
        proxy_pass http://127.0.0.1:%%PORT:app%%;
    }

    location /auth {
        auth_request /authreq;
        return 200 "auth";
    }
    location /auth/file { auth_request /authreq; try_files /static.html =404; }
    location /noauth { auth_request /noauthreq; try_files /static.html =404; }
    location = /authreq { proxy_pass http://127.0.0.1:%%PORT:app%%/auth?ref=JUAN; }
    location = /noauthreq { proxy_pass http://127.0.0.1:%%PORT:app%%/noauth; }

    location /ssi.html { ssi on; default_type text/html; }
    location /part { proxy_pass http://127.0.0.1:%%PORT:app%%; }

    location /mirror { mirror /mirrored; try_files /static.html =404; }
    location = /mirrored { internal; proxy_pass http://127.0.0.1:%%PORT:app%%/part?ref=JUAN; }
});


# a request; the clicks that it must have left, as "code verdict" each

sub leaves {
    my ($request, $status, $clicks, $cookie, $name) = @_;

    my $before = count();
    my $r = ref($request) ? $t->get(@$request) : $t->get($request);

    is($r->status(), $status, "$name: status");

    my @want = @$clicks;
    my @new = splice(@{ [ $t->records($before + @want) ] }, $before);

    is(join(', ', map { "$_->{code} $_->{verdict}" } @new),
       join(', ', @want), "$name: recorded");

    my @cookies = grep { /^_ref=/ } $r->all('Set-Cookie');
    is(scalar(@cookies), $cookie, "$name: cookie");

    $before += @want;

    return $r;
}


my $count = 0;

sub count {
    my @all = $t->records(0);
    return scalar(@all);
}


my $valid = [ 'SUMMER25 valid' ];
my $q = '?ref=SUMMER25';

# the site's own redirects

leaves([ "/x$q", port => $t->port('plain') ], 301, [], 0, 'http to https');
leaves("/static.html$q", 200, $valid, 1, 'and the request that follows');
leaves("/back$q", 302, [], 0, 'a redirect that carries the parameter');
leaves("/back/encoded$q", 302, [], 0, 'with an encoded name');
leaves("/away$q", 302, $valid, 1, 'a redirect that does not');
leaves("/empty$q", 302, $valid, 1, 'or carries an empty one');
leaves("/fragment$q", 302, $valid, 1, 'or has it in the fragment');
leaves("/dir$q", 301, [], 0, 'a slash redirect');
leaves([ "/x$q", port => $t->port('whole') ], 200, $valid, 1,
       'return in the server');

# rewrite

my @rewriting = (port => $t->port('rewriting'));

my $r = leaves([ "/old/x$q", @rewriting ], 200, $valid, 1, 'rewrite last');
is($r->body(), 'new /new/x', 'rewritten');

leaves([ "/gone/x$q", @rewriting ], 301, [], 0, 'rewrite permanent');

$r = leaves([ '/short/JUAN', @rewriting ], 302, [ 'JUAN valid' ], 1,
            'rewrite last into /r/');
is($r->header('Location'), 'https://example.com/juan', 'redirected');

my ($last) = (sort { $a->{id} cmp $b->{id} } $t->records(0))[-1];
is($last->{path}, '/short/JUAN', 'the path that was asked for');

leaves([ "/short/JUAN$q", @rewriting ], 302, [ 'JUAN valid' ], 1,
       'and the path wins');

# files

leaves("/$q", 200, $valid, 1, 'index');
leaves("/dir/$q", 200, $valid, 1, 'index of a directory');
leaves("/try$q", 200, $valid, 1, 'try_files');
leaves("/named$q", 200, $valid, 1, 'a named location');
leaves("/tryr$q", 302, [ 'JUAN valid' ], 1, 'try_files into /r/');

# error pages

leaves("/missing$q", 404, $valid, 1, 'error_page');
leaves("/missingapp$q", 200, $valid, 1, 'error_page to a named location');
leaves("/nothing$q", 404, $valid, 1, '404');
leaves("/teapot$q", 418, $valid, 1, '418');
leaves("/missingr$q", 302, [ 'JUAN valid' ], 1, 'error_page into /r/');

# what was refused

leaves("/deny$q", 403, [], 0, 'deny');
leaves("/unauthorized$q", 401, [], 0, '401');
leaves("/busy$q", 429, [], 0, '429');
leaves("/error$q", 500, [], 0, '500');
leaves("/broken$q", 500, [], 0, 'an application that fails');
leaves("/closed$q", 0, [], 0, '444');
leaves("/limited$q", 404, $valid, 1, 'limit_req lets one pass');
leaves("/limited$q", 503, [], 0, 'limit_req');

# proxied

$r = leaves("/proxy$q", 200, $valid, 1, 'proxy_pass');
like($r->body(), qr/code=SUMMER25 id=[0-9a-f-]{36}$/, 'code and id are sent');

my ($id) = $r->body() =~ /id=(\S+)/;
is((grep { $_->{id} eq $id } $t->records(0)), 1, 'the id is the one recorded');

# subrequests

leaves("/auth/file$q", 200, $valid, 1, 'auth_request');
leaves('/auth/file', 200, [], 0, 'auth_request without');
leaves("/noauth$q", 401, [], 0, 'auth_request that denies');
$r = leaves("/ssi.html$q", 200, $valid, 1, 'SSI');
is($r->body(), 'partpart', 'with its parts');
leaves('/ssi.html', 200, [], 0, 'SSI without');
leaves("/mirror$q", 200, $valid, 1, 'mirror');

# not modified

$r = $t->get('/static.html');
leaves([ "/static.html$q", headers => { 'If-None-Match' => $r->header('ETag') } ],
       304, $valid, 1, '304');
leaves([ "/static.html$q", headers => { 'If-Match' => '"x"' } ],
       412, $valid, 1, '412');
leaves([ "/static.html$q", headers => { Range => 'bytes=1000-' } ],
       416, $valid, 1, '416');

$t->done();
