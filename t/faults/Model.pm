package Model;

# Copyright (C) The nginx referral module authors
#
# The delivery protocol as a program: streams, writers, workers, a cursor row
# per stream in Postgres, retention and freeing, under random schedules with
# faults.  What src/ does with files, sockets and SQL happens here with a few
# hashes, so that thousands of schedules take seconds.
#
# A schedule is run($seed, $faults, $off): a list of fault names (see %FAULTS)
# and a hash of rules that are switched off (see %RULES).  It ends with all
# faults over and everything drained, and returns what became of each click
# that was accepted: a row, reported (as a gap, or by verify and adopt),
# excused (no disk that is still there ever kept it), lost, or doubled.

use strict;
use warnings;


# Time is counted in steps.  A failover may only lose commits that are younger
# than LAG steps of a primary that was up: RETENTION is the promise against it.

use constant {
    STEPS => 160, BATCH => 6, SEGMENT => 4, RETENTION => 40, LAG => 25,
    OBSERVE => 8,
};


our %FAULTS = (
    crash     => [qw(writer_kill worker_kill answer_lost)],
    twins     => [qw(worker_kill pause resume twin)],
    outage    => [qw(postgres_down postgres_up answer_lost)],
    failover  => [qw(failover answer_lost worker_kill)],
    locked    => [qw(table_lock answer_lost)],
    longest   => [qw(long_outage failover)],
    power     => [qw(power_loss worker_kill)],
    stale     => [qw(copy restore writer_kill)],
    wipe      => [qw(wipe writer_kill)],
    clone     => [qw(clone writer_kill)],
    image     => [qw(image worker_kill pause resume)],
    imaged    => [qw(image damage worker_kill)],
    damage    => [qw(damage worker_kill writer_kill)],
    space     => [qw(space failover)],
);

$FAULTS{all} = [ map { @{ $FAULTS{$_} } } sort keys %FAULTS ];


our %RULES = (
    own_series   => 'each writer is a stream of its own',
    own_cursor   => 'each stream has a cursor row of its own',
    own_identity => 'a copy keeps the identity of its streams',
    observed     => 'retention counts observed time only',
    committed    => 'only what is committed is freed',
    compare      => 'the cursor is compared in the transaction',
    last_id      => 'the cursor compares the last record, too',
    look_back    => 'where the last record is damaged, one before it tells',
    checksum     => 'each record has a checksum',
    lock         => 'a held lock means that the stream goes on',
);


our ($w, $off);


sub run {
    my ($seed, $faults, $rules) = @_;

    srand($seed);

    $off = $rules // {};
    $w = { hosts => [], log => [], rows => {}, cursors => {}, up => 1,
           uptime => 0, now => 0, clicks => 0, born => {}, streams => 0,
           workers => 0 };

    host();

    my @faults = @$faults;

    for (1 .. STEPS) {
        $w->{now}++;
        $w->{uptime}++ if $w->{up};

        my $x = rand();

        if ($x < 0.3) {
            click(pick(@{ $w->{hosts} }));

        } elsif ($x < 0.75) {
            work(pick(map { @{ $_->{workers} } } @{ $w->{hosts} }));

        } elsif ($x < 0.85) {
            release(pick(map { @{ $_->{workers} } } @{ $w->{hosts} }));

        } elsif ($x < 0.93) {
            sync_journal(pick(@{ $w->{hosts} }));

        } elsif (@faults) {
            fault($faults[rand @faults]);
        }
    }

    drain();

    return judge();
}


sub pick { return @_ ? $_[rand @_] : () }


#
# journal
#

sub host {
    my ($from) = @_;

    my $h = { dir => $from ? copy_dir($from) : {}, writer => undef,
              workers => [] };

    push @{ $w->{hosts} }, $h;
    worker($h);

    return $h;
}


sub copy_dir {
    my ($dir) = @_;

    return { map {
        my $s = $dir->{$_};
        ($_ => { %$s, (map { ($_ => { %{ $s->{$_} } }) } qw(recs early hurt)),
                 live => 0 });
    } keys %$dir };
}


