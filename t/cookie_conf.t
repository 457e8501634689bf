#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# What a configuration must say before visitors are tracked, and cookies that
# no browser would take.

use strict;
use warnings;

use Test::More;

use Referral::Test;


my $t = Referral::Test->new();

$t->redis();

my $journal = 'referral_journal %%DIR%%/journal size=64m segment=256k;';
my $redis = 'referral_redis %%REDIS%%;';
my $secret = 'referral_secret ' . $t->secret() . ';';
my $consent = 'referral_consent not_required;';
my $zone = 'referral_zone 1m;';
my $all = "$journal $redis $secret $consent $zone";

mkdir($t->dir() . '/journal');


sub accepts {
    my ($http, $server, $name) = @_;

    my $r = $t->nginx_test(defaults => 0, http => $http, server => $server);

    is($r->{status}, 0, "$name: accepted") or diag($r->{output});
    unlike($r->{output}, qr/\[(?:emerg|alert|warn)\]/, "$name: silently");
}


sub refuses {
    my ($http, $server, $error, $name) = @_;

    my $r = $t->nginx_test(defaults => 0, http => $http, server => $server);

    isnt($r->{status}, 0, "$name: refused");
    like($r->{output}, $error, "$name: says why");
    unlike($r->{output}, qr/AAECAwQF|AAAA/, "$name: tells no secret");
}


# what is missing

my $on = 'referral on;';
my $go = 'location /r/ { referral_redirect; }';

accepts('', '', 'not used');
accepts('', 'referral off;', 'off');
accepts('', 'return 200 $referral_code;', 'a variable alone');
accepts($all, $on, 'on');
accepts($all, $go, 'a redirect');
accepts("$journal $redis $zone referral_cookie off;", "$on $go",
        'without a cookie');
accepts("$journal $redis $zone", "$on referral_cookie off;",
        'without a cookie in the only server');
accepts("$journal $redis $secret $zone", "$on referral_consent \$http_x;",
        'consent in the server');

for ([ $on, 'on' ], [ $go, 'a redirect' ]) {
    my ($server, $name) = @$_;

    refuses("$journal $secret $consent", $server,
            qr/"referral_redis" is missing.*redis:/, "$name, no redis");
    refuses("$redis $secret $consent", $server,
            qr/"referral_journal" is missing/, "$name, no journal");
    refuses("$redis $journal $consent", $server,
            qr/"referral_secret" is missing.*"referral_cookie off;"/,
            "$name, no secret");
    refuses("$redis $journal $secret", $server,
            qr/"referral_consent" is missing.*not_required/,
            "$name, no consent");
}

refuses("$redis $journal $secret", "$on",
        qr/the server in \S+\.conf:\d+ uses "referral on"/,
        'the server is named');

refuses("$redis $journal referral_cookie off;", "$on referral_cookie _ref;",
        qr/"referral_secret" is missing/, 'a cookie in the server again');

# secrets

sub key_file {
    my ($text, $mode) = @_;
    return 'referral_secret ' . $t->write_file('key', $text, $mode) . ';';
}

my $key = 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=';
my $rest = "$journal $redis $consent $zone";

