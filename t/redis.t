#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Redis that is down, frozen, slow, not ready, not let in, or no Redis at all.
# Servers that misbehave are played by a small program of our own.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

use Referral::Test;


my $server = q{
    add_header X-Cache $referral_cache always;
    add_header X-Verdict $referral_verdict always;
    keepalive_requests 100000;
    location /r/ { referral_redirect; }
};


sub shown {
    my ($r) = @_;

    return join(' ', $r->status, $r->header('X-Verdict') // '-',
                $r->header('X-Cache') // '-');
}


sub lines {
    my ($t, $pattern) = @_;
    return scalar(grep { $_ =~ $pattern } split(/\n/, $t->log()));
}


sub timed {
    my ($t, $path) = @_;

    my $start = time();
    my $r = $t->get($path);

    return ($r, time() - $start);
}


# processor time of the workers so far, seconds

sub cpu {
    my ($t) = @_;

    my $ticks = 0;

    for ($t->workers()) {
        my $stat = $t->read_file("/proc/$_/stat") // next;
        my @f = split(' ', $stat =~ s/.*\) //sr);
        $ticks += $f[11] + $f[12];
    }

    return $ticks / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}


# a server of our own: $script->(\@words, $n) gives the bytes that answer a
# command on connection number $n; undef closes it, [ bytes ] then closes

my @fakes;

sub fake {
    my ($t, $script, %arg) = @_;

    my $port = $t->port('fake');
    my $pid = fork();
    die "fork: $!" unless defined $pid;

    if ($pid == 0) {
        $SIG{$_} = sub { POSIX::_exit(0) } for qw(TERM INT HUP);
        $SIG{PIPE} = 'IGNORE';
        eval { serve($port, $script, %arg); };
        POSIX::_exit(0);
    }

    push @fakes, $pid;

    $t->wait_for(sub {
        IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port)
    }, 5);

    return "redis://127.0.0.1:$port";
}


sub end_fake {
    my $pid = pop @fakes;

    kill('TERM', $pid);
    waitpid($pid, 0);
}


END { my $status = $?; kill('KILL', $_) for @fakes; $? = $status; }


sub serve {
    my ($port, $script, %arg) = @_;

    my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1',
                                       LocalPort => $port, Listen => 64,
                                       ReuseAddr => 1) or die;
    my $select = IO::Select->new($listen);
    my (%buf, %n);
    my $count = 0;

    for ( ;; ) {
        for my $sock ($select->can_read()) {

            if ($sock == $listen) {
                my $c = $listen->accept() or next;
                $n{$c} = ++$count;
                $buf{$c} = '';
                my $hello = $arg{hello} ? $arg{hello}->($n{$c}) : '';
                syswrite($c, $hello) if length $hello;
                $select->add($c);
                next;
            }

            my $got = sysread($sock, $buf{$sock}, 65536, length $buf{$sock});
            my $end = !$got;

            while (!$end && (my $words = words(\$buf{$sock}))) {
                my $reply = $script->($words, $n{$sock});

                $end = 1 if !defined $reply || ref $reply;
                $reply = $reply->[0] if ref $reply;

                if (defined $reply) {
                    my @parts = $arg{bytes} ? split(//, $reply) : ($reply);

                    for (@parts) {
                        syswrite($sock, $_);
                        sleep(0.001) if $arg{bytes};
                    }
                }
            }

            if ($end) {
                $select->remove($sock);
                delete $buf{$sock};
                close($sock);
            }
        }
    }
}


sub words {
    my ($buf) = @_;

    return undef unless $$buf =~ /\A\*(\d+)\r\n/;

    my ($n, $at, @words) = ($1, $+[0]);

    for (1 .. $n) {
        pos($$buf) = $at;
        return undef unless $$buf =~ /\G\$(\d+)\r\n/g;

        my ($len, $start) = ($1, pos($$buf));
        return undef if length($$buf) < $start + $len + 2;

        push @words, substr($$buf, $start, $len);
        $at = $start + $len + 2;
    }

    substr($$buf, 0, $at, '');

    return \@words;
}


# what a healthy server says; every code exists

sub healthy {
    my ($words) = @_;

    return "+OK\r\n" unless uc($words->[0]) eq 'HMGET';
    return "*2\r\n\$-1\r\n\$-1\r\n" if $words->[1] eq 'referral:publisher';

    my $url = 'https://example.com/fake';

    return "*10\r\n\$" . length($url) . "\r\n$url\r\n" . "\$-1\r\n" x 9;
}


