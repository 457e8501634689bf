#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# referralctl: its command line, and codes in Redis.

use strict;
use warnings;

use Test::More;
use IO::Select;
use JSON::PP;
use POSIX ();
use Referral::Test;

my $t = Referral::Test->new();
my $redis = $t->redis(tcp => 1);
my $json = JSON::PP->new()->utf8();

delete @ENV{qw(REFERRAL_REDIS REFERRAL_JOURNAL REFERRAL_DB PGHOST PGDATABASE
               PGSERVICE)};

sub ctl {
    my (@args) = @_;
    return $t->referralctl('code', @args, '--redis', $redis->url());
}

sub hash {
    return { @{ $redis->cmd('HGETALL', "referral:code:$_[0]") } };
}

#
# the command line
#

my $r = $t->referralctl('--version');
is($r->{status}, 0, '--version');
like($r->{output}, qr/^referralctl \d+\.\d+\.\d+/, 'version');

$r = $t->referralctl('--help');
is($r->{status}, 0, '--help');

my @commands;

while ($r->{output} =~ /^  ([a-z]+) {2,}[a-z].*\n((?: {14}[a-z].*\n)*)/mg) {
    my ($noun, $verbs) = ($1, $2);
    my @verbs = split(' ', $verbs);
    push @commands, @verbs ? map { "$noun $_" } @verbs : $noun;
}

cmp_ok(scalar(@commands), '>=', 40, 'names the commands');
like($r->{output}, qr/3 a server could not be reached/, 'and exit codes');

for my $command (@commands) {
    my $r = $t->referralctl(split(' ', $command), '--help');
    is($r->{status}, 0, "$command --help");
    like($r->{output}, qr/^Usage: referralctl $command.*^Examples:/ms,
         "$command has usage and examples");
    unlike($r->{output}, qr/^.{81}/m, 'within 80 columns');
}

for my $noun (qw(org program referrer code journal db token secret)) {
    my $r = $t->referralctl($noun, '--help');
    is($r->{status}, 0, "$noun --help");
    like($r->{output}, qr/^  $noun \w+ /m, 'lists its verbs');
}

for ([ [], qr/what to do/ ],
     [ [ 'cods' ], qr/there is no "cods"/ ],
     [ [ 'cods', '--help' ], qr/there is no "cods"/ ],
     [ [ 'code' ], qr/what to do with the code/ ],
     [ [ 'code', 'make' ], qr/there is no "make"/ ],
     [ [ 'code', 'set', 'X' ], qr/needs: CODE FIELD=VALUE/ ],
     [ [ 'code', 'show', 'X', 'Y' ], qr/"Y" is too much/ ],
     [ [ 'code', 'show', '--nope' ], qr/unknown option "--nope"/ ],
     [ [ 'code', 'show', 'X', '--from', 1 ], qr/takes no --from/ ],
     [ [ 'code', 'show', 'X', '--redis' ], qr/--redis needs a value/ ],
     [ [ 'code', 'show', 'X', '--json=1' ], qr/--json takes no value/ ],
     [ [ 'journal', 'tail', '-n', 'x' ], qr/"x" is not a number/ ],
     [ [ 'code', 'show', 'X' ], qr/REFERRAL_REDIS/ ],
     [ [ 'code', 'show', 'X', '--db', 'x', '--redis', 'y' ], qr/not both/ ],
     [ [ 'code', 'show', 'X', '--redis', 'http://x' ], qr/--redis: / ],
     [ [ 'token', 'verify', 'x', '--max-age', '3y' ], qr/90d, 12h/ ])
{
    my ($args, $says) = @$_;
    my $r = $t->referralctl(@$args);
    is($r->{status}, 2, "usage: @$args");
    like($r->{output}, $says, 'says what is wrong');
}

unlike($t->referralctl('code', "\e[31m")->{output}, qr/\e/,
       'what was typed is not echoed as it is');

#
# set
#

$r = ctl('set', 'summer25', 'url=https://example.com/summer');
is($r->{status}, 0, 'set') or diag($r->{output});
is_deeply(hash('SUMMER25'),
          { url => 'https://example.com/summer', version => 1 },
          'in upper case, version 1');
