#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Publishers, Redis and Postgres fail while codes change.

use strict;
use warnings;

use Referral::Test::Scenario;
use Referral::Test::Fault::Publish;

Referral::Test::Scenario::run(Referral::Test::Fault::Publish::table());
