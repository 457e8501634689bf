#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# referral_strip: the address without the parameter.

use strict;
use warnings;

use Test::More;

use Referral::Test;


my $t = Referral::Test->new();

$t->redis()->code('ONE', url => 'https://example.com/one');
$t->write_file('html/index.html', "index\n");
$t->write_file('html/page.html', "page\n");

$t->nginx(cookie => 1,
          http => q{
    server {
        listen 127.0.0.1:%%PORT:skip%%;
        referral on;
        referral_strip on;
        referral_skip $http_x_skip $http_x_other;
        location / { try_files /page.html =404; }
    }
    limit_req_zone $server_name zone=one:64k rate=1r/m;
},
          server => q{
    referral on;
    referral_strip on;
    referral_param ref via;

    location / { try_files $uri $uri/index.html /page.html; }
    location /r/ { referral_redirect; }
    location /denied { deny all; }
    location /denied/page { deny all; error_page 403 @page; }
    location @page { try_files /page.html =404; }
    location /limited { limit_req zone=one; }
    location /return { return 200 "return"; }
    location /go { return 302 /there; }
    location /old/ { rewrite ^/old/(.*)$ /new/$1 last; }
    location /missing { error_page 404 /page.html; try_files /nothing =404; }
    location /proxy { proxy_pass http://127.0.0.1:%%PORT%%/page.html; }
});


sub strips {
    my ($path, $want, $name, %arg) = @_;

    my $before = scalar($t->records(0));
    my $r = $t->get($path, %arg);

    is($r->status(), 302, "$name: status");
    is($r->header('Location'), $want, $name);
    is($r->body(), '', "$name: empty");
    is(join('|', $r->all('Cache-Control')), 'no-store', "$name: not stored");

    my @new = splice(@{ [ $t->records($before + 1) ] }, $before);
    is(scalar(@new), 1, "$name: recorded once");

    return $r;
}


# paths and arguments

my $r = strips('/page.html?ref=ONE', '/page.html', 'alone');
ok($r->cookie('_ref'), 'with the cookie');

is($t->get($r->header('Location'))->status(), 200, 'and the page is there');

strips('/?ref=ONE', '/', 'the root');
strips('/?a=1&ref=ONE&b=2', '/?a=1&b=2', 'others stay, in order');
strips('/?ref=ONE&a=1', '/?a=1', 'in front');
strips('/?a=1&ref=ONE', '/?a=1', 'at the end');
strips('/?ref=ONE&ref=TWO&via=X&r%65f=y', '/', 'all of our names');
strips('/?a=%20+%zz&ref=ONE&b', '/?a=%20+%zz&b', 'bytes stay');
strips('/a%20b/%3f?ref=ONE', '/a%20b/%3f', 'an encoded path');
strips('/%0d%0aX:y?ref=ONE', '/%0d%0aX:y', 'encoded line ends');
strips('/new/page?ref=ONE', '/new/page', 'a path');
strips('/old/page?ref=ONE', '/old/page', 'a rewritten path');
strips('/proxy?ref=ONE', '/proxy', 'a proxied page');

# other sites

strips('//evil.example/?ref=ONE', '/evil.example/', 'two slashes');
strips('///evil.example?ref=ONE', '/evil.example', 'three');
strips('/\\evil.example?ref=ONE', '/evil.example', 'a backslash');
strips('\\\\evil.example?ref=ONE', '/evil.example', 'backslashes only')
    if $t->get('\\\\x')->status() != 400;
strips('/%2f/evil.example?ref=ONE', '/%2f/evil.example', 'an encoded slash');
strips('http://evil.example/page.html?ref=ONE', '/page.html', 'a whole URL');
strips('http://evil.example?ref=ONE', '/', 'a whole URL without a path');

# every verdict

strips('/?ref=NOPE', '/', 'unknown');
$r = strips('/?ref=a%20b', '/', 'malformed');
is($r->header('Set-Cookie'), undef, 'malformed: no cookie');

# not there

for ('/', '/?a=1', '/?ref=', '/?REF=ONE') {
    is($t->get($_)->status(), 200, "$_: nothing to strip");
}

is($t->head('/?ref=ONE')->status(), 200, 'HEAD stays');
is($t->post('/?ref=ONE', body => '')->status(), 405, 'POST stays');
is($t->get('/?ref=ONE', headers => { 'Sec-Fetch-Dest' => 'image' })
   ->status(), 200, 'what is no navigation stays');

$r = $t->get('/r/ONE?ref=TWO');
is($r->header('Location'), 'https://example.com/one', '/r/ stays');

# those who have a word before

is($t->get('/denied?ref=ONE')->status(), 403, 'deny');
$r = $t->get('/denied/page?ref=ONE');
is($r->status() . $r->body(), "403page\n", 'deny with an error page');
is($t->get('/return?ref=ONE')->status(), 200, 'return');
is($t->get('/go?ref=ONE')->header('Location'),
   'http://localhost:' . $t->port() . '/there', 'a redirect of the site');

strips('/limited?ref=ONE', '/limited', 'limit_req lets one pass');
is($t->get('/limited?ref=ONE')->status(), 503, 'limit_req');
strips('/missing?ref=ONE', '/missing', 'before an error page');

# referral_skip

my @skip = (port => $t->port('skip'));
my $before = scalar($t->records(0));

for (1, 'yes', 'on') {
    $r = $t->get('/?ref=ONE', @skip, headers => { 'X-Skip' => $_ });
    is($r->status(), 200, "skip $_: not stripped");
    is($r->header('Set-Cookie'), undef, "skip $_: no cookie");
}

$r = $t->get('/?ref=ONE', @skip, headers => { 'X-Skip' => 0,
                                              'X-Other' => 1 });
is($r->status(), 200, 'skip: one of several');
is(scalar($t->records(0)), $before, 'skip: nothing is recorded');

strips('/?ref=ONE', '/', 'skip 0', @skip, headers => { 'X-Skip' => 0 });

$t->done();
