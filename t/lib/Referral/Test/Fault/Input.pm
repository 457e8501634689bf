package Referral::Test::Fault::Input;

# Copyright (C) The nginx referral module authors
#
# What clients send: bytes that text formats and COPY could trip over.

use strict;
use warnings;

use Time::HiRes qw(sleep time);


my $signature = "PGCOPY\n\377\r\n\0";

my @texts = (
    '', '\N', '\.', "a\tb", "\t\t", "\xff\xfe", "\xc3", "\xed\xa0\x80",
    "\xf4\x90\x80\x80", "\xf0\x9f\x98\x80", 'PGCOPY\n\377\r\n\0',
    "PGCOPY\xff", '"\\"', "'; DROP TABLE interaction; --", '{}', '[', '\\',
    "\x01\x02\x1f", "\x7f", '%00', ',,,,', 'x' x 300, "\xe2\x80\xae",
);


sub any { return $_[int(rand(@_))] }


sub escaped {
    my ($bytes) = @_;
    return join('', map { sprintf('%%%02X', ord) } split(//, $bytes));
}


sub args {
    return join('&', map {
        my $value = any(@texts, "\0", "a\0b", "\n", "\r\n", $signature);
        any('utm_source', 'utm_term', 'gclid', 'utm_%00', 'utm_a%FF', 'x')
            . '=' . escaped($value);
    } 1 .. 1 + int(rand(3)));
}


# no line ends here: what stands in headers is one line

sub headers {
    my @headers;

    push @headers, 'User-Agent' => any(@texts) if rand() < 0.8;
    push @headers, 'Referer' => 'https://' . any(@texts) . '/' . any(@texts)
        if rand() < 0.5;
    push @headers, 'Accept-Language' => any(@texts) if rand() < 0.5;
    push @headers, 'Sec-GPC' => '1' if rand() < 0.1;
    push @headers, 'Cookie' => '_ref=' . any(@texts) if rand() < 0.3;

    return @headers;
}


sub odd {
    my ($s) = @_;

    $s->load();
    sleep(4);

    return $s->settle();
}


sub large_headers {
    return ('User-Agent' => any("\xff", 'x', "\xf0\x9f\x98\x80", '\N')
                            x int(rand(16_000)),
            'Referer' => 'https://example.com/' . 'y' x 65_000,
            'Accept-Language' => 'z' x int(rand(65_000)));
}


sub large {
    my ($s) = @_;

    $s->load(rate => 120);
    sleep(3);

    return $s->settle();
}


# NUL is refused by nginx itself; nothing else may come of it

sub nul {
    my ($s) = @_;

    $s->load(rate => 200);
    sleep(2);

    my $v = $s->settle();
    my $n = grep { $_->{status} == 400 } values %{ $s->oracle()->{requests} };

    push @{ $v->{wrong} }, 'no request was refused with 400' unless $n;

    return $v;
}


# Noise beyond its budget is counted only; clicks keep their ids.

sub flood {
    my ($s) = @_;

    $s->load(rate => 2400, clients => 3);
    sleep(6);

    my $v = $s->settle();
    my @real = grep { $_->{code} =~ /^CODE/ && $_->{status} }
               values %{ $s->oracle()->{requests} };
    my @lost = grep { $_->{id} eq '' } @real;

    push @{ $v->{wrong} }, @lost . ' of ' . @real . ' clicks with a good code'
                           . ' have no id' if @lost;
    push @{ $v->{wrong} }, 'no noise was over its budget'
        unless $v->{dropped};

    return $v;
}


sub table {
    return (
        [ 'input-odd', 'NUL, invalid UTF-8, \N, tabs, COPY\'s signature',
          \&odd, { headers => \&headers, args => \&args } ],
        [ 'input-large', 'headers of 64 KB', \&large,
          { headers => \&large_headers } ],
        [ 'input-nul', 'NUL in headers', \&nul, { headers => sub {
              return rand() < 0.3 ? ('User-Agent' => "a\0b") : ();
          } } ],
        [ 'input-flood', 'a flood of unknown codes', \&flood,
          { noise => 0.9, unknown => 1_000_000, workers => 1 } ],
    );
}


1;
