#!/usr/bin/perl

# Copyright (C) The nginx referral module authors

# referral_status: what is counted, and that it is what Prometheus reads.

use strict;
use warnings;

use Test::More;

use Referral::Test;

my $t = Referral::Test->new();

$t->redis()->code('OK', url => 'https://example.com/');
$t->redis()->code('OFF', url => 'https://example.com/', state => 'inactive');

my %conf = (
    server => q{
        referral on;
        location /r/ { referral_redirect; }
        location / { return 200 "page"; }
        location = /metrics {
            set $args format=prometheus;
            referral_status;
            expires 1h;
        }
    },
    cookie => 1, status => 1, workers => 2,
);

$t->nginx(%conf);


sub metrics {
    my %metrics;

    for (split(/\n/, $t->status())) {
        $metrics{$1} = $2 if /^referral_(\S+) (\d+)$/;
    }

    return \%metrics;
}


# who answers first may be alone for a moment

$t->wait_for(sub { metrics()->{journal_open_streams} == 2 }, 10);

my $r = $t->get('/metrics');

is($r->status(), 200, 'answers');
is($r->header('Content-Type'), 'text/plain; version=0.0.4; charset=utf-8',
   'the type that Prometheus asks for');
like($r->header('Cache-Control'), qr/no-store/, 'not cached');
is($t->head('/metrics')->status(), 200, 'HEAD');
is($t->head('/metrics')->body(), '', 'HEAD has no body');
is($t->post('/metrics', body => 'x')->status(), 405, 'POST is refused');


# the format: HELP and TYPE once, before the samples of a family, together

my (%type, %done, $family, @bad);

for (split(/\n/, $r->body())) {

    if (/^# HELP (referral_[a-z_]+) \S.*[^ ]$/) {
        push @bad, $_ if $done{$1}++;
        $family = $1;
        next;
    }

    if (/^# TYPE (referral_[a-z_]+) (counter|gauge|histogram)$/) {
        push @bad, $_ if $1 ne $family || $type{$1};
        $type{$1} = $2;
        next;
    }

    if (/^(referral_[a-z_]+)(\{([a-z]+="[^"]+",?)+\})? [\d.]+$/) {
        my $name = $1;
        my $wanted = ($name =~ /_total$/) ? 'counter' : 'gauge';

        if ($name =~ /^(.*_seconds)_(?:bucket|sum|count)$/) {
            $name = $1;
            $wanted = 'histogram';
        }

        push @bad, $_ if $name ne $family || $type{$name} ne $wanted;
        next;
    }

    push @bad, $_;
}

is(join("\n", @bad), '', 'every line is what Prometheus reads');
is(substr($r->body(), -1), "\n", 'the last line ends');
ok($type{$_}, "$_ is there")
    for map { "referral_$_" }
        qw(requests_total dropped_total tokens_total journal_records_total
           zone_lookups_total redis_commands_total geo_lookups_total);

my %seen;
my @double = grep { /^referral/ && s/ \d+$// && $seen{$_}++ }
             split(/\n/, $r->body());

is(join("\n", @double), '', 'no sample twice');


# what is counted, by both workers

my $before = metrics();

$t->get('/r/OK') for 1 .. 6;
$t->get('/?ref=ok') for 1 .. 4;
$t->get('/r/OFF') for 1 .. 3;
$t->get('/r/NONE') for 1 .. 2;
$t->get('/r/a%20b');
$t->get('/?ref=%00');
$t->get('/plain') for 1 .. 5;

my $after = metrics();


sub grown {
    my ($name) = @_;
    return ($after->{$name} // -1) - ($before->{$name} // -1);
}


is(grown('requests_total{verdict="valid",via="redirect"}'), 6, 'redirects');
is(grown('requests_total{verdict="valid",via="parameter"}'), 4, 'pages');
is(grown('requests_total{verdict="inactive",via="redirect"}'), 3, 'inactive');
is(grown('requests_total{verdict="unknown",via="redirect"}'), 2, 'unknown');
is(grown('requests_total{verdict="malformed",via="redirect"}'), 1,
   'malformed');
is(grown('requests_total{verdict="malformed",via="parameter"}'), 1,
   'malformed parameter');
is(grown('journal_records_total'), 17, 'records');
cmp_ok(grown('journal_bytes_total'), '>', 17 * 64, 'bytes');
is(grown('zone_lookups_total{result="hit"}')
   + grown('zone_lookups_total{result="miss"}'), 15,
   'a lookup for each code that is one');
cmp_ok($after->{zone_codes}, '>=', 2, 'codes in the zone');
is($after->{zone_absent_codes}, 1, 'and one known as absent');
is($after->{journal_open_streams}, 2, 'both have a stream');
cmp_ok($after->{zone_used_blocks}, '>', 0, 'used blocks');
cmp_ok($after->{zone_capacity_blocks}, '>=', $after->{zone_used_blocks},
       'of a capacity');
is(grown('tokens_total{result="new"}'), 10, 'cookies issued');

$before = $after;

$t->get('/?ref=OK', headers => { Cookie => '_ref=v1.junk' });
$after = metrics();

is(grown('tokens_total{result="malformed"}'), 1, 'a cookie that is none');


# counters go on over a reload, and when a worker dies

$before = $after;
$t->reload();
$t->get('/r/OK') for 1 .. 5;
$t->kill_worker();
$t->get('/r/OK') for 1 .. 5;
$after = metrics();

is(grown('requests_total{verdict="valid",via="redirect"}'), 10,
   'counters survive a reload and a killed worker');


# a configuration without the rest of the module

$t->reconfigure(defaults => 0, status => 1,
                server => 'location / { return 200 "x"; }');

is($t->get('/status', port => $t->port('status'))->status(), 200,
   'status alone');

$t->done();
