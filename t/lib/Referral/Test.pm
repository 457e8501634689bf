package Referral::Test;

# Copyright (C) The nginx referral module authors

=head1 NAME

Referral::Test - private nginx, Redis, Postgres and worker for one test

=head1 SYNOPSIS

    use strict;
    use warnings;

    use Test::More;
    use Referral::Test;

    my $t = Referral::Test->new();

    $t->redis()->code('SUMMER25', url => 'https://example.com/summer');

    $t->nginx(cookie => 1, server => q{
        referral on;
        location /r/ { referral_redirect; }
        location / { return 200 "code=$referral_code dir=%%DIR%%\n"; }
    });

    my $r = $t->get('/r/summer25', headers => { 'User-Agent' => 'x' });

    is($r->status, 302, 'redirects');
    is($r->header('Location'), 'https://example.com/summer', 'there');
    is($r->header('Cache-Control'), 'no-store', 'not cached');
    ok($r->cookie('_ref'), 'sets the cookie');

    my ($click) = $t->records(1);        # from the journal, waits for one
    is($click->{code}, 'SUMMER25', 'recorded');

    $t->done();

Run it from the top of the tree, after C<make all>:

    prove -It/lib t/name.t

=head1 DESCRIPTION

Everything stands in a directory of its own in /tmp, listens on unix sockets
there or on reserved ports of 127.0.0.1, and ends with the test, however that
ends.  C<done()> stops it all, looks through the logs and prints the plan; a
line that must not be there (alert, emerg, a crash, a sanitizer's report, a
socket left open) or a process that does not go away fails the test.

=head2 Environment

    REFERRAL_NGINX      nginx to test (/usr/sbin/nginx)
    REFERRAL_MODULE     module to load (build/ngx_http_referral_module.so);
                        empty: it is built in
    REFERRAL_BUILD      directory of referral-worker and referralctl (build)
    REFERRAL_ASAN=1     nginx is built with sanitizers
    REFERRAL_TEST_KEEP  keep the directory
    REFERRAL_TEST_DEBUG error_log at level debug

=head2 The test

    $t->dir                 the directory, mode 0755
    $t->root                the top of the tree; also Referral::Test->top
    Referral::Test->faults  the module with fault points, in faults/ beside
                            the other; undef when there is none
    $t->port('name')        a reserved port; the same name, the same port
    $t->write_file('html/a.html', $text [, $mode])   returns the full path
    $t->read_file('name')   undef when it does not exist
    $t->wait_for(sub { ... }, $seconds)     polls; returns its true value
    $t->run(@argv)          { status (exit code), output (both) }
    $t->allow(qr/.../)      log lines that match are expected
    $t->log                 text of error.log
    $t->log_like(qr/.../, 'name')   a test, waits up to 5 s
    $t->log_unlike(qr/.../, 'name')
    $t->done()

=head2 nginx

    $t->nginx(http => ..., server => ..., main => ..., events => ...,
              cookie => 1, user => 'www-data', workers => 2, defaults => 0,
              listen => 'http2 ...')

writes nginx.conf and starts it.  In all texts (use q{}: variables of nginx
stay as they are) %%DIR%% is the directory, %%PORT%% the port of the server,
%%PORT:name%% another reserved one, %%REDIS%% the url of the first Redis.
Defaults are added to http unless the texts have the directive: referral_zone
1m, referral_redis with timeout=2s when $t->redis() was called,
referral_journal %%DIR%%/journal with small segments, referral_cookie off.
With cookie => 1 there are referral_secret %%DIR%%/secret (two keys, k1 signs)
and referral_consent not_required instead.  defaults => 0 adds none.  conf =>
$text is a whole nginx.conf (%%GLOBALS%% is what it needs at the top).

    $t->nginx_test(same)    nginx -t: { status, output, log }
    $t->reconfigure(same)   writes nginx.conf anew, then $t->reload()
    $t->reload()            HUP, waits until the new workers are there
    $t->nginx_stop()        QUIT; ($signal) another
    $t->nginx_start()       the same configuration again
    $t->master, $t->workers pids
    $t->kill_worker($pid)   SIGKILL, declared to the log check; waits for a new one
    $t->status()            text of /status on $t->port('status'), when the
                            server block has status => 1 (referral_status)

