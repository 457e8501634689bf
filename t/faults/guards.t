#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The guards, and what happens without them.

use strict;
use warnings;

use Referral::Test::Scenario;
use Referral::Test::Fault::Guards;

Referral::Test::Scenario::run(Referral::Test::Fault::Guards::table());
