package Referral::Test::Fault::Points;

# Copyright (C) The nginx referral module authors
#
# kill -9 at each point that a build with FAULTS=1 names, and failing calls.

use strict;
use warnings;

use JSON::PP ();
use Time::HiRes qw(sleep time);

use Referral::Test;
use Referral::Test::Fault::Guards;
use Referral::Test::Scenario;


use constant ROUNDS => 2;


# what has to happen for a point of the writer to be reached
my %writer = (
    (map { $_ => 'start' }
         qw(stream-directory stream-locked stream-unnamed stream-named)),
    (map { $_ => 'run' }
         qw(segment-allocated segment-made segment-beginning segment-begun
            segment-rolled segment-renamed record-written record-published
            segment-unsynced segment-synced segment-retired segment-cut)),
    (map { $_ => 'reload' } qw(writer-closing stream-clearing)),
);

# passages before: the first ones are those of a stream's beginning
my %nth = ('record-written' => 30, 'record-published' => 30,
           'segment-unsynced' => 3, 'segment-synced' => 3,
           'worker-copying' => 3, 'worker-read' => 2, 'worker-begun' => 2,
           'worker-moved' => 2, 'worker-copied' => 2, 'worker-commit' => 2,
           'worker-commit-sent' => 2, 'worker-committed' => 2);

my %failing_writer = map { $_ => 1 }
    qw(segment-fallocate-enospc segment-fallocate-eio segment-header-eio
       segment-rename-eio segment-fdatasync-enospc segment-fdatasync-eio);

sub points {
    my $build = $ENV{REFERRAL_BUILD} // Referral::Test->top() . '/build';
    my $text = qx("$build/referralctl" --version --json 2>/dev/null);
    my $json = eval { JSON::PP->new()->utf8()->decode($text) };

    return $json && $json->{faults} ? @{ $json->{faults} } : ();
}


# A directory where a process that is killed leaves a mark: those after it
# live, until it is removed.

sub marks {
    my ($s) = @_;

    my $dir = $s->t()->dir() . '/marks';

    mkdir($dir);
    chmod(0777, $dir);

    return $dir;
}