subtest 'down at start' => sub {

    my $t = Referral::Test->new();
    my $redis = $t->redis();

    $redis->code('A');
    $redis->stop();
    unlink($redis->path());

    $t->nginx(server => $server);

    $t->log_like(qr/\[error\].*redis unix:\S+ is not usable: No such file/,
                 'says so');

    my ($r, $took) = timed($t, '/r/A');

    is(shown($r), '503 unverified off', 'unverified');
    ok($r->header('Retry-After'), 'says when to come again');
    cmp_ok($took, '<', 0.05, 'at once');

    my $cpu = cpu($t);
    sleep(2);

    cmp_ok(cpu($t) - $cpu, '<', 0.1, 'does not spin');
    is(lines($t, qr/is not usable/), 1, 'logged once');

    $redis->start();
    $redis->code('A');

    $t->log_like(qr/\[notice\].*redis unix:\S+ is usable again/, 'noticed');
    is(shown($t->get('/r/A')), '302 valid miss', 'works');
    is(lines($t, qr/is usable again/), 1, 'logged once');

    $t->done();
};


subtest 'killed and restarted' => sub {

    my $t = Referral::Test->new();
    my $redis = $t->redis(tcp => 1);

    $redis->code($_) for qw(A B C);

    $t->nginx(http => 'referral_redis redis://127.0.0.1:%%PORT:redis%%;',
              server => $server);

    is(shown($t->get('/r/A')), '302 valid miss', 'filled');

    for my $round (1 .. 2) {
        $redis->kill9();

        is(shown($t->get('/r/A')), '302 valid stale', 'the zone answers');

        my ($r, $took) = timed($t, '/r/B');
        is($r->status, 503, 'the other code is not known');
        cmp_ok($took, '<', 0.3, 'in time');

        $redis->start();
        $redis->code($_) for qw(A B C);

        ok($t->wait_for(sub { $t->get("/r/NEW$round")->status == 404 }, 15),
           'found again');
    }

    cmp_ok(lines($t, qr/is not usable/), '<=', 2, 'logged once each time');
    is(lines($t, qr/is usable again/), lines($t, qr/is not usable/),
       'every end too');

    $t->done();
};


subtest 'frozen' => sub {

    my $t = Referral::Test->new();
    my $redis = $t->redis(tcp => 1);

    $redis->code("A$_") for 1 .. 30;

    $t->nginx(http => 'referral_redis redis://127.0.0.1:%%PORT:redis%% '
              . 'timeout=100ms;', server => $server);

    is($t->get('/r/A30')->status, 302, 'well');

    $redis->disconnect();
    $redis->pause();

    my ($r, $took) = timed($t, '/r/A1');

    is(shown($r), '503 unverified miss', 'the deadline ends the wait');
    cmp_ok($took, '>', 0.08, 'not before');
    cmp_ok($took, '<', 0.3, 'nor long after');

    $t->get("/r/A$_") for 2 .. 8;

    $t->log_like(qr/is not usable: 5 answers in a row are late/,
                 'the circuit opened');

    my @took = map { (timed($t, "/r/A$_"))[1] } 9 .. 20;

    is(scalar(grep { $_ > 0.05 } @took), 0, 'nobody waits any more');

    my $cpu = cpu($t);
    sleep(1.5);
    cmp_ok(cpu($t) - $cpu, '<', 0.1, 'does not spin');

    $redis->resume();

    ok($t->wait_for(sub { $t->get('/r/A21')->status == 302 }, 15), 'back');
    $t->log_like(qr/is usable again/, 'noticed');

    $t->done();
};


# The disk takes longer for the worker's first segment than Redis may take to
# be connected: that is not Redis' fault.

subtest 'a slow start' => sub {

    plan skip_all => 'nothing can be preloaded before the sanitizers'
        if $ENV{REFERRAL_ASAN};

    my $t = Referral::Test->new();

    $t->redis()->code('A');

    $t->write_file('slow.c', q{
        #include <time.h>

        int
        fdatasync(int fd)
        {
            struct timespec  ts = { 0, 700 * 1000000 };

            nanosleep(&ts, NULL);

            return 0;
        }
    });

    my $built = $t->run($ENV{CC} // 'gcc', '-shared', '-fPIC', '-o',
                        $t->path('slow.so'), $t->path('slow.c'));

    is($built->{status}, 0, 'built') or diag($built->{output});

    {
        local $ENV{LD_PRELOAD} = $t->path('slow.so');
        $t->nginx(http => 'referral_redis %%REDIS%% connect_timeout=500ms '
                  . 'timeout=5s;', server => $server);
    }

    is(shown($t->get('/r/A')), '302 valid miss',
       'the first request is asked for');
    $t->log_unlike(qr/in time/, 'nothing is late');

    $t->done();
};


