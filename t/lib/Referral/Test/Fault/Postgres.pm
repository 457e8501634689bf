package Referral::Test::Fault::Postgres;

# Copyright (C) The nginx referral module authors
#
# Postgres dies, refuses, is full, falls back, and is cut off.

use strict;
use warnings;

use Time::HiRes qw(sleep time);

use Referral::Test::Postgres;
use Referral::Test::Process;
use Referral::Test::Proxy;


sub crash {
    my ($signal) = @_;

    return sub {
        my ($s) = @_;

        $s->load();

        for (1 .. 3) {
            sleep(0.7);

            if ($signal eq 'KILL') {
                $s->pg()->{process}->kill9();

            } else {
                $s->pg()->stop(signal => $signal);
            }

            sleep(0.4);
            started($s->pg());
        }

        sleep(0.5);

        return $s->settle();
    };
}


# processes of one that was killed may still have its memory

sub started {
    my ($pg) = @_;

    my $end = time() + 30;

    until (eval { $pg->start(); 1 }) {
        die $@ if time() > $end;
        sleep(0.3);
    }
}


# SIGSTOP to all of its processes: nothing is refused, nothing answered

sub frozen {
    my ($s) = @_;

    $s->load();

    for (1 .. 2) {
        sleep(0.6);

        my $pid = $s->pg()->pid();
        open(my $fh, '<', "/proc/$pid/task/$pid/children") or die;
        my @pids = ($pid, split(' ', <$fh> // ''));

        kill('STOP', @pids);
        sleep(1.5);
        kill('CONT', @pids);
    }

    return $s->settle();
}


sub terminate {
    my ($s) = @_;

    $s->pg()->try("SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE application_name = 'referral-worker'
                         AND datname = '$s->{db}'", 'postgres');
}


sub terminated {
    my ($s) = @_;

    $s->load();

    for (1 .. 15) {
        sleep(rand(0.25));
        terminate($s);
    }

    return $s->settle();
}


sub read_only {
    my ($s) = @_;

    $s->load();
    sleep(0.7);
    $s->rows("ALTER DATABASE $s->{db} SET default_transaction_read_only = on");
    terminate($s);
    sleep(2);
    $s->pg()->rows("ALTER DATABASE $s->{db}
                    RESET default_transaction_read_only", db => 'postgres');

    return $s->settle();
}


# somebody holds the table: longer than a timeout of the worker, and again

sub locked {
    my ($s) = @_;

    $s->load();

    for (1 .. 2) {
        sleep(0.5);

        my $p = Referral::Test::Process->new(name => 'locker',
            log => $s->t()->dir() . '/locker.log',
            argv => [ 'psql', '-X', '-d', $s->pg()->conninfo(db => $s->{db}),
                      '-c', 'BEGIN; LOCK TABLE referral.interaction;'
                      . ' SELECT pg_sleep(1.5)' ]);
        $p->wait(30);
    }

    return $s->settle();
}


# all places are taken when the worker comes back

sub connections {
    my ($s) = @_;

    $s->load();
    sleep(0.6);

    my @busy = map {
        Referral::Test::Process->new(name => 'busy',
            log => $s->t()->dir() . '/busy.log',
            argv => [ 'sh', '-c', 'for i in $(seq 60); do'
                      . ' psql -X -d "$0" -c "SELECT pg_sleep(4)" && break;'
                      . ' done', $s->pg()->conninfo(user => 'edge') ]);
    } 1 .. 6;

    # of five, the worker's threads have the others

    $s->t()->wait_for(sub {
        $s->value("SELECT count(*) FROM pg_stat_activity
                   WHERE query LIKE 'SELECT pg_sleep%'") >= 2;
    }, 10) or die "no connections were taken\n";

    # whoever is quicker has the place that it leaves

    $s->t()->wait_for(sub {
        return 1 if $s->worker()->output() =~ /sqlstate=53300/;
        terminate($s);
        sleep(0.1);
        return 0;
    }, 5) or die "the worker always found a place\n";

    $_->wait(30) for @busy;

    return $s->settle();
}


# The cluster on a small tmpfs that somebody else fills up.  Without a place
# for its log, the server ends itself; it is started until it stays.

sub disk_full {
    my ($s) = @_;

    my $pg = $s->pg();
    my $data = $pg->{data};

    $pg->stop();
    rename($data, "$data.moved") or die "$data: $!\n";
    mkdir($data, 0700);
    system('mount', '-t', 'tmpfs', '-o', 'size=160m,mode=0700', 'tmpfs',
           $data) == 0 or die "no tmpfs at $data\n";
    system('chown', '--reference', "$data.moved", $data);
    system('cp', '-a', "$data.moved/.", $data) == 0 or die;

    my $v = eval {
        $pg->start();
        $s->load(rate => 500);

        for (1 .. 2) {
            sleep(0.5);
            system("cat /dev/zero >$data/filler 2>/dev/null");
            sleep(2);
            unlink("$data/filler") or die "$data/filler: $!\n";
            started($pg) unless $pg->alive();
        }

        $s->t()->wait_for(sub { $s->worker()->output()
                                =~ /sqlstate=(?:53100|57P0|08|58)/ }, 5);

        started($pg) unless $pg->alive();
        my $v = $s->settle();
        push @{ $v->{wrong} }, 'the worker did not notice a full disk'
            unless $s->worker()->output() =~ /event=postgres-failed/;
        $v;
    };

    my $error = $@;

    $s->calm();
    $s->worker()->stop();
    $pg->stop();
    system('umount', '-l', $data);
    die $error unless $v;

    return $v;
}


sub no_insert {
    my ($s) = @_;

    $s->load();

    for my $what ('INSERT ON referral.interaction',
                  'UPDATE ON referral.ingest_cursor',
                  'INSERT ON referral.counter_delta')
    {
        sleep(0.5);
        $s->rows("REVOKE $what FROM referral_worker");
        sleep(0.8);
        $s->rows("GRANT $what TO referral_worker");
    }

    return $s->settle();
}


# the worker knows today's partition, and somebody drops it

sub partition {
    my ($s) = @_;

    my $t = $s->t();

    # a click whose stream is forgotten, here and there

    $t->get('/r/CODE1');
    $t->wait_for(sub { $s->value('SELECT count(*) FROM referral.interaction')
                       == 1 }, 10) or die "no first click\n";
    $s->worker()->configure(%{ $s->worker_conf(retention => '0') });
    $s->worker()->hup();
    $t->reload();
    $t->wait_for(sub { $s->worker()->output() =~ /event=stream-done/ }, 20)
        or die "its stream is still there\n";

    $s->rows('DELETE FROM referral.ingest_cursor');
    $s->rows('TRUNCATE referral.counter, referral.counter_delta');
    my $table = $s->value("SELECT 'interaction_'
                           || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')");
    $s->rows("DROP TABLE referral.$table");

    $s->{drops_before} = $s->drops();
    $s->load();
    sleep(1.5);

    my $v = $s->settle();

    push @{ $v->{wrong} }, 'it was not made again'
        unless $s->value("SELECT to_regclass('referral.$table')");

    return $v;
}


# A standby as of now.  It is started when the primary is dead: what it lacks
# are all commits from here on.

sub standby {
    my ($s) = @_;

    my $pg = $s->pg();
    my $home = "$pg->{home}/standby";
    my $r = $pg->run("$pg->{bin}/pg_basebackup", '-D', "$home/data", '-R',
                     '-c', 'fast', '-X', 'stream', '-h', $pg->{home}, '-p',
                     5432, '-U', 'postgres');

    die "pg_basebackup: $r->{output}\n" if $r->{status};

    my $standby = bless { %$pg, home => $home, data => "$home/data",
                          name => 'standby' }, ref($pg);
    delete $standby->{process};

    return $standby;
}


sub promote {
    my ($s, $standby) = @_;

    $standby->start();
    sleep(0.7);

    my $r = $standby->run("$standby->{bin}/pg_ctl", '-D', $standby->{data},
                          '-w', 'promote');
    die "promote: $r->{output}\n" if $r->{status};

    $s->{pg} = $s->t()->{postgres}{standby} = $standby;
}


sub both {
    my ($s) = @_;

    my $home = $s->pg()->{home};

    return "host=$home,$home/standby port=5432 dbname=referral user=edge";
}


sub failover {
    my ($s) = @_;

    $s->worker()->configure(%{ $s->worker_conf(postgres => both($s)) });
    $s->worker()->start();
    $s->load();
    sleep(1);

    my $standby = standby($s);

    sleep(1.5);
    $s->pg()->stop(signal => 'QUIT');
    sleep(0.5);
    promote($s, $standby);
    sleep(0.7);

    my $v = $s->settle();

    # those that lost nothing prove nothing

    push @{ $v->{wrong} }, 'the standby had it all'
        unless $s->worker()->output() =~ /event=cursor-back/;

    return $v;
}


# An outage longer than retention, then a standby that lacks what was
# committed just before it.

sub outage {
    my ($s) = @_;

    $s->worker()->configure(%{ $s->worker_conf(postgres => both($s),
                                               retention => '6s') });
    $s->worker()->start();
    $s->load(rate => 500);
    sleep(0.5);

    my $standby = standby($s);

    sleep(1.5);
    $s->pg()->stop(signal => 'QUIT');
    sleep(8);

    # the old primary shows itself for a moment

    started($s->pg());
    sleep(1);
    $s->pg()->stop(signal => 'QUIT');
    promote($s, $standby);

    my $v = $s->settle();

    push @{ $v->{wrong} }, 'the standby had it all'
        unless $s->worker()->output() =~ /event=cursor-back/;

    return $v;
}


# the worker's way to Postgres through a proxy

sub proxied {
    my ($s, %conf) = @_;

    my $dir = $s->t()->dir() . '/net';

    mkdir($dir);

    my $proxy = Referral::Test::Proxy->new(listen => "$dir/.s.PGSQL.5432",
        to => $s->pg()->{home} . '/.s.PGSQL.5432');

    $s->worker()->configure(%{ $s->worker_conf(%conf,
        postgres => "host=$dir port=5432 dbname=$s->{db} user=edge") });
    $s->worker()->start();

    return $proxy;
}


# Each cut is one limit; the next begins when clicks flow again.

sub cuts {
    my ($s, $proxy, @limits) = @_;

    my @unreached;
    my $seq = sub {
        return $s->value('SELECT sum(seq) FROM referral.ingest_cursor') // 0;
    };

    for my $limit (@limits) {
        $proxy->limit(times => 1, then => 'close', %$limit);
        $proxy->close();

        push @unreached, join(' ', map { "$_=$limit->{$_}" }
                                   sort keys %$limit)
            unless $proxy->wait_hits(1, 20);

        # something is committed after it

        my $last = $seq->();

        $s->t()->wait_for(sub { $seq->() > $last }, 10);
    }

    $proxy->clear();

    my $v = $s->settle();

    push @{ $v->{wrong} }, map { "never reached: $_" } @unreached;

    return $v;
}


sub handshake {
    my ($s) = @_;

    my $proxy = proxied($s);

    $s->load();

    return cuts($s, $proxy, (map { { up => $_ } } 0, 3, 8, 60, 300, 700),
                map { { down => $_ } } 0, 1, 9, 40, 200, 420);
}


my @statements = ('BEGIN ISOLATION', 'UPDATE referral.ingest_cursor',
                  'COPY referral.interaction', 'COPY referral.counter_delta',
                  "COMMIT\0");


# the question arrives, the answer does not, or not all of it; or the question
# that follows does not arrive, or not all of it

sub statements {
    my ($then) = @_;

    return sub {
        my ($s) = @_;

        my $proxy = proxied($s);

        $s->load();

        return cuts($s, $proxy, map {
            my $statement = $_;
            map { { %$_, after => $statement, then => $then } }
                { down => 0 }, { down => 7 }, { up => 0 }, { up => 9 };
        } @statements);
    };
}


sub commits {
    my ($s) = @_;

    my $proxy = proxied($s);

    $s->load();

    # CommandComplete has 12 bytes, ReadyForQuery 6

    return cuts($s, $proxy, map {
        { down => $_, after => "COMMIT\0", then => $_ & 1 ? 'reset'
                                                         : 'close' }
    } 0, 1, 4, 8, 11, 12, 14, 17);
}


# the server believes the worker to be there, in the middle of a transaction

sub half_open {
    my ($s) = @_;

    my $proxy = proxied($s, statement_timeout => '1500ms',
                        lock_timeout => '300ms');

    $s->load();

    my $v = cuts($s, $proxy, map {
        { down => 0, after => $_, then => 'half' }
    } @statements[1, 2, 4]);

    # its own session of before keeps the row of the only stream's cursor

    push @{ $v->{wrong} }, 'nothing was held'
        unless $s->worker()->output() =~ /sqlstate=55P03/;

    return $v;
}


# the answer to COMMIT does not come, and the connection does not end

sub silent {
    my ($s) = @_;

    my $proxy = proxied($s, statement_timeout => '500ms');

    $s->load();
    sleep(0.5);
    $proxy->limit(down => 0, after => "COMMIT\0", then => 'hang', times => 1);
    $proxy->close();
    $proxy->wait_hits(1, 20) or die "no COMMIT\n";
    sleep(1);

    return $s->settle();
}


sub slow {
    my ($s) = @_;

    my $proxy = proxied($s);

    $s->load();
    sleep(0.3);
    $proxy->latency(0.05);
    sleep(1.5);
    $proxy->latency(0);
    $proxy->slice(200);
    sleep(1.5);

    for (1 .. 8) {
        sleep(rand(0.3));
        $proxy->reset();
    }

    $proxy->clear();

    return $s->settle();
}


# an answer that no server gives

sub garbage {
    my ($s) = @_;

    my $proxy = proxied($s);

    $s->load();

    for my $bytes ("\xff" x 64, "E\0\0\0\0", "C\xff\xff\xff\xffCOMMIT\0",
                   "HTTP/1.1 400 Bad Request\r\n\r\n")
    {
        sleep(0.5);
        $proxy->garbage($bytes);
        sleep(0.3);
        $proxy->close();
    }

    return $s->settle();
}


sub table {
    my $own = { pg => {} };
    my $later = { start_later => 1 };
    my $pair = { pg => {}, start_later => 1,
                 journal_args => 'size=64m segment=64k' };

    return (
        [ 'pg-immediate', 'immediate shutdowns', crash('QUIT'), $own ],
        [ 'pg-kill', 'kill -9 of the postmaster', crash('KILL'), $own ],
        [ 'pg-frozen', 'all its processes stopped for a while', \&frozen,
          $own ],
        [ 'pg-terminated', 'the worker\'s sessions ended', \&terminated ],
        [ 'pg-read-only', 'read-only, as a demoted primary', \&read_only ],
        [ 'pg-lock', 'LOCK TABLE beyond lock_timeout', \&locked,
          { worker_settings => { lock_timeout => '300ms' } } ],
        [ 'pg-statement-timeout', 'LOCK TABLE beyond statement_timeout',
          \&locked, { worker_settings => { statement_timeout => '400ms',
                                           lock_timeout => '5s' } } ],
        [ 'pg-connections', 'out of connections', \&connections,
          { pg => { conf => { max_connections => 8 } } } ],
        [ 'pg-disk-full', 'its disk is full', \&disk_full,
          { %$own, root => 1 } ],
        [ 'pg-rights', 'the role loses its rights', \&no_insert ],
        [ 'pg-partition', 'a partition that was known is dropped',
          \&partition ],
        [ 'pg-failover', 'a standby without the last commits', \&failover,
          $pair ],
        [ 'pg-outage-failover', 'an outage beyond retention, then that',
          \&outage, $pair ],
        [ 'pg-cut-handshake', 'cut while connecting, in both directions',
          \&handshake, $later ],
        [ 'pg-cut-statements', 'cut at each statement, in both directions',
          statements('close'), $later ],
        [ 'pg-reset-statements', 'the same by RST', statements('reset'),
          $later ],
        [ 'pg-cut-commit', 'the answer to COMMIT cut at each byte',
          \&commits, $later ],
        [ 'pg-half-open', 'half-open connections in a transaction',
          \&half_open, { %$later, workers => 1 } ],
        [ 'pg-silent-commit', 'no answer to COMMIT, and no end', \&silent,
          $later ],
        [ 'pg-slow', 'latency, slices, resets', \&slow, $later ],
        [ 'pg-garbage', 'answers that are none', \&garbage, $later ],
    );
}


1;
