package flush;

# Copyright (C) The nginx referral module authors
#
# referral-worker carries a prepared journal of 5 million clicks into Postgres:
# rows a second and CPU of the worker per row, with 200 hot codes and with
# uniform ones.  Beside it, the same rows into the same table by "\copy ...
# binary", and by a staging table with ON CONFLICT and an upsert of counters.

use strict;
use warnings;

use File::Path qw(remove_tree);
use Time::HiRes qw(sleep time);


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


sub run {
    my ($b) = @_;

    my $rows = int(5_000_000 * $b->{scale}) || 1000;

    -x "$b->{build}/t/journal_write"
        or die "$b->{build}/t/journal_write is missing: "
               . "make core-tests\n";

    $b->postgres();

    one($b, 'hot', $rows, 200);
    one($b, 'uniform', $rows, $rows < 1_000_000 ? $rows : 1_000_000);

    my $ratio = $b->{result}{ratio};

    # the one that is promised is the worse of the two

    $ratio->{flush_copy} = $ratio->{flush_copy_hot};
    $ratio->{flush_copy} = $ratio->{flush_copy_uniform}
        if $ratio->{flush_copy_uniform} < $ratio->{flush_copy};
}


sub one {
    my ($b, $kind, $rows, $codes) = @_;

    my $journal = $b->dir() . "/flush-$kind";

    $b->note("flush: writing a journal of $rows clicks, $codes codes");
    mkdir($journal);
    $b->run("$b->{build}/t/journal_write", '--journal', $journal, '--count',
        $rows, '--codes', $codes, '--segment', 4 * 1024 * 1024, '--size',
        16 * 1024 ** 3, '--country', 'CH', '--city', 'Winterthur', '--path',
        '/r/SUMMER', '--ip', '192.0.2.0', '--destination',
        'https://shop.example.com/landing/1', '--program', 7, '--arg', 'mail',
        '--ua', 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101');

    my $pg = $b->postgres();
    my $done = $pg->value('SELECT coalesce(sum(rows), 0) '
                          . 'FROM referral.ingest_cursor');

    $pg->rows('TRUNCATE referral.interaction');
    $pg->rows('CHECKPOINT');
    $b->note("flush: $kind, referral-worker");

    my $start = time();
    my $worker = $b->worker($journal);

    until ($pg->value('SELECT coalesce(sum(rows), 0) '
                     . 'FROM referral.ingest_cursor')
           >= $done + $rows)
    {
        die "referral-worker ended:\n", $worker->output()
            unless $worker->alive();
        die "the flush takes too long:\n", substr($worker->output(), -2000)
            if time() > $start + 1200;
        sleep(0.05);
    }

    my $took = time() - $start;
    my $cpu = Bench::cpu($worker->pid());

    $worker->stop();
    delete $b->{worker};

    my $file = $b->dir() . '/rows';

    copy($b, "\\copy (SELECT * FROM referral.interaction) TO '$file' "
             . '(FORMAT binary)');

    $b->note("flush: $kind, \\copy and staging");

    my $copy = timed($b, "\\copy referral.interaction FROM '$file' "
                         . '(FORMAT binary)');

    $pg->rows($staging);

    my $staged = timed($b, 'BEGIN',
        "\\copy bench_staging FROM '$file' (FORMAT binary)", $merge,
        'COMMIT');

    unlink($file);
    remove_tree($journal);

    $b->{result}{flush}{$kind} = {
        rows => $rows, rows_s => $rows / $took, copy_rows_s => $rows / $copy,
        staging_rows_s => $rows / $staged, cpu_us_row => $cpu * 1e6 / $rows,
    };

    $b->{result}{ratio}{"flush_copy_$kind"} = $copy / $took;
    $b->{result}{ratio}{"flush_staging_$kind"} = $staged / $took;
}


# into the empty table, from a quiet server: seconds

sub timed {
    my ($b, @commands) = @_;

    my $pg = $b->postgres();

    $pg->rows('TRUNCATE referral.interaction');
    $pg->rows('CHECKPOINT');

    my $start = time();

    copy($b, @commands);

    return time() - $start;
}


sub copy {
    my ($b, @commands) = @_;

    $b->run('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
            $b->postgres()->conninfo(), map { ('-c', $_) } @commands);
}


1;
