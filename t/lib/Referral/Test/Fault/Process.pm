package Referral::Test::Fault::Process;

# Copyright (C) The nginx referral module authors
#
# Processes are killed, stopped and replaced.

use strict;
use warnings;

use Time::HiRes qw(sleep time);


sub nothing {
    my ($s) = @_;

    $s->load();
    sleep(2);

    return $s->settle();
}


# clicks go on while one worker after the other dies

sub nginx_workers {
    my ($s) = @_;

    $s->load();

    for (1 .. 8) {
        sleep(0.2 + rand(0.3));
        $s->kill_nginx_worker();
    }

    return $s->settle();
}


# the workers of a dead master go on until they are ended, too

sub nginx_master {
    my ($s) = @_;

    $s->load();
    sleep(0.7);

    my @orphans = $s->kill_nginx(master => 1);

    sleep(0.7);
    kill('QUIT', @orphans);
    $s->t()->wait_for(sub {
        !grep { Referral::Test::alive($_) } @orphans;
    }, 10);
    $s->t()->nginx_start();
    sleep(0.7);

    return $s->settle(counters => 0);
}


sub nginx_all {
    my ($s) = @_;

    $s->load();

    for (1 .. 3) {
        sleep(0.6);
        $s->kill_nginx();
        $s->t()->nginx_start();
    }

    sleep(0.6);

    return $s->settle(counters => 0);
}


sub nginx_paused {
    my ($s) = @_;

    $s->load();

    for (1 .. 4) {
        sleep(0.4);
        my @pids = $s->pause_nginx_workers();
        sleep(0.2 + rand(0.6));
        kill('CONT', @pids);
    }

    return $s->settle();
}


sub reloads {
    my ($s) = @_;

    $s->load();

    for (1 .. 20) {
        $s->t()->{nginx}->signal('HUP');
        sleep(rand(0.2));
    }

    sleep(0.5);

    return $s->settle();
}


# one, eight, one

sub worker_processes {
    my ($s) = @_;

    $s->load();

    for my $n (8, 1, 4, 1) {
        sleep(0.5);
        $s->reconfigure(workers => $n);
    }

    sleep(0.5);

    return $s->settle();
}


# USR2: two masters with workers on one journal; then the old one goes.
# nginx does not do that while its first parent is there.

sub upgrade {
    my ($s) = @_;

    my $t = $s->t();
    my $pidfile = $t->dir() . '/nginx.pid';

    $t->nginx_stop();
    system("$t->{binary} -p " . $t->dir() . ' -c ' . $t->dir()
           . '/nginx.conf -e ' . $t->dir() . '/error.log'
           . ' >>' . $t->dir() . '/nginx.out 2>&1 & sleep 0.5');

    my $old = $t->wait_for(sub { pid($pidfile) }, 10)
        or die "nginx does not start\n";
    $t->{nginx} = Referral::Test::Fault::Process::Orphan->new($old,
                                                 $t->dir() . '/nginx.out');
    $t->wait_for(sub { $t->workers() >= 2 }, 10);

    $s->load();
    sleep(0.7);
    kill('USR2', $old);

    my $new = $t->wait_for(sub {
        my $pid = pid($pidfile);
        return $pid && $pid != $old && -e "$pidfile.oldbin" ? $pid : 0;
    }, 10);

    die "no new master\n" unless $new;

    $t->{nginx}{pid} = $new;
    $t->wait_for(sub { $t->workers() >= 2 }, 10) or die "no new workers\n";
    sleep(0.7);
    kill('WINCH', $old);
    sleep(0.7);
    kill('QUIT', $old);
    $t->wait_for(sub { !Referral::Test::alive($old) }, 10)
        or die "the old master does not end\n";
    sleep(0.5);

    return $s->settle(counters => 0);
}


