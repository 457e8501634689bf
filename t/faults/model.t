#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Random schedules of the delivery protocol: with all its rules nothing is
# lost or doubled, and without any one of them something is.
#
#     MODEL_RUNS=10000 MODEL_SEED=1 prove -It/lib t/faults/model.t
#
# A schedule that went wrong is run again by its set of faults and its seed:
#
#     MODEL_SET=all MODEL_SEED=1234 MODEL_RUNS=1 ...

use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::Bin;
use Model;


my $runs = $ENV{MODEL_RUNS} // 150;
my $seed = $ENV{MODEL_SEED} // 1;
my @sets = $ENV{MODEL_SET} // sort keys %Model::FAULTS;

note("seeds from $seed");
note(sprintf('%-14s %9s %9s %9s %9s %9s %6s %7s', 'faults',
             qw(schedules accepted rows reported excused lost doubled)));

for my $set (@sets) {
    my $n = $set eq 'all' ? 4 * $runs : $runs;
    my ($sum, @bad) = schedules($n, $set);

    note(sprintf('%-14s %9d %9d %9d %9d %9d %6d %7d', $set, $n,
                 @$sum{qw(accepted rows reported excused lost doubled)}));
    is("@bad", '', "$set: nothing lost, nothing twice");
    cmp_ok($sum->{rows}, '>', $n, "$set: clicks are rows");
}

# what each rule is there for, and how many schedules it takes to see it

my @needed = ([ own_series   => 250, qw(power stale wipe clone) ],
              [ own_cursor   => 100, qw(crash wipe) ],
              [ own_identity => 100, 'clone' ],
              [ observed     => 250, 'longest' ],
              [ committed    => 100, 'locked' ],
              [ compare      => 250, qw(twins clone image) ],
              [ last_id      => 250, 'image' ],
              [ look_back    => 2000, 'imaged' ],
              [ checksum     => 250, 'damage' ],
              [ lock         => 250, qw(space clone) ]);

is_deeply([ sort map { $_->[0] } @needed ], [ sort keys %Model::RULES ],
          'each rule is tried');

for (@needed) {
    my ($rule, $n, @faults) = @$_;

    for my $set (@faults) {
        my ($sum, @bad) = schedules($n, $set, { $rule => 1 });

        ok(@bad > 0, "without \"$Model::RULES{$rule}\", $set: " . @bad
                     . " of $n are bad");
    }
}

done_testing();


# sums, and the seeds that lost or doubled

sub schedules {
    my ($n, $set, $off) = @_;

    my (%sum, @bad);

    for my $at ($seed .. $seed + $n - 1) {
        my $r = Model::run($at, $Model::FAULTS{$set}, $off);

        $sum{$_} += $r->{$_} for keys %$r;
        push @bad, $at if $r->{lost} || $r->{doubled} || $r->{sums};
    }

    return (\%sum, @bad);
}
