#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# A selection of t/faults/publish.t; "make faults" runs all of it.

use strict;
use warnings;

use Referral::Test;

# publishers are stopped and killed at points, in another build only

BEGIN {
    my $faults = ($ENV{REFERRAL_BUILD} // Referral::Test->top() . '/build')
                 . '/faults';

    if (-x "$faults/referral-worker" && -x "$faults/referralctl") {
        $ENV{REFERRAL_BUILD} = $faults;
        delete $ENV{REFERRAL_MODULE};
    }
}

use Referral::Test::Scenario;
use Referral::Test::Fault::Publish;

my %table = map { $_->[0] => $_ } Referral::Test::Fault::Publish::table();

Referral::Test::Scenario::run(map { $table{$_} // () } qw(
    publish-fence no-publish-fence publish-resumed publish-old-dump
    publish-mid-dump publish-mid-full publish-flush-full publish-points
    publish-unheard publish-refused));
