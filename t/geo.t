#!/usr/bin/perl

# Copyright (C) The nginx referral module authors

# Geo databases: layouts, families, and what becomes of their files.

use strict;
use warnings;

use File::Copy qw(copy);
use Test::More;

use Referral::Test;

my $t = Referral::Test->new();

$t->redis()->code('GEO', url => 'https://example.com/geo');


sub city {
    my ($country, $city, %more) = @_;

    return {
        country => { iso_code => $country },
        city => { names => { en => $city } },
        location => { latitude => 38.7167, longitude => -9.1333,
                      time_zone => 'Europe/Lisbon' },
        subdivisions => [ { iso_code => '11' }, { iso_code => 'zz' } ],
        %more,
    };
}


my %networks = (
    '192.0.2.0/25' => city('PT', 'Lisboa'),
    '192.0.2.128/26' => city('ES', 'Madrid'),
    '198.51.100.7/32' => city('FR', 'Paris'),
    '198.51.100.8/32' => city('DE', "K\x{f6}ln"),
    '203.0.113.0/24' => { registered_country => { iso_code => 'NL' } },
    '2001:db8::/32' => city('JP', "\x{6771}\x{4eac}"),
    '2001:db8:1:2::/64' => city('KR', "\x{c11c}" x 40),
    '10.0.0.0/8' => city('usa', ''),
);

my %types = (registered_country => 'map');

$t->mmdb('city.mmdb', \%networks, types => \%types);

$t->mmdb('asn.mmdb', {
    '192.0.2.0/24' => { autonomous_system_number => 64496 },
    '198.51.100.0/24' => { autonomous_system_number => 4200000000 },
    '2001:db8::/32' => { autonomous_system_number => 64497 },
}, type => 'GeoLite2-ASN');

# DB-IP's layout; its country must not win over the nested one

$t->mmdb('flat.mmdb', {
    '172.16.0.0/16' => { country_code => 'se', state1 => 'Skane',
                         town => 'Lund', lat => '55.70', lon => '13.19',
                         as => 'AS64511' },
    '192.0.2.0/24' => { country_code => 'XX', state1 => 'Nowhere',
                        town => 'Nowhere', lat => '1', lon => '1e999',
                        as => 'ASxyz' },
}, ip_version => 4, type => 'DBIP-City');

my $server = q{
    referral on;
    location / { return 200 "$referral_country|$referral_city|$referral_asn"; }
    location /r/ { referral_redirect; }
};

my $realip = q{
    set_real_ip_from 127.0.0.1;
    real_ip_header X-Real-IP;
};

my %conf = (
    http => $realip . q{
        referral_geoip %%DIR%%/city.mmdb latitude=location.latitude
                       longitude=location.longitude;
        referral_geoip %%DIR%%/asn.mmdb;
        referral_geoip %%DIR%%/flat.mmdb country=country_code region=state1
                       city=town asn=as latitude=lat longitude=lon;
    },
    server => $server,
    status => 1, $> == 0 ? (user => 'www-data') : (),
);

$t->nginx(%conf);


sub place {
    my ($ip) = @_;
    return $t->get('/?ref=GEO', headers => { 'X-Real-IP' => $ip })->body();
}


sub counter {
    my ($result) = @_;

    return $t->status() =~
        /^referral_geo_lookups_total\{result="$result"\} (\d+)$/m
        ? $1 : undef;
}


is(place('192.0.2.1'), 'PT|Lisboa|64496', 'nested layout');
is(place('192.0.2.127'), 'PT|Lisboa|64496', 'the same network');
is(place('192.0.2.128'), 'ES|Madrid|64496', 'its neighbour in the same /24');
is(place('192.0.2.191'), 'ES|Madrid|64496', 'the neighbour\'s end');
is(place('192.0.2.192'), 'XX|Nowhere|64496', 'only a later database knows it');
is(place('192.0.2.1'), 'PT|Lisboa|64496', 'the first network again');
is(place('198.51.100.7'), 'FR|Paris|4200000000', 'a network of one address');
is(place('198.51.100.8'), "DE|K\xc3\xb6ln|4200000000", 'another, UTF-8');
is(place('198.51.100.9'), '||4200000000', 'no city, but an ASN');
is(place('203.0.113.9'), 'NL||', 'the registered country when there is none');
is(place('2001:db8::1'), "JP|\xe6\x9d\xb1\xe4\xba\xac|64497", 'IPv6');
is(place('2001:db8:1:2:3::4'), 'KR|' . "\xec\x84\x9c" x 21 . '|64497',
   'a long name is cut at a character');
