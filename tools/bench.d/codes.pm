package codes;

# Copyright (C) The nginx referral module authors
#
# 10 to 1,000,000 codes, all equally likely and by Zipf's law, in a zone that
# holds them; a million in one that does not, so that most are asked of Redis.

use strict;
use warnings;


sub run {
    my ($b) = @_;

    my $million = int(1_000_000 * $b->{scale}) || 1;
    my @contenders;

    for ([ '10' => 10 ], [ '1000' => 1000 ], [ '100k' => $million / 10 ],
         [ '1m' => $million ])
    {
        my ($name, $n) = @$_;
        $n = int($n) || 1;
        $b->note("codes: filling $n");
        $b->codes($n);
        instance($b, "codes-$name", $n,
                 int($n / 2500) < 16 ? '16m' : int($n / 2500) . 'm');

        push @contenders, map {
            { name => "codes_$name" . ($_ eq 'zipf' ? '_zipf' : ''),
              nginx => "codes-$name", path => '/r/', codes => $n,
              pick => $_ }
        } qw(uniform zipf);
    }

    instance($b, 'codes-small', 0, '8m');
    push @contenders, map {
        { name => "codes_1m_small_zone_$_", nginx => 'codes-small',
          path => '/r/', codes => $million, pick => $_, failing => 1 }
    } qw(uniform zipf);

    $b->note('codes: 10 to 1,000,000');
    $b->measure(@contenders);
    $b->set_ratio('codes_1m', 'codes_1m', 'codes_10');
    $b->set_ratio('codes_1m_zipf', 'codes_1m_zipf', 'codes_10_zipf');

    $b->end_nginx("codes-$_") for qw(10 1000 100k 1m small);
}


# an instance whose zone has seen every code

sub instance {
    my ($b, $name, $n, $zone) = @_;

    my $status = $b->port();

    mkdir($b->dir() . "/$name");
    mkdir($b->dir() . "/$name/journal");
    $b->nginx($name, conf => 'redirect', set => { STATUS => $status,
        ZONE => $zone });

    $b->fill($name, $status, $n);
}


1;
