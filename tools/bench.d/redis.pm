package redis;

# Copyright (C) The nginx referral module authors
#
# Redis frozen, dead and slow (50 ms), for codes in the zone, whose entries
# grow stale each second, and for codes that are not there.  Eight connections
# only: with more, latency is the time that requests wait for each other.

use strict;
use warnings;

use Referral::Test::Proxy;


sub run {
    my ($b) = @_;

    $b->codes(1000);

    my $redis = $b->redis();
    my $proxy = Referral::Test::Proxy->new(listen => $b->dir() . '/slow',
                                           to => $redis->path());

    $proxy->latency(0.025);

    for ([ redis => $redis->path() ], [ 'redis-slow', $b->dir() . '/slow' ]) {
        my ($name, $path) = @$_;

        mkdir($b->dir() . "/$name");
        mkdir($b->dir() . "/$name/journal");
        my $status = $b->port();

        $b->nginx($name, conf => 'redirect', set => { STATUS => $status,
            VALID => '1s', REDIS => $path });
        $b->fill($name, $status, 1000);
    }

    my %frozen = (
        before => sub { $redis->pause(); $b->pause(0.3) },
        after => sub { $redis->resume(); $b->pause(1.5) });
    my %dead = (
        before => sub { $redis->stop(); $b->pause(0.3) },
        after => sub {
            $redis->start();
            delete $b->{filled};
            $b->codes(1000);
            $b->pause(1.5);
        });
    my @cached = (path => '/r/', connections => 8);
    my @unknown = (path => '/r/NONE', codes => 1e9, connections => 8,
                   failing => 1);

    $b->note('redis: well, frozen, dead, slow');
    $b->measure(
        { name => 'cached', nginx => 'redis', @cached },
        { name => 'cached_frozen', nginx => 'redis', @cached, %frozen },
        { name => 'cached_dead', nginx => 'redis', @cached, %dead },
        { name => 'cached_slow', nginx => 'redis-slow', @cached },
        { name => 'uncached', nginx => 'redis', @unknown },
        { name => 'uncached_frozen', nginx => 'redis', @unknown, %frozen },
        { name => 'uncached_dead', nginx => 'redis', @unknown, %dead },
        { name => 'uncached_slow', nginx => 'redis-slow', @unknown });

    $b->set_ratio('frozen_p99', 'cached_frozen', 'cached', 'p99_us');
    $b->set_ratio('dead_p99', 'cached_dead', 'cached', 'p99_us');
    $b->set_ratio('slow_p99', 'cached_slow', 'cached', 'p99_us');

    $b->end_nginx($_) for qw(redis redis-slow);
    $proxy->stop();
}


1;
