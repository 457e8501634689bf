package Referral::Test::Fault::Guards;

# Copyright (C) The nginx referral module authors
#
# Each guard of the protocol against what it guards from: with it nothing is
# lost or doubled, without it the oracle has to find something.

use strict;
use warnings;

use Time::HiRes qw(sleep time);

use Referral::Test;
use Referral::Test::Stand;
use Referral::Test::Fault::Disk;
use Referral::Test::Fault::Process;


# as in src/core/referral_crc32c.c

my @crc = map {
    my $c = $_;
    $c = $c & 1 ? $c >> 1 ^ 0x82f63b78 : $c >> 1 for 1 .. 8;
    $c;
} 0 .. 255;


sub crc32c {
    my ($seed, $bytes) = @_;

    my $c = $seed ^ 0xffffffff;

    $c = $crc[($c ^ $_) & 0xff] ^ $c >> 8 for unpack('C*', $bytes);

    return $c ^ 0xffffffff;
}


# frames of a segment: { at, length, number, payload }

sub frames {
    my ($data) = @_;

    my ($at, @frames) = (4096);

    while ($at + 16 < length($data)) {
        my ($crc, $len, $number) = unpack('VVQ<', substr($data, $at, 16));
        last if $len == 0;

        push @frames, { at => $at, number => $number, length => $len,
                        payload => substr($data, $at + 16, $len) };
        $at += 16 + $len + 7 & ~7;
    }

    return @frames;
}


sub salt { return unpack('V', substr($_[0], 32, 4)) }


# the only stream of a journal, with its segments

sub only_segment {
    my ($journal) = @_;

    my @files = grep { -s $_ } glob("$journal/" . '[0-9a-f]' x 32 . '/0*.seg');

    die 'not one segment, but ' . @files . "\n" unless @files == 1;

    return $files[0];
}


# One machine image resumed twice: both go on with the same stream, and give
# the same numbers to different clicks.  The one that is second is set aside,
# and adopted.

