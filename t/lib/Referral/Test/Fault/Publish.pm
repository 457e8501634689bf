package Referral::Test::Fault::Publish;

# Copyright (C) The nginx referral module authors
#
# Publishing, while publishers are stopped and killed, and Redis or Postgres
# forget.  What is judged: Redis has what the database says, in every field,
# and nothing else.

use strict;
use warnings;

use File::Copy qw(copy);
use IO::Socket::UNIX;
use Time::HiRes qw(sleep time);

use Referral::Test;
use Referral::Test::Publish;


# (options of Referral::Test::Publish, sub): the sub with one; its verdict

sub with {
    my ($opt, $sub) = @_;

    return sub {
        my $p = Referral::Test::Publish->new(%$opt);
        my @wrong = eval { $sub->($p) };

        push @wrong, "died: $@" if $@;
        push @wrong, eval { $p->close() };
        push @wrong, "closing: $@" if $@;

        return { wrong => \@wrong };
    };
}


sub ready {
    my ($p, $w, $times) = @_;

    $p->logged($w, qr/event=publish-ready /, $times)
        or die 'not ready: ' . $w->output() . "\n";
}


sub campaign {
    my ($p, $word, $where) = @_;

    $p->sql("UPDATE referral.code SET campaign = '$word'"
            . (defined $where ? " WHERE $where" : ''));
}


# a worker that stops itself; it is stopped when this returns

sub halted {
    my ($p, $w) = @_;

    $p->stopped($w) or die 'not stopped: ' . $w->output() . "\n";
    $w->{process}{expected} = 1;
}


# Two publishers with different addresses of the same Redis, in turn, killed
# while codes change.

