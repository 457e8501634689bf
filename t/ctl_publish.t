#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# referralctl publish: asks the worker, and compares Redis with Postgres.

use strict;
use warnings;

use Test::More;
use JSON::PP;
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $redis = $t->redis();
my $json = JSON::PP->new()->utf8();

delete @ENV{qw(REFERRAL_ORG REFERRAL_ACTOR PGOPTIONS)};
$ENV{REFERRAL_DB} = $pg->conninfo();
$ENV{REFERRAL_REDIS} = $redis->url();

$pg->value("SELECT referral.organisation_create('acme', 'Acme')");
$pg->value("SELECT referral.program_create(1, 'p', 'p', '{\"landing_url\":"
           . " \"https://example.com/\", \"campaign\": \"c\"}')");
$pg->value("SELECT referral.program_set_status(1, 'active')");
$pg->value('SELECT count(*) FROM (SELECT referral.code_create(1, NULL,'
           . " 'CODE' || n) FROM generate_series(1, 3000) n) x");
$pg->value("SELECT (referral.code_create(1, NULL, 'FULL', '{\"campaign\":"
           . " \"x y\", \"rules\": {\"a\": [1, \"\\u00fc\"]}, \"starts_at\":"
           . " \"2020-01-01\", \"expires_at\": \"2030-01-01\"}')).id");
$pg->value("SELECT (referral.code_create(1, NULL, 'NULL')).id");


