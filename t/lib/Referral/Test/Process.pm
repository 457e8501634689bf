package Referral::Test::Process;

# Copyright (C) The nginx referral module authors
#
# A process that the test started and that ends with it.

use strict;
use warnings;

use Errno qw(ECHILD);
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);


# (name =>, argv => [], log => file, env => {}, user => name, umask => mode)
# Started with stdin from /dev/null, stdout and stderr appended to log, and
# with SIGTERM (death => signal) when the test dies before it.

sub new {
    my ($class, %arg) = @_;

    my $self = bless { death => 'TERM', %arg }, $class;

    $self->start();

    return $self;
}


sub start {
    my ($self) = @_;

    my @argv = ('setpriv', '--pdeathsig', $self->{death});

    if (defined $self->{user} && $> == 0) {
        push @argv, '--reuid', $self->{user}, '--regid', $self->{user},
             '--init-groups';
    }

    push @argv, '--', @{ $self->{argv} };

    my $pid = fork();
    die "fork: $!\n" unless defined $pid;

    if ($pid == 0) {
        local $SIG{__DIE__};

        open(STDIN, '<', '/dev/null');
        open(STDOUT, '>>', $self->{log}) or POSIX::_exit(126);
        open(STDERR, '>&', \*STDOUT);

        chdir($self->{cwd} // '/');
        umask($self->{umask}) if defined $self->{umask};
        $ENV{$_} = $self->{env}{$_} for keys %{ $self->{env} // {} };
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP QUIT PIPE USR1 USR2 CHLD);

        no warnings 'exec';
        exec { $argv[0] } @argv;
        POSIX::_exit(127);
    }

    $self->{pid} = $pid;
    delete $self->{status};
    delete $self->{expected};

    return $self;
}


sub pid { $_[0]{pid} }


# 1 while it runs; afterwards its wait status is in status()

sub alive {
    my ($self) = @_;

    return 0 unless defined $self->{pid};
    return 0 if defined $self->{status};

    my $rc = waitpid($self->{pid}, WNOHANG);

    if ($rc == $self->{pid}) {
        $self->{status} = $?;
        return 0;
    }

    if ($rc == -1 && $! == ECHILD) {
        $self->{status} = -1;
        return 0;
    }

    return 1;
}


sub status { $_[0]->alive(); $_[0]{status} }


sub signal {
    my ($self, $signal) = @_;

    return 0 unless $self->alive();
    return kill($signal, $self->{pid});
}


# waits for its end: the wait status, or undef after the timeout

sub wait {
    my ($self, $timeout) = @_;

    my $end = time() + ($timeout // 10);

    while ($self->alive()) {
        return undef if time() > $end;
        sleep(0.01);
    }

    return $self->{status};
}


# ends it with the signal, after the timeout with SIGKILL (and returns 0)

sub stop {
    my ($self, $signal, $timeout) = @_;

    return 1 unless $self->alive();

    $self->{expected} = 1;

    kill('CONT', $self->{pid});
    kill($signal // 'TERM', $self->{pid});
    return 1 if defined $self->wait($timeout);

    kill('KILL', $self->{pid});
    $self->wait(5);

    return 0;
}


sub kill9 {
    my ($self) = @_;

    $self->{expected} = 1;
    $self->signal('KILL');
    $self->wait(5);

    return $self;
}


sub pause  { $_[0]->signal('STOP'); $_[0] }
sub resume { $_[0]->signal('CONT'); $_[0] }


sub output {
    my ($self) = @_;

    open(my $fh, '<', $self->{log}) or return '';
    local $/;
    return scalar(<$fh>) // '';
}


1;
