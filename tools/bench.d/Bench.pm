package Bench;

# Copyright (C) The nginx referral module authors

=head1 NAME

Bench - private servers side by side, and what they cost

=head1 SYNOPSIS

    my $b = Bench->new(root => $root, fast => 0);

    $b->nginx('redirect');              # redirect.conf, beside this file
    $b->nginx('return302');

    $b->measure(
        { name => 'return302', nginx => 'return302', path => '/r/' },
        { name => 'redirect', nginx => 'redirect', path => '/r/' });

    print $b->value('cpu_us', 'redirect');          # a median
    print $b->ratio('redirect', 'return302');       # of the same rounds

=head1 DESCRIPTION

CPU time is that of the nginx worker, all of its threads, user and system, by
its POSIX CPU clock (ns); divided by the requests that the client counted.
A contender that leaves something to be done after its answers says "settle":
what it does for so many seconds after a slice is its cost, too.

Contenders take turns, a slice of time each, in an order drawn anew for each
round, the same in each run; what is reported is the median of the rounds, a
ratio is the median of the rounds' ratios.  Spread is half the distance of the
quartiles, in per cent; of a ratio the quartiles are shown.

=cut

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Path qw(make_path remove_tree);
use IO::Socket::INET;
use JSON::PP ();
use List::Util qw(shuffle);
use POSIX ();
use Time::HiRes qw(clock_gettime sleep time);

use Referral::Test::Postgres;
use Referral::Test::Process;
use Referral::Test::Redis;
use Referral::Test::Worker;


use constant CONNECTIONS => 32;

# per cent of the machine taken by others, above which figures have noise

use constant BUSY => 10;

my $here = dirname(abs_path(__FILE__));


sub new {
    my ($class, %arg) = @_;

    my $self = bless {
        build => "$arg{root}/build", seconds => 1, rounds => 10, warm => 1,
        next_port => 18900, nginx => {}, result => {}, samples => {}, %arg,
    }, $class;

    $self->{dir} = "/tmp/referral-bench-$$";
    mkdir($self->{dir}, 0755) or die "$self->{dir}: $!\n";

    # the client and what is measured do not share a core where there are two

    my $cpus = () = slurp('/proc/cpuinfo') =~ /^processor/mg;
    $self->{cpus} = $cpus;

    return $self;
}


sub dir   { $_[0]{dir} }
sub build { $_[0]{build} }


sub DESTROY {
    my ($self) = @_;

    # the exit status is not that of the last server

    local $?;

    eval { $self->stop() };
    $self->note("what was started did not end well: $@") if $@;

    remove_tree($self->{dir}) unless $ENV{REFERRAL_BENCH_KEEP};
}


sub stop {
    my ($self) = @_;

    for my $name (keys %{ $self->{nginx} }) {
        my $nginx = delete $self->{nginx}{$name};
        $nginx->{process}->stop('QUIT', 10);
    }

    for (qw(worker redis pg)) {
        my $server = delete $self->{$_} or next;
        $server->stop();
    }
}


sub slurp {
    my ($file) = @_;

    open(my $fh, '<', $file) or die "$file: $!\n";
    local $/;

    return scalar <$fh>;
}


sub write_file {
    my ($self, $name, $text, $mode) = @_;

    my $path = $name =~ m{^/} ? $name : "$self->{dir}/$name";

    make_path(dirname($path));
    open(my $fh, '>', $path) or die "$path: $!\n";
    print $fh $text;
    close($fh) or die "$path: $!\n";
    chmod($mode, $path) if defined $mode;

    return $path;
}


sub note {
    my ($self, $text) = @_;

    return if $self->{quiet};

    my $now = POSIX::strftime('%H:%M:%S', localtime());

    print STDERR "$now $text\n";
}


# runs a program: its output, or death

sub run {
    my ($self, @argv) = @_;

    my $pid = open(my $fh, '-|') // die "fork: $!\n";

    if ($pid == 0) {
        open(STDERR, '>&', \*STDOUT);
        no warnings 'exec';
        exec { $argv[0] } @argv;
        POSIX::_exit(127);
    }

    my $out = do { local $/; <$fh> } // '';
    close($fh);

    die "$argv[0] failed ($?):\n$out\n" if $?;

    return $out;
}


# something settles: shorter where slices are

sub pause {
    my ($self, $seconds) = @_;
    sleep($self->{seconds} < 1 ? $seconds * $self->{seconds} : $seconds);
}


sub port {
    my ($self) = @_;

    for (1 .. 200) {
        my $port = $self->{next_port}++;

        return $port if IO::Socket::INET->new(LocalAddr => '127.0.0.1',
            LocalPort => $port, Proto => 'tcp', Listen => 1, ReuseAddr => 1);
    }

    die "no free port\n";
}


