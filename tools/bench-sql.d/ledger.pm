package ledger;

# Copyright (C) The nginx referral module authors
#
# Ten million interactions of 90 days and a million referrals in ten programs,
# half of all in the first.  What a partner's page, a program's dashboard and a
# conversion take then.

use strict;
use warnings;

use File::Path qw(make_path);
use File::Temp ();
use POSIX ();
use Time::HiRes qw(sleep time);

use Referral::Test::Postgres;

use constant DAYS => 90;


sub run {
    my (%arg) = @_;

    my $dir = File::Temp->newdir('/tmp/referral-bench-XXXXXXXX');
    chmod(0755, "$dir");

    my $pg = Referral::Test::Postgres->new(dir => "$dir", fsync => 1, conf => {
        shared_buffers => '2GB', max_wal_size => '8GB', work_mem => '64MB',
        maintenance_work_mem => '512MB', checkpoint_timeout => '30min',
        effective_cache_size => '8GB', jit => 'off', wal_compression => 'lz4',
        log_min_messages => 'warning' });

    my $self = bless { pg => $pg, %arg, dir => "$dir" }, __PACKAGE__;
    my @rows = eval { ($self->fill(), $self->pages(), $self->conversions()) };
    my $error = $@;

    $pg->stop();
    die $error if $error;

    return @rows;
}



sub step {
    my ($self, $what, $sql) = @_;

    my $start = time();
    my $value = $self->{pg}->value($sql);

    printf STDERR "%8.1f s  %s\n", time() - $start, $what;

    return (time() - $start, $value);
}