accepts($rest . key_file("a:$key\n", 0600), $on, 'one key');
accepts($rest . key_file("a:$key\n# b\n\nc:$key", 0640), $on, 'two keys');
refuses($rest . key_file("a:$key\n", 0644), $on,
        qr/key" has mode 0644.*chmod o-rwx/, 'readable by others');
refuses($rest . key_file("a:$key\n", 0602), $on, qr/chmod o-rwx/,
        'writable by others');
refuses($rest . key_file('', 0600), $on, qr/referral_secret.*key/, 'no key');
refuses($rest . key_file("a:AAAA\n", 0600), $on, qr/line 1/, 'a short key');
refuses($rest . key_file("a:$key\nb;$key\n", 0600), $on, qr/line 2/,
        'a bad line');
refuses($rest . key_file("a:$key\na:$key\n", 0600), $on, qr/line 2/,
        'an id twice');
refuses("$rest referral_secret %%DIR%%/none;", $on,
        qr/none" failed.*openssl rand/, 'no file');
refuses("$rest referral_secret %%DIR%%;", $on, qr/is not a file/,
        'a directory');
refuses("$all $secret", $on, qr/duplicate/, 'a second one');

# consent

refuses("$journal $redis $secret referral_consent yes;", $on,
        qr/invalid "referral_consent" "yes"/, 'consent for everyone');
refuses("$journal $redis $secret referral_consent \$none;", $on,
        qr/unknown "none" variable/, 'an unknown variable');
refuses("$all $consent", $on, qr/duplicate/, 'consent twice');

# cookies

for ('_ref', '_ref domain=example.com', '_ref domain=.example.com path=/a',
     '_ref max_age=1', '_ref max_age=521w',
     '_ref max_age=30d samesite=Strict httponly=off',
     '_ref samesite=none', '_ref secure=on', '_ref secure=$https',
     '_ref visitor=on', '__Secure-a secure=on',
     '__Host-a secure=on path=/', '__Host-a secure=on', 'off')
{
    accepts($all, "$on referral_cookie $_;", "cookie $_");
}

for ([ '"a b"', qr/character/ ], [ '"a;b"', qr/character/ ],
     [ 'a=b', qr/character/ ], [ '""', qr/empty/ ],
     [ '_ref "domain=a b"', qr/"domain"/ ],
     [ '_ref "domain=a;b"', qr/"domain"/ ],
     [ '_ref path=a', qr/"path" does not begin/ ],
     [ '_ref "path=/a;b"', qr/"path" has/ ],
     [ "_ref \"path=/a\tb\"", qr/"path" has/ ],
     [ '_ref max_age=0', qr/time of one second/ ],
     [ '_ref max_age=x', qr/time of one second/ ],
     [ '_ref max_age=18446744073709552s', qr/time of ten years or less/ ],
     [ '_ref max_age=522w', qr/time of ten years or less/ ],
     [ '_ref samesite=no', qr/"lax", "strict" or "none"/ ],
     [ '_ref secure=maybe', qr/"auto", "on", "off" or a variable/ ],
     [ '_ref httponly=1', qr/"on" or "off"/ ],
     [ '_ref visitor=1', qr/"on" or "off"/ ],
     [ '_ref colour=red', qr/"colour=red".*there are "domain"/ ],
     [ '_ref expires', qr/has no "="/ ],
     [ '_ref samesite=none secure=off', qr/does not go with/ ],
     [ '__Secure-a', qr/demands "secure=on"/ ],
     [ '__secure-a', qr/demands "secure=on"/ ],
     [ '__Host-a secure=on domain=x.example', qr/"__Host-"/ ],
     [ '__Host-a secure=on path=/x', qr/"__Host-"/ ],
     [ '__Host-a', qr/"__Host-"/ ],
     [ 'off path=/', qr/takes no parameters/ ],
     [ '_ref; referral_cookie _ref', qr/duplicate/ ])
{
    my ($cookie, $error) = @$_;
    refuses($all, "$on referral_cookie $cookie;", $error, "cookie $cookie");
}

# other directives

for ([ 'referral maybe;', qr/it must be "on" or "off"/ ],
     [ 'referral_param;', qr/invalid number of arguments/ ],
     [ 'referral_param "";', qr/names are not empty/ ],
     [ 'referral_param $x;', qr/have no variables/ ],
     [ 'referral_param a; referral_param b;', qr/duplicate/ ],
     [ 'referral_skip $none;', qr/unknown "none" variable/ ],
     [ 'referral_ip some;', qr/invalid value "some"/ ],
     [ 'referral_record_referer some;', qr/invalid value "some"/ ],
     [ 'referral_gpc some;', qr/invalid value "some"/ ],
     [ 'referral_attribution some;', qr/invalid value "some"/ ],
     [ 'referral_strip some;', qr/it must be "on" or "off"/ ],
     [ 'location / { referral on; }', qr/not allowed here/ ],
     [ 'referral_redirect;', qr/not allowed here/ ])
{
    my ($text, $error) = @$_;
    refuses($all, $text, $error, $text);
}

# a reload that is refused leaves everything as it was

$t->redis()->code('ONE', url => 'https://example.com/one');
$t->nginx(defaults => 0, http => $all, server => "$on $go");

my ($worker) = $t->workers();

is($t->reconfigure(defaults => 0, server => "$on $go",
                   http => "$redis $secret $consent $zone"
                           . 'referral_journal %%DIR%%/nowhere;'), 0,
   'a reload with a journal that is not there is refused');
$t->allow(qr/\[emerg\]/);

is($t->get('/r/one')->status(), 302, 'the old configuration serves');
is(($t->workers())[0], $worker, 'with the old worker');
ok(!-e $t->dir() . '/nowhere', 'and nothing was made');

$t->done();
