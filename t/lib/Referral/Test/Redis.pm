package Referral::Test::Redis;

# Copyright (C) The nginx referral module authors
#
# A private Redis on a unix socket in the test's directory, and a client.

use strict;
use warnings;

use IO::Socket::INET;
use IO::Socket::UNIX;
use Time::HiRes qw(sleep time);

use Referral::Test::Process;


# (dir =>, name =>, port => TCP port or undef, args => [], auth => password
# for the client)

sub new {
    my ($class, %arg) = @_;

    my $self = bless { args => [], name => 'redis', %arg }, $class;

    $self->{home} = "$self->{dir}/$self->{name}";
    $self->{path} = "$self->{home}/sock";
    mkdir($self->{home}) or die "$self->{home}: $!\n";

    $self->start() unless $arg{start_later};

    return $self;
}


sub path { $_[0]{path} }
sub port { $_[0]{port} }
sub url  { 'unix:' . $_[0]{path} }


sub start {
    my ($self) = @_;

    unlink($self->{path});

    $self->{process} = Referral::Test::Process->new(
        name => $self->{name},
        log  => "$self->{home}/log",
        argv => [ 'redis-server', '--port', $self->{port} // 0,
                  '--bind', '127.0.0.1', '--unixsocket', $self->{path},
                  '--unixsocketperm', '777', '--dir', $self->{home},
                  '--save', '', '--appendonly', 'no', '--daemonize', 'no',
                  @{ $self->{args} } ]);

    my $end = time() + 10;

    until ($self->answers()) {
        die "redis does not start:\n", $self->{process}->output()
            if time() > $end || !$self->{process}->alive();

        sleep(0.02);
    }

    return $self;
}


sub answers {
    my ($self) = @_;

    my $reply = eval { $self->cmd('PING') };

    return 1 if defined $reply;
    return $@ =~ /^(?:NOAUTH|LOADING|DENIED|ERR)/ ? 1 : 0;
}


sub stop   { $_[0]->disconnect(); $_[0]{process}->stop('TERM'); $_[0] }
sub kill9  { $_[0]->disconnect(); $_[0]{process}->kill9(); $_[0] }
sub pause  { $_[0]{process}->pause(); $_[0] }
sub resume { $_[0]{process}->resume(); $_[0] }
sub pid    { $_[0]{process}->pid() }
sub alive  { $_[0]{process} && $_[0]{process}->alive() }

sub restart { $_[0]->stop()->start() }


sub disconnect {
    my ($self) = @_;

    close(delete $self->{client}) if $self->{client};
}


# One command: the reply (undef for nil, a reference for a list).  Dies with
# Redis's own words on an error reply.

sub cmd {
    my ($self, @words) = @_;

    my $sock = $self->{client};
    my $fresh = !$sock;

    unless ($sock) {
        $sock = IO::Socket::UNIX->new(Peer => $self->{path})
            or die "connect $self->{path}: $!\n";

        $self->{client} = $sock;

        if (defined $self->{auth}) {
            print $sock encode('AUTH', $self->{auth});
            $self->reply($sock);
        }
    }

    local $SIG{PIPE} = 'IGNORE';

    print $sock encode(@words);
    $sock->flush();

    my $reply = eval { $self->reply($sock) };

    if ($@) {
        my $error = $@;

        if ($error =~ /^closed/) {
            $self->disconnect();
            return $self->cmd(@words) unless $fresh;
        }

        die $error;
    }

    return $reply;
}


sub encode {
    my (@words) = @_;

    my $text = '*' . @words . "\r\n";

    for (@words) {
        my $word = "$_";
        utf8::encode($word) if utf8::is_utf8($word);
        $text .= '$' . length($word) . "\r\n$word\r\n";
    }

    return $text;
}


sub reply {
    my ($self, $sock) = @_;

    my $line = <$sock>;
    die "closed\n" unless defined $line;

    $line =~ s/\r\n\z//;

    my $type = substr($line, 0, 1, '');

    return $line if $type eq '+' || $type eq ':';
    die "$line\n" if $type eq '-';

    if ($type eq '$') {
        return undef if $line < 0;

        my $data = '';

        while (length($data) < $line + 2) {
            my $n = read($sock, $data, $line + 2 - length($data),
                         length($data));
            die "closed\n" unless $n;
        }

        return substr($data, 0, $line);
    }

    if ($type eq '*') {
        return undef if $line < 0;
        return [ map { $self->reply($sock) } 1 .. $line ];
    }

    die "unexpected reply \"$type$line\"\n";
}


# (CODE, field => value, ...): writes a code's hash, replacing the old one

sub code {
    my ($self, $code, %field) = @_;

    $field{url} //= 'https://example.com/' . lc($code);

    # a reader must not come between the two and find no code

    $self->cmd('MULTI');
    $self->cmd('DEL', "referral:code:$code");
    $self->cmd('HSET', "referral:code:$code", %field);
    $self->cmd('EXEC');

    return $self;
}


1;
