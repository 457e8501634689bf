package Referral::Test::Nginx;

# Copyright (C) The nginx referral module authors
#
# The part of Referral::Test that writes configurations and runs nginx.

use strict;
use warnings;

use Test::More;

use Referral::Test::Process;


sub globals {
    my ($self, %arg) = @_;

    my $dir = $self->{dir};
    my $level = $ENV{REFERRAL_TEST_DEBUG} ? 'debug' : 'info';
    my $text = '';

    $text .= "load_module $self->{module};\n" if $self->{module} ne '';
    $text .= "user " . ($arg{user} // 'root') . ";\n" if $> == 0;
    $text .= "daemon off;\npid $dir/nginx.pid;\n"
             . 'error_log ' . ($arg{error_log} // "$dir/error.log")
             . " $level;\n";

    return $text;
}


sub http_globals {
    my ($self) = @_;

    return join('', map { "    ${_}_temp_path $self->{dir}/temp/$_;\n" }
                    qw(client_body proxy fastcgi uwsgi scgi));
}


sub expand {
    my ($self, $text, %arg) = @_;

    my $redis = $self->{redis}{redis};

    $text =~ s/%%GLOBALS%%/$self->globals(%arg)/ge;
    $text =~ s/%%HTTP_GLOBALS%%/$self->http_globals()/ge;
    $text =~ s/%%DIR%%/$self->{dir}/g;
    $text =~ s/%%ROOT%%/$self->{root}/g;
    $text =~ s/%%PORT%%/$self->port('http')/ge;
    $text =~ s/%%PORT:(\w+)%%/$self->port($1)/ge;
    $text =~ s/%%REDIS%%/$redis ? $redis->url() : 'no-redis'/ge;

    return $text;
}


# two keys of 32 bytes; the second was the first before

sub secret {
    my ($self) = @_;

    my $path = "$self->{dir}/secret";

    unless (-e $path) {
        $self->write_file('secret',
            "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
            . "k0:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=\n", 0600);
    }

    return $path;
}


sub defaults {
    my ($self, $all, %arg) = @_;

    my $text = '';

    return $text if defined $arg{defaults} && !$arg{defaults};

    $text .= "    referral_zone 1m;\n" unless $all =~ /\breferral_zone\b/;

    # a busy machine may well keep Redis waiting for longer than 100 ms

    $text .= "    referral_redis %%REDIS%% timeout=2s;\n"
        if $self->{redis}{redis} && $all !~ /\breferral_redis\b/;

    if ($all !~ /\breferral_journal\b/) {
        my $dir = "$self->{dir}/journal";

        if (mkdir($dir) && defined $arg{user} && $> == 0) {
            my ($uid, $gid) = (getpwnam($arg{user}))[2, 3];
            chown($uid, $gid, $dir);
        }

        chmod(02770, $dir);

        $text .= "    referral_journal $dir size=64m segment=256k;\n";
    }

    if ($arg{cookie}) {
        $text .= '    referral_secret ' . $self->secret() . ";\n"
            unless $all =~ /\breferral_secret\b/;
        $text .= "    referral_consent not_required;\n"
            unless $all =~ /\breferral_consent\b/;

    } elsif ($all !~ /\breferral_(?:cookie|secret)\b/) {
        $text .= "    referral_cookie off;\n";
    }

    return $text;
}


sub configuration {
    my ($self, %arg) = @_;

    return $self->expand($arg{conf}, %arg) if defined $arg{conf};

    my ($http, $server, $main) = map { $arg{$_} // '' } qw(http server main);
    my $workers = $arg{workers} // 1;
    my $listen = $arg{listen} // '';
    my $events = $arg{events} // '';
    my $defaults = $self->defaults($http . $server, %arg);
    my $access = "$http$server" =~ /\baccess_log\b/ ? '' : 'access_log off;';
    my $processes = $main =~ /\bworker_processes\b/
                    ? '' : "worker_processes $workers;";
    my $status = '';

    if ($arg{status}) {
        $status = 'server { listen 127.0.0.1:%%PORT:status%%;'
                  . ' location = /status { referral_status; } }';
    }

    return $self->expand(<<END, %arg);
%%GLOBALS%%
$processes
$main

events {
    worker_connections 1024;
    $events
}

http {
%%HTTP_GLOBALS%%
    default_type text/plain;
    root %%DIR%%/html;
    server_tokens off;
    $access
$defaults
    $http

    server {
        listen 127.0.0.1:%%PORT%% $listen;
        server_name localhost;

        $server
    }

    $status
}
END
}


sub nginx {
    my ($self, %arg) = @_;

    die "$self->{module} does not exist: run make first\n"
        if $self->{module} ne '' && !-e $self->{module};

    $self->write_file('nginx.conf', $self->configuration(%arg));
    $self->{nginx_args} = { %arg };

    return $self->nginx_start();
}


sub nginx_env {
    my ($self) = @_;

    return {} unless $ENV{REFERRAL_ASAN};

    return {
        ASAN_OPTIONS => 'detect_leaks=0:detect_odr_violation=0:'
            . 'abort_on_error=1:log_path='
            . "$self->{dir}/sanitizer/asan",
        UBSAN_OPTIONS => 'print_stacktrace=1:halt_on_error=0:log_path='
            . "$self->{dir}/sanitizer/ubsan",
    };
}


sub nginx_start {
    my ($self) = @_;

    my $dir = $self->{dir};

    unlink("$dir/nginx.pid");

    $self->{nginx} = Referral::Test::Process->new(
        name => 'nginx', log => "$dir/nginx.out",
        env => { %{ $self->nginx_env() },
                 %{ $self->{nginx_args}{env} // {} } },
        umask => $self->{nginx_args}{umask},
        argv => [ $self->{binary}, '-p', $dir, '-c', "$dir/nginx.conf",
                  '-e', "$dir/error.log" ]);

    my $up = $self->wait_for(sub {
        return 1 unless $self->{nginx}->alive();
        return -s "$dir/nginx.pid" && $self->workers();
    }, 30);

    if (!$up || !$self->{nginx}->alive()) {
        $self->allow(qr/\[emerg\]/);
        die "nginx does not start:\n" . $self->{nginx}->output()
            . ($self->read_file('error.log') // '');
    }

    return $self;
}


sub nginx_test {
    my ($self, %arg) = @_;

    my $name = 'test-' . ++$self->{tests};
    my $log = "$self->{dir}/$name.log";
    my $conf = $self->write_file("$name.conf",
        $self->configuration(%arg, error_log => $log));

    local %ENV = (%ENV, %{ $self->nginx_env() });

    my $r = $self->run($self->{binary}, '-t', '-p', $self->{dir}, '-c', $conf,
                       '-e', $log);

    $r->{log} = $self->read_file($log) // '';

    return $r;
}


sub reconfigure {
    my ($self, %arg) = @_;

    $self->write_file('nginx.conf', $self->configuration(%arg));
    $self->{nginx_args} = { %arg };

    return $self->reload();
}


# HUP; returns 1 when new workers have taken over, 0 when the configuration
# was refused

sub reload {
    my ($self, $timeout) = @_;

    my $at = -s "$self->{dir}/error.log" // 0;

    $self->{nginx}->signal('HUP');

    # the master may be about to start an old worker still

    my $done = $self->wait_for(sub {
        my $log = substr($self->log(), $at);
        my ($since) = $log =~ /\d: reconfiguring\n(.*)/s;
        my @pids = $self->workers();
        my %new = map { $_ => 1 }
                  ($since // '') =~ /start worker process (\d+)$/mg;
        my @left = grep { !$new{$_} && !shutting_down($_) } @pids;

        return 1 if !@left && grep { $new{$_} } @pids;
        return -1 if $log =~ /\[emerg\]/;
        return 0;
    }, $timeout // 30);

    # their init_process is over when they wait for events; a request that
    # comes before is queued by the kernel, so this is for the log only

    return ($done // 0) > 0 ? 1 : 0;
}


sub nginx_stop {
    my ($self, $signal) = @_;

    return 1 unless $self->{nginx} && $self->{nginx}->alive();

    my @pids = $self->workers();

    push @{ $self->{problems} }, 'nginx does not end after '
                                 . ($signal // 'QUIT')
        unless $self->{nginx}->stop($signal // 'QUIT', 30);

    for my $pid (@pids) {
        my $gone = $self->wait_for(sub { !alive($pid) }, 5);

        unless ($gone) {
            push @{ $self->{problems} }, "nginx worker $pid is still there";
            kill('KILL', $pid);
        }
    }

    return 1;
}


sub master { $_[0]{nginx} ? $_[0]{nginx}->pid() : undef }


# is it there, and not a zombie

sub alive {
    my ($pid) = @_;

    open(my $fh, '<', "/proc/$pid/stat") or return 0;
    my $stat = <$fh> // return 0;

    return $stat =~ /^\d+ \(.*\) [ZX]/s ? 0 : 1;
}


sub shutting_down {
    my ($pid) = @_;

    open(my $fh, '<', "/proc/$pid/cmdline") or return 1;
    my $line = <$fh> // '';

    return $line =~ /is shutting down/ ? 1 : 0;
}


# pids of the master's workers, old ones that shut down included

sub workers {
    my ($self) = @_;

    return () unless $self->{nginx};

    my $master = $self->{nginx}->pid();
    my @pids;

    open(my $fh, '<', "/proc/$master/task/$master/children") or return ();

    for my $pid (split(' ', <$fh> // '')) {
        open(my $ch, '<', "/proc/$pid/cmdline") or next;
        my $line = <$ch> // '';
        push @pids, $pid if $line =~ /^nginx: worker process/;
    }

    return @pids;
}


sub kill_worker {
    my ($self, $pid, $signal) = @_;

    # those of before a reload go without being replaced

    my @old = grep { !shutting_down($_) } $self->workers();

    $pid //= $old[0];

    $self->{killed}{$pid} = 1;
    kill($signal // 'KILL', $pid);

    $self->wait_for(sub {
        my @pids = grep { $_ != $pid && !shutting_down($_) } $self->workers();
        return !alive($pid) && @pids >= @old;
    }, 10) or push @{ $self->{problems} }, "no new worker came for $pid";

    return $pid;
}


sub log { $_[0]->read_file('error.log') // '' }


sub log_like {
    my ($self, $pattern, $name) = @_;

    $self->wait_for(sub { $self->log() =~ $pattern }, 5);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    return ok($self->log() =~ $pattern, $name)
           || diag('not in error.log: ', $pattern, "\n",
                   join("\n", last_lines($self->log(), 30)));
}


sub log_unlike {
    my ($self, $pattern, $name) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    return unlike(join("\n", grep { $_ =~ $pattern }
                             split(/\n/, $self->log())), $pattern, $name);
}


sub last_lines {
    my ($text, $n) = @_;

    my @lines = split(/\n/, $text);

    splice(@lines, 0, @lines - $n) if @lines > $n;

    return @lines;
}


1;
