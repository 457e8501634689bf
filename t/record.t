#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# What a record says of a click, and what it does not.

use strict;
use warnings;

use Test::More;

use Referral::Test;


my $t = Referral::Test->new();

$t->redis()->code('ONE', url => 'https://example.com/one', version => 7,
                  code_id => 11, program_id => 22, referrer_id => 33,
                  campaign => 'Spring & Summer');
$t->redis()->code('PLAIN', url => 'https://example.com/plain');

$t->nginx(http => q{
    set_real_ip_from 127.0.0.1;
    real_ip_header X-Real-IP;

    server {
        listen 127.0.0.1:%%PORT:full%%;
        referral on;
        referral_ip full;
        referral_record_referer full;
        referral_record_args a* ref only;
        location / { return 200; }
    }

    server {
        listen 127.0.0.1:%%PORT:less%%;
        server_name Other.Example;
        referral on;
        referral_ip off;
        referral_record_referer off;
        referral_record_args off;
        location / { return 200; }
        location /location { set_real_ip_from 127.0.0.1; return 200; }
    }

    server {
        listen 127.0.0.1:%%PORT:skip%%;
        referral on;
        referral_skip $http_x_skip $skip_this;
        set $skip_this $arg_skip;
        location / { return 200 "$referral_click_id"; }
        location /r/ { referral_redirect; }
    }
}, server => q{
    referral on;
    location / { return 200 "$referral_click_id"; }
    location /r/ { referral_redirect; }
    location /old/ { rewrite ^/old/(.*)$ /new/$1?x=1 last; }
});

my $count = 0;


# the record that a request leaves

sub record {
    my ($path, %arg) = @_;

    $t->get($path, %arg);

    return ($t->records(++$count))[-1];
}


# all there is

my $r = record('/some/page?b=1&ref=one&utm_source=a%20b+c&UTM_medium=x'
               . '&utm_=y&gclid=123&secret=4&utm_empty=', headers => {
    'User-Agent' => 'Mozilla/5.0 (X11)',
    Referer => 'https://Search.Example:8443/find?q=private#x',
    'Accept-Language' => 'de-CH, de;q=0.9, *;q=0.5',
    'X-Real-IP' => '203.0.113.77',
    Cookie => 'session=private',
});

like($r->{id}, qr/^[0-9a-f]{8}-[0-9a-f]{4}-7/, 'id');
is($r->{type}, 'click', 'type');
is("$r->{verdict} $r->{via} $r->{cache}", 'valid parameter miss', 'judgement');
is("@{ $r->{signals} }", '', 'no signals');
is($r->{code}, 'ONE', 'code');
is("$r->{code_id} $r->{program_id} $r->{referrer_id} $r->{version}",
   '11 22 33 7', 'ids');
is($r->{campaign}, 'Spring & Summer', 'campaign');
is($r->{user_agent}, 'Mozilla/5.0 (X11)', 'user agent');
is($r->{referer_host}, 'search.example', 'host of the referer');
is($r->{referer}, undef, 'but not all of it');
is($r->{language}, 'de-CH', 'language');
is($r->{host}, 'localhost', 'host');
is($r->{path}, '/some/page', 'path, without arguments');
is($r->{ip}, '203.0.113.0/24', 'masked address');
is($r->{visitor}, undef, 'no visitor');
is($r->{destination}, undef, 'no destination');
is_deeply($r->{args}, { utm_source => 'a b c', utm_ => 'y', gclid => '123' },
          'arguments of the list, decoded');

my ($high, $low) = $r->{id} =~ /^(\w{8})-(\w{4})/;
cmp_ok(abs(time() - (hex($high) * 65536 + hex($low)) / 1000), '<', 5, 'the id has the time');

# nothing there is

$r = record('/?ref=plain', headers => { 'User-Agent' => undef });

is($r->{$_}, undef, "no $_")
    for qw(user_agent referer_host language country city campaign code_id
           program_id referrer_id asn original);