sub two {
    my ($p) = @_;

    my $port = $p->redis()->port();
    my @w = ($p->worker('a'),
             $p->worker('b', redis => "redis://127.0.0.1:$port"));

    for my $n (1 .. 8) {
        campaign($p, "n$n", 'id % 2 = ' . $n % 2);
        $w[$n % 2]->kill9()->start();
        campaign($p, "m$n", 'id % 3 = ' . $n % 3);
    }

    my @wrong = $p->settle();

    # one of them has the lock, and only one

    my $n = $p->value("SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a
        USING (pid) WHERE l.locktype = 'advisory' AND a.datname = '$p->{db}'
        AND a.application_name LIKE 'worker-%' AND l.objsubid = 1");
    push @wrong, "$n sessions have the lock" if $n != 1;

    return @wrong;
}


# The first has read a batch and is stopped before it writes; it loses its
# session, the second takes over, and in the middle of the second's batch the
# first goes on, and dies after it has sent a part.  (With 60 codes the full
# publish passes the point three times, a batch of all of them twice.)

sub fence {
    my ($p, %env) = @_;

    my $first = $p->worker('a', env => { %env,
        REFERRAL_FAULT => 'publish-stop:4,publish-chunk:4' });

    ready($p, $first);
    campaign($p, 'one');
    halted($p, $first);
    campaign($p, 'two');

    my $second = $p->worker('b', env => { %env,
        REFERRAL_FAULT => 'publish-stop:2' });

    $p->logged($second, qr/event=publish-standby /) or die "no standby\n";
    $p->cut('a');
    halted($p, $second);

    $first->resume();
    $first->{process}->wait(5);
    $second->resume();

    return $p->settle();
}


# it goes on and lives

sub resumed {
    my ($p) = @_;

    my $first = $p->worker('a', env => { REFERRAL_FAULT => 'publish-stop:4' });

    ready($p, $first);
    campaign($p, 'one');
    halted($p, $first);

    my $second = $p->worker('b');

    $p->cut('a');
    $p->logged($second, qr/event=publish-open /) or die "did not take over\n";
    campaign($p, 'two');

    my @wrong = $p->settle();

    $first->resume();
    campaign($p, 'three', 'id < 9');
    sleep(0.5);
    push @wrong, $p->settle();

    # one of the two has it, the other one waits

    push @wrong, 'no standby: ' . $first->output()
        unless $p->logged($first, qr/event=publish-standby /);
    push @wrong, 'a full publish was made'
        if ($first->output() . $second->output())
           =~ /event=publish-full .* fence=[2-9]/;

    return @wrong;
}


sub dump_to {
    my ($p, $name) = @_;

    my $redis = $p->redis();

    $redis->cmd('SAVE');
    copy("$redis->{home}/dump.rdb", "$redis->{home}/$name.rdb") or die "$!";
}


# Redis dies, and comes back with what it was then

sub restore {
    my ($p, $name) = @_;

    my $redis = $p->redis();

    $redis->kill9();
    copy("$redis->{home}/$name.rdb", "$redis->{home}/dump.rdb") or die "$!";
    $redis->start();
}


sub old_dump {
    my ($p, %env) = @_;

    my $w = $p->worker('a', env => \%env);

    ready($p, $w);
    dump_to($p, 'old');
    $p->sql("UPDATE referral.code SET status = 'disabled' WHERE id % 2 = 0");

    my @wrong = $p->settle();

    restore($p, 'old');
    sleep(1.5);

    return (@wrong, $p->settle());
}


# the dump is of the middle of a batch: its last part is missing in it

sub mid_dump {
    my ($p) = @_;

    my $w = $p->worker('a', env => { REFERRAL_FAULT => 'publish-stop:5' });

    ready($p, $w);
    campaign($p, 'one');
    halted($p, $w);
    dump_to($p, 'mid');
    $w->resume();

    my @wrong = $p->settle();

    restore($p, 'mid');
    push @wrong, $p->settle();

    # and with a publisher that died in that very batch, too

    $w->stop();
    $w->{env}{REFERRAL_FAULT} = 'publish-stop:2';
    $w->start();
    campaign($p, 'two');
    halted($p, $w);
    dump_to($p, 'mid');
    $w->kill9();
    campaign($p, 'three', 'id > 50');
    $w->{env} = {};
    restore($p, 'mid');
    $w->start();

    return (@wrong, $p->settle());
}


# the dump is of the middle of a full publish, half of the codes are missing

sub mid_full {
    my ($p) = @_;

    my $w = $p->worker('a', env => { REFERRAL_FAULT => 'publish-stop:2' });

    halted($p, $w);

    my %p = @{ $p->redis()->cmd('HGETALL', 'referral:publisher') };
    my @wrong = $p{ready} eq '0' ? () : 'it says that it is ready';

    dump_to($p, 'mid');
    $w->resume();
    ready($p, $w);
    restore($p, 'mid');
    ready($p, $w, 2);

    return (@wrong, $p->settle());
}


sub flush_mid_full {
    my ($p) = @_;

    my $w = $p->worker('a', env => { REFERRAL_FAULT => 'publish-stop:2' });

    halted($p, $w);
    $p->redis()->cmd('FLUSHALL');
    $w->resume();

    return $p->settle();
}


sub flush_mid_batch {
    my ($p) = @_;

    my $w = $p->worker('a', env => { REFERRAL_FAULT => 'publish-stop:5' });

    ready($p, $w);
    campaign($p, 'one');
    halted($p, $w);
    $p->redis()->cmd('FLUSHALL');
    $w->resume();

    return $p->settle();
}


sub flush_often {
    my ($p) = @_;

    my $w = $p->worker('a');

    ready($p, $w);

    for my $n (1 .. 25) {
        $p->redis()->cmd('FLUSHALL');
        campaign($p, "n$n", "id = $n") if $n % 3 == 0;
        sleep(rand(0.12));
    }

    return $p->settle();
}


# every place where it may die, one after the other

sub points {
    my ($p) = @_;

    my @wrong;
    my $n = 0;

    $p->sql("INSERT INTO referral.code (organisation_id, program_id, code)
                 SELECT 1, 1, 'MORE' || g FROM generate_series(1, 400) g");

    for my $point (qw(publish-locked publish-taken publish-begun publish-reset
                      publish-off publish-collected publish-chunk
                      publish-chunk:3 publish-last publish-written
                      publish-done publish-searched)) {
        my $w = $p->worker('k' . ++$n, env => { REFERRAL_FAULT => $point });

        campaign($p, "at-$n", 'id < 120');
        $p->sql("SELECT referral.program_set_status(1, '"
                . ($n % 2 ? 'paused' : 'active') . "')");
        $p->value('SELECT referral.publish_request(true)')
            if $point =~ /begun|reset|searched/;

        push @wrong, "$point was not reached"
            unless $p->t()->wait_for(sub { !$w->alive() }, 5);

        $w->{process}{expected} = 1;
        campaign($p, "after-$n", 'id = 7');
        $w->{env} = {};
        $w->start();

        push @wrong, map { "$point: $_" } $p->settle();
        $w->stop();
    }

    return @wrong;
}


# a notification was lost: the next look finds the mark

sub unheard {
    my ($p) = @_;

    my $w = $p->worker('a');

    ready($p, $w);
    $p->sql("SET session_replication_role = replica;
             UPDATE referral.code SET status = 'disabled';
             INSERT INTO referral.mark (kind, object_id)
                 VALUES ('program', 1)");

    my @wrong;
    $p->t()->wait_for(sub { @wrong = $p->differs(); !@wrong }, 3);

    # the session that listened is gone, with what was on its way

    $p->cut('a');
    campaign($p, 'one');

    return (@wrong, $p->settle());
}


sub oom {
    my ($p) = @_;

    my $w = $p->worker('a');
    my @wrong;

    ready($p, $w);
    $p->redis()->cmd('CONFIG', 'SET', 'maxmemory', '1');
    campaign($p, 'one');
    push @wrong, 'OOM is not told'
        unless $p->logged($w, qr/event=publish-failed .*OOM.*maxmemory/);
    campaign($p, 'two', 'id < 30');
    $p->redis()->cmd('CONFIG', 'SET', 'maxmemory', '0');

    push @wrong, $p->settle();
    push @wrong, 'not told that it is over'
        unless $p->logged($w, qr/event=publish-back /);

    # a script of somebody, a user that may not

    $p->redis()->cmd('SCRIPT', 'FLUSH');
    campaign($p, 'three');
    push @wrong, $p->settle();

    $p->redis()->cmd('ACL', 'SETUSER', 'default', '-publish');
    campaign($p, 'four');
    push @wrong, 'NOPERM is not told'
        unless $p->logged($w, qr/event=publish-failed .*(?:NOPERM|ACL)/);
    $p->redis()->cmd('ACL', 'SETUSER', 'default', '+publish');

    return (@wrong, $p->settle());
}


# Redis is frozen for longer than an answer may take

sub frozen {
    my ($p) = @_;

    my $w = $p->worker('a');
    my @wrong;

    ready($p, $w);
    $p->redis()->pause();
    campaign($p, 'one');
    push @wrong, 'it is not told'
        unless $p->logged($w, qr/event=publish-failed .*no answer/);

    # and the flush does not know

    $p->t()->journal_write($p->t()->dir() . '/journal-a', '--count', 100);
    push @wrong, 'clicks wait for Redis'
        unless $p->t()->wait_for(sub {
            $p->value('SELECT count(*) FROM referral.interaction') == 100
        }, 3);

    my $start = time();
    $w->stop();
    push @wrong, 'it stops in ' . (time() - $start) . ' s'
        if time() - $start > 8;
    $p->redis()->resume();
    $w->start();

    return (@wrong, $p->settle());
}


# the master dies, a replica that lags takes its place behind the same name

sub failover {
    my ($p) = @_;

    my $t = $p->t();
    my $old = $p->redis();
    my $new = $t->redis(name => 'replica', port => $t->port('replica'),
                        args => [ '--replicaof', '127.0.0.1', $old->port() ]);
    my $link = $t->dir() . '/redis.sock';

    symlink($old->path(), $link) or die;

    my $w = $p->worker('a', redis => "unix:$link");
    my @wrong;

    ready($p, $w);
    $t->wait_for(sub { $new->cmd('INFO', 'replication')
                       =~ /master_link_status:up/ }, 10)
        or die "no replication\n";
    campaign($p, 'one');
    push @wrong, $p->settle();
    $t->wait_for(sub { ($new->cmd('HGET', 'referral:code:CODE9', 'campaign')
                        // '') eq 'one' }, 5) or die "it lags\n";

    # what comes now the replica never gets

    $new->pause();
    campaign($p, 'two', 'id < 30');
    push @wrong, $p->settle();
    $old->kill9();
    $new->resume();
    $new->cmd('REPLICAOF', 'NO', 'ONE');
    unlink($link);
    symlink($new->path(), $link) or die;
    $p->{redis} = $new;
    campaign($p, 'three', 'id > 55');
    push @wrong, $p->settle();

    # a master that is made a replica is left, though it answers

    $new->cmd('REPLICAOF', '127.0.0.1', 1);
    push @wrong, 'it does not see that it writes to a replica'
        unless $p->logged($w, qr/event=publish-failed .*READONLY.*replica/);
    $new->cmd('REPLICAOF', 'NO', 'ONE');
    campaign($p, 'four');

    return (@wrong, $p->settle());
}


sub postgres_restarts {
    my ($p) = @_;

    my $w = $p->worker('a');

    ready($p, $w);

    for my $n (1 .. 3) {
        for my $m (1 .. 10) {
            campaign($p, "n$n.$m", "id % 5 = $n");
        }

        $p->pg()->restart($n % 2 ? (signal => 'QUIT') : ());
    }

    campaign($p, 'last', 'id < 9');

    return $p->settle();
}


# the database becomes a copy of earlier: its number of transactions passes
# the one that the publisher saw before it is back

sub postgres_falls_back {
    my ($p) = @_;

    my $pg = $p->pg();
    my $w = $p->worker('a');
    my $copy = "$pg->{home}/copy";

    ready($p, $w);
    $pg->stop();
    system('cp', '-a', $pg->{data}, $copy) == 0 or die;
    $pg->start();
    campaign($p, "n$_", "id = $_") for 1 .. 30;

    my @wrong = $p->settle();

    $w->stop();
    $pg->stop(signal => 'QUIT');
    rename($pg->{data}, "$pg->{data}.lost") or die;
    rename($copy, $pg->{data}) or die;
    $pg->start();
    campaign($p, "m$_", 'id = ' . ($_ + 20)) for 1 .. 60;
    $w->start();
    push @wrong, $p->settle();
    campaign($p, 'end', 'id > 50');

    return (@wrong, $p->settle());
}


# two databases publish to one Redis: both say so

sub foreign {
    my ($p) = @_;

    my $w = $p->worker('a');

    ready($p, $w);

    my $other = Referral::Test::Publish->new(codes => 5);

    $other->{redis} = $p->redis();

    # locks are of one server, not of one database: take it from the first

    $p->redis()->cmd('HSET', 'referral:publisher', 'fence', 5000);

    my @wrong;
    push @wrong, 'it is not told'
        unless $p->logged($w, qr/event=publish-foreign /);

    push @wrong, $p->settle();
    push @wrong, $other->close();

    return @wrong;
}


# adversarial switching, while workers are killed and Redis forgets

sub storm {
    my ($p) = @_;

    my @w = map { $p->worker($_) } qw(a b);
    my $end = time() + 8;
    my $n = 0;

    while (time() < $end) {
        $n++;
        my $id = 1 + int(rand(300));

        $p->sql(join(';', map {
            "UPDATE referral.code SET status = CASE status WHEN 'active' THEN"
            . " 'disabled' ELSE 'active' END WHERE id % 17 = $_"
        } $n % 17, ($n * 7) % 17));
        $p->sql("SELECT referral.program_set_status(1, CASE status WHEN"
                . " 'active' THEN 'paused' ELSE 'active' END)"
                . ' FROM referral.program WHERE id = 1') if $n % 7 == 0;
        $p->sql("DELETE FROM referral.code WHERE id = $id;
                 INSERT INTO referral.code (organisation_id, program_id, code)
                     VALUES (1, 1, 'STORM$n')") if $n % 3 == 0;
        $w[$n % 2]->kill9()->start() if $n % 11 == 0;
        $p->redis()->cmd('FLUSHALL') if $n % 29 == 0;
        $p->cut($n % 2 ? 'a' : 'b') if $n % 13 == 0;
    }

    return $p->settle();
}


sub table {
    my $bare = { bare => 1 };
    my $faults = { bare => 1, faults => 1 };
    my %save = (redis => { args => [ '--save', '' ] });

    my $no = sub {
        my ($guard, $sub, %opt) = @_;
        return with(\%opt, sub { $sub->($_[0], REFERRAL_NO_GUARD => $guard) });
    };

    return (
        [ 'publish-two', 'two publishers of one Redis, killed in turn',
          with({ redis => { tcp => 1 } }, \&two), $bare ],

        [ 'publish-fence', 'a publisher stopped in a batch, and resumed in'
          . ' the next one\'s', with({}, \&fence), $faults ],

        [ 'no-publish-fence', 'the same, fences not compared',
          $no->('publish-fence', \&fence),
          { %$faults, must_fail => 1, expect => qr/campaign is one/ } ],

        [ 'publish-resumed', 'a publisher stopped, replaced, and resumed',
          with({}, \&resumed), $faults ],

        [ 'publish-old-dump', 'Redis comes back from an older dump',
          with({}, \&old_dump), $bare ],

        [ 'no-publish-batch', 'the same, batches not compared',
          $no->('publish-batch-compare', \&old_dump),
          { %$faults, must_fail => 1, expect => qr/state is active/ } ],

        [ 'publish-mid-dump', 'Redis comes back from the middle of a batch',
          with({}, \&mid_dump), $faults ],

        [ 'publish-mid-full', 'Redis comes back from the middle of a full'
          . ' publish', with({}, \&mid_full), $faults ],

        [ 'publish-flush-full', 'FLUSHALL in the middle of a full publish',
          with({}, \&flush_mid_full), $faults ],

        [ 'publish-flush-batch', 'FLUSHALL in the middle of a batch',
          with({}, \&flush_mid_batch), $faults ],

        [ 'publish-flush-often', 'FLUSHALL, again and again',
          with({ codes => 600 }, \&flush_often), $bare ],

        [ 'publish-points', 'killed at each point of publishing',
          with({}, \&points), $faults ],

        [ 'publish-unheard', 'notifications are lost',
          with({}, \&unheard), $bare ],

        [ 'publish-refused', 'Redis is full, or refuses',
          with({}, \&oom), $bare ],

        [ 'publish-frozen', 'Redis does not answer', with({}, \&frozen),
          $bare ],

        [ 'publish-failover', 'a replica that lags becomes the master',
          with({ redis => { tcp => 1 } }, \&failover), $bare ],

        [ 'publish-postgres', 'Postgres is restarted, and crashes',
          with({ own => 1 }, \&postgres_restarts), $bare ],

        [ 'publish-fall-back', 'Postgres becomes a copy of earlier',
          with({ own => 1 }, \&postgres_falls_back), $bare ],

        [ 'publish-foreign', 'another database took the fence',
          with({}, \&foreign), $bare ],

        [ 'publish-storm', 'switching, while all of it fails',
          with({ codes => 300 }, \&storm), $bare ],
    );
}


1;
