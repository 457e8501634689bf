package click;

# Copyright (C) The nginx referral module authors
#
# A click: return302.conf is the limit, redirect.conf ours, lua.conf the same
# job in Lua.  Ours has its worker flush to Postgres meanwhile.

use strict;
use warnings;


sub run {
    my ($b) = @_;

    $b->codes(1000);
    start($b);

    $b->note('click: return302, redirect, lua');
    $b->measure(contenders());

    $b->set_ratio('redirect', 'redirect', 'return302');
    $b->set_ratio('lua', 'lua', 'return302');
    $b->set_ratio('lua_redirect', 'lua', 'redirect');

    $b->end_nginx($_) for qw(return302 redirect lua);
    delete($b->{worker})->stop() if $b->{worker};
}


sub contenders {
    return map { { name => $_, nginx => $_, path => '/r/', settle => 0.6 } }
           qw(return302 redirect lua);
}


sub start {
    my ($b) = @_;

    $b->nginx('return302');
    mkdir($b->dir() . '/redirect');
    mkdir($b->dir() . '/redirect/journal');
    $b->nginx('redirect', set => { STATUS => $b->port() });
    $b->worker($b->dir() . '/redirect/journal');
    $b->nginx('lua');
}


1;
