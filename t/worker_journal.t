#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Journal directories that are not as they should be: a stream that cannot be
# looked at, one with a damaged header, a directory that was replaced.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep);
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $journal = $t->dir() . '/journal';

mkdir($journal) or die;

sub journal_write {
    return ($t->journal_write($journal, @_) =~ /^stream ([0-9a-f]{32})/m)[0];
}

sub hold { $t->journal_hold($journal, @_) }

sub rows_are {
    my ($code, $expected, $name) = @_;
    my $sql = "SELECT count(*) FROM referral.interaction WHERE code = '$code'";
    $t->wait_for(sub { $pg->value($sql) >= $expected }, 10);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is($pg->value($sql), $expected, $name);
}

# a stream whose state cannot be seen: all others are carried, also new ones

for my $name ('0' x 32, 'f' x 32) {
    mkdir("$journal/$name") or die;
    symlink('lock', "$journal/$name/lock") or die;
}

journal_write('--count', 10, '--code', 'BEFORE');
my $w = $t->worker(retention => '0');
rows_are('BEFORE', 10, 'the others are carried');
journal_write('--count', 10, '--code', 'LATER');
rows_are('LATER', 10, 'also one that is new');
sleep(2.5);
my $lines = () = $w->output() =~ /level=error/g;
is($lines, 2, 'each is logged, once');
like($w->output(), qr{event=journal-unreadable stream=0{8}-.*0{32}/lock},
     'by its name');

my $r = $t->referralctl('journal', 'verify', '--journal', $journal);
is($r->{status}, 1, 'referralctl finds them');
like($r->{output}, qr{0{32}/lock.*f{32}/lock.*2 problems}s, 'both');

journal_write('--count', 3, '--code', 'TAIL');
$r = $t->referralctl('journal', 'tail', '--json', '--journal', $journal);
like($r->{output}, qr/TAIL/, 'and prints the others');
rows_are('TAIL', 3, 'as they are carried');

unlink(glob("$journal/*/lock"));
rmdir("$journal/$_") for '0' x 32, 'f' x 32;
journal_write('--count', 10, '--code', 'GONE');
rows_are('GONE', 10, 'a removed one is forgotten');

# a damaged header hides records, but does not hold space for ever

$w->stop();
$w->configure(%{ $w->{conf} }, retention => '2s');
my $id = journal_write('--count', 2000, '--code', 'HEAD');
my @files = sort glob("$journal/$id/0*.seg");
cmp_ok(scalar(@files), '>', 5, 'several segments');
open(my $fh, '+<', $files[2]) or die;
print $fh "\x55" x 256;
close($fh);
$w->start();
$t->wait_for(sub { ($pg->value('SELECT max(seq) FROM referral.ingest_cursor
                                WHERE gap > 0') // 0) >= 2000 }, 10);
cmp_ok($pg->value('SELECT sum(gap) FROM referral.ingest_cursor'), '>', 0,
       'what it hides is a gap');
ok($t->wait_for(sub { !-e "$journal/$id" }, 10), 'the stream goes');

# the directory is replaced: first the old one is read to its end

my $in = hold('--count', 5, '--code', 'OLD');
rows_are('OLD', 5, 'the old directory');
rename($journal, "$journal.old") or die;
mkdir($journal) or die;
journal_write('--count', 5, '--code', 'NEW');
sleep(1.5);
print $in "5\n";
rows_are('OLD', 10, 'is read while it is written');
like($w->output(), qr/level=warn event=journal-replaced/, 'it is said');
close($in);
rows_are('NEW', 5, 'then comes the new one');
journal_write('--count', 5, '--code', 'NEW');
rows_are('NEW', 10, 'and stays');
is($pg->value('SELECT count(*) - count(DISTINCT id)
               FROM referral.interaction'), 0, 'nothing twice');

$t->done();