# What every contender has: realip, since all clients come through it, and
# nothing that costs one of them time beside the job.

sub common {
    my ($self) = @_;

    return <<"END";
    access_log off;
    server_tokens off;
    keepalive_requests 1000000000;
    default_type text/html;
    root $self->{dir}/html;
    client_body_temp_path $self->{dir}/temp/body;
    proxy_temp_path $self->{dir}/temp/proxy;
    fastcgi_temp_path $self->{dir}/temp/fastcgi;
    uwsgi_temp_path $self->{dir}/temp/uwsgi;
    scgi_temp_path $self->{dir}/temp/scgi;
    set_real_ip_from 127.0.0.1;
    real_ip_header X-Real-IP;
END
}


# Starts NAME.conf, or (conf => other).conf, as NAME.  %%WORD%% is (set =>
# { WORD => text }), or one of those below.

sub nginx {
    my ($self, $name, %arg) = @_;

    my $binary = $ENV{NGINX} || '/usr/sbin/nginx';
    my $port = $self->port();
    my $workers = $arg{workers} // 1;
    my $dir = "$self->{dir}/$name";
    my $pin = $self->{cpus} > 1 && $workers == 1 ? 'worker_cpu_affinity 01;'
                                                 : '';
    my $user = $> == 0 ? 'user root;' : '';
    my $text = slurp("$here/" . ($arg{conf} // $name) . '.conf');

    make_path($dir, "$self->{dir}/temp");

    my %set = (
        DIR => $self->{dir}, HERE => $here, PORT => $port, NAME => $name,
        CITY => "$self->{geo}/city.mmdb", ASN => "$self->{geo}/asn.mmdb",
        MODULE => "$self->{build}/ngx_http_referral_module.so",
        REDIS => $self->{redis} ? $self->{redis}->path() : '',
        ZONE => '16m', VALID => '1h', JOURNAL => '4g',
        COMMON => $self->common(), LISTEN => '',
        GLOBAL => "daemon off;\n$user\nworker_processes $workers;\n$pin\n"
                  . "worker_rlimit_nofile 4096;\npid $dir/pid;\n"
                  . "error_log $dir/error.log warn;\n"
                  . "events { worker_connections 1024; }\n",
        %{ $arg{set} // {} },
    );

    $text =~ s/%%([A-Z]+)%%/$set{$1} \/\/ die "$name.conf: %%$1%%\n"/ge
        for 1 .. 2;

    my $conf = $self->write_file("$name/nginx.conf", $text);
    my $process = Referral::Test::Process->new(name => $name,
        log => "$dir/out", death => 'TERM',
        argv => [ @{ $arg{wrap} // [] }, $binary, '-p', $dir, '-c', $conf,
                  '-e', "$dir/error.log" ]);

    my $nginx = { process => $process, port => $port, dir => $dir };

    $self->{nginx}{$name} = $nginx;

    my $end = time() + 30;

    if ($arg{alone}) {
        $nginx->{workers} = [ $process->pid() ];

        until (IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                     PeerPort => $port))
        {
            die "nginx ($name) does not start\n"
                if time() > $end || !$process->alive();
            sleep(0.1);
        }
    }

    until ($nginx->{workers} //= workers($process->pid(), $workers)) {
        die "nginx ($name) does not start:\n", slurp("$dir/error.log")
            if time() > $end || !$process->alive();
        sleep(0.02);
    }

    return $nginx;
}


# The workers of a master, when all are there.  It has other children, too:
# one tests the journal's directory.

sub workers {
    my ($master, $n) = @_;

    my $text = eval { slurp("/proc/$master/task/$master/children") } // '';
    my @pids = grep {
        (eval { slurp("/proc/$_/cmdline") } // '') =~ /worker process/
    } split(' ', $text);

    return @pids == $n ? \@pids : undef;
}


sub end_nginx {
    my ($self, $name) = @_;

    my $nginx = delete $self->{nginx}{$name} or return;

    $nginx->{process}->stop('TERM', 10);
    remove_tree("$nginx->{dir}/journal");
}


sub redis {
    my ($self, %arg) = @_;

    return $self->{redis} //= Referral::Test::Redis->new(
        dir => $self->{dir}, name => 'redis', %arg);
}


# codes C0 to C<n - 1>, through one pipe

sub codes {
    my ($self, $n) = @_;

    my $redis = $self->redis();

    open(my $pipe, '|-', 'sh', '-c', 'exec redis-cli -s "$1" --pipe '
                                     . '> /dev/null', 'sh', $redis->path())
        or die "redis-cli: $!\n";

    for my $i (($self->{filled} // 0) .. $n - 1) {
        my @words = ('HSET', "referral:code:C$i", 'url',
                     "https://shop.example.com/landing/$i", 'code_id', $i + 1,
                     'program_id', $i % 7 + 1, 'referrer_id', $i + 1,
                     'campaign', 'summer', 'version', 1);

        print $pipe '*' . @words . "\r\n",
              map { '$' . length($_) . "\r\n$_\r\n" } @words;
    }

    close($pipe) or die "redis-cli failed\n";

    $self->{filled} = $n if $n > ($self->{filled} // 0);
}


# asks NAME for all of n codes, until its zone has them

sub fill {
    my ($self, $name, $status, $n) = @_;

    my $end = time() + 300;

    # one after the other: from where the slice before ended

    while ((my $has = zone_codes($status)) < $n) {
        die "the zone of $name does not fill\n" if time() > $end;
        $self->slice({ name => $name, nginx => $name, path => '/r/',
                       codes => $n, pick => 'next', failing => 1,
                       first => $has,
                       seconds => $n > 100_000 ? 10 : $self->{seconds} });
    }
}


sub zone_codes {
    my ($port) = @_;

    my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                     PeerPort => $port) or return 0;

    print $sock "GET / HTTP/1.0\r\n\r\n";
    local $/;
    my ($body) = <$sock> =~ /\r\n\r\n(.*)/s;

    return JSON::PP::decode_json($body)->{zone_codes};
}


sub postgres {
    my ($self, %arg) = @_;

    return $self->{pg} if $self->{pg};

    my $pg = Referral::Test::Postgres->new(dir => $self->{dir}, fsync => 1,
        conf => { shared_buffers => '512MB', max_wal_size => '8GB',
                  timezone => 'UTC', %{ $arg{conf} // {} } });

    $self->{pg} = $pg;

    local $ENV{REFERRAL_SQL} = $ENV{REFERRAL_SQL} // "$self->{root}/sql";

    $self->run("$self->{build}/referralctl", 'db', 'upgrade', '--db',
               $pg->conninfo());
    $pg->rows('CREATE ROLE edge LOGIN IN ROLE referral_worker');

    return $pg;
}


sub worker {
    my ($self, $journal, %arg) = @_;

    my $pg = $self->postgres();

    return $self->{worker} = Referral::Test::Worker->new(
        binary => "$self->{build}/referral-worker", dir => $self->{dir},
        name => 'worker', conf => { journal => $journal,
            postgres => $pg->conninfo(user => 'edge'), %arg });
}


# what others take of the processors while nothing is measured, in per cent

sub busy {
    my ($self, $group) = @_;

    my @before = ticks();
    sleep($self->{seconds} < 1 ? 0.2 : 1);
    my @after = ticks();

    my ($all, $idle) = map { $after[$_] - $before[$_] } 0, 1;
    my $busy = $all ? 100 * ($all - $idle) / $all : 0;

    $self->{result}{busy}{$group} = $busy;
    $self->note(sprintf('%s: the machine is busy, others take %.0f %% of it',
                        $group, $busy))
        if $busy > BUSY;
}


# of the machine since its start: all, and those without work

sub ticks {
    my ($line) = slurp('/proc/stat') =~ /^cpu +(.*)$/m;
    my @ticks = split(' ', $line);
    my $all = 0;

    # guests are counted as users, too

    $all += $_ for @ticks[0 .. 7];

    return ($all, $ticks[3] + $ticks[4]);
}


# seconds of CPU of a process, all threads: its POSIX CPU clock

sub cpu {
    my ($pid) = @_;

    my $seconds = clock_gettime((~(0 + $pid) << 3) | 2);

    die "process $pid is gone\n" if $seconds < 0;

    return $seconds;
}


sub nginx_cpu {
    my ($self, $name) = @_;

    my $sum = 0;

    $sum += cpu($_) for @{ $self->{nginx}{$name}{workers} };

    return $sum;
}


# One slice: { cpu_us, rps, p50_us, p99_us, p999_us, requests, refused }.

sub slice {
    my ($self, $c) = @_;

    my $nginx = $self->{nginx}{ $c->{nginx} }
        or die "$c->{nginx} does not run\n";
    my $seconds = $c->{seconds} // $self->{seconds};
    my @pin = $self->{cpus} > 1 && @{ $nginx->{workers} } == 1
              ? ('taskset', '-c', '1') : ();
    my $before = $self->nginx_cpu($c->{nginx});

    my $r = $c->{h2} ? $self->h2load($c, $nginx, $seconds, @pin)
                     : $self->wrk($c, $nginx, $seconds, @pin);

    $self->pause($c->{settle}) if $c->{settle};

    die "$c->{name}: no request was answered\n",
        slurp("$nginx->{dir}/error.log") unless $r->{requests};

    $r->{cpu_us} = ($self->nginx_cpu($c->{nginx}) - $before) * 1e6
                   / $r->{requests};
    $r->{rps} = $r->{requests} / $r->{seconds};

    die "$c->{name}: $r->{refused} of $r->{requests} requests failed\n"
        if $r->{refused} && !$c->{failing};

    return $r;
}


sub wrk {
    my ($self, $c, $nginx, $seconds, @pin) = @_;

    local %ENV = (%ENV, BENCH_PATH => $c->{path},
                  BENCH_SUFFIX => $c->{suffix} // '',
                  BENCH_CODES => $c->{codes} // 1000,
                  BENCH_PICK => $c->{pick} // 'uniform',
                  BENCH_FIRST => $c->{first} // 0,
                  BENCH_ADDRESSES => "$self->{geo}/addresses");

    # wrk knows whole seconds, and ends well by SIGINT

    my @limit = $seconds == int($seconds) ? ()
                : ('timeout', '--preserve-status', '-s', 'INT', $seconds);
    my $whole = POSIX::ceil($seconds);

    my $out = $self->run(@pin, @limit, 'wrk', '-t', 1, '-c',
        $c->{connections} // CONNECTIONS, '-d', "${whole}s", '--timeout',
        '5s', '-s', "$here/client.lua", "http://127.0.0.1:$nginx->{port}");

    my ($json) = $out =~ /^(\{"requests".*\})$/m or die "wrk: $out\n";

    return JSON::PP::decode_json($json);
}


sub h2load {
    my ($self, $c, $nginx, $seconds, @pin) = @_;

    my @urls = map { "https://127.0.0.1:$nginx->{port}$c->{path}C$_" }
               0 .. 999;
    my $file = $self->write_file('urls', join("\n", @urls) . "\n");

    # by number, not by time: h2load counts what it began in its warm-up

    my $n = int(($self->{fast} ? 2000 : 40_000) * $seconds);
    my $out = $self->run(@pin, 'h2load', '-n', $n, '-c', CONNECTIONS, '-m', 4,
        '-t', 1, '-H', 'User-Agent: Mozilla/5.0', '-i', $file);
    my ($done, $ok) = $out =~ /(\d+) done, (\d+) succeeded/
        or die "h2load: $out\n";
    my ($took) = $out =~ /finished in ([\d.]+)(m?s)/;

    $took /= 1000 if $out =~ /finished in [\d.]+ms/;

    return { requests => $done, refused => $done - $ok, seconds => $took };
}


sub measure {
    my ($self, @contenders) = @_;

    my $rounds = $self->{rounds};

    srand(1);

    for my $round (0 .. $rounds + $self->{warm} - 1) {

        # who comes after whom changes

        for my $c (shuffle(@contenders)) {
            $c->{before}->() if $c->{before};
            my $sample = $self->slice($c);
            $c->{after}->() if $c->{after};

            next if $round < $self->{warm};
            push @{ $self->{samples}{ $c->{name} } }, $sample;
        }
    }

    for my $c (@contenders) {
        my $list = $self->{samples}{ $c->{name} };

        for my $what (qw(cpu_us rps p50_us p99_us p999_us)) {
            my @values = grep { defined } map { $_->{$what} } @$list;
            next unless @values;
            $self->{result}{$what}{ $c->{name} } = median(@values);
            $self->{result}{spread}{ $c->{name} } = spread(@values)
                if $what eq 'cpu_us';
        }
    }
}


sub value {
    my ($self, $what, $name) = @_;
    return $self->{result}{$what}{$name};
}


# of each round, what $name has to what $other has

sub ratios {
    my ($self, $name, $other, $what) = @_;

    my ($mine, $theirs) = map { $self->{samples}{$_} } $name, $other;

    return unless $mine && $theirs;

    $what //= 'cpu_us';

    return map { $mine->[$_]{$what} / ($theirs->[$_]{$what} || 1) }
           grep { $theirs->[$_] } 0 .. $#$mine;
}


sub ratio {
    my ($self, @args) = @_;
    return median($self->ratios(@args));
}


sub set_ratio {
    my ($self, $key, @args) = @_;

    my @ratios = $self->ratios(@args);

    $self->{result}{quartiles}{$key} = [ quartiles(@ratios) ];

    return $self->{result}{ratio}{$key} = median(@ratios);
}


sub median {
    my @sorted = sort { $a <=> $b } @_;

    return undef unless @sorted;

    return ($sorted[$#sorted / 2] + $sorted[@sorted / 2]) / 2;
}


sub quartiles {
    my @sorted = sort { $a <=> $b } @_;

    return ($sorted[int($#sorted / 4)],
            $sorted[POSIX::ceil($#sorted * 3 / 4)]);
}


sub spread {
    my ($low, $high) = quartiles(@_);

    return 50 * ($high - $low) / (median(@_) || 1);
}


1;
