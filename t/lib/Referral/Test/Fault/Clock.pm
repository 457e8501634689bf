package Referral::Test::Fault::Clock;

# Copyright (C) The nginx referral module authors
#
# The edge's clock jumps; Postgres keeps its own.

use strict;
use warnings;

use Time::HiRes qw(sleep time);

use Referral::Test::Stand;


sub library {
    my ($file) = (glob('/usr/lib/*/faketime/libfaketime.so.1'),
                  glob('/usr/lib/faketime/libfaketime.so.1'));
    return $file;
}


# a stand whose nginx and worker read their time in a file

sub with_clock {
    my ($sub, %opt) = @_;

    my $dir = '/tmp/referral-' . sprintf('%08x', int(rand(2 ** 32)));

    mkdir($dir) or die "$dir: $!\n";

    my $file = "$dir/clock";
    my $set = sub {
        my ($offset) = @_;

        # never seen half written

        open(my $fh, '>', "$file.new") or die "$file: $!\n";
        printf $fh "%+d\n", $offset;
        close($fh);
        rename("$file.new", $file) or die "$file: $!\n";
    };

    $set->($opt{offset} ? $opt{offset}->() : 0);

    my %env = (LD_PRELOAD => library(), FAKETIME_TIMESTAMP_FILE => $file,
               FAKETIME_NO_CACHE => 1, FAKETIME_DONT_FAKE_MONOTONIC => 1,
               DONT_FAKE_MONOTONIC => 1);
    my ($s, $v);

    eval {

        # nginx clears its environment, and the file is looked up each time

        $s = Referral::Test::Stand->new(process_env => { %env },
                                        env => { %env },
                                        worker_env => { %env }, %opt);
        $v = $sub->($s, $set);
        1;
    } or push @{ $v->{wrong} }, "died: $@";

    push @{ $v->{wrong} }, map { "log: $_" } $s->close() if $s;

    unlink($file);
    rmdir($dir);
    shared_memory_gone();

    return $v;
}


# the library leaves its memory behind when a process is killed

sub shared_memory_gone {
    for my $file (glob('/dev/shm/faketime_shm_*'),
                  glob('/dev/shm/sem.faketime_sem_*'))
    {
        my ($pid) = $file =~ /_(\d+)$/ or next;
        unlink($file) unless -d "/proc/$pid";
    }
}


sub steps {
    my (@offsets) = @_;

    return sub {
        my ($s, $set) = @_;

        $s->load();

        for (@offsets) {
            sleep(0.6);
            $set->($_);
        }

        sleep(0.6);

        my $v = $s->settle();
        my $far = grep { $_ > 400 || $_ < -90 * 86400 } @offsets;

        push @{ $v->{wrong} }, 'nothing is in quarantine'
            if $far && !$v->{quarantined};

        return $v;
    };
}


# the last midnight (UTC) once more, under load

sub midnight {
    my ($s) = @_;

    $s->load();
    sleep(4);

    my $v = $s->settle();
    my $days = $s->value('SELECT count(DISTINCT (occurred_at AT TIME ZONE
                          \'UTC\')::date) FROM referral.interaction');

    push @{ $v->{wrong} }, "clicks of $days day(s), not of two"
        unless $days == 2;

    return $v;
}


sub table {
    my $clock = { bare => 1, needs => [ 'faketime' ] };

    return (
        [ 'clock-forward', 'an hour forward, and back', sub {
              return with_clock(steps(3600, 0));
          }, $clock ],
        [ 'clock-back', 'an hour back, and forward', sub {
              return with_clock(steps(-3600, 0));
          }, $clock ],
        [ 'clock-jumps', 'many steps, small and large', sub {
              return with_clock(steps(5, -5, 30, -30, 120, -86400, 86400, 0));
          }, $clock ],
        [ 'clock-midnight', 'midnight', sub {
              return with_clock(\&midnight, offset => sub {
                  return -(time() % 86400) - 3;
              });
          }, $clock ],
        [ 'clock-future', '2099, and back', sub {
              return with_clock(steps(73 * 365 * 86400, 0));
          }, $clock ],
        [ 'clock-past', 'long ago, and back', sub {
              return with_clock(steps(-20 * 365 * 86400, 0));
          }, $clock ],
    );
}


1;