=head2 HTTP

    $t->get($path, headers => {} or [], method =>, host =>, body =>, port =>,
            version => '1.0', raw => "GET / HTTP/1.1\r\n...")
    $t->head($path, ...) $t->post($path, body => ...)
    $t->parallel($path or { path => ..., headers => ... }, ...)  responses, in order
    $t->connect(port =>)    a connection: ->ask($path, ...), ->write($bytes),
                            ->response($method), ->closed, ->close
    $t->curl(@args, $url)   through curl (HTTP/2: --http2-prior-knowledge, TLS: -k)
    $t->certificate()       (certificate, key) files, self-signed

A response has ->status (0: none came), ->header($name), ->all($name),
->cookie($name), ->body.

=head2 Redis

    my $redis = $t->redis(tcp => 1, args => [...], name => 'other', auth => ...)
    $redis->cmd('HSET', ...) ->code('CODE', field => value ...) ->url ->path ->port
    ->stop ->start ->restart ->kill9 ->pause ->resume (SIGSTOP, SIGCONT)

Called again without a name, it returns the same one.

=head2 Journal, Postgres, worker

    $t->records($n)         hashes of referralctl journal export --json, by
                            time; waits until there are at least $n
    $t->referralctl(@args)  { status, output }
    $t->journal_write($journal, @args)  what build/t/journal_write printed
    my $in = $t->journal_hold($journal, @args)   the same, its stream stays
                            live; print $in "5\n" appends 5 more
    my $pg = $t->postgres(fsync => 1, conf => {...}, migrate => 0)
    $pg->rows($sql) ->value($sql) ->try($sql) ->conninfo(user => ...)
    ->stop ->start ->restart ->pid ->log
    my $w = $t->worker(setting => value, ...)   journal and postgres (as "edge",
                            a member of referral_worker) are preset;
                            name => '...', env => {...}, start_later => 1
    $w->stop ->start ->restart ->kill9 ->pause ->resume ->hup ->output
    ->configure(all settings) ->notified(qr/READY=1/)

=head2 Receiver of webhooks

    Referral::Test::Receiver->new(dir => $t->dir, port => $t->port('receiver'))
    ->url('/500') ->set_mode('/500') ->got ->forget ->stop ->start

=head2 Geo databases

    $t->mmdb('city.mmdb', { '192.0.2.0/24' => {...} }, ip_version =>, type =>)

=cut

use strict;
use warnings;

use Cwd qw(abs_path);
use Fcntl qw(:flock O_RDWR O_CREAT);
use File::Basename qw(dirname);
use File::Path qw(make_path remove_tree);
use IO::Socket::INET;
use JSON::PP ();
use POSIX qw(WNOHANG);
use Test::More;
use Time::HiRes qw(sleep time);

use Referral::Test::Geo;
use Referral::Test::Http;
use Referral::Test::Journal;
use Referral::Test::Nginx;
use Referral::Test::Postgres;
use Referral::Test::Process;
use Referral::Test::Redis;
use Referral::Test::Worker;


# below the kernel's range of ports for clients

use constant PORTS => (23000 .. 29999);

our @ISA = qw(Referral::Test::Nginx Referral::Test::Geo
              Referral::Test::Journal);

*alive = \&Referral::Test::Nginx::alive;
*last_lines = \&Referral::Test::Nginx::last_lines;

our @instances;

my $bad = qr/\[alert\]|\[emerg\]|exited\ on\ signal|exited\ with\ code\ [^0]
             |Sanitizer|runtime\ error:|open\ socket/x;


# the top of the tree

sub top { return abs_path(dirname(__FILE__) . '/../../..') }


sub new {
    my ($class, %arg) = @_;

    my $root = top();
    my $build = $ENV{REFERRAL_BUILD} // "$root/build";
    # referralctl looks beside build/, wherever that is here
    $ENV{REFERRAL_SQL} //= "$root/sql";

    my $module = $ENV{REFERRAL_MODULE} // "$build/ngx_http_referral_module.so";

    my $self = bless {
        root => $root, build => $build, pid => $$, allow => [], killed => {},
        module => $module eq '' ? '' : abs_path($module) // $module,
        binary => $ENV{REFERRAL_NGINX} // $ENV{NGINX} // '/usr/sbin/nginx',
        ports => {}, redis => {}, postgres => {}, worker => {}, problems => [],
    }, $class;

    umask(022);

    for (1 .. 100) {
        my $dir = '/tmp/referral-' . sprintf('%08x', int(rand(2 ** 32)));
        next unless mkdir($dir, 0755);
        $self->{dir} = $dir;
        last;
    }

    die "no directory could be made in /tmp: $!\n" unless $self->{dir};

    mkdir("$self->{dir}/$_") for qw(html logs temp sanitizer);
    chmod(0777, "$self->{dir}/sanitizer");

    push @instances, $self;

    for my $signal (qw(INT TERM HUP)) {
        $SIG{$signal} = sub { exit(128 + POSIX->can("SIG$signal")->()) };
    }

    return $self;
}


