#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The worker's endpoint: each counter moves by one when one such thing
# happens, and at the end there is none that did not; promtool takes the text,
# /healthz and /readyz say what is wrong.

use strict;
use warnings;

use File::Basename qw(basename);
use JSON::PP qw(decode_json);
use Test::More;
use Time::HiRes qw(sleep time);
use Referral::Test;
use Referral::Test::Metrics;
use Referral::Test::Process;
use Referral::Test::Receiver;

my %one;                                # counters that were moved by one
my %seen;                               # gauge => values

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $journal = $t->dir() . '/journal';
my $port = $t->port('worker');
my $text = '';

mkdir($journal) or die;

sub metrics {
    my $r = eval { $t->get('/metrics', port => $port) };
    return {} if !$r || $r->status != 200;
    $text = $r->body;

    my %m = Referral::Test::Metrics::samples($text);
    $seen{$_}{ $m{$_} } = 1 for keys %m;

    return \%m;
}

# what moved since the last look, of what does not move by itself

my $last = {};

sub moved {
    my $now = metrics();
    my %d;

    for (keys %$now) {
        next if /_bucket|_sum|lag_|_streams|in_flight/;
        my $n = $now->{$_} - ($last->{$_} // 0);
        $d{s/^referral_worker_//r} = $n if $n;
    }

    $last = $now;

    return \%d;
}

# does it, waits until the metric moved, and that is all that may have

sub moves {
    my ($name, $want, $do) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    moved();
    $do->();

    my ($first) = sort keys %$want;
    my $before = $last->{"referral_worker_$first"} // 0;

    $t->wait_for(sub { (metrics()->{"referral_worker_$first"} // 0)
                       > $before }, 15);
    sleep(0.3);
    is_deeply(moved(), $want, $name);

    $one{"referral_worker_$_"} = 1 for grep { $want->{$_} == 1 } keys %$want;
}

sub journal_write { $t->journal_write($journal, @_) }

my $redis = $t->redis(tcp => 1);
my $w = $t->worker(listen => "127.0.0.1:$port", redis => $redis->url(),
                   webhook_timeout => '1s');
ok($w->notified(qr/READY=1/), 'the worker is there');
ok($t->wait_for(sub { (metrics()->{referral_worker_publish_full_total} // 0)
                      == 1 }, 15), 'all codes are published once');
$one{referral_worker_publish_full_total} = 1;


# A main loop that is stuck.  All that it waits for has its time, so it can be
# a disk only that does not answer: its look for the journal takes 80 s here,
# and what /healthz says of that is asked for at the end.

my $socket = $t->dir() . '/worker.sock';
my $stuck = stuck();

sub stuck {
    my $s = { dir => $t->dir() . '/stuck', socket => $t->dir() . '/stuck.sock',
              at => time() };

    $s->{worker} = $t->worker(name => 'stuck', journal => $s->{dir},
                              postgres => 'host=' . $t->dir(),
                              listen => "unix:$s->{socket}");
    $s->{worker}->notified(qr/READY=1/) or die "the worker is not there\n";
    $s->{disk} = Referral::Test::Process->new(
        name => 'strace', log => $t->dir() . '/strace.log',
        argv => [ 'strace', '-qq', '-p', $s->{worker}->pid(), '-P', $s->{dir},
                  '-e', 'inject=openat:delay_enter=80s' ]);

    return $s;
}

sub asked {
    my ($at, $path) = @_;
    my ($r) = $t->curl('--unix-socket', $at, "http://localhost$path");
    return ref($r) ? $r : undef;
}


# the text

my $r = $t->get('/metrics', port => $port);
is($r->status, 200, '/metrics');
like($r->header('Content-Type'), qr{^text/plain; version=0\.0\.4}, 'its type');
my $file = $t->write_file('metrics', $r->body);
my $out = qx(promtool check metrics < $file 2>&1);
is($?, 0, 'promtool takes it');
is($out, '', 'without a word');
is_deeply([ Referral::Test::Metrics::histograms($text) ], [],
          'buckets are cumulative, the last one is the count');
like($text, qr/^referral_worker_build_info\{version="[\d.]+"\} 1$/m,
     'the version');

for my $name (qw(rows_total batches_total lag_records lag_seconds
    dead_letters_total publish_seconds_count))
{
    like($text, qr/^referral_worker_$name [\d.]+$/m, $name);
}

is($t->get('/nothing', port => $port)->status, 404, 'nothing else');
is($t->post('/metrics', body => 'x' x 100_000, port => $port)->status, 405,
   'GET only');
is($t->head('/metrics', port => $port)->status, 200, 'or HEAD');
is($t->get('/healthz', port => $port)->body, "{\"alive\":true}\n", '/healthz');
is($t->get('/readyz', port => $port)->body, "{\"ready\":true}\n", '/readyz');
is($t->get('/healthz?ready=1', port => $port)->body, "{\"ready\":true}\n",
   'or by an argument');


# the flush

moves('a click', { rows_total => 1, batches_total => 1,
                   batch_seconds_count => 1 },
      sub { journal_write() });
moves('a time that can not be', { quarantined_total => 1, batches_total => 1,
                                  batch_seconds_count => 1 },
      sub { journal_write('--at', 1) });
moves('a dead letter', { dead_letters_total => 1, batches_total => 1,
                         batch_seconds_count => 1 },
      sub { journal_write('--count', 1, '--garbage', 1) });

$w->stop();
journal_write('--count', 3, '--codes', 3, '--code', 'GAP');
for my $seg (glob("$journal/*/*.seg")) {
    open(my $fh, '+<:raw', $seg) or die;
    my $data = do { local $/; <$fh> };
    my $at = index($data, 'GAP-1');
    next if $at < 0;
    seek($fh, $at, 0);
    print $fh 'X';
}
$w->start();
$t->wait_for(sub { (metrics()->{referral_worker_gap_records_total} // 0) > 0 },
             15);
my $m = metrics();
is($m->{referral_worker_gap_records_total}, 1, 'a damaged record is a gap');
$one{referral_worker_gap_records_total} = 1;
is($m->{referral_worker_rows_total}, 2, 'beside two rows');


# a failure of each kind, once

$pg->rows(q{
    CREATE SEQUENCE public.failures;
    CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql
        SECURITY DEFINER AS $$
        BEGIN
            IF nextval('public.failures') = 1 THEN
                IF TG_ARGV[0] = '08006' THEN
                    PERFORM pg_terminate_backend(pg_backend_pid());
                END IF;
                RAISE EXCEPTION 'on purpose' USING ERRCODE = TG_ARGV[0];
            END IF;
            RETURN NULL;
        END $$ });

for my $case ([ '40001', 'conflict' ], [ '55P03', 'conflict' ],
    [ '57014', 'timeout' ], [ '53100', 'resources' ], [ '25006', 'readonly' ],
    [ '42501', 'alarm' ], [ '08006', 'connection' ])
{
    my ($state, $reason) = @$case;

    moves("$state is $reason",
          { "retries_total{reason=\"$reason\"}" => 1, rows_total => 1,
            batches_total => 1, batch_seconds_count => 1 },
          sub {
              $pg->rows("DROP TRIGGER IF EXISTS fail ON
                             referral.counter_delta;
                         ALTER SEQUENCE public.failures RESTART;
                         CREATE TRIGGER fail
                             AFTER INSERT ON referral.counter_delta
                             FOR EACH STATEMENT
                             EXECUTE FUNCTION public.fail('$state')");
              journal_write();
              $t->wait_for(sub { metrics()->{referral_worker_rows_total}
                                 > $last->{referral_worker_rows_total} }, 15);
          });
}

$pg->rows('DROP TRIGGER fail ON referral.counter_delta');
unlike($w->output(), qr/level=error event=(?!postgres-failed|gap|dead)/,
       'no other error');


# webhooks

my $org = $pg->value("SELECT referral.organisation_create('acme', 'Acme')");
my $receiver = Referral::Test::Receiver->new(dir => $t->dir(),
                                             port => $t->port('receiver'));
my $hook = $pg->value("SELECT id FROM referral.webhook_add($org,
    '" . $receiver->url('/mode') . "', '{*}', '{\"allow_private\": true}')");

for my $case ([ '/200', 'delivered' ], [ '/500', 'retry' ],
              [ '/410', 'disabled' ])
{
    my ($mode, $result) = @$case;

    $receiver->set_mode($mode);
    moves("a webhook: $result",
          { "webhook_deliveries_total{result=\"$result\"}" => 1,
            webhook_seconds_count => 1 },
          sub { $pg->rows("SELECT referral.webhook_test($hook)") });
    $pg->rows('DELETE FROM referral.event');
}

$pg->rows("SELECT referral.webhook_enable($hook)");
$receiver->set_mode('/500');
moves('a dead one', { 'webhook_deliveries_total{result="dead"}' => 1,
                      webhook_seconds_count => 1 },
      sub { $pg->rows("BEGIN; SELECT referral.webhook_test($hook);
                       UPDATE referral.webhook_delivery SET attempts = 9;
                       COMMIT") });

$pg->rows('DELETE FROM referral.event');
$receiver->set_mode('/slow/0.8');
moves('one that was taken away',
      { 'webhook_deliveries_total{result="late"}' => 1,
        webhook_seconds_count => 1 },
      sub {
          $receiver->forget();
          $pg->rows("SELECT referral.webhook_test($hook)");
          $t->wait_for(sub { $receiver->got() }, 5);
          is(metrics()->{referral_worker_webhook_in_flight}, 1,
             'one is on its way');
          $pg->rows('DELETE FROM referral.event');
      });
ok($t->wait_for(sub { metrics()->{referral_worker_webhook_in_flight} == 0 },
                5), 'and none now');


# the publisher

my $program = $pg->value("SELECT referral.program_create($org, 'p', 'P',
    '{\"landing_url\": \"https://example.com/\"}')");
sleep(1.5);
moves('a code is published', { published_codes_total => 1,
                               publish_seconds_count => 1 },
      sub { $pg->rows("SELECT referral.code_create($program, NULL, 'ONE')") });


moves('its connection is cut', { publish_failures_total => 1 },
      sub { $redis->cmd('CLIENT', 'KILL', 'TYPE', 'normal') });
moves('a code is published afterwards', { published_codes_total => 1,
                                          publish_seconds_count => 1 },
      sub { $pg->rows("SELECT referral.code_create($program, NULL, 'TWO')") });


# lag, and what health says, while Postgres is away

# name of a stream => its records or seconds of lag
sub of_streams {
    my ($what) = @_;

    my $m = metrics();
    return map { /^referral_worker_stream_lag_$what\{stream="([0-9a-f]{32})"\}/
                     ? ($1 => $m->{$_}) : () } keys %$m;
}

my $start = time();

$pg->stop();
journal_write('--count', 7);
my $hold = $t->journal_hold($journal, '--count', 3);
ok($t->wait_for(sub { metrics()->{referral_worker_lag_records} == 10 }, 10),
   'ten records wait');
is(metrics()->{'referral_worker_streams{state="live"}'}, 1, 'a live stream');

my %stream = of_streams('records');
is_deeply([sort { $a <=> $b } grep { $_ } values %stream], [3, 7],
          'of two streams');
is_deeply([sort grep { $stream{$_} } keys %stream],
          [sort grep { $stream{$_} } map { basename($_) }
               grep { -d } glob("$journal/*")],
          'which have the names of their directories');
my %old = of_streams('seconds');
is(scalar(grep { $old{$_} > 0 } grep { $stream{$_} } keys %stream), 2,
   'each has its age');
my $age = metrics()->{referral_worker_lag_seconds};
sleep(2.2);
my $older = metrics()->{referral_worker_lag_seconds};
cmp_ok($older - $age, '>=', 1, 'they grow old');
cmp_ok($older, '<=', time() - $start + 1, 'and not more than that');

is($t->get('/readyz', port => $port)->status, 200, 'ready for half a minute')
    if time() - $start < 25;
is($t->get('/healthz', port => $port)->status, 200, 'alive');
ok($t->wait_for(sub { $t->get('/readyz', port => $port)->status == 503 }, 40),
   'then not ready');
cmp_ok(time() - $start, '>=', 29, 'not earlier');
$r = decode_json($t->get('/healthz?ready=1', port => $port)->body);
is($r->{ready}, JSON::PP::false, 'it says so');
is($r->{reasons}[0]{reason}, 'postgres', 'and why');
cmp_ok($r->{reasons}[0]{seconds}, '>=', 30, 'and how long');
is($t->get('/healthz', port => $port)->status, 200, 'alive all the same');

# a worker that never had it is not ready at all, nor without its journal

my $w2 = $t->worker(name => 'second', journal => $t->dir() . '/none',
                    listen => "unix:$socket");
ok($w2->notified(qr/READY=1/), 'another one, on a unix socket');

sub ready {
    my $r = asked($socket, '/readyz');
    return $r ? $r->body : '';
}

ok($t->wait_for(sub { ready() =~ /journal/ }, 5), 'has no journal');
like(ready(), qr/"reason":"postgres"/, 'and never had Postgres');
is((stat($socket))[2] & 0777, 0660, 'its socket is not for all');

$pg->start();
ok($t->wait_for(sub { metrics()->{referral_worker_lag_records} == 0 }, 20),
   'Postgres is back, nothing waits');
is(metrics()->{referral_worker_lag_seconds}, '0.000', 'nothing is old');
%stream = of_streams('records');
is(scalar(grep { $_ } values %stream), 0, 'in no stream');
is($t->get('/readyz', port => $port)->status, 200, 'ready');

mkdir($t->dir() . '/none');
ok($t->wait_for(sub { ready() =~ /"ready":true/ }, 10),
   'the other one has all, too');
$w2->stop();
ok(!-e $socket, 'it removes its socket');
close($hold);

# a stream that is set aside

my ($stream) = grep { -e "$_/lock" } glob("$journal/*");

$t->write_file('journal/' . ($stream =~ s{.*/}{}r) . '/aside', "for a test\n");
ok($t->wait_for(sub { metrics()->{'referral_worker_streams{state="aside"}'} },
                10), 'a stream is set aside');
is(metrics()->{'referral_worker_streams{state="aside"}'}, 1, 'one');


# another one has the port

my $conf = $t->write_file('third.conf', "journal = $journal\n"
    . 'postgres = ' . $pg->conninfo() . "\nlisten = 127.0.0.1:$port\n");
$r = $t->run('timeout', '20', $t->build() . '/referral-worker', '-c', $conf);
is($r->{status}, 1, 'an address that is taken');
like($r->{output}, qr/event=listen-failed listen="127.0.0.1:$port"/,
     'is named');

# the one that is stuck

SKIP: {
    skip 'no process may be traced here', 5 unless $stuck->{disk}->alive();

    my $at = $stuck->{socket};

    is(asked($at, '/healthz')->status, 200, 'alive for a minute')
        if time() - $stuck->{at} < 59;
    ok($t->wait_for(sub { asked($at, '/healthz')->status == 503 }, 70),
       'a worker that does not move');
    cmp_ok(time() - $stuck->{at}, '>=', 59, 'for a minute');

    $r = decode_json(asked($at, '/healthz')->body);
    is($r->{alive}, JSON::PP::false, 'says that it is not alive');
    is($r->{reasons}[0]{reason}, 'the worker does not move', 'and why');
    cmp_ok($r->{reasons}[0]{seconds}, '>=', 60, 'and how long');

    $stuck->{disk}->stop('TERM', 10);
    ok($t->wait_for(sub { asked($at, '/healthz')->status == 200 }, 10),
       'alive as soon as it moves');
}

$stuck->{worker}->stop();


# nothing is left out

metrics();

is_deeply([ grep { !$one{$_} } Referral::Test::Metrics::counters($text) ], [],
          'each counter was moved by one');
is_deeply([ grep { keys %{ $seen{$_} } < 2 && !/build_info|stream="/ }
            map { my $family = $_; grep { /^$family\b/ } keys %seen }
            Referral::Test::Metrics::families($text, 'gauge') ], [],
          'each gauge changed');

$receiver->stop();
$t->done();