sub check {
    my $ctl = $t->build() . '/referralctl';
    my $out = qx('$ctl' publish --check --json 2> /dev/null);
    my $status = $? >> 8;
    my $doc = eval { $json->decode($out) } || {};

    return { %$doc, status => $status,
             list => { map { my $d = $_;
                             ("$d->{code} " . ($d->{field} // 'all') =>
                              $d->{problem} // join(' for ', map { $_ // '-' }
                                                    @$d{qw(redis postgres)})) }
                       @{ $doc->{differences} // [] } } };
}


# usage

my $r = $t->referralctl('publish', '--full', '--check');
is($r->{status}, 2, '--full and --check');
like($r->{output}, qr/--full or --check, not both/, 'says so');
is($t->referralctl('publish', 'x')->{status}, 2, 'an operand');
like($t->referralctl('publish', '--help')->{output},
     qr/^Usage: referralctl publish \[options\]$/m, '--help');
# nobody publishes: seen from the side, while the rest goes on

my $nobody = Referral::Test::Process->new(
    name => 'nobody', log => $t->dir() . '/nobody.log',
    argv => [ $t->build() . '/referralctl', 'publish', '--db',
              $t->postgres(name => 'other')->conninfo() ]);

is($t->referralctl('publish', '--check', '--redis', 'unix:/nonexistent')
   ->{status}, 3, 'no Redis');
is($t->referralctl('publish', '--check', '--db', 'host=/nonexistent')
   ->{status}, 3, 'no Postgres');

# before anything was published

$r = check();
is($r->{status}, 1, 'an empty Redis');
is($r->{codes}, 3002, 'all codes were compared');
is($r->{different}, 3003, 'all are missing');
like($r->{list}{'referral:publisher all'}, qr/nothing was published/,
     'and the publisher');
is($r->{list}{'NULL all'}, 'is in Postgres, but not in Redis', 'by name');

# the worker publishes

my $worker = $t->worker(redis => $redis->url(), listen => 'off');

$r = $t->referralctl('publish', '--json');
is($r->{status}, 0, 'publish') or diag($r->{output}, $worker->output());
my ($answer) = @{ $json->decode($r->{output}) };
is($answer->{codes}, 3002, 'how many codes');
like($answer->{redis_run_id}, qr/^[0-9a-f]{40}$/, 'in which Redis');
like($answer->{seconds}, qr/^\d/, 'how long');

$r = check();
is($r->{status}, 0, 'all is the same') or diag(explain($r->{list}));
is_deeply([ @$r{qw(codes different by_hand)} ], [ 3002, 0, 0 ], 'in numbers');
like($t->referralctl('publish', '--check')->{output},
     qr/^3,002 codes in Postgres, 0 differences, 0 in Redis written by hand$/m,
     'in words');

$r = $t->referralctl('publish', '--full');
is($r->{status}, 0, '--full');
like($r->{output}, qr/^Redis \S+: 3,002 codes, generation \d+, after [\d.]+ s$/,
     'in words');

# every field, and what is too much or missing

sub field { $redis->cmd('HSET', "referral:code:$_[0]", @_[1, 2]) }

$worker->pause();

field('CODE1', url => 'https://evil.example/');
field('CODE2', state => 'inactive');
field('CODE3', not_before => 5);
field('CODE4', expires => 5);
field('CODE5', program_id => 2);
field('CODE6', referrer_id => 2);
field('CODE7', campaign => "\e[31mred");
field('CODE8', rules => '{}');
field('CODE9', version => 'x');
field('CODE10', colour => 'red');
$redis->cmd('HDEL', 'referral:code:CODE11', 'code_id');
$redis->cmd('DEL', 'referral:code:CODE12');
$redis->cmd('SET', 'referral:code:CODE13', 'x') if $redis->cmd('DEL',
    'referral:code:CODE13');
$redis->cmd('HSET', 'referral:code:EXTRA', url => 'https://x/', code_id => 9);
$redis->cmd('HSET', 'referral:code:HAND', url => 'https://x/');
$redis->cmd('HSET', 'referral:code:small', url => 'https://x/');
$redis->cmd('SADD', 'referral:off', 'program:1', 'referrer:77', 'x');

$r = check();
is($r->{status}, 1, 'differences');
is_deeply($r->{list}, {
    'CODE1 url' => 'https://evil.example/ for https://example.com/',
    'CODE2 state' => 'inactive for active',
    'CODE3 not_before' => '5 for -',
    'CODE4 expires' => '5 for -',
    'CODE5 program_id' => '2 for 1',
    'CODE6 referrer_id' => '2 for -',
    'CODE7 campaign' => "\e[31mred for c",
    'CODE8 rules' => '{} for -',
    'CODE9 version' => 'x for a number',
    'CODE10 colour' => 'red for -',
    'CODE11 code_id' => '- for 11',
    'CODE12 all' => 'is in Postgres, but not in Redis',
    'CODE13 all' => 'is no hash in Redis',
    'EXTRA all' => 'is in Redis, but not in Postgres',
    'referral:off program:1' => 'off for on',
    'referral:off x' => 'off for on',
}, 'each of them') or diag(explain($r->{list}));
is($r->{different}, 16, 'counted');
is($r->{by_hand}, 1, 'those written by hand are left alone');

$r = $t->referralctl('publish', '--check');
like($r->{output}, qr/^CODE1: url is "https:\/\/evil.example\/" in Redis, "https:\/\/example.com\/" in Postgres$/m,
     'in words');
like($r->{output}, qr/CODE7: campaign is "\\x1b\[31mred"/,
     'no terminal obeys them');
like($r->{output}, qr/^16 differences|, 16 differences,/m, 'how many');

# not ready, and a generation of somebody else

$redis->cmd('HSET', 'referral:publisher', 'ready', 0, 'generation', 999);
$r = check();
like($r->{list}{'referral:publisher all'}, qr/^is not ready/, 'not ready');
is($r->{list}{'referral:publisher generation'}, '999 for unknown',
   'a foreign generation');

# the worker mends all of it, without being told

$worker->resume();
ok($t->wait_for(sub { ($redis->cmd('HGET', 'referral:publisher', 'ready')
                       // '') eq '1' }, 20), 'published anew');
is($t->referralctl('publish')->{status}, 0, 'publish');
$r = check();
is($r->{status}, 0, 'everything is the same again') or diag(explain($r->{list}));

# changes while it compares are no differences

my $p = Referral::Test::Process->new(
    name => 'switch', log => $t->dir() . '/switch.log',
    argv => [ 'psql', '-Xqd', $pg->conninfo(), '-c',
              'DO $$ BEGIN FOR i IN 1 .. 4000 LOOP PERFORM'
              . ' referral.code_set_status((random() * 2000)::int + 1,'
              . " CASE WHEN random() < 0.5 THEN 'disabled' ELSE 'active' END);"
              . ' COMMIT; END LOOP; END $$' ]);

$r = check();
ok($p->alive(), 'while codes are switched');
cmp_ok($r->{different}, '<', 20, 'few seem to differ');
$p->wait(60);
is($t->referralctl('publish')->{status}, 0, 'publish');
is(check()->{status}, 0, 'none in the end');

# an organisation is none: what is in Redis is everybody's

$pg->value("SELECT referral.organisation_create('beta', 'Beta')");
is($t->referralctl('publish', '--check', '--org', 'beta')->{status}, 0,
   'an organisation without codes');

is($nobody->wait(60) >> 8, 3, 'nobody publishes');
like($nobody->output(), qr/nobody publishes: no referral-worker .* 30 seconds/,
     'is said');

ok($worker->stop(), 'the worker ends');
$t->done();
