package Referral::Test::Http;

# Copyright (C) The nginx referral module authors
#
# A small HTTP/1.1 client that sends exactly what it is told.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use Time::HiRes qw(time);


# (port =>, host => address): a connection; dies when refused

sub connect {
    my ($class, %arg) = @_;

    my $sock = IO::Socket::INET->new(PeerAddr => $arg{host} // '127.0.0.1',
                                     PeerPort => $arg{port},
                                     Proto    => 'tcp',
                                     Timeout  => 5)
        or die "connect to port $arg{port}: $@\n";

    $sock->autoflush(1);

    return bless { sock => $sock, buf => '', timeout => $arg{timeout} // 10 },
           $class;
}


sub socket { $_[0]{sock} }


# The text of a request.  headers is a hash or, to repeat a name or to keep
# an order, a list of pairs.  Host and Connection are added unless given;
# undef as a value leaves a header out.

sub request {
    my (%arg) = @_;

    my $method = $arg{method} // 'GET';
    my $path = $arg{path} // '/';
    my @pairs = ref($arg{headers}) eq 'ARRAY'
                ? @{ $arg{headers} } : %{ $arg{headers} // {} };
    my $version = $arg{version} // '1.1';
    my (%seen, $text);

    for (my $i = 0; $i < @pairs; $i += 2) {
        $seen{lc $pairs[$i]} = 1;
    }

    $text = "$method $path HTTP/$version\r\n";

    $text .= 'Host: ' . ($arg{host} // 'localhost') . "\r\n"
        unless $seen{host};

    $text .= 'Connection: ' . ($arg{keepalive} ? 'keep-alive' : 'close')
             . "\r\n" unless $seen{connection};

    if (defined $arg{body} && !$seen{'content-length'}
        && !$seen{'transfer-encoding'})
    {
        $text .= 'Content-Length: ' . length($arg{body}) . "\r\n";
    }

    while (my ($name, $value) = splice(@pairs, 0, 2)) {
        $text .= "$name: $value\r\n" if defined $value;
    }

    return $text . "\r\n" . ($arg{body} // '');
}


sub write {
    my ($self, $text) = @_;

    local $SIG{PIPE} = 'IGNORE';

    while (length $text) {
        my $n = syswrite($self->{sock}, $text);
        return 0 unless $n;
        substr($text, 0, $n, '');
    }

    return 1;
}


# sends a request on this connection, which stays open, and returns the
# response

sub ask {
    my ($self, $path, %arg) = @_;

    $self->write(request(keepalive => 1, %arg, path => $path));

    return $self->response($arg{method} // 'GET');
}


sub fill {
    my ($self, $end) = @_;

    my $left = $end - time();
    return 0 if $left <= 0;

    return 0 unless IO::Select->new($self->{sock})->can_read($left);

    my $n = sysread($self->{sock}, $self->{buf}, 65536, length $self->{buf});
    $self->{eof} = 1 unless $n;

    return $n ? 1 : 0;
}


# The next response on the connection; its status is 0 when none came.

sub response {
    my ($self, $method) = @_;

    my $end = time() + $self->{timeout};
    my $r;

    for ( ;; ) {
        $r = parse(\$self->{buf}, $method // 'GET', $self->{eof});
        return $r if $r;
        last if $self->{eof};
        last unless $self->fill($end) || $self->{eof};
    }

    return Referral::Test::Http::Response->new(status => 0, headers => [],
                                               body => $self->{buf},
                                               timeout => !$self->{eof});
}


# 1 when the server closed and nothing is left to read

sub closed {
    my ($self, $timeout) = @_;

    my $end = time() + ($timeout // 5);

    while (!$self->{eof} && time() < $end) {
        $self->fill($end);
    }

    return $self->{eof} && $self->{buf} eq '' ? 1 : 0;
}


sub close {
    my ($self) = @_;

    close(delete $self->{sock}) if $self->{sock};
}


# takes one response from the buffer, undef when it is not complete

sub parse {
    my ($buf, $method, $eof) = @_;

    my ($head, $rest, @headers, %r);

    while ($$buf =~ /\AHTTP\/1\.[01] 1\d\d [^\n]*\n/) {
        return undef unless $$buf =~ s/\A.*?\r\n\r\n//s;
    }

    return undef unless $$buf =~ /\A(.*?\r\n)\r\n/s;

    $head = $1;
    $rest = substr($$buf, length($head) + 2);

    my ($line, @lines) = split(/\r\n/, $head);
    return undef unless $line =~ m{^HTTP/[\d.]+ (\d+)};

    $r{status} = $1 + 0;
    $r{line} = $line;
    $r{raw} = "$head\r\n";

    for (@lines) {
        push @headers, [ $1, $2 ] if /^([^:]+):\s*(.*?)\s*$/;
    }

    $r{headers} = \@headers;

    my %h = map { lc($_->[0]) => $_->[1] } @headers;

    if ($method eq 'HEAD' || $r{status} == 204 || $r{status} == 304) {
        $r{body} = '';

    } elsif (lc($h{'transfer-encoding'} // '') eq 'chunked') {
        my $body = '';

        for ( ;; ) {
            return undef unless $rest =~ s/\A([0-9a-fA-F]+)[^\r\n]*\r\n//;

            my $n = hex($1);

            if ($n == 0) {
                return undef unless $rest =~ s/\A.*?\r\n//s;
                last;
            }

            return undef if length($rest) < $n + 2;
            $body .= substr($rest, 0, $n);
            $rest = substr($rest, $n + 2);
        }

        $r{body} = $body;

    } elsif (defined $h{'content-length'}) {
        return undef if length($rest) < $h{'content-length'};
        $r{body} = substr($rest, 0, $h{'content-length'});
        $rest = substr($rest, $h{'content-length'});

    } else {
        return undef unless $eof;
        $r{body} = $rest;
        $rest = '';
    }

    $$buf = $rest;

    return Referral::Test::Http::Response->new(%r);
}


# Sends all texts at the same time, each on its own connection, and returns
# the responses in the order of the texts.

sub parallel {
    my ($port, $timeout, @texts) = @_;

    my (@conns, @result, %by_fd);
    my $end = time() + $timeout;
    my $select = IO::Select->new();

    for my $i (0 .. $#texts) {
        my $c = Referral::Test::Http->connect(port => $port,
                                              timeout => $timeout);
        push @conns, $c;
        $by_fd{fileno($c->{sock})} = $i;
        $select->add($c->{sock});
    }

    $conns[$_]->write($texts[$_]) for 0 .. $#texts;

    while ($select->count()) {
        my $left = $end - time();
        last if $left <= 0;

        for my $sock ($select->can_read($left)) {
            my $i = $by_fd{fileno($sock)};
            my $c = $conns[$i];
            my ($method) = $texts[$i] =~ /^(\S+)/;
            my $n = sysread($sock, $c->{buf}, 65536, length $c->{buf});

            $c->{eof} = 1 unless $n;

            my $r = parse(\$c->{buf}, $method, $c->{eof});

            if ($r || $c->{eof}) {
                $r->{at} = time() if $r;
                $result[$i] = $r;
                $select->remove($sock);
            }
        }
    }

    $_->close() for @conns;

    return map {
        $_ // Referral::Test::Http::Response->new(status => 0, headers => [],
                                                  body => '')
    } @result[0 .. $#texts];
}


package Referral::Test::Http::Response;


sub new {
    my ($class, %arg) = @_;
    return bless { %arg }, $class;
}


sub status { $_[0]{status} }
sub body   { $_[0]{body} }


# the value of a header: the first, or all of them in list context with all()

sub header {
    my ($self, $name) = @_;
    return ($self->all($name))[0];
}


sub all {
    my ($self, $name) = @_;
    return map { $_->[1] } grep { lc($_->[0]) eq lc($name) }
           @{ $self->{headers} };
}


# (name): value of a cookie that this response sets; undef when it does not

sub cookie {
    my ($self, $name) = @_;

    for ($self->all('Set-Cookie')) {
        return $1 if /^\Q$name\E=([^;]*)/;
    }

    return undef;
}


1;