# one that is built in cannot be loaded again, nor beside sanitizers

sub faults {
    my $build = $ENV{REFERRAL_BUILD} // top() . '/build';
    my $module = $ENV{REFERRAL_MODULE} // "$build/ngx_http_referral_module.so";

    return undef if $ENV{REFERRAL_ASAN} || $module eq '';

    $module =~ s{([^/]+)\z}{faults/$1};

    return -e $module ? $module : undef;
}


sub dir    { $_[0]{dir} }
sub root   { $_[0]{root} }
sub build  { $_[0]{build} }
sub binary { $_[0]{binary} }


sub allow {
    my ($self, @patterns) = @_;

    push @{ $self->{allow} }, @patterns;

    return $self;
}


# A port of 127.0.0.1 that no other test takes while this one runs: its lock
# file is held, and nobody listens there.

sub port {
    my ($self, $name) = @_;

    $name //= 'http';

    return $self->{ports}{$name}{port} if $self->{ports}{$name};

    my $locks = '/tmp/referral-test-ports';

    if (!-d $locks) {
        mkdir($locks) && chmod(01777, $locks);
    }

    my @ports = (PORTS);
    my $at = int(rand(@ports));

    for my $i (0 .. $#ports) {
        my $port = $ports[($at + $i) % @ports];

        sysopen(my $lock, "$locks/$port", O_RDWR | O_CREAT, 0666) or next;
        flock($lock, LOCK_EX | LOCK_NB) or next;

        my $sock = IO::Socket::INET->new(LocalAddr => '127.0.0.1',
                                         LocalPort => $port,
                                         Proto => 'tcp', Listen => 1,
                                         ReuseAddr => 1) or next;
        close($sock);

        $self->{ports}{$name} = { port => $port, lock => $lock };

        return $port;
    }

    die "no free port\n";
}


sub path {
    my ($self, $name) = @_;
    return $name =~ m{^/} ? $name : "$self->{dir}/$name";
}


sub write_file {
    my ($self, $name, $text, $mode) = @_;

    my $path = $self->path($name);

    make_path(dirname($path));

    open(my $fh, '>:raw', $path) or die "$path: $!\n";
    utf8::encode($text) if utf8::is_utf8($text);
    print $fh $text;
    close($fh) or die "$path: $!\n";

    chmod($mode, $path) if defined $mode;

    return $path;
}


sub read_file {
    my ($self, $name) = @_;

    open(my $fh, '<:raw', $self->path($name)) or return undef;
    local $/;
    return scalar(<$fh>) // '';
}


