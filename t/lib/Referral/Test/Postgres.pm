package Referral::Test::Postgres;

# Copyright (C) The nginx referral module authors
#
# A private Postgres cluster on a unix socket in the test's directory.

use strict;
use warnings;

use Time::HiRes qw(sleep time);

use Referral::Test::Process;


# (dir =>, name =>, fsync => 0 or 1, conf => { setting => value },
#  port => TCP port on loopback or undef)

sub new {
    my ($class, %arg) = @_;

    my $self = bless { name => 'pg', fsync => 0, conf => {}, db => 'referral',
                       %arg }, $class;

    $self->{home} = "$self->{dir}/$self->{name}";
    $self->{data} = "$self->{home}/data";
    $self->{user} = $> == 0 ? 'postgres' : scalar(getpwuid($>));
    $self->{bin} = bindir();

    mkdir($self->{home}, 0755) or die "$self->{home}: $!\n";
    chmod(0755, $self->{home});

    if ($> == 0) {
        my ($uid, $gid) = (getpwnam('postgres'))[2, 3];
        die "there is no user postgres: install postgresql\n"
            unless defined $uid;
        chown($uid, $gid, $self->{home});
    }

    my $init = $self->run("$self->{bin}/initdb", '-D', $self->{data}, '-U',
                          'postgres', '-A', 'trust', '-E', 'UTF8',
                          '--locale', 'C.UTF-8', '--no-sync', '--no-instructions');
    die "initdb: $init->{output}" if $init->{status};

    $self->start();

    my $r = $self->try("CREATE DATABASE $self->{db}", 'postgres');
    die "CREATE DATABASE: $r->{error}" if $r->{status};

    return $self;
}


# the newest server's programs

sub bindir {
    my @dirs = sort { ($b =~ m{/(\d+)/})[0] <=> ($a =~ m{/(\d+)/})[0] }
               glob('/usr/lib/postgresql/[0-9]*/bin');

    for (@dirs) {
        return $_ if -x "$_/initdb" && -x "$_/postgres";
    }

    die "no PostgreSQL server in /usr/lib/postgresql: install postgresql\n";
}


sub run {
    my ($self, @argv) = @_;

    # its output alone: logs are appended to

    my $log = "$self->{home}/init.log";
    unlink($log);

    my $process = Referral::Test::Process->new(
        name => 'run', argv => \@argv, log => $log,
        user => $self->{user}, env => { LC_ALL => 'C.UTF-8' });

    my $status = $process->wait(120);

    return { status => $status // -1, output => $process->output() };
}


sub start {
    my ($self) = @_;

    my $port = $self->{port} // 5432;
    my $fsync = $self->{fsync} ? 'on' : 'off';
    my %conf = (
        listen_addresses => defined $self->{port} ? '127.0.0.1' : '',
        unix_socket_directories => $self->{home},
        port => $port,
        fsync => $fsync,
        max_connections => 40,
        shared_buffers => '32MB',
        log_min_messages => 'info',
        timezone => 'Asia/Kolkata',
        %{ $self->{conf} },
    );

    $self->{process} = Referral::Test::Process->new(
        name => $self->{name}, user => $self->{user}, death => 'INT',
        log => "$self->{home}/log",
        env => { LC_ALL => 'C.UTF-8' },
        argv => [ "$self->{bin}/postgres", '-D', $self->{data},
                  map { ('-c', "$_=$conf{$_}") } sort keys %conf ]);

    my $end = time() + 30;

    for ( ;; ) {
        last if $self->try('SELECT 1', 'postgres')->{status} == 0;

        die "Postgres does not start:\n", $self->{process}->output()
            if time() > $end || !$self->{process}->alive();

        sleep(0.05);
    }

    return $self;
}


# fast shutdown; (signal => 'QUIT') is an immediate one, as after a crash

sub stop {
    my ($self, %arg) = @_;

    $self->{process}->stop($arg{signal} // 'INT', 30);

    return $self;
}


sub restart { my $self = shift; $self->stop(@_)->start() }
sub pid     { $_[0]{process}->pid() }
sub alive   { $_[0]{process} && $_[0]{process}->alive() }
sub log     { $_[0]{process}->output() }


# (user =>, db =>): a libpq connection string

sub conninfo {
    my ($self, %arg) = @_;

    my $port = $self->{port} // 5432;

    return "host=$self->{home} port=$port dbname=" . ($arg{db} // $self->{db})
           . ' user=' . ($arg{user} // 'postgres');
}


# ($sql, $db, $user): { status, rows, error }; values are text, NULL is undef

sub try {
    my ($self, $sql, $db, $user) = @_;

    my $err = "$self->{home}/psql.err.$$";
    my $pid = open(my $fh, '-|');
    die "fork: $!\n" unless defined $pid;

    if ($pid == 0) {
        open(STDIN, '<', '/dev/null');
        open(STDERR, '>', $err);

        $ENV{PGOPTIONS} = '-c client_min_messages=warning';
        $ENV{PGCONNECT_TIMEOUT} = 10;

        exec('psql', '-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1',
             '-F', "\x1f", '-R', "\x1e", '-P', "null=\x1d",
             '-d', $self->conninfo(db => $db, user => $user), '-c', $sql)
            or POSIX::_exit(127);
    }

    binmode($fh, ':encoding(UTF-8)');

    my $out = do { local $/; <$fh> } // '';
    close($fh);
    my $status = $?;

    open(my $eh, '<', $err);
    my $error = do { local $/; <$eh> } // '';
    unlink($err);

    $out =~ s/\n\z//;

    my @rows = map {
        [ map { $_ eq "\x1d" ? undef : $_ } split(/\x1f/, $_, -1) ]
    } split(/\x1e/, $out, -1);

    return { status => $status, rows => \@rows, error => $error };
}


# rows as a list of array references; dies with psql's words on an error

sub rows {
    my ($self, $sql, %arg) = @_;

    my $r = $self->try($sql, $arg{db}, $arg{user});
    die "psql: $r->{error}\n" if $r->{status};

    return @{ $r->{rows} };
}


# the first column of the first row

sub value {
    my ($self, $sql, %arg) = @_;

    my ($row) = $self->rows($sql, %arg);

    return $row ? $row->[0] : undef;
}


# runs files with psql, each in one transaction

sub file {
    my ($self, @files) = @_;

    for my $file (@files) {
        my $out = qx(psql -X -q -1 -v ON_ERROR_STOP=1 -d '@{[
                     $self->conninfo() ]}' -f '$file' 2>&1);
        die "$file: $out\n" if $?;
    }

    return $self;
}


1;
