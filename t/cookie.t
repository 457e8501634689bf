#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The attribution cookie: who gets one, which of those that come are believed.

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256);
use MIME::Base64 qw(decode_base64 encode_base64url);
use Test::More;
use Time::HiRes qw(time);

use Referral::Test;


my %keys = (
    k1 => decode_base64('AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='),
    k0 => decode_base64('ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8='),
    new => 'N' x 32,
);


# the id of a click so many seconds ago

sub click {
    my ($ago) = @_;

    return sprintf('%012x7%03x8%015x', (time() - $ago) * 1000, rand(4096),
                   rand(1 << 30));
}


# a token as the reference has it, made without the module

sub token {
    my (%arg) = @_;

    my $text = join('.', $arg{version} // 'v1', $arg{key} // 'k1',
                    $arg{first} // $arg{last}, $arg{first_click} // $arg{click},
                    $arg{last}, $arg{click}, $arg{visitor} // '');
    my $mac = hmac_sha256($text, $keys{$arg{secret} // $arg{key} // 'k1'});

    return "$text." . encode_base64url(substr($mac, 0, 16));
}


my $t = Referral::Test->new();

$t->redis()->code($_, url => 'https://example.com/') for qw(ONE TWO THREE);

my $page = q{
    referral on;
    location /r/ { referral_redirect; }
    location / {
        return 200 "$referral_code,$referral_first_code,$referral_click_id";
    }
};

my $http = q{
    referral_consent not_required;
    map $http_x_consent $consent { default $http_x_consent; }

    server {
        listen 127.0.0.1:%%PORT:consent%%;
        referral_consent $consent;
        referral_cookie _ref visitor=on;
        referral_ip full;
        %%PAGE%%
    }
    server {
        listen 127.0.0.1:%%PORT:early%%;
        referral_consent $agreed;
        referral_cookie _ref visitor=on;
        set $agreed 0;
        set $early "$referral_visitor_id$referral_first_code";
        set $agreed $http_x_consent;
        %%PAGE%%
    }
    server {
        listen 127.0.0.1:%%PORT:ignore%%;
        referral_gpc ignore;
        %%PAGE%%
    }
    server {
        listen 127.0.0.1:%%PORT:first%%;
        referral_attribution first;
        %%PAGE%%
    }
    server {
        listen 127.0.0.1:%%PORT:off%%;
        referral_cookie off;
        %%PAGE%%
    }
    server {
        listen 127.0.0.1:%%PORT:visitor%%;
        referral_cookie _ref visitor=on;
        location = /visitor { return 200 $referral_visitor_id; }
        %%PAGE%%
    }
    server {
        listen 127.0.0.1:%%PORT:attributes%%;
        referral_cookie __Secure-x domain=example.com path=/shop max_age=1h
                        samesite=none secure=on httponly=off;
        %%PAGE%%
    }
    server {
        listen 127.0.0.1:%%PORT:variable%%;
        referral_cookie _ref secure=$http_x_secure;
        %%PAGE%%
    }
    server {
        listen 127.0.0.1:%%PORT:tls%% ssl;
        ssl_certificate %%DIR%%/cert.pem;
        ssl_certificate_key %%DIR%%/key.pem;
        %%PAGE%%
    }
};

my ($cert, $key) = $t->certificate();
$http =~ s/%%PAGE%%/$page/g;
$http =~ s/%%DIR%%\/cert.pem/$cert/;
$http =~ s/%%DIR%%\/key.pem/$key/;

$t->nginx(cookie => 1, http => $http, server => $page);


sub page {
    my ($cookie, $path, %arg) = @_;

    my @pairs = ref($cookie) ? map { (Cookie => $_) } @$cookie
              : defined $cookie ? (Cookie => "_ref=$cookie") : ();

    return $t->get($path // '/', %arg,
                   headers => [ @pairs, @{ $arg{headers} // [] } ]);
}


# what a page shows to the one with this cookie

sub shown {
    my ($cookie, $want, $name, %arg) = @_;

    my $r = page($cookie, '/', %arg);

    like($r->body(), qr/^$want,/, $name);
    is($r->header('Set-Cookie'), undef, "$name: no cookie without a click");
}


# new and returning

my $r = page(undef, '/?ref=one');
my $one = $r->cookie('_ref');
my ($text) = $r->all('Set-Cookie');

like($text, qr/^_ref=v1\.k1\.ONE\.[0-9a-f]{32}\.ONE\.[0-9a-f]{32}\.\.
               [\w-]{22};\ Path=\/;\ Max-Age=7776000;\ HttpOnly;
               \ SameSite=Lax$/x, 'a new visitor gets a cookie');

my ($id) = $r->body() =~ /([^,]*)$/;
(my $hex = $id) =~ s/-//g;
like($one, qr/^v1\.k1\.ONE\.$hex\.ONE\.$hex\./, 'with the click it was for');

my (undef, undef, @fields) = split(/\./, $one);
is($one, token(last => 'ONE', click => $fields[1]), 'signed as documented');

shown($one, 'ONE,ONE', 'a returning visitor');

$r = page($one, '/?ref=two');
my $two = $r->cookie('_ref');
like($two, qr/^v1\.k1\.ONE\.$hex\.TWO\./, 'first stays, last changes');
like($r->body(), qr/^TWO,ONE,/, 'the last touch is shown');
shown($two, 'TWO,ONE', 'and later');

$r = page($two, '/?ref=nope');
like($r->body(), qr/^NOPE,ONE,/, 'an unknown code is shown');
is($r->cookie('_ref'), undef, 'but not kept');

$r = page($two, '/?ref=a%20b');
like($r->body(), qr/^,ONE,/, 'a malformed one is empty');
is($r->cookie('_ref'), undef, 'and not kept');

# within seconds

my $before = scalar($t->records(0));
$r = page($one, '/?ref=one');
is($r->cookie('_ref'), undef, 'the same code within seconds: no new cookie');
like($r->body(), qr/,$id$/, 'the click that is kept is shown');

my $again = ($t->records($before + 1))[-1];
isnt($again->{id}, $id, 'it is recorded');
is($again->{original}, $id, 'with the one that is kept');
is("@{ $again->{signals} }", 'duplicate', 'and its signal');

my $old = token(last => 'ONE', click => click(60));
$r = page($old, '/?ref=one');
my $new = $r->cookie('_ref');
isnt($new, undef, 'the same code after a minute: a new touch');
my ($was) = $old =~ /ONE\.(\w+)/;
like($new, qr/^v1\.k1\.ONE\.$was\.ONE\.(?!$was)/, 'first stays');

# attribution first

my @first = (port => $t->port('first'));
shown($two, 'ONE,ONE', 'attribution first', @first);
$r = page($two, '/?ref=three', @first);
like($r->body(), qr/^ONE,ONE,$id$/, 'attribution first, another code');
like($r->cookie('_ref'), qr/\.THREE\./, 'the last touch is kept too');
$r = page(undef, '/?ref=three', @first);
like($r->body(), qr/^THREE,THREE,[0-9a-f-]{36}$/,
     'attribution first, no cookie');

# what is not believed

my %bad = (
    'forged'       => token(last => 'ONE', click => click(60),
                            secret => 'k0'),
    'another code' => $one =~ s/ONE/TWO/r,
    'truncated'    => substr($one, 0, -1),
    'longer'       => $one . 'A',
    'unknown key'  => token(last => 'ONE', click => click(60), key => 'new'),
    'version'      => token(last => 'ONE', click => click(60),
                            version => 'v2'),
    'expired'      => token(last => 'ONE', click => click(91 * 86400)),
    'the future'   => token(last => 'ONE', click => click(-3600)),
    'empty'        => '',
    'a word'       => 'hello',
    'dots'         => '.......',
    'no dots'      => 'v1' x 150,
    'junk'         => 'x' x 4000,
);

for (sort keys %bad) {
    my $r = page($bad{$_}, '/');
    is($r->body(), ',,', "$_: not believed");

    $r = page($bad{$_}, '/?ref=three');
    like($r->cookie('_ref') // '', qr/^v1\.k1\.THREE\.\w+\.THREE\./,
         "$_: a new cookie");
}

shown(token(last => 'ONE', click => click(89 * 86400)), 'ONE,ONE',
      'an old one is believed');
shown(token(last => 'TWO', click => click(60), first => 'ONE',
            first_click => click(91 * 86400)), 'TWO,TWO',
      'a first touch that is too old gives way');
shown(token(last => 'ONE', click => click(60), key => 'k0'), 'ONE,ONE',
      'the second key');
shown("\"$one\"", 'ONE,ONE', 'in quotes');

# several of the name

my $junk = 'x' x 4096;

shown([ "_ref=bad; _ref=$one" ], 'ONE,ONE', 'behind a bad one');
shown([ '_ref=bad', "_ref=$one" ], 'ONE,ONE', 'in another header');
shown([ "a=b; _REF=$two; _ref=$one" ], 'ONE,ONE', 'another case');
shown([ "x_ref=$two;_ref=$one" ], 'ONE,ONE', 'the end of another name');
shown([ "_ref =$two; _ref=$one" ], 'ONE,ONE', 'a space before "="');
shown([ ";; ;_ref=$one;" ], 'ONE,ONE', 'semicolons');
shown([ "j=$junk", "_ref=$one" ], 'ONE,ONE', '4 KB of junk before');
shown([ "_ref=$junk; _ref=$one" ], 'ONE,ONE', '4 KB of junk inside');
shown([ join('; ', ('_ref=bad') x 15, "_ref=$one") ], 'ONE,ONE',
      'behind fifteen bad ones');
is(page([ join('; ', ('_ref=bad') x 200, "_ref=$one") ], '/')->body(), ',,',
   'but not behind two hundred');

# consent

my @consent = (port => $t->port('consent'));

for my $no (undef, '', '0', 'no', 'off', 'False', 'denied') {
    my @headers = defined $no ? ('X-Consent' => $no) : ();
    my $name = 'consent ' . ($no // 'not given');

    $before = scalar($t->records(0));
    $r = page($one, '/?ref=two', @consent, headers => [ @headers ]);
    is($r->header('Set-Cookie'), undef, "$name: no cookie");

    my $click = ($t->records($before + 1))[-1];
    is($click->{code}, 'TWO', "$name: the click counts");
    is($click->{visitor}, undef, "$name: no visitor");
    is($click->{ip}, undef, "$name: no address");
    is("@{ $click->{signals} }", 'no-consent', "$name: signal");

    is(page($one, '/', @consent, headers => [ @headers ])->body(), ',,',
       "$name: the cookie of a time when it was given is not read");
}

like(page($one, '/', @consent, headers => [ 'X-Consent' => 1 ])->body(),
     qr/^ONE,ONE,/, 'consent: the cookie is read');
is(page($one, '/', @consent,
        headers => [ 'X-Consent' => 1, 'Sec-GPC' => 1 ])->body(), ',,',
   'Sec-GPC: the cookie is not read');

$before = scalar($t->records(0));
$r = page(undef, '/?ref=two', @consent, headers => [ 'X-Consent' => 1 ]);
ok($r->cookie('_ref'), 'consent: cookie');
my $click = ($t->records($before + 1))[-1];
is($click->{ip}, '127.0.0.1', 'consent: address');
like($click->{visitor}, qr/^[0-9a-f]{8}-[0-9a-f]{4}-4/, 'consent: visitor');
is("@{ $click->{signals} }", 'new-visitor', 'consent: signal');

ok(page(undef, '/?ref=two', port => $t->port('early'),
        headers => [ 'X-Consent' => 1 ])->cookie('_ref'),
   'consent: a variable of ours was read before "set" gave it');

my @gpc = ('X-Consent' => 1, 'Sec-GPC' => 1);
$before = scalar($t->records(0));
$r = page(undef, '/?ref=two', @consent, headers => \@gpc);
is($r->header('Set-Cookie'), undef, 'Sec-GPC: no cookie');
$click = ($t->records($before + 1))[-1];
is("@{ $click->{signals} }", 'gpc no-consent', 'Sec-GPC: signals');
is($click->{ip}, undef, 'Sec-GPC: no address');

ok(page(undef, '/?ref=two', @consent,
        headers => [ 'X-Consent' => 1, 'Sec-GPC' => 0 ])->cookie('_ref'),
   'Sec-GPC: 0');

ok(page(undef, '/?ref=two', port => $t->port('ignore'),
        headers => [ 'Sec-GPC' => 1 ])->cookie('_ref'), 'Sec-GPC ignored');

$r = page(undef, '/?ref=two', headers => [ 'Sec-GPC' => 1 ]);
is($r->header('Set-Cookie'), undef, 'Sec-GPC where consent is not required');

# no cookie

$r = page($one, '/?ref=two', port => $t->port('off'));
is($r->header('Set-Cookie'), undef, 'cookie off');
like($r->body(), qr/^TWO,,[0-9a-f-]{36}$/, 'cookie off: the click has an id');
is(page($one, '/', port => $t->port('off'))->body(), ',,',
   'cookie off: none is read');

# visitors

my @visitor = (port => $t->port('visitor'));

$r = page(undef, '/visitor?ref=one', @visitor);
my $token = $r->cookie('_ref');
my $visitor = $r->body();
like($visitor, qr/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab]/, 'visitor');
(my $plain = $visitor) =~ s/-//g;
like($token, qr/\.$plain\.[\w-]{22}$/, 'in the token');
is(page($token, '/visitor', @visitor)->body(), $visitor, 'it stays');

$r = page($token, '/visitor?ref=two', @visitor);
is($r->body(), $visitor, 'with another code too');
like($r->cookie('_ref'), qr/\.$plain\.[\w-]{22}$/, 'and in the new token');
is(($t->records(1))[-1]{visitor}, $visitor, 'and in the record');
is("@{ ($t->records(1))[-1]{signals} }", '', 'it is not new any more');

like(page($token, '/?ref=three')->cookie('_ref'), qr/\.\.[\w-]{22}$/,
     'where visitors are off the next token has none');
is(page(undef, '/visitor', @visitor)->body(), '', 'none without a click');

# attributes

my %attributes = (
    attributes => qr/^__Secure-x=[^;]+;\ Path=\/shop;\ Max-Age=3600;
                     \ Domain=example\.com;\ Secure;\ SameSite=None$/x,
    variable   => qr/^_ref=[^;]+; Path=\/; Max-Age=\d+; HttpOnly; Same/,
);

for (sort keys %attributes) {
    my $r = page(undef, '/?ref=one', port => $t->port($_));
    like($r->header('Set-Cookie'), $attributes{$_}, "attributes: $_");
}

like(page(undef, '/?ref=one', port => $t->port('variable'),
          headers => [ 'X-Secure' => 'on' ])->header('Set-Cookie'),
     qr/; Secure;/, 'attributes: a variable that says yes');

like($t->curl('-k', 'https://127.0.0.1:' . $t->port('tls') . '/?ref=one')
     ->header('Set-Cookie'), qr/^_ref=.*; Secure;/, 'attributes: https');

# rotation: a new key signs, the old ones verify

$t->write_file('secret', 'new:' . MIME::Base64::encode($keys{new}, '') . "\n"
               . "# kept for 90 days\n\n"
               . 'k1:' . MIME::Base64::encode($keys{k1}, '') . "\n", 0600);
$t->reload();

shown($one, 'ONE,ONE', 'rotation: the old key verifies');
is(page(token(last => 'ONE', click => click(60), key => 'k0'), '/')->body(),
   ',,', 'rotation: a removed key does not');
like(page($one, '/?ref=two')->cookie('_ref'), qr/^v1\.new\.ONE\./,
     'rotation: the new key signs');

$t->done();