sub open_stream {
    my ($h) = @_;

    my $id = ++$w->{streams};

    # one series for a directory, taken up by the next owner

    if ($off->{own_series}) {
        $id = 'slot';

        if (my $s = $h->{dir}{$id}) {
            $s->{live} = 1;
            return $h->{writer} = $s;
        }
    }

    my $s = { id => $id, key => $off->{own_cursor} ? 'slot' : $id, first => 1,
              next => 1, synced => 0, live => 1, recs => {}, early => {},
              hurt => {} };

    return $h->{writer} = $h->{dir}{$id} = $s;
}


# a record is its click's number; 0 is one that a checksum tells as damaged

sub click {
    my ($h) = @_;

    my $s = $h->{writer} // open_stream($h);
    my $click = ++$w->{clicks};
    my $n = $s->{next}++;

    $s->{recs}{$n} = $click;
    $w->{born}{$click} = [ $s->{key}, $n ];

    # the writer's helper, now and then

    $s->{synced} = $n if rand() < 0.3;
}


sub sync_journal {
    my ($h) = @_;

    for my $s (values %{ $h->{dir} }) {
        $s->{synced} = $s->{next} - 1;
    }
}


sub writer_end {
    my ($h) = @_;

    $h->{writer}{live} = 0 if $h->{writer};
    $h->{writer} = undef;
}


# a record's number in this stream that is the last one here: 0 if none

sub last_here {
    my ($s) = @_;

    my $n = $s->{next} - 1;

    $n-- while $n >= $s->{first} && !$s->{recs}{$n};

    return $n >= $s->{first} ? $n : 0;
}


#
# Postgres: a log of transactions and what it adds up to
#

sub apply {
    my ($tx) = @_;

    my $c = $w->{cursors}{ $tx->{key} } //= { seq => 0, last => undef,
                                               rows => 0, gap => 0 };

    $c->{seq} = $tx->{to};
    $c->{last} = $tx->{last};

    for (@{ $tx->{items} }) {
        my ($n, $click) = @$_;

        if ($click) {
            push @{ $w->{rows}{$click} }, "$tx->{key} $n";
            $w->{taken}{"$tx->{key} $n"} = $click;
            $c->{rows}++;

        } else {
            $w->{gaps}{"$tx->{key} $n"}++;
            $c->{gap}++;
        }
    }
}


sub commit {
    my ($tx) = @_;

    push @{ $w->{log} }, { %$tx, at => $w->{uptime} };
    apply($tx);
}


# a standby takes over that lacks what was committed last

sub promote {
    my $lag = int(rand(LAG + 1));
    my $log = $w->{log};

    pop @$log while @$log && $log->[-1]{at} > $w->{uptime} - $lag;

    $w->{$_} = {} for qw(cursors rows gaps taken);
    apply($_) for @$log;

    disconnect($_) for map { @{ $_->{workers} } } @{ $w->{hosts} };
}


#
# workers
#

sub worker {
    my ($h) = @_;

    my $k = { host => $h, id => ++$w->{workers}, known => {}, age => {} };

    push @{ $h->{workers} }, $k;

    return $k;
}


sub disconnect {
    my ($k) = @_;

    $_->{loaded} = 0 for values %{ $k->{known} };
    unlock($k) if $k->{tx};
}


sub unlock {
    my ($k) = @_;

    my $key = $k->{tx}{key};

    delete $w->{locked}{$key} if ($w->{locked}{$key} // 0) == $k->{id};
    delete $k->{tx};
}


# one step of one worker: it reads, moves the cursor, commits, or learns it

sub work {
    my ($k) = @_;

    return if !$k || $k->{paused};

    return transaction($k) if $k->{tx};
    return unless $w->{up};

    my $dir = $k->{host}{dir};
    my ($id) = pick(sort keys %$dir);

    return unless defined $id;

    my $s = $dir->{$id};
    my $st = $k->{known}{$id} //= { id => $id, loaded => 0, ended => 0,
                                    observed => 0, seq => 0 };

    return if $s->{aside} || ($st->{loaded} && $st->{ended});

    load($s, $st) or return unless $st->{loaded};

    my @items = read_batch($s, $st->{seq} + 1);

    if (!@items) {
        $st->{ended} = final($s);
        return;
    }

    my $last = $items[-1];

    $k->{tx} = { key => $s->{key}, id => $id, from => $st->{seq},
                 was => $st->{last}, to => $last->[0], items => \@items,
                 last => $last->[1] || undef, state => 'read' };
}