subtest 'frozen for a moment' => sub {

    my $t = Referral::Test->new();
    my $redis = $t->redis();

    $redis->code("A$_") for 1 .. 10;
    $t->nginx(http => 'referral_redis %%REDIS%% timeout=50ms;',
              server => $server);

    $t->get('/r/A10');
    $redis->disconnect();
    $redis->pause();

    is(shown($t->get('/r/A1')), '503 unverified miss', 'late');

    my $clients = sub {
        scalar(grep { /name=referral-\d+-lookup/ }
               split(/\n/, $redis->cmd('CLIENT', 'LIST')))
    };

    $redis->resume();

    ok($t->wait_for(sub { shown($t->get('/r/A1')) eq '302 valid hit' }, 2),
       'the late reply fills the zone');

    is(shown($t->get('/r/A2')), '302 valid miss', 'replies stay in order');
    is($clients->(), 1, 'on the same connection');
    like($redis->cmd('CLIENT', 'LIST'), qr/name=referral-\d+-lookup/,
         'which has a name');
    is(lines($t, qr/not usable/), 0, 'nothing to report');

    $t->done();
};


subtest 'slow' => sub {

    my $t = Referral::Test->new();

    my $url = fake($t, sub {
        my ($words) = @_;
        sleep(0.3) if @$words > 4 && $words->[1] =~ /SLOW/;
        return healthy($words);
    });

    $t->nginx(http => "referral_redis $url timeout=100ms;",
              server => $server);

    is(shown($t->get('/r/SLOW')), '503 unverified miss', 'late');
    ok($t->wait_for(sub { shown($t->get('/r/SLOW')) eq '302 valid hit' }, 2),
       'but not lost');
    is(shown($t->get('/r/QUICK')), '302 valid miss', 'others are in time');

    end_fake();
    $t->done();
};


subtest 'always slow' => sub {

    my $t = Referral::Test->new();
    my $after = 0;

    my $url = fake($t, sub {
        my ($words) = @_;

        # the read of a code and what follows it count as one

        sleep(0.15) if -e $t->path('slow') && !$after;
        $after = @$words > 4;

        return healthy($words);
    });

    $t->nginx(http => "referral_redis $url timeout=100ms;",
              server => $server);

    is($t->get('/r/A')->status, 302, 'well');

    $t->write_file('slow', '');
    $t->get("/r/B$_") for 1 .. 6;
    $t->log_like(qr/5 answers in a row are late/, 'the circuit opened');

    my ($r, $took) = timed($t, '/r/C');

    is(shown($r), '503 unverified off', 'nobody waits');
    cmp_ok($took, '<', 0.05, 'at all');

    ($r, $took) = timed($t, '/r/C');
    is(shown($r), '503 unverified off', 'nor for a read that is under way');
    cmp_ok($took, '<', 0.05, 'at all');
    ok($t->wait_for(sub { shown($t->get('/r/C')) eq '302 valid hit' }, 5),
       'but the code is learnt');
    is(lines($t, qr/usable again/), 0, 'while the circuit is open');

    unlink($t->path('slow'));

    $t->log_like(qr/usable again/, 'until replies are in time');

    end_fake();
    $t->done();
};


