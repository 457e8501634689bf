#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Processes are killed, stopped and replaced.

use strict;
use warnings;

use Referral::Test::Scenario;
use Referral::Test::Fault::Process;

Referral::Test::Scenario::run(Referral::Test::Fault::Process::table());
