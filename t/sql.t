#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# The schema: migrations by plain psql, then t/sql/*.sql (pgTAP), each in a
# database of its own.

use strict;
use warnings;

use Test::More;
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres(migrate => 0);

sub psql {
    my ($db, $file) = @_;

    return $t->run('psql', '-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1',
                   '-d', $pg->conninfo(db => $db), '-f', $file);
}

my @migrations = sort glob($t->root() . '/sql/[0-9]*.sql');
my $n = 0;

for my $file (@migrations) {
    my ($number) = $file =~ m{/(\d{4})_\w+\.sql$};

    is($number, sprintf('%04d', ++$n), "$file has its number");

    my $r = psql('referral', $file);
    is($r->{status}, 0, 'plain psql applies it');
    is($r->{output}, '', 'and it is quiet');
}

is($pg->value('SELECT count(*) FROM referral.schema_migration'), $n,
   'each entered itself');

my $again = psql('referral', $migrations[0]);
isnt($again->{status}, 0, 'a second time is refused');
is($pg->value('SELECT count(*) FROM referral.schema_migration'), $n,
   'and leaves nothing');

$pg->rows('CREATE EXTENSION pgtap');

for my $file (sort glob($t->root() . '/t/sql/*.sql')) {
    my ($name) = $file =~ m{([^/]+)\.sql$};

    $pg->rows("CREATE DATABASE t_$name TEMPLATE referral", db => 'postgres');

    my $r = psql("t_$name", $file);

    subtest $name => sub {
        my $planned;

        for my $line (split(/\n/, $r->{output})) {

            if ($line =~ /^1\.\.(\d+)/) {
                $planned = $1;

            } elsif ($line =~ /^(not )?ok \d+ - (.*)/) {
                ok(!$1, $2);

            } elsif ($line =~ /^# Looks like/) {
                fail($line);

            } else {
                diag($line) if $line =~ /[^#\s]/;
            }
        }

        is($r->{status}, 0, 'psql');
        ok($planned, 'pgTAP came to its plan');
    };
}

$t->done();
