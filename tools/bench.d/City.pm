package City;

# Copyright (C) The nginx referral module authors
#
# Geo databases of real size, made once and kept in build/bench: a city
# database of several hundred thousand networks in MaxMind's layout, one of
# ASNs, and a list of client addresses, each of another network.

use strict;
use warnings;

use File::Path qw(make_path);

use constant CITIES => 20_000;
use constant CLIENTS => 10_000;


my %types = (
    city => 'map', country => 'map', continent => 'map', location => 'map',
    registered_country => 'map', postal => 'map', names => 'map',
    subdivisions => [ 'array', 'map' ],
    geoname_id => 'uint32', accuracy_radius => 'uint16',
    latitude => 'double', longitude => 'double',
    autonomous_system_number => 'uint32',
);

my @syllables = qw(ba ber bra car da del fur gen gra hol in kel kra lis lon ma
                   mon mu nan or par po ra ros san ster ta ton ul ver vi wa);


sub make {
    my ($dir, $networks, $say) = @_;

    return if -e "$dir/addresses";

    make_path($dir);
    $say->("making a city database of $networks networks, once");

    {
        local $SIG{__WARN__} = sub { };
        require MaxMind::DB::Writer::Tree;
    }

    srand(7);

    my $n = $networks < 10 * CITIES ? $networks / 10 : CITIES;
    my @cities = map { city($_) } 1 .. $n;
    my $city = tree('GeoLite2-City');
    my $asn = tree('GeoLite2-ASN');
    my %clients;

    # 1.0.0.0 to 126.255.255.255, cut into blocks of /20 to /26

    my $at = 0x01000000;
    my $step = (0x7f000000 - $at) / $networks;

    for my $i (0 .. $networks - 1) {
        my $bits = 20 + int(rand(7));
        my $network = int($at + $i * $step) & ~((1 << (32 - $bits)) - 1);

        $city->insert_network(dotted($network) . "/$bits",
                              $cities[rand(@cities)]);

        $clients{dotted($network + int(rand(1 << (32 - $bits))))} = 1
            if $i % int($networks / CLIENTS || 1) == 0;
    }

    for my $i (0 .. 3 * $n - 1) {
        my $network = int($at + $i * (0x7f000000 - $at) / (3 * $n)) & ~0xffff;

        $asn->insert_network(dotted($network) . '/17', {
            autonomous_system_number => 1000 + $i,
            autonomous_system_organization => name() . ' Telecom' });
    }

    $city->insert_network('2001:db8::/32', $cities[0]);

    write_tree($city, "$dir/city.mmdb");
    write_tree($asn, "$dir/asn.mmdb");

    my @clients = sort keys %clients;

    # in an order that has nothing to do with the networks'

    for my $i (reverse 1 .. $#clients) {
        my $j = int(rand($i + 1));
        @clients[$i, $j] = @clients[$j, $i];
    }

    open(my $fh, '>', "$dir/addresses.new") or die "$dir/addresses: $!\n";
    print $fh "$_\n" for @clients[0 .. (CLIENTS < @clients ? CLIENTS
                                                           : @clients) - 1];
    close($fh) or die "$dir/addresses: $!\n";
    rename("$dir/addresses.new", "$dir/addresses")
        or die "$dir/addresses: $!\n";
}


sub tree {
    my ($type) = @_;

    return MaxMind::DB::Writer::Tree->new(
        ip_version => 6, record_size => 28, database_type => $type,
        languages => [ 'en' ], description => { en => 'made for a benchmark' },
        alias_ipv6_to_ipv4 => 0, remove_reserved_networks => 0,
        map_key_type_callback => sub { $types{$_[0]} // 'utf8_string' });
}


sub write_tree {
    my ($tree, $path) = @_;

    open(my $fh, '>:raw', "$path.tmp") or die "$path: $!\n";
    $tree->write_tree($fh);
    close($fh) or die "$path: $!\n";
    rename("$path.tmp", $path) or die "$path: $!\n";
}


sub dotted { return join('.', unpack('C4', pack('N', $_[0]))) }


sub name {
    return ucfirst(join('', map { $syllables[rand(@syllables)] }
                            1 .. 2 + int(rand(3))));
}


sub city {
    my ($id) = @_;

    my $iso = join('', map { chr(65 + int(rand(26))) } 1 .. 2);
    my $country = { geoname_id => 100_000 + ord($iso), iso_code => $iso,
                    names => { en => name() } };

    return {
        city => { geoname_id => $id, names => { en => name() } },
        continent => { code => 'EU', geoname_id => 6_255_148,
                       names => { en => 'Europe' } },
        country => $country, registered_country => $country,
        location => { accuracy_radius => 20, latitude => rand(180) - 90,
                      longitude => rand(360) - 180,
                      time_zone => 'Europe/' . name() },
        postal => { code => 1000 + int(rand(9000)) },
        subdivisions => [ { geoname_id => 200_000 + $id,
                            iso_code => 'R' . ($id % 50),
                            names => { en => name() } } ],
    };
}


1;
