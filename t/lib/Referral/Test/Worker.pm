package Referral::Test::Worker;

# Copyright (C) The nginx referral module authors
#
# A referral-worker with a configuration file of the test.

use strict;
use warnings;

use IO::Select;
use IO::Socket::UNIX;
use Socket qw(SOCK_DGRAM);
use Time::HiRes qw(sleep time);

use Referral::Test::Process;


# (dir =>, name =>, binary =>, conf => { setting => value }, env => {})

sub new {
    my ($class, %arg) = @_;

    my $self = bless { name => 'worker', env => {}, %arg }, $class;

    $self->{file} = "$self->{dir}/$self->{name}.conf";
    $self->{log} = "$self->{dir}/$self->{name}.log";
    $self->{notify_path} = "$self->{dir}/$self->{name}.notify";

    $self->configure(%{ $self->{conf} });
    $self->start() unless $arg{start_later};

    return $self;
}


# writes the configuration file; a running worker reads it after hup()

sub configure {
    my ($self, %conf) = @_;

    open(my $fh, '>', $self->{file}) or die "$self->{file}: $!\n";
    print $fh "$_ = $conf{$_}\n" for sort grep { defined $conf{$_} } keys %conf;
    close($fh);

    $self->{conf} = { %conf };

    return $self;
}


sub start {
    my ($self) = @_;

    unlink($self->{notify_path});
    $self->{notify} = IO::Socket::UNIX->new(Local => $self->{notify_path},
                                            Type => SOCK_DGRAM)
        or die "$self->{notify_path}: $!\n";
    chmod(0777, $self->{notify_path});

    $self->{process} = Referral::Test::Process->new(
        name => $self->{name}, log => $self->{log}, user => $self->{user},
        env => { NOTIFY_SOCKET => $self->{notify_path}, %{ $self->{env} } },
        argv => [ $self->{binary}, '-c', $self->{file} ]);

    return $self;
}


sub stop    { my ($s, $sig) = @_; $s->{process}->stop($sig // 'TERM', 30); $s }
sub kill9   { $_[0]{process}->kill9() if $_[0]{process}; $_[0] }
sub pause   { $_[0]{process}->pause(); $_[0] }
sub resume  { $_[0]{process}->resume(); $_[0] }
sub hup     { $_[0]{process}->signal('HUP'); $_[0] }
sub pid     { $_[0]{process}->pid() }
sub alive   { $_[0]{process} && $_[0]{process}->alive() }
sub status  { $_[0]{process}->status() }
sub output  { $_[0]{process}->output() }
sub restart { $_[0]->stop()->start() }


# waits for a message of sd_notify(3) that matches; returns it, or undef

sub notified {
    my ($self, $pattern, $timeout) = @_;

    my $end = time() + ($timeout // 10);
    my $select = IO::Select->new($self->{notify});

    for ( ;; ) {
        my $left = $end - time();
        return undef if $left <= 0;
        next unless $select->can_read($left);

        $self->{notify}->recv(my $text, 4096);
        return $text if $text =~ $pattern;
    }
}


1;
