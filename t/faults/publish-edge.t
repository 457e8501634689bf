#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# 5,000 codes are switched while they are asked for, and everything between
# the database and nginx is cut and killed: none may be wrong at the end.

use strict;
use warnings;

use Referral::Test::Scenario;
use Referral::Test::Edge;

Referral::Test::Scenario::run(

    [ 'publish-edge', '5,000 codes switched under load',
      sub { return { wrong => [ Referral::Test::Edge::run(codes => 5000,
                                    seconds => 15) ] } }, { bare => 1 } ],

    [ 'publish-edge-cut', 'the same, and all is cut and killed',
      sub { return { wrong => [ Referral::Test::Edge::run(codes => 5000,
                                    seconds => 20, evil => 1) ] } },
      { bare => 1 } ],
);