sub hit {
    my ($s, $point, $timeout) = @_;

    my $file = marks($s) . "/$point";

    return $s->t()->wait_for(sub { -e $file }, $timeout // 4) ? 1 : 0;
}


# nginx workers die at the point, again and again

sub writer {
    my ($point) = @_;

    my $how = $writer{$point};

    return sub {
        my ($s) = @_;

        my $hits = 0;
        my $mark = marks($s) . "/$point";

        # a worker that dies in its start is the master's alert

        $s->t()->allow(qr/exited on signal 9/);
        $s->load(rate => $point eq 'stream-clearing' ? 20 : 700);

        for (1 .. ROUNDS) {
            sleep(0.2);
            unlink($mark);
            $s->reconfigure(env => {
                REFERRAL_FAULT => $point . ':' . ($nth{$point} // 1),
                REFERRAL_FAULT_MARK => marks($s) });

            if ($how eq 'reload') {
                $s->reconfigure(workers => 4);
                sleep(0.2);
                $s->reconfigure(workers => 2);
            }

            $hits += hit($s, $point);
        }

        $s->reconfigure(env => {}, workers => 2);
        sleep(0.3);

        my $v = $s->settle();

        push @{ $v->{wrong} }, 'the point was not reached' unless $hits;

        return $v;
    };
}


sub writer_fails {
    my ($point) = @_;

    return sub {
        my ($s) = @_;

        my $mark = marks($s) . "/$point";

        $s->load(rate => 700);
        sleep(0.5);
        $s->reconfigure(env => { REFERRAL_FAULT => "$point:3:0",
                                 REFERRAL_FAULT_MARK => marks($s) });
        sleep(3);
        $s->reconfigure(env => {});
        sleep(0.7);

        my $v = $s->settle();

        push @{ $v->{wrong} }, 'the point was not reached' unless -e $mark;

        return $v;
    };
}


# what has to be so for a point of the worker to be reached

my %before = (
    'worker-refused' => sub {
        my ($s, $round) = @_;
        $s->rows("ALTER TABLE referral.interaction ADD CONSTRAINT poison
                  CHECK (code <> 'CODE7') NOT VALID") if $round == 1;
    },
    'worker-cursor' => sub { $_[0]->t()->reload() },
    'partition-sent' => \&no_partition,
    'partition-made' => \&no_partition,
    'partition-expired' => \&old_partition,
    'partition-detach-sent' => \&old_partition,
    'partition-detached' => \&old_partition,
    'partition-dropped' => \&old_partition,
    'segment-unlinking' => sub { $_[0]->t()->reload() },
    'segment-unlinked' => sub { $_[0]->t()->reload() },
    'stream-removing' => sub { $_[0]->t()->reload() },
);


sub old_partition {
    my ($s, $round) = @_;
    $s->rows("SELECT referral.partition_ensure('2022-01-0$round')");
}


# those of today and of the days after, without what is in them: only before
# the first click

sub no_partition {
    my ($s, $round) = @_;

    return if $round > 1;

    $s->rows('DROP TABLE ' . $_->[0]) for $s->rows(
        'SELECT inhrelid::regclass FROM pg_inherits
             WHERE inhparent = \'referral.interaction\'::regclass');
}


sub worker {
    my ($point) = @_;

    return sub {
        my ($s) = @_;

        my ($hits, $mark, $w) = (0, marks($s) . "/$point", $s->worker());
        my $once = $point =~ /^partition-(?:sent|made)$/;

        $w->{env} = { REFERRAL_FAULT => $point . ':' . ($nth{$point} // 1),
                      REFERRAL_FAULT_MARK => marks($s) };

        # a partition is missed when the worker has looked after them

        if ($once) {
            $w->start();
            $w->notified(qr/READY=1/, 10);
            sleep(0.5);
            no_partition($s, 1);
        }

        $s->load(rate => 700);

        for my $round (1 .. ($once ? 1 : ROUNDS)) {
            sleep(0.2);
            unlink($mark) unless $once;
            $before{$point}->($s, $round) if $before{$point} && !$once;

            # each process passes the point once

            $w->kill9()->start() unless $once;

            $hits += hit($s, $point, 6);
            $w->kill9()->start();
        }

        sleep(0.3);

        my $v = $s->settle(dead => $point eq 'worker-refused');

        push @{ $v->{wrong} }, 'the point was not reached' unless $hits;

        return $v;
    };
}


sub worker_fails {
    my ($point) = @_;

    return sub {
        my ($s) = @_;

        my ($mark, $w) = (marks($s) . "/$point", $s->worker());

        $w->{env} = { REFERRAL_FAULT => "$point:2:20",
                      REFERRAL_FAULT_MARK => marks($s) };
        $s->load(rate => 700);
        sleep(0.3);
        $w->start();
        sleep(1);
        $s->t()->reload();
        sleep(1.5);

        # what failed is tried again, by this one or by the next

        $w->stop();
        $w->{env} = {};
        $w->start();
        sleep(0.3);

        my $v = $s->settle();

        push @{ $v->{wrong} }, 'the point was not reached' unless -e $mark;

        return $v;
    };
}


sub table {
    my @table;
    my @points = points();

    return [ 'points', 'kill -9 at fault points', sub { }, { faults => 1 } ]
        unless @points;

    my $conf = { journal_args => 'size=64m segment=64k sync=50ms',
                 faults => 1 };

    for my $p (@points) {
        my ($name, $about) = ($p->{name}, "at the point: $p->{about}");

        # these need more than clicks: t/faults/adopt.t and publish.t,
        # t/webhook.t, t/metrics.t

        next if $name =~ /^(?:adopt|publish|webhook|zone)-/;

        if ($name eq 'aside-made') {
            push @table, [ $name, $about,
                \&Referral::Test::Fault::Guards::resumed_twice,
                { workers => 1, start_later => 1, faults => 1,
                  journal_args => 'size=64m segment=2m',
                  worker_env => { REFERRAL_FAULT => $name } } ];

        } elsif ($writer{$name}) {
            push @table, [ $name, $about, writer($name), $conf ];

        } elsif ($failing_writer{$name}) {
            push @table, [ $name, $about, writer_fails($name), $conf ];

        } elsif ($p->{fails}) {
            push @table, [ $name, $about, worker_fails($name),
                { %$conf, start_later => 1,
                  worker_settings => { retention => '0' } } ];

        } else {
            push @table, [ $name, $about, worker($name),
                { %$conf, start_later => 1,
                  worker_settings => { retention => '0' } } ];
        }
    }

    return @table;
}


1;
