package Referral::Test::Fault::Random;

# Copyright (C) The nginx referral module authors
#
# Pairs of faults, chosen by a seed: the same seed chooses the same faults for
# the same times.  What the machine makes of them is never the same.

use strict;
use warnings;

use Time::HiRes qw(sleep time);

use Referral::Test::Fault::Disk;
use Referral::Test::Stand;


# name => [ begin, end ]; whole => 0: nginx's counters do not survive it

my %faults = (
    'nginx worker killed' => [ sub { $_[0]->kill_nginx_worker() } ],
    'nginx killed' => [ sub {
        $_[0]->kill_nginx();
    }, sub { $_[0]->t()->nginx_start() }, whole => 0 ],
    'nginx workers stopped' => [ sub {
        $_[0]->{paused} = [ $_[0]->pause_nginx_workers() ];
    }, sub { kill('CONT', @{ $_[0]->{paused} }) } ],
    'reload' => [ sub { $_[0]->t()->{nginx}->signal('HUP') } ],
    'reloads' => [ sub {
        for (1 .. 6) {
            $_[0]->t()->{nginx}->signal('HUP');
            sleep(0.1);
        }
    } ],
    'worker killed' => [ sub { $_[0]->worker()->kill9() },
                         sub { $_[0]->worker()->kill9()->start() } ],
    'worker restarted' => [ sub { $_[0]->worker()->restart() } ],
    'worker stopped' => [ sub { $_[0]->worker()->pause() },
                          sub { $_[0]->worker()->resume() } ],
    'worker on a copy' => [ sub {
        my ($s) = @_;
        my $copy = $s->t()->dir() . '/copy' . ++$s->{copies};
        system('cp', '-a', $s->{journal}, $copy);
        $s->{twin} = $s->t()->worker(name => "twin$s->{copies}",
                                     %{ $s->worker_conf(journal => $copy) });
    }, sub { $_[0]->{twin}->stop() } ],
    'Redis killed' => [ sub { $_[0]->redis()->kill9() },
                        sub { $_[0]->redis()->start(); $_[0]->set_codes() } ],
    'Redis stopped' => [ sub { $_[0]->redis()->pause() },
                         sub { $_[0]->redis()->resume() } ],
    'Redis emptied' => [ sub {
        eval { $_[0]->redis()->cmd('FLUSHALL') } if $_[0]->redis()->alive();
    }, sub { $_[0]->set_codes() } ],
    'Redis in slices' => [ sub { $_[0]->proxy()->slice(1) },
                           sub { $_[0]->proxy()->clear() } ],
    'Redis hangs' => [ sub { $_[0]->proxy()->hang() },
                       sub { $_[0]->proxy()->clear() } ],
    'Redis reset' => [ sub { $_[0]->proxy()->reset() } ],
    'Postgres restarted' => [ sub { $_[0]->pg()->restart() } ],
    'Postgres crashes' => [ sub { $_[0]->pg()->stop(signal => 'QUIT') },
                            sub { $_[0]->pg()->start() } ],
    'sessions ended' => [ sub {
        $_[0]->pg()->try("SELECT pg_terminate_backend(pid)
            FROM pg_stat_activity WHERE usename = 'edge'");
    } ],
    'table locked' => [ sub {
        my ($s) = @_;
        $s->{lock} = Referral::Test::Process->new(name => 'lock',
            log => $s->t()->dir() . '/lock.log',
            argv => [ 'psql', '-X', '-d', $s->pg()->conninfo(), '-c',
                      'BEGIN; LOCK TABLE referral.interaction;'
                      . ' SELECT pg_sleep(60)' ]);
    }, sub {
        my ($s) = @_;
        $s->pg()->try("SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE application_name = 'psql'
                             AND query LIKE '%LOCK TABLE%'
                             AND pid <> pg_backend_pid()");
        $s->{lock}->kill9();
    } ],
    'position spoiled' => [ sub {
        for my $file (glob("$_[0]->{journal}/*/committed")) {
            my $data = eval { Referral::Test::Fault::Disk::slurp($file) };
            next unless length($data // '');
            eval { Referral::Test::Fault::Disk::overwrite($file,
                       int(length($data) / 2), "\x5a") };
        }
    } ],
);

# these do not go together: one ends what the other begins
my @apart = (
    [ 'nginx killed', 'nginx worker killed', 'nginx workers stopped',
      'reload', 'reloads' ],
    [ 'worker killed', 'worker restarted', 'worker stopped' ],
    [ 'Redis killed', 'Redis stopped', 'Redis emptied' ],
    [ 'Redis in slices', 'Redis hangs', 'Redis reset' ],
    [ 'Postgres restarted', 'Postgres crashes', 'table locked',
      'sessions ended' ],
);


# a generator of its own: rand() is drawn from by others, too (Park, Miller)

sub draw {
    my ($state, $n) = @_;

    $$state = $$state * 48271 % 2147483647;

    return $$state % $n;
}


sub pair {
    my ($state) = @_;

    my @names = sort keys %faults;

    for ( ;; ) {
        my @pair = map { $names[draw($state, scalar(@names))] } 1, 2;

        next if $pair[0] eq $pair[1];
        next if grep {
            my %set = map { $_ => 1 } @$_;
            $set{$pair[0]} && $set{$pair[1]};
        } @apart;

        # seconds: before the first, between both, with both

        return (@pair, map { (1 + draw($state, 12)) / 10 } 1 .. 3);
    }
}


# one pair: the judgement

sub round {
    my ($s, $first, $second, @wait) = @_;

    my $whole = 1;

    $s->load(rate => 300);
    sleep($wait[0]);

    for ($first, $second) {
        my ($begin, $end, %arg) = @{ $faults{$_} };

        $begin->($s);
        $whole &&= $arg{whole} // 1;
        sleep($wait[1]);
    }

    sleep($wait[2]);

    for ($first, $second) {
        my ($begin, $end) = @{ $faults{$_} };
        $end->($s) if $end;
    }

    sleep(0.2);

    # after nginx was killed its counters begin anew

    my $v = $s->settle(counters => $whole);
    $s->{drops_before} = $s->drops() // 0;
    $s->{oracle}->forget_drops();

    return $v;
}


sub stand {
    return Referral::Test::Stand->new(proxy => 1, pg => {},
                                      journal_args => 'size=64m segment=64k');
}


1;
