package Referral::Test::Journal;

# Copyright (C) The nginx referral module authors
#
# The part of Referral::Test that writes journals without nginx.

use strict;
use warnings;

use IO::Handle;
use Test::More;


# runs build/t/journal_write to its end and returns what it printed

sub journal_write {
    my ($self, $journal, @args) = @_;

    my $r = $self->run("$self->{build}/t/journal_write", '--journal', $journal,
                       @args);
    die $r->{output} if $r->{status};

    return $r->{output};
}


# one whose stream stays live: a number written to the handle is how many more
# it appends; hold.log has what it prints, the old one's is gone

sub journal_hold {
    my ($self, $journal, @args) = @_;

    my $log = "$self->{dir}/hold.log";

    unlink($log);
    open(my $in, '|-', "exec $self->{build}/t/journal_write --journal"
         . " $journal --hold @args >>$log") or die;
    $in->autoflush(1);

    $self->wait_for(sub { ($self->read_file('hold.log') // '') =~ /appended/ },
                    10) or die "journal_write has appended nothing\n";
    return $in;
}


1;