subtest 'let in' => sub {

    my $t = Referral::Test->new();
    my $redis = $t->redis(tcp => 1, auth => 's3cr3t',
                          args => [ '--requirepass', 's3cr3t' ]);

    $redis->cmd('ACL', 'SETUSER', 'edge', 'on', '>p%40ss', '~referral:*',
                '+hmget');
    $redis->code('A');
    $redis->cmd('SELECT', 3);
    $redis->code('A', url => 'https://example.com/three');
    $redis->code('ONLY3');

    my $port = $t->port('redis');
    my $path = $redis->path();

    $t->write_file('password', "s3cr3t\n", 0600);
    $t->write_file('password2', "p%40ss", 0600);

    my @cases = (
        [ "redis://:s3cr3t\@127.0.0.1:$port", 302, 404 ],
        [ "redis://127.0.0.1:$port password_file=%%DIR%%/password",
          302, 404 ],
        [ "redis://default:s3cr3t\@127.0.0.1:$port/3", 302, 302 ],
        [ "redis://localhost:$port/3 password_file=%%DIR%%/password",
          302, 302 ],
        [ "redis://edge:p%2540ss\@127.0.0.1:$port", 302, 404 ],
        [ "redis://edge\@127.0.0.1:$port password_file=%%DIR%%/password2",
          302, 404 ],
        [ "unix:$path password_file=%%DIR%%/password", 302, 404 ],
        [ "unix:$path:3 password_file=%%DIR%%/password", 302, 302 ],
    );

    my $n = 0;

    for (@cases) {
        my ($redis_conf, $a, $only3) = @$_;
        my %conf = (http => "referral_zone ${\(1024 + $n)}k; "
                    . "referral_redis $redis_conf;", server => $server);

        $n++ ? $t->reconfigure(%conf) : $t->nginx(%conf);

        is($t->get('/r/A')->status, $a, "A of $redis_conf");
        is($t->get('/r/ONLY3')->status, $only3, 'of the right database');
    }

    is(lines($t, qr/not usable/), 0, 'nothing to report');

    # not let in

    $t->write_file('password3', "wr0ng\n", 0600);

    @cases = (
        [ "redis://127.0.0.1:$port", qr/NOAUTH Authentication required/ ],
        [ "redis://127.0.0.1:$port password_file=%%DIR%%/password3",
          qr/WRONGPASS/ ],
        [ "redis://edge:p%2540ss\@127.0.0.1:$port/3", qr/NOPERM.*select/i ],
        [ "redis://:s3cr3t\@127.0.0.1:$port/9999",
          qr/ERR DB index is out of range/ ],
    );

    for (@cases) {
        my ($redis_conf, $pattern) = @$_;

        $t->reconfigure(http => "referral_zone ${\(1024 + $n++)}k; "
                        . "referral_redis $redis_conf;", server => $server);
        $t->log_like(qr/\[error\].*is not usable: .*$pattern/, $redis_conf);
        is(shown($t->get('/r/A')), '503 unverified off', 'unverified');
    }

    # a password that is changed is learnt at reload

    my $logs = $t->log();
    unlike($logs, qr/s3cr3t|p%40ss|p%2540ss|wr0ng/, 'no password in the log');

    $t->done();
};


subtest 'not ready' => sub {

    my $t = Referral::Test->new();
    my @says = (
        'LOADING Redis is loading the dataset in memory',
        'MASTERDOWN Link with MASTER is down',
        'MOVED 3999 127.0.0.1:6381',
        'BUSY Redis is busy running a script.',
        'NOPERM this user has no permissions to run the \'hmget\' command',
        'ERR unknown command \'HMGET\'',
    );

    my $file = $t->path('mode');
    $t->write_file('mode', '');

    my $url = fake($t, sub {
        my ($words) = @_;
        my $mode = $t->read_file('mode');
        return "-$mode\r\n" if length($mode) && uc($words->[0]) eq 'HMGET';
        return healthy($words);
    });

    $t->nginx(http => "referral_redis $url;", server => $server);

    my $n = 0;

    for my $says (@says) {

        # first in the middle of it, then when connecting

        is($t->get('/r/OK' . ++$n)->status, 302, 'ready');

        $t->write_file('mode.new', $says);
        rename("$file.new", $file);

        is($t->get('/r/NO' . ++$n)->status, 503, $says);
        sleep(0.3);

        # the best of some, as others use the machine, too

        my @took;

        for (1 .. 5) {
            my ($r, $took) = timed($t, '/r/NO' . ++$n);
            is($r->status, 503, 'and again');
            push(@took, $took);
        }

        @took = sort { $a <=> $b } @took;
        cmp_ok($took[0], '<', 0.05, 'at once') unless $says =~ /^ERR/;

        unlink($file);
        $t->write_file('mode.new', '');
        rename("$file.new", $file);

        ok($t->wait_for(sub { $t->get('/r/NEW' . $n)->status == 302 }, 15),
           'ready again');

        my ($word) = $says =~ /^(\w+)/;
        is(lines($t, qr/is not usable: $word /), 1, 'logged once')
            unless $word eq 'ERR';

        # new workers, new patience

        $t->reload();
    }

    end_fake();
    $t->done();
};


