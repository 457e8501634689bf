package Referral::Test::Geo;

# Copyright (C) The nginx referral module authors
#
# The part of Referral::Test that makes geo databases.

use strict;
use warnings;


sub mmdb {
    my ($self, $name, $networks, %arg) = @_;

    {
        # newer ones say that they are deprecated; there is no other in Debian
        local $SIG{__WARN__} = sub { };
        require MaxMind::DB::Writer::Tree;
    }

    my %types = (
        iso_code => 'utf8_string', geoname_id => 'uint32',
        latitude => 'double', longitude => 'double',
        autonomous_system_number => 'uint32', names => 'map',
        subdivisions => [ 'array', 'map' ],
        country => 'map', city => 'map', location => 'map', traits => 'map',
        %{ $arg{types} // {} },
    );

    my $tree = MaxMind::DB::Writer::Tree->new(
        ip_version => $arg{ip_version} // 6,
        record_size => $arg{record_size} // 24,
        database_type => $arg{type} // 'GeoLite2-City',
        languages => [ 'en' ],
        description => { en => 'made for a test' },
        alias_ipv6_to_ipv4 => $arg{alias} // 0,
        remove_reserved_networks => 0,
        map_key_type_callback => sub { $types{$_[0]} // 'utf8_string' },
    );

    # a network inserted later takes the place of those within it

    my %bits = map { $_ => m{/(\d+)$} ? $1 : 128 } keys %$networks;

    for my $network (sort { $bits{$a} <=> $bits{$b} } keys %$networks) {
        $tree->insert_network($network, $networks->{$network});
    }

    my $path = $self->path($name);

    open(my $fh, '>:raw', "$path.tmp") or die "$path: $!\n";
    $tree->write_tree($fh);
    close($fh);

    # a file appears whole, as geoipupdate makes it
    rename("$path.tmp", $path) or die "$path: $!\n";

    return $path;
}


1;
