#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Webhooks over the wire: signatures, answers of all kinds, schedules, order,
# private addresses, a worker that dies.

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256_base64);
use IO::Socket::INET;
use JSON::PP qw(decode_json);
use MIME::Base64 qw(decode_base64);
use POSIX qw(strftime);
use Test::More;
use Time::HiRes qw(sleep time);
use Referral::Test;
use Referral::Test::Receiver;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $receiver = Referral::Test::Receiver->new(dir => $t->dir(),
                                             port => $t->port('receiver'));
mkdir($t->dir() . '/journal');

my $org = $pg->value("SELECT referral.organisation_create('acme', 'Acme')");

sub add {
    my ($url, %arg) = @_;

    my $types = $arg{types} // '*';
    my $private = $arg{private} // 1 ? 'true' : 'false';
    my $most = $arg{most} // 4;

    my ($row) = $pg->rows("SELECT id, secret FROM referral.webhook_add($org,
        '$url', '{$types}', '{\"allow_private\": $private,
        \"max_in_flight\": $most}')");

    return { id => $row->[0], secret => $row->[1] };
}

sub emit {
    my ($key, %arg) = @_;

    my $type = $arg{type} // 'reward.earned';
    my $data = $arg{data} // '{"reward_id": 1}';
    $key = defined $key ? "'$key'" : 'NULL';

    return $pg->value("SELECT referral.emit($org, '$type', $key, '$data')");
}

