package flush;

# Copyright (C) The nginx referral module authors
#
# referral-worker carries prepared journals of 5 million clicks into Postgres:
# rows a second, CPU of the worker and of the server per row, with 200 hot codes
# and with uniform ones.  Beside it, the same rows into the same table by
# "\copy ... binary", and by a staging table with ON CONFLICT and an upsert of
# counters.  They take turns, a fifth of the clicks at a time; a ratio is the
# median of the turns' ratios.

use strict;
use warnings;

use File::Path qw(remove_tree);
use POSIX ();
use Time::HiRes qw(time);


use constant ROUNDS => 5;

my @contenders = qw(worker copy staging);

my $staging = <<'END';
CREATE UNLOGGED TABLE IF NOT EXISTS bench_staging
    (LIKE referral.interaction);
CREATE TABLE IF NOT EXISTS bench_counter
    (code text, day date, n bigint, PRIMARY KEY (code, day));
TRUNCATE bench_staging, bench_counter;
END

my $merge = <<'END';
INSERT INTO referral.interaction SELECT * FROM bench_staging
    ON CONFLICT (id, occurred_at) DO NOTHING;
INSERT INTO bench_counter
    SELECT code, occurred_at::date, count(*) FROM bench_staging GROUP BY 1, 2
    ON CONFLICT (code, day) DO UPDATE SET n = bench_counter.n + excluded.n;
END


# Waits for the rows, a second at most, in one session: starting psql again and
# again would be a good part of the load of a small machine.

my $wait = <<'WAIT';
DO $$
BEGIN
    FOR i IN 1 .. 100 LOOP
        EXIT WHEN (SELECT sum(rows) FROM referral.ingest_cursor) >= %d;
        COMMIT;
        PERFORM pg_sleep(0.01);
    END LOOP;
END
$$
WAIT


sub run {
    my ($b) = @_;

    my $rows = int(5_000_000 * $b->{scale} / ROUNDS) || 1000;

    -x "$b->{build}/t/journal_write"
        or die "$b->{build}/t/journal_write is missing: "
               . "make core-tests\n";

    $b->postgres();

    one($b, 'hot', $rows, 200);
    one($b, 'uniform', $rows, $rows);

    my $ratio = $b->{result}{ratio};

    # the one that is promised is the worse of the two

    $ratio->{flush_copy} = $ratio->{flush_copy_hot};
    $ratio->{flush_copy} = $ratio->{flush_copy_uniform}
        if $ratio->{flush_copy_uniform} < $ratio->{flush_copy};
}


sub one {
    my ($b, $kind, $rows, $codes) = @_;

    my $file = $b->dir() . '/rows';
    my $journal = $b->dir() . "/flush-$kind";

    $b->note("flush: writing a journal of $rows clicks, $codes codes");
    mkdir($journal);
    $b->run("$b->{build}/t/journal_write", '--journal', $journal, '--count',
        $rows, '--codes', $codes, '--segment', 4 * 1024 * 1024, '--size',
        16 * 1024 ** 3, '--country', 'CH', '--city', 'Winterthur', '--path',
        '/r/SUMMER', '--ip', '192.0.2.0', '--destination',
        'https://shop.example.com/landing/1', '--program', 7, '--arg', 'mail',
        '--ua', 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101');

    # the rows as the others take them, and a first turn that does not count

    turn($b, sub { flush($b, $journal, $rows) });
    copy($b, "\\copy (SELECT * FROM referral.interaction) TO '$file' "
             . '(FORMAT binary)');

    my %run = (
        worker => sub { flush($b, $journal, $rows) },
        copy => sub { copy($b, "\\copy referral.interaction FROM '$file' "
                               . '(FORMAT binary)') },
        staging => sub { copy($b, 'BEGIN', "\\copy bench_staging FROM "
                                  . "'$file' (FORMAT binary)", $merge,
                              'COMMIT') },
    );

    my %turns;

    for my $round (1 .. ROUNDS) {
        $b->note("flush: $kind, turn $round of " . ROUNDS);
        push(@{ $turns{$_} }, turn($b, $run{$_})) for @contenders;
    }

    unlink($file);
    remove_tree($journal);

    report($b, $kind, $rows, \%turns);
}


# into empty tables, from a quiet server: { took, server, client }, seconds

sub turn {
    my ($b, $run) = @_;

    my $pg = $b->postgres();

    $pg->rows('TRUNCATE referral.interaction, referral.ingest_cursor, '
              . 'referral.counter_delta, referral.counter');
    $pg->rows($staging);
    $pg->rows('CHECKPOINT');

    my $server = server_cpu($pg);
    my $start = time();
    my $client = $run->();
    my $took = time() - $start;

    return { took => $took, client => $client,
             server => server_cpu($pg) - $server };
}


# seconds of CPU of the worker, once all is committed

sub flush {
    my ($b, $journal, $rows) = @_;

    my $pg = $b->postgres();
    my $start = time();
    my $worker = $b->worker($journal);

    for ( ;; ) {
        $pg->rows(sprintf($wait, $rows));

        last if $pg->value('SELECT coalesce(sum(rows), 0) '
                           . 'FROM referral.ingest_cursor') >= $rows;

        die "referral-worker ended:\n", $worker->output()
            unless $worker->alive();
        die "the flush takes too long:\n", substr($worker->output(), -2000)
            if time() > $start + 1200;
    }

    my $cpu = Bench::cpu($worker->pid());

    $worker->stop();
    delete $b->{worker};

    return $cpu;
}


sub copy {
    my ($b, @commands) = @_;

    $b->run('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
            $b->postgres()->conninfo(), map { ('-c', $_) } @commands);
}


# of all its processes, those too that have ended

sub server_cpu {
    my ($pg) = @_;

    my $ticks = 0;

    for my $stat (glob('/proc/[0-9]*/stat')) {
        my $text = eval { Bench::slurp($stat) } // next;
        my ($pid, $rest) = $text =~ /^(\d+) .*\) (.*)/s or next;
        my @field = split(' ', $rest);

        $ticks += $field[11] + $field[12]
            if $pid == $pg->pid() || $field[1] == $pg->pid();
        $ticks += $field[13] + $field[14] if $pid == $pg->pid();
    }

    return $ticks / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}


sub report {
    my ($b, $kind, $rows, $turns) = @_;

    my %speed = map {
        my $c = $_;
        $c => Bench::median(map { $rows / $_->{took} } @{ $turns->{$c} });
    } @contenders;

    my $cpu = sub {
        my ($c, $what) = @_;
        return 1e6 / $rows
               * Bench::median(map { $_->{$what} } @{ $turns->{$c} });
    };

    $b->{result}{flush}{$kind} = {
        rows => $rows * ROUNDS, rows_s => $speed{worker},
        copy_rows_s => $speed{copy}, staging_rows_s => $speed{staging},
        cpu_us_row => $cpu->('worker', 'client'),
        server_us_row => $cpu->('worker', 'server'),
        copy_server_us_row => $cpu->('copy', 'server'),
        staging_server_us_row => $cpu->('staging', 'server'),
    };

    for my $c (qw(copy staging)) {
        my @ratios = map { $turns->{$c}[$_]{took} / $turns->{worker}[$_]{took} }
                     0 .. ROUNDS - 1;

        $b->{result}{ratio}{"flush_${c}_$kind"} = Bench::median(@ratios);
        $b->{result}{flush}{$kind}{"${c}_spread"} = Bench::spread(@ratios);
    }
}


1;
