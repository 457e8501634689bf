#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# referralctl journal adopt: a stream that was set aside goes on as another.

use strict;
use warnings;

use IO::Handle;
use JSON::PP;
use Test::More;
use Time::HiRes qw(sleep);
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $journal = $t->dir() . '/journal';
my $json = JSON::PP->new()->utf8();
my $write = $t->build() . '/t/journal_write';

delete @ENV{qw(REFERRAL_JOURNAL REFERRAL_DB)};
mkdir($journal) or die;

my %id;                                 # all that were ever recorded

sub take_ids {
    my ($text) = @_;
    my @ids = $text =~ /^\d+ ([0-9a-f-]{36})$/mg;
    @id{@ids} = (1) x @ids;
    return @ids;
}

sub journal_write {
    my $r = $t->run($write, '--journal', $journal, '--ids', @_);
    die $r->{output} if $r->{status};
    take_ids($r->{output});
    return ($r->{output} =~ /^stream ([0-9a-f]{32})/m)[0];
}

sub adopt {
    my ($stream, @args) = @_;
    return $t->referralctl('journal', 'adopt', $stream, '--journal', $journal,
                           '--db', $pg->conninfo(), @args);
}

sub adopt_json {
    my ($stream) = @_;
    my $r = adopt($stream, '--json');
    return eval { $json->decode($r->{output}) } // diag($r->{output});
}

sub value { $pg->value(@_) }

# every record once, in whatever table

sub once {
    my ($name) = @_;
    my $sql = q{SELECT count(*) FROM (SELECT id FROM referral.interaction
                UNION ALL SELECT (data ->> 'id')::uuid
                FROM referral.quarantine) a};
    $t->wait_for(sub { value($sql) >= keys(%id) }, 15);
    sleep(0.3);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my %there = map { $_->[0] => 1 } $pg->rows(
        q{SELECT id FROM referral.interaction UNION ALL
          SELECT (data ->> 'id')::uuid FROM referral.quarantine});
    is_deeply([ value($sql), value('SELECT count(*) FROM referral.dead_letter'),
                scalar(grep { !$there{$_} } keys(%id)) ],
              [ scalar(keys(%id)), 0, 0 ], $name);
}

sub aside {
    my ($stream) = @_;
    $t->write_file("journal/$stream/aside", "for a test\n");
}

my $w = $t->worker();

# what is not to be adopted

my $first = journal_write('--count', 20);
my $r = adopt($first);
is($r->{status}, 1, 'a stream that was not set aside');
like($r->{output}, qr/was not set aside/, 'is left to the worker');
is(adopt('0123')->{status}, 1, 'nor one that is not there');
once('the worker carries it');

open(my $in, '|-', "exec $write --journal $journal --count 5 --ids --hold"
     . ' > ' . $t->dir() . '/hold.log') or die;
