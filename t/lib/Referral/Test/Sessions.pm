package Referral::Test::Sessions;

# Copyright (C) The nginx referral module authors
#
# Many sessions of a Referral::Test::Postgres that do something at once.

use strict;
use warnings;

use IO::Handle;
use POSIX ();
use Time::HiRes qw(sleep time);


# ($postgres, $dir): dir is for the output of sessions

sub new {
    my ($class, $pg, $dir) = @_;

    return bless { pg => $pg, dir => $dir, runs => 0 }, $class;
}


# Runs each statement in a session of its own, all let go at once: they wait
# for a lock that is held until every one of them does.  Returns for each
# { status, out, error }, the error beginning with its SQLSTATE.

sub at_once {
    my ($self, @sql) = @_;

    my $pg = $self->{pg};
    my $dir = "$self->{dir}/sessions." . ++$self->{runs};
    mkdir($dir) or die "$dir: $!\n";

    open(my $gate, '|-', 'psql', '-X', '-q', '-o', '/dev/null', '-d',
         $pg->conninfo()) or die "psql: $!\n";
    $gate->autoflush(1);
    print $gate "SELECT pg_advisory_lock(42);\n";
    $self->waiting('granted', 1);

    my @pids;

    for my $n (0 .. $#sql) {
        my $pid = fork() // die "fork: $!\n";

        if ($pid == 0) {
            open(STDIN, '<', '/dev/null');
            open(STDOUT, '>', "$dir/$n.out");
            open(STDERR, '>', "$dir/$n.err");
            exec('psql', '-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1',
                 '-v', 'VERBOSITY=verbose', '-d', $pg->conninfo(),
                 '-c', 'SELECT pg_advisory_lock_shared(42)',
                 '-c', 'SELECT pg_advisory_unlock_shared(42)', '-c', $sql[$n])
                or POSIX::_exit(127);
        }

        push @pids, $pid;
    }

    $self->waiting('NOT granted', scalar(@sql));
    print $gate "SELECT pg_advisory_unlock(42);\n";
    close($gate);

    my @results;

    for my $n (0 .. $#sql) {
        waitpid($pids[$n], 0);
        my $status = $?;
        my $out = slurp("$dir/$n.out") =~ s/^\n?t?\n?//r;
        my $error = slurp("$dir/$n.err");
        chomp($out);

        push @results, { status => $status, out => $out,
                         error => $error =~ s/^.*?ERROR:\s+//sr };
    }

    return @results;
}


sub waiting {
    my ($self, $state, $n) = @_;

    my $end = time() + 30;

    while ($self->{pg}->value('SELECT count(*) FROM pg_locks WHERE locktype ='
                              . " 'advisory' AND objid = 42 AND objsubid = 1"
                              . " AND $state") < $n)
    {
        die "sessions do not come to their gate\n" if time() > $end;
        sleep(0.1);
    }
}


sub slurp {
    my ($path) = @_;

    open(my $fh, '<', $path) or die "$path: $!\n";
    local $/;
    return <$fh> // '';
}


# how many ended how: ok, or the SQLSTATE

sub ends {
    my %n;
    $n{ $_->{status} == 0 ? 'ok' : substr($_->{error}, 0, 5) }++ for @_;
    return \%n;
}

1;
