#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The answer to a network that guesses codes: 429, whatever the site makes of
# it, and nothing recorded.

use strict;
use warnings;

use Test::More;

use Referral::Test;


my $t = Referral::Test->new();

$t->redis()->code('ONE', url => 'https://example.com/one');
$t->write_file('html/busy.html', "busy\n");
$t->write_file('html/page.html', "page\n");

$t->nginx(cookie => 1, http => q{
    referral_miss_limit rate=1r/m burst=2;

    server {
        listen 127.0.0.1:%%PORT:page%%;
        referral on;
        referral_strip on;
        error_page 429 =200 /busy.html;
        location / { try_files /page.html =404; }
        location /busy.html { add_header Cache-Control "public, max-age=60"; }
        location /r/ {
            referral_redirect;
            referral_fallback /sorry;
            error_page 429 /busy.html;
        }
    }
}, server => q{
    referral on;
    location / { return 200 "page"; }
    location /r/ { referral_redirect; }
});

is($t->get('/?ref=ONE')->status(), 200, 'a known code');

# what is left of the budget

my $n = 0;
$n++ while $n < 10 && $t->get("/?ref=GUESS$n")->status() == 200;
cmp_ok($n, '<', 5, 'the budget is spent');

my $records = scalar($t->records(0));


sub busy {
    my ($r, $name) = @_;

    is($r->status(), 429, "$name: status");
    is(join('|', $r->all('Cache-Control')), 'no-store', "$name: not stored");
    is(scalar($r->all('Retry-After')), 1, "$name: when to come again");
    is($r->header('Set-Cookie'), undef, "$name: no cookie");
    is($r->header('Location'), undef, "$name: no location");
}


my @page = (port => $t->port('page'));

busy($t->get('/?ref=GUESS'), 'page');
busy($t->get('/r/GUESS'), '/r/');
busy($t->get('/r/GUESS', @page), '/r/ with a fallback');
busy($t->head('/?ref=GUESS'), 'HEAD');

my $r = $t->get('/?ref=GUESS', @page);
is($r->status() . ' ' . $r->body(), "200 busy\n",
   'a page of the site in place of 429');
is(join('|', $r->all('Cache-Control')), 'no-store', 'is not stored either');
is($r->header('Location'), undef, 'and not stripped');

is($t->get('/?ref=ONE')->body(), 'page', 'hits are never limited');
is($t->get('/r/ONE')->status(), 302, 'on /r/ neither');
is($t->get('/')->body(), 'page', 'pages without a code neither');
is($t->get('/?ref=a%20b')->body(), 'page', 'nor what is no code');

is(scalar($t->records($records + 3)), $records + 3,
   'only those were recorded');

$t->done();