sub delivery {
    my ($hook, $what) = @_;
    return $pg->value("SELECT $what FROM referral.webhook_deliveries
                       WHERE webhook_id = $hook->{id} ORDER BY id LIMIT 1");
}

sub comes_to {
    my ($hook, $want, $name, $seconds) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;
    $t->wait_for(sub { delivery($hook, 'status') eq $want
                       && delivery($hook, 'attempts') > 0 }, $seconds // 10);
    is(delivery($hook, 'status'), $want, $name);
}

sub due { $pg->rows('UPDATE referral.webhook_delivery SET next_at = now()
                     WHERE status = \'pending\'') }

sub clear {
    $pg->rows("DELETE FROM referral.webhook_endpoint");
    $pg->rows("DELETE FROM referral.event");
    $receiver->forget();
}

# as a receiver would, from the specification

sub verified {
    my ($request, $secret) = @_;

    my $h = $request->{headers};
    my $key = decode_base64($secret =~ s/^whsec_//r);
    my $mac = hmac_sha256_base64("$h->{'webhook-id'}."
        . "$h->{'webhook-timestamp'}.$request->{body}", $key);

    return grep { $_ eq "v1,$mac=" } split(/ /, $h->{'webhook-signature'});
}


my $w = $t->worker(webhook_timeout => '1500ms');
ok($w->notified(qr/READY=1/), 'the worker is there');


# what is sent

my $hook = add($receiver->url('/200'));
my $start = time();
my $event = emit('referral:1', data => '{"a": "\\u00fc\"\\\\", "n": 9007199254740993}');
comes_to($hook, 'delivered', 'a delivery');
cmp_ok(time() - $start, '<', 5, 'soon');

my ($got, @more) = $receiver->got();
is(scalar(@more), 0, 'once');
is($got->{method}, 'POST', 'POST');
is($got->{headers}{'webhook-id'}, $event, 'webhook-id is the event');
cmp_ok(abs($got->{headers}{'webhook-timestamp'} - $got->{at}), '<=', 2,
       'webhook-timestamp is the time of the attempt');
is($got->{headers}{'content-type'}, 'application/json', 'JSON');
like($got->{headers}{'user-agent'}, qr{^referral-worker/}, 'by whom');
is($got->{headers}{expect}, undef, 'without Expect');
ok(verified($got, $hook->{secret}), 'the signature is right');

my $body = decode_json($got->{body});
is(join(' ', sort keys %$body), 'data timestamp type', 'the body');
is($body->{type}, 'reward.earned', 'its type');
is($body->{data}{a}, "\x{fc}\"\\", 'its data');
like($got->{body}, qr/9007199254740993/, 'numbers are kept');
like($body->{timestamp}, qr/^\d{4}-\d\d-\d\dT[\d:]{8}\.\d{6}Z$/, 'its time');
is($pg->value("SELECT '$body->{timestamp}' = created_at FROM referral.events"),
   't', 'is that of the event');
is(delivery($hook, 'http_status'), 200, 'what came of it');
like(delivery($hook, 'response'), qr/^status 200 "\x{fffd}\x{fffd}\\ ?\n?/,
     'and the response');

my $received = $w->{process}->output();
unlike($received, qr/whsec|\Q$hook->{secret}\E/, 'no secret in the log');


# a rotation: both keys, then one

my $new = $pg->value("SELECT referral.webhook_rotate($hook->{id})");
clear_events();
emit('referral:1');
$t->wait_for(sub { $receiver->got() }, 5);
($got) = $receiver->got();
ok(verified($got, $hook->{secret}), 'the old key while it is rotated');
ok(verified($got, $new), 'and the new one');
ok(!verified($got, 'whsec_' . 'A' x 32), 'no other one');
$pg->rows('UPDATE referral.webhook_secret SET expires_at = now()
           WHERE expires_at IS NOT NULL');
clear_events();
emit('referral:1');
$t->wait_for(sub { $receiver->got() }, 5);
($got) = $receiver->got();
ok(!verified($got, $hook->{secret}), 'afterwards not the old one');
ok(verified($got, $new), 'but the new one');

sub clear_events {
    $pg->rows("DELETE FROM referral.event");
    $receiver->forget();
}


# answers

for my $case (
    [ '/204', 'delivered', 204, undef ],
    [ '/201', 'delivered', 201, undef ],
    [ '/large', 'delivered', 200, undef ],
    [ '/301', 'pending', 301, qr/redirects are not followed/ ],
    [ '/307', 'pending', 307, qr/redirects are not followed/ ],
    [ '/400', 'pending', 400, qr/^HTTP 400$/ ],
    [ '/500', 'pending', 500, qr/^HTTP 500$/ ],
    [ '/503', 'pending', 503, qr/^HTTP 503$/ ],
    [ '/garbage', 'pending', undef, qr/HTTP\/0.9|Received|nsupported/i ],
    [ '/close', 'pending', undef, qr/[Ee]mpty reply/ ],
    [ '/hang', 'pending', undef, qr/timed? ?out/i ],
    [ '/drip', 'pending', undef, qr/timed? ?out/i ],
) {
    my ($path, $status, $http, $error) = @$case;

    clear();
    $hook = add($receiver->url($path));
    emit(undef);
    comes_to($hook, $status, "$path: $status");
    is(delivery($hook, 'http_status'), $http, 'its status');
    $error ? like(delivery($hook, 'error'), $error, 'its error')
           : is(delivery($hook, 'error'), undef, 'no error');
    is(scalar($receiver->got()), 1, 'one request');
    cmp_ok(delivery($hook, 'octet_length(response)'), '<=', 1024 * 3,
           'a kilobyte of the response') if $path eq '/large';

    if ($status eq 'pending') {
        my $wait = $pg->value("SELECT extract(epoch FROM next_at
            - attempted_at) FROM referral.webhook_deliveries");
        cmp_ok($wait, '>=', 4.5, 'again after five seconds');
        cmp_ok($wait, '<=', 5.5 + 3, 'and no later');
    }
}

for my $case ([ '/429/after/120', 120 ], [ '/503/after/90', 90 ],
    [ '/429/after/DATE', 300 ],
    [ '/429/after/99999999', 86400 ], [ '/429/after/x', 5 ],
    [ '/500/after/120', 5 ])
{
    my ($path, $seconds) = @$case;

    clear();
    my $date = strftime('%a,_%d_%b_%Y_%H:%M:%S_GMT', gmtime(time() + 300));
    $hook = add($receiver->url($path =~ s/DATE/$date/r));
    emit(undef);
    comes_to($hook, 'pending', "Retry-After: $path");
    my $wait = $pg->value("SELECT extract(epoch FROM next_at - attempted_at)
                           FROM referral.webhook_deliveries");

    # libcurl 8.16 takes no more than six hours for true
    $seconds = 21600 if $seconds == 86400 && $wait < 30000;
    cmp_ok(abs($wait - $seconds), '<=', 3, "waits $seconds s");
}

clear();
$hook = add($receiver->url('/410'));
emit('a');
emit('a');
comes_to($hook, 'dead', 'a 410');
is($pg->value("SELECT status FROM referral.webhooks"), 'disabled',
   'disables the endpoint');
sleep(1.5);
is(scalar($receiver->got()), 1, 'nothing more is sent');
like($w->output(), qr/level=warn event=webhook result=disabled webhook=\d+/,
     'and the log says so');


# the whole schedule; the clock is the row's

clear();
$hook = add($receiver->url('/500'));
emit('a');
for my $n (1 .. 10) {
    $t->wait_for(sub { due(); $receiver->got() >= $n }, 10);
}
comes_to($hook, 'dead', 'dead after the last attempt');
is(delivery($hook, 'attempts'), 10, 'the tenth');
my @got = $receiver->got();
is(scalar(@got), 10, 'ten requests');
is(scalar(keys %{{ map { $_->{headers}{'webhook-id'} => 1 } @got }}), 1,
   'one webhook-id');
is(scalar(keys %{{ map { $_->{body} => 1 } @got }}), 1, 'one body');
is(scalar(grep { verified($_, $hook->{secret}) } @got), 10,
   'a signature for each time');
like($w->output(), qr/level=warn event=webhook result=dead/, 'the log');

$pg->rows("SELECT referral.webhook_redeliver($_->[0])") for
    $pg->rows('SELECT id FROM referral.webhook_deliveries');
$t->wait_for(sub { $receiver->got() == 11 }, 5);
is(scalar($receiver->got()), 11, 'sent again by hand');
is(delivery($hook, 'attempts'), 1, 'its first attempt');


# order: the failed one of a key goes before those behind it

clear();
$hook = add($receiver->url('/mode'), most => 8);
$receiver->set_mode('/500');
emit('a', data => '{"n": 1}');
comes_to($hook, 'pending', 'the first of a key fails');
emit('a', data => "{\"n\": $_}") for 2 .. 4;
emit("b$_", data => "{\"n\": 10}") for 1 .. 2;
$t->wait_for(sub { $receiver->got() == 3 }, 5);
sleep(0.5);
is(scalar($receiver->got()), 3, 'those behind it wait, other keys do not');
$receiver->forget();
$receiver->set_mode('/200');
due();
$t->wait_for(sub { $receiver->got() >= 6 }, 10);
is(join(' ', map { $_->{n} } grep { $_->{n} < 10 }
        map { decode_json($_->{body})->{data} } $receiver->got()),
   '1 2 3 4', 'then they come in their order');
is($pg->value("SELECT count(*) FROM referral.webhook_deliveries
               WHERE status = 'delivered'"), 6, 'all of them');


# many at once: the slow ones keep nobody

clear();
my @slow = map { add($receiver->url('/hang')) } 1 .. 6;
$hook = add($receiver->url('/200'), types => 'payout.*');
emit(undef) for 1 .. 10;
$t->wait_for(sub { $pg->value("SELECT count(*) FROM referral.webhook_delivery
                               WHERE status = 'sending'") >= 20 }, 5);
$start = time();
emit(undef, type => 'payout.paid');
comes_to($hook, 'delivered', 'beside receivers that hang');
cmp_ok(time() - $start, '<', 1.5, 'without waiting for them');
cmp_ok($pg->value("SELECT max(n) FROM (SELECT count(*) AS n
                   FROM referral.webhook_delivery WHERE status = 'sending'
                   GROUP BY endpoint_id) x"), '<=', 4, 'four at a time each');


# private addresses

sub refused {
    my ($url, $name) = @_;

    clear();
    my $hook = add('https://example.com/', private => 0);
    $pg->rows("UPDATE referral.webhook_endpoint SET url = '$url'");
    emit(undef);
    comes_to($hook, 'pending', $name);
    like(delivery($hook, 'error'),
         qr/private address|not supported|disabled/, 'is refused');
    is(scalar($receiver->got()), 0, 'nothing is sent');
}

my $port = $t->port('receiver');
refused("https://127.0.0.1:$port/200", 'loopback');
refused("https://localhost:$port/200", 'a name of it');
refused("https://[::1]:$port/200", 'loopback of IPv6');
refused("https://[::ffff:127.0.0.1]:$port/200", 'a mapped address');
refused("https://0x7f000001:$port/200", 'a number');
refused("https://0:$port/200", 'zero');
refused('https://169.254.169.254/latest/meta-data', 'metadata of clouds');
refused('https://10.0.0.1/', 'a private net');
refused("http://127.0.0.1:$port/200", 'plain http');
refused("file:///etc/passwd", 'a file');

# TLS is verified, and the proxy of the environment not asked

clear();
my ($cert, $key) = $t->certificate();
my $tls = $t->port('tls');
my $server = Referral::Test::Process->new(name => 'tls',
    log => $t->dir() . '/tls.log',
    argv => [ 'openssl', 's_server', '-accept', "127.0.0.1:$tls", '-cert',
              $cert, '-key', $key, '-quiet' ]);
$t->wait_for(sub { IO::Socket::INET->new("127.0.0.1:$tls") }, 5);
$hook = add("https://127.0.0.1:$tls/");
emit(undef);
comes_to($hook, 'pending', 'a certificate that nobody signed');
like(delivery($hook, 'error'), qr/certificate|SSL peer/i, 'is not believed');
$server->stop();

$w->stop();
$w->{env}{http_proxy} = $w->{env}{ALL_PROXY} = 'http://127.0.0.1:1';
$w->start();
clear();
$hook = add($receiver->url('/200'));
emit(undef);
comes_to($hook, 'delivered', 'with a proxy in the environment');


# A request is under way to a private address, over HTTP/2: whoever must not
# have that address is refused, too, and does not join it on its connection.
# The worker believes the certificate, in a mount namespace of its own.

SKIP: {
    my $ours = $t->write_file('trusts', "#!/bin/sh\nexec unshare -m sh -c '"
        . 'mount --bind "$0" /etc/ssl/certs/ca-certificates.crt && exec "$@"'
        . "' $cert " . $t->build() . "/referral-worker \"\$@\"\n", 0755);

    skip 'no mount namespaces here', 5
        if $t->run('unshare', '-m', 'mount', '--bind', $cert,
                   '/etc/ssl/certs/ca-certificates.crt')->{status};

    $w->stop();
    clear();

    my $trusting = $t->worker(name => 'trusting', binary => $ours,
                              journal => $t->dir() . '/trusting');
    my $h2 = $t->port('h2');

    $t->nginx(http => "log_format h2 '\$server_protocol \$connection \$uri';
        server {
            listen 127.0.0.1:$h2 ssl http2;
            ssl_certificate $cert;
            ssl_certificate_key $key;
            access_log %%DIR%%/h2.log h2;
            location / { proxy_pass http://127.0.0.1:$port; }
        }");

    my $may = add("https://localhost:$h2/slow/3", types => 'reward.earned');
    my $not = add('https://example.com/', types => 'reward.approved',
                  private => 0);

    $pg->rows("UPDATE referral.webhook_endpoint
                   SET url = 'https://localhost:$h2/200'
                   WHERE id = $not->{id}");
    emit('a');
    $t->wait_for(sub { $receiver->got() }, 5);
    emit('b', type => 'reward.approved');
    comes_to($not, 'pending', 'beside a request to a private address');
    is(delivery($may, 'status'), 'sending', 'which is under way');
    like(delivery($not, 'error'), qr/private address/, 'another is refused');
    comes_to($may, 'delivered', 'the one that may be sent is');
    is($t->read_file('h2.log') =~ s/ \d+ / /gr, "HTTP/2.0 /slow/3\n",
       'over HTTP/2, and nothing else');

    $trusting->stop();
    $t->nginx_stop();
    $w->start();
}


# down, then up

clear();
$hook = add($receiver->url('/200'));
$receiver->stop();
emit(undef);
comes_to($hook, 'pending', 'a receiver that is down');
like(delivery($hook, 'error'), qr/connect/i, 'says so');
$receiver->start();
due();
comes_to($hook, 'delivered', 'and up again');


# a worker that dies: the lease ends, it is sent again

clear();
$hook = add($receiver->url('/mode'));
$receiver->set_mode('/slow/1.5');
$event = emit(undef);
$t->wait_for(sub { $receiver->got() }, 5);
$w->kill9();
is(delivery($hook, 'status'), 'sending', 'killed while it sends');
$receiver->set_mode('/200');
$w->start();
sleep(1.5);
is(delivery($hook, 'status'), 'sending', 'the lease is kept');
$pg->rows('UPDATE referral.webhook_delivery SET next_at = now()');
comes_to($hook, 'delivered', 'and then it is sent again');
is(join(' ', map { $_->{headers}{'webhook-id'} } $receiver->got()),
   "$event $event", 'with the same id');

# and at the two moments that matter, where fault points are built

my $faulty = $t->root() . '/build/faults/referral-worker';
$faulty = $t->build() . '/referral-worker'
    if qx('@{[ $t->build() ]}/referral-worker' -V) =~ /fault/;

SKIP: {
    skip('make faults-build', 8) unless -x $faulty;

    for my $case ([ 'webhook-claimed', 1 ], [ 'webhook-sent', 2 ]) {
        my ($point, $requests) = @$case;

        clear();
        $hook = add($receiver->url('/200'));
        $w->stop();
        local $w->{binary} = $faulty;
        local $w->{env}{REFERRAL_FAULT} = $point;
        $w->start();
        $w->{process}{expected} = 1;
        emit(undef);
        $t->wait_for(sub { !$w->alive() }, 10);
        ok(!$w->alive(), "killed at $point");
        is(delivery($hook, 'status'), 'sending', 'the lease is there');
        delete $w->{env}{REFERRAL_FAULT};
        $w->start();
        $pg->rows('UPDATE referral.webhook_delivery SET next_at = now()');
        comes_to($hook, 'delivered', 'it is delivered');
        is(scalar($receiver->got()), $requests, "with $requests request(s)");
    }
}

$w->restart();


# SIGTERM while it sends

clear();
$hook = add($receiver->url('/hang'));
emit(undef);
$t->wait_for(sub { $receiver->got() }, 5);
$start = time();
$w->stop();
cmp_ok(time() - $start, '<', 1.5, 'SIGTERM does not wait for a receiver');
is($w->status(), 0, 'and is a clean end');


# 1,000 events, two workers: each once

clear();
my @hooks = map { add($receiver->url('/200'), most => 32) } 1 .. 2;
$w->configure(%{ $w->{conf} }, webhook_timeout => '30s');
$w->start();
my $w2 = $t->worker(name => 'second', journal => $t->dir() . '/other');
$start = time();
$pg->rows("SELECT count(referral.emit($org, 'reward.earned',
               'referral:' || n % 50, jsonb_build_object('n', n)))
           FROM generate_series(1, 500) n");
$t->wait_for(sub { $pg->value("SELECT count(*) FROM referral.webhook_delivery
                               WHERE status = 'delivered'") == 1000 }, 30);
my $took = time() - $start;
is($pg->value("SELECT count(*) FROM referral.webhook_delivery
               WHERE status = 'delivered' AND attempts = 1"), 1000,
   '1,000 deliveries');
note(sprintf('1,000 deliveries in %.1f s', $took));
@got = $receiver->got();
is(scalar(@got), 1000, 'each is sent once');
my %last;
my $disorder = 0;
for (@got) {
    my $data = decode_json($_->{body})->{data};
    my $whose = verified($_, $hooks[0]{secret}) ? 0 : 1;
    my $k = "$whose " . $data->{n} % 50;
    $disorder++ if ($last{$k} // 0) >= $data->{n};
    $last{$k} = $data->{n};
}
is($disorder, 0, 'in the order of each key');
cmp_ok($took, '<', 25, 'in time');

# Postgres goes and comes

$pg->restart();
clear();
$hook = add($receiver->url('/200'));
emit(undef);
comes_to($hook, 'delivered', 'after a restart of Postgres', 15);

# a reload: another timeout

$w2->stop();
$w->configure(%{ $w->{conf} }, webhook_timeout => '1s');
$w->hup();
ok($w->notified(qr/RELOADING=1/) && $w->notified(qr/READY=1/), 'reloaded');
clear();
$hook = add($receiver->url('/hang'));
emit(undef);
comes_to($hook, 'pending', 'with another timeout');
cmp_ok(delivery($hook, 'duration_ms'), '<', 1400, 'it is shorter');

$receiver->stop();
$t->done();