sub pid {
    my ($file) = @_;

    open(my $fh, '<', $file) or return 0;

    return (<$fh> // '') =~ /^(\d+)/ ? $1 : 0;
}


sub worker_killed {
    my ($s) = @_;

    $s->load(rate => 600);

    for (1 .. 10) {
        sleep(0.05 + rand(0.35));
        $s->worker()->kill9()->start();
    }

    return $s->settle();
}


sub worker_restarted {
    my ($s) = @_;

    $s->load(rate => 600);

    for (1 .. 6) {
        sleep(0.1 + rand(0.3));
        $s->worker()->restart();
    }

    return $s->settle();
}


sub worker_paused {
    my ($s) = @_;

    $s->load(rate => 600);

    for (1 .. 4) {
        sleep(0.3 + rand(0.3));
        $s->worker()->pause();
        sleep(0.2 + rand(0.5));
        $s->worker()->resume();
    }

    return $s->settle();
}


# A second worker on the same journal while the first sleeps: it has no lock,
# and waits.  On a copy it has one: then the cursor refuses the sleeper.

sub worker_twin {
    my ($s) = @_;

    my $t = $s->t();

    $s->load(rate => 600);

    my $twin = $t->worker(name => 'twin', %{ $s->worker_conf() });

    $twin->notified(qr/STATUS=waiting: another/, 15)
        or die "the twin does not wait\n";

    for (1 .. 3) {
        sleep(0.3);
        $s->worker()->pause();
        sleep(0.4);

        die "two workers have one journal\n"
            if $twin->output() =~ /event=journal-open/;

        $s->worker()->resume();
    }

    # the first dies asleep; the twin takes over

    $s->worker()->pause();
    $s->worker()->kill9();
    $t->wait_for(sub { $twin->output() =~ /event=journal-open/ }, 10)
        or die "the twin does not take over\n";
    sleep(0.5);

    return $s->settle();
}


sub worker_on_copy {
    my ($s) = @_;

    my $t = $s->t();
    my $copy = $t->dir() . '/copy';
    my $twin;

    $s->load(rate => 600);

    for my $round (1 .. 3) {
        sleep(0.4);
        $s->worker()->pause();
        sleep(0.4);
        system('cp', '-a', $s->{journal}, $copy . $round) == 0 or die;
        $twin = $t->worker(name => "twin$round",
                           %{ $s->worker_conf(journal => $copy . $round) });
        sleep(0.6);
        $s->worker()->resume();
        sleep(0.3);
        $twin->stop();
    }

    return $s->settle();
}


sub everything {
    my ($s) = @_;

    my $t = $s->t();

    $s->load(rate => 500);

    for (1 .. 3) {
        sleep(0.5);
        $s->worker()->kill9();
        $s->kill_nginx();
        $s->redis()->kill9();
        $s->redis()->start();
        $s->set_codes();
        $t->nginx_start();
        $s->worker()->start();
    }

    sleep(0.5);

    return $s->settle(counters => 0);
}


sub table {
    return (
        [ 'nothing', 'no fault at all', \&nothing ],
        [ 'nginx-kill-worker', 'kill -9 of nginx workers',
          \&nginx_workers ],
        [ 'nginx-kill-master', 'kill -9 of the master', \&nginx_master ],
        [ 'nginx-kill-all', 'kill -9 of all of nginx', \&nginx_all ],
        [ 'nginx-stop-cont', 'nginx workers stopped and continued',
          \&nginx_paused ],
        [ 'nginx-reloads', 'a storm of reloads', \&reloads ],
        [ 'nginx-processes', 'worker_processes 1, 8, 1, 4, 1',
          \&worker_processes, { workers => 1 } ],
        [ 'nginx-upgrade', 'binary upgrade by USR2', \&upgrade ],
        [ 'worker-kill', 'kill -9 of the worker', \&worker_killed ],
        [ 'worker-restart', 'the worker restarted', \&worker_restarted ],
        [ 'worker-stop-cont', 'the worker stopped and continued',
          \&worker_paused ],
        [ 'worker-twin', 'a second worker while the first is stopped',
          \&worker_twin ],
        [ 'worker-copy', 'a second worker on a copy, then the first resumed',
          \&worker_on_copy ],
        [ 'kill-everything', 'kill -9 of nginx, worker and Redis',
          \&everything ],
    );
}


# a process that is not our child

package Referral::Test::Fault::Process::Orphan;

our @ISA = ('Referral::Test::Process');


sub new {
    my ($class, $pid, $log) = @_;
    return bless { pid => $pid, log => $log, status => 0 }, $class;
}


sub alive { return Referral::Test::alive($_[0]{pid}) }


1;
