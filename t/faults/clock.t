#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The clock jumps.

use strict;
use warnings;

use Referral::Test::Scenario;
use Referral::Test::Fault::Clock;

Referral::Test::Scenario::run(Referral::Test::Fault::Clock::table());
