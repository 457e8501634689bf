#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# kill -9 at named points of writer and worker.

use strict;
use warnings;

use Referral::Test::Scenario;
use Referral::Test::Fault::Points;

Referral::Test::Scenario::run(Referral::Test::Fault::Points::table());
