#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Codes, from Postgres to Redis, when nothing fails but what fails every day.

use strict;
use warnings;

use IO::Handle;
use Test::More;
use Time::HiRes qw(sleep time);

use Referral::Test;
use Referral::Test::Publish;

my $p = Referral::Test::Publish->new(codes => 400);
my $redis = $p->redis();

sub settles {
    my ($name, @hand) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is_deeply([ $p->settle('HAND', 'NOHASH', @hand) ], [], $name);
}

sub publisher { return { @{ $redis->cmd('HGETALL', 'referral:publisher') } } }

sub hash_of {
    return { @{ $redis->cmd('HGETALL', "referral:code:$_[0]") } };
}

# what is there before the first time

$redis->cmd('HSET', 'referral:code:HAND', 'url', 'https://example.com/hand');
$redis->cmd('SET', 'referral:code:NOHASH', 'x');
$redis->cmd('HSET', 'referral:code:OLD', 'url', 'https://example.com/old',
            'code_id', 99999);
$redis->cmd('HSET', 'referral:code:CODE7', 'url', 'https://example.com/by',
            'note', 'written by hand');

my $w;
my @m = $p->messages(sub { $w = $p->worker('a') }, 1.5);

is_deeply(\@m, [ '* 1' ], 'a full publish is one message');
settles('all codes are there, and those of former times are gone');
ok($redis->cmd('EXISTS', 'referral:code:HAND'), 'what has no code_id stays');
like($w->output(), qr/event=publish-ready .* codes=400 by_hand=2 /,
     'and is counted');

