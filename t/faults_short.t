#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# A selection of the fault scenarios; "make faults" runs them all.

use strict;
use warnings;

use Referral::Test;

# guards can be off, and processes killed at points, in another build only

BEGIN {
    my $faults = ($ENV{REFERRAL_BUILD} // Referral::Test->top() . '/build')
                 . '/faults';

    if (-x "$faults/referral-worker" && -x "$faults/referralctl"
        && -e "$faults/ngx_http_referral_module.so")
    {
        $ENV{REFERRAL_BUILD} = $faults;
        delete $ENV{REFERRAL_MODULE};
    }
}

use Referral::Test::Scenario;
use Referral::Test::Fault::Clock;
use Referral::Test::Fault::Disk;
use Referral::Test::Fault::Guards;
use Referral::Test::Fault::Input;
use Referral::Test::Fault::Points;
use Referral::Test::Fault::Process;
use Referral::Test::Fault::Redis;

my @names = qw(
    nginx-kill-worker worker-kill worker-copy kill-everything
    redis-garbage journal-full disk-flip-many disk-stale-copy clock-jumps
    input-odd record-published segment-begun worker-commit-sent
    worker-committed no-record-checksum no-cursor-compare
);

my %table = map { $_->[0] => $_ }
    Referral::Test::Fault::Clock::table(),
        Referral::Test::Fault::Disk::table(),
        Referral::Test::Fault::Guards::table(),
        Referral::Test::Fault::Input::table(),
        Referral::Test::Fault::Points::table(),
        Referral::Test::Fault::Process::table(),
        Referral::Test::Fault::Redis::table();

Referral::Test::Scenario::run(map { $table{$_} // () } @names);
