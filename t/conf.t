#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Every error of the configuration: the message that a person reads, and that
# "nginx -t" leaves nothing behind.

use strict;
use warnings;

use Test::More;

use Referral::Test;


my $t = Referral::Test->new();

$t->redis();
$t->secret();
$t->write_file('empty', '');
$t->write_file('a-file', 'x');

# name, arguments of nginx_test(), what the message has to say.  A string is
# a line of http; it comes with a server that redirects.

my $use = 'location /r/ { referral_redirect; }';

my @errors = (

    # what a server needs

    [ 'no redis', { http => 'referral_journal %%DIR%%/journal;
                             referral_cookie off;', defaults => 0,
                    server => $use },
      qr/uses "referral_redirect" but "referral_redis" is missing/ ],

    [ 'no redis, parameter', { defaults => 0, server => 'referral on;' },
      qr/uses "referral on" but "referral_redis" is missing/ ],

    [ 'no journal', { http => 'referral_redis %%REDIS%%;', defaults => 0,
                      server => 'referral on;' },
      qr/"referral_journal" is missing: .* for example/ ],

    [ 'no secret', { http => 'referral_cookie _ref;
                              referral_consent not_required;',
                     server => 'referral on;' },
      qr/"referral_secret" is missing: .*"referral_cookie off;"/ ],

    [ 'no consent', { http => 'referral_secret %%DIR%%/secret;',
                      server => 'referral on;' },
      qr/"referral_consent" is missing: .*"referral_consent not_required;"/ ],

    [ 'in one of two servers', { server => 'referral on;', http => q{
            referral_secret %%DIR%%/secret;
            server { listen 127.0.0.1:%%PORT:b%%; referral_consent $cookie_a;
                     referral on; } } },
      qr/the server in \S+:\d+ uses "referral on" but "referral_consent"/ ],

    # where directives stand, and twice

    (map { my $line = $_; my ($name) = /^(\w+)/;
           [ "$name in a location", { server => "location / { $line }" },
             qr/"$name" directive is not allowed here/ ] }
     'referral on;', 'referral_param a;', 'referral_skip $arg_a;',
     'referral_redis %%REDIS%%;', 'referral_zone 1m;',
     'referral_miss_limit rate=1r/s;', 'referral_journal /tmp;',
     'referral_geoip /tmp;', 'referral_ip off;', 'referral_record_args a;',
     'referral_record_referer off;', 'referral_cookie off;',
     'referral_secret a;', 'referral_consent not_required;',
     'referral_gpc ignore;', 'referral_attribution first;',
     'referral_strip on;'),

    (map { my $line = $_; my ($name) = /^(\w+)/;
           [ "$name in a server", { server => $line },
             qr/"$name" directive is not allowed here/ ] }
     'referral_redis %%REDIS%%;', 'referral_zone 1m;',
     'referral_miss_limit rate=1r/s;', 'referral_journal /tmp;',
     'referral_geoip /tmp;', 'referral_secret a;', 'referral_redirect;',
     'referral_status;'),

    (map { my $line = $_; my ($name) = /^(\w+)/;
           [ "$name twice", "$line $line",
             qr/"$name" directive is duplicate/ ] }
     'referral on;', 'referral_param a;', 'referral_fallback /;', 'referral_passthrough all;',
     'referral_redis %%REDIS%%;', 'referral_zone 1m;',
     'referral_miss_limit rate=1r/s;', 'referral_journal %%DIR%%/journal;',
     'referral_ip off;', 'referral_record_args a;',
     'referral_record_referer off;', 'referral_cookie off;',
     'referral_secret %%DIR%%/secret;', 'referral_consent not_required;',
     'referral_gpc ignore;', 'referral_attribution first;',
     'referral_strip on;'),

    [ 'referral_redirect twice',
      { server => 'location /r/ { referral_redirect; referral_redirect; }' },
      qr/"referral_redirect" directive is duplicate/ ],

    # words

    (map { my ($line, $word) = @$_; my ($name) = $line =~ /^(\w+)/;
           [ $line, $line, $word ] }
     [ 'referral maybe;', qr/invalid value "maybe" in "referral"/ ],
     [ 'referral_strip 1;', qr/invalid value "1" in "referral_strip"/ ],
     [ 'referral_passthrough some;', qr/invalid value "some"/ ],
     [ 'referral_ip some;', qr/invalid value "some"/ ],
     [ 'referral_record_referer some;', qr/invalid value "some"/ ],
     [ 'referral_gpc some;', qr/invalid value "some"/ ],
     [ 'referral_attribution both;', qr/invalid value "both"/ ],
     [ 'referral_param;', qr/invalid number of arguments/ ],
     [ 'referral_param a "";', qr/invalid name "" in "referral_param"/ ],
     [ 'referral_param $arg_a;',
       qr/invalid name "\$arg_a" .*names are not empty and have no variables/ ],
     [ 'referral_record_args $a;', qr/invalid name "\$a"/ ],
     [ 'referral_skip $no_such_variable;',
       qr/unknown "no_such_variable" variable/ ]),

    # referral_redirect, referral_fallback

    (map { [ "referral_redirect in $_",
             { server => "location $_ { referral_redirect; }" },
             qr/"referral_redirect" needs an argument in location .*prefix/ ] }
     '~ ^/r/', '~* ^/r/', '= /r/', '@r'),

    [ 'referral_redirect with two',
      { server => 'location /r/ { referral_redirect a b; }' },
      qr/invalid number of arguments in "referral_redirect"/ ],

    (map { [ "referral_fallback $_", "referral_fallback '$_';",
             qr/invalid "referral_fallback" .*give an absolute http or https/s ] }
     'example.com', '//example.com/', 'javascript:alert(1)', '/\\\\evil',
     'https://', 'ftp://example.com/', ''),

    # referral_redis

    (map { my ($url, $message) = @$_;
           [ "referral_redis $url", "referral_redis '$url';", $message ] }
     [ 'localhost', qr/the address of Redis must be redis:.*or unix:/ ],
     [ 'rediss://localhost', qr/TLS.* is not supported/ ],
     [ 'unix:relative', qr/must begin with \// ],
     [ 'unix:/' . 'a' x 120, qr/has 121 bytes, at most 107/ ],
     [ 'unix:/a:b', qr/database .* must be a number/ ],
     [ 'redis://localhost:0', qr/port of Redis must be 1 to 65535/ ],
     [ 'redis://localhost:70000', qr/port of Redis must be 1 to 65535/ ],
     [ 'redis://localhost/x', qr/database .* must be a number/ ],
     [ 'redis://', qr/invalid address in "referral_redis": / ],
     [ 'redis://no-such-host.invalid', qr/host not found in "referral_redis"/ ],
     [ 'redis://user@localhost', qr/a user without a password/ ]),

    [ 'a password is not repeated', 'referral_redis redis://a:hunter2@h:x;',
      qr/\A(?!.*hunter2)/s ],
    [ 'redis: time', 'referral_redis %%REDIS%% timeout=soon;',
      qr/invalid time in "timeout=soon"/ ],
    [ 'redis: no time', 'referral_redis %%REDIS%% connect_timeout=0;',
      qr/invalid time in "connect_timeout=0"/ ],
    [ 'redis: parameter', 'referral_redis %%REDIS%% retries=3;',
      qr/invalid parameter "retries=3"/ ],
    [ 'redis: no password file',
      'referral_redis %%REDIS%% password_file=%%DIR%%/none;',
      qr/password_file: open\(\) "\S+none" failed.*No such file/ ],
    [ 'redis: password file unnamed',
      'referral_redis %%REDIS%% password_file=;', qr/names no file/ ],
    [ 'redis: password file empty',
      'referral_redis %%REDIS%% password_file=%%DIR%%/empty;',
      qr/password_file "\S+empty" is empty/ ],
    [ 'redis: password file of lines',
      'referral_redis %%REDIS%% password_file=%%DIR%%/secret;',
      qr/must hold one line of at most \d+ bytes/ ],
    [ 'redis: two passwords',
      'referral_redis redis://:a@localhost password_file=%%DIR%%/a-file;',
      qr/a password both in the address and in/ ],

    # referral_zone, referral_miss_limit

    [ 'zone: size', 'referral_zone big;', qr/invalid zone size "big"/ ],
    [ 'zone: small', 'referral_zone 8k;',
      qr/zone size "8k" is too small, the least is \d+k/ ],
    [ 'zone: time', 'referral_zone 1m valid=long;',
      qr/invalid time in "valid=long"/ ],
    [ 'zone: parameter', 'referral_zone 1m max=3;',
      qr/invalid parameter "max=3"/ ],
    [ 'limit: rate', 'referral_miss_limit rate=lots;',
      qr{invalid rate "rate=lots", use for example "rate=10r/s"} ],
    [ 'limit: none', 'referral_miss_limit rate=0r/s;', qr/invalid rate/ ],
    [ 'limit: burst', 'referral_miss_limit rate=1r/s burst=-1;',
      qr/invalid burst value/ ],
    [ 'limit: no rate', 'referral_miss_limit burst=1;',
      qr/"referral_miss_limit" must have the "rate" parameter/ ],
    [ 'limit: parameter', 'referral_miss_limit rate=1r/s nodelay;',
      qr/invalid parameter "nodelay"/ ],

    # referral_journal

    [ 'journal: missing', 'referral_journal %%DIR%%/none;',
      qr{"\S+/none" does not exist; as root: install -d -m 2770 -o root} ],
    [ 'journal: a file', 'referral_journal %%DIR%%/a-file;',
      qr/"\S+a-file" is not a directory/ ],
    [ 'journal: cannot preallocate', 'referral_journal /proc;',
      qr/referral_journal: / ],
    [ 'journal: unnamed', 'referral_journal "";', qr/needs a directory/ ],
    [ 'journal: long', 'referral_journal /' . 'a/' x 2030 . ';',
      qr{path "/a/a/a} ],
    [ 'journal: size', 'referral_journal %%DIR%%/journal size=x;',
      qr/invalid parameter "size=x"/ ],
    [ 'journal: size 0', 'referral_journal %%DIR%%/journal size=0;',
      qr/invalid parameter "size=0"/ ],
    [ 'journal: small', 'referral_journal %%DIR%%/journal size=3m segment=1m;',
      qr/size=3145728 is too small, 1 worker.*raise size= or lower segment=/ ],
    [ 'journal: small for the workers', { workers => 4, server => $use,
      http => 'referral_journal %%DIR%%/journal size=15m segment=1m;' },
      qr/is too small, 4 worker\(s\) with 2 segments .* need 16777216 / ],
    [ 'journal: segment', 'referral_journal %%DIR%%/journal segment=100000;',
      qr/"segment=100000" must be a multiple of \d+ bytes, from 65536 to/ ],
    [ 'journal: small segment',
      'referral_journal %%DIR%%/journal segment=4k;', qr/from 65536 to/ ],
    [ 'journal: sync', 'referral_journal %%DIR%%/journal sync=0;',
      qr/invalid parameter "sync=0"/ ],
    [ 'journal: parameter', 'referral_journal %%DIR%%/journal fast;',
      qr/invalid parameter "fast"/ ],

    # referral_geoip: a database that is missing is not an error

    [ 'geo: unnamed', 'referral_geoip "";', qr/needs a file/ ],
    [ 'geo: twice', 'referral_geoip %%DIR%%/a; referral_geoip %%DIR%%/a;',
      qr/duplicate database/ ],
    [ 'geo: field', 'referral_geoip %%DIR%%/a planet=x;',
      qr/invalid parameter "planet=x", fields are country, region, city/ ],
    [ 'geo: no =', 'referral_geoip %%DIR%%/a country;',
      qr/invalid parameter "country"/ ],
    [ 'geo: field twice', 'referral_geoip %%DIR%%/a city=a city=b;',
      qr/duplicate field "city"/ ],
    (map { [ "geo: path $_", "referral_geoip %%DIR%%/a city=$_;",
             qr/invalid path of field "city": 1 to \d+ names with dots/ ] }
     '', 'a..b', '.a', 'a.', 'a.' x 20 . 'b'),

    # referral_cookie

    (map { my ($line, $message) = @$_;
           [ "referral_cookie $line", "referral_cookie $line;", $message ] }
     [ 'off path=/', qr/"referral_cookie off" takes no parameters/ ],
     [ '""', qr/the name is empty/ ],
     [ 'a=b', qr/the name has a character that cookie names cannot/ ],
     [ '"a b"', qr/the name has a character/ ],
     [ '_ref secure', qr/it has no "="/ ],
     [ '_ref age=1', qr/invalid parameter "age=1" .*there are "domain"/ ],
     [ '_ref max_age=0', qr/give a time of one second or more/ ],
     [ '_ref max_age=x', qr/give a time of one second or more/ ],
     [ '_ref samesite=no', qr/give "lax", "strict" or "none"/ ],
     [ '_ref httponly=1', qr/give "on" or "off"/ ],
     [ '_ref visitor=1', qr/give "on" or "off"/ ],
     [ '_ref secure=1', qr/give "auto", "on", "off" or a variable/ ],
     [ '_ref domain=a/b', qr/"domain" is no name of a host/ ],
     [ '_ref path=a', qr/"path" does not begin with "\/"/ ],
     [ '_ref "path=/a;b"', qr/"path" has a control character or ";"/ ],
     [ '_ref samesite=none secure=off', qr/"samesite=none" does not go with/ ],
     [ '__Secure-a secure=off', qr/"__Secure-" demands "secure=on"/ ],
     [ '__Host-a secure=on path=/a', qr/"__Host-" demands/ ],
     [ '__Host-a secure=on domain=a.b', qr/"__Host-" demands/ ]),

    [ 'referral_cookie _ref secure=$none_such', { cookie => 1,
      http => 'referral_cookie _ref secure=$none_such;', server => $use },
      qr/unknown "none_such" variable/ ],

    # referral_secret, referral_consent

    [ 'secret: missing', 'referral_secret %%DIR%%/none;',
      qr/"referral_secret": open\(\) "\S+none" failed; make one with .*openssl/ ],
    [ 'secret: a directory', 'referral_secret %%DIR%%;',
      qr/is not a file of lines "id:base64"/ ],
    [ 'consent', 'referral_consent maybe;',
      qr/invalid "referral_consent" "maybe": give a variable .*not_required/ ],
    [ 'consent: unknown', 'referral_consent $none_such;',
      qr/unknown "none_such" variable/ ],

    [ 'status with an argument',
      { server => 'location = /s { referral_status a; }' },
      qr/invalid number of arguments in "referral_status"/ ],
);

# files of keys

my $key = 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=';

for ([ 'nothing', "# empty\n\n", 0600, qr/no key found/ ],
     [ 'no colon', "$key\n", 0600, qr/line 1: no ":"/ ],
     [ 'a bad id', "# k\na b:$key\n", 0600, qr/line 2: the key id must be/ ],
     [ 'an id twice', "a:$key\na:$key\n", 0600, qr/line 2: .*same id/ ],
     [ 'no base64', "a:!!!!\n", 0600, qr/line 1: .*not valid base64/ ],
     [ 'a short key', "a:AAEC\n", 0600, qr/line 1: the secret has 3 bytes/ ],
     [ 'for everyone', "a:$key\n", 0604,
       qr/has mode 0604 and is open to every user.*chmod o-rwx/ ])
{
    my ($name, $text, $mode, $message) = @$_;

    (my $file = "secret of $name") =~ tr/ /-/;
    $t->write_file($file, $text, $mode);

    push @errors, [ "secret: $name", "referral_secret %%DIR%%/$file;",
                    $message ];
}

# other users, as root only

if ($> == 0) {
    mkdir($t->dir() . '/closed', 0700);

    push @errors, [ 'journal: not the user\'s', { user => 'www-data',
        http => 'referral_journal %%DIR%%/closed;', server => $use },
        qr{cannot be written by the worker's user; as root: install .*-o www-data} ];
}


sub arguments {
    my ($case) = @_;
    return ref($case) ? %$case : (http => $case, server => $use);
}


# first: what the cases have in common is no error, or none could be seen

my $good = $t->nginx_test(server => $use);

is($good->{status}, 0, 'a plain configuration passes') or diag($good->{output});
unlike($good->{output}, qr/\[warn\]/, 'without a warning');

for (@errors) {
    my ($name, $case, $message) = @$_;

    my $r = $t->nginx_test(arguments($case));

    ok($r->{status} != 0 && $r->{output} =~ $message, $name)
        or diag("status $r->{status}, ", $r->{output});

    if ($r->{output} =~ /hunter2|\Q$key\E/ || $r->{log} =~ /hunter2/) {
        fail("$name: shows a secret");
    }
}

# what passes, where an error would be easy to make

for ([ 'no zone is needed', { http => 'referral_redis %%REDIS%%;
           referral_journal %%DIR%%/journal; referral_cookie off;',
           defaults => 0, server => $use } ],
     [ 'directives without use', { http => 'referral_zone 1m;',
           defaults => 0 } ],
     [ 'a missing geo database', 'referral_geoip %%DIR%%/none.mmdb;' ],
     [ 'everything off', 'referral off; referral_strip off;' ],
     [ 'a fallback that is a path', 'referral_fallback /gone;' ],
     [ 'a fallback with a variable', 'referral_fallback https://$host/;' ],
     [ 'no fallback', 'referral_fallback off;' ],
     [ 'no arguments are recorded', 'referral_record_args off;' ],
     [ 'sync off', 'referral_journal %%DIR%%/journal sync=off;' ],
     [ 'a slash behind', 'referral_journal %%DIR%%/journal/;' ],
     [ 'a code in a regex location',
       { server => 'location ~ ^/(\w+)$ { referral_redirect $1; }' } ],
     [ '__Host-', { cookie => 1, http => 'referral_cookie __Host-ref secure=on;',
                    server => $use } ])
{
    my ($name, $case) = @$_;

    my $r = $t->nginx_test(arguments($case));

    is($r->{status}, 0, "passes: $name") or diag($r->{output});
}

is_deeply([ glob($t->dir() . '/journal/{*,.??*}') ], [],
          'nothing is left in the journal');
is_deeply([ glob($t->dir() . '/closed/{*,.??*}') ], [], 'nor elsewhere');

# a reload with an error leaves the old configuration at work

$t->code('SUMMER25', url => 'https://example.com/summer');
$t->nginx(server => $use);

my ($before) = $t->workers();

$t->allow(qr/\[emerg\].*none" does not exist/);

is($t->reconfigure(server => $use, http => 'referral_journal %%DIR%%/none;'),
   0, 'a reload with a missing journal is refused');
is($t->get('/r/SUMMER25')->status(), 302, 'the old configuration serves');
is_deeply([ $t->workers() ], [ $before ], 'with the old worker');

$t->done();