$in->autoflush(1);
$t->wait_for(sub { ($t->read_file('hold.log') // '') =~ /appended/ }, 5);
my ($live) = $t->read_file('hold.log') =~ /^stream (\w+)/m;
take_ids($t->read_file('hold.log'));
once('a live stream');
$w->stop();
aside($live);
$w->start();
print $in "3\n";
$t->wait_for(sub { $t->read_file('hold.log') =~ /appended 8/ }, 5);
$r = adopt($live);
is($r->{status}, 1, 'a live stream set aside');
like($r->{output}, qr/is live.*reload or stop nginx/, 'says what to do');
ok(-d "$journal/$live", 'and stays');

# its end, which Postgres does not know

close($in);
take_ids($t->read_file('hold.log'));

$r = $t->referralctl('journal', 'adopt', $live, '--journal', $journal, '--db',
                     'host=/nonexistent');
is($r->{status}, 3, 'without Postgres');
ok(-e "$journal/$live/aside", 'nothing happens');

my $doc = adopt_json(substr($live, 0, 12));
is($doc->{$_->[0]}, $_->[1], "$_->[0] $_->[1]")
    for [ stream => $live ], [ known => 5 ], [ adopted => 3 ],
        [ unreadable => 0 ];
like($doc->{into}, qr/^[0-9a-f]{32}$/, 'the new stream');
ok(!-e "$journal/$live", 'the old one is gone');
once('its end is carried');
is(value('SELECT seq FROM referral.ingest_cursor WHERE stream_id = '
         . "'$doc->{into}'"), 3, 'by the new stream');
is(value('SELECT edge FROM referral.ingest_cursor WHERE stream_id = '
         . "'$doc->{into}'"), 'test', 'of the same edge');

# all known: nothing is made

my $known = journal_write('--count', 4);
once('a stream');
aside($known);
$known =~ s/^(.{8})(.{4})(.{4})(.{4})/$1-$2-$3-$4-/;
$r = adopt($known);
$known =~ tr/-//d;
is($r->{status}, 0, 'nothing to adopt');
like($r->{output}, qr/^adopted 0, known 4, unreadable 0$/m, 'is said');
ok(!-e "$journal/$known", 'and it is gone');

# dead letters and quarantine are known too; bytes that are no record as well

$w->stop();
my $odd = journal_write('--count', 40, '--garbage', 10,
                        '--at', 4102444800000);
$w->start();
$t->wait_for(sub { (value("SELECT seq FROM referral.ingest_cursor WHERE
                          stream_id = '$odd'") // 0) eq 40 }, 10);
aside($odd);
$doc = adopt_json($odd);
is("$doc->{known} $doc->{adopted}", '40 0', 'quarantine and dead letters');

# undecodable ones go on, to be dead letters

my %before = %id;
$w->stop();
my $garbage = journal_write('--count', 3, '--garbage', 1, '--ua', 'other');
%id = %before;
aside($garbage);
$doc = adopt_json($garbage);
is("$doc->{known} $doc->{adopted}", '0 3', 'no records of ours');
$w->start();
ok($t->wait_for(sub { value('SELECT count(*) FROM referral.dead_letter')
                      eq 7 }, 10), 'become dead letters');
$pg->rows('DELETE FROM referral.dead_letter');
$pg->rows('DELETE FROM referral.quarantine');
%id = map { $_->[0] => 1 } $pg->rows('SELECT id FROM referral.interaction');

# interrupted: after the new stream has its name

$w->stop();
my $twice = journal_write('--count', 1200);
system('cp', '-a', "$journal/$twice", $t->dir() . '/saved') == 0 or die;
aside($twice);
$doc = adopt_json($twice);
is($doc->{adopted}, 1200, 'many, in several segments');
cmp_ok(scalar(() = glob("$journal/$doc->{into}/*.seg")), '>', 2, 'as before');

my ($mode, $old) = map { (stat($_))[2] } "$journal/$doc->{into}",
                                         $t->dir() . '/saved';
is($mode, $old, 'with the modes of a stream of nginx');

sub put_back {
    system('cp', '-a', $t->dir() . '/saved', "$journal/$twice") == 0 or die;
    aside($twice);
}

put_back();
my $again = adopt_json($twice);
ok($again->{before}, 'run again, it finds the new stream');
is("$again->{into} $again->{adopted}", "$doc->{into} 0", 'and makes no other');
ok(!-e "$journal/$twice", 'but removes the old one');

put_back();
unlink((sort glob("$journal/$twice/0*.seg"))[0, 1]);
$again = adopt_json($twice);
is("$again->{into} $again->{adopted}", "$doc->{into} 0",
   'also when a part was removed already');

$w->start();
once('nothing twice');

$w->configure(%{ $w->{conf} }, retention => '0');
$w->restart();
ok($t->wait_for(sub { !-e "$journal/$doc->{into}" }, 10),
   'the new stream is done with');
put_back();
$again = adopt_json($twice);
ok($again->{before}, 'its cursor tells that it was');
once('nothing twice');

# interrupted: before it has its name

$w->stop();
my $half = journal_write('--count', 10);
aside($half);
my $copy = $t->dir() . '/copy';
system('cp', '-a', $journal, $copy) == 0 or die;
my $name = $json->decode($t->referralctl('journal', 'adopt', $half,
    '--journal', $copy, '--db', $pg->conninfo(), '--json')->{output})->{into};
mkdir("$journal/$name.adopt") or die;
$t->write_file("journal/$name.adopt/$_", 'x' x 5000)
    for 'spare.seg', '00000000000000000001.seg', 'lock';
$r = $t->referralctl('journal', 'list', '--json', '--journal', $journal);
unlike($r->{output}, qr/$name/, 'half a stream is no stream');
$doc = adopt_json($half);
is("$doc->{adopted} $doc->{into}", "10 $name", 'what is left over is replaced');
ok(!-e "$journal/$name.adopt", 'and gone');
$w->start();
once('nothing twice');

# damage: what can be read goes on, the rest is kept

$w->configure(%{ $w->{conf} }, retention => '1h');
$w->stop();
my $bad = journal_write('--count', 500);
my ($segment) = sort glob("$journal/$bad/0*.seg");
open(my $fh, '+<:raw', $segment) or die;
seek($fh, 4096 + 16 + 8, 0);
print $fh "\xff\xff\xff\xff";
close($fh);
aside($bad);
$r = adopt($bad);
is($r->{status}, 1, 'a damaged record');
like($r->{output}, qr/record 1: the checksum is wrong/, 'is named');
like($r->{output}, qr/^adopted 499, known 0, unreadable 1/m, 'and counted');
ok(-e $segment, 'what cannot be read is kept');
$w->start();
my $sql = 'SELECT count(*) FROM referral.interaction';
my $want = keys(%id) - 1;
ok($t->wait_for(sub { value($sql) eq $want }, 15), 'the others are carried')
    or diag(value($sql), " of $want");
is(adopt($bad)->{status}, 1, 'run again');
is(value($sql), $want, 'nothing twice');

$t->done();