like($r->{output}, qr/^SUMMER25 is set, now valid:$/m, 'says what it is');

$r = ctl('set', 'SUMMER25', 'campaign=S\xc3\xbc\xc3\x9f', 'program_id=12',
         'expires=2099-12-31T23:59:59+01:00');
is($r->{status}, 0, 'change');
is_deeply(hash('SUMMER25'),
          { url => 'https://example.com/summer', version => 2,
            campaign => 'S\xc3\xbc\xc3\x9f', program_id => 12,
            expires => 4102441199 }, 'other fields stay, version 2');
like($r->{output}, qr/expires +4102441199  \(2099-12-31 22:59:59 UTC\)/,
     'times in words');

is(ctl('set', 'SUMMER25', 'campaign=', 'expires=')->{status}, 0, 'remove');
is_deeply(hash('SUMMER25'), { url => 'https://example.com/summer',
          version => 3, program_id => 12 }, 'fields are gone');

$r = ctl('set', 'SUMMER25', 'state=inactive', 'version=1000', '--json');
my $doc = $json->decode($r->{output});
is($doc->{version}, 1000, 'a larger version');
is($doc->{state}, 'inactive', 'state');
is($doc->{verdict}, 'inactive', 'verdict');
is($doc->{program_id}, 12, 'numbers are numbers');

is(ctl('set', 'SUMMER25', 'state=', 'version=5')->{status}, 0,
   'a smaller version');
is(hash('SUMMER25')->{version}, 1001, 'is raised all the same');

for ([ '2030-01-02', 1893542400 ], [ '2030-01-02T03:04', 1893553440 ],
     [ '2030-01-02 03:04:05', 1893553445 ],
     [ '2030-01-02T03:04:05Z', 1893553445 ],
     [ '2030-01-02T03:04:05-0530', 1893573245 ], [ 1893553445, 1893553445 ],
     [ '2028-02-29', 1835395200 ])
{
    my ($text, $seconds) = @$_;
    is(ctl('set', 'TIMES', 'url=http://x/', "expires=$text")->{status}, 0,
       "time $text");
    is(hash('TIMES')->{expires}, $seconds, 'is right');
}

is($json->decode(ctl('set', 'TIMES', 'expires=2001-01-01', '--json')
                 ->{output})->{verdict}, 'expired', 'expired');
is($json->decode(ctl('set', 'TIMES', 'expires=', 'not_before=2090-01-01',
                     '--json')->{output})->{verdict}, 'early', 'early');

# many at once: each change counts

my @pids = map {
    my $pid = fork() // die;

    if ($pid == 0) {
        open(STDOUT, '>', '/dev/null');
        exec($t->build() . '/referralctl', 'code', 'set', 'RACE',
             'url=http://x/', "campaign=$_", '--redis', $redis->url())
            or POSIX::_exit(127);
    }

    $pid;
} 1 .. 6;

my @bad = grep { waitpid($_, 0); $? } @pids;
is(scalar(@bad), 0, 'six at once');
is(hash('RACE')->{version}, 6, 'none is lost');

# refused, and nothing is written

$redis->cmd('HSET', 'referral:code:KEEP', 'url', 'https://example.com/',
            'other', 'kept');

my $long = 'x' x 65;

