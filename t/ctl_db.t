#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# referralctl db: the schema's migrations.

use strict;
use warnings;

use Test::More;
use Digest::SHA qw(sha256_hex);
use File::Copy qw(copy);
use JSON::PP;
use POSIX ();
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres(migrate => 0);
my $sql = $t->root() . '/sql';
my @files = map { s{.*/}{}r } sort glob("$sql/[0-9]*.sql");

cmp_ok(scalar(@files), '>', 3, 'there are migrations');

sub ctl {
    my ($verb, @args) = @_;
    return $t->referralctl('db', $verb, '--db', $pg->conninfo(), @args);
}

# nothing there yet

my $r = ctl('status', '--json');
is($r->{status}, 1, 'status of an empty database');
is_deeply([ map { $_->{state} } @{ decode_json($r->{output}) } ],
          [ ('pending') x @files ], 'everything is pending');

# fresh

$r = ctl('upgrade');
is($r->{status}, 0, 'upgrade') or diag($r->{output});
is(() = $r->{output} =~ /^applied /mg, @files, 'names each file');

my @rows = $pg->rows('SELECT version, name, sha256 FROM'
                     . ' referral.schema_migration ORDER BY version');

is_deeply([ map { $_->[2] } @rows ],
          [ map { sha256_hex($t->read_file("$sql/$_")
                             // slurp("$sql/$_")) } @files ],
          'checksums are those of the files');

sub slurp {
    my ($path) = @_;
    open(my $fh, '<:raw', $path) or die "$path: $!\n";
    local $/;
    return <$fh>;
}

$r = ctl('status', '--json');
is($r->{status}, 0, 'status afterwards');
is_deeply([ map { $_->{state} } @{ decode_json($r->{output}) } ],
          [ ('applied') x @files ], 'everything is applied');

like(ctl('status')->{output}, qr/^VERSION +NAME +STATE/, 'a table');

# twice

$r = ctl('upgrade');
is($r->{status}, 0, 'upgrade again');
like($r->{output}, qr/nothing was to do/, 'does nothing');

# by psql: a null checksum is filled

$pg->value('UPDATE referral.schema_migration SET sha256 = NULL'
           . ' WHERE version = 2 RETURNING 1');
$r = ctl('status', '--json');
is($r->{status}, 0, 'applied by psql is no fault');
is(decode_json($r->{output})->[1]{state}, 'unchecked', 'but it is told');
is(ctl('upgrade')->{status}, 0, 'upgrade then');
is($pg->value('SELECT count(*) FROM referral.schema_migration'
              . ' WHERE sha256 IS NULL'), 0, 'fills it in');

# changed, new, lost files: on a copy

my $copy = $t->dir() . '/sql';
mkdir($copy) or die;
copy("$sql/$_", "$copy/$_") or die for @files;

my $next = sprintf('%04d_more.sql', @files + 1);

$t->write_file("sql/$next", "BEGIN;\nCREATE TABLE referral.more (n int);\n"
    . 'INSERT INTO referral.schema_migration (version, name) VALUES ('
    . (@files + 1) . ", 'more');\nCOMMIT;\n");
$t->write_file("sql/$files[1]", slurp("$sql/$files[1]") . "-- edited\n");

$r = ctl('upgrade', '--sql', $copy);
is($r->{status}, 1, 'a changed file is refused');
like($r->{output}, qr/\Q$files[1]\E was changed after/, 'and named');
is($pg->value("SELECT to_regclass('referral.more')"), undef,
   'nothing else is applied');
is(ctl('status', '--sql', $copy)->{status}, 1, 'status sees it');

copy("$sql/$files[1]", "$copy/$files[1]") or die;
$r = ctl('upgrade', '--sql', $copy);
is($r->{status}, 0, 'the file restored, the new one is applied')
    or diag($r->{output});
like($r->{output}, qr/^applied \Q$next\E$/m, 'only that');

$r = ctl('upgrade');
is($r->{status}, 1, 'older files against a newer database');
like($r->{output}, qr/use the newer referralctl/, 'says so');

# a failing file leaves nothing behind, and its successors wait

my $bad = sprintf('%04d_bad.sql', @files + 2);
my $after = sprintf('%04d_after.sql', @files + 3);

$t->write_file("sql/$bad", "BEGIN;\nCREATE TABLE referral.half (n int);\n"
    . "SELECT 1 / 0;\nCOMMIT;\n");
$t->write_file("sql/$after", "BEGIN;\nCREATE TABLE referral.late (n int);\n"
    . "COMMIT;\n");

$r = ctl('upgrade', '--sql', $copy);
is($r->{status}, 1, 'a failing file');
like($r->{output}, qr/\Q$bad\E: division by zero \(SQLSTATE 22012\)/,
     'is named with the reason');
is($pg->value("SELECT count(*) FROM pg_class WHERE relname IN"
              . " ('half', 'late')"), 0, 'nothing of it stays');

$t->write_file("sql/$bad", "BEGIN;\nCREATE TABLE referral.half (n int);\n");
$r = ctl('upgrade', '--sql', $copy);
is($r->{status}, 1, 'a file without COMMIT');
like($r->{output}, qr/COMMIT is missing/, 'is named');

unlink("$copy/$bad");
$r = ctl('upgrade', '--sql', $copy);
is($r->{status}, 2, 'a gap in the numbers');
like($r->{output}, qr/no file with the number/, 'is named');

# two at once

is($pg->try('CREATE DATABASE two', 'postgres')->{status}, 0, 'a second one');

my @pids;
my $conninfo = $pg->conninfo(db => 'two');

for my $n (1 .. 3) {
    my $pid = fork();
    die unless defined $pid;

    if ($pid == 0) {
        open(STDOUT, '>', $t->dir() . "/upgrade.$n");
        open(STDERR, '>&', \*STDOUT);
        exec($t->build() . '/referralctl', 'db', 'upgrade', '--db',
             $conninfo) or POSIX::_exit(127);
    }

    push @pids, $pid;
}

my @status = map { waitpid($_, 0); $? } @pids;
is_deeply(\@status, [ 0, 0, 0 ], 'three at once all succeed')
    or diag(map { slurp($_) } glob($t->dir() . '/upgrade.*'));
is($pg->value('SELECT count(*) FROM referral.schema_migration', db => 'two'),
   scalar(@files), 'each file once');

# what can not be reached

$r = $t->referralctl('db', 'status', '--db',
                     'host=' . $t->dir() . ' port=5999 dbname=x');
is($r->{status}, 3, 'no server');
like($r->{output}, qr/^referralctl: postgres: .*\.s\.PGSQL\.5999/,
     'libpq says why');

$r = $t->referralctl('db', 'status', '--db', $pg->conninfo(db => 'none'));
is($r->{status}, 3, 'no such database');
like($r->{output}, qr/"none" does not exist/, 'is named');

$r = $t->referralctl('db', 'status', '--sql', $t->dir() . '/nowhere', '--db',
                     $pg->conninfo());
is($r->{status}, 2, 'no such directory of migrations');

{
    local $ENV{REFERRAL_DB} = $conninfo;
    is($t->referralctl('db', 'status')->{status}, 0, 'REFERRAL_DB');
}

$t->done();
