package Referral::Test::Gate;

# Copyright (C) The nginx referral module authors

=head1 NAME

Referral::Test::Gate - stands between nginx and Redis, and knows which
connection is which

=head1 SYNOPSIS

    my $gate = Referral::Test::Gate->new(listen => $t->path('gate'),
                                         to => $redis->path());
    $gate->hold('lookup');      # its replies wait here ...
    $gate->release('lookup');   # ... until now
    $gate->swallow('subscribe');
    $gate->cut('subscribe');
    $gate->clear();

=head1 DESCRIPTION

The name that a connection gives itself ("referral-123-lookup") is matched as
a regular expression.  What is said holds for connections that come later, too.

=over

=item hold($name), release($name)

what Redis sends is kept, and passed on.

=item swallow($name)

nothing goes either way, and nothing is closed: as when a cable is pulled.

=item cut($name)

is closed, and so are new ones as soon as they have said their name.

=item route($name, $path)

commands of new connections go to another server.

=item clear()

takes all of it back; what was swallowed stays so.

=back

=cut

use strict;
use warnings;

use IO::Select;
use IO::Socket::UNIX;
use POSIX ();
use Socket qw(AF_UNIX SOCK_STREAM PF_UNSPEC);


# (listen => path, to => path)

sub new {
    my ($class, %arg) = @_;

    my $self = bless { %arg, owner => $$ }, $class;

    unlink($arg{listen});

    my $listen = IO::Socket::UNIX->new(Local => $arg{listen}, Listen => 64)
        or die "the gate can not listen at $arg{listen}: $!\n";

    chmod(0777, $arg{listen});

    socketpair(my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC)
        or die "socketpair: $!\n";

    my $pid = fork() // die "fork: $!\n";

    if ($pid == 0) {
        close($ours);
        $SIG{$_} = 'DEFAULT' for qw(TERM HUP CHLD);
        $SIG{$_} = 'IGNORE' for qw(PIPE INT);
        eval { serve($theirs, $listen, $arg{to}); 1 } or print STDERR $@;
        POSIX::_exit(0);
    }

    close($theirs);
    close($listen);

    $self->{pid} = $pid;
    $self->{control} = $ours;

    return $self;
}


sub tell {
    my ($self, @words) = @_;

    local $SIG{PIPE} = 'IGNORE';

    syswrite($self->{control}, join("\t", @words) . "\n");
    sysread($self->{control}, my $answer, 16) or die "the gate is gone\n";

    return $self;
}


sub hold    { my ($s, $name) = @_; $s->tell('hold', $name) }
sub release { my ($s, $name) = @_; $s->tell('release', $name) }
sub swallow { my ($s, $name) = @_; $s->tell('swallow', $name) }
sub cut     { my ($s, $name) = @_; $s->tell('cut', $name) }
sub route   { my ($s, $name, $to) = @_; $s->tell('route', $name, $to) }
sub clear   { my ($s) = @_; $s->tell('clear', '') }
sub path    { $_[0]{listen} }


sub stop {
    my ($self) = @_;

    return unless $self->{pid} && $self->{owner} == $$;

    local $?;

    close($self->{control});
    kill('TERM', $self->{pid});
    waitpid(delete $self->{pid}, 0);
    unlink($self->{listen});
}


sub DESTROY { $_[0]->stop() }


#
# the process
#

sub serve {
    my ($control, $listen, $to) = @_;

    my $select = IO::Select->new($control, $listen);
    my %rule;                       # verb => { name => value }
    my %pair;                       # by descriptor, both ends

    for ( ;; ) {
        for my $ready ($select->can_read()) {

            if ($ready == $control) {
                sysread($control, my $line, 4096) or return;
                chomp($line);
                obey(\%rule, \%pair, $select, split(/\t/, $line, -1));
                syswrite($control, "ok\n");
                next;
            }

            if ($ready == $listen) {
                my $client = $listen->accept() or next;
                my $p = { client => $client, name => '', early => '',
                          held => '' };
                $pair{fileno($client)} = $p;
                $select->add($client);
                next;
            }

            my $p = $pair{fileno($ready) // -1} or next;
            my $up = $ready == $p->{client};
            my $n = sysread($ready, my $data, 65536);

            if (!$n) {
                end(\%pair, $select, $p) unless $p->{swallowed};
                $select->remove($ready);
                next;
            }

            next if $p->{swallowed};

            if (!$up) {
                if (says(\%rule, 'hold', $p)) {
                    $p->{held} .= $data;
                } else {
                    syswrite($p->{client}, $data);
                }
                next;
            }

            # nothing goes on before the name is known

            if (!$p->{server}) {
                $p->{early} .= $data;
                next unless $p->{early} =~ /(referral-\d+-\w+)/;
                $p->{name} = $1;

                if (says(\%rule, 'cut', $p)) {
                    end(\%pair, $select, $p);
                    next;
                }

                $p->{swallowed} = 1, next if says(\%rule, 'swallow', $p);

                $p->{server} = IO::Socket::UNIX->new(
                    Peer => says(\%rule, 'route', $p) || $to);

                if (!$p->{server}) {
                    end(\%pair, $select, $p);
                    next;
                }

                $pair{fileno($p->{server})} = $p;
                $select->add($p->{server});
                $data = $p->{early};
            }

            syswrite($p->{server}, $data);
        }
    }
}


sub says {
    my ($rule, $verb, $p) = @_;

    for my $name (keys %{ $rule->{$verb} // {} }) {
        return $rule->{$verb}{$name} if $p->{name} =~ /$name/;
    }

    return '';
}


sub obey {
    my ($rule, $pair, $select, $verb, $name, $value) = @_;

    my %all = map { $_->{client} => $_ } values %$pair;

    if ($verb eq 'clear') {
        %$rule = ();

    } elsif ($verb eq 'release') {
        delete $rule->{hold}{$name};

    } else {
        $rule->{$verb}{$name} = $value // 1;
    }

    for my $p (values %all) {
        next if $p->{name} eq '';

        if ($p->{held} ne '' && !says($rule, 'hold', $p)) {
            syswrite($p->{client}, $p->{held});
            $p->{held} = '';
        }

        end($pair, $select, $p) if says($rule, 'cut', $p);
        $p->{swallowed} = 1 if says($rule, 'swallow', $p);
    }
}


sub end {
    my ($pair, $select, $p) = @_;

    for my $end (grep { defined } @$p{qw(client server)}) {
        next unless defined fileno($end);
        delete $pair->{fileno($end)};
        $select->remove($end);
        close($end);
    }
}


1;