for ([ [ 'KEEP', 'url=ftp://x/' ], qr/url: .*http:/ ],
     [ [ 'KEEP', 'url=https://user@example.com/' ], qr/url: / ],
     [ [ 'KEEP', "url=https://example.com/\n" ], qr/url: / ],
     [ [ 'KEEP', 'url=https://{code}.example.com/' ], qr/url: / ],
     [ [ 'KEEP', 'url=https://example.com/{secret}' ], qr/url: / ],
     [ [ 'KEEP', 'url=' ], qr/url: missing/ ],
     [ [ 'KEEP', 'state=on' ], qr/active, inactive or exhausted/ ],
     [ [ 'KEEP', 'expires=tomorrow' ], qr/ISO 8601/ ],
     [ [ 'KEEP', 'expires=2026-02-30' ], qr/ISO 8601/ ],
     [ [ 'KEEP', 'expires=2026-01-01T25:00' ], qr/ISO 8601/ ],
     [ [ 'KEEP', 'expires=-1' ], qr/ISO 8601/ ],
     [ [ 'KEEP', 'expires=99999999999999' ], qr/expires: too large/ ],
     [ [ 'KEEP', 'not_before=2030-01-02', 'expires=2030-01-01' ],
       qr/not later than not_before/ ],
     [ [ 'KEEP', 'version=x' ], qr/version: / ],
     [ [ 'KEEP', 'code_id=1.5' ], qr/code_id: / ],
     [ [ 'KEEP', 'program_id=9223372036854775808' ], qr/program_id: / ],
     [ [ 'KEEP', 'campaign=' . 'x' x 129 ], qr/campaign: / ],
     [ [ 'KEEP', "campaign=\xff" ], qr/UTF-8/ ],
     [ [ 'KEEP', 'rules=[]' ], qr/rules: / ],
     [ [ 'KEEP', 'rules={"a":}' ], qr/rules: no JSON object/ ],
     [ [ 'KEEP', 'urls=https://x/' ],
       qr/unknown field "urls"; the fields are url, state, not_before/ ],
     [ [ 'KEEP', 'url=http://a/', 'url=http://b/' ], qr/given twice/ ],
     [ [ 'KEEP', 'url' ], qr/FIELD=VALUE is expected/ ],
     [ [ 'a b', 'url=http://x/' ], qr/1 to 64 of A-Z/ ],
     [ [ '', 'url=http://x/' ], qr/1 to 64 of A-Z/ ],
     [ [ $long, 'url=http://x/' ], qr/1 to 64 of A-Z/ ],
     [ [ 'NEW', 'campaign=x' ], qr/url: missing/ ])
{
    my ($args, $says) = @$_;
    my $r = ctl('set', @$args);
    my $name = substr($args->[1], 0, 40) =~ s/[^ -~]/?/gr;
    is($r->{status}, 2, "refused: $name");
    like($r->{output}, $says, 'says why');
}

is_deeply(hash('KEEP'), { url => 'https://example.com/', other => 'kept' },
          'the code is what it was');
is($redis->cmd('EXISTS', 'referral:code:NEW'), 0, 'and no new one');

is(ctl('set', 'KEEP', 'campaign=x')->{status}, 0, 'a good change');
is(hash('KEEP')->{other}, 'kept', 'leaves unknown fields alone');

$redis->cmd('HSET', 'referral:code:KEEP', 'version', 'abc');
is(ctl('set', 'KEEP', 'campaign=y')->{status}, 0, 'a bad stored version');
is(hash('KEEP')->{version}, 1, 'is replaced');

# edges are told, after the hash was written

my $listener = IO::Socket::UNIX->new(Peer => $redis->path()) or die;
print $listener "SUBSCRIBE referral:invalidate\r\n";
$listener->flush();

sub heard {
    my $text = '';
    while (IO::Select->new($listener)->can_read(2)) {
        sysread($listener, $text, 4096, length($text)) or last;
        return $1 if $text =~ /message\r\n\$19\r\nreferral:invalidate\r\n
                               \$\d+\r\n(.+)\r\n/x;
    }
    return $text;
}

IO::Select->new($listener)->can_read(2);
sysread($listener, my $greeting, 4096);

ctl('set', 'summer25', 'state=exhausted');
is(heard(), 'SUMMER25 1002', 'set is published');
ctl('remove', 'summer25');
is(heard(), 'SUMMER25 1003', 'remove is published');
close($listener);

#
# show, list, remove
#

is($redis->cmd('EXISTS', 'referral:code:SUMMER25'), 0, 'removed');

$r = ctl('show', 'summer25');
is($r->{status}, 1, 'show of none');
like($r->{output}, qr/there is no code SUMMER25/, 'says so');
is(ctl('remove', 'summer25')->{status}, 1, 'remove of none');

