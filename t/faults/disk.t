#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The journal's disk is full, fails and forgets.

use strict;
use warnings;

use Referral::Test::Scenario;
use Referral::Test::Fault::Disk;

Referral::Test::Scenario::run(Referral::Test::Fault::Disk::table());
