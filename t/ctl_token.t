#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# referralctl token and secret: against tokens that are made here, by another
# implementation of the format in the README.

use strict;
use warnings;

use Test::More;
use Digest::SHA qw(hmac_sha256);
use JSON::PP;
use MIME::Base64 qw(encode_base64 encode_base64url decode_base64);
use Referral::Test;

my $t = Referral::Test->new();
my $json = JSON::PP->new()->utf8();

my %key = (k1 => 'first key, 16 b+', k2 => "\x00\xff" x 16);
my $secret = $t->write_file('secret', "# keys\n\n"
    . join('', map { "$_:" . encode_base64($key{$_}, '') . "\n" } qw(k1 k2)),
    0600);

# a version 7 id of so many seconds ago

sub click {
    my ($age, $tail) = @_;
    my $ms = sprintf('%012x', int((time() - $age) * 1000));
    return $ms . '7abc8' . sprintf('%015x', $tail // 1);
}

sub dashed { return $_[0] =~ s/^(.{8})(.{4})(.{4})(.{4})/$1-$2-$3-$4-/r }

sub sign {
    my ($text, $key) = @_;
    return $text . '.' . encode_base64url(substr(hmac_sha256($text, $key), 0,
                                                 16));
}

sub token {
    my (%arg) = @_;
    my $id = $arg{id} // 'k1';
    my $click = $arg{click} // click(60);

    return sign(join('.', $arg{version} // 'v1', $id, $arg{first} // 'FIRST',
                     $arg{first_click} // $click, $arg{last} // 'LAST',
                     $click, $arg{visitor} // ''), $arg{key} // $key{$id});
}

sub verify {
    my ($token, @args) = @_;
    my $r = $t->referralctl('token', 'verify', '--json', '--secret', $secret,
                            @args, '--', $token);
    return ($r->{status}, $json->decode($r->{output}));
}

my $first = click(7200, 5);
my $last = click(60, 6);
my $visitor = '0123456789ab4def8123456789abcdef';
my ($status, $doc) = verify(token(first_click => $first, click => $last,
                                  visitor => $visitor));

is($status, 0, 'a valid token');
is($doc->{result}, 'valid', 'result');
is($doc->{key}, 'k1', 'key');
is($doc->{first}{code}, 'FIRST', 'first code');
is($doc->{first}{click}, dashed($first), 'first click');
is($doc->{last}{code}, 'LAST', 'last code');
is($doc->{last}{click}, dashed($last), 'last click');
is($doc->{visitor}, dashed($visitor), 'visitor');
like($doc->{last}{at}, qr/^20\d\d-\d\d-\d\dT/, 'time');

($status, $doc) = verify(token(id => 'k2'));
is($status, 0, 'any key of the file verifies');
is($doc->{key}, 'k2', 'and is named');
is($doc->{visitor}, undef, 'no visitor');

my $r = $t->referralctl('token', 'verify', '--secret', $secret, token());
is($r->{status}, 0, 'for people');
like($r->{output}, qr/^valid\nkey +k1\nfirst +FIRST .*\nlast +LAST /, 'lines');

my $file = $t->write_file('token', token() . "\n");
$r = $t->run('/bin/sh', '-c', $t->build() . "/referralctl token verify"
             . " --secret $secret - < $file");
is($r->{status}, 0, 'from standard input');

my $good = token();

for ([ 'forged', token(key => 'x' x 16) ],
     [ 'forged', $good =~ s/LAST/LUST/r ],
     [ 'forged', $good =~ s/v1\.k1/v1.k2/r ],
     [ 'unknown', token(id => 'k3', key => $key{k1}) ],
     [ 'malformed', token(version => 'v2') ],
     [ 'malformed', token(last => 'a b') ],
     [ 'malformed', token(click => 'x' x 32) ],
     [ 'malformed', substr($good, 0, 40) ],
     [ 'malformed', "$good=" ],
     [ 'malformed', $good x 10 ],
     [ 'malformed', '' ],
     [ 'malformed', "\e[31m" ],
     [ 'expired', token(click => click(91 * 86400)) ])
{
    my ($result, $token) = @$_;
    my ($status, $doc) = verify($token);
    my $name = substr($token, 0, 24) =~ s/[^ -~]/?/gr;
    is($status, 1, "refused: $name");
    like($doc->{result}, qr/^$result/, "is $result");
    is($doc->{last}, undef, 'and says nothing');
}

($status, $doc) = verify(token(click => click(3700)), '--max-age', '1h');
is($doc->{result}, 'expired', '--max-age');
($status, $doc) = verify(token(click => click(3500)), '--max-age', '1h');
is($doc->{result}, 'valid', '--max-age, younger');
($status, $doc) = verify(token(click => click(3 * 365 * 86400)), '--max-age',
                         0);
is($doc->{result}, 'valid', '--max-age 0: no limit');

# keys

is($t->referralctl('token', 'verify', $good)->{status}, 2, 'no --secret');
$r = $t->referralctl('token', 'verify', '--secret', '/nonexistent', $good);
is($r->{status}, 2, 'no such file');

my $bad = $t->write_file('bad', "k1:" . encode_base64('verysecretindeed', '')
                         . "\nk2:c2hvcnQ=\n");
$r = $t->referralctl('token', 'verify', '--secret', $bad, $good);
is($r->{status}, 2, 'a bad line');
like($r->{output}, qr/line 2/, 'is named');
unlike($r->{output}, qr/c2hvcnQ/, 'and never printed');

$r = $t->referralctl('token', 'verify', '--secret',
                     $t->write_file('empty', "# none\n"), $good);
is($r->{status}, 2, 'a file without keys');

# secret new

my $new = $t->referralctl('secret', 'new', 'k-9_Z');
is($new->{status}, 0, 'secret new');
my ($base64) = $new->{output} =~ /^k-9_Z:([A-Za-z0-9+\/]+=*)\n\z/;
is(length(decode_base64($base64)), 32, '32 bytes');
isnt($t->referralctl('secret', 'new', 'k-9_Z')->{output}, $new->{output},
     'never the same');
like($t->referralctl('secret', 'new')->{output}, qr/^k20\d{6}:/,
     'named by the day');
is($t->referralctl('secret', 'new', 'x' x 17)->{status}, 2, 'a long id');
is($t->referralctl('secret', 'new', 'a:b')->{status}, 2, 'a bad id');

my $fresh = $t->write_file('fresh', $new->{output}, 0600);
$r = $t->referralctl('token', 'verify', '--secret', $fresh,
                     token(id => 'k-9_Z', key => decode_base64($base64)));
is($r->{status}, 0, 'a new key works');

$t->done();
