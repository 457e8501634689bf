package codes;

# Copyright (C) The nginx referral module authors
#
# 10 to 1,000,000 codes, all equally likely and by Zipf's law, in a zone that
# holds them; a million in one that does not, so that most are asked of Redis.

use strict;
use warnings;

use IO::Socket::INET;
use JSON::PP ();
use Time::HiRes qw(time);


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

    my $end = time() + 300;

    # one after the other: from where the slice before ended

    while ((my $has = zone_codes($status)) < $n) {
        die "the zone of $name does not fill\n" if time() > $end;
        $b->slice({ name => $name, nginx => $name, path => '/r/',
                    codes => $n, pick => 'next', failing => 1,
                    first => $has,
                    seconds => $n > 100_000 ? 10 : $b->{seconds} });
    }
}


sub zone_codes {
    my ($port) = @_;

    my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                     PeerPort => $port) or return 0;

    print $sock "GET / HTTP/1.0\r\n\r\n";
    local $/;
    my ($body) = <$sock> =~ /\r\n\r\n(.*)/s;

    return JSON::PP::decode_json($body)->{zone_codes};
}


1;