sub final {
    my ($s) = @_;
    return $off->{lock} || !$s->{live};
}


# cursor row and journal belong together, or the stream is set aside

sub load {
    my ($s, $st) = @_;

    my $c = $w->{cursors}{ $s->{key} } // { seq => 0 };

    $st->{seq} = $c->{seq};
    $st->{last} = $c->{last};
    $st->{ended} = 0;

    my $seq = $st->{seq};

    if (!$off->{last_id} && !$off->{own_cursor} && $seq >= $s->{first}) {
        my $ok = $seq < $s->{next} ? verified($s, $st) : ahead($s, $st);

        if (!$ok) {
            $s->{aside} = 1;
            return 0;
        }
    }

    return $st->{loaded} = 1;
}


# the last record that is here, and not beyond the cursor, has to be known

sub verified {
    my ($s, $st) = @_;

    my $n = $st->{seq};

    return $s->{recs}{$n} == $st->{last} if $s->{recs}{$n} && $st->{last};
    return 1 if $off->{look_back};

    $n-- while $n >= $s->{first} && !$s->{recs}{$n};

    return $n < $s->{first} || recorded($s, $n);
}


sub ahead {
    my ($s) = @_;

    return 0 if $s->{live};

    my $n = last_here($s);

    return $n == 0 || recorded($s, $n);
}


sub recorded {
    my ($s, $n) = @_;
    return exists $w->{rows}{ $s->{recs}{$n} };
}


# number and click, or 0 for a hole; nothing behind the end

sub read_batch {
    my ($s, $from) = @_;

    # a stream whose last records are damaged ends before them, once final

    my $end = $s->{live} ? $s->{next} - 1 : last_here($s);
    my $to = $from + int(rand(BATCH));
    my @items;

    $to = $end if $to > $end;

    for my $n ($from .. $to) {
        my $click = $s->{recs}{$n} // 0;

        # without a checksum, damage is data

        $click = -1 if !$click && $off->{checksum} && exists $s->{recs}{$n};

        push @items, [ $n, $click ];
    }

    return @items;
}


sub transaction {
    my ($k) = @_;

    my $tx = $k->{tx};
    my $st = $k->{known}{ $tx->{id} };

    if (!$w->{up}) {
        return disconnect($k);
    }

    if ($tx->{state} eq 'read') {
        my $c = $w->{cursors}{ $tx->{key} } //= { seq => 0, rows => 0,
                                                  gap => 0 };

        return if $w->{locked}{ $tx->{key} };

        my $same = $off->{compare} || $c->{seq} == $tx->{from};

        $same &&= ($c->{last} // 0) == ($tx->{was} // 0)
            unless $off->{last_id} || $off->{compare};

        if (!$same) {
            $st->{loaded} = 0;
            delete $k->{tx};
            return;
        }

        $w->{locked}{ $tx->{key} } = $k->{id};
        $tx->{state} = 'moved';

    } elsif ($tx->{state} eq 'moved') {
        commit($tx);
        delete $w->{locked}{ $tx->{key} };
        $tx->{state} = 'committed';

    } else {
        $st->{seq} = $tx->{to};
        $st->{last} = $tx->{last};
        delete $k->{tx};
    }
}


# a reading of the cursors, and what may be freed after it

