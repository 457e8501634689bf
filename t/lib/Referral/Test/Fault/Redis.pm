package Referral::Test::Fault::Redis;

# Copyright (C) The nginx referral module authors
#
# Redis stops, forgets, and talks nonsense.

use strict;
use warnings;

use Time::HiRes qw(sleep time);


sub stopped {
    my ($s) = @_;

    $s->load();

    for (1 .. 3) {
        sleep(0.5);
        $s->redis()->stop();
        sleep(0.7);
        $s->redis()->start();
        $s->set_codes();
    }

    sleep(0.3);

    return $s->settle();
}


sub killed {
    my ($s) = @_;

    $s->load();

    for (1 .. 4) {
        sleep(0.4);
        $s->redis()->kill9();
        sleep(rand(0.5));
        $s->redis()->start();
        $s->set_codes();
    }

    sleep(0.3);

    return $s->settle();
}


sub paused {
    my ($s) = @_;

    $s->load();

    for (1 .. 4) {
        sleep(0.4);
        $s->redis()->pause();
        sleep(0.3 + rand(0.8));
        $s->redis()->resume();
    }

    return $s->settle();
}


# Hand-filled: what is gone is unknown, as long as it is gone.

sub flushed {
    my ($s) = @_;

    $s->load();

    for (1 .. 4) {
        sleep(0.4);
        $s->redis()->cmd('FLUSHALL');
        sleep(0.3);
        $s->set_codes();
    }

    return $s->settle();
}


sub empty {
    my ($s) = @_;

    $s->load();
    sleep(0.5);
    $s->redis()->restart();
    sleep(1);
    $s->redis()->kill9();
    $s->redis()->start();
    sleep(0.5);
    $s->set_codes();

    return $s->settle();
}


sub garbage {
    my ($s) = @_;

    $s->load();

    for my $bytes ("\0\1\2\3\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n",
                   "*999999999\r\n", "\$5\r\nab", '*3' . "\r\n" x 3,
                   "-ERR " . 'x' x 70_000 . "\r\n", '$' . '9' x 30 . "\r\n",
                   "*2\r\n" x 200, ":1\r\n" x 50, "*-1\r\n")
    {
        sleep(0.25);
        $s->proxy()->garbage($bytes);
    }

    sleep(0.3);
    $s->proxy()->clear();

    return $s->settle();
}


sub slices {
    my ($s) = @_;

    $s->load();
    sleep(0.3);
    $s->proxy()->slice(1);
    sleep(2);
    $s->proxy()->clear();

    return $s->settle();
}


sub resets {
    my ($s) = @_;

    $s->load();

    for (1 .. 12) {
        sleep(0.15);
        $_ % 2 ? $s->proxy()->reset() : $s->proxy()->close();
    }

    $s->proxy()->limit(down => 40, then => 'reset');
    $s->proxy()->reset();
    sleep(1);
    $s->proxy()->clear();

    return $s->settle();
}


sub slow {
    my ($s) = @_;

    $s->load();
    sleep(0.3);
    $s->proxy()->latency(0.08);
    sleep(0.8);
    $s->proxy()->latency(0.3);
    sleep(0.8);
    $s->proxy()->clear();
    sleep(0.3);
    $s->proxy()->hang();
    sleep(1);
    $s->proxy()->clear();

    return $s->settle();
}


sub table {
    my $proxy = { proxy => 1 };

    return (
        [ 'redis-stop', 'Redis is stopped and started empty', \&stopped ],
        [ 'redis-kill', 'kill -9 of Redis', \&killed ],
        [ 'redis-stop-cont', 'Redis stopped and continued', \&paused ],
        [ 'redis-flushall', 'FLUSHALL, then the codes again', \&flushed ],
        [ 'redis-empty', 'Redis restarted empty for a while', \&empty ],
        [ 'redis-garbage', 'garbage instead of replies', \&garbage, $proxy ],
        [ 'redis-slices', 'replies of one byte a time', \&slices, $proxy ],
        [ 'redis-resets', 'connections reset, also in replies', \&resets,
          $proxy ],
        [ 'redis-slow', 'latency over the deadline, a silent link', \&slow,
          $proxy ],
    );
}


1;
