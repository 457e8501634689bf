package Referral::Test::Proxy;

# Copyright (C) The nginx referral module authors

=head1 NAME

Referral::Test::Proxy - a network between two programs that can be spoiled

=head1 SYNOPSIS

    use Referral::Test::Proxy;

    my $p = Referral::Test::Proxy->new(listen => $t->port('proxy'),
                                       to => $t->port('pg'));

    $p->latency(0.05);              # each piece comes 50 ms later
    $p->slice(1);                   # pieces of one byte
    $p->cut();                      # connections are closed, none is taken
    $p->clear();                    # a network again

    # the server gets COMMIT, the client never its answer; one time
    $p->limit(down => 0, after => 'COMMIT', then => 'reset', times => 1);
    $p->wait_hits(1, 10);

    # the connection ends when the client has sent 512 bytes of it
    $p->limit(up => 512, then => 'close', times => 1);

=head1 DESCRIPTION

A forked process that takes connections at C<listen> and makes one to C<to>
for each: ports of 127.0.0.1, or paths of unix sockets.  It ends with
C<stop()>, with the object, or with the test, however that ends.

Up is from the client to the server, down is the answer.  What a verb says
holds at once, for open connections and for new ones, until C<clear()>.

=over

=item latency($seconds)

of each piece, in both directions.  Order is kept.

=item slice($bytes)

sends at most so many bytes at a time, half a millisecond apart.

=item cut(), cut('reset')

ends all connections, by FIN or RST, and every new one at once.

=item reset(), close()

ends the connections there are; new ones are taken.

=item refuse()

nobody listens; those that are connected stay.

=item hang()

nothing is forwarded and nothing closed, as when a cable is pulled.

=item half()

clients are closed while the server believes them to be there: its side
stays open, silent, until C<clear()> or C<close()>.

=item garbage($bytes)

is sent to each client instead of the server's next piece, one time.

=item limit(up or down => $bytes, then =>, times =>, after =>)

counts the bytes of each connection that begins from now on, in that
direction, and forwards no more than so many; when one more comes, C<then>
happens to the connection: close, reset, hang or half.  So with down => 0 the
server has answered, and the client does not hear it.  With C<after>, counting
starts when the client has sent this text (the piece that has it is passed
on).  C<times> is how often, all connections together; without it, each.

=item clear()

takes all of it back.  Connections that hang go on.

=item stats()

{ connections, open, up, down, hits }: bytes are of all connections; hits are
limits that were reached.

=item wait_hits($n, $seconds)

true when so many limits were reached since the last C<limit()>.

=back

=cut

use strict;
use warnings;

use Errno qw(EAGAIN EINTR);
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use POSIX ();
use Socket qw(IPPROTO_TCP SOL_SOCKET SO_LINGER SOCK_STREAM TCP_NODELAY AF_UNIX
              PF_UNSPEC);
use Time::HiRes qw(sleep time);


# a client is not read when this much waits for its server, and vice versa

use constant BUFFER => 1024 * 1024;

use constant SLICE => 0.0005;


# (listen => port or path, to => port or path)

sub new {
    my ($class, %arg) = @_;

    my $self = bless { %arg, owner => $$ }, $class;

    my $listen = listener($arg{listen});

    socketpair(my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC)
        or die "socketpair: $!\n";

    my $pid = fork();
    die "fork: $!\n" unless defined $pid;

    if ($pid == 0) {
        CORE::close($ours);
        $SIG{$_} = 'DEFAULT' for qw(TERM HUP CHLD);
        $SIG{$_} = 'IGNORE' for qw(PIPE INT);

        eval { serve($theirs, $listen, \%arg); 1 } or print STDERR $@;
        POSIX::_exit(0);
    }

    CORE::close($theirs);
    CORE::close($listen);

    $self->{pid} = $pid;
    $self->{control} = $ours;

    return $self;
}


sub listener {
    my ($at) = @_;

    unlink($at) if $at =~ m{^/};

    my $socket = $at =~ m{^/}
        ? IO::Socket::UNIX->new(Local => $at, Listen => 64)
        : IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $at,
                                Listen => 64, ReuseAddr => 1);

    die "the proxy can not listen at $at: $!\n" unless $socket;

    chmod(0777, $at) if $at =~ m{^/};
    $socket->blocking(0);

    return $socket;
}


