#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The cookie and caches: what "expires", "add_header" and an application say
# does not make a shared cache keep one visitor's cookie.

use strict;
use warnings;

use Test::More;

use Referral::Test;


my $t = Referral::Test->new();

$t->redis()->code('ONE', url => 'https://example.com/');
$t->write_file('html/page.html', "page\n");

$t->nginx(cookie => 1,
          server => q{
    referral on;

    location / { try_files /page.html =404; }
    location /expires { expires 1h; try_files /page.html =404; }
    location /epoch { expires epoch; try_files /page.html =404; }
    location /max { expires max; try_files /page.html =404; }
    location /public {
        add_header Cache-Control "public, max-age=60, s-maxage=600";
        try_files /page.html =404;
    }
    location /both {
        expires 1h;
        add_header Cache-Control public;
        try_files /page.html =404;
    }
    location /301 { return 301 /x; }
    location /302 { return 302 /x; }
    location /307 { return 307 /x; }
    location /308 { return 308 /x; }
    location /301/expires { expires 1h; return 301 /x; }
    location /301/ref { return 301 /x?ref=ONE; }
});


sub caches {
    my ($path, $want, $name) = @_;

    my $r = $t->get("$path?ref=ONE");

    ok($r->cookie('_ref'), "$name: cookie");
    is(join('|', $r->all('Cache-Control')), $want, $name);

    return $r;
}


# pages without a cookie are left as they are

for ([ '/', '' ], [ '/expires', 'max-age=3600' ],
     [ '/public', 'public, max-age=60, s-maxage=600' ],
     [ '/both', 'max-age=3600|public' ], [ '/301', '' ])
{
    my ($path, $want) = @$_;
    is(join('|', $t->get($path)->all('Cache-Control')), $want,
       "$path without a code");
}

is($t->get('/public?ref=NOPE')->header('Cache-Control'),
   'public, max-age=60, s-maxage=600', 'a code that sets no cookie');

# with one

caches('/', 'private', 'nothing said');
my $r = caches('/expires', 'max-age=3600, private', 'expires');
ok($r->header('Expires'), 'expires: for the visitor');
caches('/epoch', 'no-cache, private', 'expires epoch');
caches('/max', 'max-age=315360000, private', 'expires max');
caches('/public', 'max-age=60, private', 'public');
caches('/both', 'max-age=3600, private', 'both');

for (301, 308) {
    $r = caches("/$_", 'no-store', "return $_");
}

$r = caches('/301/expires', 'no-store', '301 with expires');
is($r->header('Expires'), undef, '301: no Expires');

caches("/$_", 'private', "return $_") for 302, 307;

$r = $t->get('/301/ref?ref=ONE');
is($r->header('Set-Cookie'), undef, '301 that carries the parameter');
is($r->header('Cache-Control'), undef, 'is left as it is');

# what applications say

my @said = (
    'private'                     => 'private',
    'no-store'                    => 'no-store',
    'Private, max-age=5'          => 'Private, max-age=5',
    'no-cache'                    => 'no-cache, private',
    'PUBLIC'                      => 'private',
    'public,max-age=5'            => 'max-age=5, private',
    's-maxage=5'                  => 'private',
    'S-MaxAge = 5, max-age=1'     => 'max-age=1, private',
    's-maxage-x=5'                => 's-maxage-x=5, private',
    'publicity'                   => 'publicity, private',
    'private="Set-Cookie"'        => 'private="Set-Cookie", private',
    'x="a, public, no-store", y'  => 'x="a, public, no-store", y, private',
    'x="a\\", private", public'   => 'x="a\\", private", private',
    'x="unfinished, public'       => 'x="unfinished, public, private',
    ', ,,'                        => 'private',
    'no-store, public'            => 'no-store, public',
);

my ($apps, @apps) = ('');

while (my ($said, $want) = splice(@said, 0, 2)) {

    my $quoted = $said =~ s/(["\\])/\\$1/gr;
    my $path = '/app/' . @apps;

    $apps .= "location = $path { add_header Cache-Control \"$quoted\";"
             . " try_files /page.html =404; }\n";
    push @apps, [ $path, $want, $said ];
}

$t->reconfigure(cookie => 1, server => "referral on; $apps
    location = /two {
        add_header Cache-Control max-age=5;
        add_header Cache-Control 'public, no-transform';
        add_header Cache-Control s-maxage=7;
        try_files /page.html =404;
    }
    location = /three {
        add_header Cache-Control public;
        add_header Cache-Control no-store;
        try_files /page.html =404;
    }
    location = /log { access_log %%DIR%%/cc.log cc; try_files /page.html =404; }
    ", http => 'log_format cc "$sent_http_cache_control";');

caches(@$_) for @apps;
caches('/two', 'max-age=5, no-transform, private', 'several headers');
caches('/three', 'public|no-store', 'one of several says no-store');

$t->get('/log?ref=ONE');
$t->wait_for(sub { $t->read_file('cc.log') });
is($t->read_file('cc.log'), "private\n", 'the log shows what was sent');

# a page in nginx's own cache

$t->reconfigure(%{ $t->{nginx_args} }, http => q{
    proxy_cache_path %%DIR%%/cache keys_zone=cache:1m;

    server {
        listen 127.0.0.1:%%PORT:app%%;
        add_header Cache-Control "public, max-age=60";
        return 200 "at $msec";
    }}, server => q{
    referral on;
    location / {
        proxy_pass http://127.0.0.1:%%PORT:app%%;
        proxy_cache cache;
        proxy_cache_key $uri;
        add_header X-Status $upstream_cache_status;
    }
});

$r = $t->get('/a?ref=ONE');
my ($first, $body) = ($r->cookie('_ref'), $r->body());
is($r->header('X-Status'), 'MISS', 'fills the cache');

$r = $t->get('/a');
is($r->header('X-Status'), 'HIT', 'the next one is served from it');
is($r->header('Set-Cookie'), undef, 'without the cookie of the first');
is($r->header('Cache-Control'), 'public, max-age=60', 'as it was');

$r = $t->get('/a?ref=ONE');
is($r->header('X-Status'), 'HIT', 'a click on a cached page');
is($r->body(), $body, 'gets that page');
isnt($r->cookie('_ref') // $first, $first, 'and a cookie of its own');
is($r->header('Cache-Control'), 'max-age=60, private', 'which is private');

is(scalar(grep { $_->{verdict} eq 'valid' && $_->{path} eq '/a' }
          $t->records(1)), 2, 'each click was recorded');

$t->done();