sub resumed_twice {
    my ($s) = @_;

    my $t = $s->t();
    my $twin = $t->dir() . '/twin';
    my $o = $s->oracle();

    $s->load(rate => 300);
    sleep(2);
    $s->calm();
    $t->nginx_stop();

    my $file = only_segment($s->{journal});
    my $data = Referral::Test::Fault::Disk::slurp($file);
    my @frames = frames($data);
    my $n = @frames;
    my ($image, $shorter) = (int($n / 3), int($n * 2 / 3));
    my %tag = map { $o->{requests}{$_}{id} => $_ } keys %{ $o->{requests} };

    system('cp', '-a', $s->{journal}, $twin) == 0 or die;

    # one made the records to $shorter, the other has its own ones after the
    # image, and more of them

    truncate($file, $frames[$shorter]{at}) or die "$file: $!\n";

    (my $copy = $file) =~ s/\Q$s->{journal}\E/$twin/;

    for my $f (@frames[$image .. $shorter - 1]) {
        my $payload = $f->{payload};
        my ($id) = grep { $tag{$_} }
                   map { unpack('H*', substr($payload, $_, 16)) } 1 .. 8;

        die "a record that nobody asked for\n" unless defined $id;

        my $tag = $tag{$id};
        my $r = $o->{requests}{$tag};
        (my $other = $id) =~ s/(.)$/sprintf('%x', hex($1) ^ 15)/e;
        (my $other_tag = $tag) =~ s/^\d/T/;

        substr($payload, index($payload, pack('H*', $id)), 16,
               pack('H*', $other));
        substr($payload, rindex($payload, $tag), length($tag), $other_tag);

        substr($data, $f->{at} + 16, $f->{length}, $payload);
        substr($data, $f->{at}, 4, pack('V', crc32c(salt($data),
            substr($data, $f->{at} + 4, 12 + $f->{length}))));

        $o->{requests}{$other_tag} = { %$r, id => $other };
    }

    Referral::Test::Fault::Disk::overwrite($copy, 0, $data);

    $s->worker()->start();
    $s->drain() or die "not drained: $s->{left}\n";
    $s->worker()->stop();

    my $w = $t->worker(name => 'twin',
                       %{ $s->worker_conf(journal => $twin) },
                       env => $s->{worker_env} // {});

    my ($aside) = $copy =~ m{^(.*)/};
    my ($stream) = $aside =~ m{([0-9a-f]{32})$};
    my $set = $t->wait_for(sub { -e "$aside/aside" }, 3);
    my $text = '';

    # at a fault point it died of it

    if (($w->{env}{REFERRAL_FAULT} // '') ne '') {
        $w->{process}->wait(3);
        $text = 'the point was not reached' if $w->alive();
        $w->kill9();
        $w->{env} = {};
        $w->start();
    }

    if ($set) {
        my $r = $t->referralctl('journal', 'adopt', $stream, '--journal',
                                $twin, '--db',
                                $s->pg()->conninfo(db => $s->{db}));
        $text = "adopt failed: $r->{output}" if $r->{status};
    }

    push @{ $s->{journals} }, $twin;
    $t->nginx_start();
    $s->worker()->start();

    my $v = $s->settle(counters => 0, drain => 20);

    push @{ $v->{wrong} }, $text if $text;

    return $v;
}


# Pages of an old segment stand behind the end of a younger one, as a file
# system may leave them after a power loss.

sub stale_pages {
    my ($s) = @_;

    my $t = $s->t();

    $s->load(rate => 800);
    sleep(2.5);
    $s->calm();
    $s->drain() or die "not drained: $s->{left}\n";

    my $old = only_segment($s->{journal});
    my $stale = Referral::Test::Fault::Disk::slurp($old);
    my @stale = frames($stale);

    # a second stream, shorter, killed in the midst of a page

    $t->reload();
    $s->load(rate => 200);
    sleep(0.8);
    $s->calm();
    $s->worker()->stop();
    $s->kill_nginx();

    my ($young) = grep { $_ ne $old && !/spare/ }
                  glob("$s->{journal}/*/0*.seg");
    my $data = Referral::Test::Fault::Disk::slurp($young);
    my @frames = frames($data);

    # a gap of some pages, then frames that begin at the page's boundary

    my ($f) = grep { $_->{number} > @frames + 20
                     && $_->{at} > $frames[-1]{at} + 8192 } @stale
        or die "the old segment is not longer\n";

    Referral::Test::Fault::Disk::overwrite($young, $f->{at},
        substr($stale, $f->{at}, $stale[-1]{at} - $f->{at}));

    $t->nginx_start();
    $s->worker()->start();

    return $s->settle(counters => 0);
}


# Postgres is slower than the clicks are, for longer than the retention

sub slow_postgres {
    my ($s) = @_;

    $s->rows("ALTER TABLE referral.interaction ADD CONSTRAINT slow
              CHECK (pg_sleep(0.004)::text = '')");
    $s->load(rate => 900);
    sleep(4);
    $s->calm();
    $s->rows('ALTER TABLE referral.interaction DROP CONSTRAINT slow');

    return $s->settle();
}


# An outage longer than the retention; what waited is committed, and at once
# a standby takes over that lacks it.

sub late_promotion {
    my ($s) = @_;

    my $pg = $s->pg();
    my $standby = "$pg->{home}/standby";

    $s->load(rate => 500);
    sleep(1);
    $pg->stop();
    system('cp', '-a', $pg->{data}, $standby) == 0 or die;
    sleep(5);
    $pg->start();
    $s->calm();
    $s->drain() or die "not drained: $s->{left}\n";
    sleep(1.5);
    $pg->stop(signal => 'QUIT');
    rename($pg->{data}, "$pg->{data}.lost") or die;
    rename($standby, $pg->{data}) or die;
    $pg->start();

    # the worker has to notice before it is asked whether it is done

    sleep(2);

    return $s->settle();
}


sub quiet_end {
    my ($s) = @_;

    $s->load(rate => 500);
    sleep(3);

    return $s->settle();
}


# (guard, sub, options, what is found, further options without the guard):
# the scenario twice

sub both {
    my ($name, $guard, $what, $sub, $opt, $expect, $where) = @_;

    my %off = (%$opt, must_fail => 1, expect => $expect, faults => 1);
    my $env = { REFERRAL_NO_GUARD => $guard };

    $off{worker_env} = $env unless ($where // '') eq 'nginx';
    $off{env} = { %{ $opt->{env} // {} }, %$env };

    return ([ $name, $what, $sub, $opt ],
            [ "no-$guard", "$what, without the guard", $sub, \%off ]);
}


sub table {
    my $one = { workers => 1, journal_args => 'size=64m segment=2m' };
    my $small = { journal_args => 'size=64m segment=64k' };

    # without preallocation a full disk kills

    my $full = sub {
        my ($env) = @_;
        return sub {
            return Referral::Test::Fault::Disk::on_tmpfs(
                \&Referral::Test::Fault::Disk::full, '8m',
                workers => 1, journal_args => 'size=7m segment=1m',
                env => $env);
        };
    };

    return (
        both('guard-lock', 'stream-lock', 'streams are read while written',
             \&quiet_end, { worker_settings => { retention => '0' } },
             qr/lost|not in Postgres/),

        [ 'no-preallocation', 'a full disk, without preallocation',
          $full->({ REFERRAL_NO_GUARD => 'preallocation' }),
          { bare => 1, root => 1, faults => 1, must_fail => 1,
            expect => qr/exited on signal 7|\bSIGBUS/ } ],

        [ 'no-record-checksum', 'a bit of a record, without checksums',
          \&Referral::Test::Fault::Disk::flip_record,
          { %$small, faults => 1, must_fail => 1,
            expect => qr/altered|lost|doubled/,
            worker_env => { REFERRAL_NO_GUARD => 'record-checksum' } } ],

        both('guard-salt', 'salt', 'old pages behind a segment\'s end',
             \&stale_pages, $one, qr/doubled|gaps|dead letters|not so|lost/),

        [ 'no-cursor-compare', 'a worker on a copy, cursors not compared',
          \&Referral::Test::Fault::Process::worker_on_copy,
          { faults => 1, must_fail => 1, expect => qr/doubled|not so/,
            worker_env => { REFERRAL_NO_GUARD => 'cursor-compare' } } ],

        both('guard-last-id', 'last-id-compare',
             'an image resumed twice, and adopted', \&resumed_twice,
             { %$one, start_later => 1 }, qr/lost/),

        both('guard-free', 'free-after-commit',
             'a Postgres slower than the retention', \&slow_postgres,
             { %$small, worker_settings => { retention => '0',
                                             batch_rows => 100 } },
             qr/lost/),

        both('guard-retention', 'observed-retention',
             'an outage, then an old standby', \&late_promotion,
             { %$small, pg => {},
               worker_settings => { retention => '4s' } }, qr/lost/),
    );
}


1;
