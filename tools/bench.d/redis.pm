package redis;

# Copyright (C) The nginx referral module authors
#
# Redis frozen, dead and slow (50 ms), for codes in the zone, whose entries
# grow stale each second, and for codes that are not there.  Eight connections
# only: with more, latency is the time that requests wait for each other.
#
# After Redis was away entries are unsure, and a request waits for one read of
# its code.  So all are read again before Redis goes away once more, and slow
# comes first: what is measured is one fault, not two.

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

    my @cached = (path => '/r/', connections => 8);
    my @unknown = (path => '/r/NONE', codes => 1e9, connections => 8,
                   failing => 1);
    my $sure = sub {
        $b->slice({ name => 'sure', nginx => 'redis', @cached });
    };
    my %frozen = (
        before => sub { $sure->(); $redis->pause(); $b->pause(0.3) },
        after => sub { $redis->resume(); $b->pause(1.5) });
    my %dead = (
        before => sub { $sure->(); $redis->stop(); $b->pause(0.3) },
        after => sub {
            $redis->start();
            delete $b->{filled};
            $b->codes(1000);
            $b->pause(1.5);
        });

    $b->note('redis: well and slow');
    $b->measure(
        { name => 'cached', nginx => 'redis', @cached },
        { name => 'cached_slow', nginx => 'redis-slow', @cached },
        { name => 'uncached', nginx => 'redis', @unknown },
        { name => 'uncached_slow', nginx => 'redis-slow', @unknown });

    $b->note('redis: frozen and dead, and well between');
    $b->measure(
        { name => 'cached_between', nginx => 'redis', @cached,
          before => $sure },
        { name => 'cached_frozen', nginx => 'redis', @cached, %frozen },
        { name => 'cached_dead', nginx => 'redis', @cached, %dead },
        { name => 'uncached_frozen', nginx => 'redis', @unknown, %frozen },
        { name => 'uncached_dead', nginx => 'redis', @unknown, %dead });

    $b->set_ratio('slow_p99', 'cached_slow', 'cached', 'p99_us');
    $b->set_ratio('frozen_p99', 'cached_frozen', 'cached_between', 'p99_us');
    $b->set_ratio('dead_p99', 'cached_dead', 'cached_between', 'p99_us');

    $b->end_nginx($_) for qw(redis redis-slow);
    $proxy->stop();
}


1;
