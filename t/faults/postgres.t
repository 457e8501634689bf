#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Postgres dies, refuses, is full, falls back, and is cut off.

use strict;
use warnings;

use Referral::Test::Scenario;
use Referral::Test::Fault::Postgres;

Referral::Test::Scenario::run(Referral::Test::Fault::Postgres::table());
