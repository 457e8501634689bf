#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# make faults-random DURATION=600 SEED=1: random pairs of faults, seconds long
# each; the seed chooses the same pairs again.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(time);

use Referral::Test::Fault::Random;


# a new stand now and then; before, clicks of earlier pairs are judged again
use constant PAIRS => 6;


my $duration = $ENV{DURATION} || 600;
my $seed = $ENV{SEED} || 1 + int(rand(2 ** 30));
my $state = $seed % 2147483646 + 1;
my $end = time() + $duration;
my %total = map { $_ => 0 } qw(requests accepted lost doubled pairs);
my ($s, $n, $red) = (undef, 0, 0);

$| = 1;
print "# faults-random: SEED=$seed DURATION=$duration\n";

# Referral::Test::Fault::Random::pair() draws five numbers a pair

sub finish {
    return unless $s;

    my @problems = grep { !/exited on signal 9/ } $s->close();

    undef $s;

    return unless @problems;

    $red++;
    fail('logs and processes');
    diag(join("\n", @problems));
}

while (time() < $end && $red < 5) {
    my @pair = Referral::Test::Fault::Random::pair(\$state);
    my $name = sprintf('%d: %s, %s', ++$n, @pair[0, 1]);
    my $v;

    $s //= Referral::Test::Fault::Random::stand();

    my %before = %{ $s->{last} // {} };

    eval { $v = Referral::Test::Fault::Random::round($s, @pair); 1; }
        or $v = { wrong => [ "died: $@" ] };

    my @wrong = @{ $v->{wrong} };

    ok(!@wrong, sprintf('%-60s %6d accepted, %d lost, %d doubled, drained in'
                        . ' %.1f s', $name,
                        ($v->{accepted} // 0) - ($before{accepted} // 0),
                        $v->{lost} // 0, $v->{doubled} // 0,
                        $v->{drained} // 0))
        or diag(join("\n", "SEED=$seed, pair $n", @wrong));

    $total{$_} += ($v->{$_} // 0) - ($before{$_} // 0)
        for qw(requests accepted lost doubled);
    $total{pairs}++;
    $s->{last} = $v;

    if (@wrong) {
        $red++;
        diag(join("\n", map { /level=(?:warn|error)/ ? $_ : () }
                  (split(/\n/, $s->worker()->output()))[-40 .. -1]))
            if length($s->worker()->output());
        finish();

    } elsif ($n % PAIRS == 0) {
        finish();
    }
}

finish();
Referral::Test::Stand::end();

my $text = sprintf('SEED=%d: %d pairs of faults, %d requests, %d accepted,'
                   . ' %d lost, %d doubled', $seed,
                   @total{qw(pairs requests accepted lost doubled)});

ok(!$red, $text);
print "# $text\n";
done_testing();