subtest 'too many clients' => sub {

    my $t = Referral::Test->new();
    my $redis = $t->redis(args => [ '--maxclients', '3' ]);

    $redis->code('A');

    my @others = map { IO::Socket::UNIX->new(Peer => $redis->path()) } 1, 2;

    for my $other (@others) {
        print $other "PING\r\n";
        is(scalar(<$other>), "+PONG\r\n", 'the server gets full');
    }

    $t->nginx(server => $server);

    $t->log_like(qr/is not usable: ERR max number of clients reached/,
                 'says so');
    is($t->get('/r/A')->status, 503, 'unverified');

    close($_) for @others;

    ok($t->wait_for(sub { $t->get('/r/A')->status == 302 }, 10), 'later');

    $t->done();
};


subtest 'broken servers' => sub {

    my $good = sub { healthy($_[0]) };
    my $on_lookup = sub {
        my ($bytes) = @_;
        return sub {
            my ($words) = @_;
            return @$words > 4 && $words->[1] =~ /BAD/
                   ? (ref $bytes eq 'CODE' ? $bytes->() : $bytes)
                   : healthy($words);
        };
    };

    my @cases = (
        [ 'HTTP', $on_lookup->("HTTP/1.1 400 Bad Request\r\n\r\n"),
          qr/not a Redis server/ ],
        [ 'junk', $on_lookup->("\x00\xff\x1b[31m\r\n" x 10),
          qr/not a Redis server/ ],
        [ 'a huge string', $on_lookup->(sub {
              "*10\r\n\$500000000\r\n" . 'x' x 3000000 }),
          qr/a reply is too large/ ],
        [ 'a huge array', $on_lookup->("*2000000000\r\n"),
          qr/a reply is too large/ ],
        [ 'a negative array', $on_lookup->("*-7\r\n"),
          qr/not a Redis server|an unexpected reply/ ],
        [ 'deep arrays', $on_lookup->("*1\r\n" x 1000),
          qr/a reply is too large/ ],
        [ 'half a reply', $on_lookup->([ "*10\r\n\$5\r\nab" ]),
          qr/the server closed the connection/ ],
        [ 'nothing', $on_lookup->(sub { undef }),
          qr/the server closed the connection/ ],
        [ 'more replies than commands', $on_lookup->(
              "*-1\r\n+OK\r\n+OK\r\n+OK\r\n"), qr/an unexpected reply/ ],
        [ 'two fields', $on_lookup->("*2\r\n\$1\r\na\r\n\$1\r\nb\r\n"),
          undef ],
        [ 'a number', $on_lookup->(":42\r\n"), undef ],
        [ 'numbers for fields', $on_lookup->("*10\r\n" . ":1\r\n" x 10),
          undef ],
        [ 'an error', $on_lookup->("-ERR something else\r\n"), undef ],
    );

    for (@cases) {
        my ($name, $script, $pattern) = @$_;

      subtest $name => sub {

        my $t = Referral::Test->new();
        my $url = fake($t, $script);

        $t->nginx(http => "referral_redis $url timeout=500ms;",
                  server => $server);

        is($t->get('/r/GOOD')->status, 302, 'well before');
        is(shown($t->get('/r/BAD')), '503 unverified miss', 'unverified');

        $t->log_like(qr/is not usable: .*$pattern/, 'says why') if $pattern;

        ok($t->wait_for(sub { $t->get('/r/BETTER')->status == 302 }, 10),
           'and works again');
        $t->log_unlike(qr/\[(?:error|notice)\].*[^\x20-\x7e]/,
                       'nothing odd in the log');

        my $rss = 0;

        for ($t->workers()) {
            $rss += $1 if $t->read_file("/proc/$_/status")
                          =~ /VmPeak:\s+(\d+)/;
        }

        cmp_ok($rss, '<', 1000000, 'no memory was taken for it')
            unless $ENV{REFERRAL_ASAN};

        end_fake();
        $t->done();
      };
    }
};


subtest 'one byte at a time' => sub {

    my $t = Referral::Test->new();
    my $url = fake($t, \&healthy, bytes => 1);

    $t->nginx(http => "referral_redis $url timeout=10s;", server => $server);

    is(shown($t->get('/r/A')), '302 valid miss', 'assembled');
    is(scalar(grep { $_->status == 302 }
              $t->parallel(map { "/r/B$_" } 1 .. 5)), 5, 'and more of them');

    end_fake();
    $t->done();
};


