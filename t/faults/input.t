#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# What clients send.

use strict;
use warnings;

use Referral::Test::Scenario;
use Referral::Test::Fault::Input;

Referral::Test::Scenario::run(Referral::Test::Fault::Input::table());