my ($mark) = $p->sql('SELECT redis_run_id, ready, batch, pending
                          FROM referral.publications');
is($mark->[1] . $mark->[3], 't0', 'Postgres knows');

# single codes

my $v = hash_of('CODE1')->{version};

@m = $p->messages(sub {
    $p->sql("SELECT referral.code_set_status(referral.code_find('CODE1'),
                                             'disabled')");
});
is(scalar(@m), 1, 'one message for one code');
my ($code, $version) = ($m[0] // '') =~ /^(\S+) (\d+)$/;
is($code, 'CODE1', 'with its name');
cmp_ok($version // 0, '>', $v, 'and a higher version');
is_deeply(hash_of('CODE1'), { url => 'https://example.com/main',
    state => 'inactive', version => $version, code_id => 1, program_id => 1 },
    'its hash, and nothing but the fields that are promised');

$p->sql("SELECT referral.referrer_create(1, 'partner',
             '{\"external_id\": \"r1\"}',
             '{\"name\": \"Ada Example\", \"email\": \"ada\@example.com\"}');
         SELECT referral.code_create(1, 1, 'ADA', '{\"max_uses\": 2,
             \"starts_at\": \"2026-01-01T00:00:00Z\",
             \"expires_at\": \"2099-01-01T00:00:00Z\",
             \"campaign\": \"caf\\u00e9 ''x''\",
             \"destination\": \"https://example.com/ada?a=1&b=2\"}')");
settles('a code with everything');
is(hash_of('ADA')->{not_before} . ' ' . hash_of('ADA')->{expires},
   '1767225600 4070908800', 'times are Unix seconds');
unlike(join(' ', %{ hash_of('ADA') }), qr/Example|ada\@/,
       'nothing of the person');

$p->sql("UPDATE referral.code SET uses = 2 WHERE code = 'ADA'");
settles('its last use');
is(hash_of('ADA')->{state}, 'exhausted', 'exhausts it');
$p->sql("SELECT referral.referrer_set_status(1, 'suspended')");
settles('its referrer is suspended');
is(hash_of('ADA')->{state}, 'inactive', 'and it is off');
$p->sql("UPDATE referral.code SET code = 'ADA2' WHERE code = 'ADA'");
settles('a renamed code has one hash');
@m = $p->messages(sub {
    $p->sql("DELETE FROM referral.code WHERE code IN ('ADA2', 'CODE3')");
});
is_deeply([ sort map { /^(\S+) \d+$/ ? $1 : $_ } @m ], [ 'ADA2', 'CODE3' ],
          'deleted codes are told');
settles('and gone');

# a thousand changes of one code

my $start = time();
$p->sql(join('', map { "UPDATE referral.code SET campaign = 'c$_'"
                       . " WHERE code = 'CODE2';\n" } 1 .. 1000));
settles(sprintf('1,000 changes of one code (%.1f s)', time() - $start));
is(hash_of('CODE2')->{campaign}, 'c1000', 'the last one counts');

# what is not committed is not published, and is found however late it is

sub session {
    my $pid = open(my $fh, '|-', 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1',
                   '-o', '/dev/null', '-d',
                   $p->pg()->conninfo(db => $p->{db})) or die;
    $fh->autoflush(1);
    return $fh;
}

my $late = session();
print $late "BEGIN; UPDATE referral.code SET campaign = 'late'"
            . " WHERE code = 'CODE4';"
            . " SELECT pg_notify('referral_publish', '');"
            . "\\echo x\n";
$p->t()->wait_for(sub { $p->value("SELECT count(*) FROM pg_stat_activity
                                       WHERE state = 'idle in transaction'
                                             AND datname = '$p->{db}'") > 0 },
                  5);

$p->sql("UPDATE referral.code SET campaign = 'c$_' WHERE code = 'CODE5'")
    for 1 .. 20;
settles('others are not held up by a transaction that is open');
ok(!exists(hash_of('CODE4')->{campaign}), 'what is not committed is not out');
@m = $p->messages(sub { print $late "COMMIT;\n"; close($late) }, 1);
settles('and is when it is committed');
is(hash_of('CODE4')->{campaign}, 'late', 'though others were later');
is(scalar(@m), 1, 'only that');

# a mark without its notification

$p->sql("SET session_replication_role = replica;
         UPDATE referral.code SET campaign = 'unheard' WHERE code = 'CODE6';
         INSERT INTO referral.mark (kind, object_id, code)
             SELECT 'code', id, code FROM referral.code
                 WHERE code = 'CODE6'");
ok($p->t()->wait_for(sub { (hash_of('CODE6')->{campaign} // '')
                           eq 'unheard' }, 3),
   'a lost notification: a second');

# a program with many codes

$redis->cmd('SADD', 'referral:off', 'program:77');
ok($p->t()->wait_for(sub { !$redis->cmd('SCARD', 'referral:off') }, 3),
   'what does not belong into referral:off goes');

@m = $p->messages(sub {
    $p->sql("SELECT referral.program_set_status(1, 'paused')");
}, 1);
is($m[0], 'off', 'a program is switched off: first referral:off');
is($m[-1], 'off', 'at last again');
is(scalar(grep { /^CODE\d+ \d+$/ } @m), 399, 'each code between');
is(scalar(grep { $_ eq 'off' } @m), 2, 'no more than these');
settles('all are inactive, and the set is empty');

@m = $p->messages(sub {
    $p->sql("SELECT referral.program_set_status(1, 'active')");
}, 1);
is(scalar(grep { $_ eq 'off' } @m), 0, 'on again: the set is not needed');
settles('all are active');

$p->sql("SELECT referral.organisation_set_status(1, 'disabled')");
settles('an organisation is its programs');
is(hash_of('CODE9')->{state}, 'inactive', 'all of them');
$p->sql("SELECT referral.organisation_set_status(1, 'active')");
$p->sql("SELECT referral.program_set_status(1, 'paused');
         SELECT referral.program_set_status(1, 'active');
         SELECT referral.program_set_status(1, 'paused')");
settles('off and on and off');
$p->sql("SELECT referral.program_set_status(1, 'active')");
settles('on');

# more marks than fit a batch

$p->sql("DO \$\$ BEGIN FOR i IN 1 .. 400 LOOP
             FOR j IN 1 .. 5 LOOP
                 UPDATE referral.code SET campaign = 'm' || j WHERE id = i;
             END LOOP;
             UPDATE referral.code SET campaign = 'n' || i WHERE id = i;
         END LOOP; END \$\$");
settles('2,400 marks of one transaction');
$p->sql("INSERT INTO referral.code (organisation_id, program_id, code)
             SELECT 1, 1, 'MANY' || g FROM generate_series(1, 5000) g");
settles('5,000 new codes in a statement');
$p->sql("DELETE FROM referral.code WHERE code LIKE 'MANY%'");
settles('and gone again');

# restarts

unlike($w->output(), qr/level=(?:warn|error)/, 'no complaint so far');

my $generation = publisher()->{generation};

$p->sql("SELECT referral.program_update(1,
             '{\"landing_url\": \"https://example.com/other\"}')");
$w->restart();
settles('a restart in the midst of it');
is(publisher()->{generation}, $generation, 'goes on where it was');
ok($p->logged($w, qr/event=publish-open /), 'and says so');

$w->kill9();
$p->sql("UPDATE referral.code SET campaign = 'while away' WHERE id < 100");
$w->start();
settles('what changed while it was away');
is(publisher()->{generation}, $generation, 'is all that is written');

# Redis is emptied; its set is lost

$redis->cmd('FLUSHALL');
ok($p->t()->wait_for(sub { (publisher()->{ready} // 0) == 1 }, 5),
   'an emptied Redis is filled again');
is_deeply([ $p->settle() ], [], 'with everything');
cmp_ok(publisher()->{generation}, '>', $generation,
       'that is another generation');

# asked for

my $id = $p->value('SELECT referral.publish_request(true)');
ok($p->t()->wait_for(sub { $p->value("SELECT bool_and(done)
       FROM referral.publish_answers($id)") eq 't' }, 5),
   'a full publish is asked for');
is($p->value("SELECT codes FROM referral.publish_answers($id)"), 399,
   'and answered with its codes');

# two for one Redis, under different addresses

my $w2 = $p->worker('b');
ok($p->logged($w2, qr/event=publish-standby /), 'the second waits');
$p->sql("UPDATE referral.code SET campaign = 'two' WHERE id < 300");
is_deeply([ $p->settle() ], [], 'one publishes');
$w->stop();
$p->sql("UPDATE referral.code SET campaign = 'three' WHERE id < 300");
is_deeply([ $p->settle() ], [], 'then the other');
ok($p->logged($w2, qr/event=publish-open /), 'without a full publish');
$w2->stop();

# a copy of the database whose next fence is the one that stands in Redis: one
# of two publishers would not be told from the other

my $fence = $p->value('SELECT last_value + 1 FROM referral.publish_fence');
$redis->cmd('HSET', 'referral:publisher', 'fence', $fence);
$w->start();
my $next = $fence + 1;
ok($p->logged($w, qr/event=publish-open .*fence=(?:$fence|$next) /),
   'gone on with');
cmp_ok(publisher()->{fence}, '>', $fence, 'with a fence of its own');
$w->stop();

# settings

$w->configure(%{ $w->{conf} }, publish => 'off');
$w->start();
$w->notified(qr/READY=1/);
$p->sql("UPDATE referral.code SET campaign = 'off' WHERE id = 1");
sleep(0.5);
is(hash_of('CODE1')->{campaign}, 'three', 'publish = off');
$w->configure(%{ $w->{conf} }, publish => 'on');
$w->hup();
is_deeply([ $p->settle() ], [], 'on by a reload');

$redis->cmd('CONFIG', 'SET', 'requirepass', 'geheim');
$redis->{auth} = 'geheim';
$redis->disconnect();
$redis->cmd('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
ok($p->logged($w, qr{event=publish-failed .*NOAUTH.*redis_password_file}),
   'a password is wanted, and the setting named');
$w->configure(%{ $w->{conf} }, redis_password_file =>
              $p->t()->write_file('password', "falsch\n"));
$w->hup();
ok($p->logged($w, qr/event=publish-failed .*WRONGPASS.*check the password/),
   'a wrong one');
$p->t()->write_file('password', "geheim\n");
is_deeply([ $p->settle() ], [], 'the right one, without a reload');
unlike($w->output(), qr/geheim|falsch/, 'and none in the log');

# a user with the rights that README.md names, and no others

my ($rights) = $p->t()->read_file($p->t()->root() . '/README.md')
    =~ /`ACL SETUSER publisher on >PASSWORD ([^`]+)`/;
my $port = $p->t()->port('acl');

$redis->cmd('ACL', 'SETUSER', 'publisher', 'on', '>geheim',
            split(' ', $rights));
$redis->cmd('CONFIG', 'SET', 'port', $port);
$w->configure(%{ $w->{conf} }, redis => "redis://publisher\@127.0.0.1:$port");
$w->hup();
ok($p->t()->wait_for(sub { $redis->cmd('CLIENT', 'LIST')
                           =~ / user=publisher / }, 5), 'another user');

my $so_far = length($w->output());

$p->sql('SELECT referral.publish_request(true)');
$p->sql("SELECT referral.program_set_status(1, 'paused')");
is_deeply([ $p->settle() ], [], 'all is published by it');
$p->sql("SELECT referral.program_set_status(1, 'active')");
$redis->cmd('HSET', 'referral:code:WRONG', 'code_id', 99999);
$redis->cmd('DEL', 'referral:publisher');
ok($p->t()->wait_for(sub { (publisher()->{ready} // 0) == 1 }, 5),
   'and all anew');
is_deeply([ $p->settle() ], [], 'without what does not belong there');
unlike(substr($w->output(), $so_far), qr/NOPERM|ACL/, 'it may do all it does');

# how long it takes

my @took;

for my $n (1 .. 40) {
    my $status = $n % 2 ? 'disabled' : 'active';
    $p->sql("UPDATE referral.code SET status = '$status' WHERE id = 8");
    my $begin = time();
    sleep(0.0005) until hash_of('CODE8')->{state}
                        eq ($n % 2 ? 'inactive' : 'active')
                        || time() - $begin > 2;
    push @took, time() - $begin;
}

@took = sort { $a <=> $b } @took;
cmp_ok($took[@took / 2], '<', 0.1, sprintf('from COMMIT to Redis: %.1f ms in'
       . ' the middle, %.1f at most', $took[@took / 2] * 1e3,
       $took[-1] * 1e3));

# nobody keeps marks for ever

$p->sql('SELECT referral.publish_prune()');
is($p->value('SELECT count(*) FROM referral.mark'), 0,
   'marks that all have seen are deleted');

is_deeply([ $p->close() ], [], 'nothing bad in the logs');
is_deeply([ Referral::Test::Stand::end() ], [], 'Postgres ends');

done_testing();