is(place('2001:db8:1:3::4'), "JP|\xe6\x9d\xb1\xe4\xba\xac|64497",
   'another /64 of the same /48');
is(place('::ffff:192.0.2.1'), 'PT|Lisboa|64496', 'IPv4 mapped to IPv6');
is(place('172.16.9.9'), 'SE|Lund|64511', 'flat layout, IPv4 only');
is(place('10.1.2.3'), '||', 'a country of three letters is none');
is(place('233.252.0.1'), '||', 'an address that no database knows');
is(place('2001:db9::1'), '||', 'IPv6 that no database knows');

my ($found, $missing) = (counter('found'), counter('missing'));

$t->get('/r/GEO', headers => { 'X-Real-IP' => '192.0.2.1' });
$t->get('/r/GEO', headers => { 'X-Real-IP' => '233.252.0.1' });

is(counter('found') - $found, 1, 'found is counted');
is(counter('missing') - $missing, 1, 'not found is counted');
is(counter('error'), 0, 'no errors');

my %seen;

push @{ $seen{ $_->{asn} // '' } }, $_ for $t->records(20);

my ($record) = grep { ($_->{city} // '') eq 'Lisboa' } @{ $seen{64496} };

is($record->{country}, 'PT', 'recorded: country');
is($record->{region}, '11', 'recorded: the first subdivision');
is($record->{time_zone}, 'Europe/Lisbon', 'recorded: time zone');
is($record->{latitude}, '38.7167', 'recorded: latitude');
is($record->{longitude}, '-9.1333', 'recorded: longitude');
is($record->{ip}, '192.0.2.0/24', 'the address is masked after the lookup');

($record) = @{ $seen{64511} };

is($record->{region}, 'Skane', 'recorded: region of a flat layout');
is($record->{latitude}, '55.70', 'recorded: coordinates that are text');


# a database is replaced, without a reload

$networks{'192.0.2.0/25'} = city('IT', 'Roma');

my $city = $t->mmdb('city.mmdb', \%networks, types => \%types);

ok($t->wait_for(sub { place('192.0.2.1') eq 'IT|Roma|64496' }, 8),
   'a replaced file is picked up');
is(place('192.0.2.128'), 'ES|Madrid|64496', 'with all its networks');
$t->log_like(qr/geo database "\S+city\.mmdb" replaced/, 'and logged');


# a corrupt one is not

sub rejected {
    my ($name, $reason, $make) = @_;

    my $lines = () = $t->log() =~ /geo database not replaced/g;

    open(my $in, '<:raw', $city) or die "$city: $!\n";
    my $data = do { local $/; <$in> };
    close($in);

    $data = $make->($data);

    $t->write_file('new', $data);
    rename($t->dir() . '/new', $city) or die "$city: $!\n";

    ok($t->wait_for(sub {
        my $now = () = $t->log() =~ /geo database not replaced/g;
        return $now > $lines;
    }, 8), "$name: rejected");

    like($t->log(), qr/not replaced: cannot \w+ "\S+city\.mmdb": $reason/,
         "$name: with the reason");
    is(place('192.0.2.1'), 'IT|Roma|64496', "$name: the old stays in use");

    sleep(3);

    my $now = () = $t->log() =~ /geo database not replaced/g;
    is($now, $lines + 1, "$name: one log line");
}


rejected('truncated', qr/.*metadata/, sub { substr($_[0], 0, -200) });

$t->mmdb('city.mmdb', \%networks, types => \%types);
ok($t->wait_for(sub {
    my $n = () = $t->log() =~ /"\S+city\.mmdb" replaced/g;
    return $n == 2;
}, 8), 'a good one after a bad one is taken');

rejected('a damaged tree', qr/its data/, sub {
    my ($data) = @_;
    substr($data, 60, 300) = "\xfe" x 300;
    return $data;
});

rejected('no database', qr/.*metadata/, sub { "<html>404</html>\n" x 500 });


# overwritten in place, and cut short, while it is in use

my $asn = $t->dir() . '/asn.mmdb';
my ($worker) = $t->workers();

truncate($asn, 0) or die "$asn: $!\n";

is(place('198.51.100.99'), '||4200000000', 'truncated in place: answers');

open(my $fh, '+<:raw', $asn) or die "$asn: $!\n";
print $fh "\xff" x 5000;
close($fh);

is(place('198.51.100.98'), '||4200000000', 'overwritten in place: answers');
is(($t->workers())[0], $worker, 'by the same worker');

unlink($asn) or die "$asn: $!\n";

$t->log_like(qr/asn\.mmdb" cannot be read, its last content stays in use/,
             'removed: logged');
is(place('192.0.2.1'), 'IT|Roma|64496', 'removed: the last stays in use');


# absent or corrupt at start

my $r = $t->nginx_test(%conf);

is($r->{status}, 0, 'nginx -t passes without a database');
like($r->{output} . $t->read_file('error.log'),
     qr/asn\.mmdb": No such file.* until this is put right/, 'but warns');

$t->reload();

is(place('192.0.2.200'), 'XX|Nowhere|', 'started without it');

my $errors = counter('error');

$t->get('/r/GEO', headers => { 'X-Real-IP' => '192.0.2.200' });
is(counter('error') - $errors, 1, 'which is counted');

$t->mmdb('asn.mmdb', {
    '192.0.2.0/24' => { autonomous_system_number => 64500 },
}, type => 'GeoLite2-ASN');

ok($t->wait_for(sub { place('192.0.2.200') eq 'XX|Nowhere|64500' }, 8),
   'and picked up when it appears');


# a worker knows thousands of networks: each is read once, the oldest goes

my $many = 4000;

sub network { my ($i) = @_; return sprintf('100.%d.%d', $i >> 8, $i & 255) }

$t->mmdb('city.mmdb', { map {
    (network($_) . '.0/24' => city('PT', "Town$_"),
     network($_) . '.128/25' => city('ES', "Villa$_"))
} 0 .. $many / 2 - 1 }, types => \%types);

ok($t->wait_for(sub { place('100.0.1.5') =~ /Town1/ }, 10), 'a new database');

sub reads { return ($t->status() =~ /^referral_geo_reads_total (\d+)$/m)[0] }

sub visit {
    my $wrong = 0;
    my $connection;

    for my $i (0 .. $many - 1) {

        # nginx closes one after its thousandth request

        $connection = $t->connect() if $i % 1000 == 0;

        my $n = $i >> 1;
        my ($ip, $place) = $i & 1 ? (network($n) . '.200', "ES|Villa$n|")
                                  : (network($n) . '.5', "PT|Town$n|");
        my $body = $connection->ask('/?ref=GEO', headers =>
                                    { 'X-Real-IP' => $ip })->body();

        $wrong++ if index($body, $place) != 0;
    }

    return $wrong;
}

is(visit(), 0, 'each has its place');

my $reads = reads();

is(visit(), 0, 'and again');
is(reads() - $reads, 0, 'from the cache alone');


# what cannot be configured

sub refused {
    my ($args, $reason, $name) = @_;

    my $r = $t->nginx_test(http => "referral_geoip $args;", server => $server);

    isnt($r->{status}, 0, "$name: refused");
    like($r->{output}, $reason, "$name: with the reason");
}


refused('%%DIR%%/city.mmdb town=x', qr/invalid parameter "town=x", fields are/,
        'an unknown field');
refused('%%DIR%%/city.mmdb city', qr/invalid parameter "city"/, 'no "="');
refused('%%DIR%%/city.mmdb city=', qr/invalid path of field "city"/,
        'an empty path');
refused('%%DIR%%/city.mmdb city=a..b', qr/invalid path of field "city"/,
        'an empty name in a path');
refused('%%DIR%%/city.mmdb city=' . join('.', 1 .. 17),
        qr/invalid path of field "city"/, 'a path too long');
refused('%%DIR%%/city.mmdb city=a city=b', qr/duplicate field "city"/,
        'a field twice');
refused('%%DIR%%/city.mmdb; referral_geoip %%DIR%%/city.mmdb',
        qr/duplicate database/, 'a database twice');
refused('', qr/invalid number of arguments/, 'no path');

$t->done();