sub wait_for {
    my ($self, $sub, $timeout) = @_;

    # what is waited for comes at once; only busy machines take longer

    my $end = time() + 3 * ($timeout // 10);

    for ( ;; ) {
        my $value = $sub->();
        return $value if $value;
        return undef if time() > $end;
        sleep(0.02);
    }
}


# runs a program to its end: { status => exit code or 128 + signal, output }

sub run {
    my ($self, @argv) = @_;

    my $pid = open(my $fh, '-|');
    die "fork: $!\n" unless defined $pid;

    if ($pid == 0) {
        open(STDIN, '<', '/dev/null');
        open(STDERR, '>&', \*STDOUT);
        no warnings 'exec';
        exec { $argv[0] } @argv;
        print "$argv[0]: $!\n";
        POSIX::_exit(127);
    }

    my $output = do { local $/; <$fh> } // '';
    close($fh);

    return { status => $? & 127 ? 128 + ($? & 127) : $? >> 8,
             output => $output };
}


#
# HTTP
#

sub connect {
    my ($self, %arg) = @_;

    my $c = Referral::Test::Http->connect(port => $self->port('http'), %arg);

    push @{ $self->{connections} }, $c;

    return $c;
}


sub get {
    my ($self, $path, %arg) = @_;

    my $c = Referral::Test::Http->connect(
        port => $arg{port} // $self->port('http'),
        timeout => $arg{timeout} // 15);

    $c->write($arg{raw} // Referral::Test::Http::request(%arg, path => $path));

    my $r = $c->response($arg{method} // 'GET');

    $c->close();

    return $r;
}


sub head { my ($s, $p, %a) = @_; $s->get($p, %a, method => 'HEAD') }

sub post {
    my ($self, $path, %arg) = @_;
    return $self->get($path, body => '', %arg, method => 'POST');
}


sub parallel {
    my ($self, @requests) = @_;

    my @texts = map {
        ref($_) ? Referral::Test::Http::request(%$_)
                : Referral::Test::Http::request(path => $_)
    } @requests;

    return Referral::Test::Http::parallel($self->port('http'), 30, @texts);
}


sub curl {
    my ($self, @args) = @_;

    my $r = $self->run('curl', '-s', '-i', '--max-time', '20',
                       '--noproxy', '*', @args);
    my $text = $r->{output};
    my ($head, $body);

    while ($text =~ s{\A(HTTP/[\d.]+ \d+.*?\r\n)\r\n}{}s) {
        $head = $1;
    }

    $body = $text;

    return Referral::Test::Http::Response->new(status => 0, headers => [],
        body => $body, curl => $r->{status}) unless defined $head;

    my ($line, @lines) = split(/\r\n/, $head);

    return Referral::Test::Http::Response->new(
        status => ($line =~ m{^\S+ (\d+)})[0], line => $line, body => $body,
        raw => $head, curl => $r->{status},
        headers => [ map { /^([^:]+):\s*(.*?)\s*$/ ? [ $1, $2 ] : () }
                     @lines ]);
}


sub certificate {
    my ($self) = @_;

    my ($cert, $key) = ("$self->{dir}/cert.pem", "$self->{dir}/key.pem");

    unless (-e $cert) {
        my $r = $self->run('openssl', 'req', '-x509', '-newkey', 'ec',
                           '-pkeyopt', 'ec_paramgen_curve:prime256v1',
                           '-nodes', '-days', '2', '-subj', '/CN=localhost',
                           '-keyout', $key, '-out', $cert);
        die $r->{output} if $r->{status};
    }

    return ($cert, $key);
}


sub status {
    my ($self) = @_;
    return $self->get('/status?format=prometheus', port => $self->port('status'))->body();
}


#
# the servers beside nginx
#

sub redis {
    my ($self, %arg) = @_;

    my $name = $arg{name} // 'redis';

    $arg{port} //= $self->port($name) if delete $arg{tcp};

    return $self->{redis}{$name} //=
        Referral::Test::Redis->new(%arg, name => $name, dir => $self->{dir});
}


sub code { my $self = shift; $self->redis()->code(@_) }


# migrated unless migrate => 0

sub postgres {
    my ($self, %arg) = @_;

    my $name = $arg{name} // 'pg';
    my $migrate = delete $arg{migrate} // 1;

    return $self->{postgres}{$name} if $self->{postgres}{$name};

    $arg{port} //= $self->port($name) if delete $arg{tcp};

    my $pg = Referral::Test::Postgres->new(%arg, name => $name,
                                           dir => $self->{dir});

    $self->{postgres}{$name} = $pg;

    if ($migrate) {
        my $r = $self->referralctl('db', 'upgrade', '--db', $pg->conninfo());
        die "referralctl db upgrade: $r->{output}\n" if $r->{status};

        # the roles of the schema are groups; this one may log in
        $pg->rows('CREATE ROLE edge LOGIN IN ROLE referral_worker');
    }

    return $pg;
}


sub worker {
    my ($self, %arg) = @_;

    my $name = delete $arg{name} // 'worker';
    my %own = map { $_ => delete $arg{$_} } grep { exists $arg{$_} }
              qw(env user start_later binary);
    my $pg = $self->{postgres}{pg};

    $arg{journal} //= "$self->{dir}/journal" unless exists $arg{journal};
    $arg{postgres} = $pg->conninfo(user => 'edge')
        if $pg && !exists $arg{postgres};
    return $self->{worker}{$name} =
        Referral::Test::Worker->new(binary => "$self->{build}/referral-worker",
                                    %own, conf => \%arg, name => $name,
                                    dir => $self->{dir});
}


sub referralctl {
    my ($self, @args) = @_;
    return $self->run("$self->{build}/referralctl", @args);
}


# clicks in the journal as hashes; waits until there are $n

sub records {
    my ($self, $n, %arg) = @_;

    my $journal = $arg{journal} // "$self->{dir}/journal";
    my @records;

    $self->wait_for(sub {
        my $r = $self->referralctl('journal', 'export', '--json', '--journal',
                                   $journal);
        die "referralctl journal export: $r->{output}\n" if $r->{status};

        @records = decode_json_stream($r->{output});

        return @records >= ($n // 0);
    }, $arg{timeout} // 5);

    # a sort has no value in scalar context
    # ids of one millisecond have no order, but the export has

    @records = sort {
        substr($a->{id} // '', 0, 13) cmp substr($b->{id} // '', 0, 13)
    } @records;

    return @records;
}


# one document, an array of them, or one a line

sub decode_json_stream {
    my ($text) = @_;

    my $json = JSON::PP->new()->utf8();
    my @all;

    $json->incr_parse($text);

    while (my $value = $json->incr_parse()) {
        push @all, ref($value) eq 'ARRAY' ? @$value : $value;
    }

    return @all;
}


#
# the end
#

sub stop_all {
    my ($self) = @_;

    return if $self->{stopped}++;

    $_->close() for @{ delete $self->{connections} // [] };

    for my $worker (values %{ $self->{worker} }) {
        next unless $worker->{process};

        my $p = $worker->{process};

        if (!$p->alive() && !$p->{expected} && ($p->status() // 0) != 0) {
            push @{ $self->{problems} }, "$worker->{name} ended by itself, "
                . 'wait status ' . $p->status() . ":\n" . $p->output();
        }

        push @{ $self->{problems} }, "$worker->{name} does not end after TERM"
            unless $p->stop('TERM', 30);

        push @{ $self->{problems} }, map { "$worker->{name}: $_" }
            grep { /$bad/ && !$self->allowed($_) } split(/\n/, $p->output());
    }

    if ($self->{nginx}) {
        push @{ $self->{problems} }, 'nginx is gone, wait status '
                                     . $self->{nginx}->status()
            if !$self->{nginx}->alive() && !$self->{nginx}{expected};

        $self->nginx_stop();
    }

    $_->stop() for grep { $_->alive() } values %{ $self->{redis} };
    $_->stop() for grep { $_->alive() } values %{ $self->{postgres} };

    return;
}


sub allowed {
    my ($self, $line) = @_;

    for my $pattern (@{ $self->{allow} }) {
        return 1 if $line =~ $pattern;
    }

    return $line =~ /(?:worker )?process (\d+) exited on signal/
           && $self->{killed}{$1} ? 1 : 0;
}


# processes that name our directory: nobody may be left

sub strays {
    my ($self) = @_;

    my @strays;

    for my $proc (glob('/proc/[0-9]*')) {
        my ($pid) = $proc =~ m{(\d+)$};
        next if $pid == $$;

        open(my $fh, '<', "$proc/cmdline") or next;
        my $line = do { local $/; <$fh> } // '';

        $line =~ tr/\0/ /;

        next unless index($line, "$self->{dir}/") >= 0;
        next unless alive($pid);

        push @strays, "$pid ($line)";
    }

    return @strays;
}


sub problems {
    my ($self) = @_;

    my @found = @{ $self->{problems} };

    push @found, grep { /$bad/ && !$self->allowed($_) }
                 split(/\n/, $self->log());

    push @found, map { "nginx: $_" }
                 grep { /$bad/ && !$self->allowed($_) }
                 split(/\n/, $self->{nginx}->output())
        if $self->{nginx};

    for my $file (glob("$self->{dir}/sanitizer/*")) {
        push @found, join("\n", last_lines($self->read_file($file), 40));
    }

    push @found, map { "still running: $_" } $self->strays();

    return @found;
}


sub done {
    my ($self) = @_;

    $self->stop_all();

    my @problems = $self->problems();

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    ok(!@problems, 'nothing bad in the logs, nothing left running')
        or diag(join("\n", @problems > 40 ? @problems[0 .. 39] : @problems));

    $self->finish();

    done_testing() unless @instances;

    return;
}


# the directory goes

sub finish {
    my ($self) = @_;

    $self->{done} = 1;
    $self->remove();

    @instances = grep { $_ != $self } @instances;

    return;
}


sub remove {
    my ($self) = @_;

    return if $ENV{REFERRAL_TEST_KEEP} && diag("kept: $self->{dir}");

    remove_tree($self->{dir});

    return;
}


END {
    my $status = $?;

    for my $self (@instances) {
        next if $self->{done} || $self->{pid} != $$;

        eval { $self->stop_all(); };

        diag("the test did not reach done(); the end of error.log:\n",
             join("\n", last_lines($self->log(), 40)));

        for my $stray ($self->strays()) {
            diag("still running: $stray");
        }

        eval { $self->remove(); };

        $status ||= 1;
    }

    $? = $status;
}


1;
