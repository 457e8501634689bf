#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Clicks for as long as it takes: memory has to stay flat, and the journal
# below its size.
#
#     make faults-long CLICKS=10000000
#
# CLICKS (1,000,000), SECONDS (no limit) and INTERVAL (10 s) are taken from the
# environment.  Needs wrk.  The load pauses while the worker is far behind:
# this is about what grows, not about speed.

use strict;
use warnings;

use List::Util qw(max);
use Test::More;
use Time::HiRes qw(sleep time);

use Referral::Test;
use Referral::Test::Process;


use constant {
    CODES   => 200,
    SIZE    => 512,                     # MB
    BEHIND  => 300_000,                 # records
};

my $clicks = $ENV{CLICKS} || 1_000_000;
my $seconds = $ENV{SECONDS};
my $interval = $ENV{INTERVAL} || 10;

plan(skip_all => 'needs wrk') unless grep { -x "$_/wrk" } split(/:/, $ENV{PATH});

my $t = Referral::Test->new();
my $pg = $t->postgres(conf => { shared_buffers => '256MB',
                                max_wal_size => '4GB',
                                synchronous_commit => 'on' });
my $redis = $t->redis();

$redis->code("CODE$_", url => 'https://example.com/?id={click_id}',
             code_id => $_, program_id => 1, referrer_id => $_) for 1 .. CODES;

$t->nginx(cookie => 1, status => 1, workers => 2,
    http => 'referral_journal %%DIR%%/journal size=' . SIZE . 'm segment=4m;
             keepalive_requests 1000000;', main => 'worker_rlimit_nofile 4096;',
    server => q{
        referral on;
        location /r/ { referral_redirect; }
        location / { return 200; }
    }) if mkdir($t->dir() . '/journal', 02770);

my $w = $t->worker(batch_wait => '100ms');

$t->write_file('load.lua', 'local n = 0
request = function()
    n = n + 1
    return wrk.format("GET", "/r/CODE" .. (n * 7919 % ' . CODES . ' + 1)
                             .. "?utm_source=" .. n % 100)
end
');

my $load = Referral::Test::Process->new(name => 'wrk',
    log => $t->dir() . '/wrk.log',
    argv => [ 'wrk', '-t', 1, '-c', 16, '-d', '24h', '-s',
              $t->dir() . '/load.lua',
              'http://127.0.0.1:' . $t->port('http') ]);

my ($start, $last, $paused, @samples) = (time(), 0, 0);

printf("# %7s %10s %8s %9s %9s %9s %9s %9s %9s\n", 's', 'clicks', 'behind',
       'nginx1', 'nginx2', 'worker', 'journal', 'pages1', 'pages2');
print("#           in rows           anonymous memory, KB            MB"
      . "     mapped, KB\n");

for ( ;; ) {
    my $s = sample();

    if ($s->{seconds} - $last >= $interval || $s->{rows} >= $clicks) {
        $last = $s->{seconds};
        push @samples, $s;
        printf("# %7.0f %10d %8d %9d %9d %9d %9.1f %9d %9d\n",
               @$s{qw(seconds rows behind)}, @{ $s->{anon} }, $s->{worker},
               $s->{journal}, @{ $s->{mapped} });
    }

    last if $s->{rows} >= $clicks || ($seconds && $s->{seconds} > $seconds);

    if (!$paused && $s->{behind} > BEHIND) {
        $load->pause();
        $paused = 1;

    } elsif ($paused && $s->{behind} < BEHIND / 3) {
        $load->resume();
        $paused = 0;
    }

    die "wrk ended: " . $load->output() unless $load->alive();

    sleep(0.5);
}

$load->stop('INT', 10);
$t->wait_for(sub { sample()->{behind} == 0 }, 60);

my $end = sample();
my $took = time() - $start;

diag(sprintf('%d clicks in %.0f s, %.0f a second, all of them rows: %s',
             $end->{accepted}, $took, $end->{accepted} / $took,
             $end->{behind} == 0 ? 'yes' : 'no'));

is($end->{behind}, 0, 'every click that was accepted is in Postgres');
is($pg->value('SELECT sum(seq) - sum(rows) FROM referral.ingest_cursor'), 0,
   'as a row');
is($pg->value('SELECT sum(n) FROM referral.counters'), $end->{accepted},
   'and counted');
is($end->{dropped}, 0, 'none was dropped');

# the first fifth is warming up

my @warm = @samples[@samples / 5 .. $#samples];

for (0, 1) {
    my $n = $_;
    flat("nginx worker $n", map { $_->{anon}[$n] } @warm);
}

flat('referral-worker', map { $_->{worker} } @warm);
cmp_ok(max(map { $_->{journal} } @samples), '<=', SIZE,
       'the journal stays below its size');

$t->done();


sub flat {
    my ($name, @kb) = @_;

    my $half = int(@kb / 2);
    my ($first, $second) = (max(@kb[0 .. $half]), max(@kb[$half .. $#kb]));

    cmp_ok($second, '<=', $first * 1.05 + 256,
           "$name: memory is flat, $first and then $second KB at most");
}


sub sample {
    my $text = $t->status();
    my %s = (seconds => time() - $start);

    ($s{accepted}) = $text =~ /^referral_journal_records_total (\d+)/m;
    $s{dropped} = 0;
    $s{dropped} += $_ for $text =~ /^referral_dropped_total\{[^}]*\} (\d+)/mg;
    $s{rows} = $pg->value('SELECT sum(seq) FROM referral.ingest_cursor') // 0;
    $s{behind} = $s{accepted} - $s{rows};
    $s{behind} = 0 if $s{behind} < 0;

    for ($t->workers()) {
        my %m = memory($_);
        push @{ $s{anon} }, $m{RssAnon};
        push @{ $s{mapped} }, $m{RssFile} + $m{RssShmem};
    }

    $s{worker} = { memory($w->pid()) }->{RssAnon};
    $s{journal} = 0;
    $s{journal} += ((stat($_))[12] // 0) / 2048
        for glob($t->dir() . '/journal/*/*.seg');

    return \%s;
}


sub memory {
    my ($pid) = @_;

    open(my $fh, '<', "/proc/$pid/status") or die "process $pid is gone\n";

    return map { /^(Rss\w+):\s+(\d+)/ ? ($1 => $2) : () } <$fh>;
}
