#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The variables, wherever nginx reads them.

use strict;
use warnings;

use Test::More;

use Referral::Test;


my $t = Referral::Test->new();

$t->redis()->code('ONE', url => 'https://example.com/one?c={country}');
$t->write_file('html/index.html', "index\n");
$t->write_file('html/page.html', "page\n");
$t->write_file('html/ssi.html', '<!--# echo var="referral_code" -->,'
               . '<!--# include virtual="/part" -->');

my $all = join('|', map { "\$referral_$_" } qw(code verdict via cache click_id
               visitor_id first_code destination country city asn));

$t->mmdb('geo.mmdb', {
    '127.0.0.0/8' => { country => { iso_code => 'KE' },
                       city => { names => { en => 'Nairobi' } },
                       autonomous_system_number => 64500 } });

$t->nginx(cookie => 1,
          http => qq{
    referral_geoip %%DIR%%/geo.mmdb country=country.iso_code
                   city=city.names.en asn=autonomous_system_number;
    log_format all '$all';
    access_log %%DIR%%/access.log all;
    map \$referral_verdict \$mapped { valid yes; default no; }
    map \$referral_country \$place { KE Kenya; default elsewhere; }

    server {
        listen 127.0.0.1:%%PORT:app%%;
        access_log off;
        return 200 "\$http_x_code|\$http_x_id|\$http_x_empty";
    }

    server {
        listen 127.0.0.1:%%PORT:off%%;
        location / { return 200 "$all"; }
    }
},
          server => qq{
    referral on;
    location / { return 200 "$all"; }
    location /r/ { referral_redirect; }
    location /map { return 200 "\$mapped \$place"; }
    location /add { add_header X-Id \$referral_click_id;
                    add_header X-Code \$referral_code always;
                    try_files /page.html =404; }
    location /denied { deny all; add_header X-Id \$referral_click_id always; }
    location /dir/ { alias %%DIR%%/html/; add_header X-Code \$referral_code; }
    location /missing { error_page 404 \@app; }
    location /ssi.html { ssi on; default_type text/html; }
    location /part { proxy_pass http://127.0.0.1:%%PORT:app%%;
                     proxy_set_header X-Code \$referral_code;
                     proxy_set_header X-Id \$referral_click_id; }
    location \@app { proxy_pass http://127.0.0.1:%%PORT:app%%;
                    proxy_set_header X-Code \$referral_code;
                    proxy_set_header X-Id \$referral_click_id;
                    proxy_set_header X-Empty \$referral_destination; }
    location /set { set \$code \$referral_code; set \$id \$referral_click_id;
                    return 200 "\$code,\$id,\$referral_click_id"; }
    location /if { if (\$referral_verdict = valid) { return 200 "if"; }
                   return 200 "else"; }
    location /rewrite { rewrite ^ /after last; }
});

my $uuid = qr/[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}/;
my $place = 'KE|Nairobi|64500';


sub body { return $t->get(@_)->body() }


is(body('/'), "||||||||$place", 'no referral: empty, but for the place');
is(body('/', port => $t->port('off')), '||||||||||', 'referral off: all empty');
is(body('/?ref=ONE', port => $t->port('off')), '||||||||||',
   'referral off with a parameter');

like(body('/?ref=one'), qr/^ONE\|valid\|parameter\|miss\|$uuid\|\|ONE\|\|$place$/,
     'a click');
like(body('/?ref=one'), qr/^ONE\|valid\|parameter\|hit\|$uuid\|/, 'a hit');
like(body('/?ref=nope'), qr/^NOPE\|unknown\|parameter\|miss\|$uuid\|\|\|/,
     'unknown');
like(body('/?ref=no%20'), qr/^\|malformed\|parameter\|\|$uuid\|\|\|/,
     'malformed');

# a returning visitor

my $token = $t->get('/?ref=one')->cookie('_ref');
my @cookie = (headers => { Cookie => "_ref=$token" });

like(body('/', @cookie), qr/^ONE\|\|\|\|$uuid\|\|ONE\|\|$place$/,
     'a returning visitor');

$t->get('/r/one');

# places of nginx

is(body('/map?ref=one'), 'yes Kenya', 'map');
is(body('/map'), 'no Kenya', 'map without');
is(body('/if?ref=one'), 'if', 'if');
is(body('/if'), 'else', 'if without');

like(body('/set?ref=one'), qr/^ONE,($uuid),\1$/, 'set');
like(body('/rewrite?ref=one'), qr/^ONE\|valid\|parameter\|hit\|$uuid\|/,
     'after a rewrite');

my $before = scalar($t->records(0));

my $r = $t->get('/add?ref=one');
like($r->header('X-Id'), qr/^$uuid$/, 'add_header');
is($r->header('X-Code'), 'ONE', 'add_header, code');
is(($t->records($before + 1))[-1]{id}, $r->header('X-Id'),
   'the id is the one recorded');

$r = $t->get('/denied?ref=one');
is($r->status(), 403, 'denied');
is($r->header('X-Id'), undef, 'denied: no id');

$r = $t->get('/dir/?ref=one');
is($r->header('X-Code'), 'ONE', 'after an index');

like(body('/missing?ref=one'), qr/^ONE\|$uuid\|$/,
     'in a named location, as proxied headers');

$r = $t->get('/ssi.html?ref=one');
like($r->body(), qr/^ONE,ONE\|$uuid\|$/, 'SSI and its subrequest');

is(scalar($t->records($before + 4)), $before + 4, 'each recorded once');

# the log phase shows what was decided before, and decides nothing

open(my $log, '<', $t->dir() . '/access.log') or die;
my @lines = <$log>;
close($log);

chomp(@lines);
ok((grep { /^ONE\|valid\|redirect\|(?:hit|miss|stale)\|$uuid\|\|ONE\|https:\/\/example\.com\/one\?c=KE\|$place$/ }
    @lines), 'access log of a redirect');
ok((grep { /^ONE\|valid\|parameter\|hit\|\|\|\|\|$place$/ } @lines),
   'access log of a denied request: no id');

$t->done();
