#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Redis stops, forgets, and talks nonsense.

use strict;
use warnings;

use Referral::Test::Scenario;
use Referral::Test::Fault::Redis;

Referral::Test::Scenario::run(Referral::Test::Fault::Redis::table());
