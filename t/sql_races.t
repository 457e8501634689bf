#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Sessions that do the same at the same moment: limits hold, codes stay one,
# and who comes second is told so by name.

use strict;
use warnings;

use IO::Handle;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres(migrate => 0, conf => { max_connections => 80 });

for my $file (sort glob($t->root() . '/sql/[0-9]*.sql')) {
    my $r = $t->run('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
                    $pg->conninfo(), '-f', $file);
    die "$file: $r->{output}" if $r->{status};
}


# Runs each statement in a session of its own, all let go at once: they wait
# for a lock that is held until every one of them does.  Returns for each
# { status, out, error }, the error beginning with its SQLSTATE.

my $runs = 0;

sub at_once {
    my (@sql) = @_;

    my $dir = $t->dir() . '/run.' . ++$runs;
    mkdir($dir) or die "$dir: $!";

    open(my $gate, '|-', 'psql', '-X', '-q', '-o', '/dev/null', '-d',
         $pg->conninfo()) or die "psql: $!";
    $gate->autoflush(1);
    print $gate "SELECT pg_advisory_lock(42);\n";
    waiting('granted', 1);

    my @pids;

    for my $n (0 .. $#sql) {
        my $pid = fork() // die "fork: $!";

        if ($pid == 0) {
            open(STDIN, '<', '/dev/null');
            open(STDOUT, '>', "$dir/$n.out");
            open(STDERR, '>', "$dir/$n.err");
            exec('psql', '-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1',
                 '-v', 'VERBOSITY=verbose', '-d', $pg->conninfo(),
                 '-c', 'SELECT pg_advisory_lock_shared(42)', '-c', $sql[$n])
                or POSIX::_exit(127);
        }

        push @pids, $pid;
    }

    waiting('NOT granted', scalar(@sql));
    print $gate "SELECT pg_advisory_unlock(42);\n";
    close($gate);

    my @results;

    for my $n (0 .. $#sql) {
        waitpid($pids[$n], 0);
        my $status = $?;
        my $out = slurp("$dir/$n.out") =~ s/^\n//r;
        my $error = slurp("$dir/$n.err");
        chomp($out);

        push @results, { status => $status, out => $out,
                         error => $error =~ s/^ERROR:\s+//r };
    }

    return @results;
}


sub waiting {
    my ($state, $n) = @_;

    my $end = time() + 30;

    while ($pg->value("SELECT count(*) FROM pg_locks WHERE locktype ="
                      . " 'advisory' AND objid = 42 AND $state") < $n)
    {
        die "sessions do not come to their gate\n" if time() > $end;
        sleep(0.1);
    }
}


sub slurp {
    my ($path) = @_;
    open(my $fh, '<', $path) or die "$path: $!\n";
    local $/;
    return <$fh> // '';
}


# how many ended how: ok, or the SQLSTATE

sub ends {
    my %n;
    $n{ $_->{status} == 0 ? 'ok' : substr($_->{error}, 0, 5) }++ for @_;
    return \%n;
}


# drafts of an organisation

sub programs {
    my ($org, $n) = @_;

    return map { $_->[0] } $pg->rows(
        "SELECT referral.program_create($org, 'p-' || n, 'P')"
        . " FROM generate_series(1, $n) n");
}


sub same { my %seen = map { $_->{out} => 1 } @_; return scalar(keys %seen) }


$pg->rows("SELECT referral.organisation_create('acme', 'Acme')");
$pg->rows("SELECT referral.program_create(1, 'p', 'P', '{}')");

# one code for a user

my @r = at_once(map { "SELECT referral.ensure_code(1, 'ann')" } 1 .. 50);

is_deeply(ends(@r), { ok => 50 }, 'ensure_code() fifty times at once')
    or diag(map { $_->{error} } @r);
is(same(@r), 1, 'gives one code');
is($pg->value('SELECT count(*) FROM referral.code'), 1, 'makes one');
is($pg->value('SELECT code FROM referral.code'), $r[0]{out}, 'that one');
is($pg->value('SELECT count(*) FROM referral.referrer'), 1, 'one referrer');

@r = at_once(map { "SELECT referral.ensure_code(1, 'user-$_')" } 1 .. 50);
is_deeply(ends(@r), { ok => 50 }, 'fifty users at once')
    or diag(map { $_->{error} } @r);
is(same(@r), 50, 'fifty codes');

@r = at_once(map { "SELECT referral.ensure_code(1, 'mail',"
                   . " '{\"contact\": {\"email\": \"m\@example.com\"}}')" }
             1 .. 10);
is_deeply(ends(@r), { ok => 10 }, 'with a contact')
    or diag(map { $_->{error} } @r);
is(same(@r), 1, 'one code');
is($pg->value('SELECT count(*) FROM referral.person'), 1, 'one person');

# a vanity code

@r = at_once(map { "SELECT referral.code_create(1, NULL, 'JUAN2025')" }
             1 .. 10);
is_deeply(ends(@r), { ok => 1, RF029 => 9 }, 'a vanity code has one owner')
    or diag(map { $_->{error} } @r);
is(scalar(grep { $_->{error} =~ /HINT:.*JUAN2025-2/ } @r), 9,
   'the others are told what is free');

# what is one of its organisation

@r = at_once(map { "SELECT referral.program_create(1, 'same', 'S')" }
             1 .. 10);
is_deeply(ends(@r), { ok => 1, RF017 => 9 }, 'a slug');

@r = at_once(map { "SELECT referral.referrer_create(1, 'user',"
                   . " '{\"external_id\": \"same\"}')" } 1 .. 10);
is_deeply(ends(@r), { ok => 1, RF026 => 9 }, 'an external id');

@r = at_once(map { "SELECT referral.referrer_create(1, 'user', '{}',"
                   . " '{\"email\": \"same\@example.com\"}')" } 1 .. 10);
is_deeply(ends(@r), { ok => 1, RF018 => 9 }, 'an address');

# a review

my $id = $pg->value("SELECT referral.referrer_apply(1, 'partner')");

@r = at_once(map { ("SELECT referral.referrer_approve($id,"
                    . " '{\"program\": 1}')",
                    "SELECT referral.referrer_reject($id, 'no')") } 1 .. 5);
is_deeply(ends(@r), { ok => 1, RF021 => 9 }, 'a review is done once');
is($pg->value("SELECT count(*) FROM referral.code WHERE referrer_id = $id"),
   $pg->value("SELECT (status = 'active')::int FROM referral.referrer"
              . " WHERE id = $id"), 'the code goes with the approval');

# the limit of active programs, at each isolation level

for my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE') {
    my $slug = lc($level =~ s/ /-/r);
    my $org = $pg->value("SELECT referral.organisation_create('$slug', 'x')");
    my @ids = programs($org, 20);

    @r = at_once(map { "BEGIN ISOLATION LEVEL $level;"
                       . " SELECT referral.program_set_status($_, 'active');"
                       . ' COMMIT' } @ids);

    my $ends = ends(@r);
    my $active = $pg->value("SELECT count(*) FROM referral.program WHERE"
                            . " organisation_id = $org"
                            . " AND status = 'active'");

    is($ends->{ok}, $active, "$level: who is told so is active");

    if ($level eq 'READ COMMITTED') {
        is_deeply($ends, { ok => 5, RF019 => 15 },
                  'five, the others are told of the limit');

    } else {
        cmp_ok($active, '<=', 5, 'never more than five');
        cmp_ok($active, '>=', 1, 'one at least');
        is(($ends->{ok} // 0) + ($ends->{RF019} // 0)
           + ($ends->{40001} // 0), 20, 'the others may try again');
    }

    is($pg->value('SELECT active_programs FROM referral.organisation'
                  . " WHERE id = $org"), $active, 'and the count is right');
}

# the limit goes down while programs come and go

my $org = $pg->value("SELECT referral.organisation_create('down', 'x')");
my @ids = programs($org, 12);

$pg->rows("SELECT referral.program_set_status(id, 'active')"
          . " FROM (VALUES ($ids[0]), ($ids[1]), ($ids[2])) p (id)");

@r = at_once((map { "SELECT referral.program_set_status($_, 'active')" }
              @ids[3 .. 11]),
             (map { "SELECT referral.program_set_status($_, 'paused')" }
              @ids[0 .. 2]),
             (map { "SELECT referral.organisation_update($org,"
                    . " '{\"max_active_programs\": $_}')" } 2 .. 4));

is_deeply([ grep { $_ ne 'ok' && $_ ne 'RF019' } keys %{ ends(@r) } ], [],
          'no other end: no deadlock') or diag(map { $_->{error} } @r);
is($pg->value('SELECT active_programs <= max_active_programs AND'
              . ' active_programs = (SELECT count(*) FROM referral.program'
              . " WHERE organisation_id = $org AND status = 'active')"
              . " FROM referral.organisation WHERE id = $org"), 't',
   'what is active is counted, and within the limit');

# imports of the same codes, one in the other order

sub rows {
    my (@n) = @_;
    return '[' . join(', ', map { "{\"code\": \"SAME$_\"}" } @n) . ']';
}

@r = at_once(map { "SELECT string_agg(DISTINCT outcome, ' ' ORDER BY outcome)"
                   . ' FROM referral.code_import(1, \''
                   . rows($_ % 2 ? 1 .. 500 : reverse(1 .. 500)) . "')" }
             1 .. 6);
is_deeply(ends(@r), { ok => 6 }, 'six imports of the same codes')
    or diag(map { $_->{error} } @r);
is($pg->value("SELECT count(*) FROM referral.code WHERE code LIKE 'SAME%'"),
   500, 'each code once');
is(scalar(grep { $_->{out} =~ /error|updated/ } @r), 0,
   'created or unchanged, nothing else') or diag(map { $_->{out} } @r);

sub users {
    my (@n) = @_;
    return '[' . join(', ', map { "{\"external_id\": \"same$_\"}" } @n)
           . ']';
}

@r = at_once(map { "SELECT string_agg(DISTINCT outcome, ' ' ORDER BY outcome)"
                   . ' FROM referral.referrer_import(1, \''
                   . users($_ % 2 ? 1 .. 200 : reverse(1 .. 200)) . "')" }
             1 .. 6);
is_deeply(ends(@r), { ok => 6 }, 'six imports of the same referrers')
    or diag(map { $_->{error} } @r);
is(scalar(grep { $_->{out} eq 'created' } @r), 1, 'one makes them')
    or diag(map { $_->{out} } @r);
is(scalar(grep { $_->{out} eq 'unchanged' } @r), 5, 'the others find them');

$t->done();