sub tell {
    my ($self, @words) = @_;

    my $line = join("\t", map { my $s = $_ // ''; $s =~ s/([^ -~]|%)/
                                sprintf('%%%02x', ord($1))/gex; $s } @words);

    local $SIG{PIPE} = 'IGNORE';

    syswrite($self->{control}, "$line\n") or die "the proxy is gone: $!\n";

    my $answer = '';

    until ($answer =~ /\n/) {
        my $n = sysread($self->{control}, $answer, 4096, length($answer));
        next if !defined $n && $! == EINTR;
        die "the proxy is gone\n" unless $n;
    }

    chomp($answer);
    die "proxy: $answer\n" unless $answer =~ s/^ok ?//;

    return $answer;
}


sub latency { my ($s, $n) = @_; $s->tell('latency', $n); $s }
sub slice   { my ($s, $n) = @_; $s->tell('slice', $n); $s }
sub cut     { my ($s, $how) = @_; $s->tell('cut', $how // 'close'); $s }
sub reset   { $_[0]->tell('end', 'reset'); $_[0] }
sub close   { $_[0]->tell('end', 'close'); $_[0] }
sub refuse  { $_[0]->tell('refuse'); $_[0] }
sub hang    { $_[0]->tell('hang'); $_[0] }
sub half    { $_[0]->tell('end', 'half'); $_[0] }
sub garbage { my ($s, $bytes) = @_; $s->tell('garbage', $bytes); $s }
sub clear   { $_[0]->tell('clear'); $_[0] }
sub port    { $_[0]{listen} }
sub pid     { $_[0]{pid} }


sub limit {
    my ($self, %arg) = @_;

    my $direction = defined $arg{up} ? 'up' : 'down';

    die "limit: up or down\n" unless defined $arg{$direction};
    die "limit: then $arg{then}\n"
        unless ($arg{then} //= 'close') =~ /^(?:close|reset|hang|half)\z/;

    $self->tell('limit', $direction, $arg{$direction}, $arg{then},
                $arg{times} // '', $arg{after} // '');

    return $self;
}


sub stats {
    my ($self) = @_;
    return { split(/[= ]/, $self->tell('stats')) };
}


sub wait_hits {
    my ($self, $n, $timeout) = @_;

    my $end = time() + ($timeout // 10);

    until ($self->stats()->{hits} >= $n) {
        return 0 if time() > $end;
        sleep(0.02);
    }

    return 1;
}


sub stop {
    my ($self) = @_;

    return unless $self->{pid} && $self->{owner} == $$;

    local $?;

    CORE::close($self->{control});
    kill('TERM', $self->{pid});
    waitpid($self->{pid}, 0);
    delete $self->{pid};

    unlink($self->{listen}) if $self->{listen} =~ m{^/};
}


sub DESTROY { $_[0]->stop() }


#
# the process: state is kept in one hash, connections are pairs of ends
#

sub serve {
    my ($control, $listen, $arg) = @_;

    my $p = { listen => $listen, at => $arg->{listen}, to => $arg->{to},
              control => $control, pairs => {}, line => '', total => 0,
              up => 0, down => 0, hits => 0 };

    defaults($p);

    for ( ;; ) {
        my ($read, $write, $timeout) = interest($p);
        my ($r, $w) = map { $_ // [] }
                      IO::Select->select($read, $write, undef, $timeout);
        my %ready = map { fileno($_) => 1 } @{ $r // [] };

        if ($ready{ fileno($control) }) {
            command($p) or return;
        }

        take($p) if $p->{listen} && $ready{ fileno($p->{listen}) };

        for my $pair (values %{ $p->{pairs} }) {
            for my $way (qw(up down)) {
                my $from = $pair->{$way}{from};

                receive($p, $pair, $way)
                    if !$pair->{over} && $ready{ fileno($from) // -1 };
            }

            transmit($p, $pair, $_) for qw(up down);
            finish($p, $pair);
        }
    }
}


sub defaults {
    my ($p) = @_;

    $p->{latency} = 0;
    $p->{slice} = 0;
    $p->{cut} = '';
    $p->{hang} = 0;
    $p->{garbage} = '';
    $p->{limit} = undef;
}


# sockets to wait for, and how long at most

sub interest {
    my ($p) = @_;

    my $read = IO::Select->new($p->{control});
    my $write = IO::Select->new();
    my $timeout;

    $read->add($p->{listen}) if $p->{listen};

    return ($read, $write, undef) if $p->{hang};

    for my $pair (values %{ $p->{pairs} }) {
        next if $pair->{hangs} || $pair->{half};

        for my $way (qw(up down)) {
            my $flow = $pair->{$way};
            my ($first) = @{ $flow->{queue} };

            $read->add($flow->{from})
                if !$flow->{eof} && !$pair->{over}
                   && $flow->{size} < BUFFER;

            next unless $first;

            my $left = $first->[0] - time();

            if ($left <= 0) {
                $write->add($flow->{to});

            } elsif (!defined $timeout || $left < $timeout) {
                $timeout = $left;
            }
        }
    }

    return ($read, $write, $timeout);
}


sub take {
    my ($p) = @_;

    my $client = $p->{listen}->accept() or return;

    $p->{total}++;

    return drop($client, $p->{cut} eq 'reset') if $p->{cut};

    my $server = $p->{to} =~ m{^/}
        ? IO::Socket::UNIX->new(Peer => $p->{to})
        : IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                PeerPort => $p->{to});

    return drop($client) unless $server;

    for ($client, $server) {
        $_->blocking(0);
        setsockopt($_, IPPROTO_TCP, TCP_NODELAY, 1) if $_->sockdomain()
                                                       != AF_UNIX;
    }

    my $pair = { client => $client, server => $server };

    $pair->{up} = { from => $client, to => $server };
    $pair->{down} = { from => $server, to => $client };

    for (@$pair{qw(up down)}) {
        @$_{qw(queue size counted)} = ([], 0, 0);
    }

    $pair->{limit} = $p->{limit};
    $pair->{seen} = '';
    $pair->{counting} = $p->{limit} && $p->{limit}{after} eq '' ? 1 : 0;

    $p->{pairs}{ fileno($client) } = $pair;
}


sub drop {
    my ($socket, $reset) = @_;

    setsockopt($socket, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0)) if $reset;
    CORE::close($socket);
}


sub receive {
    my ($p, $pair, $way) = @_;

    my $flow = $pair->{$way};
    my $n = sysread($flow->{from}, my $data, 65536);

    return if !defined $n && ($! == EAGAIN || $! == EINTR);

    if (!$n) {
        $flow->{eof} = 1;
        return;
    }

    if ($way eq 'down' && $p->{garbage} ne '') {
        $data = $p->{garbage};
        $p->{garbage} = '';
        $n = length($data);
    }

    my $limit = $pair->{limit};

    if ($limit && $pair->{counting} && $limit->{way} eq $way) {
        $n = limited($p, $pair, $way, $n);
        $data = substr($data, 0, $n);
    }

    if ($limit && !$pair->{counting} && $way eq 'up') {
        $pair->{seen} = substr($pair->{seen}, -100) . $data;

        $pair->{counting} = index($pair->{seen}, $limit->{after}) >= 0;
    }

    return if $n == 0;

    push @{ $flow->{queue} }, [ time() + $p->{latency}, $data ];
    $flow->{size} += $n;
}


# how many of n bytes may pass; the end of the connection is noted

sub limited {
    my ($p, $pair, $way, $n) = @_;

    my $limit = $pair->{limit};
    my $flow = $pair->{$way};
    my $left = $limit->{bytes} - $flow->{counted};

    $flow->{counted} += $n;

    return $n if $n <= $left || (defined $limit->{times}
                                 && $limit->{times}-- <= 0);

    $p->{hits}++;
    $pair->{over} = $limit->{then};

    return $left < 0 ? 0 : $left;
}


sub transmit {
    my ($p, $pair, $way) = @_;

    return if $p->{hang} || $pair->{hangs} || $pair->{half} || $pair->{gone};

    my $flow = $pair->{$way};

    while (my $first = $flow->{queue}[0]) {
        return if $first->[0] > time();

        my $len = length($first->[1]);
        my $n = syswrite($flow->{to}, $first->[1],
                         $p->{slice} && $p->{slice} < $len ? $p->{slice}
                                                           : $len);

        if (!defined $n) {
            return if $! == EAGAIN || $! == EINTR;
            $pair->{broken} = 1;
            return;
        }

        $p->{$way} += $n;
        $flow->{size} -= $n;
        substr($first->[1], 0, $n, '');
        shift @{ $flow->{queue} } if $first->[1] eq '';

        # sent at once, slices would arrive as one

        if ($p->{slice}) {
            $first->[0] = time() + SLICE;
            return;
        }
    }
}


# ends the connection when it is over, and what was passed is sent

sub finish {
    my ($p, $pair) = @_;

    return if $p->{hang} || $pair->{hangs} || $pair->{gone} || $pair->{half};

    my $sent = !@{ $pair->{up}{queue} } && !@{ $pair->{down}{queue} };

    if (my $over = $pair->{over}) {
        return unless $pair->{broken} || $sent;
        return end($p, $pair, $over);
    }

    if ($pair->{broken}) {
        return end($p, $pair, 'close');
    }

    for my $way (qw(up down)) {
        my $flow = $pair->{$way};

        if ($flow->{eof} && !@{ $flow->{queue} } && !$flow->{told}) {
            $flow->{told} = 1;
            shutdown($flow->{to}, 1);
        }
    }

    end($p, $pair, 'close') if $pair->{up}{told} && $pair->{down}{told};
}


sub end {
    my ($p, $pair, $how) = @_;

    return if $pair->{gone};

    if ($how eq 'hang') {
        $pair->{hangs} = 1;
        return;
    }

    delete $p->{pairs}{ fileno($pair->{client}) } unless $pair->{half};

    if ($how eq 'half') {
        return if $pair->{half};

        CORE::close($pair->{client});
        $pair->{half} = 1;
        $p->{pairs}{"half $p->{total} $p->{hits} " . time()} = $pair;
        return;
    }

    $pair->{gone} = 1;
    drop($pair->{client}, $how eq 'reset') unless $pair->{half};
    drop($pair->{server}, $how eq 'reset');
}


sub end_all {
    my ($p, $how) = @_;

    end($p, $_, $how) for values %{ $p->{pairs} };

    # those that were half open before

    for my $key (keys %{ $p->{pairs} }) {
        delete $p->{pairs}{$key} if $p->{pairs}{$key}{gone};
    }
}


# one line of the test; false when the test is gone

sub command {
    my ($p) = @_;

    my $n = sysread($p->{control}, $p->{line}, 65536, length($p->{line}));

    return 1 if !defined $n && $! == EINTR;
    return 0 unless $n;

    while ($p->{line} =~ s/^([^\n]*)\n//) {
        my ($verb, @words) = map { s/%(..)/chr(hex($1))/ger }
                             split(/\t/, $1, -1);
        my $answer = eval { obey($p, $verb, @words) };

        syswrite($p->{control},
                 defined $answer ? "ok $answer\n" : 'failed: '
                                   . ($@ =~ s/\n.*//sr) . "\n");
    }

    return 1;
}


sub obey {
    my ($p, $verb, @words) = @_;

    if ($verb eq 'stats') {
        return "connections=$p->{total} open=" . keys(%{ $p->{pairs} })
               . " up=$p->{up} down=$p->{down} hits=$p->{hits}";
    }

    if ($verb eq 'clear') {
        defaults($p);
        $p->{listen} //= listener($p->{at});

        for my $pair (values %{ $p->{pairs} }) {
            end($p, $pair, 'close') if $pair->{half};
            delete @$pair{qw(limit over hangs)};
            $pair->{counting} = 0;
        }

        end_all($p, 'none') if grep { $_->{gone} } values %{ $p->{pairs} };

    } elsif ($verb =~ /^(?:latency|slice|garbage)\z/) {
        $p->{$verb} = $words[0];

    } elsif ($verb eq 'cut') {
        $p->{cut} = $words[0];
        end_all($p, $words[0]);

    } elsif ($verb eq 'end') {
        end_all($p, $words[0]);

    } elsif ($verb eq 'refuse') {
        CORE::close($p->{listen}) if $p->{listen};
        $p->{listen} = undef;

    } elsif ($verb eq 'hang') {
        $p->{hang} = 1;

    } elsif ($verb eq 'limit') {
        my ($way, $bytes, $then, $times, $after) = @words;

        $p->{hits} = 0;
        $p->{limit} = { way => $way, bytes => $bytes, then => $then,
                        times => $times eq '' ? undef : $times,
                        after => $after };

    } else {
        die "no such verb: $verb\n";
    }

    return '';
}


1;
