#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Which requests have a code, and which code it is.

use strict;
use warnings;

use Test::More;

use Referral::Test;


my $t = Referral::Test->new();

$t->redis()->code('SUMMER25', url => 'https://example.com/summer');
$t->redis()->code('JUAN', url => 'https://example.com/juan');

$t->nginx(server => q{
    referral on;
    referral_param ref via R;

    location / { return 200 "$referral_code,$referral_verdict,$referral_via"; }
    location /r/ { referral_redirect; }
});

my $records = 0;


# what the page shows, and how many clicks were recorded so far

sub shows {
    my ($path, $shown, $recorded, $name, %arg) = @_;

    my $r = $t->get($path, %arg);

    is($r->body, $shown, $name);
    $records += $recorded;
}


my $valid = 'SUMMER25,valid,parameter';

# names and values

shows('/', ',,', 0, 'no arguments');
shows('/?a=b&c', ',,', 0, 'others only');
shows('/?ref=SUMMER25', $valid, 1, 'upper case');
shows('/?ref=summer25', $valid, 1, 'folded');
shows('/?a=1&ref=summer25&b=2', $valid, 1, 'in the middle');
shows('/?via=summer25', $valid, 1, 'second name');
shows('/?via=JUAN&ref=summer25', $valid, 1, 'order of the names counts');
shows('/?ref=&via=summer25', $valid, 1, 'an empty value is passed over');
shows('/?ref=&ref=summer25', $valid, 1, 'also of the same name');
shows('/?ref=summer25&ref=JUAN', $valid, 1, 'the first of a name');
shows('/?ref&via=summer25', $valid, 1, 'a name without a value');
shows('/?REF=summer25', ',,', 0, 'names are case-sensitive');
shows('/?R=summer25', $valid, 1, 'in both directions');
shows('/?xref=summer25&refx=summer25', ',,', 0, 'whole names only');
shows('/?r%65f=summer25', $valid, 1, 'an encoded name');
shows('/?ref=%53ummer%32%35', $valid, 1, 'an encoded value');
shows('/?&&ref=summer25&', $valid, 1, 'empty pieces');
shows('/?ref', ',,', 0, 'no value at all');
shows('/?ref=', ',,', 0, 'an empty value');

# codes

my $bad = ',malformed,parameter';

shows('/?ref=NOPE', 'NOPE,unknown,parameter', 1, 'unknown');
shows('/?ref=a+b', $bad, 1, 'a space');
shows('/?ref=a%00b', $bad, 1, 'a zero');
shows('/?ref=%zz', $bad, 1, 'a bad escape');
shows('/?ref=../../etc', $bad, 1, 'slashes');
shows('/?ref=' . 'a' x 64, 'A' x 64 . ',unknown,parameter', 1, '64 are a code');
shows('/?ref=' . 'a' x 65, $bad, 1, '65 are not');
shows('/?ref=' . '%61' x 64, 'A' x 64 . ',unknown,parameter', 1,
      '64, encoded');
shows('/?ref=' . '%61' x 65, $bad, 1, '65, encoded');
shows('/?ref=' . '%61' x 1000, $bad, 1, '1000, encoded');
shows("/?ref=%f0%9f%8d%93", $bad, 1, 'a fruit');

# navigations

for (qw(document)) {
    shows('/?ref=summer25', $valid, 1, "Sec-Fetch-Dest $_",
          headers => { 'Sec-Fetch-Dest' => $_ });
}

for (qw(image iframe empty script style font worker prefetch DOCUMENT), '') {
    shows('/?ref=summer25', ',,', 0, "Sec-Fetch-Dest '$_'",
          headers => { 'Sec-Fetch-Dest' => $_ });
}

for my $method (qw(POST PUT DELETE OPTIONS PATCH)) {
    shows('/?ref=summer25', ',,', 0, $method, method => $method, body => 'x');
}

is($t->head('/?ref=summer25')->status(), 200, 'HEAD');
$records++;

# the path's code wins

my $r = $t->get('/r/JUAN?ref=summer25');
is($r->header('Location'), 'https://example.com/juan',
   'the code of the path wins');
$records++;

$r = $t->get('/r/NOPE?ref=summer25');
is($r->status(), 404, 'even when it is unknown');
$records++;

# a GET with a body, keep-alive and pipelining

my $c = $t->connect();
$r = $c->ask('/?ref=summer25', body => 'hello');
is($r->body(), $valid, 'GET with a body');
$records++;

$c->write(join('', map {
    "GET /?ref=$_ HTTP/1.1\r\nHost: localhost\r\n\r\n"
} qw(summer25 juan x1 x2 summer25 juan)));

is(join(' ', map { $c->response()->body() } 1 .. 6),
   join(' ', $valid, 'JUAN,valid,parameter', 'X1,unknown,parameter',
             'X2,unknown,parameter', $valid, 'JUAN,valid,parameter'),
   'six pipelined requests');
$records += 6;

# a body on /r/ does not become the next request

$r = $c->ask('/r/JUAN', body => "GET /?ref=x3 HTTP/1.1\r\n\r\n");
is($r->status(), 302, 'GET with a body on /r/');
is($c->ask('/?ref=x4')->body(), 'X4,unknown,parameter', 'it is discarded');
$c->close();
$records += 2;

$r = $t->get('/?ref=summer25', version => '1.0');
is($r->body(), $valid, 'HTTP/1.0');
$records++;

my @records = $t->records($records);
is(scalar(@records), $records, 'each was recorded once');

my ($head) = grep { "@{ $_->{signals} // [] }" =~ /head/ } @records;
is($head->{code}, 'SUMMER25', 'HEAD is recorded, with its signal');

my %verdicts;
$verdicts{$_->{verdict}}++ for @records;
is_deeply([ sort keys %verdicts ], [ qw(malformed unknown valid) ],
          'with their verdicts');

my ($long) = sort { length $b->{code} <=> length $a->{code} }
             grep { $_->{verdict} eq 'malformed' } @records;
is($long->{code}, 'a' x 64, 'a malformed code is kept as sent, cut');

is((grep { $_->{code} eq 'a b' } @records), 1, 'and decoded');

my ($path) = grep { $_->{via} eq 'redirect' } @records;
is($path->{path}, '/r/JUAN', 'with the path');

$t->done();