sub release {
    my ($k) = @_;

    return if !$k || $k->{paused};
    return if !$w->{up} && !$off->{observed};

    my $since = $w->{now} - ($k->{read_at} // $w->{now});

    $since = 0 if $since > OBSERVE;
    $k->{read_at} = $w->{now};

    for my $s (values %{ $k->{host}{dir} }) {
        my $st = $k->{known}{ $s->{id} } or next;

        observe($k, $s, $st, $since);
    }
}


sub observe {
    my ($k, $s, $st, $since) = @_;

    my $seq = $off->{observed} ? $st->{seq}
                               : ($w->{cursors}{ $s->{key} } // {})->{seq}
                                 // 0;

    if ($seq < $st->{observed}) {
        delete $k->{age}{ $s->{id} };
        $since = 0;
    }

    $st->{observed} = $seq;
    $st->{loaded} = 0 if $seq < $st->{seq};

    return if $s->{aside} || (!$st->{loaded} && !$off->{observed});

    my $safe = $seq < $st->{seq} ? $seq : $st->{seq};
    my $age = $k->{age}{ $s->{id} } //= {};

    $safe = $s->{next} if $off->{committed};

    # whole segments, the last one only of a stream that has ended

    for (my $n = $s->{first}; $n < $s->{next}; $n += SEGMENT) {
        my $end = $n + SEGMENT - 1 - ($n - 1) % SEGMENT;
        my $whole = $end < $s->{next} - 1 && $end <= $safe;

        $whole ||= $st->{ended} && final($s) && $seq >= $st->{seq};
        last unless $whole;

        if ($off->{observed}) {
            $age->{$end} //= -$w->{now};

        } else {
            $age->{$end} += $since;
        }
    }

    for ( ;; ) {
        last if $s->{first} >= $s->{next};

        my $end = $s->{first} + SEGMENT - 1 - ($s->{first} - 1) % SEGMENT;

        last unless defined $age->{$end};

        my $old = $off->{observed} ? $w->{now} + $age->{$end} : $age->{$end};

        last if $old < RETENTION && !$s->{full};

        my @freed = grep { $_ <= $end } keys %{ $s->{recs} };

        # if a failover loses these, only this directory can tell

        $s->{early}{$_} = 1 for $s->{full} ? @{ $s->{recs} }{@freed} : ();

        $s->{first} = $end + 1;
        delete @{ $s->{recs} }{@freed};
        delete $age->{$end};
    }

    # the stream goes; a writer that still had it loses what it appends

    if ($st->{ended} && final($s) && $s->{first} >= $s->{next}) {
        $s->{first} = $s->{next};
        excuse($_) for keys %{ $s->{early} };
        delete $k->{host}{dir}{ $s->{id} };
    }
}


#
# faults
#

sub fault {
    my ($name) = @_;

    my $h = pick(@{ $w->{hosts} });
    my $k = pick(@{ $h->{workers} });
    my $code = Model->can("fault_$name") or die "no fault $name\n";

    $code->($h, $k);
}


sub fault_writer_kill { writer_end($_[0]) }


sub fault_worker_kill {
    my ($h, $k) = @_;

    disconnect($k);
    @{ $h->{workers} } = grep { $_ != $k } @{ $h->{workers} };
    worker($h) unless @{ $h->{workers} };
}


# SIGSTOP; the server ends a transaction that idles, or waits for it

sub fault_pause {
    my ($h, $k) = @_;

    $k->{paused} = 1;
    delete $w->{locked}{ $k->{tx}{key} }, $k->{tx}{state} = 'dead'
        if $k->{tx} && $k->{tx}{state} eq 'moved' && rand() < 0.7;
    worker($h) if rand() < 0.7;
}


sub fault_resume {
    for (map { @{ $_->{workers} } } @{ $w->{hosts} }) {
        next unless delete $_->{paused};
        disconnect($_) if $_->{tx} && $_->{tx}{state} eq 'dead';
    }
}


sub fault_twin { worker($_[0]) if @{ $_[0]{workers} } < 3 }


# COMMIT was done, or was not; the worker does not hear which

sub fault_answer_lost {
    my ($h, $k) = @_;

    my $tx = $k->{tx} or return;

    return if $k->{paused};

    if ($tx->{state} eq 'moved' && rand() < 0.7) {
        commit($tx);
    }

    disconnect($k);
}


sub fault_postgres_down {
    $w->{up} = 0;
    disconnect($_) for map { @{ $_->{workers} } } @{ $w->{hosts} };
}


sub fault_postgres_up { $w->{up} = 1 }


# what it had committed last is not on the standby when that takes over

sub fault_long_outage {
    fault_postgres_down();

    for (1 .. RETENTION + 20) {
        $w->{now}++;
        my ($k) = pick(map { @{ $_->{workers} } } @{ $w->{hosts} });
        release($k) if rand() < 0.3;
    }

    promote() if rand() < 0.7;
    $w->{up} = 1;
}


# LOCK TABLE: cursors can be read, and nothing can be written

sub fault_table_lock {
    for (1 .. RETENTION + 20) {
        $w->{now}++;
        $w->{uptime}++ if $w->{up};
        my ($k) = pick(map { @{ $_->{workers} } } @{ $w->{hosts} });
        click(pick(@{ $w->{hosts} })) if rand() < 0.2;
        release($k) if rand() < 0.3;
    }
}


sub fault_failover {
    promote();
    $w->{up} = 1;
}


# what was not synced is gone, or a page of zeros stands before what is there

sub fault_power_loss {
    my ($h) = @_;

    writer_end($h);

    for my $s (@{ $h->{dir} }{ sort keys %{ $h->{dir} } }) {
        excuse($_) for keys %{ $s->{early} };

        my $kept = $s->{synced} + int(rand($s->{next} - $s->{synced}));

        for my $n ($s->{synced} + 1 .. $s->{next} - 1) {
            next if $n <= $kept && rand() < 0.8;

            my $click = delete $s->{recs}{$n};

            excuse($click);
        }

        $s->{next} = $kept + 1;
        $s->{next} = $s->{first} if $s->{next} < $s->{first};
        $s->{next} = last_here($s) + 1 if $off->{own_series}
                                          && last_here($s);
        missed($s);
    }

    @{ $h->{workers} } = grep { disconnect($_); 0 } @{ $h->{workers} };
    worker($h);
}


# damaged records at the end may be missed: a stream may end anywhere

sub missed {
    my ($s) = @_;

    my $last = last_here($s);

    for (keys %{ $s->{hurt} }) {
        excuse($_) if $s->{hurt}{$_} > $last;
    }
}


sub excuse { $w->{excused}{ $_[0] } = 1 if $_[0] }


sub fault_copy { $_[0]{copy} = copy_dir($_[0]{dir}) }


# an older copy of the directory; what only stood in the newer one is gone

sub fault_restore {
    my ($h) = @_;

    my $copy = $h->{copy} or return;

    replaced($h, copy_dir($copy));
}


sub fault_wipe { replaced($_[0], {}) }


sub replaced {
    my ($h, $dir) = @_;

    writer_end($h);

    # gone is what no directory has any longer

    my %gone = map { ($_ => 1) }
               map { (values %{ $_->{recs} }, keys %{ $_->{early} },
                      keys %{ $_->{hurt} }) }
               values %{ $h->{dir} };

    $h->{dir} = $dir;

    for my $other (@{ $w->{hosts} }) {
        delete @gone{ values %{ $_->{recs} } } for values %{ $other->{dir} };
    }

    excuse($_) for keys %gone;

    for my $k (splice(@{ $h->{workers} })) {
        disconnect($k);
    }

    worker($h);
}


# the disk in another machine: both go on

sub fault_clone {
    my ($h) = @_;

    return if @{ $w->{hosts} } > 3;

    my $new = host($h->{dir});

    return unless $off->{own_identity};

    for my $s (values %{ $new->{dir} }) {
        delete $new->{dir}{ $s->{id} };
        $s->{id} = $s->{key} = ++$w->{streams};
        $new->{dir}{ $s->{id} } = $s;
    }
}


# a machine image resumed: even the writers go on, twice

sub fault_image {
    my ($h) = @_;

    return if @{ $w->{hosts} } > 2;

    my $new = host($h->{dir});

    if ($h->{writer}) {
        $new->{writer} = $new->{dir}{ $h->{writer}{id} };
        $new->{writer}{live} = 1 if $new->{writer};
    }
}


sub fault_damage {
    my ($h) = @_;

    my ($id) = pick(sort keys %{ $h->{dir} });
    my $s = defined $id ? $h->{dir}{$id} : return;
    my ($n) = pick(sort { $a <=> $b } keys %{ $s->{recs} });

    return unless defined $n && $s->{recs}{$n};

    my $click = $s->{recs}{$n};

    $s->{hurt}{$click} = $n;
    $w->{hurt}{$click} = 1;
    $s->{recs}{$n} = 0;
    $w->{reports} = 1;

    missed($s);
}


# the journal's size= is near: what is committed goes at once

sub fault_space {
    my ($h) = @_;

    $w->{reports} = 1;
    $_->{full} = 1 for values %{ $h->{dir} };
}


#
# the end
#

sub drain {
    $w->{up} = 1;
    fault_resume();

    # a SIGSTOPped one that nobody woke is ended

    writer_end($_) for @{ $w->{hosts} };

    settle();

    # one after the other: two copies may hold the same unknown records

    for my $h ((@{ $w->{hosts} }) x 3) {
        adopt($h);
        settle();
    }
}


sub settle {
    for my $h (@{ $w->{hosts} }) {
        for my $k (@{ $h->{workers} }) {
            for (1 .. 400) {
                last if !$k->{tx} && settled($k);
                work($k);
            }
        }
    }
}


sub settled {
    my ($k) = @_;

    for my $s (values %{ $k->{host}{dir} }) {
        next if $s->{aside};

        my $st = $k->{known}{ $s->{id} };

        return 0 unless $st && $st->{loaded} && $st->{ended};
    }

    return 1;
}


# referralctl journal adopt: unknown records of what stands aside go on anew

sub adopt {
    my ($h) = @_;

    for my $s (grep { $_->{aside} } values %{ $h->{dir} }) {
        my @unknown = grep { $_ && !$w->{rows}{$_} }
                      map { $s->{recs}{$_} }
                      sort { $a <=> $b } keys %{ $s->{recs} };

        # what is damaged can not be adopted, and it says so

        $w->{said}{$_} = 1 for keys %{ $s->{hurt} };

        delete $h->{dir}{ $s->{id} };
        next unless @unknown;

        my $new = open_stream($h);

        $new->{recs}{ $new->{next}++ } = $_ for @unknown;
        writer_end($h);
    }
}


# { accepted, rows, reported, excused, lost, doubled }

sub judge {
    my %sum = map { ($_ => 0) } qw(rows reported excused lost doubled sums);

    $sum{accepted} = $w->{clicks};

    for my $click (1 .. $w->{clicks}) {
        my $n = @{ $w->{rows}{$click} // [] };

        if ($n > 1) {
            $sum{doubled}++;

        } elsif ($n == 1) {
            $sum{rows}++;

        } elsif ($w->{excused}{$click}) {
            $sum{excused}++;

        } elsif (reported($click)) {
            $sum{reported}++;

        } else {
            $sum{lost}++;
        }
    }

    # rows that nobody clicked

    $sum{lost} += @{ $w->{rows}{-1} // [] };

    for my $c (values %{ $w->{cursors} }) {
        $sum{sums}++ if $c->{seq} != $c->{rows} + $c->{gap};
    }

    return \%sum;
}


# where nothing was damaged or freed early, a gap is a loss like another

sub reported {
    my ($click) = @_;

    my ($key, $n) = @{ $w->{born}{$click} };

    # damaged, and a twin's record has its number: "journal verify" says it

    return 1 if $w->{hurt}{$click} && $w->{taken}{"$key $n"};

    return $w->{said}{$click} || ($w->{reports} && $w->{gaps}{"$key $n"});
}


1;
