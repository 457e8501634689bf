package Referral::Test::Fault::Disk;

# Copyright (C) The nginx referral module authors
#
# The journal's disk is full, fails, and forgets; its directory is restored,
# cloned and damaged.  Calls that fail are in Points.pm.

use strict;
use warnings;

use Time::HiRes qw(sleep time);

use Referral::Test;
use Referral::Test::Stand;


use constant SMALL => 'size=64m segment=64k';


# segments with records, in order, without the last of each stream (that one
# is being written)

sub segments {
    my ($journal, %arg) = @_;

    my @found;

    for my $dir (sort glob("$journal/" . '[0-9a-f]' x 32)) {
        my @files = sort grep { !/spare/ } glob("$dir/0*.seg");

        pop(@files) unless $arg{last};
        push @found, @files;
    }

    return @found;
}


sub slurp {
    my ($file) = @_;

    open(my $fh, '<:raw', $file) or die "$file: $!\n";
    local $/;

    return scalar(<$fh>);
}


sub overwrite {
    my ($file, $offset, $bytes) = @_;

    open(my $fh, '+<:raw', $file) or die "$file: $!\n";
    seek($fh, $offset, 0);
    print $fh $bytes;
    close($fh) or die "$file: $!\n";
}


# clicks that wait in the journal, nobody carries them

