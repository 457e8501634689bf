#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# From the database to the edge: after the last switch nginx says what the
# database says.  t/faults/publish-edge.t does it with 5,000 codes, and worse.

use strict;
use warnings;

use Test::More;

use Referral::Test::Edge;

is_deeply([ Referral::Test::Edge::run(codes => 500, seconds => 4) ], [],
          '500 codes, switched while they are asked for');
note("$Referral::Test::Edge::asked requests meanwhile");
is_deeply([ Referral::Test::Stand::end() ], [], 'Postgres ends');

done_testing();