subtest 'a server that accepts and is silent' => sub {

    my $t = Referral::Test->new();
    my $url = fake($t, sub { '' });

    $t->nginx(http => "referral_redis $url connect_timeout=300ms;",
              server => $server);

    my ($r, $took) = timed($t, '/r/A');

    is($r->status, 503, 'unverified');
    cmp_ok($took, '<', 0.4, 'in time');
    $t->log_like(qr/is not usable: connected, but no answer in time/,
                 'says why');

    end_fake();
    $t->done();
};


subtest 'an idle connection is closed' => sub {

    my $t = Referral::Test->new();
    my $redis = $t->redis();

    $redis->code($_) for qw(A B C);
    $t->nginx(server => $server);

    is($t->get('/r/A')->status, 302, 'before');
    sleep(1.2);

    $redis->cmd('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');

    is(shown($t->get('/r/B')), '302 valid miss', 'nobody notices');
    is(lines($t, qr/not usable/), 0, 'nothing to report');

    $t->done();
};


subtest 'many at once' => sub {

    my $t = Referral::Test->new();
    my $redis = $t->redis();

    $redis->code("A$_") for 1 .. 300;
    $t->nginx(http => 'referral_redis %%REDIS%% timeout=5s;',
              server => $server, workers => 2);

    for my $round (1 .. 3) {
        $redis->cmd('FLUSHALL');
        $redis->code("A${round}X$_", url => "https://example.com/$_")
            for 1 .. 300;

        my @r = $t->parallel(map { "/r/A${round}X$_" } 1 .. 300);

        is(scalar(grep {
               ($r[$_]->header('Location') // '')
               eq 'https://example.com/' . ($_ + 1)
           } 0 .. 299), 300, 'every request has its own answer');
    }

    $t->done();
};


subtest 'configuration' => sub {

    my $t = Referral::Test->new();

    $t->write_file('empty', '');
    $t->write_file('two', "a\nb\n");
    $t->write_file('long', 'x' x 5000);

    my @cases = (
        [ 'http://127.0.0.1', qr/invalid address in "referral_redis"/ ],
        [ 'redis://', qr/invalid address in "referral_redis"/ ],
        [ 'redis://127.0.0.1:99999', qr/invalid address/ ],
        [ 'redis://127.0.0.1/x', qr/invalid address/ ],
        [ 'unix:', qr/invalid address/ ],
        [ 'unix:/' . 'x' x 200, qr/invalid address/ ],
        [ 'redis://no-such-host.invalid', qr/host not found/ ],
        [ 'redis://127.0.0.1 timeout=x', qr/invalid time in "timeout=x"/ ],
        [ 'redis://127.0.0.1 timeout=0', qr/invalid time in "timeout=0"/ ],
        [ 'redis://127.0.0.1 connect_timeout=',
          qr/invalid time in "connect_timeout="/ ],
        [ 'redis://127.0.0.1 retries=3', qr/invalid parameter "retries=3"/ ],
        [ 'redis://127.0.0.1; referral_redis redis://127.0.0.1',
          qr/is duplicate/ ],
        [ 'redis://user@127.0.0.1', qr/a user without a password/ ],
        [ 'redis://127.0.0.1 password_file=%%DIR%%/none',
          qr/open\(\) ".*\/none" failed \(2: No such file/ ],
        [ 'redis://127.0.0.1 password_file=%%DIR%%/empty', qr/is empty/ ],
        [ 'redis://127.0.0.1 password_file=%%DIR%%/two',
          qr/must hold one line/ ],
        [ 'redis://127.0.0.1 password_file=%%DIR%%/long',
          qr/must hold one line/ ],
        [ 'redis://127.0.0.1 password_file=', qr/names no file/ ],
        [ 'redis://:pw@127.0.0.1 password_file=%%DIR%%/two',
          qr/a password both in the address and in/ ],
        [ 'redis://:hunter2@127.0.0.1:bad', qr/invalid address/ ],
    );

    for (@cases) {
        my ($value, $pattern) = @$_;
        my $r = $t->nginx_test(http => "referral_redis $value;");

        isnt($r->{status}, 0, $value);
        like($r->{output}, qr/\[emerg\].*$pattern/, 'says why');
        unlike($r->{output}, qr/hunter2/, 'shows no password');
    }

    is($t->nginx_test(http => "referral_redis $_;")->{status}, 0, $_)
        for 'redis://127.0.0.1', 'redis://[::1]:6380/2',
            'unix:/run/none.sock:3', 'redis://localhost timeout=5ms';

    $t->done();
};


done_testing();