sub waiting {
    my ($s, $seconds) = @_;

    $s->worker()->stop();
    $s->load(rate => 800);
    sleep($seconds // 2.5);
    $s->calm();
}


# what verify says of damage: it finds it, and names the place

sub verified {
    my ($s, $v, $place) = @_;

    my $r = $s->t()->referralctl('journal', 'verify', '--journal',
                                 $s->{journal});

    push @{ $v->{wrong} }, "journal verify finds nothing (exit $r->{status}):"
                           . " $r->{output}"
        unless $r->{status} == 1 && index($r->{output}, $place) >= 0;
}


# Damage to records that are not in Postgres yet: the damaged ones are
# reported, all others arrive.

sub damaged {
    my ($s, $damage, %arg) = @_;

    my $v = { wrong => [] };

    waiting($s);
    my $place = $damage->($s);
    verified($s, $v, $place) if defined $place;
    $s->worker()->start();

    my $judged = $s->settle(damage => 1);

    $judged->{damage} = 1;
    unshift @{ $judged->{wrong} }, @{ $v->{wrong} };
    push @{ $judged->{wrong} }, 'nothing was reported'
        if ($arg{reported} // 1) && !$judged->{gap};
    push @{ $judged->{wrong} }, "$judged->{gap} records are gaps, at most"
                                . " $arg{most} were damaged"
        if defined $arg{most} && $judged->{gap} > $arg{most};
    push @{ $judged->{wrong} }, 'the log does not say so'
        if $judged->{gap} && $s->worker()->output() !~ /event=gap/;

    return $judged;
}


sub name { return ($_[0] =~ m{([0-9a-f]{32}/[^/]+)$})[0] }


sub flip_record {
    my ($s) = @_;

    return damaged($s, sub {
        my @files = segments($s->{journal});
        my $file = $files[@files / 2] or die "no segment\n";
        my $data = slurp($file);

        # in the tag of a record in the middle

        my $at = index($data, 'utm_content', length($data) / 2);
        die "no record in $file\n" if $at < 0;

        overwrite($file, $at + 14, chr(ord(substr($data, $at + 14, 1)) ^ 4));

        return ($file =~ /([0-9a-f]{8})[0-9a-f]{24}\//)[0];
    }, most => 1);
}


sub flip_many {
    my ($s) = @_;

    return damaged($s, sub {
        for my $file (segments($s->{journal}, last => 1)) {
            my $data = slurp($file);

            # not in the last record: a damaged one there was never written,
            # for all that a reader can know

            my $end = length($data);
            $end = rindex($data, 'utm_content', $end - 1) for 1 .. 3;
            next if $end < 8192;

            for (1 .. 5) {
                my $at = 4096 + int(rand($end - 4096));
                overwrite($file, $at, chr(ord(substr($data, $at, 1))
                                          ^ 1 << int(rand(8))));
            }
        }

        return undef;
    });
}


sub flip_header {
    my ($s) = @_;

    return damaged($s, sub {
        my @files = segments($s->{journal});
        my $file = $files[@files / 2] or die "no segment\n";
        my $data = slurp($file);

        overwrite($file, 20, chr(ord(substr($data, 20, 1)) ^ 16));

        return ($file =~ /([0-9a-f]{8})[0-9a-f]{24}\//)[0];
    });
}


sub zero_page {
    my ($s) = @_;

    return damaged($s, sub {
        my @files = segments($s->{journal});
        my $file = $files[@files / 2] or die "no segment\n";

        overwrite($file, 16384, "\0" x 4096);

        return ($file =~ /([0-9a-f]{8})[0-9a-f]{24}\//)[0];
    }, most => 30);
}


sub truncated {
    my ($s) = @_;

    return damaged($s, sub {
        my @files = segments($s->{journal});
        my $file = $files[@files / 2] or die "no segment\n";

        truncate($file, 20000) or die;

        return ($file =~ /([0-9a-f]{8})[0-9a-f]{24}\//)[0];
    });
}


sub deleted {
    my ($s) = @_;

    return damaged($s, sub {
        my @files = segments($s->{journal});
        my $file = $files[@files / 2] or die "no segment\n";

        unlink($file) or die;

        return ($file =~ /([0-9a-f]{8})[0-9a-f]{24}\//)[0];
    });
}


# The saved position is a cache: damaged, wrong or gone, nothing changes.

sub position {
    my ($s) = @_;

    my $k = 0;

    $s->load();

    for my $round (1 .. 4) {
        sleep(0.5);
        $s->worker()->stop();

        for my $file (glob("$s->{journal}/*/committed")) {
            my $data = slurp($file);
            my $n = $k++ % 5;

            next if $data eq '';

            if ($n == 0) {
                unlink($file);

            } elsif ($n == 1) {
                overwrite($file, 0, chr(ord($data) ^ 8));

            } elsif ($n == 2) {
                truncate($file, length($data) / 2);

            } elsif ($n == 3) {
                (my $wrong = $data) =~ s/(\d+)/'9' x length($1)/e;
                overwrite($file, 0, $wrong);

            } else {
                overwrite($file, 0, "\xff" x length($data));
            }
        }

        sleep(0.2);
        $s->worker()->start();
    }

    sleep(0.5);

    return $s->settle();
}


# a backup of the journal comes back, all of whose records are known

sub stale_copy {
    my ($s) = @_;

    my $t = $s->t();
    my $stale = $t->dir() . '/stale';

    $s->load();
    sleep(1);
    system('cp', '-a', $s->{journal}, $stale) == 0 or die;
    sleep(1);
    $s->calm();
    $s->drain() or die "not drained\n";

    $t->nginx_stop();
    $s->worker()->stop();
    rename($s->{journal}, $t->dir() . '/newer') or die;
    rename($stale, $s->{journal}) or die;
    $t->nginx_start();
    $s->worker()->start();

    $s->load();
    sleep(1);

    return $s->settle(counters => 0);
}


# the same under a running worker and nginx

sub stale_copy_live {
    my ($s) = @_;

    my $t = $s->t();
    my $stale = $t->dir() . '/stale';

    $s->load();
    sleep(0.7);
    system('cp', '-a', $s->{journal}, $stale) == 0 or die;
    sleep(0.7);
    $s->calm();
    $s->drain() or die "not drained\n";

    rename($s->{journal}, $t->dir() . '/newer') or die;
    rename($stale, $s->{journal}) or die;
    push @{ $s->{journals} }, $t->dir() . '/newer';

    # the writers still have the old directory: until a reload, its records
    # are read there

    $s->load();
    sleep(0.5);
    $s->t()->reload();
    sleep(1);

    return $s->settle();
}


# the directory on two hosts; both go on

sub cloned {
    my ($s) = @_;

    my $t = $s->t();
    my $clone = $t->dir() . '/clone';
    my $other = Referral::Test->new();
    my $v;

    $s->load();
    sleep(1);

    eval {
        system('cp', '-a', $s->{journal}, $clone) == 0 or die;
        push @{ $s->{journals} }, $clone;

        my %conf = $s->conf();
        my $redis = $t->redis()->url();

        $conf{http} =~ s/%%REDIS%%/$redis/;
        $conf{http} =~ s/\Q$s->{journal}\E/$clone/;
        $other->nginx(%conf);

        my $twin = $t->worker(name => 'twin',
                              %{ $s->worker_conf(journal => $clone) });

        $s->oracle()->start(port => $other->port('http'));
        sleep(1.5);
        $s->oracle()->stop();

        $v = $s->settle(counters => 0);
        1;
    } or push @{ $v->{wrong} }, "died: $@";

    $other->stop_all();
    push @{ $v->{wrong} }, $other->problems();
    $other->finish();

    return $v;
}


# Someone else fills the file system, but for half a segment: its header can be
# written, not its records.  Clicks go on without ids and are counted; when
# there is room again, so are ids.

sub full {
    my ($s) = @_;

    my $filler = "$s->{journal}/../filler";

    $s->load(rate => 1000);
    sleep(0.5);
    $s->worker()->stop();
    system("head -c 16m /dev/zero > $filler 2>/dev/null");
    truncate($filler, (-s $filler) - half_a_segment($s));
    sleep(5);

    # a slow machine needs longer to fill what was allocated before

    $s->t()->wait_for(sub { $s->drops()
                            || $s->t()->log() =~ /exited on signal 7/ }, 25);

    my $drops = $s->drops();

    unlink($filler);
    $s->worker()->start();
    sleep(3);

    my $v = $s->settle();

    push @{ $v->{wrong} }, 'the disk was not full' unless $drops;
    push @{ $v->{wrong} }, 'no line in the log'
        unless $s->t()->log() =~ /is full or broken/;

    return $v;
}


sub half_a_segment {
    my ($s) = @_;

    my ($n, $unit) = $s->{journal_args} =~ /segment=(\d+)([km])/;

    return $n * ($unit eq 'm' ? 2 ** 19 : 2 ** 9);
}


# a tmpfs for the journal, for one function

sub on_tmpfs {
    my ($sub, $size, %opt) = @_;

    my $dir = '/tmp/referral-' . sprintf('%08x', int(rand(2 ** 32)));

    mkdir($dir) or die "$dir: $!\n";
    system('mount', '-t', 'tmpfs', '-o', "size=$size", 'tmpfs', $dir) == 0
        or (rmdir($dir), die "no tmpfs can be mounted\n");

    my ($v, $s);

    eval {
        $s = Referral::Test::Stand->new(%opt, dir => "$dir/journal");
        $v = $sub->($s);
        1;
    } or push @{ $v->{wrong} }, "died: $@";

    push @{ $v->{wrong} }, map { "log: $_" } $s->close() if $s;

    system('umount', $dir) == 0 or system('umount', '-l', $dir);
    rmdir($dir);

    return $v;
}


# the journal's own limit

sub limit {
    my ($s) = @_;

    $s->load(rate => 1200);
    sleep(0.5);
    $s->worker()->stop();
    sleep(5);

    my $drops = $s->drops();

    $s->worker()->start();
    sleep(3);

    my $v = $s->settle();

    push @{ $v->{wrong} }, 'the journal was not full' unless $drops;

    return $v;
}


sub table {
    my $small = { journal_args => SMALL };

    return (
        [ 'disk-full', 'a tmpfs of 8 MB filled by someone else', sub {
              return on_tmpfs(\&full, '8m',
                              journal_args => 'size=6m segment=64k');
          }, { bare => 1, root => 1 } ],
        [ 'journal-full', 'the journal\'s own limit is reached', \&limit,
          { journal_args => 'size=1m segment=64k' } ],
        [ 'disk-flip-record', 'a bit of a record', \&flip_record, $small ],
        [ 'disk-flip-many', 'bits anywhere', \&flip_many, $small ],
        [ 'disk-flip-header', 'a bit of a segment\'s header', \&flip_header,
          $small ],
        [ 'disk-position', 'the saved position damaged, wrong, gone',
          \&position, $small ],
        [ 'disk-zero-page', 'a page of zeros before good records',
          \&zero_page, $small ],
        [ 'disk-truncated', 'a segment cut short', \&truncated, $small ],
        [ 'disk-deleted', 'a segment deleted', \&deleted, $small ],
        [ 'disk-stale-copy', 'an old copy of the journal put back',
          \&stale_copy ],
        [ 'disk-stale-copy-live', 'the same under running processes',
          \&stale_copy_live ],
        [ 'disk-clone', 'the directory cloned, both hosts go on', \&cloned ],
    );
}


1;
