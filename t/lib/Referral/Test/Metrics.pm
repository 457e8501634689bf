package Referral::Test::Metrics;

# Copyright (C) The nginx referral module authors

=head1 NAME

Referral::Test::Metrics - what is in a text for Prometheus

=head1 SYNOPSIS

    my %value = Referral::Test::Metrics::samples($text);
    my @names = Referral::Test::Metrics::counters($text);
    my @wrong = Referral::Test::Metrics::histograms($text);

=head1 DESCRIPTION

=over

=item samples($text)

name with labels, and value.

=item counters($text)

the samples that only grow: those of counters, and the count of each
histogram.

=item families($text, $type)

names of all counters, gauges or histograms.

=item histograms($text)

a sentence for each histogram whose buckets are not cumulative, or whose last
one is not its count; dies when there is no histogram at all.

=back

=cut

use strict;
use warnings;


sub samples {
    my ($text) = @_;

    return map { /^([a-z_]+(?:\{[^}]*\})?) (\S+)\z/ ? ($1 => $2) : () }
           split(/\n/, $text);
}


sub families {
    my ($text, $type) = @_;

    return $text =~ /^# TYPE (\w+) $type$/mg;
}


sub counters {
    my ($text) = @_;

    my %is = map { $_ => 1 } families($text, 'counter'),
             map { "${_}_count" } families($text, 'histogram');
    my %value = samples($text);

    return grep { $is{ s/\{.*//r } } sort keys %value;
}


sub histograms {
    my ($text) = @_;

    my @wrong;
    my @families = families($text, 'histogram') or die "no histogram\n";
    my %value = samples($text);

    for my $family (@families) {
        my ($bound, $n) = (-1, 0);

        while ($text =~ /^\Q$family\E_bucket\{le="([^"]+)"\} (\d+)$/mg) {
            my ($le, $count) = ($1 eq '+Inf' ? 'inf' : $1, $2);

            push @wrong, "$family: $le comes after $bound" if $le <= $bound;
            push @wrong, "$family: $count up to $le, $n below" if $count < $n;

            ($bound, $n) = ($le, $count);
        }

        push @wrong, "$family: the last bucket is $bound" if $bound ne 'inf';
        push @wrong, "$family: $n in buckets, count "
                     . ($value{"${family}_count"} // 'missing')
            if $n != ($value{"${family}_count"} // -1);
        push @wrong, "$family: no sum"
            if ($value{"${family}_sum"} // '') !~ /^[\d.]+\z/;
    }

    return @wrong;
}


1;
