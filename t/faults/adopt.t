#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# referralctl journal adopt is killed at every point that it passes, and run
# again: nothing lost, nothing twice.

use strict;
use warnings;

use JSON::PP;
use Test::More;
use Time::HiRes qw(sleep);
use Referral::Test;
use Referral::Test::Scenario ();

plan(skip_all => 'needs a build with FAULTS=1')
    unless Referral::Test::Scenario::fault_build();

use constant RECORDS => 1100;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $journal = $t->dir() . '/journal';
my $apart = $t->dir() . '/apart';
my $marks = $t->dir() . '/marks';
my $json = JSON::PP->new()->utf8();
my $write = $t->build() . '/t/journal_write';
my %id;

mkdir($_) or die for $journal, $apart, $marks;

# (): a stream that was set aside, of which Postgres has the first half

sub aside {
    my $r = $t->run($write, '--journal', $apart, '--ids', '--count', RECORDS);
    die $r->{output} if $r->{status};

    my ($stream) = $r->{output} =~ /^stream (\w+)/m;
    my @ids = $r->{output} =~ /^\d+ ([0-9a-f-]{36})$/mg;

    @id{@ids} = (1) x @ids;
    $t->write_file("apart/$stream/aside", "for a test\n");

    my $half = join(', ', map { "('$_'::uuid)" } @ids[0 .. RECORDS / 2 - 1]);

    $pg->rows("INSERT INTO referral.interaction (id, occurred_at, stream, seq,
               type) SELECT id, referral.uuid_time(id), 1, 1, 'click'
               FROM (VALUES $half) v (id)");

    # in one step: the worker must not carry it first

    rename("$apart/$stream", "$journal/$stream") or die;

    return $stream;
}

sub adopt {
    my ($stream, %env) = @_;
    local @ENV{keys(%env)} = values(%env);
    return $t->referralctl('journal', 'adopt', $stream, '--journal', $journal,
                           '--db', $pg->conninfo(), '--json');
}

sub once {
    my @ids = map { $_->[0] } $pg->rows('SELECT id FROM referral.interaction');
    my %there = map { $_ => 1 } @ids;
    my $lost = grep { !$there{$_} } keys(%id);
    my $more = @ids - keys(%there) + grep { !$id{$_} } @ids;
    my $dead = $pg->value('SELECT count(*) FROM referral.dead_letter');

    return "$lost lost, $more doubled, $dead dead";
}

my $w = $t->worker(retention => '1h', batch_wait => '50ms');
my @points = map { $_->{name} }
             grep { !$_->{fails} && $_->{name} !~ /^(?:worker|partition)-/ }
             @{ $json->decode($t->referralctl('--version', '--json')->{output})
                ->{faults} };

cmp_ok(scalar(@points), '>', 20, 'the points are known');

my %hit;

for my $point (@points) {
    for my $nth (1, 2) {
        my $stream = aside();

        adopt($stream, REFERRAL_FAULT => "$point:$nth",
              REFERRAL_FAULT_MARK => $marks);

        next unless unlink("$marks/$point");

        $hit{$point}++;

        # the worker may have carried all of it before the next run, or not

        sleep(0.6) if $nth == 2;

        my $r = adopt($stream);

        # a directory without files is the worker's to remove

        ok($t->wait_for(sub { !-e "$journal/$stream" }, 5),
           "$point, passage $nth") or diag($r->{output});
    }
}

$t->wait_for(sub { $pg->value('SELECT count(*) FROM referral.interaction')
                   >= keys(%id) }, 30);
sleep(0.5);
is(once(), '0 lost, 0 doubled, 0 dead', 'of ' . keys(%id) . ' clicks');
is_deeply([ grep { /^adopt-/ && !$hit{$_} } @points ], [],
          'all of adopt were reached');
cmp_ok(scalar(keys(%hit)), '>=', 15, 'and of the writer');
note(join(' ', sort keys(%hit)));
is_deeply([ glob("$journal/*.adopt") ], [], 'nothing is left over');

# the worker dies while it sets a stream aside

$w->stop();
my $r = $t->run($write, '--journal', $journal, '--count', 10);
my ($stream) = $r->{output} =~ /^stream (\w+)/m;
my $cursor = "referral.ingest_cursor WHERE stream_id = '$stream'";

$w->start();
ok($t->wait_for(sub { ($pg->value("SELECT seq FROM $cursor") // 0) == 10 }, 10),
   'a stream that is carried');
$w->stop();
$pg->rows("UPDATE referral.ingest_cursor SET last_id =
           '01a1f8b6-a71e-758c-b42e-85afb2e01677' WHERE stream_id = '$stream'");

$w->{env} = { REFERRAL_FAULT => 'aside-made', REFERRAL_FAULT_MARK => $marks };
$w->start();
ok($t->wait_for(sub { -e "$marks/aside-made" }, 10), 'the worker dies');
$w->{process}->wait(5);
$w->{env} = {};
$w->start();
ok($t->wait_for(sub { $w->output() =~ /event=stream-aside-found/ }, 10),
   'the next one leaves the stream aside');
is($json->decode(adopt($stream)->{output})->{known}, 10, 'and all is known');

$t->done();