$redis->cmd('FLUSHALL');
$redis->code('GOOD', version => 7);
$redis->code('EVIL', url => "javascript:\e[31m");
$redis->code('OLD', expires => 1000);
$redis->code('lower');
$redis->cmd('SET', 'referral:code:STRING', 'x');

$r = ctl('show', 'evil');
is($r->{status}, 0, 'show of a bad code');
like($r->{output}, qr/^EVIL, now inactive:/, 'is inactive');
like($r->{output}, qr/problem +url: /, 'with the reason');
unlike($r->{output}, qr/\e/, 'and safe for a terminal');

my %list = map { $_->{code} => $_ }
           map { $json->decode($_) }
           split(/\n/, ctl('list', '--json')->{output});

is_deeply([ map { "$_ $list{$_}{verdict}" } sort keys %list ],
          [ 'EVIL inactive', 'GOOD valid', 'OLD expired', 'STRING inactive',
            'lower unknown' ], 'list --json');
like($list{STRING}{problem}, qr/WRONGTYPE/, 'what is no hash');
like($list{lower}{problem}, qr/never used/, 'what is never looked up');

like(ctl('list')->{output}, qr/^CODE .*^GOOD +valid +- +7  https:/ms,
     'list for people');
is(() = ctl('list', 'g*')->{output} =~ /^GOOD /mg, 1, 'a pattern');
unlike(ctl('list', 'g*')->{output}, qr/^OLD /m, 'excludes others');
is(ctl('show', 'string')->{status}, 1, 'show of what is no hash');

# more than one SCAN and one batch

$redis->cmd('FLUSHALL');
like(ctl('list')->{output}, qr/^no codes$/, 'an empty list');
$redis->code("C$_") for 1 .. 1500;
my @codes = ctl('list')->{output} =~ /^(C\d+) /mg;
is(@codes, 1500, 'many codes');
is_deeply(\@codes, [ sort @codes ], 'in order');

#
# the server
#

{
    local $ENV{REFERRAL_REDIS} = $redis->url();
    is($t->referralctl('code', 'show', 'C1')->{status}, 0, 'REFERRAL_REDIS');
}

is($t->referralctl('code', 'show', 'C1', '--redis=redis://127.0.0.1:'
                   . $redis->port())->{status}, 0, 'over TCP');
is($t->referralctl('code', 'show', 'C1', '--redis', $redis->url() . ':1')
   ->{status}, 1, 'another database');
is($t->referralctl('code', 'show', 'C1', '--redis', $redis->url() . ':99')
   ->{status}, 3, 'no such database');

$redis->cmd('CONFIG', 'SET', 'requirepass', 'geheim');
my $password = $t->write_file('password', "geheim\n");
my $wrong = $t->write_file('wrong', "falsch\n");

$r = ctl('show', 'C1');
is($r->{status}, 3, 'a password is wanted');
like($r->{output}, qr/NOAUTH.*--redis-password-file/, 'says how');

is(ctl('show', 'C1', '--redis-password-file', $password)->{status}, 0,
   '--redis-password-file');
$r = ctl('show', 'C1', '--redis-password-file', $wrong);
is($r->{status}, 3, 'a wrong password');
unlike($r->{output}, qr/falsch/, 'is not printed');
is(ctl('show', 'C1', '--redis-password-file', '/nonexistent')->{status}, 2,
   'no password file');

$redis->cmd('CONFIG', 'SET', 'requirepass', '');
$redis->cmd('REPLICAOF', '127.0.0.1', 1);
$r = ctl('set', 'C1', 'state=inactive');
is($r->{status}, 3, 'a replica');
like($r->{output}, qr/READONLY.*the master's URL/, 'is named');
$redis->cmd('REPLICAOF', 'NO', 'ONE');

$redis->pause();
$r = ctl('show', 'C1');
is($r->{status}, 3, 'a frozen server');
like($r->{output}, qr/no answer within 5 seconds/, 'has a deadline');
$redis->resume();

$redis->stop();
$r = ctl('show', 'C1');
is($r->{status}, 3, 'no server');
like($r->{output}, qr/^referralctl: redis unix:.*: /, 'is named');

$t->done();
