#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# From a link to a row: nginx, its journal, the worker as another user,
# Postgres, and the token verified there.

use strict;
use warnings;

use Test::More;
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres();

$t->code('SUMMER25', url => 'https://example.com/summer?id={click_id}',
         code_id => 11, program_id => 22, referrer_id => 33,
         campaign => 'august', version => 4);

$t->mmdb('city.mmdb', {
    '203.0.113.0/24' => {
        country => { iso_code => 'DE' },
        city => { names => { en => 'Munich' } },
        subdivisions => [ { iso_code => 'BY' } ],
        location => { time_zone => 'Europe/Berlin' },
    },
});

# nginx writes as www-data, the worker reads as another user, of the group

my $journal = $t->dir() . '/journal';
my ($uid) = $> == 0 ? (getpwnam('www-data'))[2] : ($>);
my ($gid) = $> == 0 ? (getgrnam('postgres'))[2] : ($) + 0);

mkdir($journal) or die;
chown($uid, $gid, $journal);
chmod(02770, $journal);

$t->nginx(cookie => 1, user => 'www-data', workers => 2, http => q{
    referral_geoip %%DIR%%/city.mmdb;
    referral_journal %%DIR%%/journal size=64m segment=256k;
    set_real_ip_from 127.0.0.1;
    real_ip_header X-Forwarded-For;
}, server => q{
    referral on;
    location /r/ { referral_redirect; }
    location / { return 200 "id=$referral_click_id\n"; }
});

my $w = $t->worker($> == 0 ? (user => 'postgres') : ());

ok($w->notified(qr/READY=1/), 'the worker is ready');

my $r = $t->get('/r/summer25?utm_source=News&utm_medium=x', headers => {
    'X-Forwarded-For' => '203.0.113.77', 'User-Agent' => 'Test/1.0',
    'Accept-Language' => 'de-DE,de;q=0.8',
    'Referer' => 'https://blog.example/a?b=c' });

is($r->status(), 302, 'a short link');
my ($id) = ($r->header('Location') // '')
           =~ /^https:\/\/example\.com\/summer\?id=([0-9a-f-]{32,36})/;
ok($id, 'whose click has an id');

my $sql = 'SELECT count(*) FROM referral.click';
ok($t->wait_for(sub { $pg->value($sql) == 1 }, 10), 'arrives in Postgres');

my ($row) = $pg->rows("SELECT verdict, via, country, city, ip, page, referer,
    source, user_agent, code_id, program_id, referrer_id,
    now() - time < interval '1 minute' FROM referral.click
    WHERE id = '$id' AND code = 'SUMMER25'");
is_deeply($row, [ 'valid', 'redirect', 'DE', 'Munich', '203.0.113.0/24',
                  'localhost/r/summer25', 'blog.example', 'news', 'Test/1.0',
                  11, 22, 33, 't' ], 'with all that is known of it')
    or diag(explain($row));

($row) = $pg->rows("SELECT region, args ->> 'utm_medium', metadata ->> 'campaign',
    metadata ->> 'time_zone', metadata ->> 'version', metadata ->> 'cache'
    FROM referral.interaction WHERE id = '$id'");
is_deeply($row, [ 'BY', 'x', 'august', 'Europe/Berlin', 4, 'miss' ],
          'and the rest') or diag(explain($row));

is($pg->value('SELECT n FROM referral.counters WHERE program_id = 22
               AND referrer_id = 33'), 1, 'counted');

# the same visitor comes by another link; the backend verifies the cookie

my ($cookie) = ($r->cookie('_ref') // '') =~ /^([^;]+)/;
ok($cookie, 'a cookie');

$t->code('OTHER', url => 'https://example.com/other');
$r = $t->get('/page?ref=OTHER', headers => { Cookie => "_ref=$cookie",
    'X-Forwarded-For' => '198.51.100.1' });
my ($second) = $r->body() =~ /id=(\S+)/;
($cookie) = ($r->cookie('_ref') // '') =~ /^([^;]+)/;
ok($t->wait_for(sub { $pg->value($sql) == 2 }, 10), 'the second click');

$pg->rows("INSERT INTO referral.token_key (id, secret) VALUES
    ('k1', decode('AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=', 'base64'))");
$pg->rows('CREATE ROLE shop LOGIN IN ROLE referral_app');

($row) = $pg->rows("SELECT reason, first_code, first_click, last_code,
    last_click FROM referral.verify_token('$cookie')", user => 'shop');
is_deeply($row, [ 'valid', 'SUMMER25',
                  $pg->value("SELECT '$id'::uuid"), 'OTHER',
                  $pg->value("SELECT '$second'::uuid") ],
          'the token says first and last touch') or diag(explain($row));

is($pg->value("SELECT country IS NULL FROM referral.click
               WHERE code = 'OTHER'"), 't', 'no place for an unknown network');

# nginx is reloaded, and ends; every click is there

$t->get('/r/SUMMER25') for 1 .. 20;
$t->reload();
$t->get('/r/SUMMER25') for 1 .. 20;
$t->nginx_stop();
ok($t->wait_for(sub { $pg->value($sql) == 42 }, 10), 'none is lost by a reload')
    or diag($pg->value($sql));
is($pg->value('SELECT sum(gap) + sum(dead) + sum(quarantined)
               FROM referral.ingest_cursor'), 0, 'nor damaged');

$t->done();