sub fill {
    my ($self) = @_;

    my $pg = $self->{pg};
    my $clicks = int(10_000_000 * $self->{scale});
    my $referrals = int(1_000_000 * $self->{scale});
    my $referrers = int(50_000 * $self->{scale}) || 1;
    my $perday = int($clicks / DAYS);

    $pg->file($_) for sort glob("$self->{root}/sql/0*.sql");

    $pg->rows("SELECT referral.organisation_create('bench', 'Bench',
                   '{\"max_active_programs\": 10}')");
    $pg->rows("SELECT referral.program_set_status(referral.program_create(1,
                   'p' || n, 'P' || n, jsonb_build_object('landing_url',
                       'https://example.com/', 'time_zone',
                       (ARRAY['UTC', 'America/Los_Angeles', 'Asia/Kolkata',
                              'Europe/Berlin'])[1 + n % 4])), 'active')
               FROM generate_series(1, 10) n");
    $pg->rows("SELECT referral.reward_rules_set(p,
                   '[{\"slot\": \"share\", \"kind\": \"cash\",
                      \"rate_bp\": 1000, \"tiers\":
                          [{\"from\": 1, \"rate_bp\": 1000},
                           {\"from\": 5, \"rate_bp\": 1500}]},
                     {\"slot\": \"welcome\", \"beneficiary\": \"referee\",
                      \"kind\": \"credit\", \"unit\": \"USD\",
                      \"amount\": 500}]')
               FROM generate_series(1, 10) p");

    # half of what there is belongs to the first program, and to few of its
    # referrers: a random number to the third power

    my $skewed = "1 + (random() ^ 3 * ($referrers - 1))::int";

    $self->step('referrers and codes',
        "INSERT INTO referral.referrer (organisation_id, external_id)
             SELECT 1, 'u' || n FROM generate_series(1, $referrers) n;
         INSERT INTO referral.code (organisation_id, program_id, referrer_id,
                                    code, campaign)
             SELECT 1, CASE WHEN n % 2 = 0 THEN 1 ELSE 1 + n % 10 END, n,
                    'C' || n, 'campaign ' || n % 12
                 FROM generate_series(1, $referrers) n;
         SELECT 1");

    $self->step("partitions", "SELECT count(*) FROM (SELECT
        referral.partition_ensure((now() AT TIME ZONE 'UTC')::date - n)
        FROM generate_series(0, " . DAYS . ") n) t");

    my $start = time();

    for my $n (1 .. DAYS) {
        $pg->rows("INSERT INTO referral.interaction (id, occurred_at, stream,
                       seq, type, verdict, via, kind, code, code_id,
                       program_id, referrer_id, visitor, ip, country, city,
                       user_agent, source, host, path)
                   SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint),
                                12, '0') || '7'
                           || substr(gen_random_uuid()::text, 16))::uuid,
                          date_trunc('milliseconds', at), 1, k, 'click',
                          CASE WHEN k % 20 = 0 THEN 'expired'
                               ELSE 'valid' END,
                          'redirect',
                          CASE WHEN k % 10 = 0 THEN 'preview'
                               ELSE 'person' END,
                          c.code, c.id, c.program_id, c.referrer_id,
                          gen_random_uuid(), '192.0.2.0/24',
                          (ARRAY['DE','US','FR','IN','BR','GB','ES','IT','PL',
                                 'NL'])[1 + (k % 97) % 10],
                          'City', 'Mozilla/5.0 (X11; Linux x86_64) '
                          || 'AppleWebKit/537.36 (KHTML, like Gecko) Chrome/1',
                          (ARRAY['mail','web','social','qr'])[1 + (k % 89) % 4],
                          'www.example.com', '/r/x'
                       FROM (SELECT k, $skewed AS n,
                                    (((now() AT TIME ZONE 'UTC')::date - $n)
                                     ::timestamp AT TIME ZONE 'UTC')
                                    + random() * interval '86399 seconds' AS at
                                 FROM generate_series(1, $perday) k OFFSET 0) r
                            JOIN referral.code c ON c.id = r.n");
    }

    printf STDERR "%8.1f s  %d interactions\n", time() - $start,
        $perday * DAYS;

    $self->step('their counters',
        "INSERT INTO referral.counter_delta (program_id, referrer_id, code,
                                             day, type, verdict, kind, n)
             SELECT program_id, referrer_id, code,
                    (occurred_at AT TIME ZONE 'UTC')::date, type, verdict,
                    kind, count(*)
                 FROM referral.interaction GROUP BY 1, 2, 3, 4, 5, 6, 7;
         SELECT 1");

    $self->step("$referrals referrals",
        "INSERT INTO referral.referral (organisation_id, program_id,
                 referrer_id, code_id, referee_external_id, country, source,
                 status, credited, created_at, registered_at, converted_at,
                 expires_at)
             SELECT 1, c.program_id, c.referrer_id, c.id, 'r' || k,
                    (ARRAY['DE','US','FR','IN'])[1 + k % 4],
                    (ARRAY['email','website','social_media','qr'])[1 + k % 4],
                    CASE WHEN k % 5 = 0 THEN 'converted'
                         ELSE 'registered' END, true, at,
                    at + interval '1 minute',
                    CASE WHEN k % 5 = 0 THEN at + interval '1 hour' END,
                    now() + interval '90 days'
                 FROM (SELECT k, $skewed AS n,
                              now() - random() * interval '89 days' AS at
                           FROM generate_series(1, $referrals) k OFFSET 0) r
                      JOIN referral.code c ON c.id = r.n;
         INSERT INTO referral.referee_identity (organisation_id, program_id,
                                                referral_id, kind, hash,
                                                credited)
             SELECT 1, program_id, id, 'external',
                    sha256(convert_to('external:' || referee_external_id,
                                      'UTF8')), true
                 FROM referral.referral;
         SELECT 1");

    $self->step('analyze', 'ANALYZE; SELECT 1');

    my ($fold, $rollup) = (0, 0);

    $start = time();
    1 while $pg->value('SELECT referral.counter_fold()') > 0;
    printf STDERR "%8.1f s  counters folded\n", $fold = time() - $start;

    $start = time();
    1 while $pg->value("SELECT referral.rollup_refresh('20 s', '0')") > 0;
    printf STDERR "%8.1f s  rollups of %d days\n", $rollup = time() - $start,
        DAYS;

    $self->step('vacuum', 'VACUUM (ANALYZE) referral.rollup,
        referral.rollup_referrer, referral.rollup_unique, referral.counter,
        referral.counter_delta, referral.referral');

    # what one more minute of clicks costs: the whole of today

    return ({ name => 'rollups of one day, all programs',
              value => 1000 * $rollup / DAYS, unit => 'ms' });
}


# Times of a statement, in ms, run in one session: median and worst.

sub times {
    my ($self, $n, $sql) = @_;

    my $r = $self->{pg}->value(
        "DO \$\$
         DECLARE
             start  timestamptz;
             took   float8[] := '{}';
             n      int;
         BEGIN
             FOR n IN 1 .. $n LOOP
                 start := clock_timestamp();
                 PERFORM $sql;
                 took := took || extract(epoch FROM clock_timestamp()
                                         - start)::float8 * 1000;
             END LOOP;
             PERFORM set_config('bench.took',
                 (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY t) || ' '
                         || percentile_cont(0.99) WITHIN GROUP (ORDER BY t)
                         || ' ' || max(t)
                      FROM unnest(took) t), false);
         END \$\$;
         SELECT current_setting('bench.took')");

    return split(' ', $r);
}


sub pages {
    my ($self) = @_;

    my @rows;

    for (['partner page', 50, 200,
          "referral.partner_page((1 + n * 7 % 40), NULL, NULL)"],
         ['partner page, 90 days', 50, 200,
          "referral.partner_page((1 + n * 7 % 40), current_date - 89,
                                 current_date)"],
         ['program dashboard', 200, 40,
          "referral.program_dashboard(1)"],
         ['program dashboard, 90 days', 200, 40,
          "referral.program_dashboard(1, current_date - 89, current_date)"])
    {
        my ($name, $max, $n, $sql) = @$_;

        $n = 4 if $self->{scale} < 0.01;

        my ($median, $p99, $worst) = $self->times($n, $sql);

        push(@rows, { name => "$name, median", value => $median, unit => 'ms',
                      max => $max },
                    { name => "$name, p99", value => $p99, unit => 'ms',
                      max => $max },
                    { name => "$name, worst", value => $worst, unit => 'ms',
                      max => $max });

        $self->plan($name, $sql) if $self->{plans};
    }

    return @rows;
}


# the plans of all statements inside

sub plan {
    my ($self, $name, $sql) = @_;

    $sql =~ s/\bn\b/1/g;
    $name =~ s/[^a-z0-9]+/-/g;

    my $r = $self->{pg}->run('psql', '-X', '-q', '-A', '-t', '-d',
        $self->{pg}->conninfo(), '-c', "LOAD 'auto_explain'", '-c',
        'SET auto_explain.log_min_duration = 0', '-c',
        'SET auto_explain.log_analyze = on', '-c',
        'SET auto_explain.log_timing = off', '-c',
        'SET auto_explain.log_nested_statements = on', '-c',
        'SET client_min_messages = log', '-c', "SELECT length($sql" . '::text)');

    make_path($self->{plans});
    open(my $fh, '>', "$self->{plans}/$name.txt") or die "$self->{plans}: $!\n";
    print $fh $r->{output} =~ s/\A.*?^(?=LOG:)//msr;      # of initdb before
    close($fh) or die "$self->{plans}: $!\n";
}


sub conversions {
    my ($self) = @_;

    my $referrals = int(1_000_000 * $self->{scale});
    my $seconds = $self->{scale} < 0.1 ? 3 : 60;
    my $script = "$self->{dir}/conversion.sql";

    open(my $fh, '>', $script) or die "$script: $!\n";
    print $fh "\\set n random(1, $referrals)\n",
              "\\set order random(1, 1000000000000)\n",
              "SELECT referral.conversion_record(1, jsonb_build_object(",
              "'external_id', 'r' || :n, 'program_id', (SELECT program_id",
              " FROM referral.referral WHERE id = :n),",
              " 'order_ref', 'o' || :order::text, 'amount', 9900,",
              " 'currency', 'USD'));\n";
    close($fh) or die "$script: $!\n";
    chmod(0644, $script);

    # the first seconds fill caches, and tables that were empty: their plans
    # are made anew when they are analyzed, as autovacuum would have done

    $self->pgbench($script, 2, $seconds / 6);
    $self->{pg}->rows('VACUUM ANALYZE');

    # and what filling wrote is on the disk: COMMIT would wait for it

    $self->{pg}->rows('CHECKPOINT');
    system('sync');

    my %one = $self->pgbench($script, 1, $seconds / 4);
    my %storm = $self->pgbench($script, 4, $seconds, $seconds / 3);
    my $problems = $self->{pg}->value(
        'SELECT count(*) FROM referral.ledger_check()');

    return ({ name => 'conversion to reward, one session, mean',
              value => $one{mean}, unit => 'ms', max => 5 },
            { name => 'conversion to reward, one session, p99',
              value => $one{p99}, unit => 'ms', max => 5 },
            { name => 'conversion to reward, one session, worst',
              value => $one{worst}, unit => 'ms' },
            { name => 'conversions a second, 4 sessions',
              value => $storm{rate}, unit => '/s', min => 1000 },
            { name => 'their p99', value => $storm{p99}, unit => 'ms' },
            { name => 'their worst, with a checkpoint',
              value => $storm{worst}, unit => 'ms' },
            { name => 'their CPU time, in the server, each',
              value => $storm{cpu}, unit => 'ms' },
            { name => 'problems of the ledger afterwards',
              value => $problems, unit => '', max => 1 });
}


# CPU time of the server so far, in seconds: its own, of the processes it has,
# and of those that it had.  User and system time are fields 14 to 17.

sub cpu {
    my ($self) = @_;

    my $pid = $self->{pg}->pid();
    my $ticks = 0;

    for my $file (glob('/proc/[0-9]*/stat')) {
        open(my $fh, '<', $file) or next;       # has ended meanwhile
        my @field = (<$fh> // '') =~ /^([0-9]+) \(.*\) (.*)/s or next;
        my ($process, @rest) = ($field[0], split(' ', $field[1]));

        $ticks += $rest[11] + $rest[12]
            if $process == $pid || $rest[1] == $pid;
        $ticks += $rest[13] + $rest[14] if $process == $pid;
    }

    return $ticks / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}


# Transactions a second, mean, 99th percentile and worst of their times in ms,
# and CPU time.  After some seconds there is a checkpoint, when they are given.

sub pgbench {
    my ($self, $script, $clients, $seconds, $checkpoint) = @_;

    my $pg = $self->{pg};
    my $log = "$self->{dir}/pgbench-$clients";

    $seconds = int($seconds) || 1;
    mkdir($log);
    chmod(0777, $log);

    my $helper = $checkpoint ? fork() : 0;
    die "fork: $!\n" unless defined $helper;

    if ($checkpoint && $helper == 0) {
        sleep($checkpoint);
        $pg->try('CHECKPOINT');
        POSIX::_exit(0);
    }

    my $cpu = $self->cpu();
    my $r = $pg->run("$pg->{bin}/pgbench", '-n', '-M', 'prepared', '-f',
                     $script, '-c', $clients, '-j', $clients > 1 ? 2 : 1,
                     '-T', $seconds, '-l', '--log-prefix', "$log/t", '-h',
                     $pg->{home}, '-U', 'postgres', $pg->{db});

    waitpid($helper, 0) if $helper;
    die "pgbench: $r->{output}\n" if $r->{status};

    my ($tps) = $r->{output} =~ /^tps = ([0-9.]+)/m
        or die "pgbench: $r->{output}\n";
    my ($mean) = $r->{output} =~ /^latency average = ([0-9.]+) ms/m;

    die "pgbench: $r->{output}\n"
        if ($r->{output} =~ /failed transactions: (\d+)/ ? $1 : 0) > 0;

    my @times;

    for my $file (glob("$log/t*")) {
        open(my $fh, '<', $file) or die "$file: $!\n";
        push(@times, (split(' ', $_))[2]) while <$fh>;
        unlink($file);
    }

    @times = sort { $a <=> $b } @times;

    my ($n) = $r->{output} =~ /^number of transactions .*: (\d+)/m;
    die sprintf("pgbench: %d transactions in its log\n%s", scalar(@times),
                $r->{output}) if $n != @times;

    return (rate => $tps, mean => $mean, worst => $times[-1] / 1000,
            p99 => $times[int(@times * 0.99)] / 1000,
            cpu => ($self->cpu() - $cpu) * 1000 / @times);
}


1;
