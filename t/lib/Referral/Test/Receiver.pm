package Referral::Test::Receiver;

# Copyright (C) The nginx referral module authors
#
# A receiver of webhooks: a plain HTTP server, a process for each connection,
# that answers as its path says and writes down what it got.
#
#     /NNN               status NNN (301 and such with a Location)
#     /NNN/after/VALUE   the same with Retry-After, "_" for a space
#     /hang              never answers
#     /drip              sends a byte of its body now and then, without end
#     /garbage           what is no HTTP
#     /close             closes the connection
#     /large             200 and 1 MB
#     /slow/SECONDS      200, later
#     /mode              as the path in the file says that set_mode() writes

use strict;
use warnings;

use Fcntl qw(:flock);
use IO::Socket::INET;
use JSON::PP ();
use POSIX ();
use Time::HiRes qw(sleep time);

use Referral::Test::Process;


# (dir =>, name =>, port =>, tls => [certificate, key])

sub new {
    my ($class, %arg) = @_;

    my $self = bless { name => 'receiver', %arg }, $class;

    $self->{got} = "$self->{dir}/$self->{name}.got";
    $self->{mode} = "$self->{dir}/$self->{name}.mode";

    $self->set_mode('/200');
    $self->start();

    return $self;
}


sub start {
    my ($self) = @_;

    (my $lib = $INC{'Referral/Test/Receiver.pm'}) =~ s{/Referral/Test/.*}{};

    $self->{process} = Referral::Test::Process->new(
        name => $self->{name}, log => "$self->{dir}/$self->{name}.log",
        argv => [ $^X, "-I$lib", '-MReferral::Test::Receiver', '-e',
                  'Referral::Test::Receiver::serve(@ARGV)', $self->{port},
                  $self->{got}, $self->{mode} ],
        cwd => $self->{cwd} // do { require Cwd; Cwd::getcwd() });

    my $end = time() + 10;

    until (IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                 PeerPort => $self->{port})) {
        die "the receiver does not start:\n", $self->{process}->output()
            if time() > $end || !$self->{process}->alive();
        sleep(0.02);
    }

    return $self;
}


sub stop  { $_[0]{process}->stop('TERM', 10); $_[0] }
sub alive { $_[0]{process} && $_[0]{process}->alive() }
sub url   { "http://127.0.0.1:$_[0]{port}" . ($_[1] // '/200') }

sub set_mode {
    my ($self, $path) = @_;

    open(my $fh, '>', "$self->{mode}.new") or die;
    print $fh $path;
    close($fh);
    rename("$self->{mode}.new", $self->{mode});
}


# what came in: { at (Unix time), method, path, headers (lower case), body }

sub got {
    my ($self) = @_;
    my @got;

    if (open(my $fh, '<', $self->{got})) {
        flock($fh, LOCK_SH);
        @got = map { JSON::PP::decode_json($_) } <$fh>;
    }

    return @got;
}

sub forget { unlink($_[0]{got}); $_[0] }


# the server

sub serve {
    my ($port, $got, $mode) = @_;

    my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1',
                                       LocalPort => $port, Listen => 128,
                                       ReuseAddr => 1)
        or die "port $port: $!\n";

    setpgrp(0, 0);
    $SIG{CHLD} = 'IGNORE';
    $SIG{TERM} = sub {
        $SIG{TERM} = 'IGNORE';
        kill('TERM', -$$);
        POSIX::_exit(0);
    };

    for ( ;; ) {
        my $client = $server->accept() or next;
        my $pid = fork();

        if (defined $pid && $pid == 0) {
            close($server);
            $SIG{TERM} = 'DEFAULT';
            $SIG{PIPE} = 'DEFAULT';
            alarm(60);
            answer($client, $got, $mode);
            POSIX::_exit(0);
        }

        close($client);
    }
}


sub answer {
    my ($client, $got, $mode) = @_;

    my $text = '';

    until ($text =~ /\r\n\r\n/) {
        sysread($client, $text, 65536, length($text)) or return;
    }

    my ($head, $body) = split(/\r\n\r\n/, $text, 2);
    my ($line, @lines) = split(/\r\n/, $head);
    my ($method, $path) = split(/ /, $line);
    my %headers;

    for (@lines) {
        my ($name, $value) = /^([^:]+):\s*(.*?)\s*$/ or next;
        $headers{lc $name} = $value;
    }

    while (length($body) < ($headers{'content-length'} // 0)) {
        sysread($client, $body, 65536, length($body)) or last;
    }

    open(my $fh, '>>', $got) or die;
    flock($fh, LOCK_EX);
    syswrite($fh, JSON::PP->new->ascii->canonical->encode({
        at => time(), method => $method, path => $path, headers => \%headers,
        body => $body }) . "\n");
    close($fh);

    if ($path =~ m{^/mode}) {
        open(my $mh, '<', $mode) or die;
        $path = <$mh>;
    }

    respond($client, $path);
}


sub respond {
    my ($client, $path) = @_;

    if ($path =~ m{^/hang}) {
        sleep(59);

    } elsif ($path =~ m{^/drip}) {
        syswrite($client, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
        syswrite($client, 'x') && sleep(0.1) for 1 .. 500;

    } elsif ($path =~ m{^/garbage}) {
        syswrite($client, "\x00\x01SSH-2.0 HTTP\n\xff" x 20);

    } elsif ($path =~ m{^/close}) {
        return;

    } elsif ($path =~ m{^/large}) {
        syswrite($client, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
                 . 'y' x 1_000_000);

    } else {
        my ($status) = $path =~ m{^/(\d{3})};
        my ($after) = $path =~ m{/after/(.*)};

        if ($path =~ m{^/slow/([\d.]+)}) {
            sleep($1);
            $status = 200;
        }

        my $body = $status == 204 ? '' : "status $status \"\xff\x00\\\n";
        my $head = "HTTP/1.1 $status Whatever\r\nConnection: close\r\n";

        $head .= 'Content-Length: ' . length($body) . "\r\n"
            if $status != 204;
        $head .= 'Retry-After: ' . ($after =~ tr/_/ /r) . "\r\n" if $after;
        $head .= "Location: /200\r\n" if $status =~ /^3/;

        syswrite($client, "$head\r\n$body");
    }
}


1;
