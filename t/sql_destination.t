#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# What nginx accepts as a destination the schema accepts, and nothing else:
# the list in t/destinations.txt, then URLs made of its pieces.

use strict;
use warnings;

use IPC::Open2;
use POSIX ();
use Test::More;
use Referral::Test;

my $t = Referral::Test->new();
my $judge = $t->build() . '/t/destination_judge';
my $pg = $t->postgres();


# by nginx's own function: true, or not

sub core {
    my (@urls) = @_;

    my $pid = open2(my $out, my $in, $judge);
    my $writer = fork() // die "fork: $!\n";

    if ($writer == 0) {
        print $in map { unpack('H*', $_) . "\n" } @urls;
        close($in);
        POSIX::_exit(0);
    }

    close($in);
    my @answers = map { /^1/ ? 1 : 0 } <$out>;
    waitpid($_, 0) for $writer, $pid;

    return @answers;
}


# by the schema's

sub schema {
    my (@urls) = @_;

    my $list = join(',', map { unpack('H*', $_) } @urls);

    $t->write_file('urls.sql', 'SELECT (referral.destination_problem('
        . "convert_from(decode(h, 'hex'), 'UTF8')) IS NULL)::int"
        . " FROM unnest(string_to_array('$list', ',')) WITH ORDINALITY u (h,"
        . ' n) ORDER BY n;');

    my $r = $t->run('psql', '-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1',
                    '-d', $pg->conninfo(), '-f', $t->dir() . '/urls.sql');
    die "psql: $r->{output}" if $r->{status};

    return split(/\n/, $r->{output});
}


open(my $fh, '<', $t->root() . '/t/destinations.txt') or die;

my (@urls, @expected);

while (my $line = <$fh>) {
    next if $line =~ /^#/;
    chomp($line);
    $line =~ /^([+-])(?: (.*))?$/ or die "t/destinations.txt: $line\n";

    push @expected, $1 eq '+' ? 1 : 0;
    push @urls, ($2 // '') =~ s/\\x([0-9a-f]{2})/chr(hex($1))/ger;
}

for my $len (2047, 2048, 2049) {
    push @urls, substr('https://example.com/' . 'x' x 2048, 0, $len);
    push @expected, $len <= 2048 ? 1 : 0;
}

# of bytes, not of characters

push @urls, 'https://example.com/' . "\xc3\xa9" x 1014,
            'https://example.com/' . "\xc3\xa9" x 1015;
push @expected, 1, 0;

my @core = core(@urls);
my @schema = schema(@urls);

for my $n (0 .. $#urls) {
    my $name = substr($urls[$n], 0, 70) =~ s/([^ -~])/sprintf('\\x%02x',
                                                         ord($1))/ger;

    is("$core[$n]$schema[$n]", "$expected[$n]$expected[$n]",
       ($expected[$n] ? 'accepted: ' : 'refused: ') . $name);
}

# pieces of these, put together and changed: seeded, so that a difference
# found once is found again

srand($ENV{REFERRAL_TEST_SEED} // 25);

my @pieces = ('http://', 'https://', 'HTTP:', '//', 'example.com', 'a', '1',
              '.', ':', ':80', ':65535', '[', ']', '[::1]', '::', 'ff',
              '192.0.2.1', '255', '/', '?', '#', '@', '{', '}', '{code}',
              '{click_id}', '{country}', '%', '%41', '-', '_', '\\', '"',
              "'", '<', ' ', "\n", "\t", "\x7f", "\xc3\xa9", "\xe2\x84\xaa",
              '=', '&', '0', '00', 'g');
my @made;
my $count = $ENV{REFERRAL_TEST_URLS} // 6000;

for my $n (1 .. $count) {
    my $url = '';

    if ($n % 3) {
        $url = $urls[rand(@urls - 5)];

        for (1 .. 1 + rand(2)) {
            my $piece = $pieces[rand(@pieces)];
            my $at = int(rand(length($url) + 1));

            # a character of two bytes is not cut
            next if substr($url, $at, 1) =~ /[\x80-\xff]/;
            next if $at && substr($url, $at - 1, 1) =~ /[\x80-\xff]/;

            my $gone = substr($url, $at) =~ /^[\x00-\x7f]{2}/ ? rand(3) : 0;
            substr($url, $at, $gone, $piece);
        }

    } else {
        $url = rand() < 0.7 ? 'https://' : '';
        $url .= rand() < 0.5
            ? '[' . join('', map { (qw(: : :: 1 ff 0 abcd 12345 . 1.2.3.4
                                       255 %))[rand(12)] } 1 .. rand(12))
              . ']'
            : '';
        $url .= join('', map { $pieces[rand(@pieces)] } 1 .. rand(6));
    }

    push @made, $url;
}

@core = core(@made);
@schema = schema(@made);

my @differ = grep { $core[$_] != $schema[$_] } 0 .. $#made;

is(scalar(@core), scalar(@made), 'all were judged');
is(scalar(@schema), scalar(@made), 'by both');
cmp_ok(scalar(grep { $_ } @core), '>', 200, 'some are accepted');
is_deeply([ map { $made[$_] } @differ ], [], 'and both judge alike');

$t->done();
