#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Upgrades: a database as each earlier migration left it, with data in it, is
# brought to the newest.  t/upgrade/NNNN.sql writes data right after migration
# NNNN.  Nothing is lost or altered, and the schema is that of a new database.

use strict;
use warnings;

use Test::More;
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres(migrate => 0, db => 'grown');
my @migrations = sort glob($t->root() . '/sql/[0-9]*.sql');


sub psql {
    my ($db, $file) = @_;

    my $r = $t->run('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
                    $pg->conninfo(db => $db), '-f', $file);
    die "$file: $r->{output}" if $r->{status};
}


# the tables of a database with their columns, and a digest of each one's rows

sub tables {
    my ($db) = @_;

    return map { $_->[0] => $_->[1] } $pg->rows(
        "SELECT c.relname, string_agg(quote_ident(a.attname), ', '"
        . ' ORDER BY a.attnum) FROM pg_class c JOIN pg_attribute a'
        . ' ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped'
        . " WHERE c.relnamespace = 'referral'::regnamespace"
        . " AND c.relkind IN ('r', 'p') AND c.relname <> 'schema_migration'"
        . ' GROUP BY 1', db => $db);
}


sub digests {
    my ($db, %tables) = @_;

    my $sql = join(' UNION ALL ', map {
        "SELECT '$_', count(*) || ' ' || coalesce(md5(string_agg(r::text, '|'"
        . " ORDER BY r::text)), '') FROM (SELECT $tables{$_}"
        . " FROM referral.$_) r"
    } sort keys %tables);

    return { map { $_->[0] => $_->[1] } $pg->rows($sql, db => $db) };
}


# the schema as text; the random words that pg_dump puts in are left out

sub schema {
    my ($db) = @_;

    my $r = $t->run('pg_dump', '-s', '-d', $pg->conninfo(db => $db));
    die "pg_dump: $r->{output}" if $r->{status};

    return $r->{output} =~ s/^\\(un)?restrict .*\n//gmr;
}


my $newest = @migrations;
my $filled = 0;

for my $n (1 .. $newest) {
    psql('grown', $migrations[$n - 1]);

    my $data = sprintf('%s/t/upgrade/%04d.sql', $t->root(), $n);

    if (-e $data) {
        psql('grown', $data);
        $filled++;
    }

    next if $n == $newest;

    my $name = sprintf('from_%04d', $n);
    $pg->rows("CREATE DATABASE $name TEMPLATE grown", db => 'postgres');
}

cmp_ok($filled, '>=', 8, 'there is data to lose');

my $fresh = schema('grown');
like($fresh, qr/CREATE TABLE referral\.code /, 'there is a schema to compare');

for my $n (1 .. $newest - 1) {
    my $name = sprintf('from_%04d', $n);
    my %tables = tables($name);

    # these get rows from migrations

    delete @tables{qw(schema_migration event_type)};

    my $before = %tables ? digests($name, %tables) : {};
    my $r = $t->referralctl('db', 'upgrade', '--db',
                            $pg->conninfo(db => $name));

    is($r->{status}, 0, "$name: upgrade") or diag($r->{output});
    is(() = $r->{output} =~ /^applied /mg, $newest - $n,
       "$name: what was missing is applied");

    is_deeply(%tables ? digests($name, %tables) : {}, $before,
              "$name: every row is as it was");

    is_deeply([$pg->rows('SELECT * FROM referral.ledger_check()',
                         db => $name)], [], "$name: the ledger agrees");
    is($pg->value('SELECT count(*) FROM referral.reward WHERE owing',
                  db => $name), $n < 31 ? 0 : 1, "$name: who owes is known");

    # (before 0002 there are no partitions, and theirs are of the day)

    is(schema($name), $fresh, "$name: the schema of a new database")
        if $n == 2 || $n == 6;

    $pg->rows("DROP DATABASE $name", db => 'postgres');
}

$t->done();