is_deeply($r->{args} // {}, {}, 'no args');

# verdicts without a rule

$r = record('/?ref=nope');
is("$r->{code} $r->{verdict} " . ($r->{code_id} // '-'), 'NOPE unknown -',
   'unknown');

# addresses

for ([ '203.0.113.77', '203.0.113.0/24' ], [ '2001:db8:1:2:3:4:5:6',
       '2001:db8:1::/48' ], [ '::ffff:203.0.113.77', '203.0.113.0/24' ],
     [ '::1', '::/48' ], [ undef, '127.0.0.0/24' ])
{
    my ($address, $masked) = @$_;
    my @headers = defined $address ? ('X-Real-IP' => $address) : ();

    is(record('/?ref=one', headers => [ @headers ])->{ip}, $masked,
       ($address // 'loopback') . ' masked');

    my $full = $address // '127.0.0.1';
    $full =~ s/^::ffff://;

    is(record('/?ref=one', port => $t->port('full'), headers => [ @headers ])
       ->{ip}, $full, "$full in full");
}

is(record('/?ref=one', headers => { 'X-Forwarded-For' => '192.0.2.1',
                                    Forwarded => 'for=192.0.2.1' })->{ip},
   '127.0.0.0/24', 'no other header is believed');

# more, and less

$r = record('/?ref=one&abc=1&a=2&b=3&only=4&onlyx=5&utm_source=6',
            port => $t->port('full'),
            headers => { Referer => 'http://x.example/y?z' });
is($r->{referer}, 'http://x.example/y?z', 'the whole referer');
is($r->{referer_host}, 'x.example', 'and its host');
is_deeply($r->{args}, { ref => 'one', abc => 1, a => 2, only => 4 },
          'a list of our own');

$r = record('/?ref=one&utm_source=6', port => $t->port('less'),
            host => 'OTHER.example:8080',
            headers => { Referer => 'http://x.example/y?z' });
is($r->{ip}, undef, 'no address');
is($r->{referer_host}, undef, 'no referer');
is_deeply($r->{args} // {}, {}, 'no arguments');
is($r->{host}, 'other.example', 'host, without its port');

$r = record('/?ref=one&' . join('&', map { "utm_$_=$_" } 1 .. 50));
is(scalar(keys %{ $r->{args} }), 16, 'sixteen arguments at most');

$r = record('/?ref=one&utm_source=' . 'x' x 5000);
cmp_ok(length($r->{args}{utm_source}), '<=', 256, 'long ones are cut');

$r = record('/' . 'p' x 3000 . '?ref=one',
            headers => { 'User-Agent' => 'u' x 3000,
                         'Accept-Language' => 'l' x 3000,
                         Referer => 'http://' . 'h' x 3000 . '/' });
cmp_ok(length($r->{path}), '<=', 1024, 'so is a long path');
cmp_ok(length($r->{user_agent}), '<=', 512, 'a long user agent');
cmp_ok(length($r->{language}), '<=', 128, 'a long language');
is($r->{referer_host}, undef, 'a host that can not be one is not recorded');

# referers

my %hosts = (
    'http://a.example'              => 'a.example',
    'https://user:pw@a.example/x@y' => 'a.example',
    'http://[2001:db8::1]:80/'      => '[2001:db8::1]',
    'android-app://com.example/x'   => 'com.example',
    'http://a.example?x'            => 'a.example',
    'HTTPS://Shop-1.Example:8443#x' => 'shop-1.example',
    'http://[U:p@a.example:80'      => 'a.example',
    'http://u@[2001:DB8::1]:80?x'   => '[2001:db8::1]',
    'http://[2001:db8::1'           => '[2001:db8::1',
    'http:///x'                     => undef,
    'about:blank'                   => undef,
    'x'                             => undef,
    ''                              => undef,
);

for (sort keys %hosts) {
    is(record('/?ref=one', headers => { Referer => $_ })->{referer_host},
       $hosts{$_}, "referer '$_'");
}

# languages

for ([ 'en', 'en' ], [ ' fr-FR ;q=1', 'fr-FR' ], [ '*', '*' ], [ '', undef ],
     [ ',', undef ])
{
    my ($header, $language) = @$_;
    is(record('/?ref=one', headers => { 'Accept-Language' => $header })
       ->{language}, $language, "language '$header'");
}

# signals

for ([ [ 'Sec-Purpose' => 'prefetch' ], 'prefetch' ],
     [ [ 'Sec-Purpose' => 'prefetch;prerender' ], 'prefetch' ],
     [ [ Purpose => 'prefetch' ], 'prefetch' ],
     [ [ 'X-Purpose' => 'preview' ], 'preview' ],
     [ [ Purpose => 'preview' ], 'preview' ],
     [ [ 'X-Moz' => 'prefetch' ], 'prefetch' ],
     [ [ DNT => 1 ], 'dnt' ],
     [ [ DNT => 0 ], '' ],
     [ [ 'Sec-GPC' => 1 ], 'gpc no-consent' ],
     [ [ 'Sec-GPC' => '?1' ], '' ],
     [ [ Purpose => 'other' ], '' ],
     [ [ DNT => 1, 'Sec-Purpose' => 'prefetch' ], 'prefetch dnt' ])
{
    my ($headers, $signals) = @$_;
    is("@{ record('/?ref=one', headers => $headers)->{signals} }", $signals,
       "signals of @$headers");
}

is("@{ record('/?ref=one', method => 'HEAD')->{signals} }", 'head', 'HEAD');

# redirects

$r = record('/r/one?utm_source=print&x=1');
is("$r->{via} $r->{path} $r->{destination}",
   'redirect /r/one https://example.com/one', 'a redirect');
is_deeply($r->{args}, { utm_source => 'print' }, 'and its arguments');

is(record('/old/page?ref=one')->{path}, '/old/page',
   'the path before a rewrite');
is(record('/a%20b/%C3%BC?ref=one')->{path}, "/a b/\x{fc}", 'a decoded path');

# skipped

my @skip = (port => $t->port('skip'));

for ([ '/?ref=one', { 'X-Skip' => 1 } ], [ '/?ref=one&skip=x', {} ],
     [ '/?ref=nope', { 'X-Skip' => 'yes' } ])
{
    my ($path, $headers) = @$_;

    my $r = $t->get($path, @skip, headers => $headers);
    is($r->status(), 200, "skipped: $path");
    is($r->body(), '', "skipped, no id: $path");
}

is($t->get('/r/one', @skip, headers => { 'X-Skip' => 1 })
   ->header('Location'), 'https://example.com/one', 'skipped: redirect');

is(scalar($t->records(0)), $count, 'skipped: nothing is recorded');

for ('', '0') {
    ok(record('/?ref=one', @skip, headers => { 'X-Skip' => $_ }),
       "not skipped: '$_'");
}

# the log of nginx has none of it

$t->log_unlike(qr/203\.0\.113\.77|private|ONE/, 'nothing in the error log');

$t->done();
